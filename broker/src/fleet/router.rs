//! Finds a tunnel for a request, wherever in the fleet the agent is connected: this process first, then the brokers
//! that the directory names, over their private APIs. Before it: an admitted request (`kubernetes_api`). After it: the
//! tunnel, here or one hop away. It opens no request itself, and a request makes one hop at most.

mod race;

use crate::{
    fleet::{
        PeerUrl,
        directory::{Directory, LastSeen},
        peers::Peers,
        remote::RemoteTunnel,
    },
    tunnel::{
        registry::{FindError, Registry},
        stream::{Lease, RequestHalf, ResponseHalf, TunnelError},
    },
};
use futures::FutureExt;
use postern_wire::{ids::AgentId, proto::gitlab::agent::prototool::Values};
use race::{Lost, Race, Won};
use std::{
    collections::HashMap,
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::time::{Instant, timeout};

/// An agent that is here opens more tunnels within milliseconds of its last idle one being taken; nobody else is asked
/// before it had that long.
const HERE_FIRST: Duration = Duration::from_millis(50);
/// After a start every agent is reconnecting, even those of which nothing is known.
const START_GRACE: Duration = Duration::from_secs(3);
/// For one command to Redis, a dial and an answer.
const HOP: Duration = Duration::from_secs(2);
/// For words about an agent that is gone: the request has waited long enough.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Finds tunnels. Clones find the same.
#[derive(Clone, Debug)]
pub struct Router {
    /// Tunnels of this process.
    pub registry: Arc<Registry>,
    /// The other brokers; absent: there are none.
    pub fleet: Option<Fleet>,
}

/// How other brokers are found and reached.
#[derive(Clone, Debug)]
pub struct Fleet {
    /// Who holds which agent.
    pub directory: Arc<Directory>,
    /// Connections to brokers.
    pub peers: Arc<Peers>,
}

/// A tunnel that carries no request yet. Dropped, it serves the next one.
#[derive(Debug)]
pub enum Tunnel {
    /// Of this process.
    Here(Lease),
    /// Of another broker.
    There(RemoteTunnel),
}

impl Tunnel {
    /// Whether the agent understands upgraded connections (15.1 and later).
    pub fn carries_upgrades(&self) -> bool {
        match self {
            Self::Here(tunnel) => tunnel.carries_upgrades(),
            Self::There(tunnel) => tunnel.carries_upgrades(),
        }
    }

    /// Whether the agent heeds whom a request impersonates (14.3 and later); older ones would use their own rights.
    pub fn carries_impersonation(&self) -> bool {
        match self {
            Self::Here(tunnel) => tunnel.carries_impersonation(),
            Self::There(tunnel) => tunnel.carries_impersonation(),
        }
    }

    /// The broker that holds it does not know how old the agent is.
    pub fn is_of_unknown_version(&self) -> bool {
        matches!(self, Self::There(tunnel) if tunnel.version().is_none())
    }

    /// The broker that holds it, if it is not this one.
    pub fn broker(&self) -> Option<&PeerUrl> {
        match self {
            Self::Here(_) => None,
            Self::There(tunnel) => Some(tunnel.broker()),
        }
    }

    /// Opens the request that the tunnel was found for.
    ///
    /// # Errors
    /// The tunnel, or the broker that holds it, was lost meanwhile.
    pub async fn open(
        self,
        method: &str,
        meta: HashMap<String, Values>,
    ) -> Result<(RequestHalf, ResponseHalf), TunnelError> {
        match self {
            Self::Here(tunnel) => tunnel.take().open(method, meta).await,
            // Method and metadata went with the question.
            Self::There(tunnel) => tunnel.open().await,
        }
    }
}

/// Why a request got no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum RouteError {
    /// There are no other brokers, or the request may not wait even here.
    #[error(transparent)]
    Here(#[from] FindError),
    /// No broker of the fleet has ever seen the agent, as far as the fleet remembers.
    #[error(
        "agent {agent} has not connected to any of these brokers{}; is agentk installed in the cluster, and do \
         its --kas-address and token belong here?", lately(*up)
    )]
    NeverSeen {
        /// Whom the request asked for.
        agent: AgentId,
        /// Since this broker's start.
        up: Duration,
    },
    /// It is connected nowhere, and did not come back within the wait.
    #[error(
        "agent {agent} is not connected: waited {waited:?}{last}{unreachable}; see agentk's log in the cluster"
    )]
    Gone {
        /// Whom the request asked for.
        agent: AgentId,
        /// How long the request waited.
        waited: Duration,
        /// Where it was seen last, and why it was refused.
        last: LastWords,
        /// Brokers that might have it.
        unreachable: Unreachable,
    },
    /// It is connected, and all its tunnels are in use.
    #[error("all tunnels of agent {agent} are in use; none became free within {waited:?}")]
    Busy {
        /// Whom the request asked for.
        agent: AgentId,
        /// Who holds them.
        broker: PeerUrl,
        /// How long the request waited.
        waited: Duration,
    },
}

impl RouteError {
    /// Which brokers it is about: for the log, not for callers.
    pub fn brokers(&self) -> Option<String> {
        match self {
            Self::Here(_) | Self::NeverSeen { .. } => None,
            Self::Busy { broker, .. } => Some(format!("at {broker}")),
            Self::Gone { last, unreachable, .. } => {
                let seen = last.0.iter().map(|last| &last.broker).filter(|broker| !broker.is_empty());
                let seen = seen.map(|broker| format!("last seen at {broker}"));
                let lost = unreachable.0.iter().map(|broker| format!("no way to {broker}"));
                Some(seen.chain(lost).collect::<Vec<_>>().join("; ")).filter(|text| !text.is_empty())
            }
        }
    }
}

fn lately(up: Duration) -> String {
    const YOUNG: Duration = Duration::from_secs(30);
    if up > YOUNG {
        return " in the last days".to_owned();
    }
    format!("; this one started {} s ago, so it may still be on its way", up.as_secs())
}

/// What is known of an agent that is gone, as part of a sentence.
#[derive(Debug, Default)]
pub struct LastWords(Option<LastSeen>);

impl fmt::Display for LastWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(LastSeen { at, from, refusal, .. }) = &self.0 else { return Ok(()) };
        let ago = SystemTime::now().duration_since(*at).unwrap_or_default();
        write!(f, ", last seen {:?} ago", Duration::from_secs(ago.as_secs()))?;
        if !from.is_empty() {
            write!(f, " from {from}")?;
        }
        match refusal {
            Some(why) => write!(f, ", last refused: {why}"),
            None => Ok(()),
        }
    }
}

/// Brokers that could not be asked, as part of a sentence.
#[derive(Debug, Default)]
pub struct Unreachable(Vec<PeerUrl>);

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            0 => Ok(()),
            1 => f.write_str(", and a broker that may have it cannot be reached"),
            more => write!(f, ", and {more} brokers that may have it cannot be reached"),
        }
    }
}

impl Router {
    /// A tunnel of this agent for a request with this method and metadata, now or within `wait`.
    ///
    /// # Errors
    /// Why there is none: at once where nobody has ever seen the agent, else after `wait`.
    pub async fn find(
        &self,
        agent: AgentId,
        method: &'static str,
        meta: &HashMap<String, Values>,
        wait: Duration,
    ) -> Result<Tunnel, RouteError> {
        let begin = Instant::now();
        if let Some(tunnel) = self.registry.take(agent).await {
            return Ok(Tunnel::Here(tunnel));
        }
        let Some(fleet) = &self.fleet else {
            return Ok(Tunnel::Here(self.registry.find(agent, wait).await?));
        };
        // Fused: it may end before the race does.
        let here = self.registry.wait(agent).fuse();
        tokio::pin!(here);
        if self.registry.holds(agent)
            && let Ok(found) = timeout(HERE_FIRST.min(wait), &mut here).await
        {
            match found {
                Ok(tunnel) => return Ok(Tunnel::Here(tunnel)),
                // The tunnels here are ending; the agent is on its way to another broker.
                Err(FindError::Draining) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let race = Race {
            agent,
            known_here: self.registry.presence(agent).is_some(),
            deadline: begin + wait,
            // A broker that is there must get the time to say so, however short an absent agent is waited for.
            answers: begin + wait.max(HOP),
            grace: self.registry.started() + START_GRACE.min(wait),
        };
        let search = fleet.directory.search(agent);
        let ask = |peer: PeerUrl| async move { fleet.peers.knock(&peer, agent, method, meta).await };
        match race.run(here, search, &*fleet.directory, ask).await {
            Won::Here(tunnel) => Ok(Tunnel::Here(tunnel)),
            Won::There(knock) => Ok(Tunnel::There(knock.accept())),
            Won::Nothing(lost) => Err(self.why_not(fleet, agent, begin.elapsed(), lost).await),
        }
    }

    async fn why_not(&self, fleet: &Fleet, agent: AgentId, waited: Duration, lost: Lost) -> RouteError {
        // Rounded: nobody needs nanoseconds in an error.
        let waited = Duration::from_millis(u64::try_from(waited.as_millis()).unwrap_or(u64::MAX));
        let Lost { never_seen, refused_here, busy_at, unreachable, last } = lost;
        if let Some(error) = refused_here {
            return error.into();
        }
        let here = self.registry.presence(agent);
        if let Some(presence) = here.as_ref().filter(|presence| presence.tunnels > 0) {
            return FindError::Busy { agent, busy: presence.tunnels, waited }.into();
        }
        if let Some(broker) = busy_at {
            return RouteError::Busy { agent, broker, waited };
        }
        if never_seen {
            return RouteError::NeverSeen { agent, up: self.registry.started().elapsed() };
        }
        let here = here.map(|presence| LastSeen {
            at: presence.last.0,
            from: presence.last.1,
            broker: fleet.directory.own().to_string(),
            refusal: presence.refusal,
        });
        let told = match last {
            Some(last) => Some(last),
            None => timeout(LAST_WORDS, fleet.directory.last_seen(agent)).await.ok().flatten(),
        };
        let refusal = [&told, &here].into_iter().flatten().find_map(|last| last.refusal.clone());
        // A refusal at one broker and a last sign of life at another belong together.
        let last = [here, told].into_iter().flatten().max_by_key(|last| last.at);
        let last = last.map(|last| LastSeen { refusal: last.refusal.or(refusal), ..last });
        RouteError::Gone { agent, waited, last: LastWords(last), unreachable: Unreachable(unreachable) }
    }
}

#[cfg(test)]
mod tests;
