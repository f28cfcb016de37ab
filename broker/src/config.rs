//! The broker's config, read once at start: kas' YAML file as written -> [`Config`] as meant. All problems are
//! reported at once. It opens nothing but the file itself; `app.rs` acts on it.

mod file;

use crate::{gitaly::ManifestLimits, gitlab, rate::Rate};
use file::{File, NOT_IN_FORCE, Span};
use postern_certs::CertFiles;
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use url::Url;

/// kas' defaults; the addresses are its documented ones.
const AGENTS: &str = "127.0.0.1:8150";
const OBSERVABILITY: &str = "127.0.0.1:8151";
const KUBERNETES_API: &str = "0.0.0.0:8154";
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(7200);
const POLL_PERIOD: Duration = Duration::from_secs(20);
const MAX_CONFIGURATION_FILE_SIZE: u32 = 128 * 1024;
/// As long as an agent's longest pause between two dials, so that a reconnecting agent is waited for.
const AGENT_WAIT: Duration = Duration::from_secs(20);
const LISTEN_GRACE: Duration = Duration::from_secs(0);
/// kas waits up to an hour for running API requests; Kubernetes' default patience with a pod is 30 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(25);

/// What the broker does, until it is started again.
#[derive(Debug)]
pub struct Config {
    /// Where agents connect.
    pub agents: AgentsConfig,
    /// Where callers of the Kubernetes API connect; absent: off.
    pub kubernetes_api: Option<KubernetesApiConfig>,
    /// Probes and metrics.
    pub observability: ObservabilityConfig,
    /// Who says who is who, and where repositories are.
    pub provider: Provider,
    /// Where GitLab Rails connects; absent: off.
    pub api: Option<ApiConfig>,
    /// How often usage counters go to GitLab; absent: never.
    pub usage_reporting_period: Option<Duration>,
    /// How long running requests may take to finish once the broker drains.
    pub shutdown_grace: Duration,
    /// How long new connections are still accepted after readiness was turned off.
    pub listen_grace: Duration,
    /// Keys of the file that are accepted and change nothing yet, as dotted paths.
    pub not_in_force: Vec<String>,
}

/// Who says who is who, and where repositories are: one of two, since agents of both could have the same id.
#[derive(Debug)]
pub enum Provider {
    /// A YAML file of agents and callers; repositories are local.
    Embedded {
        /// The file.
        identities_file: PathBuf,
    },
    /// GitLab Rails and Gitaly.
    GitLab(Box<GitLabConfig>),
}

/// GitLab's Rails and Gitaly, and what is asked of them how often.
#[derive(Debug)]
pub struct GitLabConfig {
    /// `http` or `https`; a path in it stays in front of the API's own.
    pub address: Url,
    /// As browsers know GitLab; requests of its pages are served (CORS).
    pub external_url: Option<Url>,
    /// Shared with Rails.
    pub authentication_secret_file: PathBuf,
    /// Trusted beside the system's roots.
    pub ca_certificate_file: Option<PathBuf>,
    /// Calls to Rails.
    pub rate: Rate,
    /// How long answers about agents, projects and jobs are good for.
    pub periods: gitlab::Periods,
    /// Calls to all Gitaly servers together.
    pub gitaly_rate: Rate,
    /// Calls to one Gitaly server.
    pub gitaly_rate_per_server: Rate,
    /// How often manifest repositories are looked at.
    pub gitops_poll_period: Duration,
    /// What one agent may ask for at a time.
    pub manifests: ManifestLimits,
}

/// The listener for GitLab Rails.
#[derive(Debug)]
pub struct ApiConfig {
    /// The socket.
    pub listen: ListenConfig,
    /// What Rails signs its JWTs with, base64.
    pub authentication_secret_file: PathBuf,
    /// Upper bound for connections.
    pub max_connection_age: Duration,
}

/// A socket to listen on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// TCP address or path of a Unix socket.
    pub address: ListenAddress,
    /// Absent: cleartext.
    pub tls: Option<CertFiles>,
}

/// TCP or Unix, as kas' `network` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// Port 0 lets the system choose; the log says which.
    Tcp(SocketAddr),
    /// Replaced if a stale socket file is there.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// The agent listener and what is served there.
#[derive(Debug)]
pub struct AgentsConfig {
    /// The socket.
    pub listen: ListenConfig,
    /// Whether `ws-tunnel` upgrades are served beside gRPC on the same port.
    pub websocket: bool,
    /// Upper bound for connections; long streams end at shares of it.
    pub max_connection_age: Duration,
    /// How often a repository is looked at even if nothing announced a change.
    pub poll_period: Duration,
    /// Larger configuration files are refused, in bytes.
    pub max_configuration_file_size: u32,
}

/// The Kubernetes API listener.
#[derive(Debug)]
pub struct KubernetesApiConfig {
    /// The socket.
    pub listen: ListenConfig,
    /// Begins and ends with a slash.
    pub url_path_prefix: String,
    /// How long a request waits for an agent that may be reconnecting.
    pub agent_wait: Duration,
}

/// Probes, metrics, log level.
#[derive(Debug)]
pub struct ObservabilityConfig {
    /// The socket.
    pub listen: ListenConfig,
    /// Path of the metrics.
    pub metrics_path: String,
    /// Path of the liveness probe.
    pub liveness_path: String,
    /// Path of the readiness probe.
    pub readiness_path: String,
    /// `debug`, `info`, `warn` or `error`.
    pub level: String,
}

/// Why the broker cannot start with this file.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file is not there or not readable.
    #[error("cannot read the configuration file {}", path.display())]
    Unreadable {
        /// As given.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// It is not YAML, or has a key that no kas knows. The message has the line.
    #[error("configuration file {}: {message}", path.display())]
    Malformed {
        /// As given.
        path: PathBuf,
        /// The parser's words, with line and column.
        message: String,
    },
    /// Every value that cannot be meant, one a line.
    #[error("configuration file {}: {}", path.display(), list(problems))]
    Invalid {
        /// As given.
        path: PathBuf,
        /// All of them.
        problems: Vec<Problem>,
    },
}

/// One value that cannot be meant.
#[derive(Debug, PartialEq, Eq)]
pub struct Problem {
    /// Dotted path of the key.
    pub path: String,
    /// What is wrong and what is wanted.
    pub message: String,
}

fn list(problems: &[Problem]) -> String {
    let lines = problems.iter().map(|problem| format!("{}: {}", problem.path, problem.message));
    lines.collect::<Vec<_>>().join("; ")
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Checks the text of a file; `path` is where relative paths in it and error messages refer to.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let malformed = |error: serde_yaml::Error| ConfigError::Malformed {
            path: path.to_owned(),
            message: crate::error::yaml(&error),
        };
        let tree: serde_yaml::Value = serde_yaml::from_str(text).map_err(malformed)?;
        let file = match tree {
            serde_yaml::Value::Null => File::default(),
            _ => serde_yaml::from_str(text).map_err(malformed)?,
        };
        let mut reader = Reader { base: path.parent().unwrap_or(Path::new("")), problems: Vec::new() };
        let config = reader.config(file, &tree);
        match config {
            Some(config) if reader.problems.is_empty() => Ok(config),
            _ => Err(ConfigError::Invalid { path: path.to_owned(), problems: reader.problems }),
        }
    }
}

fn present(tree: &serde_yaml::Value, path: &str) -> bool {
    let mut keys = path.split('.');
    keys.try_fold(tree, |node, key| node.get(key)).is_some()
}

/// Walks the file and collects problems instead of stopping at the first.
struct Reader<'a> {
    base: &'a Path,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn config(&mut self, file: File, tree: &serde_yaml::Value) -> Option<Config> {
        let not_in_force = NOT_IN_FORCE.iter().filter(|path| present(tree, path)).map(|p| (*p).to_owned());
        let not_in_force = not_in_force.collect();
        let agent = file.agent.unwrap_or_default();
        let listen = agent.listen.unwrap_or_default();
        let configuration = agent.configuration.unwrap_or_default();
        let agents = AgentsConfig {
            listen: self.listen(
                "agent.listen",
                Socket {
                    network: listen.network,
                    address: listen.address,
                    certificate: listen.certificate_file,
                    key: listen.key_file,
                },
                AGENTS,
            ),
            websocket: listen.websocket.unwrap_or(false),
            max_connection_age: self.positive(
                "agent.listen.max_connection_age",
                listen.max_connection_age,
                MAX_CONNECTION_AGE,
            ),
            poll_period: self.positive(
                "agent.configuration.poll_period",
                configuration.poll_period,
                POLL_PERIOD,
            ),
            max_configuration_file_size: configuration
                .max_configuration_file_size
                .filter(|size| *size > 0)
                .unwrap_or(MAX_CONFIGURATION_FILE_SIZE),
        };
        let mut listen_grace =
            self.span("agent.listen.listen_grace_period", listen.listen_grace_period, LISTEN_GRACE);
        let mut shutdown_grace = SHUTDOWN_GRACE;
        // A section that is there without any value (`kubernetes_api: {}` or nothing at all) turns it on, as in kas.
        let kubernetes_api = present(tree, "agent.kubernetes_api").then(|| {
            let section = agent.kubernetes_api.unwrap_or_default();
            let listen = section.listen.unwrap_or_default();
            const HERE: &str = "agent.kubernetes_api.listen";
            listen_grace = listen_grace.max(self.span(
                "agent.kubernetes_api.listen.listen_grace_period",
                listen.listen_grace_period,
                LISTEN_GRACE,
            ));
            shutdown_grace = self.span(
                "agent.kubernetes_api.listen.shutdown_grace_period",
                listen.shutdown_grace_period,
                SHUTDOWN_GRACE,
            );
            let socket = Socket {
                network: listen.network,
                address: listen.address,
                certificate: listen.certificate_file,
                key: listen.key_file,
            };
            KubernetesApiConfig {
                listen: self.listen(HERE, socket, KUBERNETES_API),
                url_path_prefix: self
                    .url_path("agent.kubernetes_api.url_path_prefix", section.url_path_prefix, "/")
                    .trim_end_matches('/')
                    .to_owned()
                    + "/",
                agent_wait: self.span("agent.kubernetes_api.agent_wait", section.agent_wait, AGENT_WAIT),
            }
        });
        let observability = self.observability(file.observability.unwrap_or_default());
        let identities_file =
            file.embedded.and_then(|embedded| embedded.identities_file).filter(|f| !f.is_empty());
        if identities_file.is_none() {
            self.problem(
                "embedded.identities_file",
                "no identities: name the YAML file of agents and callers (GitLab as identity provider is not \
                 in force yet)",
            );
        }
        Some(Config {
            agents,
            kubernetes_api,
            observability,
            provider: Provider::Embedded { identities_file: self.base.join(identities_file?) },
            api: None,
            usage_reporting_period: None,
            shutdown_grace,
            listen_grace,
            not_in_force,
        })
    }

    fn observability(&mut self, section: file::Observability) -> ObservabilityConfig {
        let listen = section.listen.unwrap_or_default();
        let socket =
            Socket { network: listen.network, address: listen.address, certificate: None, key: None };
        let path = |section: Option<file::UrlPath>| section.and_then(|section| section.url_path);
        let level = section.logging.unwrap_or_default().level.filter(|level| !level.is_empty());
        let level = level.unwrap_or_else(|| "info".to_owned());
        if !matches!(level.as_str(), "debug" | "info" | "warn" | "error") {
            self.problem("observability.logging.level", "must be debug, info, warn or error");
        }
        ObservabilityConfig {
            listen: self.listen("observability.listen", socket, OBSERVABILITY),
            metrics_path: self.url_path(
                "observability.prometheus.url_path",
                path(section.prometheus),
                "/metrics",
            ),
            liveness_path: self.url_path(
                "observability.liveness_probe.url_path",
                path(section.liveness_probe),
                "/liveness",
            ),
            readiness_path: self.url_path(
                "observability.readiness_probe.url_path",
                path(section.readiness_probe),
                "/readiness",
            ),
            level,
        }
    }

    fn problem(&mut self, path: &str, message: impl Into<String>) {
        self.problems.push(Problem { path: path.to_owned(), message: message.into() });
    }

    fn listen(&mut self, path: &str, socket: Socket, default: &str) -> ListenConfig {
        let written = socket.address.filter(|address| !address.is_empty());
        let text = written.as_deref().unwrap_or(default);
        let unspecified = || SocketAddr::from(([127, 0, 0, 1], 0));
        let address = match socket.network.as_deref().unwrap_or("tcp") {
            "unix" => ListenAddress::Unix(self.base.join(text)),
            network @ ("" | "tcp" | "tcp4" | "tcp6") => {
                let parsed = parse_address(text);
                match parsed {
                    Ok(address) if network == "tcp4" && !address.is_ipv4() => {
                        self.problem(&format!("{path}.address"), "tcp4 wants an IPv4 address");
                    }
                    Ok(address) if network == "tcp6" && !address.is_ipv6() => {
                        self.problem(&format!("{path}.address"), "tcp6 wants an IPv6 address");
                    }
                    Ok(_) => {}
                    Err(ref message) => self.problem(&format!("{path}.address"), message.clone()),
                }
                ListenAddress::Tcp(parsed.unwrap_or_else(|_| unspecified()))
            }
            other => {
                self.problem(
                    &format!("{path}.network"),
                    format!("{other:?} is not one of tcp, tcp4, tcp6, unix"),
                );
                ListenAddress::Tcp(unspecified())
            }
        };
        let filled = |file: Option<String>| file.filter(|file| !file.is_empty());
        let tls = match (filled(socket.certificate), filled(socket.key)) {
            (Some(certificate), Some(key)) => {
                Some(CertFiles { certificate: self.base.join(certificate), key: self.base.join(key) })
            }
            (None, None) => None,
            _ => {
                self.problem(path, "certificate_file and key_file belong together; one of them is missing");
                None
            }
        };
        ListenConfig { address, tls }
    }

    fn span(&mut self, path: &str, written: Option<Span>, default: Duration) -> Duration {
        match written.map(|text| parse_span(&text).ok_or(text)) {
            None => default,
            Some(Ok(span)) => span,
            Some(Err(text)) => {
                self.problem(path, format!("{text:?} is not a duration; write seconds such as 30s or 0.5s"));
                default
            }
        }
    }

    fn positive(&mut self, path: &str, written: Option<Span>, default: Duration) -> Duration {
        let span = self.span(path, written, default);
        if span.is_zero() {
            self.problem(path, "must be longer than 0s");
        }
        span
    }

    fn url_path(&mut self, path: &str, written: Option<String>, default: &str) -> String {
        let text = written.filter(|text| !text.is_empty()).unwrap_or_else(|| default.to_owned());
        if !text.starts_with('/') {
            self.problem(path, format!("{text:?} must begin with a slash"));
        }
        text
    }
}

struct Socket {
    network: Option<String>,
    address: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
}

/// `:8150` means every address, as in Go; host names are not looked up.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let spelt = match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => text.replace("localhost:", "127.0.0.1:"),
    };
    spelt.parse().map_err(|_| format!("{text:?} is not an address such as 127.0.0.1:8150 or :8150"))
}

fn parse_span(text: &str) -> Option<Duration> {
    let seconds: f64 = text.strip_suffix('s')?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(text, Path::new("/etc/kas/kas.yaml")).map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_those_of_kas() {
        let config = parse("embedded: {identities_file: ids.yaml}").unwrap();
        assert_eq!(config.agents.listen.address.to_string(), "127.0.0.1:8150");
        assert_eq!(config.observability.listen.address.to_string(), "127.0.0.1:8151");
        assert!(
            matches!(config.provider, Provider::Embedded { identities_file } if identities_file == Path::new("/etc/kas/ids.yaml"))
        );
        assert!(config.kubernetes_api.is_none());
        assert!(!config.agents.websocket);
    }

    #[test]
    fn an_empty_kubernetes_api_section_turns_it_on() {
        let with = |section: &str| {
            parse(&format!("embedded: {{identities_file: i}}\nagent:\n  kubernetes_api:{section}"))
        };
        for section in ["", " {}"] {
            let api = with(section).unwrap().kubernetes_api.unwrap();
            assert_eq!(api.listen.address.to_string(), "0.0.0.0:8154");
            assert_eq!(api.url_path_prefix, "/");
            assert_eq!(api.agent_wait, Duration::from_secs(20));
        }
        let api = with("\n    url_path_prefix: /k8s").unwrap().kubernetes_api.unwrap();
        assert_eq!(api.url_path_prefix, "/k8s/");
    }

    #[test]
    fn an_unknown_key_is_refused_with_its_line() {
        let error = parse("embedded: {identities_file: i}\nagent:\n  listen:\n    adress: x\n").unwrap_err();
        assert!(error.contains("adress") && error.contains("line 4"), "{error}");
        let error = parse("agnet: {}\n").unwrap_err();
        assert!(error.contains("agnet") && error.contains("line 1 column 1"), "{error}");
    }

    #[test]
    fn every_problem_is_reported_at_once() {
        let error = parse(
            "agent:\n  listen: {address: nowhere, certificate_file: c, max_connection_age: 0s}\n  \
             configuration: {poll_period: 5m}\nobservability: {logging: {level: loud}}\n",
        )
        .unwrap_err();
        for wanted in ["nowhere", "belong together", "longer than", "5m", "debug, info", "identities"] {
            assert!(error.contains(wanted), "{wanted} in {error}");
        }
    }

    #[test]
    fn keys_not_in_force_are_accepted_and_named() {
        let config = parse(
            "embedded: {identities_file: i}\nredis: {server: {address: x:1}, tls: {enabled: true}}\n\
             gitlab: {address: 'http://x', authentication_secret_file: f}\n\
             agent: {listen: {connections_per_token_per_minute: 5, websocket: true}}\n",
        )
        .unwrap();
        assert_eq!(config.not_in_force, ["gitlab", "redis", "agent.listen.connections_per_token_per_minute"]);
        assert!(config.agents.websocket);
    }

    #[test]
    fn durations_are_seconds_with_a_unit() {
        for (text, wanted) in [
            ("30s", Some(Duration::from_secs(30))),
            ("0.5s", Some(Duration::from_millis(500))),
            ("0s", Some(Duration::ZERO)),
            ("30", None),
            ("-1s", None),
            ("NaNs", None),
            ("1e99s", None),
        ] {
            assert_eq!(parse_span(text), wanted, "{text}");
        }
    }
}
