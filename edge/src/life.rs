//! When a connection has to end, and how: told to leave first, cut later.
//!
//! One [`Life`] per connection, polled by the task that serves it (`http2`, `accept`); it watches age, idleness, what
//! `drain` decides, and what holds by now ([`Terms`]). [`Farewell`] makes a WebSocket say 1001. Touches no socket itself and
//! never ends a stream that somebody waits for before its grace is over.

mod farewell;
pub mod pace;
mod roll;
mod terms;
#[cfg(test)]
mod tests;

pub use farewell::Farewell;
pub use roll::{Busy, Roll, Seat};
pub use terms::{Draining, Rhythm, Terms};

use postern_policies::Subject;
use postern_wire::token::TokenKey;
use roll::{Entry, Verdict};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use terms::Values;
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
/// Who was promised more time, and shall have less, has at least this.
const NOTICE: Duration = Duration::from_secs(5);

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

/// One connection's remaining time. Dropped with the connection.
///
/// Keeps none of the numbers that hold: they are looked up when one is needed, and an idle connection is kept small.
#[derive(Debug)]
pub struct Life {
    entry: Entry,
    /// Who was registered to be woken.
    waker: Option<Waker>,
    timer: Pin<Box<Sleep>>,
    born: Instant,
    /// How much of the jitter its age goes without, of 65,536. The same whatever the age becomes.
    luck: u16,
    /// Of the terms, when it looked last.
    edition: u32,
    /// The token was known by then.
    known: bool,
    minds_idle: bool,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Staying {
        leave_at: Option<Instant>,
        /// Since when no stream is open.
        quiet: Option<Instant>,
    },
    Leaving {
        why: Why,
        told_at: Instant,
        cut_at: Instant,
        /// At the last look nobody waited for anything. What was answered just before it may still be on its way.
        calm: bool,
    },
    Gone,
}

impl Life {
    /// Begins with the connection. `seat` is what its streams count in; `client` is who it is to selectors.
    pub fn new(roll: &Arc<Roll>, seat: Arc<Seat>, client: IpAddr) -> Self {
        Self::begin(roll, seat, client, true)
    }

    /// The same without a limit for idleness: for who watches that himself.
    pub fn without_idle(roll: &Arc<Roll>, seat: Arc<Seat>, client: IpAddr) -> Self {
        Self::begin(roll, seat, client, false)
    }

    fn begin(roll: &Arc<Roll>, seat: Arc<Seat>, client: IpAddr, minds_idle: bool) -> Self {
        let now = Instant::now();
        let mut life = Self {
            entry: Roll::enter(roll, seat),
            waker: None,
            timer: Box::pin(tokio::time::sleep_until(now)),
            born: now,
            luck: rand::random(),
            edition: 0,
            known: false,
            minds_idle,
            stage: Stage::Staying { leave_at: None, quiet: Some(now) },
        };
        life.renew(now, client);
        life
    }

    /// Whether the connection should end after what it carries now.
    pub fn is_leaving(&self) -> bool {
        match self.stage {
            Stage::Staying { leave_at, .. } => {
                self.entry.seat().verdict() != Verdict::Stay
                    || leave_at.is_some_and(|at| at <= Instant::now())
            }
            Stage::Leaving { .. } | Stage::Gone => true,
        }
    }

    /// Ready with each sentence once, `Leave` before `Cut`. `open`: whether the connection has any stream. To be polled
    /// whenever the connection is, so that it learns when the last stream ended and what holds from now on.
    pub fn poll(&mut self, cx: &mut Context<'_>, open: bool, client: IpAddr) -> Poll<Sentence> {
        // Before the verdict and the edition are read, so that none is missed.
        if !self.waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
            self.entry.seat().wake_by(cx.waker().clone());
            self.waker = Some(cx.waker().clone());
        }
        if let Stage::Staying { quiet, .. } = &mut self.stage {
            if open {
                *quiet = None;
            } else if quiet.is_none() {
                *quiet = Some(Instant::now());
            }
        }
        if self.is_outdated() {
            self.renew(Instant::now(), client);
        }
        if let Some(sentence) = self.obey(open, client) {
            return Poll::Ready(sentence);
        }
        while !matches!(self.stage, Stage::Gone) && self.timer.as_mut().poll(cx).is_ready() {
            let now = Instant::now();
            let values = self.values(client);
            if let Some(sentence) = self.due(now, open, &values) {
                return Poll::Ready(sentence);
            }
            self.wind(now, &values);
        }
        Poll::Pending
    }

    /// Ready when a policy denies the client, for who cannot be told anything else while he serves.
    pub fn poll_denied(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.entry.seat().wake_by(cx.waker().clone());
        self.waker = None;
        if self.entry.seat().verdict() != Verdict::Denied || matches!(self.stage, Stage::Gone) {
            // What else was decided is for `poll` to say.
            return Poll::Pending;
        }
        self.stage = Stage::Gone;
        self.entry.seat().note_cut(Why::Denied);
        Poll::Ready(())
    }

    /// Whether other numbers may hold than at the last look.
    fn is_outdated(&self) -> bool {
        self.edition != self.entry.terms().edition() || (!self.known && self.entry.seat().token().is_some())
    }

    fn values(&self, client: IpAddr) -> Values {
        let token = self.entry.seat().token();
        let subject = Subject {
            client: Some(client.to_canonical()),
            token_hash: token.map(TokenKey::as_bytes),
            ..Subject::default()
        };
        self.entry.terms().of(&subject)
    }

    /// Puts in force what holds by now, also for what has begun under other numbers.
    fn renew(&mut self, now: Instant, client: IpAddr) {
        let terms = self.entry.terms();
        self.edition = terms.edition();
        self.known = self.entry.seat().token().is_some();
        let values = self.values(client);
        self.entry.seat().set_rhythm(values.ping);
        match &mut self.stage {
            Stage::Staying { leave_at, quiet } => {
                let part = 1.0 - values.jitter * f64::from(self.luck) / 65_536.0;
                let end = values.max_age.map(|age| self.born + age.mul_f64(part));
                *leave_at = match (end, values.max_age) {
                    (Some(end), Some(age)) if end <= now => {
                        Some(terms.turn(now, age.mul_f64(values.jitter), *leave_at))
                    }
                    _ => end,
                };
                if let Some(since) = quiet
                    && self.minds_idle
                    && *since + values.idle <= now
                {
                    *since = terms.turn(now, values.idle.mul_f64(values.jitter), None) - values.idle;
                }
            }
            Stage::Leaving { why: Why::Age | Why::Idle, told_at, cut_at, .. } => {
                *cut_at = moved(*cut_at, *told_at + values.grace, now);
            }
            // The drain ends by its own clock.
            Stage::Leaving { .. } | Stage::Gone => {}
        }
        self.wind(now, &values);
    }

    /// What was decided meanwhile.
    fn obey(&mut self, open: bool, client: IpAddr) -> Option<Sentence> {
        match (self.entry.seat().verdict(), &self.stage) {
            (_, Stage::Gone) | (Verdict::Stay, _) => None,
            (verdict @ (Verdict::Cut | Verdict::Denied), _) => {
                let why = if verdict == Verdict::Cut { Why::Drain } else { Why::Denied };
                self.stage = Stage::Gone;
                self.entry.seat().note_cut(why);
                Some(Sentence::Cut(why))
            }
            (Verdict::Leave, Stage::Staying { .. }) => {
                let values = self.values(client);
                Some(self.leave(Why::Drain, Instant::now(), open, &values))
            }
            // Whoever leaves already knows.
            (Verdict::Leave, Stage::Leaving { .. }) => None,
        }
    }

    fn due(&mut self, now: Instant, open: bool, values: &Values) -> Option<Sentence> {
        match self.stage {
            Stage::Staying { leave_at, quiet } => {
                if leave_at.is_some_and(|at| at <= now) {
                    Some(self.leave(Why::Age, now, open, values))
                } else if self.minds_idle && quiet.is_some_and(|since| since + values.idle <= now) {
                    Some(self.leave(Why::Idle, now, open, values))
                } else {
                    None
                }
            }
            Stage::Leaving { why, told_at, cut_at, ref mut calm } => {
                let was_calm = std::mem::replace(calm, !self.entry.is_waited_for(open));
                let settled = told_at + values.settles(why) <= now;
                let over = cut_at <= now || (settled && was_calm && *calm);
                over.then(|| {
                    self.stage = Stage::Gone;
                    self.entry.seat().note_cut(why);
                    Sentence::Cut(why)
                })
            }
            Stage::Gone => None,
        }
    }

    fn leave(&mut self, why: Why, now: Instant, open: bool, values: &Values) -> Sentence {
        // The drain ends by its own clock, the same for all.
        let cut_at = now + if why == Why::Drain { FAR } else { values.grace };
        self.entry.tell();
        let calm = !self.entry.is_waited_for(open);
        self.stage = Stage::Leaving { why, told_at: now, cut_at, calm };
        self.wind(now, values);
        Sentence::Leave(why)
    }

    /// Sets the timer for when to look again.
    fn wind(&mut self, now: Instant, values: &Values) {
        let next = match self.stage {
            Stage::Staying { leave_at, quiet } => {
                let idle = quiet.unwrap_or(now) + if self.minds_idle { values.idle } else { FAR };
                leave_at.map_or(idle, |at| at.min(idle))
            }
            Stage::Leaving { why, told_at, cut_at, .. } => {
                let settles = values.settles(why);
                let look = if told_at + settles > now { told_at + settles } else { now + settles };
                look.min(cut_at)
            }
            Stage::Gone => now + FAR,
        };
        self.timer.as_mut().reset(next);
    }
}

impl Values {
    fn settles(&self, why: Why) -> Duration {
        match why {
            Why::Age => AGE_SETTLES,
            Why::Idle => IDLE_SETTLES.min(self.idle),
            Why::Drain | Why::Denied => DRAIN_SETTLES,
        }
    }
}

/// A deadline, once another one is meant: any later one, but no sooner than with some notice.
pub fn moved(deadline: Instant, meant: Instant, now: Instant) -> Instant {
    meant.max(deadline.min(now + NOTICE))
}
