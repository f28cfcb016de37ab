//! A cluster in memory for the engine's tests: server-side apply as far as one manager can tell, lists and watches,
//! namespaces, definitions, deletions that take their time, and faults. Every call takes a moment of paused time.

mod calls;

use crate::{
    cluster::{Change, ClusterError, Kind, Note},
    gitops::{engine::api::Follow, object::ObjectId},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};

/// Changes on their way to one watch: more than any test makes at once.
const ROOM: usize = 10_000;

/// How the server writes what it is given.
type Writing = fn(&mut Value);
type Fault = Box<dyn Fn(&str, &ObjectId) -> Option<ClusterError> + Send>;

/// Clones are the same cluster.
#[derive(Clone)]
pub(crate) struct Fake {
    world: Arc<Mutex<World>>,
    changed: watch::Sender<u64>,
}

struct World {
    version: u64,
    objects: BTreeMap<ObjectId, Value>,
    applied: BTreeMap<ObjectId, Value>,
    kinds: Vec<Kind>,
    watchers: Vec<(Kind, Option<String>, mpsc::Sender<Change>)>,
    calls: Vec<String>,
    notes: Vec<Note>,
    fault: Option<Fault>,
    writing: Writing,
    latency: Duration,
    /// How long the answer to what was applied is on its way back.
    lag: Duration,
    flying: usize,
    most_flying: usize,
    /// Watches are told nothing.
    deaf: bool,
    /// Kinds whose lists never come.
    unlisted: BTreeSet<String>,
    /// Deleted objects that do not go.
    stuck: BTreeSet<ObjectId>,
    /// Kinds that are not ready by themselves.
    slow: BTreeSet<String>,
}

pub(crate) struct Watching(mpsc::Receiver<Change>);

impl Follow for Watching {
    async fn next(&mut self) -> Change {
        match self.0.recv().await {
            Some(change) => change,
            None => std::future::pending().await,
        }
    }
}

pub(crate) fn refused(status: u16, message: &str) -> ClusterError {
    ClusterError::Refused {
        what: "do it".to_owned(),
        status,
        reason: String::new(),
        message: message.to_owned(),
    }
}

fn served() -> Vec<Kind> {
    [
        ("", "Namespace", "namespaces", false),
        ("", "ConfigMap", "configmaps", true),
        ("", "Secret", "secrets", true),
        ("apps", "Deployment", "deployments", true),
        ("apiextensions.k8s.io", "CustomResourceDefinition", "customresourcedefinitions", false),
    ]
    .map(|(group, kind, plural, namespaced)| Kind::new(group, "v1", kind, plural, namespaced))
    .to_vec()
}

impl Fake {
    pub(crate) fn new() -> Self {
        let world = World {
            version: 100,
            objects: BTreeMap::new(),
            applied: BTreeMap::new(),
            kinds: served(),
            watchers: Vec::new(),
            calls: Vec::new(),
            notes: Vec::new(),
            fault: None,
            writing: |_| {},
            latency: Duration::from_millis(5),
            lag: Duration::ZERO,
            flying: 0,
            most_flying: 0,
            deaf: false,
            unlisted: BTreeSet::new(),
            stuck: BTreeSet::new(),
            slow: BTreeSet::from(["Deployment".to_owned()]),
        };
        let fake = Self { world: Arc::new(Mutex::new(world)), changed: watch::Sender::new(0) };
        fake.put(&id("", "Namespace", "", "default"), json!({}));
        fake
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// Waits until something is so.
    pub(crate) async fn until(&self, what: &str, check: impl Fn(&Self) -> bool) {
        let mut changed = self.changed.subscribe();
        let waiting = async {
            while !check(self) {
                changed.changed().await.unwrap();
            }
        };
        if tokio::time::timeout(Duration::from_secs(7200), waiting).await.is_err() {
            panic!("{what} did not happen; calls: {:#?}", self.calls());
        }
    }

    pub(crate) fn get_now(&self, id: &ObjectId) -> Option<Value> {
        self.world().objects.get(id).cloned()
    }

    pub(crate) fn names(&self, kind: &str) -> Vec<String> {
        let world = self.world();
        world.objects.keys().filter(|id| id.kind == kind).map(ToString::to_string).collect()
    }

    /// Somebody else writes an object: all of it.
    pub(crate) fn put(&self, id: &ObjectId, mut object: Value) {
        let kind = self.world().kinds.iter().find(|kind| kind.kind == id.kind).cloned().unwrap();
        object["apiVersion"] = kind.api_version().into();
        object["kind"] = kind.kind.into();
        object["metadata"]["name"] = id.name.clone().into();
        if !id.namespace.is_empty() {
            object["metadata"]["namespace"] = id.namespace.clone().into();
        }
        self.store(id, object);
    }

    /// Somebody else changes an object.
    pub(crate) fn edit(&self, id: &ObjectId, pointer: &str, value: Value) {
        let mut object = self.get_now(id).unwrap();
        *object.pointer_mut(pointer).unwrap() = value;
        self.store(id, object);
    }

    /// Somebody else does something that no watch tells of.
    pub(crate) fn unseen(&self, change: impl FnOnce(&Self)) {
        self.world().deaf = true;
        change(self);
        self.world().deaf = false;
    }

    /// Somebody else deletes an object.
    pub(crate) fn remove(&self, id: &ObjectId) {
        let mut world = self.world();
        let object = world.objects.remove(id).unwrap();
        world.applied.remove(id);
        world.version += 1;
        world.tell(id, &Change::Deleted(Arc::new(object)));
        drop(world);
        self.changed.send_modify(|count| *count += 1);
    }

    pub(crate) fn ready(&self, id: &ObjectId) {
        let mut object = self.get_now(id).unwrap();
        object["status"] = match id.kind.as_str() {
            "Deployment" => json!({
                "observedGeneration": object["metadata"]["generation"], "replicas": 1, "updatedReplicas": 1,
                "readyReplicas": 1, "availableReplicas": 1,
                "conditions": [
                    {"type": "Available", "status": "True"},
                    {"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"},
                ],
            }),
            _ => json!({"conditions": [
                {"type": "Established", "status": "True"}, {"type": "NamesAccepted", "status": "True"},
            ]}),
        };
        self.store(id, object);
    }

    /// All calls, as `apply ConfigMap a/b`.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.world().calls.clone()
    }

    pub(crate) fn calls_of(&self, verb: &str) -> Vec<String> {
        self.calls().into_iter().filter(|call| call.starts_with(verb)).collect()
    }

    pub(crate) fn notes(&self) -> Vec<Note> {
        self.world().notes.clone()
    }

    pub(crate) fn most_flying(&self) -> usize {
        self.world().most_flying
    }

    /// What may go wrong from now on.
    pub(crate) fn fault(&self, fault: impl Fn(&str, &ObjectId) -> Option<ClusterError> + Send + 'static) {
        self.world().fault = Some(Box::new(fault));
    }

    pub(crate) fn no_faults(&self) {
        self.world().fault = None;
    }

    pub(crate) fn set_latency(&self, latency: Duration) {
        self.world().latency = latency;
    }

    pub(crate) fn writes(&self, writing: Writing) {
        self.world().writing = writing;
    }

    pub(crate) fn set_lag(&self, lag: Duration) {
        self.world().lag = lag;
    }

    pub(crate) fn unlisted(&self, kind: &str) {
        self.world().unlisted.insert(kind.to_owned());
    }

    pub(crate) fn sticks(&self, id: &ObjectId) {
        self.world().stuck.insert(id.clone());
    }

    pub(crate) fn slow(&self, kind: &str) {
        self.world().slow.insert(kind.to_owned());
    }

    pub(crate) fn all_at_once(&self) {
        self.world().slow.clear();
    }

    /// Every watch begins anew, as after a restart of the API server.
    pub(crate) fn relist(&self) {
        let world = self.world();
        for (kind, namespace, sender) in &world.watchers {
            world.list(kind, namespace.as_deref(), sender);
        }
    }

    /// Every watch begins anew, and its list has come to an object of this name or further, and not to its end.
    pub(crate) fn relist_up_to(&self, name: &str) {
        let world = self.world();
        for (kind, namespace, sender) in &world.watchers {
            world.list_up_to(kind, namespace.as_deref(), sender, Some(name));
        }
    }

    /// Lists that have begun have come to their end.
    pub(crate) fn finish_lists(&self) {
        for (_, _, sender) in &self.world().watchers {
            let _ = sender.try_send(Change::Listed);
        }
    }

    fn store(&self, id: &ObjectId, mut object: Value) {
        let mut world = self.world();
        world.version += 1;
        let before = world.objects.get(id).cloned();
        let metadata = &mut object["metadata"];
        metadata["resourceVersion"] = world.version.to_string().into();
        if metadata["uid"].is_null() {
            metadata["uid"] = format!("uid-{}", world.version).into();
        }
        let generation = metadata["generation"].as_u64().unwrap_or(0);
        let same = before.is_some_and(|before| before["spec"] == object["spec"] && generation > 0);
        object["metadata"]["generation"] = (generation + u64::from(!same)).into();
        world.objects.insert(id.clone(), object.clone());
        world.tell(id, &Change::Applied(Arc::new(object.clone())));
        let established =
            object.pointer("/status/conditions/0/type").is_some_and(|kind| kind == "Established");
        if established && id.kind == "CustomResourceDefinition" {
            let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
            let kind = Kind::new(
                &text("/spec/group"),
                "v1",
                &text("/spec/names/kind"),
                &text("/spec/names/plural"),
                text("/spec/scope") == "Namespaced",
            );
            if !world.kinds.contains(&kind) {
                world.kinds.push(kind.clone());
                for (followed, namespace, sender) in &world.watchers {
                    if *followed == kind {
                        world.list(followed, namespace.as_deref(), sender);
                    }
                }
            }
        }
        drop(world);
        self.changed.send_modify(|count| *count += 1);
    }

    async fn call(&self, verb: &str, id: &ObjectId) -> Result<(), ClusterError> {
        let latency = {
            let mut world = self.world();
            world.flying += 1;
            world.most_flying = world.most_flying.max(world.flying);
            world.latency
        };
        let landing = Landing(self.clone());
        sleep(latency).await;
        drop(landing);
        let fault = {
            let mut world = self.world();
            world.calls.push(format!("{verb} {id}"));
            world.fault.as_ref().and_then(|fault| fault(verb, id))
        };
        self.changed.send_modify(|count| *count += 1);
        fault.map_or(Ok(()), Err)
    }

    fn exists(&self, kind: &Kind, id: &ObjectId) -> Result<(), ClusterError> {
        let world = self.world();
        if !world.kinds.contains(kind) {
            return Err(refused(404, "the server could not find the requested resource"));
        }
        let namespace = self::id("", "Namespace", "", &id.namespace);
        if !id.namespace.is_empty() && !world.objects.contains_key(&namespace) {
            return Err(refused(404, &format!("namespaces \"{}\" not found", id.namespace)));
        }
        Ok(())
    }
}

struct Landing(Fake);

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.world().flying -= 1;
    }
}

impl World {
    fn tell(&self, id: &ObjectId, change: &Change) {
        if self.deaf {
            return;
        }
        for (kind, namespace, sender) in &self.watchers {
            let covers = namespace.as_ref().is_none_or(|namespace| *namespace == id.namespace);
            if kind.kind == id.kind && kind.group == id.group && covers && !self.unlisted.contains(&kind.kind)
            {
                let _ = sender.try_send(change.clone());
            }
        }
    }

    fn list(&self, kind: &Kind, namespace: Option<&str>, sender: &mpsc::Sender<Change>) {
        self.list_up_to(kind, namespace, sender, None);
    }

    /// Without an end if it goes up to some name.
    fn list_up_to(
        &self,
        kind: &Kind,
        namespace: Option<&str>,
        sender: &mpsc::Sender<Change>,
        last: Option<&str>,
    ) {
        if self.unlisted.contains(&kind.kind) || !self.kinds.contains(kind) {
            return;
        }
        let _ = sender.try_send(Change::Begun);
        for (id, object) in &self.objects {
            let covers = namespace.is_none_or(|namespace| namespace == id.namespace);
            let within = last.is_none_or(|last| id.name.as_str() <= last);
            if id.kind == kind.kind && id.group == kind.group && covers && within {
                let _ = sender.try_send(Change::Found(Arc::new(object.clone())));
            }
        }
        if last.is_none() {
            let _ = sender.try_send(Change::Listed);
        }
    }
}

pub(crate) fn id(group: &str, kind: &str, namespace: &str, name: &str) -> ObjectId {
    let [group, kind, namespace, name] = [group, kind, namespace, name].map(str::to_owned);
    ObjectId { group, kind, namespace, name }
}
