//! `upstreams`: where the brokers are, and how to talk to them.

use super::Problems;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;

/// The brokers that serve one route.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Upstream {
    pub addresses: Vec<Address>,
}

/// `host:port`, resolved when the edge starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Address(String);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Upstream {
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty()
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
    #[serde(default)]
    addresses: Vec<String>,
}

impl FileUpstreams {
    /// The brokers for agents, and those for the Kubernetes API.
    pub(super) fn meant(self, base: &Path, found: &mut Problems) -> (Upstream, Upstream) {
        let agents = self.agents.meant("upstreams.agents", base, found);
        let kubernetes_api = self.kubernetes_api.meant("upstreams.kubernetes_api", base, found);
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
    fn meant(self, at: &str, _base: &Path, found: &mut Problems) -> Upstream {
        Upstream { addresses: addresses(&format!("{at}.addresses"), self.addresses, found) }
    }
}

fn addresses(at: &str, written: Vec<String>, found: &mut Problems) -> Vec<Address> {
    let mut meant = Vec::new();
    for (index, text) in written.into_iter().enumerate() {
        let port = text.rsplit_once(':').and_then(|(host, port)| {
            (!host.is_empty() && !host.contains('/')).then(|| port.parse::<u16>().ok()).flatten()
        });
        match port {
            Some(port) if port != 0 => meant.push(Address(text)),
            _ => found.add(format!("{at}[{index}]"), format!("`{text}` is not host:port, without a scheme")),
        }
    }
    meant
}
