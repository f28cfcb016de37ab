//! The stages of a commit: read, list its objects in the inventory, apply and await them, prune, list what is left. Each
//! begins when the one before has done all it can, and a newer commit begins them anew.

use crate::{
    error,
    gitops::{
        engine::{
            api::Api,
            desired::{DesireError, Desired},
            objects::Settled,
            progress::Object,
            record::{self, RecordError},
            remove::{Fate, Removal},
            scopes::covering,
            task::{Done, GRACE, Kinds, Rest, Stage, Task},
        },
        inventory::{self, InUse, Outcome, Stored},
        object::{Manifest, ObjectId, Problem},
    },
};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::time::Instant;

/// Nothing is due.
const LONG: Duration = Duration::from_secs(3600);
/// More likely a mistake than the wish to delete everything.
const NO_FILES: &str = "no file of the commit fits paths; nothing is pruned; to delete everything commit one file without objects";
/// To look through all objects costs this much time for each of them, so it is not done for every single change.
const COST: Duration = Duration::from_micros(10);

impl<A: Api> Task<A> {
    /// Goes on with whatever can go on. Returns when there may be more.
    pub(super) fn advance(&mut self, now: Instant) -> Instant {
        let idle = self.job.is_none();
        if idle && self.reread.is_some_and(|at| at <= now) && self.stage == Stage::Steady {
            self.reread = None;
            self.stored = None;
            self.again_quietly = true;
            self.read();
        }
        if self.job.is_none() && self.again.is_some_and(|at| at <= now) {
            self.again = None;
            match self.stage {
                Stage::Recording => self.record(),
                Stage::Closing => self.close(),
                // Also once all is done: kinds may have come, and what could not be deleted may go now.
                stage => {
                    self.again_quietly |= stage == Stage::Steady;
                    self.read();
                }
            }
        }
        let work = self.work(now);
        let due = match self.looked {
            Some(looked) => looked + COST * u32::try_from(self.objects.len()).unwrap_or(u32::MAX),
            None => now,
        };
        if (self.dirty && due <= now) || self.look.is_some_and(|look| look <= now) {
            self.dirty = false;
            self.looked = Some(now);
            self.look = self.step(now);
        }
        let due = self.dirty.then_some(due);
        // Whatever waits for a job is looked at when the job ends.
        let again = self.again.filter(|_| self.job.is_none());
        let reread = self.reread.filter(|_| self.job.is_none() && self.stage == Stage::Steady);
        [work, due, self.look, again, reread].into_iter().flatten().min().unwrap_or(now + LONG)
    }

    /// The next stage, if it is time, and the report. Returns when to look again though nothing happens.
    fn step(&mut self, now: Instant) -> Option<Instant> {
        let mut look = None;
        if self.stage == Stage::Applying && self.job.is_none() {
            if std::mem::take(&mut self.uncovered) {
                self.stage = Stage::Recording;
                self.record();
            } else if self.flying.is_empty() {
                match self.objects.settled(now, self.patience()) {
                    Settled::Yes => self.prune(),
                    Settled::No(at) => look = at,
                }
            }
        } else if self.stage == Stage::Steady && std::mem::take(&mut self.uncovered) {
            self.stage = Stage::Recording;
            self.record();
        }
        let (report, changes) = self.report(now);
        self.again_quietly &= self.stage != Stage::Steady;
        // While something is tried again, that all is well is only said when it is over.
        if !self.again_quietly || report.state != "synchronized" || self.results.is_synchronized() {
            self.results.tell(report, now);
        }
        [look, changes].into_iter().flatten().min()
    }

    pub(super) fn ended(&mut self, done: Done) {
        let now = Instant::now();
        match done {
            Done::Read(Ok(read)) => {
                let (desired, kinds, stored) = *read;
                self.install(desired, kinds, stored, now);
            }
            Done::Read(Err(error)) => {
                // What was applied before stays looked after.
                let passes = error.passes();
                self.hindered(&error, passes, now);
            }
            Done::Recorded(Ok(stored)) => {
                self.stored = Some(stored);
                self.quick.reset();
                self.slow.reset();
                self.hindrance = None;
                if self.stage == Stage::Closing {
                    self.rest_now(now);
                } else {
                    self.namespace_first = false;
                    self.stage = Stage::Applying;
                    self.objects.wake(|_| true);
                }
            }
            Done::Recorded(Err(error)) => {
                let missing = matches!(error, RecordError::NoNamespace { .. });
                let own = self
                    .template
                    .as_ref()
                    .is_some_and(|template| self.objects.iter().any(|object| template.needs(object.id())));
                if missing && own && !self.settings.dry_run.is_dry() {
                    self.namespace_first = true;
                    self.objects.wake(|_| true);
                    self.again = Some(now + self.quick.step());
                } else {
                    let passes = error.passes();
                    self.hindered(&DesireError::Record(error), passes, now);
                }
                // What it says now is not known.
                if !self.namespace_first {
                    self.stale = true;
                }
            }
            Done::Removed(fates) => {
                for (id, fate) in &fates {
                    // What was tried before is news only if it came out differently.
                    let text = |fate: &Fate| match fate {
                        Fate::Failed { text, .. } => text.clone(),
                        fate => format!("{fate:?}"),
                    };
                    if self.fates.get(id).is_none_or(|known| text(known) != text(fate)) {
                        self.results.left(id, fate);
                    }
                }
                self.fates.extend(fates);
                self.follow(now);
                self.close();
            }
        }
        self.stir();
        self.looked = None;
    }

    /// Nothing can be applied for now.
    fn hindered(&mut self, error: &DesireError, passes: bool, now: Instant) {
        let text = error::chain(error);
        let delay = if passes { self.quick.step() } else { self.slow.step() };
        if self.hindrance.as_ref() != Some(&text) {
            self.results.hindered(&text, delay);
            self.hindrance = Some(text);
        }
        self.again = Some(now + delay);
    }

    fn install(&mut self, desired: Desired, kinds: Kinds, stored: Stored, now: Instant) {
        let Desired { wanted, template, mut problems, rejected, unknown } = desired;
        let commit_id = self.commit.as_ref().map(|commit| commit.commit_id.clone());
        let no_files = self.commit.as_ref().is_some_and(|commit| commit.files.is_empty());
        let all_would_go = no_files && self.settings.prune && !stored.inventory.objects.is_empty();
        let again = self.installed == commit_id;
        self.installed = commit_id;
        self.kinds = kinds;
        self.owner = Arc::from(template.id.as_str());
        self.template = Some(template);
        // What somebody has taken off the list is no trouble of ours any more.
        self.fates.retain(|id, fate| {
            matches!(fate.outcome(), Outcome::Gone | Outcome::Left) || stored.inventory.objects.contains(id)
        });
        self.stored = Some(stored);
        self.hindrance = None;
        self.objects.install(wanted, now);
        if !again {
            self.fates.clear();
            self.results.read(self.objects.len() + rejected.len() + unknown.len(), problems.len());
            problems.iter().for_each(|problem| self.results.broken(problem));
            let objects = rejected.iter().chain(&unknown);
            objects.for_each(|(manifest, why)| self.results.rejected(manifest, why));
        }
        if unknown.is_empty() && !again {
            self.slow.reset();
        }
        if all_would_go {
            problems.push(Problem { file: Arc::from(""), line: 0, column: 0, text: NO_FILES.to_owned() });
        }
        let rejected_ids = rejected.iter().map(|(manifest, _)| manifest.id.clone()).collect();
        self.rest = Rest { problems, rejected, rejected_ids, unknown };
        self.follow(now);
        self.stage = Stage::Recording;
        self.record();
    }

    /// Follows what there is of the commit and of the inventory in the cluster.
    pub(super) fn follow(&mut self, now: Instant) {
        if self.settings.dry_run.is_dry() {
            return;
        }
        let served = |object: &&Object| {
            let definition = object.wanted.definition.as_ref().and_then(|id| self.objects.find(id));
            definition.is_none_or(|place| self.objects.at(place).is_ready())
        };
        let mut covered: Vec<_> = self
            .objects
            .iter()
            .filter(served)
            .map(|object| (&object.wanted.kind, object.id().namespace.as_str()))
            .collect();
        let config_maps = record::config_maps();
        covered.extend(self.template.as_ref().map(|template| (&config_maps, template.namespace.as_str())));
        // What is to go is seen going if its kind was needed before.
        let listed = self.stored.iter().flat_map(|stored| &stored.inventory.objects);
        let leaving = listed.filter(|id| self.objects.find(id).is_none()).filter_map(|id| {
            let kind = self.kinds.values().find(|kind| kind.group == id.group && kind.kind == id.kind)?;
            Some((kind, id.namespace.as_str()))
        });
        covered.extend(leaving);
        let scopes = covering(covered.into_iter());
        if self.scopes.want(&self.api, scopes, now) {
            self.grace = Some(now + GRACE);
        }
    }

    /// The inventory lists what it has and what the commit wants.
    fn record(&mut self) {
        let Some(stored) = &self.stored else { return self.read() };
        let mut objects = stored.inventory.objects.clone();
        objects.extend(self.objects.iter().map(|object| object.id().clone()));
        self.write(objects);
    }

    /// The inventory lists what is left, and only that.
    fn close(&mut self) {
        self.stage = Stage::Closing;
        let Some(stored) = &self.stored else { return self.read() };
        let of_objects = self.objects.iter().map(|object| {
            let outcome = match (object.in_force() || object.sent, self.before.contains(object.id())) {
                (true, _) => Outcome::Applied,
                (false, true) => Outcome::NotApplied,
                // Only the list that was written before it was to be applied has it.
                (false, false) => Outcome::Left,
            };
            (object.id().clone(), outcome)
        });
        let before = &stored.inventory.objects;
        let of_others = before.iter().filter(|id| self.objects.find(id).is_none()).map(|id| {
            let outcome = match self.fates.get(id) {
                Some(fate) => fate.outcome(),
                None if !self.settings.prune && self.is_whole() && !self.rejects(id) => Outcome::Left,
                None => Outcome::Undeleted,
            };
            (id.clone(), outcome)
        });
        self.write(inventory::exact(before, of_objects.chain(of_others)));
    }

    /// Calls only if it has to.
    fn write(&mut self, objects: BTreeSet<ObjectId>) {
        let (Some(template), Some(stored)) = (self.template.clone(), self.stored.clone()) else {
            return self.read();
        };
        let same = stored.inventory.objects == objects && stored.superfluous.is_empty() && !self.stale;
        if self.stage == Stage::Recording {
            self.before.clone_from(&stored.inventory.objects);
        }
        if same || self.settings.dry_run.is_dry() {
            let now = Instant::now();
            if self.stage == Stage::Closing {
                self.rest_now(now);
            } else {
                self.stage = Stage::Applying;
                self.objects.wake(|_| true);
            }
            self.stir();
            return;
        }
        let (api, stale) = (self.api.clone(), std::mem::take(&mut self.stale));
        self.job = Some(Box::pin(async move {
            Done::Recorded(record::write(&api, &template, stored, stale, objects).await)
        }));
    }

    /// Whether every object of the commit is known by name.
    fn is_whole(&self) -> bool {
        self.rest.problems.is_empty() && self.rest.unknown.is_empty()
    }

    fn rejects(&self, id: &ObjectId) -> bool {
        self.rest.rejected_ids.contains(id)
    }

    /// All objects have come as far as they can: those go that the commit has not.
    fn prune(&mut self) {
        let Some(stored) = &self.stored else { return self.close() };
        let leaving: BTreeSet<_> = stored
            .inventory
            .objects
            .iter()
            .filter(|id| self.objects.find(id).is_none() && !self.rejects(id))
            .filter(|id| !matches!(self.fates.get(id), Some(Fate::Pruned | Fate::Absent)))
            .cloned()
            .collect();
        if leaving.is_empty() || !self.settings.prune {
            return self.close();
        }
        if !self.is_whole() {
            let why = match self.rest.problems.as_slice() {
                [] => "the cluster does not serve some kinds for now, and these objects may be of them",
                [problem] if problem.text == NO_FILES => NO_FILES,
                _ => "some manifests cannot be read, and these objects may be in them",
            };
            if !self.again_quietly {
                self.results.unpruned(leaving.len(), why);
            }
            return self.close();
        }
        let mut in_use = self.template.as_ref().map(InUse::by).unwrap_or_default();
        for object in self.objects.iter() {
            let applied = object.in_force().then(|| object.uid()).flatten();
            in_use.hold(object.id(), applied.unwrap_or_default());
            in_use.hold_kind(&object.wanted.kind);
        }
        for (Manifest { id, version, .. }, _) in &self.rest.rejected {
            in_use.hold(id, "");
            let kind = self.kinds.get(&(id.group.clone(), version.clone(), id.kind.clone()));
            kind.into_iter().for_each(|kind| in_use.hold_kind(kind));
        }
        let removal = Removal {
            api: self.api.clone(),
            objects: leaving,
            settings: self.settings.clone(),
            owner: self.owner.clone(),
            in_use,
            gone: self.gone.subscribe(),
        };
        self.stage = Stage::Pruning;
        self.job = Some(Box::pin(async move { Done::Removed(removal.run().await) }));
    }

    /// All that could be done has been done.
    fn rest_now(&mut self, now: Instant) {
        self.stage = Stage::Steady;
        let failed = |wanted: bool| {
            let failed = |fate: &Fate| matches!(fate, Fate::Failed { passes, .. } if *passes == wanted);
            self.fates.values().any(failed)
        };
        if failed(true) {
            self.again = Some(now + self.quick.step());
        } else if failed(false) || !self.rest.unknown.is_empty() {
            self.again = Some(now + self.slow.step());
        }
        // Scopes that only what has gone was in.
        self.follow(now);
    }
}
