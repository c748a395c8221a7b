//! Certificates of authorities that nobody knows.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::harness;

/// What a server over TLS needs, in files.
pub(crate) struct Certificates {
    /// The authority's, of which nobody knows.
    pub(crate) authority: PathBuf,
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Certificates {
    /// Of a new authority, for these hosts.
    pub(crate) fn create(folder: &Path, hosts: &[&str]) -> Self {
        let mut authority = CertificateParams::new([]).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let own = KeyPair::generate().unwrap();
        let authority = CertifiedIssuer::self_signed(authority, own).unwrap();
        let key = KeyPair::generate().unwrap();
        let hosts: Vec<_> = hosts.iter().map(|&host| host.to_owned()).collect();
        let server = CertificateParams::new(hosts).unwrap();
        let server = server.signed_by(&key, &authority).unwrap();
        Self {
            authority: harness::write(folder, "authority.pem", &authority.pem()),
            certificate: harness::write(folder, "server.pem", &server.pem()),
            key: harness::write(folder, "server.key", &key.serialize_pem()),
        }
    }
}
