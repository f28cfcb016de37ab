//! The project's inventory in the cluster: read once, written before the first object is applied and after the last one
//! is deleted. Before it: `desired.rs`, which says where it is. `inventory.rs` decides what is written; this file only
//! asks, and asks again where somebody else was faster.

use crate::{
    cluster::{Change, ClusterError, Kind, Propagation},
    gitops::{
        engine::api::{Api, Follow as _},
        inventory::{InventoryError, LABEL, Stored, Template, Write},
        object::ObjectId,
    },
};
use serde_json::Value;
use std::{collections::BTreeSet, time::Duration};
use tokio::time::timeout;

/// To list the ConfigMaps of one namespace.
const LISTED: Duration = Duration::from_secs(30);
/// Somebody who changes an inventory that often is not to be kept up with.
const TRIES: usize = 5;

/// ConfigMaps that are joined into one inventory; more of them were made by somebody else.
const PARTS: usize = 16;
/// Bytes of all of them.
const SIZE: usize = 16 << 20;

/// Why the inventory cannot be relied upon. Nothing is applied then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    /// What it says is not known.
    #[error(
        "the ConfigMaps of the namespace {namespace}, where the inventory is, cannot be listed; may the agent get, list \
         and watch them?"
    )]
    Unlisted { namespace: String },
    /// It cannot be created before its namespace.
    #[error(
        "the inventory's namespace {namespace} does not exist: create it, or choose another default_namespace"
    )]
    NoNamespace { namespace: String },
    /// Whoever may write ConfigMaps there must not fill the agent's memory.
    #[error(
        "more than {PARTS} ConfigMaps of the namespace {namespace}, or more than {} MiB of them, carry the inventory's \
         label {LABEL}: {id}; delete those that are not the inventory",
        SIZE >> 20
    )]
    Crowded { namespace: String, id: String },
    /// It changes all the time.
    #[error("the inventory {namespace}/{name} is being changed by somebody else all the time")]
    Busy { namespace: String, name: String },
    #[error("the inventory cannot be written")]
    Cluster(#[from] ClusterError),
}

impl RecordError {
    /// Whether it may well be fine soon.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Inventory(_) | Self::NoNamespace { .. } | Self::Crowded { .. } => false,
            Self::Unlisted { .. } | Self::Busy { .. } => true,
            Self::Cluster(error) => error.passes(),
        }
    }
}

pub(crate) fn config_maps() -> Kind {
    Kind::new("", "v1", "ConfigMap", "configmaps", true)
}

/// Reads it.
pub(crate) async fn read<A: Api>(api: &A, template: &Template) -> Result<Stored, RecordError> {
    let mut following = api.follow(&config_maps(), Some(&template.namespace));
    let listing = async {
        let mut found: Vec<Value> = Vec::new();
        let mut size = 0;
        loop {
            match following.next().await {
                Change::Begun => (size, found) = (0, Vec::new()),
                Change::Found(config_map) if template.concerns(&config_map) => {
                    size += config_map.to_string().len();
                    if found.len() == PARTS || size > SIZE {
                        let (namespace, id) = (template.namespace.clone(), template.id.clone());
                        return Err(RecordError::Crowded { namespace, id });
                    }
                    found.push(Value::clone(&config_map));
                }
                Change::Listed => return Ok(found),
                _ => {}
            }
        }
    };
    let listed = timeout(LISTED, listing).await;
    let found = listed.map_err(|_| RecordError::Unlisted { namespace: template.namespace.clone() })??;
    Ok(Stored::read(found, template)?)
}

/// Makes it list these objects, and returns what it says then. `stale`: what was read may have changed. What somebody
/// else has added since then stays.
pub(crate) async fn write<A: Api>(
    api: &A,
    template: &Template,
    mut stored: Stored,
    mut stale: bool,
    mut objects: BTreeSet<ObjectId>,
) -> Result<Stored, RecordError> {
    let kind = config_maps();
    let known = stored.inventory.objects.clone();
    for _ in 0..TRIES {
        if stale {
            stored = read(api, template).await?;
            objects.extend(stored.inventory.objects.difference(&known).cloned());
        }
        stale = true;
        let answer = match stored.write(template, objects.clone())? {
            Write::Nothing => return Ok(tidied(api, stored).await),
            Write::Create(config_map) => api.create(&kind, &config_map).await,
            Write::Replace(config_map) => api.replace(&kind, &config_map).await,
        };
        match answer {
            Ok(config_map) => {
                stored.wrote(config_map);
                return Ok(tidied(api, stored).await);
            }
            // Changed, created or deleted in between. A missing namespace says the same as a missing object.
            Err(error) if error.is_conflict() => {}
            Err(error) if error.is_not_found() => {
                let namespaces = Kind::new("", "v1", "Namespace", "namespaces", false);
                if api.get(&namespaces, "", &template.namespace).await?.is_none() {
                    return Err(RecordError::NoNamespace { namespace: template.namespace.clone() });
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(RecordError::Busy { namespace: template.namespace.clone(), name: template.name.clone() })
}

/// Deletes what the one that was written has taken over; failing that, the next write does.
async fn tidied<A: Api>(api: &A, mut stored: Stored) -> Stored {
    for config_map in std::mem::take(&mut stored.superfluous) {
        let text = |key: &str| config_map["metadata"][key].as_str().unwrap_or_default();
        let (namespace, name, uid) = (text("namespace"), text("name"), text("uid"));
        let deleted = api.delete(&config_maps(), namespace, name, uid, Propagation::Background, false).await;
        if deleted.is_err() {
            stored.superfluous.push(config_map.clone());
        }
    }
    stored
}
