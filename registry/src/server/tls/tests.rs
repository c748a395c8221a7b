use tempfile::TempDir;

use super::*;

fn pair() -> (String, String) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    (made.cert.pem(), made.signing_key.serialize_pem())
}

struct Folder {
    folder: TempDir,
    files: Files,
}

impl Folder {
    fn new((certificate, key): &(String, String)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let files = Files {
            certificate: folder.path().join("tls.crt"),
            key: folder.path().join("tls.key"),
        };
        let this = Self { folder, files };
        this.write(certificate, key);
        this
    }

    fn write(&self, certificate: &str, key: &str) {
        std::fs::write(&self.files.certificate, certificate).unwrap();
        std::fs::write(&self.files.key, key).unwrap();
    }
}

fn in_force(certificates: &Certificates) -> CertificateDer<'static> {
    certificates.current.0.load().cert[0].clone()
}

fn first(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_new_pair_is_taken_and_a_bad_one_is_not() {
    let (old, new) = (pair(), pair());
    let folder = Folder::new(&old);
    let certificates = Certificates::load(folder.files.clone()).await.unwrap();
    let mut seen = Seen::new(certificates.loaded);

    folder.write(&new.0, &old.1);
    certificates.look(&mut seen).await;
    certificates.look(&mut seen).await;
    assert_eq!(in_force(&certificates), first(&old.0));

    folder.write(&new.0, &new.1);
    certificates.look(&mut seen).await;
    assert_eq!(in_force(&certificates), first(&new.0));

    std::fs::remove_file(&folder.files.key).unwrap();
    certificates.look(&mut seen).await;
    assert_eq!(in_force(&certificates), first(&new.0));
    drop(folder.folder);
}

#[test]
fn a_bad_pair_is_complained_about_once() {
    let (one, two) = (Digest::sha256(b"1"), Digest::sha256(b"2"));
    let mut seen = Seen::new(Digest::sha256(b"0"));
    let looks = [Some(one), Some(one), Some(one), None, Some(two), Some(two)];
    let complaints = looks.map(|digest| seen.is_second_refusal(digest));
    assert_eq!(complaints, [false, true, false, false, false, true]);
}

#[tokio::test]
async fn errors_name_the_file() {
    let made = pair();
    let folder = Folder::new(&made);
    for (certificate, key, culprit) in [
        ("", &made.1[..], "tls.crt"),
        (&made.0, "not a key", "tls.key"),
        (&made.0, &pair().1, "tls.key"),
    ] {
        folder.write(certificate, key);
        let error = Certificates::load(folder.files.clone()).await.unwrap_err();
        assert!(error.to_string().contains(culprit), "{error}");
    }
    std::fs::remove_file(&folder.files.certificate).unwrap();
    let error = Certificates::load(folder.files.clone()).await.unwrap_err();
    assert!(error.to_string().contains("tls.crt"), "{error}");
}
