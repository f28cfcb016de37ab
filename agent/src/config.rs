//! Command line and environment as typed -> [`Config`] as meant, every problem reported at once. Reads the token file
//! to see that there is one; everything else is read by those who need it.

mod flags;
#[cfg(test)]
mod tests;

pub use flags::{CheckFlags, Command, CommandLine, Flags, version};

use crate::{
    COMMIT, PROGRAM,
    broker::{address::Address, proxy::Proxies, token::TokenSource},
    error, kubernetes_api, observability,
    observability::Listen,
    spans,
};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use postern_certs::CertFiles;
use postern_wire::{proto::gitlab::agent::modshared::AgentMeta, token::AgentToken};
use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};
use tracing::warn;

/// Everything the agent is told at start.
pub struct Config {
    /// Where the broker is and how it is spoken to.
    pub broker: Broker,
    /// Which cluster is served.
    pub kubernetes: kubernetes_api::Settings,
    /// Where probes and metrics are.
    pub observability: observability::Settings,
    /// Which pod this is.
    pub pod: Pod,
    /// Where spans go; absent: nothing is traced.
    pub tracing: Option<postern_telemetry::Settings>,
}

/// How to reach the broker.
pub struct Broker {
    /// `--kas-address`.
    pub address: Address,
    /// `--token-file` or `AGENTK_TOKEN`.
    pub token: TokenSource,
    /// `--ca-cert-file`.
    pub ca_cert_file: Option<PathBuf>,
    /// `--kas-header`.
    pub headers: HeaderMap,
    /// `--kas-tls-server-name`.
    pub tls_server_name: Option<String>,
    /// `--kas-insecure-skip-tls-verify`.
    pub insecure_skip_tls_verify: bool,
    /// From the environment.
    pub proxies: Proxies,
}

/// The pod's name, as the broker shows it.
#[derive(Clone, Debug, Default)]
pub struct Pod {
    /// `POD_NAMESPACE`.
    pub namespace: String,
    /// `POD_NAME`.
    pub name: String,
}

impl Pod {
    /// How this replica introduces itself in messages.
    pub fn meta(&self) -> AgentMeta {
        AgentMeta {
            version: PROGRAM.version.to_owned(),
            commit_id: COMMIT.to_owned(),
            pod_namespace: self.namespace.clone(),
            pod_name: self.name.clone(),
            kubernetes_version: None,
        }
    }
}

/// Everything that is wrong with the command line, in the order of the flags.
#[derive(Debug, Default)]
pub struct Problems(Vec<String>);

impl Problems {
    fn add(&mut self, flag: &str, what: impl fmt::Display) {
        self.0.push(format!("{flag}: {what}"));
    }

    /// Keeps a value, or notes why there is none.
    fn check<T, E: fmt::Display>(&mut self, flag: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.add(flag, error)).ok()
    }
}

/// One line.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Problems {}

impl Config {
    /// Turns flags into a configuration. `env` is the environment.
    pub fn from_flags(flags: Flags, env: impl Fn(&str) -> Option<String>) -> Result<Self, Problems> {
        let mut problems = Problems::default();
        let proxies = Proxies::from_env(&env);
        let address = match &flags.kas_address {
            Some(given) => Address::parse(given).map_err(|error| error::chain(&error)),
            None => Err("is required, for example --kas-address=wss://kas.example.com/".to_owned()),
        };
        let address = problems.check("--kas-address", address);
        let token = problems.check("--token-file", token(flags.token_file, env("AGENTK_TOKEN")));
        let headers = headers(&flags.kas_header, &mut problems);
        let listen = problems.check(
            "--observability-listen-address",
            listen(&flags.observability_listen_network, &flags.observability_listen_address),
        );
        let tls = match (flags.observability_cert_file, flags.observability_key_file) {
            (Some(certificate), Some(key)) => Some(CertFiles { certificate, key }),
            (None, None) => None,
            _ => {
                problems.add("--observability-cert-file", "goes together with --observability-key-file");
                None
            }
        };
        let kubernetes = flags.kubernetes.settings(&env, proxies.clone(), &mut problems);
        let pod =
            Pod { namespace: pod_variable(&env, "POD_NAMESPACE"), name: pod_variable(&env, "POD_NAME") };
        let tracing =
            spans::settings(&env).map_err(|problem| problems.add("environment", problem)).ok().flatten();
        match (address, token, listen) {
            (Some(address), Some(token), Some(listen)) if problems.0.is_empty() => Ok(Self {
                broker: Broker {
                    address,
                    token,
                    ca_cert_file: flags.ca_cert_file,
                    headers,
                    tls_server_name: flags.kas_tls_server_name,
                    insecure_skip_tls_verify: flags.kas_insecure_skip_tls_verify,
                    proxies,
                },
                kubernetes,
                observability: observability::Settings { listen, tls },
                pod,
                tracing,
            }),
            _ => Err(problems),
        }
    }
}

fn pod_variable(env: &impl Fn(&str) -> Option<String>, name: &str) -> String {
    env(name).filter(|value| !value.is_empty()).unwrap_or_else(|| {
        warn!("{name} is not set; the broker will not show which pod this is");
        String::new()
    })
}

fn token(file: Option<PathBuf>, variable: Option<String>) -> Result<TokenSource, String> {
    let source = match (file, variable) {
        (Some(_), Some(_)) => return Err("and AGENTK_TOKEN exclude each other".to_owned()),
        (None, None) => return Err("is required, or AGENTK_TOKEN in the environment".to_owned()),
        (Some(path), None) => TokenSource::File(path),
        (None, Some(text)) => {
            let token = AgentToken::new(text).map_err(|error| format!("AGENTK_TOKEN: {error}"))?;
            TokenSource::Environment(token)
        }
    };
    source.read().map_err(|error| error::chain(&error))?;
    Ok(source)
}

/// Headers that the agent sets itself; a second value would break the handshake or replace the token.
const OWN_HEADERS: &[HeaderName] = &[
    header::HOST,
    header::CONNECTION,
    header::UPGRADE,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::CONTENT_TYPE,
    header::TE,
];

fn headers(given: &[String], problems: &mut Problems) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for text in given {
        // Values are often secrets: a problem names the header at most.
        let Some((name, value)) = text.split_once(':') else {
            problems.add("--kas-header", "must look like \"Name: value\"");
            continue;
        };
        let name = name.trim();
        let (Ok(key), Ok(mut value)) = (HeaderName::try_from(name), HeaderValue::try_from(value.trim()))
        else {
            problems.add("--kas-header", format!("{name:?} is not a legal header or has an illegal value"));
            continue;
        };
        let own = OWN_HEADERS.contains(&key)
            || ["sec-websocket-", "grpc-"].iter().any(|p| key.as_str().starts_with(p));
        if own {
            problems.add("--kas-header", format!("{name} is set by the agent itself"));
            continue;
        }
        value.set_sensitive(true);
        headers.append(key, value);
    }
    headers
}

fn listen(network: &str, address: &str) -> Result<Listen, String> {
    let wanted: fn(&SocketAddr) -> bool = match network {
        "unix" => return Ok(Listen::Unix(address.into())),
        "tcp" => |_| true,
        "tcp4" => SocketAddr::is_ipv4,
        "tcp6" => SocketAddr::is_ipv6,
        other => return Err(format!("network {other:?} is not tcp, tcp4, tcp6 or unix")),
    };
    let found: Vec<SocketAddr> = match address.strip_prefix(':') {
        Some(port) => {
            let port = port.parse().map_err(|_| format!("{address:?} has no port"))?;
            vec![(Ipv6Addr::UNSPECIFIED, port).into(), (Ipv4Addr::UNSPECIFIED, port).into()]
        }
        None => {
            let found = address.to_socket_addrs().map_err(|error| format!("{address:?}: {error}"))?;
            found.collect()
        }
    };
    let found: Vec<SocketAddr> = found.into_iter().filter(wanted).collect();
    if found.is_empty() {
        Err(format!("{address:?} is not a {network} address"))
    } else {
        Ok(Listen::Tcp(found))
    }
}

/// Durations as kubectl takes them: `0`, seconds, or Go's `1m30s`. Zero is no limit.
fn duration(text: &str) -> Result<Option<Duration>, String> {
    let bad = || format!("{text:?} is not a duration such as 30s or 2m; 0 is no limit");
    if let Ok(seconds) = text.parse::<u64>() {
        return Ok((seconds > 0).then(|| Duration::from_secs(seconds)));
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(bad)?;
        let number: f64 = rest[..digits].parse().map_err(|_| bad())?;
        rest = &rest[digits..];
        let units = [("ms", 0.001), ("us", 0.000_001), ("ns", 1e-9), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, seconds) = units.into_iter().find(|(unit, _)| rest.starts_with(unit)).ok_or_else(bad)?;
        rest = &rest[unit.len()..];
        total += Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())?;
    }
    if text.is_empty() { Err(bad()) } else { Ok((!total.is_zero()).then_some(total)) }
}
