//! One project's task: it takes the newest commit, works on objects eight at a time, and listens to what becomes of them
//! in the cluster. Before it: `engine.rs`, which starts and drops it. Stages of a commit are in `task/stages.rs`, what the
//! cluster tells in `task/changes.rs`, how far all is in `task/report.rs`. Dropping it ends all it does; it keeps nothing on disk.

mod changes;
mod report;
mod stages;

use crate::{
    backoff::Backoff,
    cluster::Kind,
    gitops::{
        Received,
        engine::{
            api::Api,
            bring::{Brought, Errand},
            claims::Claim,
            desired::{self, DesireError, Desired},
            objects::{Objects, Patience},
            progress::{Known, Object},
            record::RecordError,
            remove::{AT_A_TIME, Fate},
            results::Results,
            scopes::Scopes,
        },
        inventory::{Stored, Template},
        object::{Manifest, ObjectId, Problem},
        settings::Settings,
    },
};
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{broadcast, watch},
    time::{Instant, sleep_until},
};

/// Commits that come faster than this are left out, but for the last one.
const PACE: Duration = Duration::from_secs(1);
/// What is there is asked object by object if no list has told it by then.
const GRACE: Duration = Duration::from_secs(5);
/// Objects that go while nobody looks; more of them are asked for one by one.
const GONE: usize = 1024;

/// Kinds by group, version and name.
pub(crate) type Kinds = HashMap<(String, String, String), Kind>;

/// How far the commit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is none.
    Idle,
    /// It is being read.
    Reading,
    /// The inventory is about to list its objects too.
    Recording,
    /// Its objects are being applied and awaited.
    Applying,
    /// What it has not is being deleted.
    Pruning,
    /// The inventory is about to list what is left, and only that.
    Closing,
    /// All that can be done has been done.
    Steady,
}

/// What one job of a stage came to.
enum Done {
    Read(Result<Box<(Desired, Kinds, Stored)>, DesireError>),
    Recorded(Result<Stored, RecordError>),
    Removed(BTreeMap<ObjectId, Fate>),
}

/// What the commit says beside the objects that can be worked on.
#[derive(Default)]
struct Rest {
    problems: Vec<Problem>,
    rejected: Vec<(Manifest, String)>,
    rejected_ids: HashSet<ObjectId>,
    unknown: Vec<(Manifest, String)>,
}

/// One project's.
pub(crate) struct Task<A: Api> {
    api: A,
    settings: Arc<Settings>,
    agent_id: i64,
    /// On the inventory.
    claim: Arc<Claim>,
    received: watch::Receiver<Option<Arc<Received>>>,
    results: Results,

    kinds: Kinds,
    objects: Objects,
    scopes: Scopes,
    flying: FuturesUnordered<BoxFuture<'static, Brought>>,

    stage: Stage,
    /// The newest one that was begun, and the one that the objects are of.
    commit: Option<Arc<Received>>,
    installed: Option<String>,
    rest: Rest,
    template: Option<Template>,
    /// The inventory's id, shared by what is on its way.
    owner: Arc<str>,
    /// `None` until it was read.
    stored: Option<Stored>,
    /// It may have changed since.
    stale: bool,
    /// What it listed before the commit's objects were added.
    before: BTreeSet<ObjectId>,
    /// What became of objects that the commit has not.
    fates: BTreeMap<ObjectId, Fate>,
    /// Why nothing can be done about the commit.
    hindrance: Option<String>,
    job: Option<BoxFuture<'static, Done>>,
    gone: broadcast::Sender<ObjectId>,

    /// When the last commit was begun.
    begun: Option<Instant>,
    /// When what went wrong about the commit as a whole is tried again.
    again: Option<Instant>,
    /// The commit at hand is tried again, and has been told about before.
    again_quietly: bool,
    /// The inventory must wait for its own namespace.
    namespace_first: bool,
    /// Some object must be listed before it can be applied.
    uncovered: bool,
    /// When the inventory, which somebody else has changed, is read again.
    reread: Option<Instant>,
    /// When objects are asked for that no list has told about.
    grace: Option<Instant>,
    /// Whether something has happened since the stage and the report were looked at.
    dirty: bool,
    /// When both are looked at next, if something has happened, and if nothing has.
    looked: Option<Instant>,
    look: Option<Instant>,
    quick: Backoff,
    slow: Backoff,
}

impl<A: Api> Task<A> {
    pub(crate) fn new(
        api: A,
        settings: Settings,
        agent_id: i64,
        claim: Arc<Claim>,
        received: watch::Receiver<Option<Arc<Received>>>,
        results: Results,
    ) -> Self {
        Self {
            api,
            settings: Arc::new(settings),
            agent_id,
            claim,
            received,
            results,
            kinds: Kinds::new(),
            objects: Objects::default(),
            scopes: Scopes::default(),
            flying: FuturesUnordered::new(),
            stage: Stage::Idle,
            commit: None,
            installed: None,
            rest: Rest::default(),
            template: None,
            owner: Arc::from(""),
            stored: None,
            stale: false,
            before: BTreeSet::new(),
            fates: BTreeMap::new(),
            hindrance: None,
            job: None,
            gone: broadcast::channel(GONE).0,
            begun: None,
            again: None,
            again_quietly: false,
            namespace_first: false,
            uncovered: false,
            reread: None,
            grace: None,
            dirty: false,
            looked: None,
            look: None,
            quick: Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 2.0),
            slow: Backoff::new(Duration::from_secs(10), Duration::from_secs(60), 2.0),
        }
    }

    /// Ends when the project is not followed any more.
    pub(crate) async fn run(mut self) {
        self.received.mark_changed();
        let mut news = false;
        loop {
            let now = Instant::now();
            if news && self.may_begin(now) {
                news = false;
                let latest = self.received.borrow_and_update().clone();
                if let Some(commit) = latest {
                    self.begin(commit, now);
                }
            }
            let next = self.advance(now);
            let next = match self.begun {
                // Later than that it waits for a job, which is listened to.
                Some(begun) if news && begun + PACE > now => next.min(begun + PACE),
                _ => next,
            };
            tokio::select! {
                biased;
                changed = self.received.changed(), if !news => match changed {
                    Ok(()) => news = true,
                    Err(_) => return,
                },
                Some(brought) = self.flying.next(), if !self.flying.is_empty() => self.brought(brought),
                done = await_job(&mut self.job) => self.ended(done),
                (scope, change) = self.scopes.next() => self.changed(&scope, change),
                () = sleep_until(next) => {}
            }
        }
    }

    /// Whether a newer commit may take the place of the one at hand: soon after it only the newest of many, and not while
    /// the inventory is being written.
    fn may_begin(&self, now: Instant) -> bool {
        let writes = self.job.is_some() && matches!(self.stage, Stage::Recording | Stage::Closing);
        !writes && self.begun.is_none_or(|begun| now >= begun + PACE)
    }

    fn begin(&mut self, commit: Arc<Received>, now: Instant) {
        self.begun = Some(now);
        self.quick.reset();
        self.slow.reset();
        self.again_quietly = false;
        self.results.begin(&commit.commit_id, commit.project_id, now);
        self.commit = Some(commit);
        self.read();
    }

    /// Reads the commit at hand, for the first time or again.
    fn read(&mut self) {
        let Some(commit) = self.commit.clone() else { return };
        self.stage = Stage::Reading;
        self.again = None;
        let (api, settings, agent_id) = (self.api.clone(), self.settings.clone(), self.agent_id);
        let claim = self.claim.clone();
        // Both are taken back when it is done; should it be dropped, they are asked for again.
        let (kinds, stored) = (self.kinds.clone(), self.stored.clone());
        self.job = Some(Box::pin(async move {
            let desired = desired::desire(&api, kinds, stored, commit, &settings, agent_id, &claim).await;
            Done::Read(desired.map(Box::new))
        }));
    }

    fn patience(&self) -> Patience {
        Patience { reconcile: self.settings.reconcile_timeout, dry: self.settings.dry_run.is_dry() }
    }

    /// Sends what can be sent. Returns when to look again.
    fn work(&mut self, now: Instant) -> Option<Instant> {
        let later = self.objects.tick(now);
        if self.grace.is_some_and(|grace| grace <= now) {
            self.grace = self.scopes.listing().map(|since| since + GRACE).filter(|grace| *grace > now).min();
            self.objects.wake(|_| true);
        }
        while self.flying.len() < AT_A_TIME {
            let gate = Gate {
                stage: self.stage,
                dry: self.settings.dry_run.is_dry(),
                stored: self.stored.as_ref(),
                template: self.template.as_ref().filter(|_| self.namespace_first),
                scopes: &self.scopes,
                now,
            };
            let patience = self.patience();
            let Some(place) = self.objects.next(now, patience, |object| gate.holds_back(object)) else {
                break;
            };
            let object = self.objects.at(place);
            let watched = gate.watched(object);
            let errand = Errand {
                api: self.api.clone(),
                manifest: object.wanted.manifest.clone(),
                kind: object.wanted.kind.clone(),
                known: if watched { object.known.clone() } else { Known::Unknown },
                mark: object.mark.clone(),
                policy: self.settings.policy,
                dry_run: self.settings.dry_run,
                owner: self.owner.clone(),
                covered: gate.covers(object.id()),
            };
            self.flying.push(Box::pin(errand.run()));
        }
        [later, self.grace].into_iter().flatten().min()
    }
}

/// What holds objects back beside other objects.
struct Gate<'a> {
    stage: Stage,
    dry: bool,
    stored: Option<&'a Stored>,
    /// The inventory's, while its namespace has to come before it.
    template: Option<&'a Template>,
    scopes: &'a Scopes,
    now: Instant,
}

impl Gate<'_> {
    /// Whether the inventory lists the object, so that it can be applied without ever being lost.
    fn covers(&self, id: &ObjectId) -> bool {
        self.dry
            || self.stored.is_some_and(|stored| stored.inventory.objects.contains(id))
            || self.template.is_some_and(|template| template.needs(id))
    }

    /// Whether what is known of the object is what is there.
    fn watched(&self, object: &Object) -> bool {
        let watch = self.scopes.of(&object.wanted.kind, &object.id().namespace);
        watch.is_some_and(|watch| watch.listed)
    }

    fn holds_back(&self, object: &Object) -> Option<&'static str> {
        if self.stage == Stage::Recording && !self.covers(object.id()) {
            return Some("waits until the inventory lists it");
        }
        let watch = self.scopes.of(&object.wanted.kind, &object.id().namespace);
        let listing = watch.is_some_and(|watch| !watch.listed && self.now < watch.since + GRACE);
        listing.then_some("waits until what is in the cluster is known")
    }
}

async fn await_job(job: &mut Option<BoxFuture<'static, Done>>) -> Done {
    match job {
        None => std::future::pending().await,
        Some(running) => {
            let done = running.await;
            *job = None;
            done
        }
    }
}
