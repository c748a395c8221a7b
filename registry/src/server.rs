//! The listeners: OCI for clients, with TLS if configured, and admin for probes, metrics and administrators.
//!
//! Both are bound before anything is served, so that a port in use is an error of the start. When the process stops,
//! the OCI listener drains first; the admin listener answers probes until that is over.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use coral_schema::process::serve::{self, Drain, Handshake, Limits, Router};
use coral_schema::process::tasks::Tasks;
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use self::tls::{Certificates, CertificatesError};

pub mod tls;

/// A predecessor that was just killed may hold the port for this long.
const BIND_PATIENCE: Duration = Duration::from_secs(5);
/// Whoever sends clients here may do so for this long after the stop signal (Kubernetes' endpoints lag).
const LINGER: Duration = Duration::from_secs(5);
/// Connections to the admin listener at once: probes, scrapes and a few people.
const ADMIN_CONNECTIONS: usize = 256;
/// How long answers of the admin listener may take once the OCI listener has drained.
const ADMIN_GRACE: Duration = Duration::from_secs(1);

/// Where to listen, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The OCI listener; port 0 takes any free one.
    pub listen: SocketAddr,
    /// The admin listener; port 0 takes any free one.
    pub admin_listen: SocketAddr,
    /// HTTPS on the OCI listener.
    pub tls: Option<tls::Files>,
    /// HTTPS on the admin listener.
    pub admin_tls: Option<tls::Files>,
    /// Clients' connections at once.
    pub connections: usize,
    /// How long after the stop signal running responses are cut.
    pub shutdown_grace: Duration,
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another program listens there.
    #[error(
        "{address} is in use by another program; stop that program, or choose another address with {flag}"
    )]
    InUse {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// What changes it.
        flag: &'static str,
    },
    /// The system does not let us listen there.
    #[error("cannot listen on {address}, which {flag} changes: {source}")]
    Io {
        /// Where we wanted to listen.
        address: SocketAddr,
        /// What changes it.
        flag: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
}

/// Bound listeners that do not serve yet.
#[derive(Debug)]
pub struct Server {
    oci: TcpListener,
    admin: TcpListener,
    addresses: Addresses,
    certificates: Option<Arc<Certificates>>,
    admin_certificates: Option<Arc<Certificates>>,
    connections: usize,
    shutdown_grace: Duration,
}

/// Where the listeners are bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// The OCI listener.
    pub oci: SocketAddr,
    /// The admin listener.
    pub admin: SocketAddr,
}

impl Server {
    /// Binds both listeners and reads the certificate.
    pub async fn bind(config: &Config) -> Result<Self, BindError> {
        let certificates = load(config.tls.as_ref()).await?;
        let admin_certificates = load(config.admin_tls.as_ref()).await?;
        let (oci, oci_address) = bind(config.listen, "--listen").await?;
        let (admin, admin_address) = bind(config.admin_listen, "--admin-listen").await?;
        Ok(Self {
            oci,
            admin,
            addresses: Addresses {
                oci: oci_address,
                admin: admin_address,
            },
            certificates,
            admin_certificates,
            connections: config.connections,
            shutdown_grace: config.shutdown_grace,
        })
    }

    /// Where it is bound.
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    /// Is the OCI listener's scheme `https`?
    pub fn is_tls(&self) -> bool {
        self.certificates.is_some()
    }

    /// Serves until `stop`, then drains. Did all responses of the OCI listener end by themselves?
    pub async fn serve(
        self,
        oci: Router,
        admin: Router,
        tasks: &Tasks,
        stop: CancellationToken,
    ) -> bool {
        for certificates in self.certificates.iter().chain(&self.admin_certificates) {
            let watch = Arc::clone(certificates).watch(tasks.stopping());
            tasks.spawn("certificates", watch);
        }
        let oci = serve::Server {
            listener: self.oci,
            router: oci,
            handshake: handshake(self.certificates),
            limits: Limits {
                connections: self.connections,
                ..Limits::default()
            },
            drain: Drain {
                linger: LINGER.min(self.shutdown_grace),
                grace: self.shutdown_grace,
            },
        };
        let admin = serve::Server {
            listener: self.admin,
            router: admin,
            handshake: handshake(self.admin_certificates),
            limits: Limits {
                connections: ADMIN_CONNECTIONS,
                ..Limits::default()
            },
            drain: Drain {
                linger: Duration::ZERO,
                grace: ADMIN_GRACE,
            },
        };
        let drained = CancellationToken::new();
        let clients = async {
            let _last = drained.clone().drop_guard();
            oci.run(tasks, stop).await
        };
        let (finished, _) = tokio::join!(clients, admin.run(tasks, drained.clone()));
        finished
    }
}

async fn load(files: Option<&tls::Files>) -> Result<Option<Arc<Certificates>>, BindError> {
    Ok(match files {
        Some(files) => Some(Arc::new(Certificates::load(files.clone()).await?)),
        None => None,
    })
}

fn handshake(certificates: Option<Arc<Certificates>>) -> Option<Arc<dyn Handshake>> {
    certificates.map(|certificates| certificates as Arc<dyn Handshake>)
}

async fn bind(
    address: SocketAddr,
    flag: &'static str,
) -> Result<(TcpListener, SocketAddr), BindError> {
    const RETRY: Duration = Duration::from_millis(100);
    let error = |source| BindError::Io {
        address,
        flag,
        source,
    };
    let deadline = Instant::now() + BIND_PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                let bound = listener.local_addr().map_err(error)?;
                return Ok((listener, bound));
            }
            Err(refused) if refused.kind() != io::ErrorKind::AddrInUse => {
                return Err(error(refused));
            }
            Err(_) if Instant::now() >= deadline => {
                return Err(BindError::InUse { address, flag });
            }
            Err(_) => sleep(RETRY).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> Config {
        Config {
            listen: "127.0.0.1:0".parse().unwrap(),
            admin_listen: "127.0.0.1:0".parse().unwrap(),
            tls: None,
            admin_tls: None,
            connections: 16,
            shutdown_grace: Duration::from_hours(1),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_in_use_is_an_error_that_names_it_and_the_remedy() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config {
            admin_listen: holder.local_addr().unwrap(),
            ..config()
        };
        let error = Server::bind(&config).await.unwrap_err().to_string();
        assert!(error.contains(&config.admin_listen.to_string()), "{error}");
        assert!(error.contains("--admin-listen"), "{error}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_port_that_is_freed_in_time_is_taken() {
        let holder = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = Config {
            listen: holder.local_addr().unwrap(),
            ..config()
        };
        let freed = async {
            sleep(BIND_PATIENCE / 2).await;
            drop(holder);
        };
        let (bound, ()) = tokio::join!(Server::bind(&config), freed);
        assert_eq!(bound.unwrap().addresses().oci, config.listen);
    }
}
