//! `upstreams`: where the brokers are, and how to talk to them.

use super::Problems;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A record's usual time to live inside a cluster is 5 to 30 s.
const DEFAULT_DNS_EVERY: Duration = Duration::from_secs(10);
/// A broker that closes a few connections in a row has a problem of its own.
const DEFAULT_FAILURES: u32 = 5;
const DEFAULT_WINDOW: Duration = Duration::from_secs(30);
const DEFAULT_EJECTION: Duration = Duration::from_secs(10);
/// In percent: a broker may have a quarter more streams than the average.
const DEFAULT_LOAD: u32 = 125;
const DEFAULT_SLOW_START: Duration = Duration::from_secs(30);
const DEFAULT_HEALTH_PATH: &str = "/readiness";
const DEFAULT_HEALTH: Duration = Duration::from_secs(2);

/// The brokers that serve one route.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Upstream {
    pub source: Source,
    pub protocol: Protocol,
    /// For [`Protocol::is_tls`] ones.
    pub tls: Tls,
    /// What a WebSocket handshake asks for.
    pub websocket_path: String,
    /// `None`: the port that serves is probed itself.
    pub health: Option<Health>,
    pub ejection: Ejection,
    /// Streams of one broker at most, in percent of the average. `None`: whatever the hash says.
    pub load_percent: Option<NonZeroU32>,
    /// How long a broker that has just come up takes less than its share.
    pub slow_start: Duration,
    /// Open streams per broker.
    pub max_streams: Option<NonZeroU32>,
    /// Streams per broker that wait for a connection to it.
    pub max_pending: Option<NonZeroU32>,
}

/// Where the addresses come from.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// Resolved once, when the edge starts.
    Addresses(Vec<Address>),
    /// Every address of a name, resolved again and again.
    Dns { name: String, port: u16, every: Duration },
    /// The EndpointSlices of a Service, watched.
    Kubernetes { namespace: String, service: String, port: Port },
}

/// A port of an endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum Port {
    Number(u16),
    Name(String),
}

/// What is spoken to brokers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// HTTP/2, or for the Kubernetes API HTTP/1.1, in the clear.
    Clear,
    /// The same inside TLS.
    Tls,
    /// HTTP/2 inside a WebSocket.
    Ws,
    /// HTTP/2 inside a WebSocket inside TLS.
    Wss,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Whom to trust. Without it: the system's CAs.
    pub ca_file: Option<PathBuf>,
    /// Shown to brokers that ask for one; with `key_file`.
    pub certificate_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// The name in the brokers' certificates. Without it: the host as configured.
    pub server_name: Option<String>,
}

/// A broker's observability listener.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    pub port: u16,
    pub path: String,
    pub every: Duration,
    pub within: Duration,
}

/// When a broker that takes connections is spared all the same.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Ejection {
    /// In a row. `None`: never.
    pub failures: Option<NonZeroU32>,
    /// Percent of the requests of a `window`. `None`: never.
    pub share: Option<NonZeroU32>,
    pub window: Duration,
    /// The first time; each further time as much longer, up to ten times.
    pub base: Duration,
}

/// `host:port`, resolved when the edge starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Address(String);

impl Address {
    pub fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or(self.0.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for Upstream {
    fn default() -> Self {
        Self {
            source: Source::Addresses(Vec::new()),
            protocol: Protocol::Clear,
            tls: Tls::default(),
            websocket_path: "/".to_owned(),
            health: None,
            ejection: Ejection {
                failures: NonZeroU32::new(DEFAULT_FAILURES),
                share: None,
                window: DEFAULT_WINDOW,
                base: DEFAULT_EJECTION,
            },
            load_percent: NonZeroU32::new(DEFAULT_LOAD),
            slow_start: DEFAULT_SLOW_START,
            max_streams: None,
            max_pending: None,
        }
    }
}

impl Upstream {
    /// Whether the route is not served at all.
    pub fn is_empty(&self) -> bool {
        matches!(&self.source, Source::Addresses(addresses) if addresses.is_empty())
    }
}

impl Protocol {
    pub fn is_tls(self) -> bool {
        matches!(self, Self::Tls | Self::Wss)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileUpstreams {
    #[serde(default)]
    agents: FileUpstream,
    #[serde(default)]
    kubernetes_api: FileUpstream,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileUpstream {
    addresses: Option<Vec<String>>,
    dns: Option<FileDns>,
    kubernetes: Option<FileKubernetes>,
    protocol: Option<String>,
    tls: Option<Tls>,
    websocket_path: Option<String>,
    health: Option<FileHealth>,
    #[serde(default)]
    ejection: FileEjection,
    load_factor: Option<f64>,
    slow_start: Option<String>,
    max_streams: Option<u32>,
    max_pending: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileDns {
    name: String,
    port: u16,
    every: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileKubernetes {
    namespace: String,
    service: String,
    port: Port,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileHealth {
    port: u16,
    path: Option<String>,
    every: Option<String>,
    within: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileEjection {
    failures: Option<u32>,
    share: Option<u32>,
    window: Option<String>,
    base: Option<String>,
}

/// The routes' words for the same thing.
const AGENT_PROTOCOLS: &[(&str, Protocol)] =
    &[("h2c", Protocol::Clear), ("h2s", Protocol::Tls), ("ws", Protocol::Ws), ("wss", Protocol::Wss)];
const API_PROTOCOLS: &[(&str, Protocol)] = &[("http", Protocol::Clear), ("https", Protocol::Tls)];

impl FileUpstreams {
    /// The brokers for agents, and those for the Kubernetes API.
    pub(super) fn meant(self, base: &Path, found: &mut Problems) -> (Upstream, Upstream) {
        let agents = self.agents.meant("upstreams.agents", AGENT_PROTOCOLS, base, found);
        let kubernetes_api =
            self.kubernetes_api.meant("upstreams.kubernetes_api", API_PROTOCOLS, base, found);
        if agents.is_empty() && !found.any_at("upstreams.agents") {
            found.add(
                "upstreams.agents.addresses",
                "is empty: name the agent listener of at least one broker",
            );
        }
        (agents, kubernetes_api)
    }
}

impl FileUpstream {
    fn meant(self, at: &str, protocols: &[(&str, Protocol)], base: &Path, found: &mut Problems) -> Upstream {
        let defaults = Upstream::default();
        let place = |key: &str| format!("{at}.{key}");
        let sources = [self.addresses.is_some(), self.dns.is_some(), self.kubernetes.is_some()];
        if sources.iter().filter(|there| **there).count() > 1 {
            found.add(at, "has more than one of addresses, dns and kubernetes: keep one");
        }
        let source = match (self.dns, self.kubernetes) {
            (Some(dns), _) => dns.meant(&place("dns"), found),
            (None, Some(kubernetes)) => kubernetes.meant(&place("kubernetes"), found),
            (None, None) => {
                Source::Addresses(addresses(&place("addresses"), self.addresses.unwrap_or_default(), found))
            }
        };
        let protocol = match self.protocol {
            None => Protocol::Clear,
            Some(text) => protocols.iter().find(|(name, _)| *name == text).map_or_else(
                || {
                    let names: Vec<_> = protocols.iter().map(|(name, _)| *name).collect();
                    found.add(place("protocol"), format!("`{text}` is not one of {}", names.join(", ")));
                    Protocol::Clear
                },
                |(_, protocol)| *protocol,
            ),
        };
        if self.tls.is_some() && !protocol.is_tls() {
            let named = protocols.iter().filter(|(_, known)| known.is_tls()).map(|(name, _)| *name);
            let named: Vec<_> = named.collect();
            found.add(place("tls"), format!("means nothing without protocol: {}", named.join(" or ")));
        }
        if self.websocket_path.is_some() && !matches!(protocol, Protocol::Ws | Protocol::Wss) {
            let known = protocols.iter().any(|(_, known)| *known == Protocol::Ws);
            let what = if known { "means nothing without protocol: ws or wss" } else { "means nothing here" };
            found.add(place("websocket_path"), what);
        }
        // HTTP/1.1 has a connection for each request.
        if self.max_pending.is_some() && protocols == API_PROTOCOLS {
            found.add(place("max_pending"), "means nothing here: max_streams counts those that wait, too");
        }
        let websocket_path = self.websocket_path.unwrap_or(defaults.websocket_path);
        if !websocket_path.starts_with('/') {
            found.add(place("websocket_path"), format!("`{websocket_path}` does not begin with /"));
        }
        let load_percent = match self.load_factor {
            None => defaults.load_percent,
            Some(0.0) => None,
            // 100 times the average is nobody's limit.
            Some(factor) if (1.0..=100.0).contains(&factor) => {
                NonZeroU32::new((factor * 100.0).round() as u32)
            }
            Some(_) => {
                found.add(place("load_factor"), "is neither between 1 and 100 nor 0, which turns it off");
                None
            }
        };
        Upstream {
            source,
            protocol,
            tls: self.tls.unwrap_or_default().meant(&place("tls"), base, found),
            websocket_path,
            health: self.health.map(|health| health.meant(&place("health"), found)),
            ejection: self.ejection.meant(&place("ejection"), &defaults.ejection, found),
            load_percent,
            slow_start: found.duration(&place("slow_start"), self.slow_start, defaults.slow_start),
            max_streams: self.max_streams.and_then(NonZeroU32::new),
            max_pending: self.max_pending.and_then(NonZeroU32::new),
        }
    }
}

impl FileDns {
    fn meant(self, at: &str, found: &mut Problems) -> Source {
        let every = found.duration(&format!("{at}.every"), self.every, DEFAULT_DNS_EVERY);
        if every < Duration::from_secs(1) {
            found.add(format!("{at}.every"), "is less than a second");
        }
        if self.name.is_empty() || self.name.contains(['/', ':']) {
            found.add(format!("{at}.name"), format!("`{}` is not a host name", self.name));
        }
        if self.port == 0 {
            found.add(format!("{at}.port"), "is zero");
        }
        Source::Dns { name: self.name, port: self.port, every }
    }
}

impl FileKubernetes {
    fn meant(self, at: &str, found: &mut Problems) -> Source {
        for (key, value) in [("namespace", &self.namespace), ("service", &self.service)] {
            let label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            if value.is_empty() || !value.chars().all(label) {
                found.add(format!("{at}.{key}"), format!("`{value}` is not the name of a {key}"));
            }
        }
        if self.port == Port::Number(0) {
            found.add(format!("{at}.port"), "is zero");
        }
        Source::Kubernetes { namespace: self.namespace, service: self.service, port: self.port }
    }
}

impl Tls {
    fn meant(mut self, at: &str, base: &Path, found: &mut Problems) -> Self {
        for file in [&mut self.ca_file, &mut self.certificate_file, &mut self.key_file] {
            *file = file.take().map(|file| base.join(file));
        }
        if self.certificate_file.is_some() != self.key_file.is_some() {
            found.add(at, "has only one of certificate_file and key_file: give both");
        }
        if self
            .server_name
            .as_ref()
            .is_some_and(|name| name.is_empty() || name.contains(['/', ':', '@', ' ']))
        {
            found.add(format!("{at}.server_name"), "is not a host name");
        }
        self
    }
}

impl FileHealth {
    fn meant(self, at: &str, found: &mut Problems) -> Health {
        let path = self.path.unwrap_or_else(|| DEFAULT_HEALTH_PATH.to_owned());
        let visible = path.bytes().all(|byte| byte.is_ascii_graphic());
        if !path.starts_with('/') || !visible {
            found.add(format!("{at}.path"), "does not begin with /, or is not plain ASCII");
        }
        if self.port == 0 {
            found.add(format!("{at}.port"), "is zero");
        }
        let mut time = |key: &str, text| {
            let at = format!("{at}.{key}");
            let time = found.duration(&at, text, DEFAULT_HEALTH);
            if time < Duration::from_millis(100) {
                found.add(at, "is less than 100ms");
            }
            time
        };
        Health {
            port: self.port,
            path,
            every: time("every", self.every),
            within: time("within", self.within),
        }
    }
}

impl FileEjection {
    fn meant(self, at: &str, defaults: &Ejection, found: &mut Problems) -> Ejection {
        if self.share.is_some_and(|share| share > 100) {
            found.add(format!("{at}.share"), "is more than 100 percent");
        }
        let mut time = |key: &str, text, default| {
            let at = format!("{at}.{key}");
            let time = found.duration(&at, text, default);
            if time.is_zero() {
                found.add(at, "is zero; failures: 0 turns ejection off");
            }
            time
        };
        Ejection {
            failures: self.failures.map_or(defaults.failures, NonZeroU32::new),
            share: self.share.map_or(defaults.share, NonZeroU32::new),
            window: time("window", self.window, defaults.window),
            base: time("base", self.base, defaults.base),
        }
    }
}

fn addresses(at: &str, written: Vec<String>, found: &mut Problems) -> Vec<Address> {
    let mut meant = Vec::new();
    for (index, text) in written.into_iter().enumerate() {
        if found.host_and_port(format!("{at}[{index}]"), &text, "kas.example.com:8150") {
            meant.push(Address(text));
        }
    }
    meant
}

#[cfg(test)]
mod tests;
