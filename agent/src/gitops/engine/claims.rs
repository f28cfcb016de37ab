//! Which project of this agent has which inventory. Before it: `desired.rs`, which found out which one a commit means.
//! Two with one inventory would delete each other's objects, so the second one is refused for as long as the first one
//! is followed. It knows nothing of other agents, whose inventories other numbers keep apart.

use crate::gitops::inventory::{InventoryError, Template};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// By project's path: what its inventory is. Clones are the same; there are as many as projects.
type All = Arc<Mutex<BTreeMap<String, Template>>>;

/// The claims of all projects.
#[derive(Clone, Default)]
pub(crate) struct Claims(All);

/// One project's. Dropping it ends it.
pub(crate) struct Claim {
    project: String,
    all: All,
}

impl Claims {
    /// Of this project, on nothing yet.
    pub(crate) fn of(&self, project: &str) -> Arc<Claim> {
        Arc::new(Claim { project: project.to_owned(), all: self.0.clone() })
    }
}

impl Claim {
    /// Claims this inventory, and no other any more.
    ///
    /// # Errors
    /// [`InventoryError::Claimed`]: another project has its id or its name.
    pub(crate) fn take(&self, wanted: &Template) -> Result<(), InventoryError> {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |had: &Template| {
            had.id == wanted.id || (&had.namespace, &had.name) == (&wanted.namespace, &wanted.name)
        };
        if let Some((project, had)) = all.iter().find(|(project, had)| **project != self.project && same(had))
        {
            let Template { namespace, name, id, .. } = had.clone();
            return Err(InventoryError::Claimed { project: project.clone(), id, namespace, name });
        }
        all.insert(self.project.clone(), wanted.clone());
        Ok(())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.all.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.project);
    }
}
