//! One try at the Lease: what is written into it and when it may be taken. Every write names the version it is based on,
//! so of two that try at once one is refused. Keeps what it saw last and since when; knows nothing of leading.

use super::{super::ClusterError, LEASE};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::MicroTime, jiff::Timestamp};
use serde_json::{Value, json};
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// Where the Lease is kept.
pub trait Lock: Send + Sync + 'static {
    /// As it is now, if there is one.
    fn read(&self) -> impl Future<Output = Result<Option<Value>, ClusterError>> + Send;
    /// Makes it; a conflict if somebody else just did.
    fn create(&self, lease: Value) -> impl Future<Output = Result<Value, ClusterError>> + Send;
    /// Replaces the version that `lease` names; a conflict if it is another one by now.
    fn replace(&self, lease: Value) -> impl Future<Output = Result<Value, ClusterError>> + Send;
}

/// What came of a try.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Tried {
    /// It is ours, from now on or still.
    Holds,
    /// It is another's, or may be.
    Held { by: String },
    /// Somebody else wrote at the same time; the next try tells who.
    Raced,
}

pub(super) struct Candidate<L> {
    lock: L,
    identity: String,
    seen: Option<Seen>,
}

/// A Lease, and since when it is known like this.
struct Seen {
    lease: Value,
    since: Instant,
}

impl<L: Lock> Candidate<L> {
    pub(super) fn new(lock: L, identity: &str) -> Self {
        Self { lock, identity: identity.to_owned(), seen: None }
    }

    pub(super) fn identity(&self) -> &str {
        &self.identity
    }

    /// Renews the Lease if it is ours, takes it if it is nobody's any more.
    pub(super) async fn renew(&mut self) -> Result<Tried, ClusterError> {
        if let Some(seen) = self.seen.as_ref().filter(|seen| holder(&seen.lease) == self.identity) {
            let renewed = self.claimed(seen.lease.clone());
            match self.lock.replace(renewed).await {
                Ok(lease) => return Ok(self.see(lease)),
                // What we knew is no longer so, or never came to our ears.
                Err(error) if error.is_conflict() || error.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let Some(lease) = self.lock.read().await? else {
            let new = json!({
                "apiVersion": "coordination.k8s.io/v1",
                "kind": "Lease",
                "metadata": {},
                "spec": {"leaseTransitions": 0},
            });
            return self.wrote(self.lock.create(self.claimed(new)).await);
        };
        let by = self.see(lease.clone());
        if by != Tried::Holds && !self.expired() {
            return Ok(by);
        }
        self.wrote(self.lock.replace(self.claimed(lease)).await)
    }

    /// Makes the Lease nobody's, if it is ours.
    pub(super) async fn release(&mut self) -> Result<(), ClusterError> {
        let Some(mut lease) = self.lock.read().await? else { return Ok(()) };
        if holder(&lease) != self.identity {
            return Ok(());
        }
        let spec = &mut lease["spec"];
        spec["holderIdentity"] = json!("");
        spec["leaseDurationSeconds"] = json!(1);
        spec["renewTime"] = now();
        self.lock.replace(lease).await.map(|_| ())
    }

    fn wrote(&mut self, written: Result<Value, ClusterError>) -> Result<Tried, ClusterError> {
        match written {
            Ok(lease) => Ok(self.see(lease)),
            Err(error) if error.is_conflict() => Ok(Tried::Raced),
            Err(error) => Err(error),
        }
    }

    /// Notes how the Lease is, and when it became so if it is news.
    fn see(&mut self, lease: Value) -> Tried {
        let by = holder(&lease).to_owned();
        let since = match &self.seen {
            Some(seen) if seen.lease["spec"] == lease["spec"] => seen.since,
            _ => Instant::now(),
        };
        self.seen = Some(Seen { lease, since });
        if by == self.identity { Tried::Holds } else { Tried::Held { by } }
    }

    /// Whether the one who holds it has not renewed it for as long as it may not.
    fn expired(&self) -> bool {
        let Some(seen) = &self.seen else { return false };
        // Others may be set up to need longer, and nobody to need less: they could not know.
        let theirs = seen.lease["spec"]["leaseDurationSeconds"].as_u64().unwrap_or_default();
        let theirs = Duration::from_secs(theirs.min(24 * 60 * 60));
        holder(&seen.lease).is_empty() || seen.since.elapsed() >= theirs.max(LEASE)
    }

    /// The same, but ours and renewed now.
    fn claimed(&self, mut lease: Value) -> Value {
        let ours = holder(&lease) == self.identity;
        let spec = &mut lease["spec"];
        if !ours {
            let transitions = spec["leaseTransitions"].as_i64().unwrap_or_default();
            let first = spec["holderIdentity"].is_null();
            spec["leaseTransitions"] = json!(if first { transitions } else { transitions.saturating_add(1) });
            spec["acquireTime"] = now();
        }
        spec["holderIdentity"] = json!(self.identity);
        spec["leaseDurationSeconds"] = json!(LEASE.as_secs());
        spec["renewTime"] = now();
        lease
    }
}

fn holder(lease: &Value) -> &str {
    lease["spec"]["holderIdentity"].as_str().unwrap_or_default()
}

/// For people and other programs to look at; nothing here believes it.
fn now() -> Value {
    serde_json::to_value(MicroTime(Timestamp::now())).unwrap_or_default()
}
