//! Certificates from their files, and HTTP clients with them.

use std::path::{Path, PathBuf};

use reqwest::{Certificate, Client, ClientBuilder, Identity};

use super::UpstreamConfig;

/// A setting, and what is wrong with it.
pub(super) type Mistake = (&'static str, String);

/// Certificates as read from their files.
pub(super) struct Tls {
    authorities: Vec<Certificate>,
    pub(super) identity: Option<Identity>,
    insecure: bool,
}

impl Tls {
    pub(super) fn read(config: &UpstreamConfig) -> Result<Self, Mistake> {
        let authorities = match &config.tls.ca {
            None => Vec::new(),
            Some(path) => authorities(path).map_err(|problem| ("tls.ca", problem))?,
        };
        let identity = match &config.tls.client {
            None => None,
            Some(paths) => Some(identity(paths)?),
        };
        Ok(Self {
            authorities,
            identity,
            insecure: config.tls.insecure_skip_verify,
        })
    }
}

fn authorities(path: &Path) -> Result<Vec<Certificate>, String> {
    let pem = read(path)?;
    let unusable = || {
        format!(
            "{} holds no certificate in PEM form (BEGIN CERTIFICATE)",
            path.display()
        )
    };
    certificates(&pem).ok_or_else(unusable)
}

/// The certificates of a file in PEM form; `None` when there is none, or one that cannot be read.
pub fn certificates(pem: &[u8]) -> Option<Vec<Certificate>> {
    let certificates = Certificate::from_pem_bundle(pem).ok()?;
    (!certificates.is_empty()).then_some(certificates)
}

/// The public authorities that come with us: a scratch image has no files of them.
pub fn public_authorities() -> impl Iterator<Item = Certificate> {
    let all = webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter();
    all.filter_map(|der| Certificate::from_der(der).ok())
}

fn identity((certificate, key): &(PathBuf, PathBuf)) -> Result<Identity, Mistake> {
    let mut pem = read(certificate).map_err(|problem| ("tls.clientCertificate", problem))?;
    pem.push(b'\n');
    pem.extend(read(key).map_err(|problem| ("tls.clientKey", problem))?);
    Identity::from_pem(&pem).map_err(|_| {
        let (certificate, key) = (certificate.display(), key.display());
        (
            "tls.clientCertificate",
            format!(
                "{certificate} and {key} are no certificate and its key, unencrypted, in PEM form"
            ),
        )
    })
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    std::fs::read(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))
}

/// Finishes a client. A machine without certificate authorities (a scratch image) makes even plain HTTP fail to
/// build: then those that come with us are used.
pub(super) fn client(
    base: &dyn Fn() -> Result<ClientBuilder, Mistake>,
    tls: &Tls,
    identity: Option<&Identity>,
) -> Result<Client, Mistake> {
    let configured = || -> Result<ClientBuilder, Mistake> {
        let builder = base()?.tls_danger_accept_invalid_certs(tls.insecure);
        Ok(match identity {
            Some(identity) => builder.identity(identity.clone()),
            None => builder,
        })
    };
    if let Ok(client) = configured()?
        .tls_certs_merge(tls.authorities.iter().cloned())
        .build()
    {
        return Ok(client);
    }
    configured()?
        .tls_certs_only(public_authorities().chain(tls.authorities.iter().cloned()))
        .build()
        .map_err(|error| {
            let cause = std::error::Error::source(&error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            (
                "tls",
                format!("no TLS client can be made of these certificates{cause}"),
            )
        })
}
