//! The certificates, keys and kubeconfigs of one cluster, made anew for each.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_RSA_SHA256, RsaKeySize,
};
use serde_json::json;

use crate::harness;

/// One authority that everything in the cluster trusts, upstream registries included.
pub(crate) struct Pki {
    authority: CertifiedIssuer<'static, KeyPair>,
    folder: PathBuf,
}

/// Who a certificate is for: user and group, as the API server reads them.
#[derive(Clone, Copy)]
pub(crate) struct Subject<'a> {
    pub(crate) user: &'a str,
    pub(crate) group: &'a str,
}

impl Pki {
    /// Makes the authority and the key that signs service-account tokens. The latter is RSA, as in most clusters: who
    /// checks such tokens must know RS256.
    pub(crate) fn create(folder: &Path) -> Self {
        std::fs::create_dir(folder).unwrap();
        let mut authority = named(&[], "tests", "");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        harness::write(folder, "ca.pem", &authority.pem());
        harness::write(folder, "ca.key", &authority.key().serialize_pem());
        let tokens = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
        harness::write(folder, "tokens.key", &tokens.serialize_pem());
        harness::write(folder, "tokens.pub", &tokens.public_key_pem());
        Self {
            authority,
            folder: folder.to_owned(),
        }
    }

    /// A file of this folder: `ca.pem`, `ca.key`, `tokens.key`, `tokens.pub`, and what was issued.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A certificate and its key, good for servers and clients, as files `<name>.pem` and `<name>.key`.
    pub(crate) fn issue(
        &self,
        name: &str,
        subject: Subject<'_>,
        hosts: &[&str],
    ) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let certificate = named(hosts, subject.user, subject.group)
            .signed_by(&key, &self.authority)
            .unwrap();
        (
            harness::write(&self.folder, &format!("{name}.pem"), &certificate.pem()),
            harness::write(&self.folder, &format!("{name}.key"), &key.serialize_pem()),
        )
    }

    /// A kubeconfig for this subject that needs no other file.
    pub(crate) fn kubeconfig(&self, name: &str, subject: Subject<'_>, server: &str) -> PathBuf {
        let (certificate, key) = self.issue(name, subject, &[]);
        let encoded = |path: &Path| BASE64_STANDARD.encode(std::fs::read(path).unwrap());
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "tests",
            "clusters": [{ "name": "tests", "cluster": {
                "server": server, "certificate-authority-data": encoded(&self.file("ca.pem")),
            } }],
            "users": [{ "name": "tests", "user": {
                "client-certificate-data": encoded(&certificate), "client-key-data": encoded(&key),
            } }],
            "contexts": [{ "name": "tests", "context": { "cluster": "tests", "user": "tests" } }],
        });
        harness::write(
            &self.folder,
            &format!("{name}.kubeconfig"),
            &config.to_string(),
        )
    }
}

fn named(hosts: &[&str], user: &str, group: &str) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut parameters = CertificateParams::new(hosts).unwrap();
    parameters.distinguished_name = DistinguishedName::new();
    parameters.distinguished_name.push(DnType::CommonName, user);
    if !group.is_empty() {
        parameters
            .distinguished_name
            .push(DnType::OrganizationName, group);
    }
    parameters.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyEncipherment,
    ];
    parameters.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    parameters
}
