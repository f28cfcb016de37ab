//! The objects, their versions and the recent changes: what etcd and the watch cache are to the real server.
//! Routes read and change objects here, watches follow the history. Everything is bounded: objects, bytes, history;
//! a watch that falls behind the history is told so and ends, so that no reader costs memory of its own.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tokio::sync::watch;

use super::defaults;
use super::resources::{self, RESOURCES, Resource};
use super::status::Failure;

const MAX_OBJECTS: usize = 20_000;
const MAX_BYTES: usize = 128 << 20;
/// As etcd: one object is at most this many bytes of JSON.
pub(super) const MAX_OBJECT_BYTES: usize = 1_536 << 10;
/// Versions start here so that no test passes because a version happens to be 1.
const FIRST_VERSION: u64 = 1_000;

#[derive(Debug)]
pub(super) struct Store {
    inner: Mutex<Inner>,
    changed: watch::Sender<u64>,
    history: usize,
}

/// Position of the kind in `RESOURCES`, namespace (empty for cluster scope), name.
type Key = (usize, String, String);

#[derive(Debug)]
struct Inner {
    version: u64,
    objects: BTreeMap<Key, Stored>,
    bytes: usize,
    history: VecDeque<Change>,
    /// Changes up to this version have been forgotten.
    forgotten: u64,
}

#[derive(Debug)]
struct Stored {
    object: Arc<Value>,
    bytes: usize,
}

/// One change, as watches see it.
#[derive(Debug, Clone)]
pub(super) struct Change {
    pub(super) version: u64,
    key: Key,
    pub(super) before: Option<Arc<Value>>,
    /// `None`: deleted.
    pub(super) after: Option<Arc<Value>>,
    /// The object as it was last, under the version of its deletion.
    pub(super) last: Arc<Value>,
}

/// Where an object lives.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) resource: &'static Resource,
    /// Empty for cluster scope.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Place {
    fn key(&self) -> Key {
        (index(self.resource), self.namespace.clone(), self.name.clone())
    }
}

/// Whether a change is kept or only answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Keep,
    DryRun,
}

fn index(resource: &'static Resource) -> usize {
    RESOURCES.iter().position(|r| std::ptr::eq(r, resource)).expect("every resource comes from the table")
}

impl Store {
    pub(super) fn new(history: usize) -> Store {
        let inner = Inner {
            version: FIRST_VERSION,
            objects: BTreeMap::new(),
            bytes: 0,
            history: VecDeque::new(),
            forgotten: FIRST_VERSION,
        };
        Store { inner: Mutex::new(inner), changed: watch::Sender::new(FIRST_VERSION), history }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells when something may have changed.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub(super) fn get(&self, place: &Place) -> Result<Arc<Value>, Failure> {
        let inner = self.lock();
        let stored = inner.objects.get(&place.key());
        stored.map(|s| s.object.clone()).ok_or_else(|| Failure::not_found(place.resource, &place.name))
    }

    /// All objects of a kind, in order of namespace and name, and the version of this view.
    pub(super) fn list(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
    ) -> (Vec<Arc<Value>>, u64) {
        let inner = self.lock();
        let of_kind = index(resource);
        let start = (of_kind, namespace.unwrap_or_default().to_owned(), String::new());
        let objects = inner
            .objects
            .range(start..)
            .take_while(|(key, _)| key.0 == of_kind && namespace.is_none_or(|ns| key.1 == ns))
            .map(|(_, stored)| stored.object.clone())
            .collect();
        (objects, inner.version)
    }

    /// Forgets the history: watches and lists that build on it are answered with 410.
    pub(super) fn compact(&self) {
        let mut inner = self.lock();
        inner.version += 1;
        inner.history.clear();
        inner.forgotten = inner.version;
    }

    /// Whether watches can still begin after this version.
    pub(super) fn check_remembered(&self, version: u64) -> Result<(), Failure> {
        let forgotten = self.lock().forgotten;
        if version < forgotten { Err(Failure::expired(version, forgotten)) } else { Ok(()) }
    }

    /// At most `limit` changes of a kind after `cursor`, and the version up to which the caller has then seen all.
    pub(super) fn changes(
        &self,
        resource: &'static Resource,
        namespace: Option<&str>,
        cursor: u64,
        limit: usize,
    ) -> Result<(Vec<Change>, u64), Failure> {
        let inner = self.lock();
        if cursor < inner.forgotten {
            return Err(Failure::expired(cursor, inner.forgotten));
        }
        let of_kind = index(resource);
        let start = inner.history.partition_point(|change| change.version <= cursor);
        let mut found = Vec::new();
        for change in inner.history.range(start..) {
            if change.key.0 == of_kind && namespace.is_none_or(|ns| change.key.1 == ns) {
                found.push(change.clone());
                if found.len() == limit {
                    return Ok((found, change.version));
                }
            }
        }
        Ok((found, inner.version.max(cursor)))
    }

    pub(super) fn create(&self, place: &Place, mut object: Value, mode: Mode) -> Result<Arc<Value>, Failure> {
        let mut inner = self.lock();
        if inner.objects.contains_key(&place.key()) {
            return Err(Failure::already_exists(place.resource, &place.name));
        }
        inner.check_namespace(place)?;
        check(place, &object)?;
        if object["metadata"]["resourceVersion"].as_str().is_some_and(|version| !version.is_empty()) {
            return Err(Failure::bad_request("resourceVersion should not be set on objects to be created"));
        }
        if let Some(metadata) = object["metadata"].as_object_mut() {
            for ours in ["resourceVersion", "deletionTimestamp", "managedFields"] {
                metadata.remove(ours);
            }
        }
        let version = inner.version + 1;
        object["metadata"]["uid"] = json!(defaults::uid(version));
        object["metadata"]["creationTimestamp"] = json!(defaults::now());
        if place.resource.has_generation() {
            object["metadata"]["generation"] = json!(1);
        }
        defaults::on_create(place.resource, &mut object, version);
        self.put(&mut inner, place, None, object, mode)
    }

    /// Replaces an object by what `change` makes of it, in one step. A change that changes nothing keeps the version.
    pub(super) fn update(
        &self,
        place: &Place,
        mode: Mode,
        change: impl FnOnce(&Value) -> Result<Value, Failure>,
    ) -> Result<Arc<Value>, Failure> {
        let mut inner = self.lock();
        let before = match inner.objects.get(&place.key()) {
            Some(stored) => stored.object.clone(),
            None => return Err(Failure::not_found(place.resource, &place.name)),
        };
        let mut after = change(&before)?;
        check(place, &after)?;
        let asked = after["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if !asked.is_empty() && before["metadata"]["resourceVersion"] != asked {
            return Err(Failure::modified(place.resource, &place.name));
        }
        let asked = after["metadata"]["uid"].as_str().unwrap_or_default();
        if !asked.is_empty() && before["metadata"]["uid"] != asked {
            let why = format!("Precondition failed: UID in precondition: {asked}");
            return Err(Failure::conflict(place.resource, &place.name, &why));
        }
        if after["metadata"]["name"] != place.name.as_str() {
            let why = "metadata.name: Invalid value: field is immutable";
            return Err(Failure::invalid(place.resource, &place.name, why));
        }
        for kept in
            ["uid", "creationTimestamp", "resourceVersion", "namespace", "deletionTimestamp", "generation"]
        {
            match before["metadata"].get(kept) {
                Some(value) => after["metadata"][kept] = value.clone(),
                None => drop(after["metadata"].as_object_mut().and_then(|m| m.remove(kept))),
            }
        }
        if let Some(metadata) = after["metadata"].as_object_mut() {
            metadata.remove("managedFields");
        }
        after["kind"] = json!(place.resource.kind);
        after["apiVersion"] = json!(place.resource.api_version());
        if place.resource.has_generation() && after["spec"] != before["spec"] {
            let generation = before["metadata"]["generation"].as_u64().unwrap_or(1) + 1;
            after["metadata"]["generation"] = json!(generation);
        }
        defaults::on_update(place.resource, &mut after);
        if after == *before {
            return Ok(before);
        }
        if after["metadata"].get("deletionTimestamp").is_some()
            && finalizers(&after) == 0
            && mode == Mode::Keep
        {
            inner.remove(self.history, place);
            self.changed.send_replace(inner.version);
            return Ok(Arc::new(after));
        }
        self.put(&mut inner, place, Some(before), after, mode)
    }

    /// Deletes an object, and with a namespace everything in it. An object with finalizers is marked and kept until
    /// an update takes the last of them away.
    pub(super) fn delete(&self, place: &Place, options: &Value, mode: Mode) -> Result<Arc<Value>, Failure> {
        let mut inner = self.lock();
        let object = match inner.objects.get(&place.key()) {
            Some(stored) => stored.object.clone(),
            None => return Err(Failure::not_found(place.resource, &place.name)),
        };
        for field in ["uid", "resourceVersion"] {
            let asked = &options["preconditions"][field];
            if !asked.is_null() && *asked != object["metadata"][field] {
                let why = format!("Precondition failed: {field} in precondition: {asked}");
                return Err(Failure::conflict(place.resource, &place.name, &why));
            }
        }
        if mode == Mode::DryRun {
            return Ok(object);
        }
        if finalizers(&object) > 0 {
            if object["metadata"].get("deletionTimestamp").is_some() {
                return Ok(object);
            }
            let mut marked = (*object).clone();
            marked["metadata"]["deletionTimestamp"] = json!(defaults::now());
            return self.put(&mut inner, place, Some(object), marked, mode);
        }
        if std::ptr::eq(place.resource, resources::namespaces()) {
            let inside: Vec<Key> = inner.objects.keys().filter(|key| key.1 == place.name).cloned().collect();
            for (kind, namespace, name) in inside {
                inner.remove(self.history, &Place { resource: &RESOURCES[kind], namespace, name });
            }
        }
        inner.remove(self.history, place);
        self.changed.send_replace(inner.version);
        Ok(object)
    }

    fn put(
        &self,
        inner: &mut Inner,
        place: &Place,
        before: Option<Arc<Value>>,
        mut object: Value,
        mode: Mode,
    ) -> Result<Arc<Value>, Failure> {
        let version = inner.version + 1;
        if mode == Mode::Keep {
            object["metadata"]["resourceVersion"] = json!(version.to_string());
        }
        let bytes = object.to_string().len();
        if bytes > MAX_OBJECT_BYTES {
            return Err(Failure::too_large(MAX_OBJECT_BYTES));
        }
        let object = Arc::new(object);
        if mode == Mode::DryRun {
            return Ok(object);
        }
        let replaced = inner.objects.get(&place.key()).map_or(0, |stored| stored.bytes);
        if inner.bytes - replaced + bytes > MAX_BYTES {
            return Err(Failure::full("too many bytes"));
        }
        if before.is_none() && inner.objects.len() >= MAX_OBJECTS {
            return Err(Failure::full("too many objects"));
        }
        inner.bytes = inner.bytes - replaced + bytes;
        inner.objects.insert(place.key(), Stored { object: object.clone(), bytes });
        let change =
            Change { version, key: place.key(), before, after: Some(object.clone()), last: object.clone() };
        inner.record(self.history, change);
        self.changed.send_replace(version);
        Ok(object)
    }
}

impl Inner {
    fn check_namespace(&self, place: &Place) -> Result<(), Failure> {
        if !place.resource.namespaced {
            return Ok(());
        }
        let home = (0, String::new(), place.namespace.clone());
        match self.objects.contains_key(&home) {
            true => Ok(()),
            false => Err(Failure::not_found(resources::namespaces(), &place.namespace)),
        }
    }

    fn remove(&mut self, limit: usize, place: &Place) {
        let Some(stored) = self.objects.remove(&place.key()) else { return };
        self.bytes -= stored.bytes;
        let version = self.version + 1;
        let mut last = (*stored.object).clone();
        last["metadata"]["resourceVersion"] = json!(version.to_string());
        let change = Change {
            version,
            key: place.key(),
            before: Some(stored.object),
            after: None,
            last: Arc::new(last),
        };
        self.record(limit, change);
    }

    fn record(&mut self, limit: usize, change: Change) {
        self.version = change.version;
        self.history.push_back(change);
        while self.history.len() > limit {
            if let Some(oldest) = self.history.pop_front() {
                self.forgotten = oldest.version;
            }
        }
    }
}

/// The shape that the rest of this module and the defaults rely on.
fn check(place: &Place, object: &Value) -> Result<(), Failure> {
    let absent_or_map = |value: &Value| value.is_null() || value.is_object();
    let absent_or_texts = |value: &Value| match value {
        Value::Null => true,
        Value::Object(fields) => fields.values().all(Value::is_string),
        _ => false,
    };
    let metadata = &object["metadata"];
    let problem = if !metadata.is_object() {
        "metadata: Required value"
    } else if !absent_or_texts(&metadata["labels"]) || !absent_or_texts(&metadata["annotations"]) {
        "metadata: labels and annotations must be maps from text to text"
    } else if !absent_or_map(&object["spec"]) || !absent_or_map(&object["status"]) {
        "spec and status must be maps"
    } else if !absent_or_texts(&object["data"]) || !absent_or_texts(&object["stringData"]) {
        "data must be a map from text to text"
    } else {
        return Ok(());
    };
    Err(Failure::invalid(place.resource, &place.name, problem))
}

fn finalizers(object: &Value) -> usize {
    object["metadata"]["finalizers"].as_array().map_or(0, Vec::len)
}
