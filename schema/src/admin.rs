//! JSON bodies of the registry's admin API (`/api/v1/…`), in camel case: the command line and the operator speak it, too.
//!
//! Lengths are bytes, rates are bytes per second, times are RFC 3339 text. Readers ignore fields that they do not know,
//! so a field may be added at any time; a request with an unknown field is refused, since it would not do what was meant.

use serde::{Deserialize, Serialize};

use crate::oci::{Digest, Platform, Tag};

mod credentials;
mod gc;

pub use self::credentials::{CredentialRequest, LentLogin};
pub use self::gc::{GcItem, GcKind, GcReport, GcState};

/// `GET /api/v1/status`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Version of the program.
    pub version: String,
    /// When the process started.
    pub started: String,
    /// What `/readyz` says.
    pub ready: bool,
    /// The store's space.
    pub disk: DiskStatus,
    /// The configuration file.
    pub config: ConfigStatus,
    /// In the order of their names.
    pub upstreams: Vec<UpstreamStatus>,
    /// Downloads that run now.
    pub transfers: Vec<TransferStatus>,
    /// The index.
    pub index: IndexStatus,
}

/// Space of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DiskStatus {
    /// Stored content.
    pub used: u64,
    /// What `used` may reach (`store.maxBytes`).
    pub limit: u64,
    /// Free on the volume.
    pub free: u64,
    /// Writing failed lately; answers are passed through without storing.
    pub degraded: bool,
}

/// The configuration that is in force, and why a newer file is not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConfigStatus {
    /// What is in force.
    pub state: ConfigState,
    /// The mistakes of the file that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// See [`ConfigStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ConfigState {
    /// There is no file.
    Defaults,
    /// The file as it stands now.
    Current,
    /// An earlier version: the file as it stands now is refused.
    Refused,
}

/// One configured upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamStatus {
    /// Its canonical name.
    pub name: String,
    /// In order of preference.
    pub endpoints: Vec<EndpointStatus>,
}

/// One endpoint of an upstream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EndpointStatus {
    /// Scheme, host and port.
    pub url: String,
    /// It failed too often and is left alone for a while.
    pub breaker_open: bool,
    /// Requests that hold a place now.
    pub in_flight: u64,
    /// What it said remains of our budget.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratelimit_remaining: Option<u64>,
    /// Why the last failed request failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
}

/// One running download.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TransferStatus {
    /// The blob.
    pub digest: Digest,
    /// Where it was first asked for, like `docker.io/library/nginx`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// Its length, once the upstream said it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes on disk.
    pub watermark: u64,
    /// Bytes per second, lately.
    pub rate: u64,
    /// At this rate; unknown without size or progress.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// Clients that read it while it arrives.
    pub readers: u64,
    /// Where it stands.
    pub state: TransferState,
}

/// Where a download stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum TransferState {
    /// Waits for its turn.
    Queued,
    /// Waits for the upstream's answer.
    Connecting,
    /// Bytes arrive.
    Running,
    /// All bytes are there: the digest is checked, and the blob put into the store.
    Verifying,
    /// Stored; also what was stored before anybody asked.
    Published,
    /// Given up.
    Failed,
}

/// The index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct IndexStatus {
    /// Its state.
    pub state: IndexState,
}

/// See [`IndexStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum IndexState {
    /// In use.
    Open,
    /// In use, while it is completed from the store.
    Rebuilding,
    /// Out of use; answers come from the store and the upstreams.
    Failed,
}

/// `GET /api/v1/images?repo=&q=`: `repo` names one repository exactly, `q` is a part of `repository:tag`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Images {
    /// By repository, tag and digest.
    pub images: Vec<ImageEntry>,
    /// There are more than these.
    pub truncated: bool,
}

/// A tag that the cache knows, or a manifest that no tag and no index leads to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageEntry {
    /// Canonical name, like `docker.io/library/nginx`.
    pub repository: String,
    /// Its tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<Tag>,
    /// Its manifest or index.
    pub digest: Digest,
    /// Bytes held of it, shared ones included.
    pub held: u64,
    /// When something of it was last served; absent when nothing is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_use: Option<String>,
}

/// Body of `POST /api/v1/prefetch`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PrefetchRequest {
    /// References as people write them: `nginx`, `ghcr.io/org/app:v1`, `quay.io/x/y@sha256:…`.
    pub images: Vec<String>,
    /// Which children of an index, like `linux/arm64`; without any: `linux` on this machine's architecture.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "platforms")]
    pub platforms: Vec<Platform>,
    /// Among waiting jobs the highest starts first. Every job stands behind what clients wait for.
    #[serde(default)]
    pub priority: i32,
    /// Asks the upstream what each tag means now, however fresh it is here.
    #[serde(default)]
    pub refresh: bool,
}

/// Body of `PUT /api/v1/pins/<source>`: takes the place of what the source pinned before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct PinRequest {
    /// References as in [`PrefetchRequest`]. A tag pins what it means at each moment. What is not held yet is pinned from
    /// its arrival.
    pub images: Vec<String>,
    /// Tags that go on meaning one digest for everybody who asks this cache, whatever they mean upstream. Of several
    /// sources that freeze one tag the first by name decides.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub frozen: Vec<FrozenTag>,
    /// Which children of an index; without any: all that are held.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "platforms")]
    pub platforms: Vec<Platform>,
    /// Until when; a source that still wants them says so again before. Pins survive a restart, but not the loss of the
    /// index.
    pub expires: String,
}

/// A tag that goes on meaning one digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct FrozenTag {
    /// One of the pinned images, by tag.
    #[serde(rename = "ref")]
    pub reference: String,
    /// What it means.
    pub digest: Digest,
}

/// One of `GET /api/v1/pins`: who pins something now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinSource {
    /// Its name, as in the path.
    pub source: String,
    /// How many images it pins.
    pub images: u64,
    /// Until when.
    pub expires: String,
}

/// One of `GET /api/v1/registries`: an upstream that this cache stands in front of, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryEntry {
    /// Its canonical name.
    pub name: String,
    /// Other names that mean it.
    pub aliases: Vec<String>,
    /// Patterns of repositories that may be asked for; none means all.
    pub allow: Vec<String>,
    /// Patterns of repositories that may not; they win.
    pub deny: Vec<String>,
}

/// Answer to `POST /api/v1/prefetch` (202)
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchAccepted {
    /// For `GET /api/v1/prefetch/<id>`.
    pub id: String,
}

/// `GET /api/v1/prefetch/<id>`, and the data of each of its server-sent events
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchStatus {
    /// The job.
    pub id: String,
    /// The whole of it: failed when it is over and any image failed.
    pub state: PrefetchState,
    /// In the order of the request.
    pub images: Vec<PrefetchImage>,
}

/// Where a job, or one of its images, stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PrefetchState {
    /// Waits for its turn.
    Queued,
    /// At work.
    Running,
    /// Everything asked for is held.
    Done,
    /// Over, and something is not held.
    Failed,
}

impl PrefetchState {
    /// Will it change no more?
    pub fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed)
    }
}

/// One image of a job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchImage {
    /// As in the request.
    #[serde(rename = "ref")]
    pub reference: String,
    /// Where it stands.
    pub state: PrefetchState,
    /// What the reference means, once it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// What the tag means upstream, where that is known to be something else: the tag has moved, and what it means now
    /// could not be fetched, or the tag is frozen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_digest: Option<Digest>,
    /// Compressed length of what one node pulls: of the largest platform's image, where several are wanted.
    pub size_bytes: u64,
    /// Bytes of configs and layers that are held, of all wanted platforms.
    pub bytes_done: u64,
    /// Bytes of configs and layers in all, as far as its manifests are known.
    pub bytes_total: u64,
    /// Wanted platforms that the upstream has no image for, while it has one for others: these are fetched, and it ends
    /// done.
    #[serde(default, skip_serializing_if = "Vec::is_empty", with = "platforms")]
    pub missing_platforms: Vec<Platform>,
    /// Why it failed, or what is not as it should be, in one word for programs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<PrefetchReason>,
    /// The same in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Configs and layers, as its manifests become known.
    pub layers: Vec<PrefetchLayer>,
}

impl PrefetchImage {
    /// One that waits for its turn: nothing is known of it.
    pub fn queued(reference: impl Into<String>) -> Self {
        Self {
            reference: reference.into(),
            state: PrefetchState::Queued,
            digest: None,
            upstream_digest: None,
            size_bytes: 0,
            bytes_done: 0,
            bytes_total: 0,
            missing_platforms: Vec::new(),
            reason: None,
            message: None,
            layers: Vec::new(),
        }
    }
}

/// See [`PrefetchImage::reason`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PrefetchReason {
    /// The upstream does not have it.
    NotFound,
    /// The upstream has it for none of the wanted platforms; when it is done, for some of them only.
    PlatformMissing,
    /// The cache does not serve this registry, or may not read the repository there.
    Unauthorized,
    /// The cache's configuration does not allow this repository (`allow`, `deny`).
    Forbidden,
    /// The upstream limits requests.
    RateLimited,
    /// The upstream failed or was silent, or the cache may not ask it now.
    UpstreamUnavailable,
    /// Its manifests cannot be used.
    InvalidImage,
    /// The cache has no room for it.
    StorageFull,
    /// The cache was stopped, or the job broke.
    Interrupted,
    /// It is held, but the upstream could not be asked whether its tag means something else by now.
    Stale,
    /// One that a newer registry knows; the message says what it is.
    #[serde(other)]
    Unknown,
}

/// One blob of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PrefetchLayer {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// Bytes that are held.
    pub done: u64,
    /// Bytes per second, lately.
    pub rate: u64,
    /// At this rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
    /// Where it stands.
    pub state: TransferState,
}

/// An error of the admin API: any status from 400 on
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AdminError {
    /// A sentence that says what to do.
    pub error: String,
}

/// Platforms as people write them.
mod platforms {
    use serde::{Deserialize as _, Deserializer, Serializer};

    use crate::oci::Platform;

    pub(super) fn serialize<S: Serializer>(
        platforms: &[Platform],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(platforms.iter().map(ToString::to_string))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Platform>, D::Error> {
        Vec::<String>::deserialize(deserializer)?
            .iter()
            .map(|text| text.parse().map_err(serde::de::Error::custom))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What other programs, and people with curl, rely on.
    #[test]
    fn prefetch_on_the_wire() {
        let short: PrefetchRequest = serde_json::from_str(r#"{"images":["nginx"]}"#).unwrap();
        assert_eq!(short.priority, 0);
        assert!(short.platforms.is_empty());

        assert!(!short.refresh);

        let long =
            r#"{"images":["a.b/c:d"],"platforms":["linux/arm/v7"],"priority":5,"refresh":true}"#;
        let parsed: PrefetchRequest = serde_json::from_str(long).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), long);

        for refused in [
            r#"{"images":["a"],"platform":"linux/amd64"}"#,
            r#"{"images":["a"],"platforms":["amd64"]}"#,
            r#"{"platforms":[]}"#,
        ] {
            assert!(serde_json::from_str::<PrefetchRequest>(refused).is_err());
        }
    }

    #[test]
    fn pins_on_the_wire() {
        let text = r#"{"images":["a.b/c:d"],"platforms":["linux/arm64"],"expires":"2026-01-31T12:00:00Z"}"#;
        let parsed: PinRequest = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&parsed).unwrap(), text);
        for refused in [
            r#"{"images":["a"]}"#,
            r#"{"images":["a"],"expires":"2026-01-31T12:00:00Z","until":""}"#,
        ] {
            assert!(serde_json::from_str::<PinRequest>(refused).is_err());
        }
    }

    /// The operator reads exactly these names.
    #[test]
    fn a_prefetched_image_on_the_wire() {
        let image = PrefetchImage {
            state: PrefetchState::Failed,
            digest: Some(Digest::sha256(b"")),
            size_bytes: 1,
            bytes_done: 2,
            bytes_total: 3,
            reason: Some(PrefetchReason::UpstreamUnavailable),
            message: Some("no answer".to_owned()),
            ..PrefetchImage::queued("a.b/c:d")
        };
        let text = serde_json::to_string(&image).unwrap();
        let expected = format!(
            r#"{{"ref":"a.b/c:d","state":"failed","digest":"{}","sizeBytes":1,"bytesDone":2,"bytesTotal":3,"#,
            Digest::sha256(b"")
        );
        let rest = r#""reason":"UpstreamUnavailable","message":"no answer","layers":[]}"#;
        assert_eq!(text, expected + rest);
        // A registry of the last version says neither.
        assert_eq!(serde_json::from_str::<PrefetchImage>(&text).unwrap(), image);

        let partial = PrefetchImage {
            upstream_digest: image.digest,
            missing_platforms: vec!["linux/arm/v7".parse().unwrap()],
            ..image
        };
        let text = serde_json::to_string(&partial).unwrap();
        let moved = format!(r#""upstreamDigest":"{}""#, Digest::sha256(b""));
        assert!(text.contains(&moved), "{text}");
        assert!(
            text.contains(r#""missingPlatforms":["linux/arm/v7"]"#),
            "{text}"
        );
        let read = serde_json::from_str::<PrefetchImage>(&text).unwrap();
        assert_eq!(read, partial);
    }

    /// An operator works with a registry of the next version.
    #[test]
    fn a_reason_of_a_newer_registry_is_read() {
        let read = |text: &str| serde_json::from_str::<PrefetchReason>(text).unwrap();
        assert_eq!(read("\"PlatformMissing\""), PrefetchReason::PlatformMissing);
        assert_eq!(read("\"OutOfPaper\""), PrefetchReason::Unknown);
    }

    #[test]
    fn absent_facts_are_left_out() {
        let transfer = TransferStatus {
            digest: Digest::sha256(b""),
            repository: None,
            size: None,
            watermark: 1,
            rate: 2,
            seconds_left: None,
            readers: 3,
            state: TransferState::Connecting,
        };
        let text = serde_json::to_string(&transfer).unwrap();
        assert_eq!(
            text,
            format!(
                r#"{{"digest":"{}","watermark":1,"rate":2,"readers":3,"state":"connecting"}}"#,
                transfer.digest
            )
        );
        assert_eq!(
            serde_json::from_str::<TransferStatus>(&text).unwrap(),
            transfer
        );
    }
}
