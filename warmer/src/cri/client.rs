//! The runtime behind its Unix socket.

use std::error::Error as _;
use std::io;
use std::path::Path;
use std::time::Duration;

use coral_schema::crd::Reason;
use coral_schema::oci::ImageReference;
use coral_schema::oci::docker_config::DockerLogin;
use coral_schema::oci::reference::DOCKER_HUB;
use futures::FutureExt as _;
use futures::future::BoxFuture;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use secrecy::ExposeSecret as _;
use tonic::transport::{Channel, Endpoint};
use tonic::{Response, Status};

use super::failure::{classify, without_queries};
use super::generated::image_service_client::ImageServiceClient;
use super::generated::runtime_service_client::RuntimeServiceClient;
use super::generated::{
    AuthConfig, Container, FilesystemUsage, Image, ImageFsInfoRequest, ImageSpec,
    ImageStatusRequest, ListContainersRequest, PullImageRequest, RemoveImageRequest,
    VersionRequest,
};
use super::{ContainerFacts, CriError, ImageFacts, Runtime, Version};

/// A busy containerd answers queries within a second or two; the next look asks again.
const QUERY_DEADLINE: Duration = Duration::from_secs(10);
/// containerd removes the layers before it answers.
const REMOVE_DEADLINE: Duration = Duration::from_mins(2);
/// A node with 110 pods and their exited containers passes tonic's 4 MiB.
const MESSAGE_LIMIT: usize = 16 << 20;

/// A [`Runtime`] that is reached over its socket, connected when needed and again after every loss. Pulls have a
/// connection of their own: no query waits for one.
#[derive(Debug, Clone)]
pub struct Client {
    queries: Channel,
    pulls: Channel,
    errors: Family<Operation, Counter>,
}

/// The path cannot be written as an address.
#[derive(Debug, thiserror::Error)]
#[error("the path of the runtime's socket cannot be used: {0}")]
pub struct BadSocketPath(#[from] tonic::transport::Error);

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Operation {
    op: &'static str,
}

impl Client {
    /// For the socket at `path`. Opens nothing yet; needs a running tokio.
    pub fn new(path: &Path, metrics: &mut Registry) -> Result<Self, BadSocketPath> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))?
            .connect_timeout(QUERY_DEADLINE);
        let errors = Family::default();
        metrics.register(
            "cri_errors",
            "Calls to the container runtime that failed",
            errors.clone(),
        );
        Ok(Self {
            queries: endpoint.connect_lazy(),
            pulls: endpoint.connect_lazy(),
            errors,
        })
    }

    fn images(channel: &Channel) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    fn runtime(&self) -> RuntimeServiceClient<Channel> {
        RuntimeServiceClient::new(self.queries.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    async fn query<T>(
        &self,
        op: &'static str,
        deadline: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CriError> {
        self.counted(op, within(deadline, call).await)
    }

    fn counted<T>(&self, op: &'static str, answer: Result<T, CriError>) -> Result<T, CriError> {
        answer.inspect_err(|_| {
            self.errors.get_or_create(&Operation { op }).inc();
        })
    }
}

/// The answer to a call, if it comes in time.
pub(super) async fn within<T>(
    deadline: Duration,
    call: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, CriError> {
    match tokio::time::timeout(deadline, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(CriError::from(&status)),
        Err(_) => Err(CriError {
            reason: Reason::RuntimeUnavailable,
            refused: false,
            message: format!("no answer within {} s", deadline.as_secs()),
        }),
    }
}

impl Runtime for Client {
    fn version(&self) -> BoxFuture<'_, Result<Version, CriError>> {
        async move {
            let mut client = self.runtime();
            let call = client.version(VersionRequest::default());
            let answer = self.query("version", QUERY_DEADLINE, call).await?;
            Ok(Version {
                name: answer.runtime_name,
                version: answer.runtime_version,
            })
        }
        .boxed()
    }

    fn image<'a>(
        &'a self,
        spelling: &'a str,
    ) -> BoxFuture<'a, Result<Option<ImageFacts>, CriError>> {
        async move {
            let mut client = Self::images(&self.queries);
            let call = client.image_status(ImageStatusRequest {
                image: Some(named(spelling)),
                verbose: false,
            });
            let answer = self.query("image_status", QUERY_DEADLINE, call).await?;
            Ok(answer.image.map(ImageFacts::from))
        }
        .boxed()
    }

    fn containers(&self) -> BoxFuture<'_, Result<Vec<ContainerFacts>, CriError>> {
        async move {
            let mut client = self.runtime();
            // No filter: without one, containers of every state are listed.
            let call = client.list_containers(ListContainersRequest::default());
            let answer = self.query("list_containers", QUERY_DEADLINE, call).await?;
            Ok(answer
                .containers
                .into_iter()
                .map(ContainerFacts::from)
                .collect())
        }
        .boxed()
    }

    fn image_bytes(&self) -> BoxFuture<'_, Result<u64, CriError>> {
        async move {
            let mut client = Self::images(&self.queries);
            let call = client.image_fs_info(ImageFsInfoRequest {});
            let answer = self.query("image_fs_info", QUERY_DEADLINE, call).await?;
            let used = |usage: &FilesystemUsage| usage.used_bytes.map_or(0, |bytes| bytes.value);
            Ok(answer.image_filesystems.iter().map(used).sum())
        }
        .boxed()
    }

    fn pull<'a>(
        &'a self,
        spelling: &'a str,
        login: Option<&'a DockerLogin>,
    ) -> BoxFuture<'a, Result<(), CriError>> {
        async move {
            let auth = login.map(|login| auth_config(spelling, login));
            let answer = Self::images(&self.pulls)
                .pull_image(PullImageRequest {
                    image: Some(named(spelling)),
                    auth,
                    sandbox_config: None,
                })
                .await
                .map_err(|status| CriError::from(&status));
            // The answer's reference is an identifier or a digest, depending on the version: `image` tells.
            self.counted("pull_image", answer).map(drop)
        }
        .boxed()
    }

    fn remove<'a>(&'a self, spelling: &'a str) -> BoxFuture<'a, Result<(), CriError>> {
        async move {
            let mut client = Self::images(&self.queries);
            let call = client.remove_image(RemoveImageRequest {
                image: Some(named(spelling)),
            });
            self.query("remove_image", REMOVE_DEADLINE, call).await?;
            Ok(())
        }
        .boxed()
    }
}

fn named(spelling: &str) -> ImageSpec {
    ImageSpec {
        image: spelling.to_owned(),
        ..ImageSpec::default()
    }
}

/// Bound to the image's own registry, as a URL: containerd offers a login without an address to every host it tries,
/// mirrors too, and with a bare host to none.
fn auth_config(spelling: &str, login: &DockerLogin) -> AuthConfig {
    let mut auth = AuthConfig {
        server_address: server_address(spelling),
        ..AuthConfig::default()
    };
    match login {
        DockerLogin::Password { username, password } => {
            auth.username.clone_from(username);
            password.expose_secret().clone_into(&mut auth.password);
        }
        DockerLogin::IdentityToken(token) => {
            token.expose_secret().clone_into(&mut auth.identity_token);
        }
        DockerLogin::RegistryToken(token) => {
            token.expose_secret().clone_into(&mut auth.registry_token);
        }
    }
    auth
}

/// An unreadable spelling gets an address that matches no host, so that the login goes nowhere.
fn server_address(spelling: &str) -> String {
    let host = spelling
        .parse::<ImageReference>()
        .map_or_else(|_| "unreadable.invalid".to_owned(), |image| image.host);
    if host == DOCKER_HUB {
        "https://registry-1.docker.io".to_owned()
    } else {
        format!("https://{host}")
    }
}

impl From<Image> for ImageFacts {
    fn from(image: Image) -> Self {
        Self {
            id: image.id,
            tags: image.repo_tags,
            digests: image.repo_digests,
            size_bytes: image.size,
        }
    }
}

impl From<Container> for ContainerFacts {
    fn from(container: Container) -> Self {
        let spelled = container.image.unwrap_or_default();
        let mut image = vec![
            container.image_id,
            container.image_ref,
            spelled.image,
            spelled.user_specified_image,
        ];
        image.retain(|word| !word.is_empty());
        Self {
            id: container.id,
            image,
        }
    }
}

impl From<&Status> for CriError {
    /// What fails below the call comes as `Unknown` or `Unavailable` with the cause as source.
    fn from(status: &Status) -> Self {
        let mut cause = status.source();
        let below = cause.is_some();
        let mut refused = false;
        while let Some(error) = cause {
            refused |= error
                .downcast_ref::<io::Error>()
                .is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
            cause = error.source();
        }
        Self {
            reason: if below {
                Reason::RuntimeUnavailable
            } else {
                classify(status.code(), status.message())
            },
            refused,
            message: without_queries(status.message()),
        }
    }
}

impl std::fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthConfig")
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[rstest::rstest]
    #[case("nginx", "https://registry-1.docker.io")]
    #[case("docker.io/library/nginx:1", "https://registry-1.docker.io")]
    #[case("r.test:5000/a/b:1", "https://r.test:5000")]
    #[case("R.test/A", "https://unreadable.invalid")]
    fn l33_a_login_is_for_the_images_own_registry_as_a_url(
        #[case] spelling: &str,
        #[case] address: &str,
    ) {
        let login = DockerLogin::Password {
            username: "someone".to_owned(),
            password: "secret".into(),
        };
        let auth = auth_config(spelling, &login);
        assert_eq!(auth.server_address, address);
        assert_eq!(
            (auth.username.as_str(), auth.password.as_str()),
            ("someone", "secret")
        );
        assert!(!format!("{auth:?}").contains("secret"));
    }
}
