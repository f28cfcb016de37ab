//! Whose a live object is, and what may therefore be done to it: the tables of cli-utils' inventory policies, but that
//! what carries no owner is deleted with [`Policy::AdoptAll`] only. Before it: an object as the cluster has it. After
//! it: the engine, which applies or deletes it, or leaves it and says why.

use super::{OWNER, Template, text};
use crate::{cluster::Kind, gitops::object::ObjectId};
use serde_json::{Map, Value, json};
use std::collections::HashSet;

/// Annotations that keep an object from being deleted once it left the commit, with the value that does.
const DETACHED: [(&str, &str); 2] =
    [("cli-utils.sigs.k8s.io/on-remove", "keep"), ("client.lifecycle.config.k8s.io/deletion", "detach")];
/// The most characters of an owner that are repeated: anybody can write anything there.
const SHOWN: usize = 100;

/// Which objects that exist already a project may take over, and which it may delete.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Its own.
    #[default]
    MustMatch,
    /// It takes over its own, and those of nobody; it deletes its own, which what it has taken over is.
    AdoptIfNoInventory,
    /// All of them, and it deletes all that its inventory lists.
    AdoptAll,
}

/// Why an object stays though it left the commit.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Keep {
    /// Whatever was applied has an owner, so it never was, or somebody took it away. Its policy is not
    /// [`Policy::AdoptAll`].
    #[error("it has no annotation {OWNER}, and only inventory_policy adopt_all deletes what is nobody's")]
    Unowned,
    /// Its policy is not [`Policy::AdoptAll`].
    #[error("it belongs to the inventory {owner:?}")]
    OtherOwner {
        /// Whose it is.
        owner: String,
    },
    /// Somebody wants it to stay.
    #[error("its annotation {key} is {value:?}")]
    Detached {
        /// Which annotation.
        key: &'static str,
        /// What it says.
        value: &'static str,
    },
    /// A namespace with objects of the project that stay, or the definition of their kind.
    #[error("objects of this project need it")]
    InUse,
    /// Something else stays for good, and would go with it or not work without it.
    #[error("{by} stays and needs it")]
    Needed {
        /// What stays.
        by: ObjectId,
    },
    /// It has been applied under another name of its kind: deleting it would undo that.
    #[error("it is the same object as one that was just applied, under another API group")]
    JustApplied,
}

impl Keep {
    /// Whether the inventory forgets the object: it is listed elsewhere, or is meant to stay for good.
    pub fn forgets(&self) -> bool {
        match self {
            Self::OtherOwner { .. } | Self::Detached { .. } | Self::Needed { .. } | Self::JustApplied => true,
            Self::Unowned | Self::InUse => false,
        }
    }

    /// Whether what the object needs has to stay as well, though the inventory will not know for whom.
    pub fn is_for_good(&self) -> bool {
        // What was just applied is in the commit, under its other name.
        self.forgets() && *self != Self::JustApplied
    }
}

/// What objects that stay need to stay.
#[derive(Clone, Debug, Default)]
pub struct InUse {
    namespaces: HashSet<String>,
    /// By name.
    definitions: HashSet<String>,
    uids: HashSet<String>,
}

impl InUse {
    /// The inventory itself stays.
    pub fn by(template: &Template) -> Self {
        Self { namespaces: HashSet::from([template.namespace.clone()]), ..Self::default() }
    }

    /// Objects of a kind stay. With its definition all of them would go, whoever's they are.
    pub fn hold_kind(&mut self, kind: &Kind) {
        if !kind.group.is_empty() {
            self.definitions.insert(definition(kind).name);
        }
    }

    /// An object stays: one of the commit, or one that may not be deleted. `uid`: of the live object if it has been
    /// applied, else empty.
    pub fn hold(&mut self, object: &ObjectId, uid: &str) {
        if !object.namespace.is_empty() {
            self.namespaces.insert(object.namespace.clone());
        }
        if !uid.is_empty() {
            self.uids.insert(uid.to_owned());
        }
    }
}

/// What defines a kind, unless that is the API server itself.
pub fn definition(kind: &Kind) -> ObjectId {
    ObjectId {
        group: "apiextensions.k8s.io".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        namespace: String::new(),
        name: format!("{}.{}", kind.plural, kind.group),
    }
}

/// Whether an object may be the definition of a kind of this group.
pub fn may_define(object: &ObjectId, group: &str) -> bool {
    object.group == "apiextensions.k8s.io"
        && object.kind == "CustomResourceDefinition"
        && object.name.split_once('.').is_some_and(|(_, of)| of == group)
}

/// The inventory that an object belongs to. `None`: to none.
pub fn owner_of(live: &Value) -> Option<&str> {
    // An annotation of any other shape is no annotation to the API server either.
    live.get("metadata")?.get("annotations")?.get(OWNER)?.as_str()
}

/// Whether an annotation's key is one that the decisions here are made by.
pub fn is_about_ownership(key: &str) -> bool {
    key == OWNER || DETACHED.iter().any(|(detached, _)| *detached == key)
}

/// Whether the project may apply an object. `live`: the object as it is, if it exists.
///
/// # Errors
/// Why not, and which policy would let it, as the end of a sentence about the object.
pub fn may_apply(policy: Policy, live: Option<&Value>, inventory_id: &str) -> Result<(), String> {
    let Some(live) = live else { return Ok(()) };
    match (owner_of(live), policy) {
        (Some(owner), _) if owner == inventory_id => Ok(()),
        (_, Policy::AdoptAll) | (None, Policy::AdoptIfNoInventory) => Ok(()),
        (None, Policy::MustMatch) => Err(format!(
            "it exists already and has no annotation {OWNER}; delete it, or take it over with inventory_policy \
             adopt_if_no_inventory"
        )),
        (Some(owner), _) => Err(format!(
            "it belongs to the inventory {:?}; remove it there, or take it over with inventory_policy adopt_all",
            shown(owner)
        )),
    }
}

/// Whether an object that left the commit may be deleted. `live`: the object as it is; one that is gone already may.
///
/// # Errors
/// Why it stays.
pub fn may_prune(
    policy: Policy,
    object: &ObjectId,
    live: Option<&Value>,
    inventory_id: &str,
    in_use: &InUse,
) -> Result<(), Keep> {
    let Some(live) = live else { return Ok(()) };
    let annotation = |key: &str| text(live, &["metadata", "annotations", key]);
    if let Some(&(key, value)) = DETACHED.iter().find(|(key, value)| annotation(key) == *value) {
        return Err(Keep::Detached { key, value });
    }
    match (owner_of(live), policy) {
        (Some(owner), _) if owner == inventory_id => {}
        (_, Policy::AdoptAll) => {}
        // Whoever can write the inventory could have anything deleted otherwise.
        (None, _) => return Err(Keep::Unowned),
        (Some(owner), _) => return Err(Keep::OtherOwner { owner: shown(owner) }),
    }
    let users = match (object.group.as_str(), object.kind.as_str()) {
        ("", "Namespace") => in_use.namespaces.contains(&object.name),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => in_use.definitions.contains(&object.name),
        _ => false,
    };
    if users {
        return Err(Keep::InUse);
    }
    if in_use.uids.contains(text(live, &["metadata", "uid"])) {
        return Err(Keep::JustApplied);
    }
    Ok(())
}

/// The object as it is applied: with its owner.
pub fn own(object: &Value, inventory_id: &str) -> Value {
    let mut owned = object.clone();
    if let Some(metadata) = owned.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert_with(|| Value::Object(Map::new()));
        if annotations.is_null() {
            *annotations = json!({});
        }
        if let Some(annotations) = annotations.as_object_mut() {
            annotations.insert(OWNER.to_owned(), inventory_id.into());
        }
    }
    owned
}

/// A live object as it is replaced once the inventory forgets it, so that others may take it over. `None`: there is
/// nothing to change, since it is not the inventory's.
pub fn disown(live: &Value, inventory_id: &str) -> Option<Value> {
    if owner_of(live) != Some(inventory_id) {
        return None;
    }
    let mut free = live.clone();
    free.get_mut("metadata")?.get_mut("annotations")?.as_object_mut()?.remove(OWNER);
    Some(free)
}

fn shown(owner: &str) -> String {
    owner.chars().take(SHOWN).collect()
}
