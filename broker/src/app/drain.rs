//! How the broker leaves, in order. Before it: `app.rs`, which has started everything. What each step means to tunnels,
//! long polls and requests is in `drain.rs`; nothing here is on a request's way.
//!
//! 1. It says that it is not ready, and serves as before for `listen_grace`: load balancers need a moment.
//! 2. No new connections. Callers are told with each answer to go elsewhere, and what is on its way is still served.
//! 3. With other brokers: agents' connections get GOAWAY, and idle streams end in turns, each agent's tunnels in two
//!    halves, so that it stands elsewhere before it leaves. Other brokers still take tunnels that are left here.
//! 4. What runs, for callers and for other brokers, finishes; at `shutdown_grace` it is cut.
//! 5. With no other broker: agents are let go only now, for until then somebody may wait for them here.
//! 6. The other brokers forget this one, and everything ends.

use super::{Bound, Drained, Stops, Tasks};
use crate::{
    drain::{Departures, Others},
    observability::Readiness,
    tunnel::registry::Registry,
};
use std::{fmt, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout, timeout_at};

/// For agents to take their leave, and for connections and everything in the background to end.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// What a drain needs.
pub(super) struct Drain {
    pub(super) readiness: Readiness,
    pub(super) registry: Arc<Registry>,
    pub(super) departures: Departures,
    /// Absent: this broker never knows of another one.
    pub(super) others: Option<Arc<dyn Others>>,
    pub(super) stop: Stops,
    pub(super) tasks: Tasks,
    pub(super) listen_grace: Duration,
    pub(super) shutdown_grace: Duration,
}

impl fmt::Debug for Drain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Drain").field("shutdown_grace", &self.shutdown_grace).finish_non_exhaustive()
    }
}

impl Bound {
    /// Leaves: in the order above, within `listen_grace`, `shutdown_grace` and a few seconds.
    pub async fn drain(self) -> Drained {
        self.drain.run().await
    }
}

impl Drain {
    async fn run(self) -> Drained {
        let Self { readiness, registry, departures, others, stop, tasks, listen_grace, shutdown_grace } =
            self;
        tracing::info!(deadline = ?shutdown_grace, "draining: not ready");
        readiness.draining();
        sleep(listen_grace).await;

        let deadline = Instant::now() + shutdown_grace;
        stop.accepting.cancel();
        tasks.doors.close();
        if let Some(others) = &others {
            others.begin();
        }
        let elsewhere = others.clone().filter(|others| others.any());
        let with_others = elsewhere.is_some();
        let go = |others| departures.begin(registry.census().agents, others, deadline);
        if with_others {
            stop.moving.cancel();
            go(elsewhere);
        }
        let finished = async {
            tasks.doors.wait().await;
            if with_others {
                // Until then other brokers may take tunnels that are left here.
                departures.gone().await;
            }
            tasks.requests.wait().await;
        };
        let cut = match timeout_at(deadline, finished).await {
            Ok(()) => 0,
            Err(_) => tasks.requests.cut().await,
        };
        if !with_others {
            go(None);
            stop.moving.cancel();
            let _ = timeout_at(deadline.max(Instant::now() + LAST_WORDS), departures.gone()).await;
        }

        stop.gateway.cancel();
        registry.drain();
        departures.end();
        stop.streams.cancel();
        tasks.connections.close();
        let _ = timeout(LAST_WORDS, tasks.connections.wait()).await;
        if let Some(others) = others
            && timeout(LAST_WORDS, others.leave()).await.is_err()
        {
            tracing::warn!("other brokers were not told in time that this one is gone");
        }
        stop.background.cancel();
        tasks.background.close();
        let _ = timeout(LAST_WORDS, tasks.background.wait()).await;
        if cut > 0 { Drained::Cut(cut) } else { Drained::Clean }
    }
}

#[cfg(test)]
mod tests;
