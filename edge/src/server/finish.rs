//! The drain, once it was asked for: not ready, no more connections, tell those that are open, wait, cut.
//!
//! From `server`. Whatever hangs, it is over when `drain.pre` and `drain.grace` are, and what a goodbye takes.

use super::Ended;
use crate::drain::Streams;
use crate::life::pace::{Pace, tell_off};
use crate::life::{Draining, Roll, Terms, moved};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::task::TaskTracker;

/// How long connections may take to end what waits on them and to say goodbye, as `http2` has it, and a little.
const GOODBYE: Duration = Duration::from_secs(2);
/// One that was told last and holds idle tunnels has as long as all others until it is cut, and then says goodbye.
const LAST: Duration = Duration::from_millis(1200);

/// What a drain has to end.
pub(super) struct Open {
    pub(super) streams: Arc<Streams>,
    pub(super) rolls: Vec<Arc<Roll>>,
    pub(super) tasks: TaskTracker,
}

impl Open {
    /// After the listeners were closed. Returns when everything that somebody waits for is done and every connection was
    /// told, at the end of the drain's grace at the latest. Policies that change meanwhile count.
    pub(super) async fn finish(&self, terms: &Terms) -> Ended {
        let mut changes = terms.changes();
        let mut drain = terms.drain();
        let begin = Instant::now();
        let mut deadline = begin + drain.grace;
        self.tasks.close();
        let (all_told, told) = watch::channel(false);
        let mut pace = Pace::new(drain.per_second, 0, drain.grace);
        let ended = loop {
            let count = self.rolls.iter().map(|roll| roll.count().1).sum();
            let left = deadline.saturating_duration_since(Instant::now());
            pace.set(drain.per_second, count, left * 2 / 3);
            tracing::info!(
                connections = count,
                per_second = pace.per_second(),
                streams_busy = self.streams.under_way().busy,
                seconds_left = left.as_secs(),
                "telling connections to leave"
            );
            tokio::select! {
                ended = self.wait(told.clone(), deadline) => break ended,
                () = tell_off(&self.rolls, &mut pace, &all_told) => {
                    unreachable!("it goes on for as long as it is polled")
                }
                other = other(terms, &mut changes, drain) => drain = other,
            }
            deadline = moved(deadline, begin + drain.grace, Instant::now());
        };
        self.cut().await;
        ended
    }

    /// Until nothing is left that may not be cut.
    async fn wait(&self, mut told: watch::Receiver<bool>, deadline: Instant) -> Ended {
        loop {
            let waited = timeout_at(deadline, async {
                // Fails only where nobody tells any more.
                let _ = told.wait_for(|told| *told).await;
                self.streams.idle().await;
            });
            if waited.await.is_err() {
                return Ended::Cut(self.streams.under_way());
            }
            // Idle tunnels are cut a moment after their connection was told; their agents dial again at once. What was
            // sent before the client had read GOAWAY arrives meanwhile, and is served as well.
            if timeout(LAST, self.tasks.wait()).await.is_ok() || self.streams.under_way().busy == 0 {
                return Ended::Drained;
            }
        }
    }

    async fn cut(&self) {
        for roll in &self.rolls {
            roll.cut_all();
        }
        let _ = timeout(GOODBYE, self.tasks.wait()).await;
    }
}

/// Waits until something else holds for the drain.
async fn other(terms: &Terms, changes: &mut watch::Receiver<()>, now: Draining) -> Draining {
    loop {
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        let drain = terms.drain();
        if drain != now {
            return drain;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use postern_policies::{PolicySet, load_dir};

    fn policy(grace: &str) -> Arc<PolicySet> {
        let directory = tempfile::TempDir::new().unwrap();
        let text = format!(
            "apiVersion: postern/v1\nkind: ConnectionPolicy\nmetadata: {{name: drain}}\nspec: {{drain: {{grace: {grace}}}}}\n"
        );
        std::fs::write(directory.path().join("drain.yaml"), text).unwrap();
        Arc::new(load_dir(directory.path()).unwrap_or_else(|problems| panic!("{problems}")))
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_has_the_grace_that_policies_say_when_it_begins_and_while_it_goes_on() {
        for (before, meanwhile, wanted) in [
            ("20s", None, 20),
            ("20s", Some("50s"), 50),
            ("60s", Some("30s"), 30),
            // Whoever was promised more has a moment.
            ("60s", Some("1s"), 15),
        ] {
            let connections = config::Connections { max_age: None, jitter_percent: 0, grace: GOODBYE };
            let drain = config::Drain { pre: Duration::ZERO, grace: GOODBYE, connections_per_second: 1 };
            let terms = Terms::new(&connections, GOODBYE, &drain, policy(before));
            let (streams, tasks) = (Streams::new(), TaskTracker::new());
            let stream = streams.open();
            let ending = tokio::spawn({
                let (terms, rolls) = (terms.clone(), vec![Roll::new(&terms)]);
                async move { Open { streams, rolls, tasks }.finish(&terms).await }
            });
            let begin = Instant::now();
            tokio::time::sleep(Duration::from_secs(10)).await;
            if let Some(meanwhile) = meanwhile {
                terms.put(policy(meanwhile));
            }
            assert!(matches!(ending.await.unwrap(), Ended::Cut(_)), "a stream is open");
            assert_eq!(begin.elapsed().as_secs(), wanted, "{before} {meanwhile:?}");
            drop(stream);
        }
    }
}
