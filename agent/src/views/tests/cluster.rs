//! A cluster in memory: objects, and watches that see what happens to them, or miss it until they list again.

use crate::views::{
    facts::names,
    plan::Watched,
    source::{Change, Follow, Source},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, Weak},
};
use tokio::sync::Notify;

type Key = (Watched, String, String);

#[derive(Clone, Default)]
pub(super) struct FakeCluster(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    objects: BTreeMap<Key, Arc<Value>>,
    watches: Vec<(Watched, Option<String>, Weak<Queue>)>,
    version: Option<Box<str>>,
    followed: usize,
}

#[derive(Default)]
struct Queue {
    changes: Mutex<VecDeque<Change>>,
    more: Notify,
}

pub(super) struct Watch(Arc<Queue>);

impl Queue {
    fn put(&self, change: Change) {
        self.changes.lock().unwrap().push_back(change);
        self.more.notify_one();
    }
}

impl Inner {
    fn list(&self, watched: Watched, namespace: Option<&str>) -> Vec<Change> {
        let here = |key: &Key| key.0 == watched && namespace.is_none_or(|namespace| key.1 == namespace);
        let found = self.objects.iter().filter(|(key, _)| here(key)).map(|(_, object)| object.clone());
        let found = found.map(Change::Found);
        std::iter::once(Change::Begun).chain(found).chain([Change::Listed]).collect()
    }

    fn tell(&self, watched: Watched, namespace: &str, change: &Change) {
        let seen = |watch: &&(Watched, Option<String>, Weak<Queue>)| {
            watch.0 == watched && watch.1.as_ref().is_none_or(|of| of == namespace)
        };
        let queues = self.watches.iter().filter(seen).filter_map(|watch| watch.2.upgrade());
        queues.for_each(|queue| queue.put(change.clone()));
    }
}

impl FakeCluster {
    pub(super) fn apply(&self, watched: Watched, object: Value) {
        let (namespace, object) = self.store(watched, object);
        self.0.lock().unwrap().tell(watched, &namespace, &Change::Applied(object));
    }

    pub(super) fn delete(&self, watched: Watched, namespace: &str, name: &str) {
        if let Some(object) = self.lose(watched, namespace, name) {
            self.0.lock().unwrap().tell(watched, namespace, &Change::Deleted(object));
        }
    }

    /// Applied while no watch sees it.
    pub(super) fn store(&self, watched: Watched, object: Value) -> (String, Arc<Value>) {
        let (namespace, name) = names(&object).map(|(of, name)| (of.to_owned(), name.to_owned())).unwrap();
        let object = Arc::new(object);
        self.0.lock().unwrap().objects.insert((watched, namespace.clone(), name), object.clone());
        (namespace, object)
    }

    /// Deleted while no watch sees it.
    pub(super) fn lose(&self, watched: Watched, namespace: &str, name: &str) -> Option<Arc<Value>> {
        self.0.lock().unwrap().objects.remove(&(watched, namespace.to_owned(), name.to_owned()))
    }

    /// All watches of this kind list anew; with `breaks` the list breaks off after so many objects and begins again.
    pub(super) fn list_anew(&self, watched: Watched, breaks: Option<usize>) {
        let inner = self.0.lock().unwrap();
        for (of, namespace, queue) in &inner.watches {
            let Some(queue) = queue.upgrade().filter(|_| *of == watched) else {
                continue;
            };
            let list = inner.list(watched, namespace.as_deref());
            if let Some(breaks) = breaks {
                let found = list.iter().filter(|change| !matches!(change, Change::Listed));
                found.take(breaks + 1).for_each(|change| queue.put(change.clone()));
            }
            list.into_iter().for_each(|change| queue.put(change));
        }
    }

    pub(super) fn upgrade_to(&self, version: &str) {
        self.0.lock().unwrap().version = Some(version.into());
    }

    /// Watches that stand.
    pub(super) fn watches(&self) -> usize {
        self.0.lock().unwrap().watches.iter().filter(|watch| watch.2.strong_count() > 0).count()
    }

    /// Watches that were ever begun.
    pub(super) fn followed(&self) -> usize {
        self.0.lock().unwrap().followed
    }

    /// What a watch that begins now sees first.
    pub(super) fn list(&self, watched: Watched, namespace: Option<&str>) -> Vec<Change> {
        self.0.lock().unwrap().list(watched, namespace)
    }

    pub(super) fn server_version(&self) -> Option<Box<str>> {
        self.0.lock().unwrap().version.clone()
    }
}

impl Source for FakeCluster {
    type Following = Watch;

    fn follow(&self, watched: Watched, namespace: Option<&str>) -> Watch {
        let mut inner = self.0.lock().unwrap();
        let queue = Arc::new(Queue::default());
        inner.list(watched, namespace).into_iter().for_each(|change| queue.put(change));
        inner.watches.push((watched, namespace.map(str::to_owned), Arc::downgrade(&queue)));
        inner.followed += 1;
        Watch(queue)
    }

    async fn version(&self) -> Option<Box<str>> {
        self.server_version()
    }
}

impl Follow for Watch {
    async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.0.changes.lock().unwrap().pop_front() {
                return change;
            }
            self.0.more.notified().await;
        }
    }
}
