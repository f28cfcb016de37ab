//! Deletes objects that the commit does not have any more: looks whose each one is, deletes those that depend on others
//! first, waits until they are gone. Before it: `project.rs`, which says when and may drop this at any point; whatever
//! was not reached stays in the inventory. After it: `project.rs`, which writes what is left.

use crate::{
    cluster::{ClusterError, Kind},
    error,
    gitops::{
        engine::{api::Api, needs},
        inventory::{self, InUse, Keep, Outcome},
        object::ObjectId,
        order,
        settings::{DryRun, Settings},
    },
};
use futures::{StreamExt, stream};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::broadcast,
    time::{Instant, sleep_until},
};

/// Requests at a time.
pub(crate) const AT_A_TIME: usize = 8;
/// Whether an object is gone is asked this often where no watch says so.
const LOOK: Duration = Duration::from_secs(5);

/// What is to go.
pub(crate) struct Removal<A> {
    pub(crate) api: A,
    pub(crate) objects: BTreeSet<ObjectId>,
    pub(crate) settings: Arc<Settings>,
    /// The inventory's id.
    pub(crate) owner: Arc<str>,
    /// What stays.
    pub(crate) in_use: InUse,
    /// Objects that the watches see go.
    pub(crate) gone: broadcast::Receiver<ObjectId>,
}

/// What became of one of them.
#[derive(Debug)]
pub(crate) enum Fate {
    /// It was deleted, or would be.
    Pruned,
    /// There was nothing to delete any more.
    Absent,
    Kept(Keep),
    /// It has to wait for another one, its kind is not known, or it was refused.
    Failed {
        text: String,
        passes: bool,
    },
}

impl Fate {
    /// What the inventory says of it from then on.
    pub(crate) fn outcome(&self) -> Outcome {
        match self {
            Self::Pruned | Self::Absent => Outcome::Gone,
            Self::Kept(keep) if keep.forgets() => Outcome::Left,
            Self::Kept(_) | Self::Failed { .. } => Outcome::Undeleted,
        }
    }

    fn passes(&self) -> bool {
        matches!(self, Self::Failed { passes: true, .. })
    }

    fn failed(error: &ClusterError) -> Self {
        Self::Failed { text: error::chain(error), passes: error.passes() }
    }
}

type Fates = BTreeMap<ObjectId, Fate>;
type Found = BTreeMap<ObjectId, (Kind, Value)>;
/// Those that need an object.
type Users<'a> = HashMap<&'a ObjectId, Vec<&'a ObjectId>>;

impl<A: Api> Removal<A> {
    /// Takes as long as objects take to go, at most `prune_timeout` for each round.
    pub(crate) async fn run(mut self) -> Fates {
        let (found, mut fates) = self.look().await;
        let there = self.objects.iter().filter(|id| !matches!(fates.get(*id), Some(Fate::Absent)));
        let mut edges = needs::between(there, &found);
        // Of a kind that is not known for the moment: any definition of its group may be its own.
        for id in fates.iter().filter_map(|(id, fate)| fate.passes().then_some(id)) {
            let definitions = found.keys().filter(|other| inventory::may_define(other, &id.group));
            edges.entry(id.clone()).or_default().extend(definitions.cloned());
        }
        let mut users: Users<'_> = HashMap::new();
        for (user, needs) in &edges {
            needs.iter().for_each(|need| users.entry(need).or_default().push(user));
        }
        let rounds = order::prune_order(edges.clone().into_iter().collect());
        for round in rounds {
            let mut leaving = BTreeMap::new();
            for id in round {
                let Some((kind, live)) = found.get(&id) else { continue };
                // Many that need many take their time, and others are served meanwhile.
                tokio::task::yield_now().await;
                let needs = edges.get(&id).map(Vec::as_slice).unwrap_or_default();
                match self.hindrance(&id, live, users.get(&id), needs, &fates) {
                    Some(fate) => {
                        if let Fate::Kept(keep) = &fate {
                            self.in_use.hold(&id, "");
                            self.let_go(kind, live, keep).await;
                        }
                        fates.insert(id, fate);
                    }
                    None => _ = leaving.insert(id, (kind, live)),
                }
            }
            self.remove(leaving, &mut fates).await;
        }
        fates
    }

    /// All of them as they are.
    async fn look(&self) -> (Found, Fates) {
        let (mut found, mut fates) = (Found::new(), Fates::new());
        let mut looks = Vec::new();
        for id in self.objects.iter().cloned() {
            let api = &self.api;
            looks.push(async move {
                let kind = match api.kind(&id.group, "", &id.kind).await {
                    Ok(kind) => kind,
                    Err(error) => return (id, Err(error)),
                };
                let live = api.get(&kind, &id.namespace, &id.name).await;
                (id, live.map(|live| live.map(|live| (kind, live))))
            });
        }
        let mut looks = stream::iter(looks).buffer_unordered(AT_A_TIME);
        while let Some((id, live)) = looks.next().await {
            match live {
                Ok(Some(live)) => _ = found.insert(id, live),
                Ok(None) => _ = fates.insert(id, Fate::Absent),
                Err(error) => _ = fates.insert(id, Fate::failed(&error)),
            }
        }
        (found, fates)
    }

    /// Why an object is not deleted now.
    fn hindrance(
        &self,
        id: &ObjectId,
        live: &Value,
        users: Option<&Vec<&ObjectId>>,
        needs: &[ObjectId],
        fates: &Fates,
    ) -> Option<Fate> {
        let may = inventory::may_prune(self.settings.policy, id, Some(live), &self.owner, &self.in_use);
        let users = || users.into_iter().flatten().copied();
        let for_good =
            |user: &&ObjectId| matches!(fates.get(*user), Some(Fate::Kept(keep)) if keep.is_for_good());
        let keep = match (may, users().find(for_good)) {
            (Err(keep), _) if keep.forgets() => keep,
            // The inventory is about to forget its user, so another time it would be deleted.
            (_, Some(user)) => Keep::Needed { by: user.clone() },
            (Err(keep), None) => return Some(Fate::Kept(keep)),
            (Ok(()), None) => {
                let stays =
                    |user: &&ObjectId| matches!(fates.get(*user), Some(Fate::Failed { .. } | Fate::Kept(_)));
                let user = users().find(stays)?;
                return Some(Fate::Failed { text: format!("waits until {user} is gone"), passes: false });
            }
        };
        // What it needs goes after it, unless that could not be looked at.
        let unseen = needs.iter().find_map(|need| match fates.get(need) {
            Some(Fate::Failed { passes, .. }) if keep.is_for_good() => Some((need, *passes)),
            _ => None,
        });
        Some(match unseen {
            Some((need, passes)) => {
                let text = format!("is listed until it is known how {need} is, which stays with it: {keep}");
                Fate::Failed { text, passes }
            }
            None => Fate::Kept(keep),
        })
    }

    /// What the inventory forgets is nobody's from then on.
    async fn let_go(&self, kind: &Kind, live: &Value, keep: &Keep) {
        if keep.forgets()
            && !self.settings.dry_run.is_dry()
            && let Some(free) = inventory::disown(live, &self.owner)
        {
            // An annotation that stays is ugly and does no harm: the inventory no longer has the object.
            let _ = self.api.replace(kind, &free).await;
        }
    }

    /// Deletes a round and waits until all of it is gone.
    async fn remove(&mut self, leaving: BTreeMap<ObjectId, (&Kind, &Value)>, fates: &mut Fates) {
        let dry_run = self.settings.dry_run;
        if dry_run == DryRun::Client {
            fates.extend(leaving.into_keys().map(|id| (id, Fate::Pruned)));
            return;
        }
        // What goes before it is waited for is remembered by the channel.
        self.gone = self.gone.resubscribe();
        let mut deletions = Vec::new();
        for (id, (kind, live)) in &leaving {
            let (api, how) = (&self.api, self.settings.propagation);
            let uid = live["metadata"]["uid"].as_str().unwrap_or_default();
            deletions.push(async move {
                let dry_run = dry_run == DryRun::Server;
                (id, api.delete(kind, &id.namespace, &id.name, uid, how, dry_run).await)
            });
        }
        let mut pending = HashSet::new();
        let mut deletions = stream::iter(deletions).buffer_unordered(AT_A_TIME);
        while let Some((id, deleted)) = deletions.next().await {
            match deleted {
                Ok(()) if dry_run.is_dry() => _ = fates.insert(id.clone(), Fate::Pruned),
                Ok(()) => _ = pending.insert(id.clone()),
                Err(error) => _ = fates.insert(id.clone(), Fate::failed(&error)),
            }
        }
        drop(deletions);
        let uids: BTreeMap<_, _> = leaving
            .iter()
            .map(|(id, (kind, live))| (id, (*kind, live["metadata"]["uid"].as_str().unwrap_or_default())))
            .collect();
        let left = self.await_end(pending, &uids, fates).await;
        for id in left {
            let text = format!("was deleted and is still there after {:?}", self.settings.prune_timeout);
            fates.insert(id, Fate::Failed { text, passes: false });
        }
    }

    /// Returns what is still there when the time is over.
    async fn await_end(
        &mut self,
        mut pending: HashSet<ObjectId>,
        uids: &BTreeMap<&ObjectId, (&Kind, &str)>,
        fates: &mut Fates,
    ) -> HashSet<ObjectId> {
        let began = Instant::now();
        let end = began + self.settings.prune_timeout;
        if self.settings.prune_timeout.is_zero() {
            fates.extend(pending.drain().map(|id| (id, Fate::Pruned)));
        }
        // The first look is early: most objects are gone at once, perhaps before their watch says so.
        let mut look = began + Duration::from_millis(500);
        while !pending.is_empty() && Instant::now() < end {
            tokio::select! {
                gone = self.gone.recv() => match gone {
                    Ok(id) => {
                        if pending.remove(&id) {
                            fates.insert(id, Fate::Pruned);
                        }
                        continue;
                    }
                    Err(broadcast::error::RecvError::Lagged(_)) => {}
                    Err(broadcast::error::RecvError::Closed) => sleep_until(look.min(end)).await,
                },
                () = sleep_until(look.min(end)) => {}
            }
            look = Instant::now() + LOOK;
            let mut looks = Vec::new();
            for id in pending.iter().cloned() {
                let ((kind, uid), api) = (uids[&id], &self.api);
                looks.push(async move {
                    let live = api.get(kind, &id.namespace, &id.name).await;
                    let other = |live: &Value| live["metadata"]["uid"].as_str() != Some(uid);
                    let gone = match live {
                        Ok(None) => true,
                        Ok(Some(live)) => other(&live),
                        Err(_) => false,
                    };
                    (id, gone)
                });
            }
            let looked: Vec<_> = stream::iter(looks).buffer_unordered(AT_A_TIME).collect().await;
            for (id, gone) in looked {
                if gone {
                    pending.remove(&id);
                    fates.insert(id, Fate::Pruned);
                }
            }
        }
        pending
    }
}
