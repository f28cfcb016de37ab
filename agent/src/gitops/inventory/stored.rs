//! The inventory as the cluster has it, and what has to be written. The engine writes twice: before it applies anything
//! the union of what was and what will be, and at the end exactly what is. Whenever it dies, no object is lost.

use super::{Inventory, InventoryError, Template, template::label, text};
use crate::gitops::object::ObjectId;
use serde_json::Value;
use std::collections::BTreeSet;

/// What the cluster knows of a project's objects.
#[derive(Clone, Debug, Default)]
pub struct Stored {
    /// What it lists: of all ConfigMaps, if there are several.
    pub inventory: Inventory,
    /// The ConfigMap, if there is one.
    live: Option<Value>,
    /// Other ConfigMaps of the same inventory. To be deleted, but only once what they list has been written to the first.
    pub superfluous: Vec<Value>,
}

/// What brings the cluster's list up to date.
#[derive(Clone, Debug, PartialEq)]
pub enum Write {
    /// It is.
    Nothing,
    /// There is none yet.
    Create(Value),
    /// With the `resourceVersion` that was read: somebody else's change in between is a conflict, and read again.
    Replace(Value),
}

/// What became of an object, as far as its entry is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is there.
    Applied,
    /// It was refused, or not even tried: it is there only if it was before.
    NotApplied,
    /// A request for it got no answer, so it may be there.
    Unanswered,
    /// It is gone.
    Gone,
    /// It should be gone and is not: not allowed, not possible, or not yet.
    Undeleted,
    /// It stays, and is nobody's from now on: [`Keep::forgets`](super::Keep::forgets), or the project does not prune.
    Left,
}

impl Stored {
    /// `found`: the ConfigMaps of the template's namespace that [concern](Template::concerns) it.
    ///
    /// # Errors
    /// [`InventoryError::Foreign`]: one has the name and not the label. Nothing may be pruned or written then.
    pub fn read(found: Vec<Value>, template: &Template) -> Result<Self, InventoryError> {
        let (mut own, others): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|found| label(found) == template.id);
        let name = |config_map: &Value| text(config_map, &["metadata", "name"]).to_owned();
        if own.is_empty() && others.iter().any(|other| name(other) == template.name) {
            let Template { namespace, name, id, .. } = template.clone();
            return Err(InventoryError::Foreign { namespace, name, id });
        }
        own.sort_by_key(name);
        let mut inventory = Inventory::default();
        for read in own.iter().map(Inventory::of) {
            inventory.objects.extend(read.objects);
            inventory.unread.extend(read.unread);
        }
        let mut own = own.into_iter();
        Ok(Self { inventory, live: own.next(), superfluous: own.collect() })
    }

    /// What makes the list these `objects`, beside what it has that is not understood. Without an inventory an empty
    /// list needs none.
    ///
    /// # Errors
    /// [`InventoryError::Key`], [`InventoryError::Full`]
    pub fn write(&self, template: &Template, objects: BTreeSet<ObjectId>) -> Result<Write, InventoryError> {
        let wanted = Inventory { objects, unread: self.inventory.unread.clone() };
        let Some(live) = &self.live else {
            let nothing = wanted == Inventory::default();
            return if nothing {
                Ok(Write::Nothing)
            } else {
                Ok(Write::Create(template.create(wanted.data()?)))
            };
        };
        if Inventory::of(live) == wanted {
            return Ok(Write::Nothing);
        }
        let mut replaced = live.clone();
        if let Some(replaced) = replaced.as_object_mut() {
            replaced.insert("data".to_owned(), wanted.data()?.into());
        }
        Ok(Write::Replace(replaced))
    }

    /// The cluster's answer to what was written.
    pub fn wrote(&mut self, answer: Value) {
        self.inventory = Inventory::of(&answer);
        self.live = Some(answer);
    }
}

/// The list at the end of a synchronisation: what was `before` it and has no outcome stays.
pub fn exact(
    before: &BTreeSet<ObjectId>,
    outcomes: impl IntoIterator<Item = (ObjectId, Outcome)>,
) -> BTreeSet<ObjectId> {
    let mut objects = before.clone();
    for (object, outcome) in outcomes {
        match outcome {
            Outcome::Applied | Outcome::Unanswered | Outcome::Undeleted => _ = objects.insert(object),
            Outcome::Gone | Outcome::Left => _ = objects.remove(&object),
            Outcome::NotApplied => {}
        }
    }
    objects
}
