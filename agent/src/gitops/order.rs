//! Which objects go before which: what others live in (namespaces), what makes their kinds known (definitions of
//! resources), and what they say they need (`config.kubernetes.io/depends-on`). Before it: `read.rs`, and the engine, which
//! settled the objects. After it: the engine, wave after wave. It asks no cluster: what is not in the commit does not exist.
//!
//! No annotation with a number is read, `argocd.argoproj.io/sync-wave` neither: what needs what says more.

mod depends_on;
mod graph;
#[cfg(test)]
mod tests;

use crate::gitops::{
    object::{Manifest, ObjectId},
    read::twice,
};
pub use depends_on::{DEPENDS_ON, depends_on};
use graph::{Graph, Rings};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, hash_map::Entry};

/// A commit's objects in the order in which they are applied. Each is in exactly one wave, or among the problems.
#[derive(Debug, Default)]
pub struct Waves {
    /// Everything that an object needs is in a wave before its own. None is empty. First come namespaces, then
    /// definitions of resources, then the rest, unless an object of those needs one of these.
    pub waves: Vec<Vec<Manifest>>,
    /// What cannot be applied, and why; everything that needs one of these is among them.
    pub problems: Vec<(Manifest, String)>,
    /// What an object of the waves needs at once; one that needs nothing has no entry. If one of these is not ready, the
    /// object must wait, and others of its wave need not.
    pub needs: HashMap<ObjectId, Vec<ObjectId>>,
}

/// Orders settled objects; their order before that changes nothing but which of two with the same id is taken.
pub fn waves(objects: Vec<Manifest>) -> Waves {
    let mut failed: Vec<Option<String>> = vec![None; objects.len()];
    let mut known = HashMap::with_capacity(objects.len());
    for (at, object) in objects.iter().enumerate() {
        match known.entry(&object.id) {
            Entry::Vacant(entry) => _ = entry.insert(at),
            Entry::Occupied(first) => failed[at] = Some(twice(&object.id, &objects[*first.get()])),
        }
    }
    let graph = needs(&objects, &known, &mut failed);
    let dependents = graph.dependents();
    fail_dependents(&objects, &dependents, &mut failed);
    let left_out: Vec<bool> = failed.iter().map(Option::is_some).collect();
    let levels = graph.levels(&dependents, |at| base(&objects[at].id), &left_out, graph::Stuck::Stay);
    let stuck: Vec<bool> = (0..objects.len()).map(|at| levels[at].is_none() && !left_out[at]).collect();
    let rings = graph.rings(&stuck);
    for at in (0..objects.len()).filter(|&at| stuck[at]) {
        failed[at] = Some(in_ring(&objects, &rings, at));
    }

    let mut needs = HashMap::new();
    for at in (0..objects.len()).filter(|&at| failed[at].is_none() && !graph.needs(at).is_empty()) {
        let ids = graph.needs(at).iter().map(|&needed| objects[needed].id.clone());
        needs.insert(objects[at].id.clone(), ids.collect());
    }
    let mut problems = Vec::new();
    let mut waves: BTreeMap<usize, Vec<Manifest>> = BTreeMap::new();
    for ((object, failed), level) in objects.into_iter().zip(failed).zip(levels) {
        match (failed, level) {
            (None, Some(level)) => waves.entry(level).or_default().push(object),
            (failed, _) => problems.push((object, failed.unwrap_or_default())),
        }
    }
    let mut waves: Vec<_> = waves.into_values().collect();
    for wave in &mut waves {
        wave.sort_by(|a, b| (rank(&a.id), &a.id).cmp(&(rank(&b.id), &b.id)));
    }
    Waves { waves, problems, needs }
}

/// The order in which objects are removed: what others need, or live in, goes after those. `ids` come with what they
/// need ([`depends_on`] of the live object); what is needed and not among them is gone already. Each id is in exactly one
/// wave: where objects need each other, there is no right order, so one of them goes first.
pub fn prune_order(ids: Vec<(ObjectId, Vec<ObjectId>)>) -> Vec<Vec<ObjectId>> {
    let mut merged: BTreeMap<ObjectId, Vec<ObjectId>> = BTreeMap::new();
    for (id, needs) in ids {
        merged.entry(id).or_default().extend(needs);
    }
    let (ids, named): (Vec<_>, Vec<_>) = merged.into_iter().unzip();
    let known: HashMap<_, _> = ids.iter().enumerate().map(|(at, id)| (id, at)).collect();
    // Which kind a definition makes known is not in its name, but the group is. A node for a group stands for all
    // definitions in it: as many edges as objects, instead of one from each object to each definition.
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (at, id) in ids.iter().enumerate().filter(|(_, id)| is_definition(id)) {
        if let Some((_, group)) = id.name.split_once('.') {
            groups.entry(group).or_default().push(at);
        }
    }
    let groups_at: HashMap<_, _> = groups.keys().zip(ids.len()..).map(|(group, at)| (*group, at)).collect();
    let mut graph = Graph::new(ids.len() + groups.len());
    for (at, (id, named)) in ids.iter().zip(&named).enumerate() {
        let named = named.iter().filter_map(|needed| known.get(needed).copied());
        let group = (!is_definition(id)).then(|| groups_at.get(&*id.group).copied()).flatten();
        graph.set(at, named.chain(namespace(id, &known)).chain(group).collect());
    }
    for (at, definitions) in groups.into_values().enumerate() {
        graph.set(ids.len() + at, definitions);
    }
    let base = |at: usize| ids.get(at).map_or(0, base);
    let levels = graph.levels(&graph.dependents(), base, &vec![false; graph.len()], graph::Stuck::Force);
    let mut waves: BTreeMap<usize, Vec<ObjectId>> = BTreeMap::new();
    for (id, level) in ids.into_iter().zip(levels) {
        waves.entry(level.unwrap_or_default()).or_default().push(id);
    }
    let mut waves: Vec<_> = waves.into_values().rev().collect();
    for wave in &mut waves {
        wave.sort_by(|a, b| (rank(b), b).cmp(&(rank(a), a)));
    }
    waves
}

/// References of all annotations of a commit.
const MOST_REFERENCES: usize = 100_000;

/// What each object needs of the others; those that need what is not there have failed.
fn needs(objects: &[Manifest], known: &HashMap<&ObjectId, usize>, failed: &mut [Option<String>]) -> Graph {
    let mut definitions = HashMap::new();
    let mut alike = HashMap::new();
    for (at, object) in objects.iter().enumerate() {
        if let Some(defined) = defines(object) {
            definitions.entry(defined).or_insert(at);
        }
        alike.entry((&*object.id.group, &*object.id.kind, &*object.id.name)).or_insert(at);
    }
    let mut graph = Graph::new(objects.len());
    let mut left = MOST_REFERENCES;
    for (at, object) in objects.iter().enumerate().filter(|(at, _)| failed[*at].is_none()).collect::<Vec<_>>()
    {
        let ids = match depends_on(&object.value) {
            Ok(ids) => ids,
            Err(problem) => {
                failed[at] = Some(problem);
                continue;
            }
        };
        match left.checked_sub(ids.len()) {
            Some(rest) => left = rest,
            None => {
                failed[at] = Some(format!(
                    "{DEPENDS_ON} of all objects together has more than {MOST_REFERENCES} references"
                ));
                continue;
            }
        }
        let mut needs = Vec::new();
        for id in ids {
            let Some(&needed) = known.get(&id) else {
                let near = alike.get(&(&*id.group, &*id.kind, &*id.name)).map(|&near| &objects[near].id);
                failed[at] = Some(missing(&id, near));
                break;
            };
            needs.push(needed);
        }
        if failed[at].is_none() {
            needs.extend(namespace(&object.id, known));
            needs.extend(definitions.get(&(&*object.id.group, &*object.id.kind)).copied());
            graph.set(at, needs);
        }
    }
    graph
}

fn missing(id: &ObjectId, near: Option<&ObjectId>) -> String {
    let hint = match near {
        Some(near) => format!("; did you mean {}?", depends_on::written(near)),
        None => String::new(),
    };
    format!("it depends on {id}, which is not among the manifests{hint}")
}

fn namespace(id: &ObjectId, known: &HashMap<&ObjectId, usize>) -> Option<usize> {
    if id.namespace.is_empty() {
        return None;
    }
    let (group, namespace) = (String::new(), String::new());
    let id = ObjectId { group, kind: "Namespace".to_owned(), namespace, name: id.namespace.clone() };
    known.get(&id).copied()
}

fn is_definition(id: &ObjectId) -> bool {
    id.group == "apiextensions.k8s.io" && id.kind == "CustomResourceDefinition"
}

/// The group and kind that an object makes known.
fn defines(object: &Manifest) -> Option<(&str, &str)> {
    let text = |path: &str| object.value.pointer(path).and_then(Value::as_str);
    is_definition(&object.id).then(|| Some((text("/spec/group")?, text("/spec/names/kind")?)))?
}

/// What needs something that failed has failed as well.
fn fail_dependents(objects: &[Manifest], dependents: &[Vec<usize>], failed: &mut [Option<String>]) {
    let mut open: Vec<usize> = (0..objects.len()).filter(|&at| failed[at].is_some()).collect();
    while let Some(at) = open.pop() {
        for &dependent in &dependents[at] {
            if failed[dependent].is_none() {
                failed[dependent] =
                    Some(format!("it depends on {}, which cannot be applied", objects[at].id));
                open.push(dependent);
            }
        }
    }
}

/// Objects of a ring that are named.
const SHOWN: usize = 8;

/// What is said about an object that waits for itself, or for one that does.
fn in_ring(objects: &[Manifest], rings: &Rings, at: usize) -> String {
    let (ring, place) = rings.of(at);
    let (begin, said) = match place {
        Some(place) => (place, "it depends on itself"),
        None => (0, "it depends on objects that depend on themselves"),
    };
    let shown = ring.iter().cycle().skip(begin).take(ring.len().min(SHOWN));
    let mut names: Vec<_> = shown.map(|&at| objects[at].id.to_string()).collect();
    if ring.len() > SHOWN {
        names.push(format!("{} more", ring.len() - SHOWN));
    }
    names.extend(ring.get(begin).map(|&at| objects[at].id.to_string()));
    format!("{said}: {}", names.join(" -> "))
}

/// The first level at which an object may be.
fn base(id: &ObjectId) -> usize {
    match (&*id.group, &*id.kind) {
        ("", "Namespace") => 0,
        _ if is_definition(id) => 1,
        _ => 2,
    }
}

/// The order within a wave, whose objects do not wait for each other: what others usually refer to begins sooner, and
/// what may refuse others (webhooks, quotas aside) comes last.
fn rank(id: &ObjectId) -> usize {
    const FIRST: &[(&str, &str)] = &[
        ("", "Namespace"),
        ("apiextensions.k8s.io", "CustomResourceDefinition"),
        ("", "ResourceQuota"),
        ("", "LimitRange"),
        ("scheduling.k8s.io", "PriorityClass"),
        ("storage.k8s.io", "StorageClass"),
        ("networking.k8s.io", "NetworkPolicy"),
        ("", "ServiceAccount"),
        ("rbac.authorization.k8s.io", "ClusterRole"),
        ("rbac.authorization.k8s.io", "Role"),
        ("rbac.authorization.k8s.io", "ClusterRoleBinding"),
        ("rbac.authorization.k8s.io", "RoleBinding"),
        ("", "Secret"),
        ("", "ConfigMap"),
        ("", "PersistentVolume"),
        ("", "PersistentVolumeClaim"),
        ("", "Service"),
    ];
    const LAST: &[(&str, &str)] = &[
        ("apiregistration.k8s.io", "APIService"),
        ("admissionregistration.k8s.io", "MutatingWebhookConfiguration"),
        ("admissionregistration.k8s.io", "ValidatingWebhookConfiguration"),
    ];
    let place = |kinds: &[(&str, &str)]| kinds.iter().position(|kind| *kind == (&*id.group, &*id.kind));
    match (place(FIRST), place(LAST)) {
        (Some(at), _) => at,
        (None, None) => FIRST.len(),
        (None, Some(at)) => FIRST.len() + 1 + at,
    }
}
