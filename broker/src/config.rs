//! The broker's config, read once at start: kas' YAML file as written -> [`Config`] as meant. All problems are
//! reported at once. It opens nothing but the file itself; `app.rs` acts on it.

mod file;
mod gitlab_side;
mod meaning;
mod private_api;

pub use private_api::{
    EnvironmentError, Network, OwnUrl, OwnUrlError, PrivateApiConfig, interface_addresses,
};

use crate::{
    agent_limit::RedisLost, events, gitaly::ManifestLimits, gitlab, kubernetes_api::Proxies, rate::Rate,
    redis,
};
use postern_certs::CertFiles;
use postern_telemetry::Endpoint;
use postern_yaml::{Problem, Problems};
use std::{
    fmt,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};
use url::Url;

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
    /// Where other brokers connect; absent: none do.
    pub private_api: Option<PrivateApiConfig>,
    /// What brokers share: who holds which agent, connections per agent token. Absent: this broker is the only one.
    pub redis: Option<redis::Config>,
    /// How brokers keep in Redis which agents they hold.
    pub redis_conn_info: ConnInfo,
    /// Where events of agents are published; absent: nowhere.
    pub events: Option<events::Config>,
    /// A directory of policy files; absent: only what this file says.
    pub policies: Option<PathBuf>,
    /// How often usage counters go to GitLab; absent: never.
    pub usage_reporting_period: Option<Duration>,
    /// How long running requests may take to finish once the broker drains.
    pub shutdown_grace: Duration,
    /// How long new connections are still accepted after readiness was turned off.
    pub listen_grace: Duration,
    /// Keys of the file that are accepted and change nothing yet, as dotted paths.
    pub not_in_force: Vec<String>,
    /// What is allowed and hardly meant.
    pub warnings: Vec<String>,
}

/// Times of entries in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    /// How long an entry is good without a refresh.
    pub ttl: Duration,
    /// How often entries are refreshed; shorter.
    pub refresh: Duration,
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
    /// Calls with one agent's token in a calendar minute, over all brokers of one Redis; without Redis, no limit.
    pub connections_per_token_per_minute: u32,
    /// What becomes of calls that Redis cannot count.
    pub redis_lost: RedisLost,
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
    /// Whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Proxies,
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
    /// Absent: nothing is traced.
    pub tracing: Option<TracingConfig>,
}

/// A collector of traces, as kas has it: OTLP over HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TracingConfig {
    /// The receiver's URL; `/v1/traces` where it has no path.
    pub endpoint: Endpoint,
    /// Shown to the collector; read at start.
    pub token_file: Option<PathBuf>,
    /// Trusted beside the system's CAs.
    pub ca_certificate_file: Option<PathBuf>,
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
    /// Every mistake in it, one a line.
    #[error("{}", lines(path, problems, *more))]
    Invalid {
        /// As given.
        path: PathBuf,
        /// In the order of the file.
        problems: Vec<Problem>,
        /// How many there are beyond those.
        more: usize,
    },
}

fn lines(path: &Path, problems: &[Problem], more: usize) -> String {
    let mut lines: Vec<_> = problems.iter().map(|problem| format!("{}:{problem}", path.display())).collect();
    if more > 0 {
        lines.push(format!("{}: and {more} more problems", path.display()));
    }
    lines.join("\n")
}

impl Config {
    /// Reads and checks the file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    /// Reads what deployments say in the environment: how other brokers reach this one. `lookup` gives a variable's value.
    ///
    /// # Errors
    /// All variables that cannot be used.
    pub fn read_environment(
        &mut self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<(), EnvironmentError> {
        match &mut self.private_api {
            Some(private_api) => private_api.read_environment(lookup),
            None => Ok(()),
        }
    }

    /// Checks the text of a file; `path` is where relative paths in it and error messages refer to.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut problems = Problems::default();
        let config = meaning::config(text, path.parent().unwrap_or(Path::new("")), &mut problems);
        match config {
            Some(config) if problems.is_empty() => Ok(config),
            _ => {
                let (problems, more) = problems.sorted();
                Err(ConfigError::Invalid { path: path.to_owned(), problems, more })
            }
        }
    }
}

#[cfg(test)]
mod shipped;
#[cfg(test)]
mod tests;
