//! The request's body on its way to the agent, in the background: the answer may come before it is complete. Before it: the head
//! was sent. After it: nothing, or an upgraded connection that goes on with the same half.

use super::{ExchangeError, body};
use crate::tunnel::stream::RequestHalf;
use futures::{FutureExt, future::Fuse};
use hyper::body::Incoming;
use std::sync::{Arc, atomic::AtomicU64};
use tokio::sync::oneshot;

/// Dropped, it stops.
pub(super) struct Upload {
    /// Resolves only if the caller's body broke.
    pub(super) failed: Fuse<oneshot::Receiver<ExchangeError>>,
    /// Resolves with what an upgraded connection goes on with.
    pub(super) keep: oneshot::Receiver<RequestHalf>,
    pub(super) task: AbortOnDrop,
}

pub(super) struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upload {
    /// Sends the body, or for an upgrade only says that there is none. `received` counts its bytes.
    pub(super) fn begin(
        to_agent: RequestHalf,
        body: Incoming,
        upgrade: bool,
        received: Arc<AtomicU64>,
    ) -> Self {
        let (failed, has_failed) = oneshot::channel();
        let (kept, keep) = oneshot::channel();
        let task = tokio::spawn(async move {
            match body::send(&to_agent, body, &received).await {
                // The half stays open for what follows the upgrade.
                Ok(()) if upgrade => drop(kept.send(to_agent)),
                Ok(()) => drop(to_agent.close().await),
                // The answer decides: a cluster may answer early and stop reading.
                Err(ExchangeError::Tunnel(_)) => {}
                Err(error) => drop(failed.send(error)),
            }
        });
        Self { failed: has_failed.fuse(), keep, task: AbortOnDrop(task.abort_handle()) }
    }
}
