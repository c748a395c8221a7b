//! The calls of the protocol.

use coral_warmer::cri::generated::image_service_server::ImageService;
use coral_warmer::cri::generated::runtime_service_server::RuntimeService;
use coral_warmer::cri::generated::{
    AuthConfig, FilesystemUsage, ImageFsInfoRequest, ImageFsInfoResponse, ImageSpec,
    ImageStatusRequest, ImageStatusResponse, ListContainersRequest, ListContainersResponse,
    PullImageRequest, PullImageResponse, RemoveImageRequest, RemoveImageResponse, UInt64Value,
    VersionRequest, VersionResponse,
};
use tonic::{Request, Response, Status, async_trait};

use super::{Kind, Pull, World, failure};

type Answer<T> = Result<Response<T>, Status>;

#[async_trait]
impl RuntimeService for World {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        self.answering().await;
        let (name, version) = match self.state().kind {
            Kind::Containerd => ("containerd", "v2.4.2"),
            Kind::Crio => ("cri-o", "1.34.1"),
        };
        Ok(Response::new(VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: name.to_owned(),
            runtime_version: version.to_owned(),
            runtime_api_version: "v1".to_owned(),
        }))
    }

    async fn list_containers(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Answer<ListContainersResponse> {
        self.note("containers".to_owned());
        self.answering().await;
        if request.into_inner().filter.is_some() {
            return Err(Status::unimplemented(
                "a filter would hide exited containers",
            ));
        }
        let containers = self.state().containers.clone();
        Ok(Response::new(ListContainersResponse { containers }))
    }
}

#[async_trait]
impl ImageService for World {
    async fn image_status(
        &self,
        request: Request<ImageStatusRequest>,
    ) -> Answer<ImageStatusResponse> {
        let spelling = spelled(request.into_inner().image);
        self.note(format!("status {spelling}"));
        self.answering().await;
        let image = self.state().resolve(&spelling).cloned();
        Ok(Response::new(ImageStatusResponse {
            image,
            ..ImageStatusResponse::default()
        }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let PullImageRequest { image, auth, .. } = request.into_inner();
        let spelling = spelled(image);
        let script = self.state().pulls.get(&spelling).cloned();
        let pulling = Pulling::begin(self, auth);
        let released = self.released.notified();
        self.note(format!("pull {spelling}"));
        let dropped = Dropped {
            world: self,
            spelling: Some(&spelling),
        };
        let content = match script {
            Some(Pull::Fails(code, message)) => {
                dropped.not();
                return Err(failure(code, &message));
            }
            Some(Pull::Brings(content)) => content,
            Some(Pull::Stays) => {
                released.await;
                spelling.clone()
            }
            None => spelling.clone(),
        };
        dropped.not();
        drop(pulling);
        let mut state = self.state();
        let id = state.identifier(&content);
        state.bring(&spelling, &id);
        let image_ref = state.answer(&id);
        Ok(Response::new(PullImageResponse { image_ref }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Answer<RemoveImageResponse> {
        let spelling = spelled(request.into_inner().image);
        self.note(format!("remove {spelling}"));
        self.answering().await;
        self.state().remove(&spelling);
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        self.answering().await;
        let bytes = self.state().images.values().map(|image| image.size).sum();
        Ok(Response::new(ImageFsInfoResponse {
            image_filesystems: vec![FilesystemUsage {
                used_bytes: Some(UInt64Value { value: bytes }),
                ..FilesystemUsage::default()
            }],
            ..ImageFsInfoResponse::default()
        }))
    }
}

fn spelled(image: Option<ImageSpec>) -> String {
    image.unwrap_or_default().image
}

/// Counts a pull while it runs.
struct Pulling<'a>(&'a World);

impl<'a> Pulling<'a> {
    fn begin(world: &'a World, login: Option<AuthConfig>) -> Self {
        let mut state = world.state();
        state.logins.push(login);
        state.pulling += 1;
        state.most_pulls = state.most_pulls.max(state.pulling);
        Self(world)
    }
}

impl Drop for Pulling<'_> {
    fn drop(&mut self) {
        self.0.state().pulling -= 1;
    }
}

/// Notes a pull whose caller went away.
struct Dropped<'a> {
    world: &'a World,
    spelling: Option<&'a str>,
}

impl Dropped<'_> {
    fn not(mut self) {
        self.spelling = None;
    }
}

impl Drop for Dropped<'_> {
    fn drop(&mut self) {
        if let Some(spelling) = self.spelling {
            self.world.note(format!("pull-dropped {spelling}"));
        }
    }
}
