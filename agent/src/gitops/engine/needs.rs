//! Which objects of a set must be there before which others: what they say themselves, their namespaces, and the
//! definitions of their kinds. Pure; the same for objects of a commit and for live ones that are to go.

use crate::{
    cluster::Kind,
    gitops::{object::ObjectId, order},
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

/// Of each object, those of the others that it needs.
pub(crate) fn between<'a>(
    objects: impl Iterator<Item = (&'a ObjectId, &'a Value)> + Clone,
) -> BTreeMap<ObjectId, Vec<ObjectId>> {
    let all: HashSet<&ObjectId> = objects.clone().map(|(id, _)| id).collect();
    let definitions = definitions(objects.clone());
    let mut edges = BTreeMap::new();
    for (id, object) in objects {
        // A list that is broken is told where the objects are put in order.
        let mut needs = order::depends_on(object).unwrap_or_default();
        if !id.namespace.is_empty() {
            needs.push(ObjectId {
                group: String::new(),
                kind: "Namespace".to_owned(),
                namespace: String::new(),
                name: id.namespace.clone(),
            });
        }
        if let Some(definition) = definitions.get(&(id.group.clone(), id.kind.clone())) {
            needs.push(definition.id.clone());
        }
        needs.retain(|need| need != id && all.contains(need));
        needs.sort();
        needs.dedup();
        edges.insert(id.clone(), needs);
    }
    edges
}
