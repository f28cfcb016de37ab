//! Alerts about network policies: flows that Cilium dropped are compared with the policies that ask for it, and those that
//! go against one are posted to GitLab. Before it: the agent's configuration, which names the Hubble relay, and
//! leadership. After it: the broker. One task; whatever ends its being wanted drops all of it at once.

mod json;
mod matching;
mod patterns;
mod policies;
mod policy;
mod posts;
mod relay;
mod restraint;

pub use policies::Source;
pub use relay::{Address, BadAddress, Pace};

use crate::{broker::Road, cluster::Change, configuration::Latest, error, observability::Metrics};
use futures::StreamExt;
use policies::Policies;
use postern_wire::proto::{flow::Flow, gitlab::agent::agentcfg::AgentConfiguration};
use posts::{Alert, Posted, Posts};
use prost_types::Timestamp;
use restraint::{Decision, Restraint};
use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{mpsc, watch},
    time::Instant,
};
use tracing::{debug, error, info, warn};

/// Flows that have been read and not yet looked at.
const AHEAD: usize = 64;
/// Alerts that fail do so in a row, for one cause: one line in this time is enough.
const SAID_AGAIN: Duration = Duration::from_secs(60);

/// Posts alerts for ever.
pub struct Alerts<S> {
    /// The way to the broker.
    pub road: Road,
    /// What names the relay, and the project whose policies are looked at.
    pub configuration: Latest,
    /// Whether this replica is the one that acts.
    pub leads: watch::Receiver<bool>,
    /// Where policies come from.
    pub policies: S,
    /// How soon things are tried again; [`Pace::default`].
    pub pace: Pace,
    /// What counts alerts.
    pub metrics: Metrics,
}

/// What the configuration says about alerts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The Hubble relay.
    pub relay: Address,
    /// The configuration project's number, which policies have as their label.
    pub project_id: i64,
}

impl Settings {
    /// `None` without `cilium`: there are no alerts then.
    ///
    /// # Errors
    /// An address that no relay can have.
    pub fn of(configuration: &AgentConfiguration) -> Result<Option<Self>, BadAddress> {
        let Some(cilium) = &configuration.cilium else {
            return Ok(None);
        };
        let relay = Address::parse(&cilium.hubble_relay_address)?;
        Ok(Some(Self { relay, project_id: configuration.project_id }))
    }
}

impl<S: Source> Alerts<S> {
    /// Never returns.
    pub async fn run(self) {
        let (mut configuration, mut leads) = (self.configuration.clone(), self.leads.clone());
        let mut running = false;
        loop {
            let now = wanted(&mut configuration, &mut leads);
            match &now {
                Ok(Some(settings)) => {
                    info!(relay = %settings.relay, project_id = settings.project_id, "alerts about network policies begin");
                }
                Ok(None) if running => info!("alerts about network policies end"),
                Ok(None) => {}
                Err(bad) => error!(error = %error::chain(bad), "no alerts about network policies"),
            }
            let settings = now.as_ref().ok().and_then(Option::as_ref);
            running = settings.is_some();
            let other = async {
                while wanted(&mut configuration, &mut leads) == now {
                    changed(&mut configuration, &mut leads).await;
                }
            };
            tokio::select! {
                () = self.work(settings) => {}
                () = other => {}
            }
        }
    }

    /// Never returns; dropped, it leaves nothing behind.
    async fn work(&self, settings: Option<&Settings>) {
        let Some(settings) = settings else {
            return std::future::pending().await;
        };
        let since = Timestamp::from(SystemTime::now());
        let mut work = Work {
            policies: Policies::new(settings.project_id),
            restraint: Restraint::default(),
            posts: Posts::new(self.road.clone(), self.pace.post_again),
            metrics: &self.metrics,
            said: None,
        };
        let _gauge = NoPolicies(&self.metrics);
        let mut changes = self.policies.follow();
        let (sender, mut flows) = mpsc::channel(AHEAD);
        let relay = relay::Relay { address: &settings.relay, pace: self.pace, metrics: &self.metrics };
        let mut following = pin!(relay.follow(since, sender));
        loop {
            // Without its policies a flow would go unnoticed.
            let ready = work.policies.listed();
            tokio::select! {
                change = changes.next() => match change {
                    Some(change) => work.learn(change),
                    // The cluster's task has ended, and with it the process.
                    None => return std::future::pending().await,
                },
                Some(flow) = flows.recv(), if ready => {
                    work.judge(&flow);
                    // It may have taken as long as policies and flows may be large: now everybody else.
                    tokio::task::yield_now().await;
                }
                posted = work.posts.next() => work.settle(posted),
                () = &mut following, if ready => return std::future::pending().await,
            }
        }
    }
}

/// What is wanted now; nothing of a replica that does not lead.
fn wanted(
    configuration: &mut Latest,
    leads: &mut watch::Receiver<bool>,
) -> Result<Option<Settings>, BadAddress> {
    let leads = *leads.borrow_and_update();
    let configuration = configuration.borrow_and_update();
    configuration.as_ref().filter(|_| leads).map_or(Ok(None), |configuration| Settings::of(configuration))
}

async fn changed(configuration: &mut Latest, leads: &mut watch::Receiver<bool>) {
    let changed = tokio::select! {
        changed = configuration.changed() => changed,
        changed = leads.changed() => changed,
    };
    if changed.is_err() {
        // Who told us has ended, and with it the process.
        std::future::pending().await
    }
}

/// What there is while alerts are wanted.
struct Work<'a> {
    policies: Policies,
    restraint: Restraint,
    posts: Posts,
    metrics: &'a Metrics,
    /// When a failure was last said at length.
    said: Option<Instant>,
}

impl Work<'_> {
    fn learn(&mut self, change: Change) {
        self.policies.apply(change);
        self.metrics.alert_policies.set(i64::try_from(self.policies.len()).unwrap_or(i64::MAX));
    }

    fn judge(&mut self, flow: &Flow) {
        if matching::is_too_large(flow) {
            debug!(uuid = %flow.uuid, "flow skipped: it has too many labels or headers, or too long ones");
            return self.metrics.alert("skipped");
        }
        let Some(policy) = matching::first(flow, &self.policies) else {
            return;
        };
        let key = match self.restraint.decide(&policy.name, flow, Instant::now()) {
            Decision::Post(key) => key,
            Decision::Repeated => return self.metrics.alert("repeated"),
            Decision::Limited => {
                debug!(policy = %policy.name, "alert dropped: too many of this policy");
                return self.metrics.alert("limited");
            }
        };
        let alert = Alert {
            key,
            policy: policy.name.clone(),
            flow: json::flow(flow),
            value: Arc::clone(&policy.value),
        };
        if let Err(alert) = self.posts.put(alert) {
            self.restraint.forget(alert.key);
            self.metrics.alert("dropped");
            if self.may_say() {
                warn!(policy = %alert.policy, "alert dropped: too many wait for GitLab to take them");
            }
        }
    }

    fn settle(&mut self, posted: Posted) {
        let Posted { key, policy, result } = posted;
        match result {
            Ok(()) => {
                self.metrics.alert("posted");
                info!(%policy, "alert posted");
            }
            Err(failure) => {
                self.restraint.forget(key);
                self.metrics.alert("failed");
                if self.may_say() {
                    warn!(%policy, error = %error::chain(&failure), "alert not posted");
                }
            }
        }
    }

    fn may_say(&mut self) -> bool {
        let now = Instant::now();
        let may = self.said.is_none_or(|said| now.duration_since(said) >= SAID_AGAIN);
        if may {
            self.said = Some(now);
        }
        may
    }
}

/// Whatever ends the work, the gauge says so.
struct NoPolicies<'a>(&'a Metrics);

impl Drop for NoPolicies<'_> {
    fn drop(&mut self) {
        self.0.alert_policies.set(0);
    }
}
