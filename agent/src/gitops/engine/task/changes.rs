//! What comes back to a project's task: the ends of its own requests, and what the cluster tells about its objects. It
//! decides what has to be done again, and when.

use crate::{
    cluster::Change,
    gitops::{
        engine::{
            api::Api,
            bring::{Brought, Did, Failure},
            likeness::{Seen, holds, id_of, likeness},
            progress::{Deed, Known, Mark, Object, State},
            record,
            scopes::Scope,
            task::{GRACE, Task},
        },
        inventory::{self, Inventory},
    },
};
use serde_json::Value;
use std::time::Duration;
use tokio::time::Instant;
use tracing::debug;

/// An object that no watch tells about is looked at this often until it is ready,
const UNREADY: Duration = Duration::from_secs(5);
/// and this often from then on.
const READY: Duration = Duration::from_secs(300);
/// Somebody else has changed the inventory; it is read again after this long.
const INVENTORY: Duration = Duration::from_secs(2);

impl<A: Api> Task<A> {
    /// A request about an object has ended.
    pub(super) fn brought(&mut self, brought: Brought) {
        let now = Instant::now();
        self.stir();
        let Brought { id, kind, digest, before, result } = brought;
        let Some(place) = self.objects.find(&id) else { return };
        let dry = self.settings.dry_run.is_dry();
        let object = self.objects.at_mut(place);
        if object.wanted.kind != kind {
            self.objects.set(place, State::Wanted);
            return;
        }
        let was_ready = object.is_ready();
        match result {
            Err(Failure { text, passes, lost, sent }) => {
                object.sent |= sent;
                if matches!(object.known, Known::Unknown) {
                    object.known = before;
                }
                if lost {
                    let key = (kind.group, kind.version, kind.kind);
                    self.kinds.remove(&key);
                }
                if object.wanted.manifest.digest != digest {
                    self.objects.set(place, State::Wanted);
                    return;
                }
                let (retry_in, news) = self.objects.failed(place, text.clone(), passes, now);
                self.results.failed(&self.api, self.objects.at(place), &text, retry_in, news);
            }
            Ok(Did::Uncovered) => {
                let why = "waits until the inventory lists it".to_owned();
                self.objects.set(place, State::Blocked { why, soon: true });
                self.uncovered = true;
            }
            Ok(Did::Would { same }) => {
                object.mark = Some(Mark { digest, print: 0, likeness: None, at: now });
                let deed = if same { Deed::Unchanged } else { Deed::Applied };
                self.done(place, digest, Some(deed), None);
            }
            Ok(Did::Nothing) => {
                let late = matches!(&before, Known::Present(before) if object.is_past(before));
                if !late {
                    object.known = before;
                }
                let raced = late && !object.is_as_left();
                let disturbed = std::mem::take(&mut object.disturbed);
                let deed = (!disturbed && object.deed.is_none()).then_some(Deed::Unchanged);
                self.done(place, digest, deed, None);
                if raced {
                    self.objects.disturb(place, now);
                }
            }
            Ok(Did::Sent { seen, likeness, took }) => {
                object.sent = true;
                let changed = match &before {
                    Known::Present(before) => before.print != seen.print,
                    _ => true,
                };
                let disturbed = std::mem::take(&mut object.disturbed);
                let deed = match (changed, disturbed) {
                    (true, true) => Some(Deed::Corrected),
                    (false, true) => None,
                    (true, false) => Some(Deed::Applied),
                    (false, false) => Some(Deed::Unchanged),
                };
                object.mark = Some(Mark { digest, print: seen.print, likeness: Some(likeness), at: now });
                // Somebody may have been faster than the answer.
                let late = object.is_past(&seen);
                let raced = late && !object.is_as_left();
                if !late && !dry {
                    object.known = Known::Present(seen);
                }
                // What only looked different is nobody's fight.
                if disturbed && changed {
                    self.objects.at_mut(place).fought(now);
                }
                self.done(place, digest, deed, Some(took));
                if raced {
                    self.objects.disturb(place, now);
                }
            }
        }
        if self.objects.at(place).is_ready() != was_ready {
            self.turned(place);
        }
    }

    /// It went well.
    fn done(&mut self, place: usize, digest: u128, deed: Option<Deed>, took: Option<Duration>) {
        self.objects.succeeded(place);
        if let Some(deed) = deed {
            self.objects.at_mut(place).deed = Some(deed);
            self.results.did(&self.api, self.objects.at(place), deed, took);
        }
        let object = self.objects.at(place);
        if object.wanted.manifest.digest != digest {
            self.objects.set(place, State::Wanted);
        } else {
            self.rest(place);
        }
    }

    /// It has become ready, or is not any more.
    fn turned(&mut self, place: usize) {
        self.objects.wake_dependents(place);
        let object = self.objects.at(place);
        if object.is_definition() {
            if let Some(group) = object.wanted.manifest.value.pointer("/spec/group").and_then(Value::as_str) {
                self.api.forget(group);
            }
            self.follow(Instant::now());
        }
    }

    /// The cluster tells something about objects of a scope.
    pub(super) fn changed(&mut self, scope: &Scope, change: Change) {
        let now = Instant::now();
        match change {
            Change::Begun => {
                if let Some(watch) = self.scopes.watch_mut(scope) {
                    watch.began = now;
                    watch.found.clear();
                    let broke = std::mem::take(&mut watch.listed);
                    if broke {
                        watch.since = now;
                        self.grace.get_or_insert(now + GRACE);
                        self.unwatched(scope);
                    }
                }
            }
            Change::Found(live) => {
                let id = id_of(&scope.kind.group, &scope.kind.kind, &live);
                if self.objects.find(&id).is_some()
                    && let Some(watch) = self.scopes.watch_mut(scope)
                {
                    watch.found.insert(id);
                }
                self.saw(scope, &live, now);
            }
            Change::Applied(live) => self.saw(scope, &live, now),
            Change::Deleted(live) => {
                let id = id_of(&scope.kind.group, &scope.kind.kind, &live);
                if let Some(place) = self.objects.find(&id)
                    && self.objects.at(place).wanted.kind == scope.kind
                {
                    self.gone(place, Some(&Seen::of(&live)), now);
                }
                self.inventory_changed(scope, &live, true, now);
                // Nobody listens unless something is being pruned.
                let _ = self.gone.send(id);
            }
            Change::Listed => self.listed(scope, now),
        }
    }

    /// Until the next list is complete, what is known may be outdated: objects are looked at now and then.
    fn unwatched(&mut self, scope: &Scope) {
        for place in 0..self.objects.len() {
            let object = self.objects.at(place);
            if object.state == State::Rest && scope.covers(&object.wanted.kind, &object.id().namespace) {
                self.rest(place);
            }
        }
        self.stir();
    }

    /// Nothing is to be done, unless no watch would tell that there is.
    fn rest(&mut self, place: usize) {
        let object = self.objects.at(place);
        let watch = self.scopes.of(&object.wanted.kind, &object.id().namespace);
        let told = self.settings.dry_run.is_dry() || watch.is_some_and(|watch| watch.listed);
        let delay = if object.is_ready() { READY } else { UNREADY };
        self.objects.set(place, if told { State::Rest } else { State::Later(Instant::now() + delay) });
    }

    /// What a list did not have is gone.
    fn listed(&mut self, scope: &Scope, now: Instant) {
        let Some(watch) = self.scopes.watch_mut(scope) else { return };
        watch.listed = true;
        let (began, found) = (watch.began, std::mem::take(&mut watch.found));
        for place in 0..self.objects.len() {
            let object = self.objects.at_mut(place);
            let id = object.id();
            if !scope.covers(&object.wanted.kind, &id.namespace) || found.contains(id) {
                continue;
            }
            if object.mark.as_ref().is_some_and(|mark| mark.at >= began) {
                // It was applied while the list was made, which may be older.
                if object.trouble.is_none() && matches!(object.state, State::Rest | State::Later(_)) {
                    object.known = Known::Unknown;
                    self.objects.set(place, State::Wanted);
                }
            } else if object.since <= began {
                self.gone(place, None, now);
            }
            // Else it may have been found before anybody listened: it stays unknown and is asked for.
        }
        for place in 0..self.objects.len() {
            // What no watch told about was looked at now and then; from now on the watch tells. Disturbed ones are left
            // alone for a while.
            let object = self.objects.at(place);
            let looked = matches!(object.state, State::Later(_)) && object.trouble.is_none();
            if looked && !object.disturbed && scope.covers(&object.wanted.kind, &object.id().namespace) {
                let done = object.in_force() && object.is_as_left();
                self.objects.set(place, if done { State::Rest } else { State::Wanted });
            }
        }
        let covered = |object: &Object| scope.covers(&object.wanted.kind, &object.id().namespace);
        self.objects.wake(covered);
        self.stir();
    }

    fn saw(&mut self, scope: &Scope, live: &Value, now: Instant) {
        self.inventory_changed(scope, live, false, now);
        let id = id_of(&scope.kind.group, &scope.kind.kind, live);
        let Some(place) = self.objects.find(&id) else { return };
        let object = self.objects.at_mut(place);
        if object.wanted.kind != scope.kind {
            return;
        }
        let seen = Seen::of(live);
        if matches!(&object.known, Known::Present(known) if seen.older_than(known)) {
            return;
        }
        let (was_ready, print) = (object.is_ready(), seen.print);
        let owned = inventory::owner_of(live) == Some(&*self.owner);
        object.known = Known::Present(seen);
        let in_force = object.in_force() && object.state != State::Flying;
        if let Some(mark) = object.mark.as_mut().filter(|_| in_force) {
            let manifest = &object.wanted.manifest.value;
            let alike = || holds(live, manifest) || mark.likeness == Some(likeness(live, manifest));
            if mark.print != print && owned && alike() {
                // Others may add what they like, as long as it is not ours.
                mark.print = print;
            }
            if mark.print != print {
                let delay = self.objects.disturb(place, now);
                debug!(object = %id, ?delay, "object was changed by somebody else");
            } else if object.disturbed && object.trouble.is_none() {
                // Whoever changed it has changed it back.
                object.disturbed = false;
                if !matches!(object.state, State::Blocked { .. }) {
                    self.rest(place);
                }
            }
        }
        if self.objects.at(place).is_ready() != was_ready {
            self.turned(place);
        }
        self.stir();
    }

    fn gone(&mut self, place: usize, last: Option<&Seen>, now: Instant) {
        let object = self.objects.at_mut(place);
        if let (Known::Present(known), Some(last)) = (&object.known, last)
            && (last.older_than(known) || last.uid != known.uid)
        {
            return;
        }
        let was_ready = object.is_ready();
        object.known = Known::Absent;
        object.gone = last.and_then(|last| last.version);
        if object.mark.is_some() {
            self.objects.disturb(place, now);
        }
        if was_ready {
            self.turned(place);
        }
        self.stir();
    }

    /// Somebody else has changed the inventory itself.
    fn inventory_changed(&mut self, scope: &Scope, live: &Value, deleted: bool, now: Instant) {
        let (Some(template), Some(stored)) = (&self.template, &self.stored) else { return };
        if self.job.is_some()
            || scope.kind != record::config_maps()
            || live["metadata"]["namespace"] != *template.namespace
            || !template.concerns(live)
        {
            return;
        }
        let same = !deleted && Inventory::of(live).objects == stored.inventory.objects;
        // An earlier write of our own may arrive late; the later one follows it then.
        self.reread = if same { None } else { self.reread.or(Some(now + INVENTORY)) };
    }

    /// Something has changed that the next stage or the report may have waited for.
    pub(super) fn stir(&mut self) {
        self.dirty = true;
    }
}
