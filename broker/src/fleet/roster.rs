//! Who is connected to the fleet. Each broker knows its own agents, in memory ([`crate::agent_tracker`]); one that is
//! asked asks the others, all at once, and makes one list of what they say. Before it: what GitLab Rails and operators
//! ask ([`crate::api`]). After it: the other brokers' private API. Nothing of this is in Redis, and nobody is asked
//! while nobody asks.

mod merge;
mod rpc;

pub use super::directory::LastSeen;
pub use rpc::{RosterService, ask};

use crate::{
    agent_tracker::{Connected, Tracker, Wanted},
    fleet::PeerUrl,
};
use futures::future::{BoxFuture, join_all};
use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::postern::fleet::ConnectedRequest,
};
use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};

/// Connections in one list, and in one broker's answer.
pub const LIST_MAX: usize = 10_000;
/// For each of the other brokers; GitLab Rails waits 2 s for all.
pub const PATIENCE: Duration = Duration::from_millis(700);
/// A broker writes into Redis what it remembers, somewhat later than it happened.
const LATER: Duration = Duration::from_secs(5);

/// The other brokers, as far as lists need them.
pub trait Fleet: Send + Sync {
    /// This broker, as the others know it.
    fn own(&self) -> PeerUrl;

    /// The others; those that are known to be gone are not among them.
    fn peers(&self) -> Vec<PeerUrl>;

    /// What all brokers together remember of an agent that is gone.
    fn last_seen(&self, agent: AgentId) -> BoxFuture<'_, Option<LastSeen>>;

    /// One broker's own connections: [`ask`] over a connection to it. `Unimplemented` from a broker that is no Postern.
    fn ask(&self, peer: &PeerUrl, request: ConnectedRequest) -> BoxFuture<'static, Result<Answer, Status>>;
}

/// What one broker says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answer {
    /// Its own connections, [`LIST_MAX`] at the most.
    pub connected: Vec<Connected>,
    /// It has more.
    pub truncated: bool,
}

/// A connection, and which broker has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The connection.
    pub connected: Connected,
    /// Absent: there is one broker only.
    pub broker: Option<PeerUrl>,
}

/// What was found out in time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Gathered {
    /// In the order of agents' ids, each agent's oldest connection first.
    pub entries: Vec<Entry>,
    /// Brokers that did not answer, or not in time: what they have is not listed.
    pub missing: Vec<PeerUrl>,
    /// There is more than fits.
    pub truncated: bool,
}

type Memory = Arc<dyn Fn(AgentId) -> Option<LastSeen> + Send + Sync>;

/// Lists who is connected. Clones are the same.
#[derive(Clone)]
pub struct Roster {
    tracker: Tracker,
    memory: Option<Memory>,
    fleet: Option<Arc<dyn Fleet>>,
}

impl fmt::Debug for Roster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let alone = self.fleet.is_none();
        f.debug_struct("Roster")
            .field("tracker", &self.tracker)
            .field("alone", &alone)
            .finish_non_exhaustive()
    }
}

impl Roster {
    /// Of a broker that is the only one and remembers nobody.
    pub fn new(tracker: Tracker) -> Self {
        Self { tracker, memory: None, fleet: None }
    }

    /// With what this broker itself remembers of agents that are gone.
    #[must_use]
    pub fn remembering(
        mut self,
        memory: impl Fn(AgentId) -> Option<LastSeen> + Send + Sync + 'static,
    ) -> Self {
        self.memory = Some(Arc::new(memory));
        self
    }

    /// With other brokers.
    #[must_use]
    pub fn among(mut self, fleet: Arc<dyn Fleet>) -> Self {
        self.fleet = Some(fleet);
        self
    }

    /// The connections of these agents. Answers within `patience`, and within [`PATIENCE`].
    pub async fn by_agents(&self, agents: BTreeSet<AgentId>, patience: Duration) -> Gathered {
        self.gather(Wanted::Of { agents, projects: BTreeSet::new() }, patience).await
    }

    /// The connections of all agents that are configured in these projects; as [`Roster::by_agents`].
    pub async fn by_projects(&self, projects: BTreeSet<ProjectId>, patience: Duration) -> Gathered {
        self.gather(Wanted::Of { agents: BTreeSet::new(), projects }, patience).await
    }

    /// The connections of all agents; as [`Roster::by_agents`].
    pub async fn all(&self, patience: Duration) -> Gathered {
        self.gather(Wanted::All, patience).await
    }

    /// The connections of whomever is wanted; as [`Roster::by_agents`].
    pub async fn gather(&self, wanted: Wanted, patience: Duration) -> Gathered {
        if matches!(&wanted, Wanted::Of { agents, projects } if agents.is_empty() && projects.is_empty()) {
            return Gathered::default();
        }
        let deadline = Instant::now() + patience.min(PATIENCE);
        let (mut answers, missing) = match &self.fleet {
            Some(fleet) => gather(&**fleet, &wanted, deadline).await,
            None => (Vec::new(), Vec::new()),
        };
        // Last: a connection that moves is at its new place before it leaves the old one, and this costs no time.
        let (connected, truncated) = self.tracker.list(&wanted, LIST_MAX);
        answers.push((self.fleet.as_ref().map(|fleet| fleet.own()), Answer { connected, truncated }));
        let (entries, truncated) = merge::merge(answers, LIST_MAX);
        Gathered { entries, missing, truncated }
    }

    /// When and from where an agent that is gone was connected last, as far as anybody remembers.
    pub async fn last_seen(&self, agent: AgentId) -> Option<LastSeen> {
        let own = self.memory.as_ref().and_then(|memory| memory(agent));
        let Some(fleet) = &self.fleet else { return own };
        let told = timeout_at(Instant::now() + PATIENCE, fleet.last_seen(agent)).await.ok().flatten();
        let own = own.map(|own| match own.broker.is_empty() {
            true => LastSeen { broker: fleet.own().to_string(), ..own },
            false => own,
        });
        match (own, told) {
            // All brokers' memory knows of refusals at other ones.
            (Some(own), Some(told)) => Some(if own.at > told.at + LATER { own } else { told }),
            (own, told) => told.or(own),
        }
    }
}

/// What the other brokers answer until the deadline, and those who do not.
async fn gather(
    fleet: &dyn Fleet,
    wanted: &Wanted,
    deadline: Instant,
) -> (Vec<(Option<PeerUrl>, Answer)>, Vec<PeerUrl>) {
    let request = rpc::request(wanted);
    let asked = fleet.peers().into_iter().map(|peer| {
        let answer = timeout_at(deadline, fleet.ask(&peer, request.clone()));
        async move { (peer, answer.await) }
    });
    let (mut answers, mut missing) = (Vec::new(), Vec::new());
    for (peer, answer) in join_all(asked).await {
        match answer {
            Ok(Ok(answer)) => answers.push((Some(peer), answer)),
            // A kas: its agents are in its own lists.
            Ok(Err(status)) if status.code() == Code::Unimplemented => {}
            Ok(Err(status)) => {
                let (code, error) = (status.code(), status.message());
                tracing::debug!(%peer, ?code, error, "a broker did not say who is connected to it");
                missing.push(peer);
            }
            Err(_) => {
                tracing::debug!(%peer, "a broker did not say in time who is connected to it");
                missing.push(peer);
            }
        }
    }
    missing.sort_unstable();
    (answers, missing)
}

#[cfg(test)]
mod tests;
