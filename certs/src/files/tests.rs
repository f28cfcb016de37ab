//! Every way in which an operator's file can be wrong, as a table of files and what is said about them.

use std::fs;
use std::time::SystemTime;

use super::*;
use crate::dev::Ca;

fn complaint(certificate: &str, key: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let files =
        CertFiles { certificate: directory.path().join("tls.crt"), key: directory.path().join("tls.key") };
    fs::write(&files.certificate, certificate).unwrap();
    fs::write(&files.key, key).unwrap();
    let error = load_pair(&files).err().expect("the files are wrong");
    crate::one_line(&error).replace(directory.path().to_str().unwrap(), "DIR")
}

#[test]
fn errors_name_the_file_the_line_and_what_is_wrong() {
    let ca = Ca::new();
    let (good, other) = (ca.issue(&["a.example"]), ca.issue(&["b.example"]));
    let (cert, key) = (good.certificate_pem.as_str(), good.key_pem.as_str());
    let cut = &cert[..cert.len() / 2];
    let junk = cert.replacen("\nMII", "\nM!I", 1);
    let empty_block = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let uneven = "-----BEGIN CERTIFICATE-----\nAAAAA\n-----END CERTIFICATE-----\n";
    let locked = key.replace("PRIVATE KEY", "ENCRYPTED PRIVATE KEY");
    let old_locked = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-256-CBC,00\n\nAAAA\n\
                      -----END RSA PRIVATE KEY-----\n";
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    let wrong_order = format!("{}{cert}", ca.pem());

    for (certificate, private, wanted) in [
        ("", key, "no certificate (BEGIN CERTIFICATE) in certificate file DIR/tls.crt: it holds nothing"),
        ("hello", key, "it holds no PEM block"),
        (
            key,
            cert,
            "in certificate file DIR/tls.crt: it holds a private key; are certificate and key swapped?",
        ),
        (
            cert,
            cert,
            "no private key (BEGIN PRIVATE KEY) in key file DIR/tls.key: it holds a certificate; are cert",
        ),
        (
            cut,
            key,
            "certificate file DIR/tls.crt is damaged at line 1: the block that begins here is never ended",
        ),
        (&junk, key, "certificate file DIR/tls.crt is damaged at line 2: this line is not base64"),
        (uneven, key, "DIR/tls.crt is damaged at line 3: the base64 above ends early"),
        (empty_block, key, "the certificate at line 1 of certificate file DIR/tls.crt cannot be used"),
        (cert, &locked, "the private key in DIR/tls.key is encrypted; store it without a passphrase"),
        (cert, old_locked, "the private key in DIR/tls.key is encrypted"),
        (cert, bad_key, "the private key in DIR/tls.key cannot be used; RSA (2048 bits or more)"),
        (
            cert,
            &other.key_pem,
            "the private key in DIR/tls.key does not belong to the certificate in DIR/tls.crt",
        ),
        (&wrong_order, key, "but to number 2 in that file; the server's own comes first"),
    ] {
        let said = complaint(certificate, private);
        assert!(said.contains(wanted), "{said:?} should say {wanted:?}");
        assert!(!said.contains('\n'), "{said:?} is one line");
        let secret = private.lines().nth(1).unwrap_or("-");
        assert!(!said.contains(secret), "{said:?} quotes the key");
    }
}

#[test]
fn a_missing_file_is_named_with_the_reason_of_the_system() {
    let files = CertFiles { certificate: "/nowhere/tls.crt".into(), key: "/nowhere/tls.key".into() };
    let said = crate::one_line(&load_pair(&files).err().unwrap());
    assert_eq!(said, "cannot read certificate file /nowhere/tls.crt: No such file or directory (os error 2)");
}

#[test]
fn a_file_in_der_is_recognised() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("ca.der");
    let pem = Ca::new().pem();
    fs::write(&file, CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let said = load_certificates(&file, Holds::CaBundle).err().unwrap().to_string();
    assert!(said.contains("it holds binary DER; convert it to PEM"), "{said}");
}

#[test]
fn a_chain_with_text_between_its_blocks_and_one_file_for_both_are_read() {
    let ca = Ca::new();
    let issued = ca.issue(&["A.example", "*.b.example", "127.0.0.1"]);
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("all.pem");
    let text = format!("subject=a\r\n{}\nissuer\n{}{}", issued.certificate_pem, ca.pem(), issued.key_pem);
    fs::write(&file, text.replace('\n', "\r\n")).unwrap();
    let pair = load_pair(&CertFiles { certificate: file.clone(), key: file }).unwrap();
    assert_eq!(pair.certified.cert.len(), 2);
    assert_eq!(pair.names, ["a.example", "*.b.example"]);
}

#[test]
fn the_validity_period_is_read_from_the_certificate() {
    let ca = Ca::new();
    let now = SystemTime::now();
    let day = Duration::from_secs(86_400);
    let at = UnixTime::since_unix_epoch(now.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    let of = |period| {
        let pem = ca.issue_for(&["a.example"], period).certificate_pem;
        validity(&CertificateDer::from_pem_slice(pem.as_bytes()).unwrap(), at)
    };
    let near = |span: Duration, days: u32| span.abs_diff(day * days) <= Duration::from_secs(1);
    assert_eq!(of(now - day..now + day), Validity::Current);
    assert!(matches!(of(now - 3 * day..now - 2 * day), Validity::ExpiredFor(span) if near(span, 2)));
    assert!(matches!(of(now + 5 * day..now + 6 * day), Validity::StartsIn(span) if near(span, 5)));
}
