//! Which certificate a client gets, and what stays in use while files change badly or well.

use std::fs;
use std::path::Path;

use super::*;
use crate::client::ClientTrust;
use crate::dev::{Ca, Issued};
use crate::testing::{handshake, leaf, publish, until};

const ECDSA: &[SignatureScheme] = &[SignatureScheme::ECDSA_NISTP256_SHA256];

fn shown(identity: &ServerIdentity, name: Option<&str>) -> Vec<u8> {
    leaf(&identity.choose(name, ECDSA).unwrap().cert)
}

fn store(root: &Path, name: &str, issued: &Issued) -> CertFiles {
    let directory = root.join(name);
    fs::create_dir_all(&directory).unwrap();
    issued.write(&directory).unwrap()
}

#[test]
fn a_name_gets_its_own_certificate_before_a_wildcard_before_the_default() {
    let ca = Ca::new();
    let root = tempfile::tempdir().unwrap();
    let pairs = vec![
        store(root.path(), "default", &ca.issue(&["kas.example"])),
        store(root.path(), "wildcard", &ca.issue(&["*.apps.example"])),
        store(root.path(), "exact", &ca.issue(&["one.apps.example"])),
    ];
    let identity = ServerIdentity::load(pairs).unwrap();
    let by_index: Vec<_> =
        identity.slots.iter().map(|slot| leaf(&slot.current.load().certified.cert)).collect();
    for (name, wanted) in [
        (None, 0),
        (Some("kas.example"), 0),
        (Some("KAS.example"), 0),
        (Some("elsewhere.example"), 0),
        (Some("two.apps.example"), 1),
        (Some("deep.two.apps.example"), 0),
        (Some("apps.example"), 0),
        (Some("one.apps.example"), 2),
    ] {
        assert_eq!(shown(&identity, name), by_index[wanted], "{name:?}");
    }
    // A client that understands none of the keys still gets the default, and fails with a proper alert.
    let rsa_only = identity.choose(None, &[SignatureScheme::RSA_PSS_SHA256]).unwrap();
    assert_eq!(leaf(&rsa_only.cert), by_index[0]);
}

#[test]
fn a_bad_replacement_keeps_the_old_pair_and_leaves_the_others_alone() {
    let ca = Ca::new();
    let root = tempfile::tempdir().unwrap();
    let first = store(root.path(), "first", &ca.issue(&["a.example"]));
    let second = store(root.path(), "second", &ca.issue(&["b.example"]));
    let identity = ServerIdentity::load(vec![first.clone(), second]).unwrap();
    let (a, b) = (shown(&identity, Some("a.example")), shown(&identity, Some("b.example")));

    // The first pair is broken while the second is renewed.
    fs::write(&first.key, ca.issue(&["a.example"]).key_pem).unwrap();
    store(root.path(), "second", &ca.issue(&["b.example"]));
    let outcome = identity.reload();
    assert!(outcome.replaced);
    assert!(matches!(outcome.failures.as_slice(), [CertError::KeyMismatch { .. }]), "{:?}", outcome.failures);
    assert_eq!(shown(&identity, Some("a.example")), a);
    assert_ne!(shown(&identity, Some("b.example")), b);

    store(root.path(), "first", &ca.issue(&["a.example"]));
    let outcome = identity.reload();
    assert!(outcome.replaced && outcome.failures.is_empty());
    assert_ne!(shown(&identity, Some("a.example")), a);
    assert!(!identity.reload().replaced, "nothing changed since");
}

#[tokio::test]
async fn new_handshakes_get_the_certificate_of_a_swapped_kubernetes_secret() {
    let ca = Ca::new();
    let mount = tempfile::tempdir().unwrap();
    publish(mount.path(), "1", |directory| drop(ca.issue(&["a.example"]).write(directory).unwrap()));
    let files = CertFiles { certificate: mount.path().join("tls.crt"), key: mount.path().join("tls.key") };
    let identity = ServerIdentity::load(vec![files]).unwrap();
    let server = identity.config(&[b"h2", b"http/1.1"]);
    let client = ClientTrust::load(Some(ca.write(mount.path()).unwrap())).unwrap().config(&[b"h2"]);
    let before = handshake(client.clone(), server.clone(), "a.example").await.unwrap();

    let stop = CancellationToken::new();
    let task = tokio::spawn(identity.keep_fresh(stop.clone()));
    publish(mount.path(), "2", |directory| drop(ca.issue(&["a.example"]).write(directory).unwrap()));
    until(|| shown(&identity, None) != before).await;

    // A client that never met this server, as a resumed session shows the old certificate.
    let client = ClientTrust::load(Some(mount.path().join("ca.crt"))).unwrap().config(&[b"h2"]);
    let after = handshake(client, server, "a.example").await.unwrap();
    assert_eq!(after, shown(&identity, None));
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn files_that_are_renamed_over_are_taken_into_use_and_good_ones_follow_bad_ones() {
    let ca = Ca::new();
    let root = tempfile::tempdir().unwrap();
    let files = store(root.path(), "only", &ca.issue(&["a.example"]));
    let identity = ServerIdentity::load(vec![files.clone()]).unwrap();
    let before = shown(&identity, None);
    let stop = CancellationToken::new();
    let task = tokio::spawn(identity.keep_fresh(stop.clone()));

    fs::write(&files.certificate, "not a certificate").unwrap();
    assert_eq!(identity.reload().failures.len(), 1);
    assert_eq!(shown(&identity, None), before);
    store(root.path(), "only", &ca.issue(&["a.example"]));
    until(|| shown(&identity, None) != before).await;
    stop.cancel();
    task.await.unwrap();
}

#[test]
fn a_server_without_certificates_is_refused_and_keys_are_not_in_debug() {
    assert!(matches!(ServerIdentity::load(vec![]), Err(CertError::NothingConfigured)));
    let root = tempfile::tempdir().unwrap();
    let issued = Ca::new().issue(&["a.example"]);
    let identity = ServerIdentity::load(vec![store(root.path(), "only", &issued)]).unwrap();
    assert!(format!("{identity:?}").contains("tls.key"));
    assert!(!format!("{identity:?}").contains("PRIVATE"));
}

#[test]
fn written_keys_are_readable_by_their_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let root = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    for _ in 0..2 {
        let files = ca.issue(&["a.example"]).write(root.path()).unwrap();
        assert_eq!((mode(&files.key), mode(&files.certificate)), (0o600, 0o644));
        fs::set_permissions(&files.key, fs::Permissions::from_mode(0o666)).unwrap();
    }
}
