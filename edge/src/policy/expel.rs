//! Closes the connections of clients that a policy denies from now on.
//!
//! After a change of the policies, beside the workers: looks at a few connections of each at a time, so that nobody else
//! waits while twenty thousand of them say goodbye. Who was only waiting to be accepted is judged by `accept`.

use super::Policies;
use crate::life::{Roll, Seat, Why};
use crate::observability::metrics::Metrics;
use std::sync::Arc;
use std::time::Duration;

/// Connections of one worker that are looked at, and at the most cut, in one go.
const STEP: usize = 64;
/// Each that is cut takes a worker some 50 us of writing.
const PAUSE: Duration = Duration::from_millis(5);

/// Follows the policies for as long as the process lives.
pub async fn keep_out(policies: &Policies, rolls: &[Arc<Roll>], metrics: &Metrics) {
    let mut changes = policies.live().changes();
    while changes.changed().await.is_ok() {
        if policies.live().set().access.clients.is_empty() {
            continue;
        }
        let closed = expel(rolls, metrics, |seat| !policies.still_admit(seat)).await;
        if closed > 0 {
            tracing::info!(connections = closed, reason = Why::Denied.name(), "closed connections");
        }
    }
}

/// Cuts those that are denied, and returns how many.
pub(super) async fn expel(
    rolls: &[Arc<Roll>],
    metrics: &Metrics,
    is_denied: impl Fn(&Seat) -> bool,
) -> usize {
    let mut closed = 0;
    let mut places: Vec<_> = rolls.iter().map(|roll| (roll, 0)).collect();
    while !places.is_empty() {
        let mut cut = 0;
        places.retain_mut(|(roll, from)| {
            let (denied, next) = roll.deny_where(*from, STEP, &is_denied);
            cut += denied;
            *from = next.unwrap_or(0);
            next.is_some()
        });
        (0..cut).for_each(|_| metrics.departure("denied"));
        closed += cut;
        if cut > 0 {
            tokio::time::sleep(PAUSE).await;
        } else {
            tokio::task::yield_now().await;
        }
    }
    closed
}
