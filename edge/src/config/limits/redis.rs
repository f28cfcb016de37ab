//! `limits.redis`: the Redis in which several edges count together.
//!
//! Password and TLS files are named here and read for each dial, so that they can be rotated.

use crate::config::Problems;
use postern_certs::CertFiles;
use postern_redis::{Config, Servers, Tls};
use serde::{Deserialize, Serialize, Serializer};
use std::path::{Path, PathBuf};
use std::time::Duration;

const EXAMPLE: &str = "redis.example.com:6379";
/// Brokers' own default, so that one Redis can serve both; the keys differ.
const DEFAULT_KEY_PREFIX: &str = "gitlab-kas";
const DEFAULT_DIAL: Duration = Duration::from_secs(5);
/// Requests wait for an answer for a second at the most.
const DEFAULT_ANSWER: Duration = Duration::from_secs(1);

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileRedis {
    address: Option<String>,
    sentinel: Option<FileSentinel>,
    cluster: Option<FileCluster>,
    username: Option<String>,
    password_file: Option<PathBuf>,
    tls: Option<FileTls>,
    database: Option<u32>,
    key_prefix: Option<String>,
    dial_timeout: Option<String>,
    answer_timeout: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileSentinel {
    master_name: String,
    addresses: Vec<String>,
    password_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileCluster {
    addresses: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTls {
    ca_certificate_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    key_file: Option<PathBuf>,
}

impl FileRedis {
    pub(super) fn meant(self, base: &Path, found: &mut Problems) -> Option<Config> {
        let servers = match (self.address, self.sentinel, self.cluster) {
            (Some(address), None, None) => match address.strip_prefix("unix:") {
                Some(path) => Some(Servers::Unix(base.join(path))),
                None => found
                    .host_and_port("limits.redis.address", &address, EXAMPLE)
                    .then_some(Servers::Tcp(address)),
            },
            (None, Some(sentinel), None) => {
                all("limits.redis.sentinel.addresses", &sentinel.addresses, found).then(|| {
                    Servers::Sentinel {
                        master_name: sentinel.master_name,
                        addresses: sentinel.addresses,
                        password_file: sentinel.password_file.map(|file| base.join(file)),
                    }
                })
            }
            (None, None, Some(cluster)) => {
                if self.database.is_some_and(|database| database > 0) {
                    found.add("limits.redis.database", "is not 0, and a cluster has no other");
                }
                all("limits.redis.cluster.addresses", &cluster.addresses, found)
                    .then_some(Servers::Cluster(cluster.addresses))
            }
            _ => {
                found.add("limits.redis", "names not exactly one of address, sentinel and cluster");
                None
            }
        };
        let tls = self.tls.map(|tls| {
            let certificate = match (tls.certificate_file, tls.key_file) {
                (Some(certificate_file), Some(key_file)) => {
                    Some(CertFiles { certificate: base.join(certificate_file), key: base.join(key_file) })
                }
                (None, None) => None,
                _ => {
                    found
                        .add("limits.redis.tls", "has one of certificate_file and key_file; both are wanted");
                    None
                }
            };
            Tls { certificate, ca_certificate_file: tls.ca_certificate_file.map(|file| base.join(file)) }
        });
        let dial_timeout = found.duration("limits.redis.dial_timeout", self.dial_timeout, DEFAULT_DIAL);
        let answer = found.duration("limits.redis.answer_timeout", self.answer_timeout, DEFAULT_ANSWER);
        Some(Config {
            username: self.username,
            password_file: self.password_file.map(|file| base.join(file)),
            tls,
            database: self.database.unwrap_or(0).into(),
            key_prefix: self.key_prefix.unwrap_or_else(|| DEFAULT_KEY_PREFIX.to_owned()),
            dial_timeout,
            read_timeout: answer,
            write_timeout: answer,
            ..Config::new(servers?)
        })
    }
}

/// For `/config`. Addresses are `host:port` and passwords are in files, so that nothing here is secret.
#[derive(Serialize)]
struct Shown<'a> {
    kind: &'static str,
    addresses: Vec<String>,
    master_name: Option<&'a str>,
    username: Option<&'a str>,
    password_file: Option<&'a Path>,
    sentinel_password_file: Option<&'a Path>,
    tls: Option<ShownTls<'a>>,
    database: i64,
    key_prefix: &'a str,
    dial_timeout: Duration,
    answer_timeout: Duration,
}

#[derive(Serialize)]
struct ShownTls<'a> {
    ca_certificate_file: Option<&'a Path>,
    certificate_file: Option<&'a Path>,
    key_file: Option<&'a Path>,
}

pub(super) fn shown<S: Serializer>(config: &Option<Config>, serializer: S) -> Result<S::Ok, S::Error> {
    let Some(config) = config else { return serializer.serialize_none() };
    let (kind, addresses, sentinel) = match &config.servers {
        Servers::Tcp(address) => ("tcp", vec![address.clone()], None),
        Servers::Unix(path) => ("unix", vec![path.display().to_string()], None),
        Servers::Sentinel { master_name, addresses, password_file } => {
            ("sentinel", addresses.clone(), Some((master_name.as_str(), password_file.as_deref())))
        }
        Servers::Cluster(addresses) => ("cluster", addresses.clone(), None),
    };
    let tls = config.tls.as_ref().map(|tls| ShownTls {
        ca_certificate_file: tls.ca_certificate_file.as_deref(),
        certificate_file: tls.certificate.as_ref().map(|files| files.certificate.as_path()),
        key_file: tls.certificate.as_ref().map(|files| files.key.as_path()),
    });
    let shown = Shown {
        kind,
        addresses,
        master_name: sentinel.map(|(name, _)| name),
        username: config.username.as_deref(),
        password_file: config.password_file.as_deref(),
        sentinel_password_file: sentinel.and_then(|(_, file)| file),
        tls,
        database: config.database,
        key_prefix: &config.key_prefix,
        dial_timeout: config.dial_timeout,
        answer_timeout: config.read_timeout,
    };
    shown.serialize(serializer)
}

fn all(at: &str, addresses: &[String], found: &mut Problems) -> bool {
    if addresses.is_empty() {
        found.add(at, "is empty; one `host:port` is wanted at least");
    }
    let good = addresses.iter().enumerate();
    let good = good
        .filter(|(index, address)| found.host_and_port(format!("{at}[{index}]"), address, EXAMPLE))
        .count();
    good > 0 && good == addresses.len()
}
