//! What is counted for GitLab's own statistics, and its way there. Before it: the features that count. After it: Rails,
//! told once a period of all that it has not heard. What it did not take is kept and told again; it is told nothing
//! when there is nothing to tell. No name, token or address is counted, only numbers and ids.
//!
//! Bounds: at most [`UNIQUE_MAX`] ids in each set and as many events of each kind, [`EVENTS_PER_AGENT`] of them of one
//! agent's registrations, are kept until GitLab took them; what comes on top of that is not told. Plain counters always
//! are. Registrations have a lock of their own: requests to clusters wait for no agent's words.

mod report;

pub use report::{FLUSH, report};

use crate::gitlab::{self, AgentEvents, RegisteredEvent, UsageForm, UserEvent};
use postern_wire::ids::AgentId;
use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Ids in one set, events of one kind.
pub const UNIQUE_MAX: usize = 10_000;
/// Registrations of one agent that differ: replicas of a few versions on nodes of a few kinds.
pub const EVENTS_PER_AGENT: usize = 8;

/// How a caller of the Kubernetes API proved who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// A CI job's token.
    Ci,
    /// A session cookie.
    User,
    /// A personal access token.
    Pat,
}

impl Way {
    const ALL: [Self; 3] = [Self::Ci, Self::User, Self::Pat];

    fn name(self) -> &'static str {
        match self {
            Self::Ci => "ci",
            Self::User => "user",
            Self::Pat => "pat",
        }
    }
}

/// Everything counted that GitLab has not heard of. Shared by all who count.
#[derive(Debug, Default)]
pub struct Usage {
    counts: Mutex<Counts>,
    registered: Mutex<Registered>,
}

/// What came one way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Via {
    requests: u64,
    users: BTreeSet<i64>,
    agents: BTreeSet<i64>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Counts {
    gitops_syncs: u64,
    kubernetes_requests: u64,
    via: BTreeMap<Way, Via>,
    flux_pushes: u64,
    flux_projects: BTreeSet<i64>,
    users: BTreeMap<Way, BTreeSet<UserEvent>>,
}

/// Which agents registered, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Registered {
    agents: BTreeMap<i64, BTreeSet<RegisteredEvent>>,
    /// Of all agents.
    events: usize,
}

/// All of it at one moment.
#[derive(Debug)]
struct Report {
    counts: Counts,
    registered: Registered,
}

impl Usage {
    /// An agent got the manifests of a commit.
    pub fn gitops_synced(&self) {
        self.lock().gitops_syncs += 1;
    }

    /// A request to a cluster was let through. `None`: it came a way that GitLab does not know. `project_id` is the
    /// agent's configuration project.
    pub fn kubernetes_api_request(
        &self,
        way: Option<Way>,
        user_id: Option<i64>,
        agent_id: AgentId,
        project_id: i64,
    ) {
        let mut counts = self.lock();
        counts.kubernetes_requests += 1;
        let Some(way) = way else { return };
        let via = counts.via.entry(way).or_default();
        via.requests += 1;
        keep(&mut via.agents, agent_id.0);
        if let Some(user_id) = user_id {
            keep(&mut via.users, user_id);
            keep(counts.users.entry(way).or_default(), UserEvent { user_id, project_id });
        }
    }

    /// Agents were told of a push to this project.
    pub fn flux_push(&self, project_id: i64) {
        let mut counts = self.lock();
        counts.flux_pushes += 1;
        keep(&mut counts.flux_projects, project_id);
    }

    /// An agent registered. The same again before GitLab heard of it is one event.
    pub fn registered(&self, event: RegisteredEvent) {
        self.registrations().add(event);
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn registrations(&self) -> MutexGuard<'_, Registered> {
        self.registered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Report {
        let counts = self.lock().clone();
        Report { counts, registered: self.registrations().clone() }
    }

    /// Takes away what a report held; what was counted meanwhile stays.
    fn told(&self, report: &Report, form: UsageForm) {
        let report = &report.counts;
        let mut counts = self.lock();
        let less = |count: &mut u64, told: u64| *count = count.saturating_sub(told);
        less(&mut counts.gitops_syncs, report.gitops_syncs);
        less(&mut counts.kubernetes_requests, report.kubernetes_requests);
        if form == UsageForm::Flat {
            return;
        }
        less(&mut counts.flux_pushes, report.flux_pushes);
        counts.flux_projects.retain(|id| !report.flux_projects.contains(id));
        for (way, told) in &report.via {
            let via = counts.via.entry(*way).or_default();
            less(&mut via.requests, told.requests);
            via.users.retain(|id| !told.users.contains(id));
            via.agents.retain(|id| !told.agents.contains(id));
        }
    }

    /// As [`Usage::told`] for events.
    fn events_told(&self, report: &Report) {
        let mut counts = self.lock();
        for (way, told) in &report.counts.users {
            counts.users.entry(*way).or_default().retain(|event| !told.contains(event));
        }
        drop(counts);
        self.registrations().remove(&report.registered);
    }
}

fn keep<T: Ord>(set: &mut BTreeSet<T>, item: T) {
    if set.len() < UNIQUE_MAX {
        set.insert(item);
    }
}

impl Registered {
    fn add(&mut self, event: RegisteredEvent) {
        if self.events < UNIQUE_MAX {
            let known = self.agents.entry(event.agent_id).or_default();
            if known.len() < EVENTS_PER_AGENT && known.insert(event) {
                self.events += 1;
            }
        }
    }

    fn remove(&mut self, told: &Self) {
        for (agent, told) in &told.agents {
            if let Entry::Occupied(mut known) = self.agents.entry(*agent) {
                let before = known.get().len();
                known.get_mut().retain(|event| !told.contains(event));
                self.events -= before - known.get().len();
                if known.get().is_empty() {
                    known.remove();
                }
            }
        }
    }
}

impl Report {
    fn usage(&self, form: UsageForm) -> gitlab::Usage {
        self.counts.usage(form)
    }

    fn events(&self) -> AgentEvents {
        let [users_via_ci, users_via_user, users_via_pat] =
            Way::ALL.map(|way| self.counts.users.get(&way).cloned().unwrap_or_default());
        let registered = self.registered.agents.values().flatten().cloned().collect();
        AgentEvents { users_via_ci, users_via_user, users_via_pat, registered }
    }
}

impl Counts {
    fn usage(&self, form: UsageForm) -> gitlab::Usage {
        let mut usage = gitlab::Usage::default();
        if form == UsageForm::Flat {
            usage.counters = [
                ("gitops_sync_count".to_owned(), self.gitops_syncs),
                ("k8s_api_proxy_request_count".to_owned(), self.kubernetes_requests),
            ]
            .into();
            return usage;
        }
        usage.counters = [
            ("gitops_sync".to_owned(), self.gitops_syncs),
            ("k8s_api_proxy_request".to_owned(), self.kubernetes_requests),
            ("flux_git_push_notifications_total".to_owned(), self.flux_pushes),
        ]
        .into();
        usage.unique =
            [("flux_git_push_notified_unique_projects".to_owned(), self.flux_projects.clone())].into();
        for (way, via) in &self.via {
            let way = way.name();
            usage.counters.insert(format!("k8s_api_proxy_requests_via_{way}_access"), via.requests);
            for (what, ids) in [("users", &via.users), ("agents", &via.agents)] {
                usage
                    .unique
                    .insert(format!("k8s_api_proxy_requests_unique_{what}_via_{way}_access"), ids.clone());
            }
        }
        usage
    }
}

#[cfg(test)]
mod tests;
