//! Holds back new streams while the broker refuses the agent's token or limits it, so that hundreds of tunnels do not
//! repeat what has just been answered. One line per refusal, and a new token opens the gate at once.

use crate::backoff::Backoff;
use postern_wire::metadata::retry_pushback;
use rand::Rng;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};
use tonic::{Code, Status};

/// kas caches a refused token for a minute, so asking more often learns nothing for long.
const REFUSED: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(300));
/// Limits are counted per minute.
const LIMITED: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(30));
/// No broker holds streams back for longer: they can never be told to stay away.
const LONGEST_HINT: Duration = Duration::from_secs(120);
/// What is added at random, as a broker may tell many the same: so much, and a tenth of the hint up to a second.
const HINT_JITTER: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(1));
/// A limit that was last met longer ago than this is a new one.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// What the broker has against the agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The token is unknown.
    Unauthenticated,
    /// The token is known and may not.
    Forbidden,
    /// The agent that the token belonged to is gone.
    NotFound,
    /// Too many requests with this token.
    Limited,
    /// Nothing against the token: the broker says when it is to be asked again.
    Later,
}

impl Refusal {
    /// Whether a status is about the token rather than about one request.
    pub fn of(status: &Status) -> Option<Self> {
        match status.code() {
            Code::Unauthenticated => Some(Self::Unauthenticated),
            Code::PermissionDenied => Some(Self::Forbidden),
            // Other things are not found too, such as the branch of a configuration.
            Code::NotFound if status.message().contains("agent") => Some(Self::NotFound),
            Code::ResourceExhausted => Some(Self::Limited),
            Code::Unavailable => hint(status).map(|_| Self::Later),
            _ => None,
        }
    }
}

/// After how long the broker wants to be asked again, where it says so.
pub fn hint(status: &Status) -> Option<Duration> {
    matches!(status.code(), Code::ResourceExhausted | Code::Unavailable)
        .then(|| retry_pushback(status.metadata()))
        .flatten()
        .map(|after| after.min(LONGEST_HINT))
}

/// Open, or closed until some moment.
#[derive(Debug)]
pub struct Gate {
    closed_until: watch::Sender<Option<Instant>>,
    delays: Mutex<Delays>,
}

#[derive(Debug)]
struct Delays {
    refused: Backoff,
    limited: Backoff,
    last_limited: Option<Instant>,
}

impl Default for Gate {
    fn default() -> Self {
        let delays = Delays {
            refused: Backoff::new(REFUSED.0, REFUSED.1, 2.0),
            limited: Backoff::new(LIMITED.0, LIMITED.1, 2.0),
            last_limited: None,
        };
        Self { closed_until: watch::Sender::new(None), delays: Mutex::new(delays) }
    }
}

impl Gate {
    /// Waits until streams may be opened.
    pub async fn passed(&self) {
        let mut closed = self.closed_until.subscribe();
        loop {
            let until = *closed.borrow_and_update();
            let Some(until) = until.filter(|until| *until > Instant::now()) else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep_until(until) => return,
                _ = closed.changed() => {}
            }
        }
    }

    /// Whether streams are held back now.
    pub fn is_closed(&self) -> bool {
        self.closed_until.borrow().is_some_and(|until| until > Instant::now())
    }

    /// Closes the gate, for as long as the broker's `hint` says where there is one. The delay is given to the first who
    /// reports; the others of the same volley get `None`.
    pub fn close(&self, refusal: Refusal, hint: Option<Duration>) -> Option<Duration> {
        let mut delay = None;
        self.closed_until.send_if_modified(|until| {
            if until.is_some_and(|until| until > Instant::now()) {
                return false;
            }
            let mut delays = self.delays.lock().unwrap_or_else(PoisonError::into_inner);
            let step = match (refusal, hint) {
                (_, Some(after)) => jittered(after),
                (Refusal::Limited, None) => {
                    if delays.last_limited.replace(Instant::now()).is_none_or(|at| at.elapsed() > FORGOTTEN) {
                        delays.limited.reset();
                    }
                    delays.limited.step()
                }
                _ => delays.refused.step(),
            };
            *until = Some(Instant::now() + step);
            delay = Some(step);
            true
        });
        delay
    }

    /// A stream was admitted: the next refusal begins with a short delay again. Says nothing about limits: streams
    /// that were opened before the limit was met go on.
    pub fn admitted(&self) {
        self.delays.lock().unwrap_or_else(PoisonError::into_inner).refused.reset();
    }

    /// Opens the gate now, for a new token.
    pub fn open(&self) {
        self.admitted();
        self.closed_until.send_replace(None);
    }
}

fn jittered(after: Duration) -> Duration {
    let most = ((after / 10).min(HINT_JITTER.1) + HINT_JITTER.0).as_millis() as u64;
    after + Duration::from_millis(rand::rng().random_range(0..=most))
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::metadata::set_retry_pushback;

    #[tokio::test(start_paused = true)]
    async fn a_brokers_hint_decides_and_counts_for_no_later_delay() {
        for (hinted, least, most) in
            [(0, 0, 200), (1_500, 1_500, 1_850), (30_000, 30_000, 31_200), (900_000, 120_000, 121_200)]
        {
            for (mut status, refusal) in [
                (Status::resource_exhausted(""), Refusal::Limited),
                (Status::unavailable(""), Refusal::Later),
            ] {
                set_retry_pushback(status.metadata_mut(), Duration::from_millis(hinted));
                assert_eq!(Refusal::of(&status), Some(refusal));
                let gate = Gate::default();
                for _ in 0..5 {
                    let delay = gate.close(refusal, hint(&status)).unwrap().as_millis();
                    assert!((least..=most).contains(&delay), "{hinted}: {delay}");
                    gate.passed().await;
                }
                assert!(gate.close(Refusal::Limited, None).unwrap() < Duration::from_secs(7));
            }
        }
        let mut other = Status::not_found("no such file");
        set_retry_pushback(other.metadata_mut(), Duration::ZERO);
        assert_eq!((hint(&other), Refusal::of(&other)), (None, None));
    }

    #[tokio::test(start_paused = true)]
    async fn a_volley_of_refusals_closes_the_gate_once_and_for_longer_each_time() {
        let gate = Gate::default();
        gate.passed().await;
        let first = gate.close(Refusal::Unauthenticated, None).unwrap();
        assert_eq!(gate.close(Refusal::Unauthenticated, None), None);
        assert!(gate.is_closed());
        let began = Instant::now();
        gate.passed().await;
        assert!(!gate.is_closed());
        assert!(began.elapsed() >= first && first >= Duration::from_secs(8), "{first:?}");
        let second = gate.close(Refusal::Unauthenticated, None).unwrap();
        assert!(second > first, "{second:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_asked_about_less_and_less_even_while_older_streams_are_admitted() {
        let gate = Gate::default();
        let mut delays = Vec::new();
        for _ in 0..4 {
            delays.push(gate.close(Refusal::Limited, None).unwrap());
            gate.admitted();
            gate.passed().await;
        }
        assert!(delays[0] < Duration::from_secs(7) && delays[3] >= Duration::from_secs(24), "{delays:?}");
        tokio::time::advance(Duration::from_secs(300)).await;
        assert!(gate.close(Refusal::Limited, None).unwrap() < Duration::from_secs(7));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_token_opens_the_gate_at_once() {
        let gate = std::sync::Arc::new(Gate::default());
        gate.close(Refusal::NotFound, None);
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.passed().await }
        });
        tokio::task::yield_now().await;
        let began = Instant::now();
        gate.open();
        waiting.await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
    }

    #[test]
    fn only_statuses_about_the_token_are_refusals() {
        assert_eq!(Refusal::of(&Status::unauthenticated("")), Some(Refusal::Unauthenticated));
        assert_eq!(Refusal::of(&Status::resource_exhausted("")), Some(Refusal::Limited));
        assert_eq!(Refusal::of(&Status::unavailable("")), None);
    }
}
