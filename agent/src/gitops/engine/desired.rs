//! What a commit wants of the cluster: its objects with their kinds, in order, and what of it cannot be followed. Before
//! it: the files of the commit. After it: `task.rs`, which does it. It asks the cluster which kinds there are and what
//! the inventory says, and changes nothing.

use crate::{
    cluster::{ClusterError, Kind},
    error,
    gitops::{
        Received,
        engine::{
            api::Api,
            claims::Claim,
            needs,
            progress::Wanted,
            record::{self, RecordError},
            task::Kinds,
        },
        inventory::{Inventory, InventoryError, Stored, Template},
        object::{Manifest, ObjectId, Problem},
        order, read,
        settings::Settings,
    },
};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};
use tokio::task::{JoinError, JoinHandle};

/// The most groups that the cluster does not serve which it is asked for, in their versions; a commit can make up as many
/// as it has objects.
const UNSERVED: usize = 50;

/// A commit, as far as it can be followed.
pub(crate) struct Desired {
    pub(crate) wanted: Vec<Wanted>,
    pub(crate) template: Template,
    /// Documents that are broken. While there are any, nothing is pruned.
    pub(crate) problems: Vec<Problem>,
    /// Objects that cannot be applied whatever the cluster says, and why.
    pub(crate) rejected: Vec<(Manifest, String)>,
    /// Objects of kinds that the cluster does not have now. While there are any, nothing is pruned.
    pub(crate) unknown: Vec<(Manifest, String)>,
}

/// Why nothing of a commit can be applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DesireError {
    #[error(transparent)]
    Inventory(#[from] InventoryError),
    #[error(transparent)]
    Record(#[from] RecordError),
    /// Which kinds there are is not known.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl DesireError {
    /// Whether it may well be fine soon.
    pub(crate) fn passes(&self) -> bool {
        match self {
            Self::Inventory(_) => false,
            Self::Record(error) => error.passes(),
            Self::Cluster(error) => error.passes(),
        }
    }
}

/// What was read, and nothing else: half of a commit, or none of it, would prune what the rest has. A task that ends
/// without having read does so because the program ends.
async fn whole<T>(reading: JoinHandle<T>) -> T {
    match reading.await.map_err(JoinError::try_into_panic) {
        Ok(read) => read,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => std::future::pending().await,
    }
}

/// Kinds and inventory are asked for unless they are known.
pub(crate) async fn desire<A: Api>(
    api: &A,
    mut kinds: Kinds,
    stored: Option<Stored>,
    commit: Arc<Received>,
    settings: &Settings,
    agent_id: i64,
    claim: &Claim,
) -> Result<(Desired, Kinds, Stored), DesireError> {
    let files = commit.clone();
    // A commit may be 20 MiB, and others are served meanwhile.
    let reading = tokio::task::spawn_blocking(move || read::read(&files.files));
    let read::Read { objects, mut problems } = whole(reading).await;
    let namespace = settings.default_namespace.as_str();
    let (template, objects) =
        Template::take(objects, namespace, agent_id, (&commit.project, commit.project_id))?;
    if !problems.is_empty() {
        template.certain(&commit.files)?;
    }
    claim.take(&template)?;
    let stored = match stored {
        Some(stored) => stored,
        None => record::read(api, &template).await?,
    };

    let definitions = needs::definitions(objects.iter().map(|object| (&object.id, &*object.value)));
    let mut settled: BTreeMap<ObjectId, Manifest> = BTreeMap::new();
    let mut unserved: HashMap<ObjectId, String> = HashMap::new();
    let mut missing: HashMap<(String, String, String), String> = HashMap::new();
    let mut unserved_groups: HashSet<(String, String)> = HashSet::new();
    let mut found: HashMap<ObjectId, (Kind, Option<ObjectId>)> = HashMap::new();
    let mut rejected = Vec::new();
    let mut ordered = Vec::new();
    for object in objects {
        let (group, kind) = (object.id.group.clone(), object.id.kind.clone());
        let (kind, definition) = match definitions.get(&(group.clone(), kind.clone())) {
            Some(definition) => (definition.kind(&object.version), Some(definition.id.clone())),
            None => {
                let key = (group, object.version.clone(), kind);
                let group = (key.0.clone(), key.1.clone());
                if unserved_groups.len() == UNSERVED
                    && !kinds.contains_key(&key)
                    && !unserved_groups.contains(&group)
                {
                    let why = format!("not asked for, since {UNSERVED} groups of this commit are not served");
                    missing.insert(key.clone(), why);
                }
                if let (None, None) = (kinds.get(&key), missing.get(&key)) {
                    match api.kind(&key.0, &key.1, &key.2).await {
                        Ok(kind) => _ = kinds.insert(key.clone(), kind),
                        Err(error @ ClusterError::Unreachable { .. }) => return Err(error.into()),
                        // Also an extension of the API that is away: objects of other kinds do not wait for it.
                        Err(error) => {
                            missing.insert(key.clone(), error::chain(&error));
                            unserved_groups.insert(group);
                        }
                    }
                }
                match kinds.get(&key) {
                    Some(kind) => (kind.clone(), None),
                    None => {
                        let why = missing.get(&key).cloned().unwrap_or_default();
                        unserved.insert(object.id.clone(), why);
                        ordered.push(object);
                        continue;
                    }
                }
            }
        };
        let object = match object.settle(kind.namespaced, namespace) {
            Ok(object) => object,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        // One without its namespace and one with it may have been different until now.
        if let Some(first) = settled.get(&object.id) {
            let text = format!("{} is in {}:{} already; that one counts", object.id, first.file, first.line);
            problems.push(Problem { file: object.file, line: object.line, column: 1, text });
            continue;
        }
        settled.insert(object.id.clone(), object.clone());
        if let Err(error) = Inventory::takes(&object.id) {
            rejected.push((object, error.to_string()));
            continue;
        }
        found.insert(object.id.clone(), (kind, definition));
        ordered.push(object);
    }
    let order::Waves { waves, problems: unordered, needs: mut edges } = order::waves(ordered);
    rejected.extend(unordered);

    let mut wanted = Vec::new();
    let mut unknown = Vec::new();
    let mut absent: HashSet<ObjectId> = HashSet::new();
    for (rank, object) in waves
        .into_iter()
        .enumerate()
        .flat_map(|(rank, wave)| wave.into_iter().map(move |object| (rank, object)))
    {
        let needs = edges.remove(&object.id).unwrap_or_default();
        if let Some(why) = unserved.remove(&object.id) {
            absent.insert(object.id.clone());
            unknown.push((object, why));
        } else if let Some(need) = needs.iter().find(|need| absent.contains(*need)) {
            let why = format!("waits for {need}, whose kind the cluster does not serve");
            absent.insert(object.id.clone());
            rejected.push((object, why));
        } else if let Some((kind, definition)) = found.remove(&object.id) {
            wanted.push(Wanted { manifest: object, kind, definition, rank, needs });
        }
    }
    Ok((Desired { wanted, template, problems, rejected, unknown }, kinds, stored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn reading_that_was_broken_off_is_no_empty_commit() {
        let reading = tokio::spawn(std::future::pending::<read::Read>());
        reading.abort();
        let read = tokio::time::timeout(Duration::from_secs(60), whole(reading)).await;
        assert!(read.is_err());
    }
}
