//! Which objects of the cluster are a project's: a list that outlives commits and agents, in a ConfigMap as cli-utils
//! keeps it, so that a cluster can be handed over from agentk and back. Before it: the objects of a commit. After it:
//! the engine, which reads the ConfigMap, applies, prunes, and writes it. Everything here is a decision; nothing here
//! asks the cluster.

mod keys;
mod owner;
mod stored;
mod template;

#[cfg(test)]
mod tests;

pub use owner::{
    InUse, Keep, Policy, definition, disown, is_about_ownership, may_apply, may_define, may_prune, own,
    owner_of,
};
pub use stored::{Outcome, Stored, Write, exact};
pub use template::Template;

use crate::gitops::object::{ObjectId, Problem};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The label of the ConfigMap; its value is the inventory's id.
pub const LABEL: &str = "cli-utils.sigs.k8s.io/inventory-id";
/// The annotation of every object that is listed; its value is the inventory's id.
pub const OWNER: &str = "config.k8s.io/owning-inventory";
/// The most bytes of a list. The API server takes 1 MiB, and the rest of the object needs some.
pub const SIZE: usize = 900 << 10;
/// The most bytes of one key of a ConfigMap.
const KEY: usize = 253;

/// Why a project's objects cannot be told from others'. Says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InventoryError {
    /// Nobody could tell which one counts.
    #[error(
        "{count} objects carry the label {LABEL}, and only one may, since it is the project's inventory: \
         the first is at {first}, the second at {second}"
    )]
    Many {
        /// How many.
        count: usize,
        /// Where the first is: file and line.
        first: String,
        /// Where the second is.
        second: String,
    },
    /// The list cannot be kept in it.
    #[error("{0}")]
    Template(Problem),
    /// With another inventory its objects would look like somebody else's.
    #[error(
        "no object carries the label {LABEL}, but the manifests mention it and not all of them can be read; nothing is \
         applied until they can, since the project's inventory may be among the others"
    )]
    Hidden,
    /// The default inventory would be that of other projects too.
    #[error(
        "the broker does not say which numbers this agent and the project {project:?} have, and their inventory is \
         named after them; use a newer broker, or commit a ConfigMap with the label {LABEL}"
    )]
    Numberless {
        /// Its path.
        project: String,
    },
    /// It has the inventory's name, and nothing says that it is one, or another's.
    #[error(
        "the ConfigMap {namespace}/{name} has the name of this project's inventory, but its label {LABEL} is not {id}; \
         set the label if it is the inventory, else rename or delete the ConfigMap"
    )]
    Foreign {
        /// Of the ConfigMap.
        namespace: String,
        /// Of the ConfigMap.
        name: String,
        /// What the label should be.
        id: String,
    },
    /// Each would delete what the other has.
    #[error(
        "the project {project:?} of this agent has the inventory {id:?} in the ConfigMap {namespace}/{name} already; use \
         another label {LABEL} and another name for this project's"
    )]
    Claimed {
        /// The path of the one that has it.
        project: String,
        /// What its label says.
        id: String,
        /// Of its ConfigMap.
        namespace: String,
        /// Of its ConfigMap.
        name: String,
    },
    /// The object can be no key.
    #[error(
        "{object} cannot be listed in the inventory: namespace, name, group and kind become one key of a ConfigMap, \
         which is at most {KEY} of A-Z, a-z, 0-9, '-', '_' and '.'; give the object another name"
    )]
    Key {
        /// Which object.
        object: ObjectId,
    },
    /// More than [`SIZE`].
    #[error(
        "the list of {objects} objects takes {bytes} bytes, and an inventory can hold {SIZE}; split the project"
    )]
    Full {
        /// How many.
        objects: usize,
        /// How large.
        bytes: usize,
    },
}

/// What the ConfigMap lists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// The project's objects.
    pub objects: BTreeSet<ObjectId>,
    /// Entries that are not understood, and stay as they are: neither pruned nor forgotten.
    pub unread: BTreeMap<String, Value>,
}

impl Inventory {
    /// Of a ConfigMap as the cluster has it. What newer programs write beside each object, how far it is, is not needed.
    pub fn of(config_map: &Value) -> Self {
        let mut inventory = Self::default();
        for (key, value) in config_map.get("data").and_then(Value::as_object).into_iter().flatten() {
            match keys::read(key) {
                Some(object) => _ = inventory.objects.insert(object),
                None => _ = inventory.unread.insert(key.clone(), value.clone()),
            }
        }
        inventory
    }

    /// Whether an object can be listed at all; one that cannot must not be applied, or it would never be pruned.
    ///
    /// # Errors
    /// [`InventoryError::Key`]
    pub fn takes(object: &ObjectId) -> Result<(), InventoryError> {
        keys::write(object).map(drop)
    }

    /// The ConfigMap's `data`.
    ///
    /// # Errors
    /// [`InventoryError::Key`], [`InventoryError::Full`]
    fn data(&self) -> Result<Map<String, Value>, InventoryError> {
        let mut data: Map<_, _> = self.unread.clone().into_iter().collect();
        for object in &self.objects {
            data.insert(keys::write(object)?, Value::from(""));
        }
        let size = |(key, value): (&String, &Value)| key.len() + value.as_str().map_or(0, str::len);
        let bytes: usize = data.iter().map(size).sum();
        if bytes > SIZE {
            return Err(InventoryError::Full { objects: data.len(), bytes });
        }
        Ok(data)
    }
}

/// The string at `path` of an object of any shape, empty if there is none.
fn text<'a>(object: &'a Value, path: &[&str]) -> &'a str {
    let found = path.iter().try_fold(object, |object, key| object.get(*key));
    found.and_then(Value::as_str).unwrap_or_default()
}
