//! When a connection has to end, and how: told to leave first, cut later.
//!
//! One [`Life`] per connection, polled by the task that serves it (`http2`, `accept`); it watches age, idleness and what
//! `drain` decides. [`Farewell`] makes a WebSocket say 1001. Touches no socket itself and never ends a stream that
//! somebody waits for before its grace is over.

mod farewell;
pub mod pace;
mod roll;
#[cfg(test)]
mod tests;

pub use farewell::Farewell;
pub use roll::{Busy, Roll, Seat, Whose};

use crate::config;
use roll::{Entry, Verdict};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// Between being told and being cut when nobody waits for a stream: a round trip around the world, so that what the
/// client sent before it heard is served.
const DRAIN_SETTLES: Duration = Duration::from_millis(500);
/// Nothing presses here: time to connect anew before the old connection goes.
const AGE_SETTLES: Duration = Duration::from_secs(5);
/// A client that does not confirm GOAWAY in this time is gone. Shorter where it may not even be idle for as long.
const IDLE_SETTLES: Duration = Duration::from_secs(15);
/// Further away than any deadline that is meant.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 3600);

/// What a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sentence {
    /// Take no new streams: GOAWAY, or `Connection: close`.
    Leave(Why),
    /// End now, whatever runs.
    Cut(Why),
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    Age,
    Idle,
    Drain,
    /// A policy denies the client's address.
    Denied,
}

impl Why {
    pub fn name(self) -> &'static str {
        match self {
            Self::Age => "age",
            Self::Idle => "idle",
            Self::Drain => "drain",
            Self::Denied => "denied by policy",
        }
    }
}

/// What holds for all connections of one worker.
#[derive(Debug, Clone)]
pub struct Terms {
    max_age: Option<Duration>,
    jitter: f64,
    grace: Duration,
    idle: Duration,
    roll: Arc<Roll>,
}

impl Terms {
    /// `idle`: how long a connection may be without any stream.
    pub fn new(connections: &config::Connections, idle: Duration) -> Self {
        Self {
            max_age: connections.max_age,
            jitter: f64::from(connections.jitter_percent) / 100.0,
            grace: connections.grace,
            idle,
            roll: Arc::default(),
        }
    }

    /// The same without a limit for idleness: for who watches that himself.
    pub fn without_idle(&self) -> Self {
        Self { idle: FAR, ..self.clone() }
    }

    /// The connections that live under these terms.
    pub fn roll(&self) -> &Arc<Roll> {
        &self.roll
    }
}

/// One connection's remaining time. Dropped with the connection.
#[derive(Debug)]
pub struct Life {
    entry: Entry,
    /// Who was registered to be woken.
    waker: Option<Waker>,
    timer: Pin<Box<Sleep>>,
    idle: Duration,
    grace: Duration,
    /// Since when no stream is open.
    quiet: Option<Instant>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Staying {
        leave_at: Option<Instant>,
    },
    Leaving {
        why: Why,
        settled_at: Instant,
        cut_at: Instant,
        /// At the last look nobody waited for anything. What was answered just before it may still be on its way.
        calm: bool,
    },
    Gone,
}

impl Life {
    /// Begins with the connection. `seat` is what its streams count in.
    pub fn new(terms: &Terms, seat: Arc<Seat>) -> Self {
        let now = Instant::now();
        let leave_at = terms.max_age.map(|age| now + age.mul_f64(1.0 - terms.jitter * rand::random::<f64>()));
        let mut life = Self {
            entry: Roll::enter(&terms.roll, seat),
            waker: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            idle: terms.idle,
            grace: terms.grace,
            quiet: Some(now),
            stage: Stage::Staying { leave_at },
        };
        let first = life.next(now);
        life.timer.as_mut().reset(first);
        life
    }

    /// Whether the connection should end after what it carries now.
    pub fn is_leaving(&self) -> bool {
        match self.stage {
            Stage::Staying { leave_at } => {
                self.entry.seat().verdict() != Verdict::Stay
                    || leave_at.is_some_and(|at| at <= Instant::now())
            }
            Stage::Leaving { .. } | Stage::Gone => true,
        }
    }

    /// Ready with each sentence once, `Leave` before `Cut`. `open`: whether the connection has any stream. To be polled
    /// whenever the connection is, so that it learns when the last stream ended.
    pub fn poll(&mut self, cx: &mut Context<'_>, open: bool) -> Poll<Sentence> {
        // Before the verdict is read, so that none is missed.
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.entry.seat().wake_by(cx.waker().clone());
            self.waker = Some(cx.waker().clone());
        }
        if open {
            self.quiet = None;
        } else if self.quiet.is_none() {
            self.quiet = Some(Instant::now());
        }
        if let Some(sentence) = self.obey(open) {
            return Poll::Ready(sentence);
        }
        while !matches!(self.stage, Stage::Gone) && self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            if let Some(sentence) = self.due(now, open) {
                return Poll::Ready(sentence);
            }
            let next = self.next(now);
            self.timer.as_mut().reset(next);
        }
        Poll::Pending
    }

    /// Ready when a policy denies the client, for who cannot be told anything else while he serves.
    pub fn poll_denied(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.entry.seat().wake_by(cx.waker().clone());
        self.waker = None;
        // What else was decided is for `poll` to say.
        let denied = self.entry.seat().verdict() == Verdict::Denied;
        if denied && self.obey(true).is_some() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// What was decided meanwhile.
    fn obey(&mut self, open: bool) -> Option<Sentence> {
        match (self.entry.seat().verdict(), &self.stage) {
            (_, Stage::Gone) | (Verdict::Stay, _) => None,
            (verdict @ (Verdict::Cut | Verdict::Denied), _) => {
                let why = if verdict == Verdict::Cut { Why::Drain } else { Why::Denied };
                self.stage = Stage::Gone;
                self.entry.seat().note_cut(why);
                Some(Sentence::Cut(why))
            }
            (Verdict::Leave, Stage::Staying { .. }) => Some(self.leave(Why::Drain, Instant::now(), open)),
            // Whoever leaves already knows.
            (Verdict::Leave, Stage::Leaving { .. }) => None,
        }
    }

    fn due(&mut self, now: Instant, open: bool) -> Option<Sentence> {
        match self.stage {
            Stage::Staying { leave_at } => {
                if leave_at.is_some_and(|at| at <= now) {
                    Some(self.leave(Why::Age, now, open))
                } else if self.quiet.is_some_and(|since| since + self.idle <= now) {
                    Some(self.leave(Why::Idle, now, open))
                } else {
                    None
                }
            }
            Stage::Leaving { why, settled_at, cut_at, ref mut calm } => {
                let was_calm = std::mem::replace(calm, !self.entry.is_waited_for(open));
                let over = cut_at <= now || (settled_at <= now && was_calm && *calm);
                over.then(|| {
                    self.stage = Stage::Gone;
                    self.entry.seat().note_cut(why);
                    Sentence::Cut(why)
                })
            }
            Stage::Gone => None,
        }
    }

    fn leave(&mut self, why: Why, now: Instant, open: bool) -> Sentence {
        // The drain ends by its own clock, the same for all.
        let cut_at = now + if why == Why::Drain { FAR } else { self.grace };
        self.entry.tell();
        let calm = !self.entry.is_waited_for(open);
        self.stage = Stage::Leaving { why, settled_at: now + self.settles(why), cut_at, calm };
        let next = self.next(now);
        self.timer.as_mut().reset(next);
        Sentence::Leave(why)
    }

    fn settles(&self, why: Why) -> Duration {
        match why {
            Why::Age => AGE_SETTLES,
            Why::Idle => IDLE_SETTLES.min(self.idle),
            Why::Drain | Why::Denied => DRAIN_SETTLES,
        }
    }

    /// When to look again.
    fn next(&self, now: Instant) -> Instant {
        match self.stage {
            Stage::Staying { leave_at } => {
                let idle = self.quiet.unwrap_or(now) + self.idle;
                leave_at.map_or(idle, |at| at.min(idle))
            }
            Stage::Leaving { why, settled_at, cut_at, .. } => {
                let look = if settled_at > now { settled_at } else { now + self.settles(why) };
                look.min(cut_at)
            }
            Stage::Gone => now + FAR,
        }
    }
}
