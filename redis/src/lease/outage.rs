//! Whether Redis can be asked right now, as far as its last answers told: while it cannot, no call waits for it, and one
//! of them at most tries it now and then. It also says so in the log, once, and when it is over.

use super::RedisLost;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Between two tries.
const AGAIN: Duration = Duration::from_secs(1);
/// A try that says nothing after this is as good as failed; none takes longer.
const TRY: Duration = Duration::from_secs(3);
/// Between two warnings, where Redis comes and goes.
const WARN_EVERY: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Whose calls are counted, for the log.
    whose: &'static str,
    lost: watch::Sender<bool>,
    times: Mutex<Times>,
    /// Calls that were decided without Redis since the last warning or its return.
    uncounted: AtomicU64,
}

#[derive(Debug, Default)]
struct Times {
    next_try: Option<Instant>,
    warned: Option<Instant>,
}

impl Outage {
    pub(super) fn of(whose: &'static str) -> Self {
        Self { whose, ..Self::default() }
    }

    pub(super) fn is_lost(&self) -> bool {
        *self.lost.borrow()
    }

    /// Waits until Redis is lost.
    pub(super) async fn lost(&self) {
        if self.lost.subscribe().wait_for(|lost| *lost).await.is_err() {
            std::future::pending().await
        }
    }

    /// Whether the caller should try now. The others are told not to.
    pub(super) fn may_try(&self) -> bool {
        let (mut times, now) = (self.times(), Instant::now());
        let due = times.next_try.is_none_or(|at| at <= now);
        if due {
            times.next_try = Some(now + TRY);
        }
        due
    }

    /// A call was decided without Redis.
    pub(super) fn uncounted(&self) {
        self.uncounted.fetch_add(1, Ordering::Relaxed);
    }

    /// Redis could not count.
    pub(super) fn failed(&self, error: &str, then: RedisLost) {
        let (mut times, now) = (self.times(), Instant::now());
        times.next_try = Some(now + AGAIN);
        self.lost.send_if_modified(|lost| !std::mem::replace(lost, true));
        if times.warned.is_some_and(|at| now - at < WARN_EVERY) {
            return;
        }
        times.warned = Some(now);
        drop(times);
        let calls = self.uncounted.swap(0, Ordering::Relaxed);
        let then = match then {
            RedisLost::Local => "each process counts alone",
            RedisLost::Deny => "they are refused",
            RedisLost::Allow => "they are admitted without a limit",
        };
        let whose = self.whose;
        tracing::warn!(calls, error, "redis cannot count {whose} calls; {then}");
    }

    /// Redis counts.
    pub(super) fn over(&self) {
        if self.lost.send_if_modified(std::mem::take) {
            self.times().next_try = None;
            let calls = self.uncounted.swap(0, Ordering::Relaxed);
            tracing::info!(calls, "redis counts {} calls again", self.whose);
        }
    }

    fn times(&self) -> std::sync::MutexGuard<'_, Times> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_call_in_a_second_tries_and_a_try_that_vanishes_is_replaced() {
        let outage = Outage::default();
        assert!(!outage.is_lost());
        outage.failed("x", RedisLost::Local);
        outage.lost().await;
        assert!(outage.is_lost() && !outage.may_try());
        tokio::time::advance(AGAIN).await;
        assert!(outage.may_try() && !outage.may_try());
        tokio::time::advance(TRY).await;
        assert!(outage.may_try());
        outage.over();
        assert!(!outage.is_lost());
    }
}
