//! containerd's own API, on the same socket as the CRI: what is deleted, as it happens, and pins.
//!
//! Used only where the administrator allows it. The CRI can neither tell of images that go nor keep the kubelet from
//! collecting them; the kubelet honours a label on any name of an image (containerd 1.7 and later; before, it means nothing).

use std::collections::{BTreeSet, HashMap};
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::Request;
use tonic::metadata::MetadataValue;
use tonic::transport::{Channel, Endpoint};

use super::CriError;
use super::client::{BadSocketPath, within};
use super::containerd_generated::containerd::services::events::v1::SubscribeRequest;
use super::containerd_generated::containerd::services::events::v1::events_client::EventsClient;
use super::containerd_generated::containerd::services::images::v1::images_client::ImagesClient;
use super::containerd_generated::containerd::services::images::v1::{
    Image, ListImagesRequest, UpdateImageRequest,
};
use super::containerd_generated::containerd::types::Descriptor;
use super::containerd_generated::google::protobuf::FieldMask;

/// Where the CRI keeps its images.
const NAMESPACE: &str = "k8s.io";
/// What the kubelet is told by.
const PIN: (&str, &str) = ("io.cri-containerd.pinned", "pinned");
/// Tells our pins from others, which are not ours to remove.
const OWNER: (&str, &str) = ("coral.dev/pinned-by", "coral-warmer");
/// A busy containerd answers within a second or two.
const DEADLINE: Duration = Duration::from_secs(10);
/// Three names of each of a node's images; far more than any has.
const MESSAGE_LIMIT: usize = 16 << 20;
/// A refusal comes at once.
const TAKEN: Duration = Duration::from_secs(2);
/// After a subscription that ended. The looks go on meanwhile.
const AGAIN: Duration = Duration::from_secs(5);

/// The API behind containerd's socket.
#[derive(Debug, Clone)]
pub struct Containerd {
    channel: Channel,
}

/// What containerd told of deletions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Told {
    /// Rises when something may have gone.
    pub deletions: u64,
    /// It tells. Until then, and in between, only looks do.
    pub listening: bool,
}

/// One name of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Name {
    /// A reference, or the identifier.
    pub name: String,
    /// Whose pin it carries.
    pub pin: Option<Pin>,
    /// What it stands for.
    target: Option<Descriptor>,
}

/// Whose pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pin {
    /// We set it.
    Ours,
    /// Somebody else did.
    Theirs,
}

impl Containerd {
    /// For the socket at `path`. Opens nothing yet; needs a running tokio.
    pub fn new(path: &Path) -> Result<Self, BadSocketPath> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", path.display()))?;
        Ok(Self {
            channel: endpoint.connect_timeout(DEADLINE).connect_lazy(),
        })
    }

    /// Listens, again and again, until `stopping`.
    pub async fn listen(self, told: watch::Sender<Told>, stopping: CancellationToken) {
        let listening = async {
            loop {
                if let Err(error) = self.subscribe(&told).await {
                    tracing::debug!(%error, "containerd does not tell of deletions");
                }
                let listened = told.send_if_modified(|told| std::mem::take(&mut told.listening));
                if listened {
                    tracing::info!("containerd tells of deletions no longer");
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        stopping.run_until_cancelled(listening).await;
    }

    /// Passes on what is told until that ends. containerd answers with the first event, however long that takes: a
    /// subscription that is not refused soon was taken.
    async fn subscribe(&self, told: &watch::Sender<Told>) -> Result<(), CriError> {
        let mut client = EventsClient::new(self.channel.clone());
        let filter = format!(r#"topic=="/images/delete",namespace=={NAMESPACE}"#);
        let mut subscribing = pin!(client.subscribe(SubscribeRequest {
            filters: vec![filter],
        }));
        let early = tokio::time::timeout(TAKEN, &mut subscribing).await;
        // Nobody told of what went before, and an early answer is an event.
        let taken = || {
            told.send_modify(|told| {
                told.listening = true;
                told.deletions += 1;
            });
        };
        let answer = if let Ok(answer) = early {
            answer.inspect(|_| taken())
        } else {
            taken();
            subscribing.await
        };
        let mut events = answer
            .map_err(|status| CriError::from(&status))?
            .into_inner();
        while let Ok(Some(_)) = events.message().await {
            told.send_modify(|told| told.deletions += 1);
        }
        Ok(())
    }

    /// Every name of every image.
    pub async fn names(&self) -> Result<Vec<Name>, CriError> {
        let mut client = self.images();
        let answer = within(
            DEADLINE,
            client.list(in_namespace(ListImagesRequest::default())),
        )
        .await?;
        Ok(answer.images.into_iter().map(Name::from).collect())
    }

    /// Pins or unpins one name that [`Self::names`] told.
    pub async fn pin(&self, name: &Name, pinned: bool) -> Result<(), CriError> {
        // containerd 2.4 crashes, with all of its clients, on a request without a target.
        if name.target.is_none() {
            return Ok(());
        }
        let mut client = self.images();
        // A label without a value is removed.
        let labels = [PIN, OWNER].map(|(key, value)| {
            let value = if pinned { value } else { "" };
            (key.to_owned(), value.to_owned())
        });
        let paths = [PIN, OWNER].map(|(key, _)| format!("labels.{key}"));
        let request = UpdateImageRequest {
            image: Some(Image {
                name: name.name.clone(),
                labels: HashMap::from(labels),
                target: name.target.clone(),
            }),
            update_mask: Some(FieldMask {
                paths: paths.to_vec(),
            }),
        };
        within(DEADLINE, client.update(in_namespace(request))).await?;
        Ok(())
    }

    /// Removes every pin of ours. How many names had one?
    pub async fn unpin_all(&self) -> Result<usize, CriError> {
        let names = self.names().await?;
        let changes = changes(&names, &BTreeSet::new());
        for (name, pinned) in &changes {
            self.pin(name, *pinned).await?;
        }
        Ok(changes.len())
    }

    fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }
}

/// What to pin (true) and to unpin, so that exactly `wanted` is pinned, by us or by others. Pins of others stay.
pub fn changes<'a>(names: &'a [Name], wanted: &BTreeSet<String>) -> Vec<(&'a Name, bool)> {
    names
        .iter()
        .filter_map(|name| match (name.pin, wanted.contains(&name.name)) {
            (None, true) => Some((name, true)),
            (Some(Pin::Ours), false) => Some((name, false)),
            (None | Some(Pin::Theirs), false) | (Some(_), true) => None,
        })
        .collect()
}

impl From<Image> for Name {
    fn from(image: Image) -> Self {
        let has = |(key, value): (&str, &str)| image.labels.get(key).is_some_and(|is| is == value);
        let pin = match (has(PIN), has(OWNER)) {
            (_, true) => Some(Pin::Ours),
            (true, false) => Some(Pin::Theirs),
            (false, false) => None,
        };
        Self {
            name: image.name,
            pin,
            target: image.target,
        }
    }
}

fn in_namespace<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let namespace = MetadataValue::from_static(NAMESPACE);
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str, pin: Option<Pin>) -> Name {
        Name {
            name: name.to_owned(),
            pin,
            target: None,
        }
    }

    #[test]
    fn l09_only_our_own_pins_are_removed() {
        let names = [
            name("new", None),
            name("kept", Some(Pin::Ours)),
            name("old", Some(Pin::Ours)),
            name("theirs", Some(Pin::Theirs)),
            name("theirs-and-wanted", Some(Pin::Theirs)),
            name("other", None),
        ];
        let wanted = ["new", "kept", "theirs-and-wanted", "not-there"];
        let wanted = wanted.map(str::to_owned).into();
        let changed: Vec<_> = changes(&names, &wanted)
            .into_iter()
            .map(|(name, pinned)| (name.name.as_str(), pinned))
            .collect();
        assert_eq!(changed, [("new", true), ("old", false)]);
    }

    #[rstest::rstest]
    #[case(&[PIN, OWNER], Some(Pin::Ours))]
    #[case(&[OWNER], Some(Pin::Ours))]
    #[case(&[PIN], Some(Pin::Theirs))]
    #[case(&[(PIN.0, "no"), ("other", "x")], None)]
    fn l09_a_pin_has_an_owner(#[case] labels: &[(&str, &str)], #[case] pin: Option<Pin>) {
        let labels = labels
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()));
        let image = Image {
            name: "a".to_owned(),
            labels: labels.collect(),
            target: None,
        };
        assert_eq!(Name::from(image).pin, pin);
    }
}
