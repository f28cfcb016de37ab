//! Which kinds of objects the cluster serves, group by group as they are asked for, remembered for a while. What the
//! cluster did not know is asked for again, but not at once: manifests may name kinds that will never be.

use super::{
    ClusterError, Kind,
    client::{Client, DEADLINE, Question, Verb},
    path,
};
use http::Method;
use serde_json::Value;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::{Instant, timeout};

/// Answers are believed this long; a CustomResourceDefinition may change behind our back.
const FRESH: Duration = Duration::from_secs(10 * 60);
/// What was missing is asked for again after this long.
const AGAIN: Duration = Duration::from_secs(2);
/// Groups, and versions of one group. Commits name them, so somebody may name very many.
const MOST: usize = 500;

/// What is known.
#[derive(Default)]
pub(super) struct Kinds {
    groups: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Group>>>>,
}

#[derive(Default)]
struct Group {
    /// The preferred one first.
    versions: Option<Known<Vec<String>>>,
    kinds: HashMap<String, Known<Vec<Kind>>>,
}

/// An answer, and when it was had.
struct Known<T> {
    at: Instant,
    what: T,
}

impl<T> Known<T> {
    fn now(what: T) -> Self {
        Self { at: Instant::now(), what }
    }

    fn younger(&self, age: Duration) -> bool {
        self.at.elapsed() < age
    }
}

impl Kinds {
    pub(super) async fn find(
        &self,
        client: &Client,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Result<Kind, ClusterError> {
        let known = self.group(group);
        // One asks, the others wait for it, all of them no longer than for an answer.
        let finding = async {
            let mut known = known.lock().await;
            match version {
                "" => known.in_any(client, group, kind).await,
                version => known.in_version(client, group, version, kind).await,
            }
        };
        let late = |_| ClusterError::Unreachable {
            what: format!("find out about {kind} of {}", group_version(group, version)),
            cause: format!("no answer within {DEADLINE:?}"),
        };
        let found = timeout(DEADLINE, finding).await.map_err(late)??;
        found.ok_or_else(|| ClusterError::UnknownKind {
            group_version: group_version(group, version),
            kind: kind.to_owned(),
        })
    }

    pub(super) fn forget(&self, group: &str) {
        self.lock().remove(group);
    }

    fn group(&self, group: &str) -> Arc<tokio::sync::Mutex<Group>> {
        let mut groups = self.lock();
        if groups.len() >= MOST && !groups.contains_key(group) {
            groups.clear();
        }
        groups.entry(group.to_owned()).or_default().clone()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<tokio::sync::Mutex<Group>>>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Group {
    async fn in_any(
        &mut self,
        client: &Client,
        group: &str,
        kind: &str,
    ) -> Result<Option<Kind>, ClusterError> {
        if let Some(known) = self.versions.as_ref().filter(|known| known.younger(FRESH)) {
            for version in known.what.clone() {
                if let Some(found) = self.in_version(client, group, &version, kind).await? {
                    return Ok(Some(found));
                }
            }
        }
        if self.versions.as_ref().is_some_and(|known| known.younger(AGAIN)) {
            return Ok(None);
        }
        let versions = versions(client, group).await?;
        self.versions = Some(Known::now(versions.clone()));
        for version in versions {
            if let Some(found) = self.in_version(client, group, &version, kind).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn in_version(
        &mut self,
        client: &Client,
        group: &str,
        version: &str,
        kind: &str,
    ) -> Result<Option<Kind>, ClusterError> {
        let mut remembered = None;
        if let Some(known) = self.kinds.get(version) {
            remembered = known.what.iter().find(|known| known.kind == kind).cloned();
            if known.younger(AGAIN) || (remembered.is_some() && known.younger(FRESH)) {
                return Ok(remembered);
            }
        }
        match kinds(client, group, version).await {
            Ok(kinds) => {
                let found = kinds.iter().find(|known| known.kind == kind).cloned();
                if self.kinds.len() >= MOST {
                    self.kinds.clear();
                }
                self.kinds.insert(version.to_owned(), Known::now(kinds));
                Ok(found)
            }
            // Better what was true ten minutes ago.
            Err(error) if error.passes() && remembered.is_some() => Ok(remembered),
            Err(error) => Err(error),
        }
    }
}

async fn versions(client: &Client, group: &str) -> Result<Vec<String>, ClusterError> {
    if group.is_empty() {
        return Ok(vec!["v1".to_owned()]);
    }
    // `version` with one segment less.
    let target = path::version(group, "");
    let Some(document) = ask(client, target.trim_end_matches('/'), group).await? else {
        return Ok(Vec::new());
    };
    let preferred = document["preferredVersion"]["version"].as_str();
    let all = document["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let others = all.iter().filter_map(|each| each["version"].as_str());
    let others = others.filter(|version| Some(*version) != preferred);
    Ok(preferred.into_iter().chain(others).take(MOST).map(str::to_owned).collect())
}

/// Empty for a version that is not served.
async fn kinds(client: &Client, group: &str, version: &str) -> Result<Vec<Kind>, ClusterError> {
    let document = ask(client, &path::version(group, version), &group_version(group, version)).await?;
    let Some(document) = document else {
        return Ok(Vec::new());
    };
    let rows = document["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    // The others are parts of objects: `deployments/scale`.
    let named = rows.iter().filter_map(|row| Some((row, row["name"].as_str()?, row["kind"].as_str()?)));
    let whole = named.filter(|(_, plural, _)| !plural.contains('/'));
    let kind = |(row, plural, kind): (&Value, &str, &str)| {
        Kind::new(group, version, kind, plural, row["namespaced"].as_bool().unwrap_or_default())
    };
    Ok(whole.map(kind).collect())
}

async fn ask(client: &Client, target: &str, of: &str) -> Result<Option<Value>, ClusterError> {
    let what = format!("find out what the cluster serves of {of}");
    let question = Question::new(Verb::Discover, Method::GET, target.to_owned(), what);
    match client.ask(&question).await {
        Ok(document) => Ok(Some(document)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn group_version(group: &str, version: &str) -> String {
    match (group, version) {
        ("", "") => "v1".to_owned(),
        ("", version) => version.to_owned(),
        (group, "") => group.to_owned(),
        (group, version) => format!("{group}/{version}"),
    }
}
