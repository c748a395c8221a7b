//! The certificate of the OCI listener: read again when its files change, without touching open connections.
//!
//! Files are compared by content, since Kubernetes swaps a symlink and keeps times. A new pair that cannot be used is
//! refused, and the old one stays in force. A pair is complained about when it is found twice: the first time its files
//! may just have been read in the middle of their replacement.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use coral_schema::oci::Digest;
use coral_schema::process::serve::{Handshake, Io, Socket};
use futures::future::BoxFuture;
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// Between two looks at the files.
const CHECK_EVERY: Duration = Duration::from_secs(5);

/// PEM files of the chain, our own certificate first, and of its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The chain.
    pub certificate: PathBuf,
    /// The key.
    pub key: PathBuf,
}

/// Why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CertificatesError {
    /// The file cannot be read.
    #[error("cannot read {}: {source}", .file.display())]
    Read {
        /// Which.
        file: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{} holds no usable {expected}: {reason}", .file.display())]
    Content {
        /// Which.
        file: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What is wrong, without any of its content.
        reason: String,
    },
    /// Certificate and key do not belong together, or cannot be used for TLS.
    #[error("{} and {} cannot be used: {source}", .files.certificate.display(), .files.key.display())]
    Pair {
        /// Which.
        files: Files,
        /// Why not.
        source: rustls::Error,
    },
}

/// The certificate in force, and the way to greet clients with it.
pub struct Certificates {
    files: Files,
    current: Arc<Current>,
    /// Of the files' content when they were loaded first.
    loaded: Digest,
    acceptor: TlsAcceptor,
}

impl Certificates {
    /// Reads the files.
    pub async fn load(files: Files) -> Result<Self, CertificatesError> {
        let content = Content::read(&files).await?;
        let provider = Arc::new(aws_lc_rs::default_provider());
        let pair = content.parse(&files, &provider)?;
        let current = Arc::new(Current(ArcSwap::from_pointee(pair)));
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            files,
            current,
            loaded: content.digest(),
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    /// Looks at the files until `stopping`.
    pub async fn watch(self: Arc<Self>, stopping: CancellationToken) {
        let looking = async {
            let mut seen = Seen::new(self.loaded);
            loop {
                sleep(CHECK_EVERY).await;
                self.look(&mut seen).await;
            }
        };
        stopping.run_until_cancelled(looking).await;
    }

    async fn look(&self, seen: &mut Seen) {
        let read = Content::read(&self.files).await;
        let digest = read.as_ref().ok().map(Content::digest);
        if digest == Some(seen.in_force) {
            seen.refused = None;
            return;
        }
        let provider = self.acceptor.config().crypto_provider();
        match read.and_then(|content| content.parse(&self.files, provider)) {
            Ok(pair) => {
                self.current.0.store(Arc::new(pair));
                *seen = Seen::new(digest.unwrap_or(seen.in_force));
                tracing::info!(file = %self.files.certificate.display(), "a new certificate is in force");
            }
            Err(error) => {
                if seen.is_second_refusal(digest) {
                    tracing::warn!(%error, "a new certificate is refused, the old one stays in force");
                }
            }
        }
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Certificates")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

impl Handshake for Certificates {
    fn accept(&self, socket: Socket) -> BoxFuture<'_, io::Result<Box<dyn Io>>> {
        Box::pin(async move {
            let stream = self.acceptor.accept(socket).await?;
            Ok(Box::new(stream) as Box<dyn Io>)
        })
    }
}

/// What rustls asks at each greeting.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// What the watch has seen so far. A content that cannot be read has no digest.
struct Seen {
    in_force: Digest,
    /// The last refused content, and how often it was found.
    refused: Option<(Option<Digest>, u32)>,
}

impl Seen {
    fn new(in_force: Digest) -> Self {
        Self {
            in_force,
            refused: None,
        }
    }

    fn is_second_refusal(&mut self, digest: Option<Digest>) -> bool {
        let times = match self.refused {
            Some((refused, times)) if refused == digest => times.saturating_add(1),
            _ => 1,
        };
        self.refused = Some((digest, times));
        times == 2
    }
}

/// The bytes of both files.
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Content {
    async fn read(files: &Files) -> Result<Self, CertificatesError> {
        Ok(Self {
            certificate: read(&files.certificate).await?,
            key: read(&files.key).await?,
        })
    }

    fn digest(&self) -> Digest {
        let both = [&self.certificate, &self.key].map(|file| Digest::sha256(file).to_string());
        Digest::sha256(both.concat().as_bytes())
    }

    fn parse(
        &self,
        files: &Files,
        provider: &CryptoProvider,
    ) -> Result<CertifiedKey, CertificatesError> {
        let wrong = |file: &Path, expected, reason: String| CertificatesError::Content {
            file: file.to_owned(),
            expected,
            reason,
        };
        let chain: Vec<_> = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(&files.certificate, "certificate", error.to_string()))?;
        if chain.is_empty() {
            let reason = "there is no CERTIFICATE section".to_owned();
            return Err(wrong(&files.certificate, "certificate", reason));
        }
        let key = PrivateKeyDer::from_pem_slice(&self.key)
            .map_err(|error| wrong(&files.key, "private key", error.to_string()))?;
        CertifiedKey::from_der(chain, key, provider).map_err(|source| CertificatesError::Pair {
            files: files.clone(),
            source,
        })
    }
}

async fn read(file: &Path) -> Result<Vec<u8>, CertificatesError> {
    tokio::fs::read(file)
        .await
        .map_err(|source| CertificatesError::Read {
            file: file.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests;
