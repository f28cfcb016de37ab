//! Tells GitLab which configuration each agent has: once per content, however many replicas ask for it and however many
//! commits leave it as it is. After `document.rs` understood a file; before Rails. It makes nobody wait: an agent gets its
//! configuration whether or not GitLab hears of it.

use crate::gitlab::{
    Call, Rails, RailsError,
    cache::{Lasting, Remember},
};
use postern_wire::ids::AgentId;
use rand::Rng;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Agents whose last report is remembered; past that, one that was reported long ago may be reported again.
const AGENTS: usize = 50_000;
/// Between attempts while GitLab is away; doubled each time, and up to as much again at random.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(60);
/// Before the same is told again after GitLab refused it: a feature may have been switched on meanwhile, or the agent be
/// known to the database that is asked. Doubled each time, and up to half as much again at random.
const REFUSED: Duration = Duration::from_secs(600);
const REFUSED_MAX: Duration = Duration::from_secs(2_400);
/// About a day of that; then only when the agent's configuration is reported once more.
const REFUSALS: u32 = 30;

type Hash = [u8; 32];

/// What GitLab was told, and what it is yet to be told.
pub struct Reports {
    rails: Arc<Rails>,
    agents: Mutex<HashMap<AgentId, Entry>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct Entry {
    /// What GitLab took; or refused, and until when it is not told the same again.
    told: Option<(Hash, Option<Instant>)>,
    /// The newest content that it does not have yet; only the newest matters.
    wanted: Option<(Hash, Value)>,
    /// Somebody is at it.
    busy: bool,
    /// How often GitLab refused what is wanted.
    refusals: u32,
    /// Wakes whoever waits with a content that is no longer wanted.
    changed: Arc<Notify>,
}

impl fmt::Debug for Reports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}

impl Reports {
    /// Nothing was told yet. What is under way at `stop` is given up.
    pub fn new(rails: Arc<Rails>, stop: CancellationToken, tasks: TaskTracker) -> Arc<Self> {
        Arc::new(Self { rails, agents: Mutex::default(), stop, tasks })
    }

    /// This agent has this configuration now: protojson of its file. Returns at once.
    pub fn report(self: &Arc<Self>, agent: AgentId, document: &Value) {
        let hash: Hash = Sha256::digest(document.to_string()).into();
        let mut agents = self.agents();
        if agents.len() >= AGENTS && !agents.contains_key(&agent) {
            agents.retain(|_, entry| entry.busy);
            if agents.len() >= AGENTS {
                return;
            }
        }
        let entry = agents.entry(agent).or_default();
        let known = match (&entry.wanted, entry.told) {
            (Some((wanted, _)), _) => *wanted == hash,
            (None, Some((told, until))) => told == hash && until.is_none_or(|until| Instant::now() < until),
            (None, None) => false,
        };
        if known {
            return;
        }
        entry.told = None;
        entry.wanted = Some((hash, document.clone()));
        entry.refusals = 0;
        entry.changed.notify_one();
        if !std::mem::replace(&mut entry.busy, true) {
            let reports = Arc::clone(self);
            let stop = self.stop.clone();
            self.tasks.spawn(async move { stop.run_until_cancelled(reports.tell(agent)).await });
        }
    }

    fn agents(&self) -> MutexGuard<'_, HashMap<AgentId, Entry>> {
        self.agents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is wanted until nothing is.
    async fn tell(&self, agent: AgentId) {
        let mut failures = 0;
        while let Some((hash, document, changed)) = self.next(agent) {
            match self.rails.agent_configuration(agent, &document, &Call::default()).await {
                Ok(()) => {
                    tracing::debug!(agent_id = %agent, "configuration reported to GitLab");
                    self.told(agent, hash, None);
                    failures = 0;
                }
                Err(error) if is_final(&error) => {
                    let refusals = self.refused(agent);
                    if refusals == 0 {
                        tracing::warn!(
                            agent_id = %agent, error = %crate::error::chain(&error),
                            "GitLab does not take this configuration; CI jobs may not get the access it grants"
                        );
                    }
                    if refusals >= REFUSALS {
                        self.told(agent, hash, Some(Instant::now() + REFUSED_MAX));
                        continue;
                    }
                    let pause = refusal_pause(refusals, rand::rng().random_range(0.0..=1.0));
                    // Another content need not wait for what was refused.
                    let _ = timeout(pause, changed.notified()).await;
                }
                Err(error) => {
                    if failures == 0 {
                        tracing::warn!(
                            agent_id = %agent, error = %crate::error::chain(&error),
                            "GitLab cannot be told of a configuration yet"
                        );
                    }
                    let pause = RETRY.saturating_mul(1 << failures.min(10)).min(RETRY_MAX);
                    let pause = pause.mul_f64(1.0 + rand::rng().random_range(0.0..1.0));
                    failures += 1;
                    sleep(pause).await;
                }
            }
        }
    }

    /// What to tell now; if nothing, whoever reports next begins anew.
    fn next(&self, agent: AgentId) -> Option<(Hash, Value, Arc<Notify>)> {
        let mut agents = self.agents();
        let entry = agents.get_mut(&agent)?;
        let next = entry.wanted.clone().filter(|(hash, _)| entry.told.is_none_or(|(told, _)| told != *hash));
        if next.is_none() {
            (entry.wanted, entry.busy) = (None, false);
        }
        // A new one each time: what was wanted before this is no news.
        entry.changed = Arc::default();
        let changed = Arc::clone(&entry.changed);
        next.map(|(hash, document)| (hash, document, changed))
    }

    /// Counts a refusal; how many there were before.
    fn refused(&self, agent: AgentId) -> u32 {
        let mut agents = self.agents();
        let Some(entry) = agents.get_mut(&agent) else { return 0 };
        entry.refusals += 1;
        entry.refusals - 1
    }

    fn told(&self, agent: AgentId, hash: Hash, until: Option<Instant>) {
        if let Some(entry) = self.agents().get_mut(&agent) {
            entry.told = Some((hash, until));
        }
    }
}

/// `random` is between 0 and 1.
fn refusal_pause(refusals: u32, random: f64) -> Duration {
    let doubled = REFUSED.saturating_mul(1 << refusals.min(10)).min(REFUSED_MAX);
    doubled.mul_f64(1.0 + random / 2.0)
}

/// Asking again soon would not help: GitLab knows no such agent, has no such call (before 14.2), or wants other content.
fn is_final(error: &RailsError) -> bool {
    let refused = error.status().is_some_and(|status| status.is_client_error() && status.as_u16() != 429);
    refused && (error.lasting() == Lasting::Definitive || error.status().is_some_and(|s| s.as_u16() == 400))
}

#[cfg(test)]
mod tests;
