//! For how long this replica leads unless it renews the Lease. Before it: `leader.rs`, which sets it. After it: whoever
//! writes to the cluster for all replicas, and looks at it right before each request: a process that stood still may go on
//! in a task that has not heard yet that its time is over. It waits for nothing.

use super::super::ClusterError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::time::Instant;

/// Clones are the same one. At first it is over.
#[derive(Clone, Debug, Default)]
pub struct Term(Arc<Mutex<Option<Instant>>>);

impl Term {
    /// Sets its end, on this machine's own steady clock.
    pub fn lasts_until(&self, end: Instant) {
        *self.end() = Some(end);
    }

    /// It is over.
    pub fn ends(&self) {
        *self.end() = None;
    }

    /// Whether `what`, as in `apply Deployment default/web`, may still be asked of the cluster.
    ///
    /// # Errors
    /// [`ClusterError::TermOver`], which passes: the Lease may be renewed yet.
    pub fn allows(&self, what: impl FnOnce() -> String) -> Result<(), ClusterError> {
        match *self.end() {
            Some(end) if Instant::now() < end => Ok(()),
            _ => Err(ClusterError::TermOver { what: what() }),
        }
    }

    fn end(&self) -> MutexGuard<'_, Option<Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
