//! containerd's own API: deletions as they happen, and labels of names.

use coral_warmer::cri::containerd_generated::containerd::services::events::v1::SubscribeRequest;
use coral_warmer::cri::containerd_generated::containerd::services::events::v1::events_server::Events;
use coral_warmer::cri::containerd_generated::containerd::services::images::v1::images_server::Images;
use coral_warmer::cri::containerd_generated::containerd::services::images::v1::{
    Image, ListImagesRequest, ListImagesResponse, UpdateImageRequest, UpdateImageResponse,
};
use coral_warmer::cri::containerd_generated::containerd::types::{Descriptor, Envelope};
use futures::StreamExt as _;
use futures::future::ready;
use futures::stream::{BoxStream, once, unfold};
use tonic::{Request, Response, Status, async_trait};

use super::World;

#[async_trait]
impl Events for World {
    type SubscribeStream = BoxStream<'static, Result<Envelope, Status>>;

    async fn subscribe(
        &self,
        request: Request<SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let filters = request.into_inner().filters;
        if filters != [r#"topic=="/images/delete",namespace==k8s.io"#] {
            return Err(Status::invalid_argument(format!("{filters:?}")));
        }
        let mut deleted = self.deleted.subscribe();
        self.note("subscribe".to_owned());
        // As containerd does: nothing is answered before the first event.
        let first = deleted.recv().await.ok().flatten();
        let first = first.ok_or_else(|| Status::unavailable("closing"))?;
        let rest = unfold(deleted, |mut deleted| async {
            Some((deleted.recv().await.ok()??, deleted))
        });
        let events = once(ready(first)).chain(rest).map(|_name| {
            Ok(Envelope {
                namespace: "k8s.io".to_owned(),
                topic: "/images/delete".to_owned(),
            })
        });
        Ok(Response::new(events.boxed()))
    }
}

#[async_trait]
impl Images for World {
    async fn list(
        &self,
        request: Request<ListImagesRequest>,
    ) -> Result<Response<ListImagesResponse>, Status> {
        namespaced(&request)?;
        self.note("list".to_owned());
        let state = self.state();
        let names = state.images.values().flat_map(|image| {
            let names = image.repo_tags.iter().chain(&image.repo_digests);
            names.chain([&image.id])
        });
        let images = names.map(|name| {
            let labels = state.labels.get(name).cloned().unwrap_or_default();
            Image {
                name: name.clone(),
                labels: labels.into_iter().collect(),
                target: Some(Descriptor::default()),
            }
        });
        let images = images.collect();
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn update(
        &self,
        request: Request<UpdateImageRequest>,
    ) -> Result<Response<UpdateImageResponse>, Status> {
        namespaced(&request)?;
        let UpdateImageRequest { image, update_mask } = request.into_inner();
        let image = image.ok_or_else(|| Status::invalid_argument("no image"))?;
        // The real one crashes.
        assert!(image.target.is_some(), "no target");
        let paths = update_mask.unwrap_or_default().paths;
        let mut state = self.state();
        let labels = state.labels.entry(image.name.clone()).or_default();
        for path in paths {
            // Anything else would overwrite what is not ours.
            let key = path.strip_prefix("labels.");
            let key = key.ok_or_else(|| Status::invalid_argument(path.clone()))?;
            match image.labels.get(key).filter(|value| !value.is_empty()) {
                Some(value) => labels.insert(key.to_owned(), value.clone()),
                None => labels.remove(key),
            };
        }
        Ok(Response::new(UpdateImageResponse { image: Some(image) }))
    }
}

fn namespaced<T>(request: &Request<T>) -> Result<(), Status> {
    let namespace = request.metadata().get("containerd-namespace");
    if namespace.is_some_and(|namespace| namespace == "k8s.io") {
        Ok(())
    } else {
        Err(Status::failed_precondition("namespace is required"))
    }
}
