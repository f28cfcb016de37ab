//! Which replica of an agent does what only one may do: the one that holds a Lease, as Go's agents hold it, so that both
//! kinds can be replicas of one agent. Two never lead at a time: who cannot renew stops 5 s before another may begin,
//! and a Lease is judged by when it was seen to change on this machine's own steady clock, never by the times in it.

mod candidate;
mod term;

#[cfg(test)]
mod tests;

use super::{
    Cluster, ClusterError, Kind,
    client::{Client, Question, Verb},
    path,
};
use crate::{config::Pod, configuration, observability::Metrics};
use candidate::{Candidate, Lock, Tried};
use http::Method;
use postern_wire::proto::gitlab::agent::agentcfg::AgentConfiguration;
use rand::Rng;
use serde_json::Value;
use std::{pin::pin, sync::Arc, time::Duration};
pub use term::Term;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// Another replica may take the Lease this long after it saw its last change.
const LEASE: Duration = Duration::from_secs(15);
/// Who has not renewed for this long leads no more. Counted from when the renewal was sent, which is before the Lease
/// changed, which is before anybody saw the change.
const RENEW_WITHIN: Duration = Duration::from_secs(10);
/// Between two tries.
const RETRY: Duration = Duration::from_secs(2);
/// After this one leader's replicas do not try in step.
const JITTER: std::ops::RangeInclusive<f64> = 1.0..=1.5;
/// Where the agent may not read or write Leases.
const FORBIDDEN_RETRY: Duration = Duration::from_secs(30);
/// For work that is told to end.
const WORK_ENDS: Duration = Duration::from_secs(1);
/// For giving the Lease back; it expires by itself otherwise.
const RELEASE: Duration = Duration::from_secs(3);
/// Where the Lease is if nothing says in which namespace the agent runs.
const NAMESPACE: &str = "default";
/// What is missing where Leases are forbidden.
pub(super) const RULE: &str =
    "{apiGroups: [coordination.k8s.io], resources: [leases], verbs: [get, create, update]}";

/// One replica's part in choosing the leader.
pub struct Leader<L = ClusterLock> {
    candidate: Candidate<L>,
    leads: watch::Sender<bool>,
    term: Term,
    /// The lease, for the log.
    lease: String,
    known: Known,
}

/// What has been logged.
#[derive(Default)]
struct Known {
    trouble: bool,
    /// Another replica.
    leader: String,
}

impl Leader {
    /// A candidate for the Lease `namespace/lease`. `identity` is one that no other replica has, the pod's name say.
    pub fn new(cluster: &Cluster, lease: &str, namespace: &str, identity: &str) -> Self {
        Self::telling(watch::Sender::new(false), Term::default(), cluster, lease, namespace, identity)
    }

    fn telling(
        leads: watch::Sender<bool>,
        term: Term,
        cluster: &Cluster,
        lease: &str,
        namespace: &str,
        identity: &str,
    ) -> Self {
        let lock = ClusterLock {
            client: cluster.client.clone(),
            namespace: namespace.to_owned(),
            name: lease.to_owned(),
        };
        Self::of(lock, leads, term, format!("{namespace}/{lease}"), identity)
    }
}

impl<L: Lock> Leader<L> {
    fn of(lock: L, leads: watch::Sender<bool>, term: Term, lease: String, identity: &str) -> Self {
        Self { candidate: Candidate::new(lock, identity), leads, term, lease, known: Known::default() }
    }

    /// Whether this replica leads now. Whoever works only while it does must stop at once when it no longer does.
    pub fn leads(&self) -> watch::Receiver<bool> {
        self.leads.subscribe()
    }

    /// Tries to lead until `stop`; then gives the Lease back, so that another replica can take over at once.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut until = None;
        while !stop.is_cancelled() {
            let sent = Instant::now();
            let limit = until.unwrap_or(sent + RENEW_WITHIN);
            let tried = tokio::select! {
                biased;
                () = stop.cancelled() => break,
                tried = timeout_at(limit, self.candidate.renew()) => tried,
            };
            let mut wait = RETRY;
            match tried {
                // An answer that took too long says what was true, not what is.
                Ok(Ok(Tried::Holds)) if sent.elapsed() < RENEW_WITHIN => {
                    until = Some(sent + RENEW_WITHIN);
                    self.gained(sent + RENEW_WITHIN);
                }
                Ok(Ok(Tried::Held { by })) => {
                    until = None;
                    self.lost("another replica has the lease");
                    self.follows(by);
                    wait = wait.mul_f64(rand::rng().random_range(JITTER));
                }
                Ok(Ok(Tried::Holds | Tried::Raced)) => {}
                Ok(Err(error)) => {
                    if until.is_none() && (error.is_forbidden() || error.is_not_found()) {
                        wait = FORBIDDEN_RETRY;
                    }
                    self.fails(&error);
                }
                Err(_) => {
                    let (what, cause) = ("renew the lease".to_owned(), "no answer in time".to_owned());
                    self.fails(&ClusterError::Unreachable { what, cause });
                }
            }
            let next = Instant::now() + wait;
            let wake = until.map_or(next, |until| next.min(until));
            tokio::select! {
                () = stop.cancelled() => break,
                () = sleep_until(wake) => {}
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                until = None;
                self.lost("the lease could not be renewed in time");
            }
        }
        self.give_up().await;
    }

    async fn give_up(mut self) {
        if !*self.leads.borrow() {
            // Nothing to give back, unless an answer is still on its way; that one expires.
            return;
        }
        self.lost("it is told to stop");
        // What is just being written may still arrive.
        let _ = timeout(WORK_ENDS, self.leads.closed()).await;
        match timeout(RELEASE, self.candidate.release()).await {
            Ok(Ok(())) => info!(lease = self.lease, "the lease is given back"),
            Ok(Err(error)) => {
                warn!(lease = self.lease, %error, "the lease is not given back; it expires in 15 s")
            }
            Err(_) => warn!(lease = self.lease, "the lease is not given back in time; it expires in 15 s"),
        }
    }

    fn gained(&mut self, until: Instant) {
        self.term.lasts_until(until);
        if std::mem::take(&mut self.known.trouble) {
            info!(lease = self.lease, "the lease can be renewed again");
        }
        if !self.leads.send_replace(true) {
            self.known.leader.clear();
            info!(lease = self.lease, identity = self.candidate.identity(), "this replica leads");
        }
    }

    fn lost(&self, reason: &'static str) {
        self.term.ends();
        if self.leads.send_replace(false) {
            info!(lease = self.lease, reason, "this replica leads no longer");
        }
    }

    fn follows(&mut self, leader: String) {
        if std::mem::take(&mut self.known.trouble) {
            info!(lease = self.lease, "the lease can be read again");
        }
        if self.known.leader != leader {
            info!(lease = self.lease, leader, "another replica leads");
            self.known.leader = leader;
        }
    }

    fn fails(&mut self, error: &ClusterError) {
        if std::mem::replace(&mut self.known.trouble, true) {
            return debug!(lease = self.lease, %error, "still no lease");
        }
        let rule = error.is_forbidden().then_some(RULE);
        warn!(lease = self.lease, %error, rule, "cannot get the lease; without it nothing is done that one replica does for all");
    }
}

/// A Lease in the cluster.
pub struct ClusterLock {
    client: Client,
    namespace: String,
    name: String,
}

impl ClusterLock {
    async fn ask(
        &self,
        word: &str,
        method: Method,
        path: Result<String, ClusterError>,
        lease: Option<&Value>,
    ) -> Result<Value, ClusterError> {
        let what = format!("{word} Lease {}/{}", self.namespace, self.name);
        let mut question = Question::new(Verb::Lease, method, path?, what);
        if let Some(lease) = lease {
            question = question.with("application/json", lease);
        }
        let lease = self.client.ask(&question).await?;
        let spec = lease.get("spec").unwrap_or(&Value::Null);
        match lease["kind"] == "Lease" && (spec.is_object() || spec.is_null()) {
            true => Ok(lease),
            false => Err(question.odd("the answer is not a Lease")),
        }
    }
}

impl Lock for ClusterLock {
    async fn read(&self) -> Result<Option<Value>, ClusterError> {
        let path = path::object(&leases(), &self.namespace, &self.name);
        match self.ask("get", Method::GET, path, None).await {
            Ok(lease) => Ok(Some(lease)),
            Err(error) if error.is_not_found() && !error.lacks_path() => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn create(&self, mut lease: Value) -> Result<Value, ClusterError> {
        lease["metadata"]["name"] = self.name.as_str().into();
        lease["metadata"]["namespace"] = self.namespace.as_str().into();
        let path = path::objects(&leases(), &self.namespace);
        self.ask("create", Method::POST, path, Some(&lease)).await
    }

    async fn replace(&self, lease: Value) -> Result<Value, ClusterError> {
        let path = path::object(&leases(), &self.namespace, &self.name);
        self.ask("update", Method::PUT, path, Some(&lease)).await
    }
}

fn leases() -> Kind {
    Kind::new("coordination.k8s.io", "v1", "Lease", "leases", true)
}

/// The Lease of an agent that has anything to do which one replica does for all: synchronize manifests, watch for
/// alerts, keep views. Others need no Lease, and no right to one.
pub fn wanted(configuration: &AgentConfiguration) -> Option<String> {
    let gitops = configuration.gitops.as_ref().is_some_and(|gitops| !gitops.manifest_projects.is_empty());
    let views = configuration.views.as_ref().is_some_and(|views| {
        [views.nodes, views.workloads, views.events, views.versions, views.capacity].contains(&true)
    });
    let needed = gitops || configuration.cilium.is_some() || views;
    (needed && configuration.agent_id != 0).then(|| format!("agent-{}-lock", configuration.agent_id))
}

/// Is a candidate while the latest configuration has anything to do for a leader, until `stop`. `leads` tells, and `term`
/// tells for how long.
pub async fn elect(
    cluster: Cluster,
    mut latest: configuration::Latest,
    pod: Pod,
    leads: watch::Sender<bool>,
    term: Term,
    stop: CancellationToken,
) {
    let identity = identity(&pod);
    let namespace = if pod.namespace.is_empty() { NAMESPACE } else { &pod.namespace };
    let lease = |latest: &Option<Arc<AgentConfiguration>>| latest.as_deref().and_then(wanted);
    while !stop.is_cancelled() {
        let now = lease(&latest.borrow_and_update());
        let ended = stop.child_token();
        let mut running = pin!(async {
            match &now {
                Some(lease) => {
                    let leader =
                        Leader::telling(leads.clone(), term.clone(), &cluster, lease, namespace, &identity);
                    leader.run(ended.clone()).await;
                }
                None => ended.cancelled().await,
            }
        });
        let another = async { latest.wait_for(|latest| lease(latest) != now).await.is_ok() };
        tokio::select! {
            () = &mut running => continue,
            another = another => if another {
                ended.cancel();
            }
        }
        running.await;
    }
}

/// A pod's name is its own. Without one, what no other process has.
fn identity(pod: &Pod) -> String {
    match pod.name.as_str() {
        "" => format!("agentk-{:016x}", rand::rng().random::<u64>()),
        name => name.to_owned(),
    }
}

/// Keeps the metric true.
pub async fn measure(mut leads: watch::Receiver<bool>, metrics: Metrics) {
    loop {
        metrics.leading.set(i64::from(*leads.borrow_and_update()));
        if leads.changed().await.is_err() {
            return std::future::pending().await;
        }
    }
}
