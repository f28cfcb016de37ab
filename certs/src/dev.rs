//! A throw-away CA for the demo and for tests: keys are made in memory and only [`Issued::write`] brings one
//! to disk. After it: `server` and `client` load what it wrote, exactly as they load an operator's files. It
//! is no product CA: no revocation, no renewal, and its own key is gone with the process.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::CertFiles;

const DAY: Duration = Duration::from_secs(86_400);
/// Long enough for a demo that is left running, short enough to be no habit.
const LIFE: Duration = Duration::from_secs(365 * 86_400);

/// A CA that lives as long as this value.
pub struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A server certificate of a [`Ca`] with its private key.
pub struct Issued {
    /// The certificate, PEM.
    pub certificate_pem: String,
    /// The private key, PEM (PKCS#8). A secret.
    pub key_pem: String,
}

impl Ca {
    /// Makes a new CA, valid for a year. Every one has its own key and name, so that two never mix.
    #[expect(clippy::new_without_default, reason = "a CA is not a default value, each one is different")]
    pub fn new() -> Ca {
        let key = new_key();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, format!("Postern throw-away CA {}", fingerprint(&key)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let now = SystemTime::now();
        // A CA that is older than the expired certificates it signs.
        params.not_before = (now - LIFE).into();
        params.not_after = (now + LIFE).into();
        let certificate = params.self_signed(&key).expect("parameters made above are well-formed");
        Ca { certificate, issuer: Issuer::new(params, key) }
    }

    /// The CA's certificate, PEM: what a client must trust.
    pub fn pem(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for a server with these DNS names (a leading `*.` is a wildcard) and IP addresses, valid
    /// from an hour ago for a year. A client may show it, too.
    ///
    /// # Panics
    /// Where a name can be neither a DNS name nor an IP address.
    pub fn issue(&self, names: &[&str]) -> Issued {
        let now = SystemTime::now();
        self.issue_for(names, now - Duration::from_secs(3_600)..now + LIFE)
    }

    /// Like [`Ca::issue`], but the certificate expired a day ago.
    ///
    /// # Panics
    /// As [`Ca::issue`].
    pub fn issue_expired(&self, names: &[&str]) -> Issued {
        let now = SystemTime::now();
        self.issue_for(names, now - 30 * DAY..now - DAY)
    }

    /// Like [`Ca::issue`], valid during `period` (whole seconds).
    ///
    /// # Panics
    /// As [`Ca::issue`].
    pub fn issue_for(&self, names: &[&str], period: Range<SystemTime>) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("the caller gives DNS names and IP addresses");
        params.distinguished_name.push(DnType::CommonName, "postern");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.not_before = period.start.into();
        params.not_after = period.end.into();
        let key = new_key();
        let certificate =
            params.signed_by(&key, &self.issuer).expect("parameters made above are well-formed");
        Issued { certificate_pem: certificate.pem(), key_pem: key.serialize_pem() }
    }

    /// Writes `ca.crt` (the certificate, never the key) into an existing directory and returns its path. An
    /// older file is replaced in one step.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, directory: &Path) -> io::Result<PathBuf> {
        replace(&directory.join("ca.crt"), &self.pem(), 0o644)
    }
}

impl Issued {
    /// Writes `tls.crt` and, readable by the owner only (mode 0600), `tls.key` into an existing directory.
    /// Older files are replaced, each in one step.
    ///
    /// # Errors
    /// What the file system says.
    pub fn write(&self, directory: &Path) -> io::Result<CertFiles> {
        Ok(CertFiles {
            key: replace(&directory.join("tls.key"), &self.key_pem, 0o600)?,
            certificate: replace(&directory.join("tls.crt"), &self.certificate_pem, 0o644)?,
        })
    }
}

fn new_key() -> KeyPair {
    KeyPair::generate().expect("the system has randomness")
}

fn fingerprint(key: &KeyPair) -> String {
    // The head of an uncompressed point is a constant byte; what follows is as good as random.
    key.public_key_raw().iter().skip(1).take(4).map(|byte| format!("{byte:02x}")).collect()
}

fn replace(path: &Path, content: &str, mode: u32) -> io::Result<PathBuf> {
    let aside = path.with_extension("new");
    // What an interrupted run left behind could have another mode.
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&aside)?;
    // The umask may have taken bits away; it cannot have added any.
    file.set_permissions(Permissions::from_mode(mode))?;
    file.write_all(content.as_bytes())?;
    fs::rename(&aside, path)?;
    Ok(path.to_owned())
}
