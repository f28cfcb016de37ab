//! What is followed in the cluster for one project: a list and watch for each kind of its objects. Before it: the API
//! server. After it: `project.rs`, which compares. It keeps no objects, only the names of one's own while a list runs.

use crate::{
    cluster::{Change, Kind},
    gitops::{
        engine::api::{Api, Follow as _},
        object::ObjectId,
    },
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use tokio::{
    sync::mpsc,
    task::{AbortHandle, JoinSet},
    time::Instant,
};

/// Objects of a kind in more namespaces than this are followed in all of them at once.
const FEW: usize = 3;
/// Changes on their way from all watches; more of them wait at the API server.
const ROOM: usize = 64;

/// One list and watch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Scope {
    pub(crate) kind: Kind,
    /// `None`: all of them.
    pub(crate) namespace: Option<String>,
}

/// How far one is.
#[derive(Debug)]
pub(crate) struct Watch {
    number: u64,
    task: AbortHandle,
    pub(crate) since: Instant,
    /// Whether what is there is known by now.
    pub(crate) listed: bool,
    /// When the list that runs began.
    pub(crate) began: Instant,
    /// What it has brought.
    pub(crate) found: HashSet<ObjectId>,
}

pub(crate) struct Scopes {
    watches: HashMap<Scope, Watch>,
    numbers: HashMap<u64, Scope>,
    last: u64,
    tasks: JoinSet<()>,
    sender: mpsc::Sender<(u64, Change)>,
    changes: mpsc::Receiver<(u64, Change)>,
}

impl Default for Scopes {
    fn default() -> Self {
        let (sender, changes) = mpsc::channel(ROOM);
        Self {
            watches: HashMap::new(),
            numbers: HashMap::new(),
            last: 0,
            tasks: JoinSet::new(),
            sender,
            changes,
        }
    }
}

/// Which scopes cover objects of these kinds in these namespaces.
pub(crate) fn covering<'a>(objects: impl Iterator<Item = (&'a Kind, &'a str)>) -> HashSet<Scope> {
    let mut kinds: BTreeMap<_, (&Kind, BTreeSet<&str>)> = BTreeMap::new();
    for (kind, namespace) in objects {
        let key = (&kind.group, &kind.kind, &kind.version);
        kinds.entry(key).or_insert((kind, BTreeSet::new())).1.insert(namespace);
    }
    let mut scopes = HashSet::new();
    for (kind, namespaces) in kinds.into_values() {
        if kind.namespaced && namespaces.len() <= FEW {
            let one = |namespace: &str| Scope { kind: kind.clone(), namespace: Some(namespace.to_owned()) };
            scopes.extend(namespaces.into_iter().map(one));
        } else {
            scopes.insert(Scope { kind: kind.clone(), namespace: None });
        }
    }
    scopes
}

impl Scopes {
    /// Follows these, and no others. Returns whether some of them are new.
    pub(crate) fn want<A: Api>(&mut self, api: &A, scopes: HashSet<Scope>, now: Instant) -> bool {
        let before = self.last;
        let numbers = &mut self.numbers;
        self.watches.retain(|scope, watch| {
            let stays = scopes.contains(scope);
            if !stays {
                watch.task.abort();
                numbers.remove(&watch.number);
            }
            stays
        });
        for scope in scopes {
            if self.watches.contains_key(&scope) {
                continue;
            }
            self.last += 1;
            let (number, sender) = (self.last, self.sender.clone());
            let mut following = api.follow(&scope.kind, scope.namespace.as_deref());
            let task = self.tasks.spawn(async move {
                loop {
                    let change = following.next().await;
                    if sender.send((number, change)).await.is_err() {
                        return;
                    }
                }
            });
            self.numbers.insert(number, scope.clone());
            let watch = Watch { number, task, since: now, listed: false, began: now, found: HashSet::new() };
            self.watches.insert(scope, watch);
        }
        while self.tasks.try_join_next().is_some() {}
        self.last != before
    }

    /// The next change of what is followed. Nothing is lost when this is dropped early.
    pub(crate) async fn next(&mut self) -> (Scope, Change) {
        loop {
            // `self` has a sender too, so there is always a next one.
            let Some((number, change)) = self.changes.recv().await else {
                return std::future::pending().await;
            };
            // Changes of what is not followed any more may be on their way.
            if let Some(scope) = self.numbers.get(&number) {
                return (scope.clone(), change);
            }
        }
    }

    pub(crate) fn watch_mut(&mut self, scope: &Scope) -> Option<&mut Watch> {
        self.watches.get_mut(scope)
    }

    /// Since when lists run that are not complete yet.
    pub(crate) fn listing(&self) -> impl Iterator<Item = Instant> {
        self.watches.values().filter(|watch| !watch.listed).map(|watch| watch.since)
    }

    /// What covers an object.
    pub(crate) fn of(&self, kind: &Kind, namespace: &str) -> Option<&Watch> {
        let scope = |namespace| Scope { kind: kind.clone(), namespace };
        self.watches.get(&scope(None)).or_else(|| self.watches.get(&scope(Some(namespace.to_owned()))))
    }
}

impl Scope {
    pub(crate) fn covers(&self, kind: &Kind, namespace: &str) -> bool {
        self.kind == *kind && self.namespace.as_ref().is_none_or(|own| own == namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_in_few_namespaces_is_followed_there_and_one_in_many_everywhere() {
        let kind = |name: &str, namespaced| Kind {
            group: String::new(),
            version: "v1".to_owned(),
            kind: name.to_owned(),
            plural: name.to_lowercase(),
            namespaced,
        };
        let (few, many, whole) = (kind("Few", true), kind("Many", true), kind("Whole", false));
        let mut objects = vec![(&few, "a"), (&few, "b"), (&few, "a"), (&whole, "")];
        objects.extend(["a", "b", "c", "d"].map(|namespace| (&many, namespace)));
        let mut scopes: Vec<_> = covering(objects.into_iter())
            .into_iter()
            .map(|scope| (scope.kind.kind, scope.namespace.unwrap_or_else(|| "*".to_owned())))
            .collect();
        scopes.sort();
        let expected = [("Few", "a"), ("Few", "b"), ("Many", "*"), ("Whole", "*")];
        assert_eq!(scopes, expected.map(|(kind, namespace)| (kind.to_owned(), namespace.to_owned())));
    }
}
