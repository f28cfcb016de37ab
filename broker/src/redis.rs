//! Redis: where it is and how it is spoken to.

use postern_certs::CertFiles;
use std::{path::PathBuf, time::Duration};

/// One Redis, as kas' `redis` section describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where it is.
    pub servers: Servers,
    /// Absent: the default user.
    pub username: Option<String>,
    /// Absent: no password.
    pub password_file: Option<PathBuf>,
    /// Absent: cleartext.
    pub tls: Option<Tls>,
    /// Selected after every connect.
    pub database: i64,
    /// Goes before every key.
    pub key_prefix: String,
    /// For a connection to be made.
    pub dial_timeout: Duration,
    /// For an answer.
    pub read_timeout: Duration,
    /// For a command to be sent.
    pub write_timeout: Duration,
}

/// Where a Redis is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Servers {
    /// `host:port`.
    Tcp(String),
    /// A socket file.
    Unix(PathBuf),
    /// Sentinels know.
    Sentinel {
        /// The name that the sentinels have for it.
        master_name: String,
        /// `host:port` of each sentinel; at least one.
        addresses: Vec<String>,
        /// Absent: the sentinels want none.
        password_file: Option<PathBuf>,
    },
}

/// How a Redis proves itself, and the client if it must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The client's own.
    pub certificate: Option<CertFiles>,
    /// Trusted beside the system's roots.
    pub ca_certificate_file: Option<PathBuf>,
}
