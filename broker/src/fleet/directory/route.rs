//! What is known of the brokers that hold one agent, and what a search is told next. Pure: news and answers come in, the
//! time is given, and whoever owns the route asks Redis when it says so.
//!
//! A broker is named at once where the cache says so; cached entries are true while the others' news are heard, and
//! doubtful after a gap: then they are used all the same and Redis is asked behind them. What fell out of the cache or
//! out of Redis without a word is remembered for a while and named last.

use super::{Found, LastSeen, schema::BROKERS_MAX, world::View};
use crate::fleet::PeerUrl;
use rand::Rng;
use std::{cmp::Reverse, time::Duration};
use tokio::time::Instant;

/// A search does not wait longer for Redis before it says that it knows nothing.
pub(super) const PATIENCE: Duration = Duration::from_millis(100);
/// An answer of Redis is good for so long whatever happens, also where it names nobody.
pub(super) const FRESH: Duration = Duration::from_millis(800);
/// Between two questions while Redis fails.
const RETRY: Duration = Duration::from_millis(200);
/// A broker that was given up for an agent is named again after so long if Redis still has it, doubled each time.
const GIVEN_UP: Duration = Duration::from_secs(1);
const GIVEN_UP_DOUBLINGS: u32 = 4;
/// An agent that came so lately is where it came to.
const CAME_LATELY: Duration = Duration::from_secs(10);

/// One agent's.
#[derive(Debug, Default)]
pub(super) struct Route {
    known: Vec<Known>,
    asked: Option<Asked>,
    /// Since when Redis is being asked.
    looking: Option<Instant>,
    /// When Redis could not answer, if it could not the last time.
    failed: Option<Instant>,
}

#[derive(Debug)]
struct Known {
    peer: PeerUrl,
    standing: Standing,
    /// Another one each time it appears: then it is told again.
    number: u64,
    came: Option<Instant>,
    /// Until when the entry is good.
    until: Instant,
    /// Until when it is remembered.
    remembered: Instant,
    /// Not named before, but after all others.
    given_up: Option<Instant>,
    times_given_up: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Listed,
    /// Redis does not list it; it may have lost it.
    Absent,
    /// It said so itself. Kept while Redis is being asked, as the answer may be older.
    Left,
}

#[derive(Debug)]
struct Asked {
    at: Instant,
    epoch: u64,
    last: Option<LastSeen>,
}

/// When a question to Redis was begun: what was heard since is newer than the answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) number: u64,
    pub(super) epoch: u64,
}

/// What a search was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    peers: Vec<(PeerUrl, u64)>,
    nobody: bool,
    unknown: bool,
}

/// What a search is to do.
#[derive(Debug)]
pub(super) struct Step {
    /// Ask Redis now; nobody else does.
    pub(super) look: bool,
    /// Tell this.
    pub(super) tell: Option<Found>,
    /// Else come again, if there is no news before.
    pub(super) until: Option<Instant>,
}

impl Known {
    fn is_listed(&self, now: Instant) -> bool {
        self.standing == Standing::Listed && self.given_up.is_none() && now < self.until
    }

    fn is_remembered(&self, now: Instant) -> bool {
        self.standing != Standing::Left && now < self.remembered && !self.is_listed(now)
    }
}

impl Route {
    /// Whether a broker has it whose word is good: it came there since then, or that broker lives.
    pub(super) fn is_elsewhere(
        &self,
        now: Instant,
        since: Option<Instant>,
        is_alive: impl Fn(&PeerUrl) -> bool,
    ) -> bool {
        let came = |known: &Known| matches!((known.came, since), (Some(at), Some(since)) if at >= since);
        self.known.iter().any(|known| known.is_listed(now) && (came(known) || is_alive(&known.peer)))
    }

    /// Whether any broker has it, as far as is known.
    fn is_listed(&self, now: Instant) -> bool {
        self.known.iter().any(|known| known.is_listed(now))
    }

    /// Whether all brokers that are said to have it turned out not to.
    pub(super) fn is_doubtful(&self) -> bool {
        let is_good = |known: &Known| known.standing == Standing::Listed && known.times_given_up == 0;
        !self.known.iter().any(is_good)
    }

    /// What to tell next, and not later than `patience` after Redis was asked. With `poll`, Redis is asked however good the
    /// cache is.
    pub(super) fn step(&mut self, told: &mut Told, view: View, patience: Duration, poll: bool) -> Step {
        self.tidy(view.now);
        let now = view.now;
        let look = (poll && self.may_look(view)) || self.look(view);
        if look {
            self.looking = Some(now);
        }
        let tell = |found| Step { look, tell: Some(found), until: None };
        if let Some(peer) = self.next(told, view.now, Known::is_listed) {
            return tell(Found::Peer(peer));
        }
        let wait = |until| Step { look, tell: None, until };
        if self.is_listed(now) {
            return wait(None);
        }
        let is_stuck = self.failed.is_some() || self.looking.is_some_and(|since| now >= since + patience);
        if !is_stuck && self.looking.is_some() {
            return wait(self.looking.map(|since| since + patience));
        }
        if let Some(peer) = self.next(told, now, Known::is_remembered) {
            return tell(Found::Peer(peer));
        }
        if is_stuck || view.is_young {
            if !std::mem::replace(&mut told.unknown, true) {
                return tell(Found::Unknown);
            }
        } else if !std::mem::replace(&mut told.nobody, true) {
            let last = self.asked.as_ref().and_then(|asked| asked.last.clone());
            return tell(Found::Nobody { last });
        }
        wait(None)
    }

    /// Whether Redis must be asked now; the caller does it then.
    pub(super) fn look(&mut self, view: View) -> bool {
        let look = !self.is_sure(view) && self.may_look(view);
        if look {
            self.looking = Some(view.now);
        }
        look
    }

    /// Whether the brokers listed are all there are: Redis said so, and all news were heard since.
    fn is_sure(&self, view: View) -> bool {
        let now = view.now;
        let is_good =
            |asked: &Asked| now < asked.at + FRESH || (view.is_listening && asked.epoch == view.epoch);
        let is_over = |known: &Known| known.standing == Standing::Listed && known.until <= now;
        self.asked.as_ref().is_some_and(is_good) && self.is_listed(now) && !self.known.iter().any(is_over)
    }

    fn may_look(&self, view: View) -> bool {
        let is_old = |asked: &Asked| view.now >= asked.at + FRESH || asked.epoch != view.epoch;
        self.looking.is_none()
            && self.asked.as_ref().is_none_or(is_old)
            && self.failed.is_none_or(|at| view.now >= at + RETRY)
    }

    /// One that was not told yet: where the agent came to lately, else any, so that the load is spread.
    fn next(&self, told: &mut Told, now: Instant, which: fn(&Known, Instant) -> bool) -> Option<PeerUrl> {
        let is_told = |known: &Known| {
            told.peers.iter().any(|(peer, number)| *peer == known.peer && *number >= known.number)
        };
        let rank = |known: &&Known| {
            let lately = known.came.filter(|at| now < *at + CAME_LATELY).map(|_| known.number);
            (known.given_up.is_some(), Reverse(lately), rand::rng().random::<u32>())
        };
        let next = self.known.iter().filter(|known| which(known, now) && !is_told(known)).min_by_key(rank)?;
        told.peers
            .retain(|(peer, _)| self.known.iter().any(|known| known.peer == *peer) && *peer != next.peer);
        told.peers.push((next.peer.clone(), next.number));
        Some(next.peer.clone())
    }

    /// A broker announced the agent.
    pub(super) fn came(&mut self, peer: PeerUrl, number: u64, (ttl, now): (Duration, Instant)) {
        let known = self.enter(peer, number, now);
        known.standing = Standing::Listed;
        known.number = number;
        known.came = Some(now);
        known.until = now + ttl;
        known.remembered = now + ttl;
        known.given_up = None;
        known.times_given_up = 0;
    }

    /// A broker announced that it has none any more.
    pub(super) fn left(&mut self, peer: PeerUrl, number: u64, now: Instant) {
        if self.looking.is_some() {
            let known = self.enter(peer, number, now);
            known.standing = Standing::Left;
            known.number = number;
        } else {
            self.known.retain(|known| known.peer != peer);
            self.doubt_if_empty();
        }
    }

    /// Where all have left, Redis knows more of the agent than that: where it was.
    fn doubt_if_empty(&mut self) {
        if !self.known.iter().any(|known| known.standing == Standing::Listed) {
            self.asked = None;
        }
    }

    /// A request found that it has none, or cannot be reached.
    pub(super) fn forget(&mut self, peer: &PeerUrl, now: Instant) {
        if let Some(known) =
            self.known.iter_mut().find(|known| known.peer == *peer && known.given_up.is_none())
        {
            let wait = GIVEN_UP * (1 << known.times_given_up.min(GIVEN_UP_DOUBLINGS));
            known.given_up = Some(now + wait);
            known.times_given_up += 1;
        }
    }

    /// Redis answered: these, each good until then, and what is remembered of the agent where there are none.
    pub(super) fn answered(
        &mut self,
        listed: Vec<(PeerUrl, Instant)>,
        last: Option<LastSeen>,
        begun: Begun,
        (ttl, now): (Duration, Instant),
        mut number: impl FnMut() -> u64,
    ) {
        self.looking = None;
        self.failed = None;
        self.asked = Some(Asked { at: now, epoch: begun.epoch, last });
        for known in &mut self.known {
            let is_older = known.number <= begun.number;
            if is_older
                && known.standing == Standing::Listed
                && !listed.iter().any(|(peer, _)| *peer == known.peer)
            {
                known.standing = Standing::Absent;
            }
        }
        let was_empty = listed.is_empty();
        for (peer, until) in listed.into_iter().take(BROKERS_MAX) {
            let fresh = number();
            let known = self.enter(peer, fresh, now);
            if known.standing == Standing::Left && known.number > begun.number {
                continue;
            }
            if known.standing != Standing::Listed || known.until <= now {
                known.number = fresh;
            }
            known.standing = Standing::Listed;
            known.until = until.max(known.until);
            known.remembered = now + ttl;
        }
        self.known.retain(|known| known.standing != Standing::Left);
        if !was_empty {
            self.doubt_if_empty();
        }
        self.rested(now, number);
    }

    /// Redis did not answer.
    pub(super) fn failed(&mut self, now: Instant, number: impl FnMut() -> u64) {
        self.looking = None;
        self.failed = Some(now);
        self.known.retain(|known| known.standing != Standing::Left);
        self.rested(now, number);
    }

    /// Those given up long enough ago are named again.
    fn rested(&mut self, now: Instant, mut number: impl FnMut() -> u64) {
        for known in &mut self.known {
            if known.given_up.is_some_and(|until| until <= now) {
                known.given_up = None;
                known.number = number();
            }
        }
    }

    /// The one of this broker; a new one says nothing yet.
    fn enter(&mut self, peer: PeerUrl, number: u64, now: Instant) -> &mut Known {
        let at = match self.known.iter().position(|known| known.peer == peer) {
            Some(at) => at,
            None => {
                if self.known.len() >= BROKERS_MAX {
                    let first = self.known.iter().enumerate().min_by_key(|(_, known)| known.remembered);
                    let first = first.map_or(0, |(at, _)| at);
                    self.known.swap_remove(first);
                }
                self.known.push(Known {
                    peer,
                    standing: Standing::Absent,
                    number,
                    came: None,
                    until: now,
                    remembered: now,
                    given_up: None,
                    times_given_up: 0,
                });
                self.known.len() - 1
            }
        };
        &mut self.known[at]
    }

    fn tidy(&mut self, now: Instant) {
        let is_looking = self.looking.is_some();
        self.known.retain(|known| match known.standing {
            Standing::Left => is_looking,
            Standing::Listed | Standing::Absent => now < known.remembered || now < known.until,
        });
    }
}

#[cfg(test)]
mod tests;
