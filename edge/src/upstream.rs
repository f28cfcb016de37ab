//! Which broker takes a request, and how the edge connects to it.
//!
//! After `limits`. Brokers come and go (`discover`), each is watched (`health`, and every request), one is chosen
//! (`choose`) and connected to (`dial`). Health is what the last connect said, a probe's or a request's, and what the
//! broker itself says when it is about to leave.

pub mod broker;
pub mod choose;
pub mod dial;
mod discover;
pub mod eject;
mod health;
mod report;
mod secure;

pub use broker::{Broker, Load};
pub use choose::Group;
pub use eject::Outcome;

use crate::config::{self, Config};
use crate::decide::Route;
use broker::Settings;
use postern_certs::CertError;
use secure::Secure;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes of one HTTP/2 stream that nobody has read yet. Times the streams of a connection this stays within the
/// connection's window, so that one reader who stops reading cannot starve the others.
pub const STREAM_WINDOW: u32 = 256 * 1024;
/// See [`STREAM_WINDOW`]. Half of it is also h2's allowance for small DATA frames.
pub const CONNECTION_WINDOW: u32 = 64 * 1024 * 1024;
/// Idle pooled connections leave before any usual server closes them, so that a request seldom meets a closed one.
const POOL_IDLE: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(2);
/// Probes without an answer, in a row, until what waits for an answer there is given up.
const SILENCE: u32 = 3;
/// A head that the broker's host has not acknowledged by then goes to another one.
const UNACKNOWLEDGED: Duration = Duration::from_secs(3);
/// A broker that takes longer is not one to send anything to.
const PROBE_WITHIN: Duration = Duration::from_secs(2);
/// A broker that says it leaves closes its listener a second later; until a probe has noticed, others are preferred.
const LEAVES_WITHIN: Duration = Duration::from_secs(5);

/// Why brokers cannot be used, at start.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The name does not exist, or the resolver does not answer.
    #[error("resolve upstream {address}")]
    Lookup {
        address: String,
        #[source]
        source: std::io::Error,
    },
    /// The name exists but has no address.
    #[error("upstream {address} resolves to nothing")]
    Nothing { address: String },
    /// A CA, certificate or key file cannot be used.
    #[error("upstreams.{route}.tls")]
    Tls {
        route: &'static str,
        #[source]
        source: CertError,
    },
}

/// All brokers, by what they serve.
#[derive(Debug)]
pub struct Upstreams {
    agents: Group,
    kubernetes_api: Group,
}

impl Upstreams {
    /// Resolves every listed address, once, and reads the files for TLS.
    pub fn resolve(config: &Config) -> Result<Self, UpstreamError> {
        let group = |route: Route, configured: &config::Upstream| {
            let secure = configured.protocol.is_tls().then(|| Secure::load(&configured.tls)).transpose();
            let secure = secure.map_err(|source| UpstreamError::Tls { route: route.name(), source })?;
            let found = discover::at_start(&configured.source)?;
            let settings = Settings::new(route, configured.clone(), config.timeouts.connect, secure);
            Ok(Group::new(settings, found))
        };
        Ok(Self {
            agents: group(Route::Agents, &config.agents)?,
            kubernetes_api: group(Route::KubernetesApi, &config.kubernetes_api)?,
        })
    }

    pub fn of(&self, route: Route) -> &Group {
        match route {
            Route::Agents => &self.agents,
            Route::KubernetesApi => &self.kubernetes_api,
        }
    }

    /// Every broker with its route, for metrics.
    pub fn all(&self) -> impl Iterator<Item = (Route, Arc<Broker>)> {
        let of = |route| move |broker: &Arc<Broker>| (route, broker.clone());
        let mut all: Vec<_> = self.agents.brokers().iter().map(of(Route::Agents)).collect();
        all.extend(self.kubernetes_api.brokers().iter().map(of(Route::KubernetesApi)));
        all.into_iter()
    }

    /// Asks every broker over and over whether it is there, follows brokers that come and go, and files that change.
    /// Never returns.
    pub async fn look_after(&self) {
        tokio::join!(self.agents.look_after(), self.kubernetes_api.look_after());
    }
}

impl Group {
    async fn look_after(&self) {
        // None waits for another.
        let mut probes = JoinSet::new();
        for broker in self.brokers().iter() {
            probes.spawn(health::watch(broker.clone()));
        }
        let (tell, mut changes) = watch::channel(Vec::new());
        let discovery = discover::follow(&self.settings.configured.source, tell);
        let fresh = async {
            if let Some(secure) = &self.settings.secure {
                secure.keep_fresh().await;
            }
            std::future::pending::<()>().await;
        };
        tokio::pin!(discovery, fresh);
        loop {
            tokio::select! {
                () = &mut discovery => return,
                () = &mut fresh => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        // A list never changes.
                        std::future::pending::<()>().await;
                    }
                    let found = changes.borrow_and_update().clone();
                    for broker in self.update(found) {
                        probes.spawn(health::watch(broker));
                    }
                }
                Some(_) = probes.join_next() => {}
            }
        }
    }
}
