//! What the configuration says of an upstream, validated.

use std::path::PathBuf;
use std::time::Duration;

use coral_schema::redacted::RedactedUrl;
use globset::GlobMatcher;
use url::Url;

use crate::name::UpstreamName;

/// Everything that the configuration says of one upstream, validated. Equal values mean that nothing changed.
#[derive(Debug, Clone, PartialEq)]
pub struct UpstreamConfig {
    /// Its canonical name.
    pub name: UpstreamName,
    /// Other names that mean it.
    pub aliases: Vec<UpstreamName>,
    /// Base URLs in order of preference, `http` only if `plain_http`; at least one.
    pub endpoints: Vec<Url>,
    /// Hosts besides the endpoint's own that may receive credentials.
    pub token_realms: Vec<String>,
    /// Credentials; the longest prefix of whole components wins.
    pub credentials: Vec<CredentialRule>,
    /// How its content is treated.
    pub policy: Policy,
    /// Bounds on what is asked of it.
    pub limits: Limits,
    /// Time limits.
    pub timeouts: Timeouts,
    /// Its certificates.
    pub tls: TlsConfig,
    /// A proxy for all its requests; may hold a password, so it prints redacted.
    pub proxy: Option<RedactedUrl>,
    /// Blobs over HTTP/2, too.
    pub http2: bool,
    /// Plain HTTP is allowed.
    pub plain_http: bool,
}

/// A credential for the repositories under a prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialRule {
    /// Whole components; empty for all.
    pub prefix: String,
    /// Where it comes from.
    pub source: CredentialSource,
}

/// Where a credential is read from; files are read again when they change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialSource {
    /// A user name, and a file with the password.
    Password {
        /// The user.
        username: String,
        /// Its password, a trailing newline is dropped.
        password_file: PathBuf,
    },
    /// A file in Docker's `config.json` form.
    DockerConfig(PathBuf),
    /// A file with a bearer token that is sent as it is.
    TokenFile(PathBuf),
}

/// Certificates for an upstream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TlsConfig {
    /// PEM file with authorities that are trusted besides the system's.
    pub ca: Option<PathBuf>,
    /// PEM files of our own certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Accept any certificate.
    pub insecure_skip_verify: bool,
}

/// Bounds on what is asked of an upstream (configuration `limits`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Blob downloads at once.
    pub concurrent_transfers: usize,
    /// Requests per minute, all kinds.
    pub requests_per_minute: Option<u32>,
    /// Blob bytes per second.
    pub bandwidth: Option<u64>,
    /// Percent of the upstream's own budget that background work leaves alone.
    pub reserve: u8,
}

/// How the content of an upstream is treated.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Repositories that may be asked for; none means all.
    pub allow: Vec<RepositoryPattern>,
    /// Repositories that may not; wins.
    pub deny: Vec<RepositoryPattern>,
    /// Freshness of tags; the first match decides, the last matches all.
    pub tags: Vec<TagRule>,
    /// How long a tag that cannot be checked is still served.
    pub stale_if_error: Duration,
    /// What to do when the upstream says 404 for what we hold.
    pub on_missing: OnMissing,
    /// How long content is served after it was made private.
    pub revoke_grace: Duration,
    /// Who may read.
    pub visibility: VisibilityMode,
}

/// A compiled glob that compares by its text.
#[derive(Debug, Clone)]
pub struct Glob(GlobMatcher);

impl Glob {
    /// Compiles `text`; `literal_separator` keeps `*` within a component.
    pub fn new(text: &str, literal_separator: bool) -> Result<Self, globset::Error> {
        let glob = globset::GlobBuilder::new(text)
            .literal_separator(literal_separator)
            .build()?;
        Ok(Self(glob.compile_matcher()))
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        self.0.glob().glob()
    }

    /// Does it match?
    pub fn matches(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl PartialEq for Glob {
    fn eq(&self, other: &Self) -> bool {
        self.0.glob() == other.0.glob()
    }
}

/// A pattern over repository names: `*` stays within a component, `**` only as the last one.
#[derive(Debug, Clone, PartialEq)]
pub struct RepositoryPattern(pub Glob);

/// Freshness of the tags that match `repository:tag`; here `*` crosses `/`.
#[derive(Debug, Clone, PartialEq)]
pub struct TagRule {
    /// Which.
    pub pattern: Glob,
    /// How long a tag is answered without asking.
    pub freshness: Duration,
}

/// See [`Policy::on_missing`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnMissing {
    /// Go on serving.
    Serve,
    /// Answer 404.
    Refuse,
}

/// See [`Policy::visibility`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VisibilityMode {
    /// What the anonymous public may read upstream.
    Auto,
    /// Everybody reads everything; only right for upstreams without private content.
    Public,
    /// Everybody who may use this cache reads everything.
    Shared,
}

/// Time limits of one upstream (configuration `timeouts`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP and TLS.
    pub connect: Duration,
    /// Response headers of a blob.
    pub headers: Duration,
    /// A tag's check when something stale is held, and each step of a manifest when not.
    pub tag_check: Duration,
    /// How long a transfer may stay under `min_rate`.
    pub stall: Duration,
    /// Lowest acceptable rate of a transfer, bytes per second.
    pub min_rate: u64,
}
