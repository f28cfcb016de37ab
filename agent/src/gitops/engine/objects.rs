//! The objects of the commit in force: how far each one is, which may be worked on now, which wait and why. Before it:
//! `desired.rs`, which says what a commit wants. After it: `project.rs`, which does the work. It asks nobody, never waits
//! and looks at no clock but the one it is shown.

#[cfg(test)]
mod tests;

use crate::gitops::{
    engine::progress::{Known, Object, State, Wanted},
    object::ObjectId,
    status::Status,
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
    /// By place, the object that one which is blocked waits for; others that come about change nothing for it.
    waits_on: Vec<Option<usize>>,
    /// By rank, then place.
    wanted: BTreeSet<(usize, usize)>,
    later: BTreeSet<(Instant, usize)>,
}

impl Objects {
    /// Another commit: what is known about objects that stay is kept.
    pub(crate) fn install(&mut self, wanted: Vec<Wanted>, now: Instant) {
        let mut before = std::mem::take(self);
        let mut olds: HashMap<ObjectId, Object> =
            before.list.drain(..).map(|object| (object.id().clone(), object)).collect();
        for wanted in wanted {
            let place = self.list.len();
            let id = wanted.manifest.id.clone();
            let object = match olds.remove(&id) {
                None => Object::new(wanted, now),
                Some(old) => old.renewed(wanted, now),
            };
            self.index.insert(id, place);
            self.list.push(object);
        }
        self.dependents = vec![Vec::new(); self.list.len()];
        self.waits_on = vec![None; self.list.len()];
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
                Some(why) => Some((None, State::Blocked { why: why.to_owned(), soon: true })),
                None => {
                    let waits = self.waits_for(object, now, patience);
                    waits.map(|(needed, why)| (Some(needed), State::Blocked { why, soon: false }))
                }
            };
            match blocked {
                None => {
                    self.set(place, State::Flying);
                    return Some(place);
                }
                Some((needed, state)) => {
                    self.waits_on[place] = needed;
                    self.set(place, state);
                }
            }
        }
        None
    }

    /// Which other object one must wait for, and why.
    fn waits_for(&self, object: &Object, now: Instant, patience: Patience) -> Option<(usize, String)> {
        // It is there and somebody changed it: that is put right whatever else goes on.
        if object.in_force() && matches!(object.known, Known::Present(_)) {
            return None;
        }
        for place in object.wanted.needs.iter().filter_map(|need| self.find(need)) {
            let needed = self.at(place);
            let waited = patience.reconcile > Duration::ZERO || needed.is_definition();
            if needed.in_force() && (patience.dry || needed.is_ready() || !waited) {
                continue;
            }
            let id = needed.id();
            let why = match (&needed.trouble, &needed.state) {
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
            };
            return Some((place, why));
        }
        None
    }

    /// What waited for this object is looked at again.
    pub(crate) fn wake_dependents(&mut self, place: usize) {
        for at in 0..self.dependents[place].len() {
            let dependent = self.dependents[place][at];
            let waits = self.waits_on[dependent].is_none_or(|on| on == place);
            if waits && matches!(self.list[dependent].state, State::Blocked { .. }) {
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
        let delay = match &object.state {
            State::Flying | State::Wanted | State::Blocked { .. } => return Duration::ZERO,
            // It is tried again anyway.
            State::Later(at) if object.trouble.is_some() => return at.saturating_duration_since(now),
            // Looked at now and then, or left alone for as long as this says once more.
            State::Later(_) | State::Rest => object.truce(now),
        };
        self.set(place, if delay.is_zero() { State::Wanted } else { State::Later(now + delay) });
        delay
    }

    /// It went wrong and is tried again later; returns when, and whether this is news.
    pub(crate) fn failed(
        &mut self,
        place: usize,
        text: String,
        passes: bool,
        now: Instant,
    ) -> (Duration, bool) {
        let (delay, news) = self.list[place].failed(text, passes, now);
        self.set(place, State::Later(now + delay));
        self.wake_dependents(place);
        (delay, news)
    }

    /// It went well.
    pub(crate) fn succeeded(&mut self, place: usize) {
        self.list[place].succeeded();
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
