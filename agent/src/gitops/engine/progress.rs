//! One object of the commit in force: what it is to be, what is known of it, and what was done about it. Before it: a
//! [`Wanted`]. After it: `objects.rs`, which says which object may be worked on. Pure.

use crate::{
    backoff::Backoff,
    cluster::Kind,
    gitops::{
        engine::likeness::Seen,
        object::{Manifest, ObjectId},
        status::Status,
    },
};
use std::time::Duration;
use tokio::time::Instant;

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
    /// And how the server writes what the manifest says, from then.
    pub(crate) likeness: Option<u128>,
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

/// One of the commit's objects.
#[derive(Debug)]
pub(crate) struct Object {
    pub(crate) wanted: Wanted,
    pub(crate) state: State,
    pub(crate) known: Known,
    /// Of its last state, once it was seen going: what is older than this came late.
    pub(crate) gone: Option<u64>,
    /// Since when changes of it are listened to.
    pub(crate) since: Instant,
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
    pub(crate) fn new(wanted: Wanted, now: Instant) -> Self {
        Self {
            wanted,
            state: State::Wanted,
            known: Known::Unknown,
            gone: None,
            since: now,
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

    /// Whether nobody has changed it since it was applied, as far as is known.
    pub(crate) fn is_as_left(&self) -> bool {
        matches!((&self.known, &self.mark), (Known::Present(seen), Some(mark)) if seen.print == mark.print)
    }

    /// Whether this state of it is from before somebody changed or deleted it.
    pub(crate) fn is_past(&self, seen: &Seen) -> bool {
        match &self.known {
            Known::Present(known) => seen.older_than(known),
            Known::Absent => seen.version.zip(self.gone).is_some_and(|(this, gone)| this <= gone),
            Known::Unknown => false,
        }
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

    /// Another commit wants it too: what is known stays.
    pub(crate) fn renewed(mut self, wanted: Wanted, now: Instant) -> Self {
        let same = self.wanted.manifest.digest == wanted.manifest.digest && self.wanted.kind == wanted.kind;
        if self.wanted.kind != wanted.kind {
            // Another version of its API shows it in another way.
            self.known = Known::Unknown;
            self.gone = None;
            self.since = now;
            self.mark = None;
        }
        self.wanted = wanted;
        self.deed = None;
        if same {
            if self.state == State::Rest {
                self.deed = Some(Deed::Unchanged);
            }
            // Trouble is retried when its time has come, unless what it waited for may have changed.
            if matches!(self.state, State::Blocked { .. }) {
                self.state = State::Wanted;
            }
            return self;
        }
        if self.state != State::Flying {
            self.state = State::Wanted;
        }
        self.disturbed = false;
        self.trouble = None;
        self.quick.reset();
        self.slow.reset();
        self
    }

    pub(crate) fn is_definition(&self) -> bool {
        self.id().kind == "CustomResourceDefinition"
    }

    /// How long it is left alone after somebody else has changed it once more.
    pub(crate) fn truce(&mut self, now: Instant) -> Duration {
        let Some((last, delay)) = self.fought else { return Duration::ZERO };
        if now.duration_since(last) > delay * 5 + FIGHT {
            self.fight.reset();
        }
        (last + delay).saturating_duration_since(now)
    }

    /// It was put right.
    pub(crate) fn fought(&mut self, now: Instant) {
        self.fought = Some((now, self.fight.step()));
    }

    /// It went wrong. Returns when it is tried again, and whether that is news.
    pub(crate) fn failed(&mut self, text: String, passes: bool, now: Instant) -> (Duration, bool) {
        let known = self.trouble.take();
        let news = known.as_ref().is_none_or(|known| known.text != text);
        let since = known.filter(|known| known.passes == passes).map_or(now, |known| known.since);
        self.trouble = Some(Trouble { text, passes, since });
        (if passes { self.quick.step() } else { self.slow.step() }, news)
    }

    /// It went well.
    pub(crate) fn succeeded(&mut self) {
        self.trouble = None;
        self.quick.reset();
        self.slow.reset();
    }
}
