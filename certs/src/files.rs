//! The first step: PEM files to certificates and keys, with errors that name the file, the line and what is
//! wrong. Before it: a path from the operator. After it: `server` and `client` build rustls configurations.
//! It never keeps a file open and never quotes what a key file holds.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::{PemObject, SectionKind};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, InconsistentKeys, RootCertStore};

#[cfg(test)]
mod tests;

/// Where one certificate and its private key are. Both may name the same file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertFiles {
    /// PEM: the server's own certificate first, then its intermediates.
    pub certificate: PathBuf,
    /// PEM: one private key without a passphrase (PKCS#8, PKCS#1 or SEC1).
    pub key: PathBuf,
}

/// What a file was given for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// A server's certificate and its intermediates.
    Certificate,
    /// A private key.
    Key,
    /// Certificates of CAs to trust.
    CaBundle,
}

impl fmt::Display for Holds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Holds::Certificate => "certificate",
            Holds::Key => "key",
            Holds::CaBundle => "CA",
        })
    }
}

/// Why certificates or keys could not be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// The file is missing, is a directory, or this process may not read it.
    #[error("cannot read {holds} file {}", .path.display())]
    Unreadable {
        holds: Holds,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A PEM block is cut short, not closed, or not base64.
    #[error("{holds} file {} is damaged at line {line}: {what}; write the file anew", .path.display())]
    Damaged { holds: Holds, path: PathBuf, line: usize, what: &'static str },
    /// The file is readable and holds something else than what it was given for.
    #[error("no {wanted} in {holds} file {}: it holds {found}", .path.display(), wanted = wanted(*.holds))]
    Missing { holds: Holds, path: PathBuf, found: String },
    /// The private key needs a passphrase, and there is nobody to type it.
    #[error("the private key in {} is encrypted; store it without a passphrase (`openssl pkey -in FILE`)", .path.display())]
    EncryptedKey { path: PathBuf },
    /// A well-formed PEM block whose content is no X.509 certificate that rustls can use.
    #[error("the certificate at line {line} of {holds} file {} cannot be used", .path.display())]
    BadCertificate {
        holds: Holds,
        path: PathBuf,
        line: usize,
        #[source]
        source: rustls::Error,
    },
    /// A well-formed PEM block whose content is no private key that rustls can use.
    #[error("the private key in {} cannot be used; RSA (2048 bits or more), ECDSA P-256/P-384 and Ed25519 can", .path.display())]
    BadKey {
        path: PathBuf,
        #[source]
        source: rustls::Error,
    },
    /// The key belongs to another certificate.
    #[error("the private key in {} does not belong to the certificate in {}{hint}", .key.display(), .certificate.display())]
    KeyMismatch { certificate: PathBuf, key: PathBuf, hint: String },
    /// A server was started without any certificate.
    #[error("no certificate is configured; a TLS server needs at least one certificate and its key")]
    NothingConfigured,
    /// Neither the system nor the operator names a CA, so no server could be trusted.
    #[error(
        "no CA to trust: {system}, and no CA file is given; install the system's CA certificates or use --ca-cert-file"
    )]
    NoRoots { system: String },
}

fn wanted(holds: Holds) -> &'static str {
    match holds {
        Holds::Certificate | Holds::CaBundle => "certificate (BEGIN CERTIFICATE)",
        Holds::Key => "private key (BEGIN PRIVATE KEY)",
    }
}

/// A certificate chain with its key, ready to sign, and the DNS names it is for (lower case, wildcards as
/// `*.`).
pub(crate) struct Pair {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) names: Vec<String>,
}

/// Whether a certificate is valid at a moment.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Validity {
    Current,
    ExpiredFor(Duration),
    StartsIn(Duration),
}

/// Reads a certificate chain and its key. An expired certificate is no error: it may be all there is, and
/// clients say so more clearly than a process that does not start.
pub(crate) fn load_pair(files: &CertFiles) -> Result<Pair, CertError> {
    let certificates = load_certificates(&files.certificate, Holds::Certificate)?;
    let key = load_key(&files.key)?;
    let key = crate::provider()
        .key_provider
        .load_private_key(key)
        .map_err(|source| CertError::BadKey { path: files.key.clone(), source })?;

    let line = certificates[0].line;
    let bad = |source| CertError::BadCertificate {
        holds: Holds::Certificate,
        path: files.certificate.clone(),
        line,
        source,
    };
    let chain: Vec<_> = certificates.into_iter().map(|found| found.der).collect();
    let names = dns_names(&chain[0]).map_err(bad)?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
        Err(rustls::Error::InconsistentKeys(_)) => {
            return Err(CertError::KeyMismatch {
                certificate: files.certificate.clone(),
                key: files.key.clone(),
                hint: mismatch_hint(&certified),
            });
        }
        Err(source) => return Err(bad(source)),
    }
    Ok(Pair { certified: Arc::new(certified), names })
}

/// A chain in the wrong order is the usual reason for a mismatch in files that a person put together.
fn mismatch_hint(certified: &CertifiedKey) -> String {
    let public = certified.key.public_key();
    let place = certified.cert.iter().position(|der| {
        ParsedCertificate::try_from(der).is_ok_and(|cert| Some(cert.subject_public_key_info()) == public)
    });
    match place {
        Some(index) => format!(" but to number {} in that file; the server's own comes first", index + 1),
        None => String::new(),
    }
}

fn dns_names(der: &CertificateDer<'_>) -> Result<Vec<String>, rustls::Error> {
    let cert = webpki::EndEntityCert::try_from(der)
        .map_err(|_| rustls::Error::InvalidCertificate(CertificateError::BadEncoding))?;
    Ok(cert.valid_dns_names().map(str::to_ascii_lowercase).collect())
}

/// Reads a certificate's validity period against `now`.
pub(crate) fn validity(der: &CertificateDer<'_>, now: UnixTime) -> Validity {
    let Ok(cert) = ParsedCertificate::try_from(der) else { return Validity::Current };
    // There is no other way to the dates without an X.509 parser: the period is checked before any issuer is
    // looked for, so with no trust anchors an error about the period is exact and every other one is without
    // meaning.
    let verdict = rustls::client::verify_server_cert_signed_by_trust_anchor(
        &cert,
        &RootCertStore::empty(),
        &[],
        now,
        crate::provider().signature_verification_algorithms.all,
    );
    let seconds =
        |from: UnixTime, to: UnixTime| Duration::from_secs(to.as_secs().saturating_sub(from.as_secs()));
    match verdict {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after })) => {
            Validity::ExpiredFor(seconds(not_after, time))
        }
        Err(rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext { time, not_before })) => {
            Validity::StartsIn(seconds(time, not_before))
        }
        _ => Validity::Current,
    }
}

/// One certificate and the line its PEM block starts at.
pub(crate) struct Found {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) line: usize,
}

/// Reads every certificate of a file, in order; at least one.
pub(crate) fn load_certificates(path: &Path, holds: Holds) -> Result<Vec<Found>, CertError> {
    let bytes = read(path, holds)?;
    let blocks = blocks(&bytes, path, holds)?;
    let found: Vec<_> = blocks
        .iter()
        .filter(|block| block.label == "CERTIFICATE")
        .map(|block| Found { der: CertificateDer::from(block.der.clone()), line: block.line })
        .collect();
    if found.is_empty() {
        return Err(missing(&bytes, &blocks, path, holds));
    }
    Ok(found)
}

pub(crate) fn load_key(path: &Path) -> Result<PrivateKeyDer<'static>, CertError> {
    let bytes = read(path, Holds::Key)?;
    let blocks = blocks(&bytes, path, Holds::Key)?;
    let key = blocks.iter().find_map(|block| PrivateKeyDer::from_pem(block.kind?, block.der.clone()));
    key.ok_or_else(|| match blocks.iter().any(|block| block.encrypted) {
        true => CertError::EncryptedKey { path: path.to_owned() },
        false => missing(&bytes, &blocks, path, Holds::Key),
    })
}

fn read(path: &Path, holds: Holds) -> Result<Vec<u8>, CertError> {
    std::fs::read(path).map_err(|source| CertError::Unreadable { holds, path: path.to_owned(), source })
}

fn missing(bytes: &[u8], blocks: &[Block<'_>], path: &Path, holds: Holds) -> CertError {
    let key = |block: &&Block<'_>| block.label.ends_with("PRIVATE KEY");
    let found = match blocks.first() {
        _ if bytes.iter().all(u8::is_ascii_whitespace) => "nothing".to_owned(),
        // An ASN.1 SEQUENCE with a two-byte length opens every certificate and RSA key in DER.
        None if bytes.starts_with(&[0x30, 0x82]) => "binary DER; convert it to PEM with openssl".to_owned(),
        None => "no PEM block".to_owned(),
        Some(_) if holds != Holds::Key && blocks.iter().find(key).is_some() => {
            "a private key; are certificate and key swapped?".to_owned()
        }
        Some(block) if holds == Holds::Key && block.label == "CERTIFICATE" => {
            "a certificate; are certificate and key swapped?".to_owned()
        }
        Some(block) => format!("a PEM block labelled {:?}", block.label),
    };
    CertError::Missing { holds, path: path.to_owned(), found }
}

/// One `-----BEGIN x-----` .. `-----END x-----`. `der` is empty where `kind` is none of rustls' kinds.
struct Block<'a> {
    line: usize,
    label: &'a str,
    kind: Option<SectionKind>,
    der: Vec<u8>,
    encrypted: bool,
}

/// Splits a file into its PEM blocks. Text between blocks is allowed, as `openssl x509 -text` writes it.
fn blocks<'a>(bytes: &'a [u8], path: &Path, holds: Holds) -> Result<Vec<Block<'a>>, CertError> {
    let damaged = |line, what| CertError::Damaged { holds, path: path.to_owned(), line, what };
    let mut blocks = Vec::new();
    let mut open: Option<Open<'a>> = None;
    let mut start = 0;
    for (index, raw) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let line = index + 1;
        let from = start;
        start += raw.len();
        let text = raw.trim_ascii_end();
        if let Some(rest) = text.strip_prefix(b"-----BEGIN ") {
            if open.is_some() {
                return Err(damaged(line, "a block begins before the one above it has ended"));
            }
            let label = rest.strip_suffix(b"-----").and_then(|label| std::str::from_utf8(label).ok());
            let label = label.ok_or_else(|| damaged(line, "a BEGIN line must end in five dashes"))?;
            open = Some(Open { line, label, from, encrypted: label == "ENCRYPTED PRIVATE KEY" });
        } else if let Some(rest) = text.strip_prefix(b"-----END ") {
            let Some(block) = open.take() else {
                return Err(damaged(line, "an END line without its BEGIN line"));
            };
            if rest.strip_suffix(b"-----") != Some(block.label.as_bytes()) {
                return Err(damaged(line, "this END line does not fit its BEGIN line"));
            }
            blocks.push(
                block.close(&bytes[..start]).ok_or_else(|| damaged(line, "the base64 above ends early"))?,
            );
        } else if let Some(block) = &mut open {
            // RFC 1421 headers stand only in the old encrypted keys (`Proc-Type: 4,ENCRYPTED`).
            block.encrypted |= text.starts_with(b"Proc-Type:");
            if !block.encrypted
                && !text.iter().all(|byte| byte.is_ascii_alphanumeric() || b"+/= \t".contains(byte))
            {
                return Err(damaged(line, "this line is not base64"));
            }
        }
    }
    match open {
        Some(block) => {
            Err(damaged(block.line, "the block that begins here is never ended; the file is cut short"))
        }
        None => Ok(blocks),
    }
}

struct Open<'a> {
    line: usize,
    label: &'a str,
    from: usize,
    encrypted: bool,
}

impl<'a> Open<'a> {
    /// `None`: the base64 cannot be decoded.
    fn close(self, up_to_end: &'a [u8]) -> Option<Block<'a>> {
        let known = !self.encrypted && SectionKind::try_from(self.label.as_bytes()).is_ok();
        let (kind, der) = match known {
            true => <(SectionKind, Vec<u8>)>::from_pem_slice(&up_to_end[self.from..])
                .map(|(kind, der)| (Some(kind), der))
                .ok()?,
            false => (None, Vec::new()),
        };
        Some(Block { line: self.line, label: self.label, kind, der, encrypted: self.encrypted })
    }
}
