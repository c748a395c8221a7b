//! A scripted container runtime: the real protocol over a Unix socket, and images that are only names.
//!
//! It names images as containerd does: a pull adds the written-out name with its tag and the one with its digest, and
//! removing an image removes every name of it. Or as CRI-O does (see [`Kind`]). What it was asked is in a log that tests
//! can wait for.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use coral_schema::oci::{Digest, ImageReference, ManifestRef};
use coral_schema::process::tasks::Tasks;
use coral_warmer::cri::containerd_generated::containerd::services::events::v1::events_server::EventsServer;
use coral_warmer::cri::containerd_generated::containerd::services::images::v1::images_server::ImagesServer;
use coral_warmer::cri::generated::image_service_server::ImageServiceServer;
use coral_warmer::cri::generated::runtime_service_server::RuntimeServiceServer;
use coral_warmer::cri::generated::{AuthConfig, Container, Image};
use tokio::net::UnixListener;
use tokio::sync::{Notify, broadcast, watch};
use tonic::transport::Server;
use tonic::{Code, Status};

mod containerd;
mod service;

/// Bytes of a name in a crowd: as long as a repository may be.
const CROWD_NAME: usize = 240;
/// No test waits longer for a call.
const PATIENCE: Duration = Duration::from_secs(30);

/// A runtime on a socket in a folder of its own. Ends with this value.
#[derive(Debug)]
pub struct Cri {
    folder: tempfile::TempDir,
    world: Arc<World>,
    serving: Option<Tasks>,
}

/// Whose names and answers it has.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Kind {
    /// Identifiers with their algorithm. A short name is one of Docker Hub. A pull answers the identifier.
    #[default]
    Containerd,
    /// Bare identifiers, whose beginning is tried before names. A short name is looked for at [`SHORT_NAMES`]. A pull answers
    /// a digest, a container names its image by one, and removing a name takes that name only, unless it was the last.
    /// As read from its sources (1.34); no real one is to be had for these tests.
    Crio,
}

/// CRI-O's `unqualified-search-registries`.
pub const SHORT_NAMES: &str = "quay.test";

/// What a pull does.
#[derive(Debug, Clone)]
pub enum Pull {
    /// Brings an image with this identifier.
    Brings(String),
    /// Fails with a code and a message.
    Fails(Code, String),
    /// Stays until [`Cri::release`], then brings the image.
    Stays,
}

/// Everything that the services share.
#[derive(Debug)]
struct World {
    state: Mutex<State>,
    released: Notify,
    /// Names that are deleted; `None` ends subscriptions.
    deleted: broadcast::Sender<Option<String>>,
    log: watch::Sender<Vec<String>>,
}

#[derive(Debug, Default)]
struct State {
    kind: Kind,
    /// By identifier.
    images: BTreeMap<String, Image>,
    containers: Vec<Container>,
    /// containerd's, by name.
    labels: BTreeMap<String, BTreeMap<String, String>>,
    /// By the spelling that is pulled.
    pulls: BTreeMap<String, Pull>,
    logins: Vec<Option<AuthConfig>>,
    /// Pulls that run, and the most that ever did.
    pulling: usize,
    most_pulls: usize,
    silent: bool,
}

impl Cri {
    /// With no images, and pulls that succeed.
    pub fn start() -> Self {
        Self::start_as(Kind::Containerd)
    }

    /// The same as another runtime.
    pub fn start_as(kind: Kind) -> Self {
        let mut cri = Self {
            folder: tempfile::tempdir().expect("a temporary folder"),
            world: Arc::new(World {
                state: Mutex::new(State {
                    kind,
                    ..State::default()
                }),
                released: Notify::new(),
                deleted: broadcast::channel(4096).0,
                log: watch::channel(Vec::new()).0,
            }),
            serving: None,
        };
        cri.listen();
        cri
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("cri.sock")
    }

    /// Serves on a new socket under the same path; images and containers are as they were.
    pub fn listen(&mut self) {
        let listener = bind(&self.socket()).expect("the socket can be bound");
        let tasks = Tasks::new();
        let stopping = tasks.stopping();
        let world = Arc::clone(&self.world);
        let incoming = futures::stream::unfold(listener, |listener| async {
            let accepted = listener.accept().await.map(|(stream, _)| stream);
            Some((accepted, listener))
        });
        tasks.spawn("cri", async move {
            Server::builder()
                .add_service(ImageServiceServer::from_arc(Arc::clone(&world)))
                .add_service(RuntimeServiceServer::from_arc(Arc::clone(&world)))
                .add_service(EventsServer::from_arc(Arc::clone(&world)))
                .add_service(ImagesServer::from_arc(world))
                .serve_with_incoming_shutdown(incoming, stopping.cancelled_owned())
                .await
        });
        self.serving = Some(tasks);
    }

    /// Nobody listens any more; the socket's file stays and refuses.
    pub async fn close(&mut self) {
        if let Some(tasks) = self.serving.take() {
            // Subscriptions would be waited for.
            let _ = self.world.deleted.send(None);
            assert!(tasks.stop(PATIENCE).await, "a call was still running");
        }
    }

    /// Holds an image under names that somebody else pulled. Returns its identifier.
    pub fn hold(&self, content: &str, names: &[&str]) -> String {
        let mut state = self.world.state();
        let id = state.identifier(content);
        for name in names {
            state.bring(name, &id);
        }
        id
    }

    /// The node removes the image with all its names.
    pub fn evict(&self, name: &str) {
        let mut state = self.world.state();
        let id = state.resolve(name).map(|image| image.id.clone());
        let id = id.expect("an image that is there");
        let image = state.images.remove(&id).expect("it was found");
        drop(state);
        for name in image.repo_tags.into_iter().chain(image.repo_digests) {
            self.world.forget(name);
        }
        self.world.forget(id);
    }

    /// Gives a name a label of containerd's, as an administrator would.
    pub fn label(&self, name: &str, key: &str, value: &str) {
        let mut state = self.world.state();
        let labels = state.labels.entry(name.to_owned()).or_default();
        labels.insert(key.to_owned(), value.to_owned());
    }

    /// Names that carry a label of containerd's, with its value.
    pub fn labelled(&self, key: &str) -> Vec<(String, String)> {
        let state = self.world.state();
        let labels = state.labels.iter();
        let found =
            labels.filter_map(|(name, labels)| Some((name.clone(), labels.get(key)?.clone())));
        found.collect()
    }

    /// Names under which an image is held, written out.
    pub fn names(&self) -> Vec<String> {
        let state = self.world.state();
        let tags = state
            .images
            .values()
            .flat_map(|image| image.repo_tags.clone());
        tags.collect()
    }

    /// A container that was started from the image and has exited.
    pub fn exited_container(&self, image_id: &str) {
        let mut state = self.world.state();
        let image_ref = match state.kind {
            Kind::Containerd => image_id.to_owned(),
            Kind::Crio => state.images[image_id].repo_digests[0].clone(),
        };
        state.containers.push(Container {
            id: format!("container-{image_id}"),
            image_ref,
            state: coral_warmer::cri::generated::ContainerState::ContainerExited.into(),
            ..Container::default()
        });
    }

    /// Other images whose list would be longer than `bytes` on the wire.
    pub fn hold_a_crowd(&self, bytes: usize) {
        let mut state = self.world.state();
        for n in 0..=bytes / CROWD_NAME {
            let id = format!("sha256:{n:064x}");
            let image = Image {
                id: id.clone(),
                repo_tags: vec![format!("crowd.test/{n:0width$}:1", width = CROWD_NAME)],
                size: 1,
                ..Image::default()
            };
            state.images.insert(id, image);
        }
    }

    /// Containers whose list is longer than `bytes` on the wire; none to take them away again.
    pub fn run_a_crowd(&self, bytes: usize) {
        let filling = "x".repeat(CROWD_NAME);
        let crowd = (0..bytes.div_ceil(CROWD_NAME)).map(|n| Container {
            id: format!("crowd-{n}"),
            annotations: [("filling".to_owned(), filling.clone())].into(),
            ..Container::default()
        });
        self.world.state().containers = crowd.collect();
    }

    /// What pulls of the spelling do from now on.
    pub fn script(&self, spelling: &str, pull: Pull) {
        self.world.state().pulls.insert(spelling.to_owned(), pull);
    }

    /// Pulls that stay go on.
    pub fn release(&self) {
        self.world.released.notify_waiters();
    }

    /// Calls are taken and not answered.
    pub fn silence(&self, silent: bool) {
        self.world.state().silent = silent;
    }

    /// The logins that came with pulls.
    pub fn logins(&self) -> Vec<Option<AuthConfig>> {
        self.world.state().logins.clone()
    }

    /// The most pulls that ever ran at once.
    pub fn most_pulls_at_once(&self) -> usize {
        self.world.state().most_pulls
    }

    /// How often this call was made: `pull nginx:1.27`, `pull-dropped …`, `remove …`, `status …`, `containers`.
    pub fn count(&self, call: &str) -> usize {
        count(&self.world.log.borrow(), call)
    }

    /// Waits until the call was made so often.
    pub async fn called(&self, call: &str, times: usize) {
        let mut log = self.world.log.subscribe();
        let enough = log.wait_for(|log| count(log, call) >= times);
        tokio::time::timeout(PATIENCE, enough)
            .await
            .unwrap_or_else(|_| {
                panic!(
                    "{call} was not called {times} times: {:?}",
                    self.world.log.borrow()
                )
            })
            .expect("the log lives as long as this");
    }
}

fn count(log: &[String], call: &str) -> usize {
    log.iter().filter(|entry| *entry == call).count()
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    UnixListener::bind(path)
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no test panics with the lock")
    }

    /// A name is gone, with its labels.
    fn forget(&self, name: String) {
        self.state().labels.remove(&name);
        // Nobody may be listening.
        let _ = self.deleted.send(Some(name));
    }

    fn note(&self, call: String) {
        self.log.send_modify(|log| log.push(call));
    }

    /// Does not return while calls are not answered.
    async fn answering(&self) {
        while self.state().silent {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

impl State {
    /// The name moves to the image. It has no tag when it was spelled with a digest.
    fn bring(&mut self, spelling: &str, id: &str) {
        let reference = self.reference(spelling).expect("an image reference");
        let name = format!("{}/{}", reference.host, reference.repository);
        let tag = match reference.manifest_ref() {
            ManifestRef::Tag(tag) => Some(format!("{name}:{tag}")),
            ManifestRef::Digest(_) => None,
        };
        let digest = reference.digest.map_or_else(
            || Digest::sha256(id.as_bytes()).to_string(),
            |digest| digest.to_string(),
        );
        if let Some(tag) = &tag {
            for image in self.images.values_mut() {
                image.repo_tags.retain(|known| known != tag);
            }
        }
        let image = self.images.entry(id.to_owned()).or_insert_with(|| Image {
            id: id.to_owned(),
            size: 1,
            ..Image::default()
        });
        image.repo_tags.extend(tag);
        let digest = format!("{name}@{digest}");
        if !image.repo_digests.contains(&digest) {
            image.repo_digests.push(digest);
        }
    }

    /// As a configuration of this content has it.
    fn identifier(&self, content: &str) -> String {
        let digest = Digest::sha256(content.as_bytes());
        match self.kind {
            Kind::Containerd => digest.to_string(),
            Kind::Crio => digest.hex(),
        }
    }

    /// What a spelling means here.
    fn reference(&self, spelling: &str) -> Option<ImageReference> {
        let is_short = !spelling
            .split_once('/')
            .is_some_and(|(host, _)| host.contains(['.', ':']) || host == "localhost");
        if self.kind == Kind::Crio && is_short {
            return format!("{SHORT_NAMES}/{spelling}").parse().ok();
        }
        spelling.parse().ok()
    }

    fn name(&self, spelling: &str) -> Option<String> {
        let reference = self.reference(spelling)?;
        let name = format!("{}/{}", reference.host, reference.repository);
        Some(match reference.manifest_ref() {
            ManifestRef::Tag(tag) => format!("{name}:{tag}"),
            ManifestRef::Digest(digest) => format!("{name}@{digest}"),
        })
    }

    /// By name, or by the beginning of the identifier.
    fn resolve(&self, spelling: &str) -> Option<&Image> {
        let wanted = self.name(spelling);
        let named = |image: &&Image| {
            let mut names = image.repo_tags.iter().chain(&image.repo_digests);
            names.any(|name| Some(name) == wanted.as_ref())
        };
        let begins = |image: &&Image| {
            let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
            image.id == spelling || id.starts_with(spelling)
        };
        let images = || self.images.values();
        match self.kind {
            Kind::Containerd => images().find(named).or_else(|| images().find(begins)),
            Kind::Crio => images().find(begins).or_else(|| images().find(named)),
        }
    }

    fn remove(&mut self, spelling: &str) {
        let Some(id) = self.resolve(spelling).map(|image| image.id.clone()) else {
            return;
        };
        let name = self.name(spelling);
        if self.kind == Kind::Crio
            && let Some(image) = self.images.get_mut(&id)
            && !image.id.starts_with(spelling)
        {
            image.repo_tags.retain(|tag| Some(tag) != name.as_ref());
            // Names with digests are made of the tags that are left.
            let repository = |name: &str| {
                name.rsplit_once([':', '@'])
                    .map(|(name, _)| name.to_owned())
            };
            let left: Vec<_> = image.repo_tags.iter().map(|tag| repository(tag)).collect();
            image.repo_digests.retain(|digest| {
                let named = digest.split_once('@').map(|(name, _)| name.to_owned());
                left.contains(&named)
            });
            if !image.repo_tags.is_empty() {
                return;
            }
        }
        self.images.remove(&id);
    }

    /// What a pull answers.
    fn answer(&self, id: &str) -> String {
        match self.kind {
            Kind::Containerd => id.to_owned(),
            Kind::Crio => self.images[id].repo_digests[0].clone(),
        }
    }
}

/// What a scripted failure answers.
fn failure(code: Code, message: &str) -> Status {
    Status::new(code, message)
}
