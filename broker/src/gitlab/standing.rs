//! Whether a token is still good while something runs with it: asked of GitLab again every period for as long as anybody
//! holds the [`Standing`], once per token however many streams there are. Before it: admission. After it: streams that
//! end when their token is withdrawn. GitLab being away withdraws nothing, and who is here already may go on.

use super::{
    Fault, RailsError,
    cache::{Cache, Lasting, Remember, Settings},
};
use rand::Rng;
use std::{
    collections::HashMap,
    fmt,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

/// Answers are asked for again at most this often, even where none is to be kept.
const SHORTEST: Duration = Duration::from_secs(5);
/// After a question that GitLab could not answer; doubled each time, and up to as much again at random.
const RETRY: Duration = Duration::from_secs(2);
const RETRY_MAX: Duration = Duration::from_secs(30);

type Now<V> = Result<Arc<V>, RailsError>;

/// Why a token is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Occasion {
    /// Somebody waits to be let in.
    First,
    /// It was good, and something runs with it.
    Again,
}

/// What is known of each token, and followed while somebody needs it.
pub struct Standings<K, V> {
    cache: Cache<K, Arc<V>, RailsError>,
    live: Mutex<HashMap<K, Weak<Live<V>>>>,
    period: Duration,
    stop: CancellationToken,
    tasks: TaskTracker,
}

struct Live<V> {
    now: watch::Sender<Now<V>>,
    _stop: DropGuard,
}

/// A token that was good, and word of it when it no longer is. Held, it is asked for again and again.
pub struct Standing<V>(Arc<Live<V>>);

impl<V> Clone for Standing<V> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<V: fmt::Debug> fmt::Debug for Standing<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Standing").field(&*self.0.now.borrow()).finish()
    }
}

impl<V> Standing<V> {
    /// Good, and as what; or why it no longer is. Wakes at each change.
    pub fn watch(&self) -> watch::Receiver<Now<V>> {
        self.0.now.subscribe()
    }

    /// As [`Standing::watch`], now.
    pub fn now(&self) -> Now<V> {
        self.0.now.borrow().clone()
    }
}

impl<K, V> Standings<K, V>
where
    K: Clone + Eq + Hash + Send + Sync + 'static,
    V: PartialEq + Send + Sync + 'static,
{
    /// What is followed is asked for again after `settings.ok`, which is so the bound within which a withdrawn token is
    /// noticed while GitLab answers.
    pub fn new(settings: Settings, stop: CancellationToken, tasks: TaskTracker) -> Self {
        let period = settings.ok.max(SHORTEST);
        Self { cache: Cache::new(settings), live: Mutex::default(), period, stop, tasks }
    }

    /// What this token stands for: as it is followed already, as it was answered a moment ago, or as `ask` finds out.
    pub async fn of<F>(
        &self,
        key: K,
        ask: impl Fn(Occasion) -> F + Send + Sync + 'static,
    ) -> Result<Standing<V>, RailsError>
    where
        F: Future<Output = Now<V>> + Send + 'static,
    {
        if let Some(known) = self.known(&key) {
            return Ok(known);
        }
        let (first, answered) = self.cache.get_dated(key.clone(), || ask(Occasion::First)).await;
        Ok(self.enter(key, first?, answered, ask))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Weak<Live<V>>>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn known(&self, key: &K) -> Option<Standing<V>> {
        let live = self.lock().get(key).and_then(Weak::upgrade)?;
        let good = live.now.borrow().is_ok();
        good.then_some(Standing(live))
    }

    fn enter<F>(
        &self,
        key: K,
        first: Arc<V>,
        answered: Instant,
        ask: impl Fn(Occasion) -> F + Send + Sync + 'static,
    ) -> Standing<V>
    where
        F: Future<Output = Now<V>> + Send + 'static,
    {
        let mut live = self.lock();
        if let Some(known) = live.get(&key).and_then(Weak::upgrade)
            && known.now.borrow().is_ok()
        {
            return Standing(known);
        }
        // Whoever comes anew sweeps, but not over all of them each time.
        if live.len() == live.capacity() {
            live.retain(|_, standing| standing.strong_count() > 0);
        }
        let now = watch::Sender::new(Ok(first));
        let stop = self.stop.child_token();
        let standing = Arc::new(Live { now: now.clone(), _stop: stop.clone().drop_guard() });
        live.insert(key.clone(), Arc::downgrade(&standing));
        let (cache, period) = (self.cache.clone(), self.period);
        self.tasks.spawn(async move {
            let renew = || cache.renew(key.clone(), || ask(Occasion::Again));
            stop.run_until_cancelled(follow(now, answered, period, renew)).await;
        });
        Standing(standing)
    }
}

async fn follow<V: PartialEq, F>(
    now: watch::Sender<Now<V>>,
    answered: Instant,
    period: Duration,
    renew: impl Fn() -> F,
) where
    F: Future<Output = Now<V>>,
{
    let random = || rand::rng().random_range(0.0..=1.0);
    let mut failures = 0;
    // What was known already was answered a part of the period ago.
    let mut next = answered + pause(period, failures, random());
    loop {
        sleep_until(next).await;
        match renew().await {
            Ok(value) => {
                failures = 0;
                now.send_if_modified(|last| {
                    let differs = last.as_ref().is_ok_and(|last| *last != value);
                    *last = Ok(value);
                    differs
                });
            }
            Err(error) if error.lasting() == Lasting::Definitive => {
                drop(now.send_replace(Err(error)));
                return;
            }
            // Others wait for their turn to ask who they are, and this token was good a while ago.
            Err(RailsError { fault: Fault::RateLimited(_), .. }) => {
                next = Instant::now() + RETRY + (RETRY_MAX - RETRY).mul_f64(random());
                continue;
            }
            Err(error) => {
                if failures == 0 {
                    tracing::warn!(
                        error = %crate::error::chain(&error),
                        "cannot ask whether a token is still good; what runs with it goes on"
                    );
                }
                failures += 1;
            }
        }
        next = Instant::now() + pause(period, failures, random());
    }
}

/// `random` is between 0 and 1; it never makes the first pause longer than `period`.
fn pause(period: Duration, failures: u32, random: f64) -> Duration {
    match failures {
        0 => period.mul_f64(1.0 - random / 5.0),
        more => {
            let doubled = RETRY.saturating_mul(2_u32.saturating_pow(more - 1));
            doubled.min(RETRY_MAX).mul_f64(1.0 + random).min(period.max(RETRY_MAX * 2))
        }
    }
}

#[cfg(test)]
mod tests;
