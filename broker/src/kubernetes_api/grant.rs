//! What a running request rests on: its caller's standing, and the policies that let it through. Whatever carries the request
//! waits for the end of either.

use super::{
    ExchangeError,
    rules::{Asked, Verdict},
};
use crate::auth::caller::CallerPermit;
use postern_policies::Live;
use std::{future::Future, sync::Arc};
use tokio::sync::watch;

/// An admitted request.
pub(super) struct Grant {
    pub(super) permit: CallerPermit,
    pub(super) asked: Arc<Asked>,
    live: Live,
    /// Has seen what the request was judged by.
    changes: watch::Receiver<u64>,
}

impl Grant {
    /// Judges the request by the policies in force. The grant is good only if the verdict is.
    pub(super) fn judged(permit: CallerPermit, asked: Asked, live: &Live) -> (Self, Verdict) {
        // Before the look at the policies, so that no change falls between the two.
        let changes = live.changes();
        let verdict = asked.judge(&live.set());
        (Self { permit, asked: Arc::new(asked), live: live.clone(), changes }, verdict)
    }

    /// Waits until the request must end, and says why.
    pub(super) fn ended(&self) -> impl Future<Output = ExchangeError> + Send + 'static {
        let withdrawn = self.permit.withdrawn();
        let (asked, live, changes) = (Arc::clone(&self.asked), self.live.clone(), self.changes.clone());
        async move {
            tokio::select! {
                () = withdrawn => ExchangeError::Withdrawn,
                denied = asked.denied(&live, changes) => ExchangeError::Denied(Box::new(denied)),
            }
        }
    }
}
