//! The file as written -> the config as meant: defaults, addresses, and the rules that several keys make together.
//! What concerns GitLab and Redis is in `gitlab_side.rs`. Every mistake goes to the problems; none stops the reading.

use super::{
    AgentsConfig, Config, ConnInfo, KubernetesApiConfig, ListenAddress, ListenConfig, ObservabilityConfig,
    Provider, TracingConfig,
    file::{self, File, Level, NOT_IN_FORCE, Network, ONLY_WITH_GITLAB, ONLY_WITH_REDIS},
};
use crate::{agent_limit::RedisLost, kubernetes_api::Proxies};
use postern_certs::CertFiles;
use postern_telemetry::{Endpoint, Protocol};
use postern_yaml::{Cursor, Given, Place, Positive, Problems, Read, Span, UrlPath, WordsOf};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

/// kas' defaults; the addresses are its documented ones.
const AGENTS: &str = "127.0.0.1:8150";
const OBSERVABILITY: &str = "127.0.0.1:8151";
const KUBERNETES_API: &str = "0.0.0.0:8154";
pub(super) const MAX_CONNECTION_AGE: Duration = Duration::from_secs(7200);
const POLL_PERIOD: Duration = Duration::from_secs(20);
const MAX_CONFIGURATION_FILE_SIZE: u32 = 128 * 1024;
/// Later kas' number; the 100 of 14.1 is too low for agents that open tunnels as they are needed.
const CONNECTIONS_PER_TOKEN: u32 = 40_000;
/// As long as an agent's longest pause between two dials, so that a reconnecting agent is waited for.
const AGENT_WAIT: Duration = Duration::from_secs(20);
const CONN_INFO: ConnInfo = ConnInfo { ttl: Duration::from_secs(300), refresh: Duration::from_secs(240) };
const LISTEN_GRACE: Duration = Duration::from_secs(0);
/// kas waits up to an hour for running API requests; Kubernetes' default patience with a pod is 30 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(25);

/// `None` if the text is no YAML or the provider is missing; what is returned is not to be used if there are problems.
pub(super) fn config(text: &str, base: &Path, problems: &mut Problems) -> Option<Config> {
    let tree = postern_yaml::parse(text, problems)?;
    let file = File::read(&tree, &mut Cursor::new(problems)).unwrap_or_default();
    let mut not_in_force: Vec<&str> = NOT_IN_FORCE.to_vec();
    if file.gitlab.is_none() {
        not_in_force.extend(ONLY_WITH_GITLAB);
    }
    if file.redis.is_none() {
        not_in_force.extend(ONLY_WITH_REDIS);
    }
    not_in_force.retain(|path| tree.has(path));
    let not_in_force = not_in_force.into_iter().map(str::to_owned).collect();
    Reader { base, problems }.config(&file, not_in_force)
}

/// Knows where relative paths begin and takes the problems.
pub(super) struct Reader<'a> {
    pub(super) base: &'a Path,
    pub(super) problems: &'a mut Problems,
}

/// The keys that all listeners have.
pub(super) struct Socket<'a> {
    pub(super) network: &'a Option<Given<WordsOf<Network>>>,
    pub(super) address: &'a Option<Given<String>>,
    pub(super) certificate: &'a Option<Given<String>>,
    pub(super) key: &'a Option<Given<String>>,
}

/// Any section with the keys of a [`Socket`].
macro_rules! socket {
    ($listen:expr) => {
        Socket {
            network: &$listen.network,
            address: &$listen.address,
            certificate: &$listen.certificate_file,
            key: &$listen.key_file,
        }
    };
}
pub(super) use socket;

pub(super) fn span(given: &Option<Given<Span>>, default: Duration) -> Duration {
    given.as_ref().map_or(default, |given| given.value.0)
}

pub(super) fn positive(given: &Option<Given<Positive>>, default: Duration) -> Duration {
    given.as_ref().map_or(default, |given| given.value.0)
}

/// Zero stands for the default, as a number that was not written does in protobuf.
pub(super) fn number(given: &Option<Given<u32>>, default: u32) -> u32 {
    given.as_ref().map(|given| given.value).filter(|number| *number > 0).unwrap_or(default)
}

pub(super) fn text(given: &Option<Given<String>>) -> Option<&str> {
    given.as_ref().map(|given| given.value.as_str())
}

fn url_path(given: &Option<Given<UrlPath>>, default: &str) -> String {
    given.as_ref().map_or(default, |given| &given.value.0).to_owned()
}

impl Reader<'_> {
    fn config(&mut self, file: &File, not_in_force: Vec<String>) -> Option<Config> {
        let agent = Given::or_empty(&file.agent);
        let listen = Given::or_empty(&agent.listen);
        let configuration = Given::or_empty(&agent.configuration);
        let agents = AgentsConfig {
            listen: self.listen(socket!(listen), AGENTS),
            websocket: listen.websocket.as_ref().is_some_and(|given| given.value),
            max_connection_age: positive(&listen.max_connection_age, MAX_CONNECTION_AGE),
            poll_period: positive(&configuration.poll_period, POLL_PERIOD),
            max_configuration_file_size: number(
                &configuration.max_configuration_file_size,
                MAX_CONFIGURATION_FILE_SIZE,
            ),
            connections_per_token_per_minute: number(
                &listen.connections_per_token_per_minute,
                CONNECTIONS_PER_TOKEN,
            ),
            redis_lost: match listen.redis_lost.as_ref().map(|given| given.value.0) {
                None | Some(file::RedisLost::Local) => RedisLost::Local,
                Some(file::RedisLost::Deny) => RedisLost::Deny,
                Some(file::RedisLost::Allow) => RedisLost::Allow,
            },
        };
        let mut listen_grace = span(&listen.listen_grace_period, LISTEN_GRACE);
        let mut shutdown_grace = SHUTDOWN_GRACE;
        // A section without any value (`kubernetes_api: {}`) turns it on; without even the braces it is not there, as in kas.
        let kubernetes_api = agent.kubernetes_api.as_ref().map(|section| {
            let section = &section.value;
            let listen = Given::or_empty(&section.listen);
            listen_grace = listen_grace.max(span(&listen.listen_grace_period, LISTEN_GRACE));
            shutdown_grace = span(&listen.shutdown_grace_period, SHUTDOWN_GRACE);
            KubernetesApiConfig {
                listen: self.listen(socket!(listen), KUBERNETES_API),
                url_path_prefix: url_path(&section.url_path_prefix, "/").trim_end_matches('/').to_owned()
                    + "/",
                agent_wait: span(&section.agent_wait, AGENT_WAIT),
                trusted_proxies: self.proxies(section.trusted_proxies.as_ref()),
            }
        });
        let observability = self.observability(Given::or_empty(&file.observability));
        let api = self.api(file, &mut listen_grace);
        let private_api = self.private_api(file, &mut listen_grace);
        let redis = file.redis.as_ref().and_then(|section| self.redis(&section.value, &section.place));
        let events = self.events(file);
        let policies = self.policies(file);
        let usage_reporting_period = self.usage_reporting_period(file);
        let provider = self.provider(file);
        let redis_conn_info = self.redis_conn_info(agent);
        let alone = match (&file.redis, &file.private_api) {
            (Some(_), None) => Some("redis is there and private_api is not"),
            (None, Some(_)) => Some("private_api is there and redis is not"),
            _ => None,
        };
        let alone = alone.map(|what| {
            format!(
                "{what}: requests cannot be routed between brokers, each reaches only the agents that are connected to \
                 itself"
            )
        });
        Some(Config {
            agents,
            kubernetes_api,
            observability,
            provider: provider?,
            api,
            private_api,
            redis,
            redis_conn_info,
            events,
            policies,
            usage_reporting_period,
            shutdown_grace,
            listen_grace,
            not_in_force,
            warnings: alone.into_iter().collect(),
        })
    }

    fn proxies(&mut self, given: Option<&Given<Vec<String>>>) -> Proxies {
        let Some(given) = given else { return Proxies::default() };
        Proxies::parse(&given.value).unwrap_or_else(|error| {
            let wanted = "networks such as 10.0.0.0/8 and addresses are wanted";
            self.problem(&given.place, error.to_string(), wanted);
            Proxies::default()
        })
    }

    fn policies(&mut self, file: &File) -> Option<PathBuf> {
        let section = file.policies.as_ref()?;
        let wanted = "the path of a directory with policy files is wanted";
        let directory = self.required(&section.value.directory, &section.place, "directory", wanted)?;
        Some(self.base.join(&directory.value))
    }

    /// One of two, since agents of both could have the same id.
    fn provider(&mut self, file: &File) -> Option<Provider> {
        let embedded = Given::or_empty(&file.embedded);
        let gitlab = file.gitlab.as_ref().map(|section| (section, self.gitlab(section, file)));
        match (gitlab, &embedded.identities_file) {
            (Some((_, config)), None) => config.map(|config| Provider::GitLab(Box::new(config))),
            (None, Some(identities)) => {
                Some(Provider::Embedded { identities_file: self.base.join(&identities.value) })
            }
            (Some((section, _)), Some(identities)) => {
                self.problem(
                    &identities.place,
                    format!("identities beside the gitlab section of line {}", section.place.at.line),
                    "one of the two is wanted: agents of both could have the same id",
                );
                None
            }
            (None, None) => {
                self.problem(
                    &Place::default().key("gitlab"),
                    "nothing says who agents and callers are",
                    "wanted are either gitlab.address and gitlab.authentication_secret_file (GitLab says it) or \
                     embedded.identities_file (a YAML file says it)",
                );
                None
            }
        }
    }

    fn observability(&mut self, section: &file::Observability) -> ObservabilityConfig {
        let listen = Given::or_empty(&section.listen);
        let socket =
            Socket { network: &listen.network, address: &listen.address, certificate: &None, key: &None };
        let level = Given::or_empty(&section.logging).level.as_ref().map(|given| given.value.0);
        let level = match level {
            None | Some(Level::Info) => "info",
            Some(Level::Debug) => "debug",
            Some(Level::Warn) => "warn",
            Some(Level::Error) => "error",
        };
        let tracing =
            section.tracing.as_ref().and_then(|section| self.tracing(&section.value, &section.place));
        ObservabilityConfig {
            tracing,
            listen: self.listen(socket, OBSERVABILITY),
            metrics_path: url_path(&Given::or_empty(&section.prometheus).url_path, "/metrics"),
            liveness_path: url_path(&Given::or_empty(&section.liveness_probe).url_path, "/liveness"),
            readiness_path: url_path(&Given::or_empty(&section.readiness_probe).url_path, "/readiness"),
            level: level.to_owned(),
        }
    }

    fn tracing(&mut self, section: &file::Tracing, place: &Place) -> Option<TracingConfig> {
        let Some(endpoint) = &section.otlp_endpoint else {
            // OpenTracing of 14.1 has its own key.
            let alone =
                section.otlp_token_secret_file.is_some() || section.otlp_ca_certificate_file.is_some();
            if alone {
                self.problem(place, "no otlp_endpoint", "the URL of a collector is wanted");
            }
            return None;
        };
        match Endpoint::exactly(&endpoint.value, Protocol::Http) {
            Ok(url) => Some(TracingConfig {
                endpoint: url,
                token_file: self.file(&section.otlp_token_secret_file),
                ca_certificate_file: self.file(&section.otlp_ca_certificate_file),
            }),
            Err(error) => {
                self.problem(
                    &endpoint.place,
                    error.to_string(),
                    "a URL such as http://collector:4318 is wanted",
                );
                None
            }
        }
    }

    fn redis_conn_info(&mut self, agent: &file::Agent) -> ConnInfo {
        let (ttl, refresh) = (&agent.redis_conn_info_ttl, &agent.redis_conn_info_refresh);
        let info =
            ConnInfo { ttl: positive(ttl, CONN_INFO.ttl), refresh: positive(refresh, CONN_INFO.refresh) };
        let seconds = |span: Duration| format!("{}s", span.as_secs_f64());
        if info.refresh >= info.ttl {
            match (ttl, refresh) {
                (_, Some(refresh)) => {
                    let wanted =
                        format!("less than agent.redis_conn_info_ttl ({}) is wanted", seconds(info.ttl));
                    self.problem(&refresh.place, seconds(info.refresh), wanted);
                }
                (Some(ttl), None) => {
                    let refresh = seconds(info.refresh);
                    let wanted = format!("more than agent.redis_conn_info_refresh ({refresh}) is wanted");
                    self.problem(&ttl.place, seconds(info.ttl), wanted);
                }
                (None, None) => {}
            }
        }
        info
    }

    pub(super) fn problem(&mut self, place: &Place, found: impl Into<String>, wanted: impl Into<String>) {
        self.problems.add(place.at, place.path.clone(), found, wanted);
    }

    pub(super) fn file(&self, given: &Option<Given<String>>) -> Option<PathBuf> {
        text(given).map(|file| self.base.join(file))
    }

    pub(super) fn listen(&mut self, socket: Socket<'_>, default: &str) -> ListenConfig {
        let network = socket.network.as_ref().map_or(Network::Tcp, |given| given.value.0);
        let written = text(socket.address).unwrap_or(default);
        let address = if network == Network::Unix {
            ListenAddress::Unix(self.base.join(written))
        } else {
            ListenAddress::Tcp(self.tcp_address(network, written, socket.address.as_ref()))
        };
        ListenConfig { address, tls: self.certificate(socket.certificate, socket.key) }
    }

    fn tcp_address(&mut self, network: Network, text: &str, given: Option<&Given<String>>) -> SocketAddr {
        let parsed = parse_address(text);
        let wanted = match (network, parsed) {
            (_, None) => Some("an address such as 127.0.0.1:8150 or :8150 is wanted"),
            (Network::Tcp4, Some(address)) if !address.is_ipv4() => Some("tcp4 wants an IPv4 address"),
            (Network::Tcp6, Some(address)) if !address.is_ipv6() => Some("tcp6 wants an IPv6 address"),
            _ => None,
        };
        if let Some(wanted) = wanted {
            match given {
                Some(given) => self.problem(&given.place, format!("{text:?}"), wanted),
                // The default address is of IPv4.
                None => {
                    self.problem(&Place::default().key("network"), format!("{text:?}, the default"), wanted)
                }
            }
        }
        parsed.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)))
    }

    pub(super) fn certificate(
        &mut self,
        certificate: &Option<Given<String>>,
        key: &Option<Given<String>>,
    ) -> Option<CertFiles> {
        match (self.file(certificate), self.file(key)) {
            (Some(certificate), Some(key)) => Some(CertFiles { certificate, key }),
            (None, None) => None,
            (given, _) => {
                let (one, other) =
                    if given.is_some() { (certificate, "key_file") } else { (key, "certificate_file") };
                if let Some(one) = one {
                    self.problem(
                        &one.place,
                        format!("{other} beside it is missing"),
                        "both or none are wanted",
                    );
                }
                None
            }
        }
    }
}

/// `:8150` means every address, as in Go; host names are not looked up.
fn parse_address(text: &str) -> Option<SocketAddr> {
    let spelt = match text.strip_prefix(':') {
        Some(port) => format!("[::]:{port}"),
        None => text.replace("localhost:", "127.0.0.1:"),
    };
    spelt.parse().ok()
}
