//! Whom a client trusts, and the line an operator reads when it does not.

use std::error::Error;
use std::fs;
use std::io;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::dev::{Ca, Issued};
use crate::server::ServerIdentity;
use crate::testing::{dial, handshake, until};

fn trust(ca: &Ca) -> Arc<ClientTrust> {
    let directory = tempfile::tempdir().unwrap();
    ClientTrust::with_system(CertificateResult::default(), Some(ca.write(directory.path()).unwrap())).unwrap()
}

fn serve(issued: &Issued, alpn: &[&[u8]]) -> Arc<rustls::ServerConfig> {
    let directory = tempfile::tempdir().unwrap();
    ServerIdentity::load(vec![issued.write(directory.path()).unwrap()]).unwrap().config(alpn)
}

async fn complaint(trust: &ClientTrust, issued: &Issued, ca_given: bool) -> String {
    let error = handshake(trust.config(&[]), serve(issued, &[]), "a.example").await.unwrap_err();
    explain(&error, ca_given).expect("a TLS failure is explained")
}

#[tokio::test]
async fn a_given_ca_is_trusted_beside_the_roots_of_the_system() {
    let (system_ca, given_ca) = (Ca::new(), Ca::new());
    let directory = tempfile::tempdir().unwrap();
    let file = given_ca.write(directory.path()).unwrap();
    let mut native = CertificateResult::default();
    let pem = system_ca.pem();
    native.certs.push(rustls::pki_types::pem::PemObject::from_pem_slice(pem.as_bytes()).unwrap());
    let trust = ClientTrust::with_system(native, Some(file)).unwrap();
    for ca in [&system_ca, &given_ca] {
        let server = serve(&ca.issue(&["a.example"]), &[b"h2"]);
        handshake(trust.config(&[b"h2"]), server, "a.example").await.unwrap();
    }
    // By IP address there is no SNI, and the name is still verified.
    let server = serve(&given_ca.issue(&["127.0.0.1"]), &[]);
    handshake(trust.config(&[]), server, "127.0.0.1").await.unwrap();
}

#[tokio::test]
async fn each_kind_of_bad_certificate_has_its_line() {
    let ca = Ca::new();
    let trust = trust(&ca);
    let name = &["a.example"];
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);

    let stranger = Ca::new().issue(name);
    let said = complaint(&trust, &stranger, false).await;
    assert!(
        said.contains("unknown CA") && said.contains("give its certificate with --ca-cert-file"),
        "{said}"
    );
    let said = complaint(&trust, &stranger, true).await;
    assert!(said.contains("unknown CA") && said.contains("the file given with --ca-cert-file"), "{said}");

    let said = complaint(&trust, &ca.issue_expired(name), true).await;
    assert!(said.starts_with("the server's certificate has expired 1 day ago"), "{said}");
    let said = complaint(&trust, &ca.issue_for(name, now + 3 * day + day / 2..now + 9 * day), true).await;
    assert!(said.contains("not valid yet, only in 3 days"), "{said}");
    for (names, wanted) in [
        (&["b.example", "10.0.0.1"][..], "only for b.example, 10.0.0.1; check the address"),
        (
            &["1.b", "2.b", "3.b", "4.b", "5.b", "6.b", "7.b"],
            "only for 1.b, 2.b, 3.b, 4.b, 5.b and 2 more; check",
        ),
        (&[], "only for no name at all; check the address"),
    ] {
        let said = complaint(&trust, &ca.issue(names), true).await;
        assert!(
            said.starts_with("the server's certificate is not for a.example, ") && said.contains(wanted),
            "{said}"
        );
    }
}

#[tokio::test]
async fn a_server_that_does_not_speak_tls_is_told_apart_from_one_that_hangs_up() {
    let trust = trust(&Ca::new());
    for (answer, wanted) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], "does not speak TLS on this port"),
        (&b"\0\0\x12\x04\0\0\0\0\0\0\0"[..], "does not speak TLS on this port"),
        (&b"SSH-2.0-OpenSSH_9.2\r\n"[..], "does not speak TLS on this port"),
        (&b""[..], "closed the connection during the TLS handshake"),
    ] {
        let (near, mut far) = tokio::io::duplex(16 * 1024);
        let serve = async move {
            far.read_u8().await.unwrap();
            far.write_all(answer).await.unwrap();
        };
        let error = tokio::join!(dial(trust.config(&[]), near, "a.example"), serve).0.unwrap_err();
        let said = explain(&error, true).expect("a TLS failure is explained");
        assert!(said.contains(wanted), "{said} for {:?}", String::from_utf8_lossy(answer));
    }
}

#[tokio::test]
async fn an_alert_is_put_into_words() {
    let ca = Ca::new();
    let server = serve(&ca.issue(&["a.example"]), &[b"h2"]);
    let error = handshake(trust(&ca).config(&[b"http/1.1"]), server, "a.example").await.unwrap_err();
    let said = explain(&error, true).unwrap();
    assert!(said.contains("none of the offered protocols (ALPN) (alert NoApplicationProtocol)"), "{said}");
}

#[test]
fn a_tls_failure_is_found_under_other_errors_and_others_are_left_alone() {
    #[derive(Debug, thiserror::Error)]
    #[error("dial kas.example")]
    struct Dial(#[source] Box<dyn Error + Send + Sync>);

    let tls = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
    let wrapped =
        Dial(Box::new(io::Error::other(Dial(Box::new(io::Error::new(io::ErrorKind::InvalidData, tls))))));
    assert!(explain(&wrapped, false).unwrap().contains("--ca-cert-file"));

    let refused = Dial(Box::new(io::Error::from(io::ErrorKind::ConnectionRefused)));
    assert_eq!(explain(&refused, false), None);
    let eof = io::Error::new(io::ErrorKind::UnexpectedEof, "early eof");
    assert_eq!(explain(&eof, false), None);
}

#[test]
fn a_ca_file_that_is_given_must_hold_a_certificate() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.crt");
    let load = |content: &str| {
        fs::write(&file, content).unwrap();
        ClientTrust::load(Some(file.clone())).unwrap_err()
    };
    assert!(matches!(load("# none yet\n"), CertError::Missing { holds: Holds::CaBundle, .. }));
    let bad = "\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    assert!(matches!(load(bad), CertError::BadCertificate { line: 2, .. }));
    fs::remove_file(&file).unwrap();
    assert!(matches!(ClientTrust::load(Some(file.clone())), Err(CertError::Unreadable { .. })));
}

#[test]
fn nothing_to_trust_is_an_error_that_names_the_flag() {
    let error = ClientTrust::with_system(CertificateResult::default(), None).unwrap_err();
    assert!(matches!(error, CertError::NoRoots { .. }));
    assert!(error.to_string().contains("--ca-cert-file"), "{error}");
}

#[tokio::test]
async fn a_ca_that_is_added_to_the_file_is_trusted_from_the_next_dial_on() {
    let (old, new) = (Ca::new(), Ca::new());
    let directory = tempfile::tempdir().unwrap();
    let file = old.write(directory.path()).unwrap();
    let trust = ClientTrust::with_system(CertificateResult::default(), Some(file.clone())).unwrap();
    let server = serve(&new.issue(&["a.example"]), &[]);
    handshake(trust.config(&[]), server.clone(), "a.example").await.unwrap_err();

    let stop = CancellationToken::new();
    let task = tokio::spawn(trust.keep_fresh(stop.clone()));
    let aside = directory.path().join("aside");
    fs::write(&aside, format!("{}{}", old.pem(), new.pem())).unwrap();
    fs::rename(&aside, &file).unwrap();
    until(|| trust.current.load().bundle.len() == 2).await;
    handshake(trust.config(&[]), server.clone(), "a.example").await.unwrap();

    fs::write(&file, "gone").unwrap();
    assert_eq!(trust.reload().failures.len(), 1);
    handshake(trust.config(&[]), server, "a.example").await.unwrap();
    stop.cancel();
    task.await.unwrap();
}

#[tokio::test]
async fn a_ca_alone_is_trusted_where_nobody_else_shall_be() {
    let (ours, other) = (Ca::new(), Ca::new());
    let directory = tempfile::tempdir().unwrap();
    let trust = ClientTrust::only(ours.write(directory.path()).unwrap()).unwrap();
    assert_eq!(trust.bundle().len(), 1);
    handshake(trust.config(&[]), serve(&ours.issue(&["a.example"]), &[]), "a.example").await.unwrap();
    handshake(trust.config(&[]), serve(&other.issue(&["a.example"]), &[]), "a.example").await.unwrap_err();
    assert!(ClientTrust::only(directory.path().join("nowhere")).is_err());
}

#[tokio::test]
async fn a_certificate_that_is_shown_follows_its_files() {
    let ca = Ca::new();
    let directory = tempfile::tempdir().unwrap();
    let files = ca.issue(&["dialler"]).write(directory.path()).unwrap();
    let identity = ClientIdentity::load(&files).unwrap();
    let before = identity.material();
    assert_eq!(format!("{before:?} {identity:?}"), "Material ClientIdentity");
    let stop = CancellationToken::new();
    let task = tokio::spawn(identity.keep_fresh(stop.clone()));
    // The two files change one after the other; in between they do not belong together.
    ca.issue(&["dialler"]).write(directory.path()).unwrap();
    until(|| identity.material().chain() != before.chain()).await;
    let resolver = identity.resolver();
    let shown = resolver.resolve(&[], &[]).unwrap();
    assert_eq!(shown.cert.as_slice(), identity.material().chain());
    fs::write(&files.key, "gone").unwrap();
    assert_eq!(identity.reload().failures.len(), 1);
    assert!(Arc::ptr_eq(&shown, &resolver.resolve(&[], &[]).unwrap()));
    stop.cancel();
    task.await.unwrap();
}
