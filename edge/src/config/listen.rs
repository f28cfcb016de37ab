//! `listen`: the ports, and how connections to them begin.

use super::Problems;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// One port.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listen {
    pub address: SocketAddr,
    /// Empty: cleartext.
    pub certificates: Vec<Certificate>,
}

/// A PEM chain and its key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileListen {
    address: String,
    tls: Option<FileTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTls {
    certificates: Vec<Certificate>,
}

pub(super) fn meant(written: Vec<FileListen>, base: &Path, found: &mut Problems) -> Vec<Listen> {
    if written.is_empty() {
        found.add("listen", "is empty: add at least one {address: host:port}");
    }
    let mut listen = Vec::new();
    for (index, port) in written.into_iter().enumerate() {
        let at = format!("listen[{index}]");
        let address = found.socket(&format!("{at}.address"), &port.address);
        let mut certificates = port.tls.map(|tls| tls.certificates);
        if certificates.as_ref().is_some_and(Vec::is_empty) {
            found.add(
                format!("{at}.tls.certificates"),
                "is empty: add {certificate_file, key_file}, or remove tls",
            );
        }
        for pair in certificates.iter_mut().flatten() {
            pair.certificate_file = base.join(&pair.certificate_file);
            pair.key_file = base.join(&pair.key_file);
        }
        if let Some(address) = address {
            if address.port() != 0 && listen.iter().any(|other: &Listen| other.address == address) {
                found.add(format!("{at}.address"), format!("{address} is listed twice"));
            }
            listen.push(Listen { address, certificates: certificates.unwrap_or_default() });
        }
    }
    listen
}
