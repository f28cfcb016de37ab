//! The objects of the commit in force: how far each one is, which may be worked on now, which wait and why. Before it:
//! `desired.rs`, which says what a commit wants. After it: `project.rs`, which does the work. It asks nobody, never waits
//! and looks at no clock but the one it is shown.

#[cfg(test)]
mod tests;

use crate::{
    backoff::Backoff,
    cluster::Kind,
    gitops::{
        engine::likeness::Seen,
        object::{Manifest, ObjectId},
        status::Status,
    },
};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};
use tokio::time::Instant;

/// Pruning waits this long for objects that nobody depends on to become ready, so that what is replaced goes after what
/// replaces it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Trouble that passes by itself holds pruning back for this long.
const PASSING: Duration = Duration::from_secs(60);
/// Somebody who changes an object again sooner than this after it was put right is fought with growing delays.
const FIGHT: Duration = Duration::from_secs(5);

/// An object that a commit wants.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) manifest: Manifest,
    pub(crate) kind: Kind,
    /// The definition in the same commit that brings its kind.
    pub(crate) definition: Option<ObjectId>,
    /// Smaller ones go first.
    pub(crate) rank: usize,
    /// Objects of the same commit that must be ready before.
    pub(crate) needs: Vec<ObjectId>,
}

/// What the engine knows about the live object.
#[derive(Clone, Debug)]
pub(crate) enum Known {
    Unknown,
    Absent,
    Present(Seen),
}

/// What was applied last, and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Mark {
    /// The manifest's.
    pub(crate) digest: u128,
    /// The live object's since then.
    pub(crate) print: u128,
    pub(crate) at: Instant,
}

/// What keeps an object from being as wanted.
#[derive(Clone, Debug)]
pub(crate) struct Trouble {
    pub(crate) text: String,
    pub(crate) passes: bool,
    pub(crate) since: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// To be looked at as soon as there is room.
    Wanted,
    /// Until something else changes.
    Blocked {
        why: String,
        /// By something that passes soon, not by another object.
        soon: bool,
    },
    /// Again at this time.
    Later(Instant),
    /// A request is on its way.
    Flying,
    /// Nothing is to be done.
    Rest,
}

/// What was done about an object for this commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Applied,
    Unchanged,
    /// Put back as the commit wants it.
    Corrected,
}

impl Deed {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Corrected => "corrected",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) wanted: Wanted,
    pub(crate) state: State,
    pub(crate) known: Known,
    pub(crate) mark: Option<Mark>,
    pub(crate) trouble: Option<Trouble>,
    pub(crate) deed: Option<Deed>,
    /// Whether somebody else has changed or deleted it since it was applied.
    pub(crate) disturbed: bool,
    /// Whether anything was ever sent, so that it may be there.
    pub(crate) sent: bool,
    quick: Backoff,
    slow: Backoff,
    fight: Backoff,
    /// When it was put right last, and how long it is left alone since then.
    fought: Option<(Instant, Duration)>,
}

impl Object {
    fn new(wanted: Wanted) -> Self {
        Self {
            wanted,
            state: State::Wanted,
            known: Known::Unknown,
            mark: None,
            trouble: None,
            deed: None,
            disturbed: false,
            sent: false,
            quick: Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 2.0),
            slow: Backoff::new(Duration::from_secs(10), Duration::from_secs(60), 2.0),
            fight: Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 2.0),
            fought: None,
        }
    }

    pub(crate) fn id(&self) -> &ObjectId {
        &self.wanted.manifest.id
    }

    /// Whether the live object is what this manifest made of it.
    pub(crate) fn in_force(&self) -> bool {
        self.mark.as_ref().is_some_and(|mark| mark.digest == self.wanted.manifest.digest)
    }

    /// Of the live object.
    pub(crate) fn uid(&self) -> Option<&str> {
        match &self.known {
            Known::Present(seen) => Some(&seen.uid),
            _ => None,
        }
    }

    pub(crate) fn status(&self) -> Status {
        match &self.known {
            Known::Present(seen) if self.in_force() => seen.status.clone(),
            _ => Status::InProgress("not applied yet".to_owned()),
        }
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.in_force() && matches!(&self.known, Known::Present(seen) if seen.status == Status::Current)
    }

    pub(crate) fn is_definition(&self) -> bool {
        self.id().kind == "CustomResourceDefinition"
    }
}

/// How waiting for readiness goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Zero: nobody waits, except for definitions.
    pub(crate) reconcile: Duration,
    /// Nothing becomes ready when nothing is sent.
    pub(crate) dry: bool,
}

/// Whether all that can be done about the commit's objects for now has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Yes,
    /// Ask again after something changed, or at this time.
    No(Option<Instant>),
}

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    list: Vec<Object>,
    index: HashMap<ObjectId, usize>,
    dependents: Vec<Vec<usize>>,
    /// By rank, then place.
    wanted: BTreeSet<(usize, usize)>,
    later: BTreeSet<(Instant, usize)>,
}

impl Objects {
    /// Another commit: what is known about objects that stay is kept.
    pub(crate) fn install(&mut self, wanted: Vec<Wanted>) {
        let mut before = std::mem::take(self);
        let mut olds: HashMap<ObjectId, Object> =
            before.list.drain(..).map(|object| (object.id().clone(), object)).collect();
        for wanted in wanted {
            let place = self.list.len();
            let id = wanted.manifest.id.clone();
            let object = match olds.remove(&id) {
                None => Object::new(wanted),
                Some(old) => renewed(old, wanted),
            };
            self.index.insert(id, place);
            self.list.push(object);
        }
        self.dependents = vec![Vec::new(); self.list.len()];
        for place in 0..self.list.len() {
            for need in &self.list[place].wanted.needs {
                if let Some(needed) = self.index.get(need) {
                    self.dependents[*needed].push(place);
                }
            }
            self.enter(place);
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.list.len()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Object> {
        self.list.iter()
    }

    pub(crate) fn find(&self, id: &ObjectId) -> Option<usize> {
        self.index.get(id).copied()
    }

    pub(crate) fn at(&self, place: usize) -> &Object {
        &self.list[place]
    }

    /// What is not its state may be changed directly.
    pub(crate) fn at_mut(&mut self, place: usize) -> &mut Object {
        &mut self.list[place]
    }

    pub(crate) fn set(&mut self, place: usize, state: State) {
        match self.list[place].state {
            State::Wanted => {
                self.wanted.remove(&(self.list[place].wanted.rank, place));
            }
            State::Later(at) => {
                self.later.remove(&(at, place));
            }
            _ => {}
        }
        self.list[place].state = state;
        self.enter(place);
    }

    fn enter(&mut self, place: usize) {
        match self.list[place].state {
            State::Wanted => {
                self.wanted.insert((self.list[place].wanted.rank, place));
            }
            State::Later(at) => {
                self.later.insert((at, place));
            }
            _ => {}
        }
    }

    /// What waited for its time, and when the next one is due.
    pub(crate) fn tick(&mut self, now: Instant) -> Option<Instant> {
        while let Some((at, place)) = self.later.first().copied() {
            if at > now {
                return Some(at);
            }
            self.set(place, State::Wanted);
        }
        None
    }

    /// The next object to work on; it is [`State::Flying`] from then on. `gate` says what else holds one back for the
    /// moment.
    pub(crate) fn next(
        &mut self,
        now: Instant,
        patience: Patience,
        gate: impl Fn(&Object) -> Option<&'static str>,
    ) -> Option<usize> {
        while let Some((_, place)) = self.wanted.first().copied() {
            let object = &self.list[place];
            let blocked = match gate(object) {
                Some(why) => Some(State::Blocked { why: why.to_owned(), soon: true }),
                None => self.waits_for(object, now, patience).map(|why| State::Blocked { why, soon: false }),
            };
            match blocked {
                None => {
                    self.set(place, State::Flying);
                    return Some(place);
                }
                Some(state) => self.set(place, state),
            }
        }
        None
    }

    /// Why an object must wait for another one.
    fn waits_for(&self, object: &Object, now: Instant, patience: Patience) -> Option<String> {
        // It is there and somebody changed it: that is put right whatever else goes on.
        if object.in_force() && matches!(object.known, Known::Present(_)) {
            return None;
        }
        let needs = object.wanted.needs.iter().filter_map(|need| self.find(need).map(|place| self.at(place)));
        for needed in needs {
            let waited = patience.reconcile > Duration::ZERO || needed.is_definition();
            if needed.in_force() && (patience.dry || needed.is_ready() || !waited) {
                continue;
            }
            let id = needed.id();
            return Some(match (&needed.trouble, &needed.state) {
                (Some(trouble), _) => format!("waits for {id}, which failed: {}", trouble.text),
                (None, State::Blocked { .. }) => format!("waits for {id}, which waits itself"),
                (None, _) => {
                    let limit = needed.mark.as_ref().map(|mark| mark.at + patience.reconcile);
                    match limit {
                        Some(limit) if limit <= now && needed.in_force() => format!(
                            "waits for {id}, which did not become ready within {:?}: {}",
                            patience.reconcile,
                            needed.status()
                        ),
                        _ => format!("waits for {id}: {}", needed.status()),
                    }
                }
            });
        }
        None
    }

    /// What waited for this object is looked at again.
    pub(crate) fn wake_dependents(&mut self, place: usize) {
        for at in 0..self.dependents[place].len() {
            let dependent = self.dependents[place][at];
            if matches!(self.list[dependent].state, State::Blocked { .. }) {
                self.set(dependent, State::Wanted);
            }
        }
    }

    /// What was held back by something else than objects is looked at again.
    pub(crate) fn wake(&mut self, which: impl Fn(&Object) -> bool) {
        for place in 0..self.list.len() {
            let object = &self.list[place];
            if matches!(object.state, State::Blocked { .. }) && which(object) {
                self.set(place, State::Wanted);
            }
        }
    }

    /// Somebody changed or deleted an object that was in force. Returns how long it is left alone first.
    pub(crate) fn disturb(&mut self, place: usize, now: Instant) -> Duration {
        let object = &mut self.list[place];
        object.disturbed = true;
        let delay = match (&object.state, &object.fought) {
            (State::Flying | State::Wanted | State::Blocked { .. }, _) => return Duration::ZERO,
            // It is tried again anyway.
            (State::Later(at), _) => return at.saturating_duration_since(now),
            (State::Rest, None) => Duration::ZERO,
            (State::Rest, Some((last, delay))) => {
                if now.duration_since(*last) > *delay * 5 + FIGHT {
                    object.fight.reset();
                }
                (*last + *delay).saturating_duration_since(now)
            }
        };
        self.set(place, if delay.is_zero() { State::Wanted } else { State::Later(now + delay) });
        delay
    }

    /// It was put right.
    pub(crate) fn fought(&mut self, place: usize, now: Instant) {
        let object = &mut self.list[place];
        object.fought = Some((now, object.fight.step()));
    }

    /// It went wrong and is tried again later; returns when, and whether this is news.
    pub(crate) fn failed(
        &mut self,
        place: usize,
        text: String,
        passes: bool,
        now: Instant,
    ) -> (Duration, bool) {
        let object = &mut self.list[place];
        let known = object.trouble.take();
        let news = known.as_ref().is_none_or(|known| known.text != text);
        let since = known.filter(|known| known.passes == passes).map_or(now, |known| known.since);
        object.trouble = Some(Trouble { text, passes, since });
        let delay = if passes { object.quick.step() } else { object.slow.step() };
        self.set(place, State::Later(now + delay));
        self.wake_dependents(place);
        (delay, news)
    }

    /// It went well.
    pub(crate) fn succeeded(&mut self, place: usize) {
        let object = &mut self.list[place];
        object.trouble = None;
        object.quick.reset();
        object.slow.reset();
        self.set(place, State::Rest);
        self.wake_dependents(place);
    }

    /// Whether pruning may begin, as far as objects are concerned.
    pub(crate) fn settled(&self, now: Instant, patience: Patience) -> Settled {
        let mut again: Option<Instant> = None;
        let mut settled = true;
        let mut wait = |until: Option<Instant>| {
            settled = false;
            again = match (again, until) {
                (Some(again), Some(until)) => Some(again.min(until)),
                (again, until) => again.or(until),
            };
        };
        for (place, object) in self.list.iter().enumerate() {
            match &object.state {
                State::Wanted | State::Flying | State::Blocked { soon: true, .. } => {
                    wait(None);
                    continue;
                }
                State::Blocked { soon: false, .. } => continue,
                State::Later(_) | State::Rest => {}
            }
            if let Some(trouble) = &object.trouble {
                let until = trouble.since + PASSING;
                if trouble.passes && until > now {
                    wait(Some(until));
                }
                continue;
            }
            if patience.dry || matches!(object.status(), Status::Current | Status::Failed(_)) {
                continue;
            }
            let awaited = self.dependents[place]
                .iter()
                .any(|dependent| matches!(self.list[*dependent].state, State::Blocked { .. }));
            let limit = if awaited { patience.reconcile } else { patience.reconcile.min(PATIENCE) };
            let until = object.mark.as_ref().map_or(now, |mark| mark.at + limit);
            if until > now {
                wait(Some(until));
            }
        }
        if settled { Settled::Yes } else { Settled::No(again) }
    }
}

/// An object that the commit before had too.
fn renewed(mut old: Object, wanted: Wanted) -> Object {
    let same = old.wanted.manifest.digest == wanted.manifest.digest && old.wanted.kind == wanted.kind;
    if old.wanted.kind != wanted.kind {
        // Another version of its API shows it in another way.
        old.known = Known::Unknown;
        old.mark = None;
    }
    old.wanted = wanted;
    old.deed = None;
    if same {
        if old.state == State::Rest {
            old.deed = Some(Deed::Unchanged);
        }
        // Trouble is retried when its time has come, unless what it waited for may have changed.
        if matches!(old.state, State::Blocked { .. }) {
            old.state = State::Wanted;
        }
        return old;
    }
    if old.state != State::Flying {
        old.state = State::Wanted;
    }
    old.disturbed = false;
    old.trouble = None;
    old.quick.reset();
    old.slow.reset();
    old
}
