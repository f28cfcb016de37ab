//! `edge.yaml`: [`File`] is what was written, [`Config`] what was meant.
//!
//! Read once at start and by `--check`. Every problem is reported at once. Opens no socket and reads no other file.

use serde::Deserialize;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// As kas' own `connections_per_token_per_minute`.
const DEFAULT_REQUESTS_PER_MINUTE: u32 = 40_000;
/// About 20 MiB when full.
const DEFAULT_TRACKED_TOKENS: u32 = 100_000;
/// An idle connection costs some 50 KiB; one whose bodies nobody takes may hold up to its window.
const DEFAULT_CONNECTIONS: u32 = 20_000;
/// A slow client on the other side of the world needs three round trips.
const DEFAULT_HANDSHAKE: Duration = Duration::from_secs(10);
/// Total time for a request head, however slowly its bytes arrive.
const DEFAULT_HEAD: Duration = Duration::from_secs(15);
/// How long an HTTP/1.1 connection may wait for its next request. Longer than the 60 s of usual load balancers.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(75);
/// An HTTP/2 connection on which no stream is open is closed after this; agents always have one open.
const DEFAULT_IDLE: Duration = Duration::from_secs(600);
/// A broker is near; one lost packet of the handshake is sent again after a second.
const DEFAULT_CONNECT: Duration = Duration::from_secs(2);
/// Half of the 60 s after which load balancers usually drop a silent connection.
const DEFAULT_PING: Duration = Duration::from_secs(30);
const DEFAULT_GRACE: Duration = Duration::from_secs(60);
const DEFAULT_ADMIN: &str = "127.0.0.1:8181";

/// Everything the edge needs to know before it starts.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub listen: Vec<Listen>,
    pub agents: Vec<Address>,
    /// Empty when the edge does not serve the Kubernetes API.
    pub kubernetes_api: Vec<Address>,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub drain: Drain,
    /// How often the edge pings a WebSocket that says nothing. `None`: never.
    pub websocket_ping: Option<Duration>,
    pub admin: SocketAddr,
    /// Threads that serve connections, each with its own runtime and upstream connections.
    pub workers: usize,
}

/// One port.
#[derive(Debug, Clone, PartialEq)]
pub struct Listen {
    pub address: SocketAddr,
    /// Empty: cleartext.
    pub certificates: Vec<Certificate>,
}

/// A PEM chain and its key.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// `host:port`, resolved when the edge starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address(String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Clone, PartialEq)]
pub struct Limits {
    pub per_minute: NonZeroU32,
    pub burst: NonZeroU32,
    /// Tokens whose use is remembered; the stalest is forgotten first.
    pub tracked_tokens: usize,
    /// Connections in this process, of everybody together.
    pub connections: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Timeouts {
    pub handshake: Duration,
    pub head: Duration,
    pub keepalive: Duration,
    pub idle: Duration,
    pub connect: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Drain {
    /// Not ready, but still accepting: the time load balancers need to notice.
    pub pre: Duration,
    /// How long running streams may finish afterwards.
    pub grace: Duration,
}

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is missing or may not be read.
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML, a key is unknown, or a value has the wrong type. The source says line and column.
    #[error("{} is not a valid edge configuration{}", path.display(), at_the_beginning(source))]
    Parse {
        path: PathBuf,
        #[source]
        source: serde_yaml::Error,
    },
    /// It can be read, but values make no sense. All of them are listed.
    #[error("{}: {}", path.display(), join(problems))]
    Problems { path: PathBuf, problems: Vec<Problem> },
}

/// The one position that the parser's own words leave out.
fn at_the_beginning(error: &serde_yaml::Error) -> &'static str {
    let first = error.location().is_some_and(|at| (at.line(), at.column()) == (1, 1));
    if first { " (line 1)" } else { "" }
}

/// One value that cannot be used.
#[derive(Debug, PartialEq)]
pub struct Problem {
    /// Where in the document, as `listen[0].address`.
    pub at: String,
    /// What is wrong and what to write instead.
    pub what: String,
}

fn join(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("{}: {}", p.at, p.what)).collect::<Vec<_>>().join("; ")
}

/// The document as written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    #[serde(default)]
    listen: Vec<FileListen>,
    #[serde(default)]
    upstreams: FileUpstreams,
    #[serde(default)]
    limits: FileLimits,
    #[serde(default)]
    timeouts: FileTimeouts,
    #[serde(default)]
    drain: FileDrain,
    #[serde(default)]
    websocket: FileWebSocket,
    #[serde(default)]
    admin: FileAdmin,
    workers: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileListen {
    address: String,
    tls: Option<FileTls>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTls {
    certificates: Vec<Certificate>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUpstreams {
    #[serde(default)]
    agents: FileUpstream,
    #[serde(default)]
    kubernetes_api: FileUpstream,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUpstream {
    #[serde(default)]
    addresses: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileLimits {
    requests_per_token_per_minute: Option<u32>,
    burst: Option<u32>,
    tracked_tokens: Option<u32>,
    connections: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTimeouts {
    handshake: Option<String>,
    head: Option<String>,
    keepalive: Option<String>,
    idle: Option<String>,
    upstream_connect: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDrain {
    pre: Option<String>,
    grace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileWebSocket {
    ping: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAdmin {
    listen: Option<String>,
}

impl Config {
    /// Reads and checks a file. Relative paths in it are relative to the file's own directory.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        let file: File = serde_yaml::from_str(&text)
            .map_err(|source| ConfigError::Parse { path: path.to_owned(), source })?;
        Self::meant(file, path.parent().unwrap_or(Path::new("")))
            .map_err(|problems| ConfigError::Problems { path: path.to_owned(), problems })
    }

    /// What a document means; `base` is the directory of relative paths.
    pub fn meant(file: File, base: &Path) -> Result<Self, Vec<Problem>> {
        let mut found = Problems(Vec::new());
        if file.listen.is_empty() {
            found.add("listen", "is empty: add at least one {address: host:port}");
        }
        let mut listen = Vec::new();
        for (index, port) in file.listen.into_iter().enumerate() {
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

        let agents = found.addresses("upstreams.agents.addresses", file.upstreams.agents.addresses);
        let kubernetes_api =
            found.addresses("upstreams.kubernetes_api.addresses", file.upstreams.kubernetes_api.addresses);
        if agents.is_empty() && found.0.iter().all(|problem| !problem.at.starts_with("upstreams.agents")) {
            found.add(
                "upstreams.agents.addresses",
                "is empty: name the agent listener of at least one broker",
            );
        }

        let per_minute = found.positive(
            "limits.requests_per_token_per_minute",
            file.limits.requests_per_token_per_minute.unwrap_or(DEFAULT_REQUESTS_PER_MINUTE),
        );
        // Without a burst of its own a token may use its minute at once, as under kas' counter per minute.
        let burst = found.positive("limits.burst", file.limits.burst.unwrap_or(per_minute.get()));
        let tracked_tokens = found
            .positive("limits.tracked_tokens", file.limits.tracked_tokens.unwrap_or(DEFAULT_TRACKED_TOKENS));
        let connections =
            found.positive("limits.connections", file.limits.connections.unwrap_or(DEFAULT_CONNECTIONS));

        let mut time = |at: &str, text: Option<String>, default| found.duration(at, text, default);
        let timeouts = Timeouts {
            handshake: time("timeouts.handshake", file.timeouts.handshake, DEFAULT_HANDSHAKE),
            head: time("timeouts.head", file.timeouts.head, DEFAULT_HEAD),
            keepalive: time("timeouts.keepalive", file.timeouts.keepalive, DEFAULT_KEEPALIVE),
            idle: time("timeouts.idle", file.timeouts.idle, DEFAULT_IDLE),
            connect: time("timeouts.upstream_connect", file.timeouts.upstream_connect, DEFAULT_CONNECT),
        };
        let drain = Drain {
            pre: time("drain.pre", file.drain.pre, Duration::ZERO),
            grace: time("drain.grace", file.drain.grace, DEFAULT_GRACE),
        };
        let ping = time("websocket.ping", file.websocket.ping, DEFAULT_PING);
        for (at, value) in [
            ("timeouts.handshake", timeouts.handshake),
            ("timeouts.head", timeouts.head),
            ("timeouts.keepalive", timeouts.keepalive),
            ("timeouts.idle", timeouts.idle),
            ("timeouts.upstream_connect", timeouts.connect),
        ] {
            if value.is_zero() {
                found.add(at, "is zero, so nothing could ever be in time");
            }
        }

        let admin = found.socket("admin.listen", file.admin.listen.as_deref().unwrap_or(DEFAULT_ADMIN));
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let workers = file.workers.unwrap_or(cores);
        if workers == 0 || workers > 1024 {
            found.add("workers", "is not between 1 and 1024; leave it out for one per core");
        }
        match (found.0.is_empty(), admin) {
            (true, Some(admin)) => Ok(Self {
                listen,
                agents,
                kubernetes_api,
                limits: Limits {
                    per_minute,
                    burst,
                    tracked_tokens: tracked_tokens.get() as usize,
                    connections: connections.get() as usize,
                },
                timeouts,
                drain,
                websocket_ping: (!ping.is_zero()).then_some(ping),
                admin,
                workers,
            }),
            _ => Err(found.0),
        }
    }
}

struct Problems(Vec<Problem>);

impl Problems {
    fn add(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.0.push(Problem { at: at.into(), what: what.into() });
    }

    fn socket(&mut self, at: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.add(at, format!("`{text}` is not an IP address and port, as 0.0.0.0:8443 or [::]:8443"));
        }
        address
    }

    fn addresses(&mut self, at: &str, written: Vec<String>) -> Vec<Address> {
        let mut meant = Vec::new();
        for (index, text) in written.into_iter().enumerate() {
            let port = text.rsplit_once(':').and_then(|(host, port)| {
                (!host.is_empty() && !host.contains('/')).then(|| port.parse::<u16>().ok()).flatten()
            });
            match port {
                Some(port) if port != 0 => meant.push(Address(text)),
                _ => {
                    self.add(format!("{at}[{index}]"), format!("`{text}` is not host:port, without a scheme"))
                }
            }
        }
        meant
    }

    fn positive(&mut self, at: &str, value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap_or_else(|| {
            self.add(at, "is zero: nobody would be served");
            NonZeroU32::MIN
        })
    }

    fn duration(&mut self, at: &str, text: Option<String>, default: Duration) -> Duration {
        let Some(text) = text else { return default };
        duration(&text).unwrap_or_else(|| {
            self.add(at, format!("`{text}` is not a duration, as 500ms, 30s, 10m or 1h"));
            default
        })
    }
}

/// A whole number and one unit: `500ms`, `30s`, `10m`, `1h`.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    // A year is more than any of these settings can mean, and keeps deadlines computable.
    let value = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        _ => return None,
    };
    (value <= Duration::from_secs(365 * 24 * 3600)).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Vec<Problem>> {
        Config::meant(serde_yaml::from_str(text).unwrap(), Path::new("/etc/postern"))
    }

    const SMALL: &str =
        "listen: [{address: '127.0.0.1:0'}]\nupstreams: {agents: {addresses: ['kas:8150']}}\n";

    #[test]
    fn a_small_file_gets_the_documented_defaults() {
        let config = parse(SMALL).unwrap();
        assert_eq!(config.limits.per_minute.get(), 40_000);
        assert_eq!(config.limits.burst.get(), 40_000);
        assert_eq!(config.websocket_ping, Some(Duration::from_secs(30)));
        assert_eq!(config.drain, Drain { pre: Duration::ZERO, grace: Duration::from_secs(60) });
        assert_eq!(config.admin, "127.0.0.1:8181".parse().unwrap());
        assert!(config.kubernetes_api.is_empty());
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let example = parse(include_str!("../edge.example.yaml")).unwrap();
        let defaults = parse(SMALL).unwrap();
        assert_eq!(example.limits, defaults.limits);
        assert_eq!(example.timeouts, defaults.timeouts);
        assert_eq!(example.drain, defaults.drain);
        assert_eq!(
            (example.websocket_ping, example.admin, example.workers),
            (defaults.websocket_ping, defaults.admin, defaults.workers)
        );
    }

    #[test]
    fn relative_certificate_paths_start_at_the_file() {
        let text = "listen: [{address: '0.0.0.0:8443', tls: {certificates: [{certificate_file: a.pem, key_file: /b.key}]}}]
upstreams: {agents: {addresses: ['kas:8150']}}";
        let pair = &parse(text).unwrap().listen[0].certificates[0];
        assert_eq!(pair.certificate_file, Path::new("/etc/postern/a.pem"));
        assert_eq!(pair.key_file, Path::new("/b.key"));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_place() {
        let text = "
listen: [{address: localhost}, {address: '127.0.0.1:1', tls: {certificates: []}}, {address: '127.0.0.1:1'}]
upstreams: {agents: {addresses: ['http://kas:8150']}}
limits: {burst: 0}
timeouts: {head: 0s}
drain: {grace: soon}
admin: {listen: nowhere}
workers: 0";
        let at: Vec<String> = parse(text).unwrap_err().into_iter().map(|problem| problem.at).collect();
        assert_eq!(
            at,
            [
                "listen[0].address",
                "listen[1].tls.certificates",
                "listen[2].address",
                "upstreams.agents.addresses[0]",
                "limits.burst",
                "drain.grace",
                "timeouts.head",
                "admin.listen",
                "workers",
            ]
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line() {
        let text = format!("{SMALL}limits:\n  request_per_minute: 5\n");
        let error = serde_yaml::from_str::<File>(&text).unwrap_err().to_string();
        assert!(error.contains("request_per_minute") && error.contains("line 4"), "{error}");
    }

    #[test]
    fn durations_are_a_number_and_a_unit() {
        for (text, millis) in [("500ms", 500), ("30s", 30_000), ("2m", 120_000), ("1h", 3_600_000)] {
            assert_eq!(duration(text), Some(Duration::from_millis(millis)));
        }
        for text in ["", "30", "s", "1 s", "-1s", "1d", "99999999999999999999s", "9999999h"] {
            assert_eq!(duration(text), None, "{text}");
        }
    }
}
