//! The fake's side of the calls that the engine makes.

use super::*;
use crate::{
    cluster::Propagation,
    gitops::engine::{api::Api, likeness::id_of},
};

impl Api for Fake {
    type Following = Watching;

    async fn kind(&self, group: &str, version: &str, kind: &str) -> Result<Kind, ClusterError> {
        let asked = id(group, kind, "", "");
        let known = {
            let world = self.world();
            let fits = |known: &&Kind| {
                known.group == group && known.kind == kind && (version.is_empty() || known.version == version)
            };
            world.kinds.iter().find(fits).cloned()
        };
        match known {
            Some(kind) => Ok(kind),
            None => {
                self.call("discover", &asked).await?;
                Err(ClusterError::UnknownKind {
                    group_version: format!("{group}/{version}"),
                    kind: kind.to_owned(),
                })
            }
        }
    }

    fn forget(&self, _group: &str) {}

    async fn apply(&self, kind: &Kind, object: &Value, dry_run: bool) -> Result<Value, ClusterError> {
        let id = id_of(&kind.group, &kind.kind, object);
        self.call(if dry_run { "try" } else { "apply" }, &id).await?;
        self.exists(kind, &id)?;
        let mut live = self.get_now(&id).unwrap_or_else(|| json!({"metadata": {}}));
        let unchanged = live.clone();
        if let Some(before) = self.world().applied.get(&id) {
            unset(&mut live, before, object);
        }
        merge(&mut live, object);
        (self.world().writing)(&mut live);
        if dry_run {
            return Ok(live);
        }
        self.world().applied.insert(id.clone(), object.clone());
        if live != unchanged {
            self.store(&id, live);
            if !self.world().slow.contains(&id.kind)
                && matches!(id.kind.as_str(), "Deployment" | "CustomResourceDefinition")
            {
                self.ready(&id);
            }
        }
        let (answer, lag) = (self.get_now(&id).unwrap(), self.world().lag);
        if !lag.is_zero() {
            sleep(lag).await;
        }
        Ok(answer)
    }

    async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>, ClusterError> {
        let id = id(&kind.group, &kind.kind, namespace, name);
        self.call("get", &id).await?;
        Ok(self.get_now(&id))
    }

    async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        _how: Propagation,
        dry_run: bool,
    ) -> Result<(), ClusterError> {
        let id = id(&kind.group, &kind.kind, namespace, name);
        self.call(if dry_run { "try-delete" } else { "delete" }, &id).await?;
        let live = self.get_now(&id);
        if dry_run || live.is_none_or(|live| live["metadata"]["uid"] != uid) {
            return Ok(());
        }
        if self.world().stuck.contains(&id) {
            let mut going = self.get_now(&id).unwrap();
            going["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
            self.store(&id, going);
        } else {
            self.remove(&id);
        }
        Ok(())
    }

    async fn create(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        let id = id_of(&kind.group, &kind.kind, object);
        self.call("create", &id).await?;
        self.exists(kind, &id)?;
        if self.get_now(&id).is_some() {
            return Err(refused(409, "already exists"));
        }
        self.store(&id, object.clone());
        Ok(self.get_now(&id).unwrap())
    }

    async fn replace(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        let id = id_of(&kind.group, &kind.kind, object);
        self.call("replace", &id).await?;
        let live = self.get_now(&id).ok_or_else(|| refused(404, "not found"))?;
        if live["metadata"]["resourceVersion"] != object["metadata"]["resourceVersion"] {
            return Err(refused(409, "the object has been modified"));
        }
        self.store(&id, object.clone());
        Ok(self.get_now(&id).unwrap())
    }

    fn follow(&self, kind: &Kind, namespace: Option<&str>) -> Watching {
        let (sender, changes) = mpsc::channel(ROOM);
        let mut world = self.world();
        world.list(kind, namespace, &sender);
        world.watchers.retain(|(_, _, sender)| !sender.is_closed());
        world.watchers.push((kind.clone(), namespace.map(str::to_owned), sender));
        Watching(changes)
    }

    fn record(&self, note: Note) {
        self.world().notes.push(note);
    }
}

/// Takes away what was applied before and is not now.
fn unset(live: &mut Value, before: &Value, now: &Value) {
    let (Some(live), Some(before)) = (live.as_object_mut(), before.as_object()) else { return };
    for (key, before) in before {
        match now.get(key) {
            None => _ = live.remove(key),
            Some(now) => {
                if let Some(live) = live.get_mut(key) {
                    unset(live, before, now);
                }
            }
        }
    }
}

fn merge(live: &mut Value, wanted: &Value) {
    match (live, wanted) {
        (Value::Object(live), Value::Object(wanted)) => {
            for (key, wanted) in wanted {
                merge(live.entry(key.clone()).or_insert(Value::Null), wanted);
            }
        }
        (live, wanted) => *live = wanted.clone(),
    }
}
