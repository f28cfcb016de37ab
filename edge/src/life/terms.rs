//! What holds for connections: the numbers of `edge.yaml`, and on top of them what policies say, which may change at any
//! time.
//!
//! One for the process, from `server`; each `life` asks it for its connection, and `server::finish` for the drain. Knows no
//! connection, only how many there are.

use super::FAR;
use crate::config;
use arc_swap::{ArcSwap, Guard};
use postern_policies::{Live, PolicySet, Rules, Subject};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::Instant;

/// A ping that is due more often than this costs more than it tells.
const LEAST_PING: Duration = Duration::from_secs(1);
/// What is spread at a rate is spread over a little more time than that takes, so that no second has more.
const SLACK: f64 = 1.1;
/// 2^32 divided by the golden ratio: multiples of it, modulo 2^32, lie evenly however many there are.
const GOLDEN: u32 = 2_654_435_769;

/// What holds for all connections of the process, by now.
#[derive(Debug)]
pub struct Terms {
    /// The lowest layer.
    connections: config::Connections,
    idle: Duration,
    drain: Draining,
    set: ArcSwap<PolicySet>,
    /// Another one with each set. Read whenever a connection does anything, so it is no channel.
    edition: AtomicU32,
    changed: watch::Sender<()>,
    /// Connections, of all workers.
    open: AtomicUsize,
    /// Connections that were given a turn.
    turns: AtomicU32,
}

/// What holds for one connection.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Values {
    pub(super) max_age: Option<Duration>,
    /// The share of the age that may be left out, 0 to 1.
    pub(super) jitter: f64,
    pub(super) grace: Duration,
    pub(super) idle: Duration,
    pub(super) ping: Rhythm,
}

/// What holds for a drain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Draining {
    /// How long running streams may finish.
    pub grace: Duration,
    /// How many connections are told to leave in a second; 0: all at once.
    pub per_second: u32,
}

/// How often policies have a connection pinged. In milliseconds; 0: they do not say, the largest: never.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rhythm(pub(super) u32);

impl Terms {
    /// `idle`: how long a connection may be without any stream.
    pub fn new(
        connections: &config::Connections,
        idle: Duration,
        drain: &config::Drain,
        set: Arc<PolicySet>,
    ) -> Arc<Self> {
        Arc::new(Self {
            connections: connections.clone(),
            idle,
            drain: Draining { grace: drain.grace, per_second: drain.connections_per_second },
            set: ArcSwap::new(set),
            edition: AtomicU32::new(0),
            changed: watch::Sender::new(()),
            open: AtomicUsize::new(0),
            turns: AtomicU32::new(0),
        })
    }

    /// Puts every set in force that the policies have from now on. Does not return as long as they are live.
    pub async fn follow(&self, live: &Live) {
        let mut changes = live.changes();
        loop {
            // Also at first: there may be another one already.
            self.put(Guard::into_inner(live.set()));
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Puts a set in force. One that says the same about connections wakes none of them.
    pub(crate) fn put(&self, set: Arc<PolicySet>) {
        let before = self.set.swap(set.clone());
        if before.connections == set.connections {
            return;
        }
        // Who sees this finds that set.
        self.edition.fetch_add(1, Ordering::Release);
        self.changed.send_replace(());
    }

    /// Changes when something else may hold.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn edition(&self) -> u32 {
        self.edition.load(Ordering::Acquire)
    }

    pub(super) fn of(&self, subject: &Subject<'_>) -> Values {
        let set = self.set.load();
        let said = &set.connections;
        let usual = &self.connections;
        let max_age = found(&said.max_age, subject).unwrap_or(usual.max_age.unwrap_or_default());
        let jitter = found(&said.jitter_percent, subject).unwrap_or(usual.jitter_percent).min(100);
        Values {
            max_age: (!max_age.is_zero()).then_some(max_age.min(FAR)),
            jitter: f64::from(jitter) / 100.0,
            grace: found(&said.grace, subject).unwrap_or(usual.grace).min(FAR),
            idle: found(&said.idle, subject).unwrap_or(self.idle).min(FAR),
            ping: found(&said.ping, subject).map_or(Rhythm::default(), |ping| match ping {
                Duration::ZERO => Rhythm::NEVER,
                ping => Rhythm::of(Some(ping.max(LEAST_PING))),
            }),
        }
    }

    /// What holds for a drain.
    pub fn drain(&self) -> Draining {
        let set = self.set.load();
        let (said, everybody) = (&set.connections, PolicySet::everybody());
        Draining {
            grace: found(&said.drain_grace, &everybody).unwrap_or(self.drain.grace).min(FAR),
            per_second: found(&said.drain_per_second, &everybody).unwrap_or(self.drain.per_second),
        }
    }

    /// When a connection leaves that would have had to long ago, by numbers that hold only now. All of them leave over the
    /// time `spread`, or over so long that no more go in a second than a drain would send away. Who was about to leave
    /// within that time anyway does so when he `had` to.
    pub(super) fn turn(&self, now: Instant, spread: Duration, had: Option<Instant>) -> Instant {
        let span = match self.drain().per_second {
            0 => spread,
            per_second => {
                let open = self.open.load(Ordering::Relaxed) as f64;
                spread.max(Duration::from_secs_f64(open / f64::from(per_second) * SLACK))
            }
        };
        match had {
            Some(at) if at <= now + span => at,
            _ => {
                let place = self.turns.fetch_add(1, Ordering::Relaxed).wrapping_mul(GOLDEN);
                now + span.mul_f64(f64::from(place) / (f64::from(u32::MAX) + 1.0))
            }
        }
    }

    pub(super) fn enter(&self) {
        self.open.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn exit(&self) {
        self.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn found<T: Copy>(rules: &Rules<T>, subject: &Subject<'_>) -> Option<T> {
    rules.find(subject).map(|ruled| *ruled.value)
}

impl Rhythm {
    const NEVER: Self = Self(u32::MAX);

    /// `None`: never.
    pub(super) fn of(interval: Option<Duration>) -> Self {
        let milliseconds =
            |interval: Duration| interval.as_millis().clamp(1, u128::from(u32::MAX - 1)) as u32;
        interval.map_or(Self::NEVER, |interval| Self(milliseconds(interval)))
    }

    /// How often to ping; `None`: never. `usual`: where no policy says anything.
    pub fn or(self, usual: Option<Duration>) -> Option<Duration> {
        match self {
            Self(0) => usual,
            Self::NEVER => None,
            Self(milliseconds) => Some(Duration::from_millis(milliseconds.into())),
        }
    }
}
