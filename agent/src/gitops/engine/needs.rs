//! Which objects of a set must be there before which others: what they say themselves, their namespaces, and the
//! definitions of their kinds. Pure; the same for objects of a commit and for live ones that are to go.

use crate::{
    cluster::Kind,
    gitops::{inventory, object::ObjectId, order},
};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap, HashSet};

/// A kind that an object of the set defines.
#[derive(Clone, Debug)]
pub(crate) struct Definition {
    pub(crate) id: ObjectId,
    group: String,
    kind: String,
    plural: String,
    namespaced: bool,
}

impl Definition {
    /// As the cluster will serve it.
    pub(crate) fn kind(&self, version: &str) -> Kind {
        Kind::new(&self.group, version, &self.kind, &self.plural, self.namespaced)
    }

    fn of(id: &ObjectId, object: &Value) -> Option<Self> {
        if id.group != "apiextensions.k8s.io" || id.kind != "CustomResourceDefinition" {
            return None;
        }
        let spec = object.get("spec")?;
        let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
        let names = spec.get("names")?;
        Some(Self {
            id: id.clone(),
            group: text(spec.get("group"))?,
            kind: text(names.get("kind"))?,
            plural: text(names.get("plural"))?,
            namespaced: text(spec.get("scope"))? == "Namespaced",
        })
    }
}

/// By group and kind.
pub(crate) fn definitions<'a>(
    objects: impl Iterator<Item = (&'a ObjectId, &'a Value)>,
) -> HashMap<(String, String), Definition> {
    let found = objects.filter_map(|(id, object)| Definition::of(id, object));
    found.map(|found| ((found.group.clone(), found.kind.clone()), found)).collect()
}

/// Of each object that is to go, those of the others that it needs. `found`: as they are; what could not be looked at is
/// only in its namespace.
pub(crate) fn between<'a>(
    all: impl Iterator<Item = &'a ObjectId> + Clone,
    found: &BTreeMap<ObjectId, (Kind, Value)>,
) -> BTreeMap<ObjectId, Vec<ObjectId>> {
    let known: HashSet<&ObjectId> = all.clone().collect();
    let mut edges = BTreeMap::new();
    for id in all {
        let mut needs = Vec::new();
        if let Some((kind, live)) = found.get(id) {
            // A list that is broken is told where the objects are put in order.
            needs = order::depends_on(live).unwrap_or_default();
            needs.push(inventory::definition(kind));
        }
        if !id.namespace.is_empty() {
            needs.push(ObjectId {
                group: String::new(),
                kind: "Namespace".to_owned(),
                namespace: String::new(),
                name: id.namespace.clone(),
            });
        }
        needs.retain(|need| need != id && known.contains(need));
        needs.sort();
        needs.dedup();
        edges.insert(id.clone(), needs);
    }
    edges
}
