//! `edge.yaml`: [`File`] is what was written, [`Config`] what was meant.
//!
//! Read once at start and by `--check`. Every problem is reported at once. Opens no socket and reads no other file.
//! Each section of the file has a module: its keys, its defaults and why they are what they are.

pub mod life;
pub mod limits;
pub mod listen;
pub mod policies;
pub mod telemetry;
pub mod upstreams;

use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use life::{Connections, Drain, Timeouts};
pub use limits::Limits;
pub use listen::{Listen, Tls};
pub use telemetry::Telemetry;
pub use upstreams::{Address, Upstream};

const DEFAULT_ADMIN: &str = "127.0.0.1:8181";

/// Everything the edge needs to know before it starts.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Config {
    pub listen: Vec<Listen>,
    pub agents: Upstream,
    /// Empty when the edge does not serve the Kubernetes API.
    pub kubernetes_api: Upstream,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub connections: Connections,
    pub drain: Drain,
    /// Where a successor asks for the listening sockets.
    pub handover: Option<PathBuf>,
    /// Policies that override `limits`, re-read when they change.
    pub policies: Option<PathBuf>,
    /// How often the edge pings a WebSocket that says nothing. `None`: never.
    pub websocket_ping: Option<Duration>,
    pub telemetry: Telemetry,
    pub admin: SocketAddr,
    /// Threads that serve connections, each with its own runtime and upstream connections.
    pub workers: usize,
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
    listen: Vec<listen::FileListen>,
    #[serde(default)]
    upstreams: upstreams::FileUpstreams,
    #[serde(default)]
    limits: limits::FileLimits,
    #[serde(default)]
    timeouts: life::FileTimeouts,
    #[serde(default)]
    connections: life::FileConnections,
    #[serde(default)]
    drain: life::FileDrain,
    #[serde(default)]
    handover: life::FileHandover,
    #[serde(default)]
    policies: policies::FilePolicies,
    #[serde(default)]
    websocket: life::FileWebSocket,
    #[serde(default)]
    telemetry: telemetry::FileTelemetry,
    #[serde(default)]
    admin: FileAdmin,
    workers: Option<usize>,
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
        let listen = listen::meant(file.listen, base, &mut found);
        let (agents, kubernetes_api) = file.upstreams.meant(base, &mut found);
        let limits = file.limits.meant(base, &mut found);
        let timeouts = file.timeouts.meant(&mut found);
        let connections = file.connections.meant(&mut found);
        let drain = file.drain.meant(&mut found);
        let handover = file.handover.meant(base, &mut found);
        let policies = file.policies.meant(base);
        let websocket_ping = file.websocket.meant(&mut found);
        let telemetry = file.telemetry.meant(base, &mut found);
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
                limits,
                timeouts,
                connections,
                drain,
                handover,
                policies,
                websocket_ping,
                telemetry,
                admin,
                workers,
            }),
            _ => Err(found.0),
        }
    }
}

/// What was found wrong so far.
pub(crate) struct Problems(Vec<Problem>);

impl Problems {
    pub(crate) fn add(&mut self, at: impl Into<String>, what: impl Into<String>) {
        self.0.push(Problem { at: at.into(), what: what.into() });
    }

    /// Whether anything is wrong below this place.
    pub(crate) fn any_at(&self, at: &str) -> bool {
        self.0.iter().any(|problem| problem.at.starts_with(at))
    }

    pub(crate) fn socket(&mut self, at: &str, text: &str) -> Option<SocketAddr> {
        let address = text.parse().ok();
        if address.is_none() {
            self.add(at, format!("`{text}` is not an IP address and port, as 0.0.0.0:8443 or [::]:8443"));
        }
        address
    }

    /// Whether it is `host:port`. What else it may be is not shown: a URL can have a password in it.
    pub(crate) fn host_and_port(&mut self, at: impl Into<String>, text: &str, example: &str) -> bool {
        let port =
            text.rsplit_once(':').and_then(|(host, port)| (!host.is_empty()).then(|| port.parse().ok())?);
        let good = port.is_some_and(|port: u16| port > 0) && !text.contains(['/', '@']);
        if !good {
            self.add(at, format!("is not `host:port`, as {example}; a URL is not wanted here"));
        }
        good
    }

    pub(crate) fn positive(&mut self, at: &str, value: u32) -> NonZeroU32 {
        NonZeroU32::new(value).unwrap_or_else(|| {
            self.add(at, "is zero: nobody would be served");
            NonZeroU32::MIN
        })
    }

    pub(crate) fn duration(&mut self, at: &str, text: Option<String>, default: Duration) -> Duration {
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
mod shipped;
#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, Vec<Problem>> {
        Config::meant(serde_yaml::from_str(text).unwrap(), Path::new("/etc/postern"))
    }

    const SMALL: &str =
        "listen: [{address: '127.0.0.1:0'}]\nupstreams: {agents: {addresses: ['kas:8150']}}\n";

    #[test]
    fn a_host_and_port_is_neither_a_url_nor_shown_when_it_is_none() {
        let mut found = Problems(Vec::new());
        for good in ["kas:8150", "10.0.0.1:1", "[::1]:65535"] {
            assert!(found.host_and_port("here", good, "kas:8150"), "{good}");
        }
        for bad in ["", "kas", ":8150", "kas:0", "kas:65536", "grpc://kas:8150", "user:secret@kas:8150"] {
            assert!(!found.host_and_port("here", bad, "kas:8150"), "{bad}");
        }
        assert!(found.0.iter().all(|problem| !problem.what.contains("secret")));
    }

    #[test]
    fn a_small_file_gets_the_documented_defaults() {
        let config = parse(SMALL).unwrap();
        let rate = config.limits.per_token.rate.unwrap();
        assert_eq!((rate.per_minute.get(), rate.burst.get()), (40_000, 40_000));
        assert_eq!((config.limits.per_ip.rate, config.limits.per_agent.rate), (None, None));
        assert_eq!((config.limits.header_bytes, config.limits.body_bytes), (64 * 1024, 0));
        assert_eq!(config.websocket_ping, Some(Duration::from_secs(30)));
        assert_eq!(
            config.drain,
            Drain { pre: Duration::ZERO, grace: Duration::from_secs(60), connections_per_second: 500 }
        );
        let hour = Duration::from_secs(3600);
        assert_eq!(
            config.connections,
            Connections { max_age: Some(2 * hour), jitter_percent: 10, grace: hour }
        );
        assert_eq!((&config.handover, &config.policies), (&None, &None));
        assert_eq!(config.admin, "127.0.0.1:8181".parse().unwrap());
        assert!(config.kubernetes_api.is_empty());
        assert_eq!(config.agents, Upstream { source: config.agents.source.clone(), ..Upstream::default() });
    }

    #[test]
    fn the_example_shows_the_defaults() {
        let example = parse(include_str!("../edge.example.yaml")).unwrap();
        let defaults = parse(SMALL).unwrap();
        assert_eq!(example.limits, defaults.limits);
        assert_eq!(example.timeouts, defaults.timeouts);
        assert_eq!(example.drain, defaults.drain);
        assert_eq!(example.connections, defaults.connections);
        assert_eq!((example.handover, example.policies), (defaults.handover, defaults.policies));
        for upstream in [example.agents, example.kubernetes_api] {
            assert!(!upstream.is_empty());
            assert_eq!(Upstream { source: upstream.source.clone(), ..Upstream::default() }, upstream);
        }
        assert_eq!(
            (example.websocket_ping, example.admin, example.workers),
            (defaults.websocket_ping, defaults.admin, defaults.workers)
        );
    }

    #[test]
    fn relative_certificate_paths_start_at_the_file() {
        let text = "listen: [{address: '0.0.0.0:8443', tls: {certificates: [{certificate_file: a.pem, key_file: /b.key}]}}]
upstreams: {agents: {addresses: ['kas:8150']}}";
        let listen = parse(text).unwrap().listen;
        let pair = &listen[0].tls.as_ref().unwrap().certificates[0];
        assert_eq!(pair.certificate_file, Path::new("/etc/postern/a.pem"));
        assert_eq!(pair.key_file, Path::new("/b.key"));
    }

    #[test]
    fn every_problem_is_reported_at_once_with_its_place() {
        let text = "
listen: [{address: localhost}, {address: '127.0.0.1:1', tls: {certificates: []}}, {address: '127.0.0.1:1'}]
upstreams: {agents: {addresses: ['http://kas:8150']}}
limits: {burst: 0, header_bytes: 1, connections_per_ip_burst: 0, flood_wait: soon, per_ip: {burst: 0, scope: fleet}, redis: {address: 'redis://u:p@r:1', tls: {key_file: k}}}
timeouts: {head: 0s}
connections: {max_age: 2d, max_age_jitter_percent: 101}
drain: {grace: soon}
handover: {socket: /xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx}
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
                "limits.per_ip.burst",
                "limits.per_ip.scope",
                "limits.connections_per_ip_burst",
                "limits.flood_wait",
                "limits.header_bytes",
                "limits.redis.address",
                "limits.redis.tls",
                "timeouts.head",
                "connections.max_age",
                "connections.max_age_jitter_percent",
                "drain.grace",
                "handover.socket",
                "admin.listen",
                "workers",
            ]
        );
    }

    #[test]
    fn a_head_may_be_as_large_as_brokers_take() {
        for (bytes, fits) in
            [(4_095, false), (4_096, true), (262_144, true), (262_145, false), (1_048_576, false)]
        {
            let parsed = parse(&format!("{SMALL}limits: {{header_bytes: {bytes}}}"));
            assert_eq!(parsed.is_ok(), fits, "{bytes}");
        }
    }

    #[test]
    fn connections_of_an_address_are_limited_only_where_that_is_said_and_wait_for_floods_unless_told_otherwise()
     {
        let rate = |text: &str| {
            let limits = parse(&format!("{SMALL}limits: {{{text}}}")).unwrap().limits;
            let rate = limits.connection_rate_per_ip.map(|rate| (rate.per_minute.get(), rate.burst.get()));
            (rate, limits.flood_wait.as_millis())
        };
        for (text, expected) in [
            ("", (None, 250)),
            ("connections_per_ip_burst: 5, flood_wait: 0s", (None, 0)),
            ("connections_per_ip_per_minute: 60, flood_wait: 1s", (Some((60, 60)), 1000)),
            ("connections_per_ip_per_minute: 60, connections_per_ip_burst: 5", (Some((60, 5)), 250)),
        ] {
            assert_eq!(rate(text), expected, "{text}");
        }
    }

    #[test]
    fn a_limit_of_the_fleet_names_its_redis() {
        use postern_redis::Servers;
        let limits = |redis: &str| {
            parse(&format!("{SMALL}limits: {{per_token: {{scope: fleet}}, redis_lost: deny{redis}}}"))
                .map(|config| config.limits)
                .map_err(|problems| problems.into_iter().map(|problem| problem.at).collect::<Vec<_>>())
        };
        let servers = |redis: &str| limits(redis).unwrap().redis.unwrap().servers;
        assert_eq!(servers(", redis: {address: 'r:6379'}"), Servers::Tcp("r:6379".to_owned()));
        assert_eq!(servers(", redis: {address: 'unix:r.sock'}"), Servers::Unix("/etc/postern/r.sock".into()));
        let cluster = Servers::Cluster(vec!["a:1".to_owned()]);
        assert_eq!(servers(", redis: {cluster: {addresses: ['a:1']}}"), cluster);
        let sentinel =
            ", redis: {sentinel: {master_name: m, addresses: ['a:1'], password_file: s}, password_file: p}";
        let redis = limits(sentinel).unwrap().redis.unwrap();
        assert_eq!(redis.password_file.as_deref(), Some(Path::new("/etc/postern/p")));
        assert!(
            matches!(redis.servers, Servers::Sentinel { password_file: Some(file), .. } if file == Path::new("/etc/postern/s"))
        );
        for (redis, at) in [
            ("", "limits.per_token.scope"),
            (", redis: {}", "limits.redis"),
            (", redis: {address: 'r:1', cluster: {addresses: ['a:1']}}", "limits.redis"),
            (", redis: {cluster: {addresses: []}}", "limits.redis.cluster.addresses"),
            (", redis: {cluster: {addresses: ['a']}}", "limits.redis.cluster.addresses[0]"),
            (", redis: {cluster: {addresses: ['a:1']}, database: 1}", "limits.redis.database"),
        ] {
            assert_eq!(limits(redis), Err(vec![at.to_owned()]), "{redis}");
        }
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
