//! What the agent itself does in its cluster: one object at a time applied, read, deleted, and kinds of objects followed.
//! Before it: manifests, policies, views. After it: the API server, over the very credentials of `kubernetes_api`.
//! It keeps no objects, asks on behalf of no caller, and none of its calls lasts longer than its deadline.

pub mod leader;

mod client;
mod discovery;
mod error;
mod events;
mod follow;
mod path;

#[cfg(test)]
mod tests;

pub use error::ClusterError;
pub use events::{Note, Recorder};
pub use follow::{Change, Following};

use crate::{kubernetes_api::Access, observability::Metrics};
use client::{Client, Question, Verb};
use discovery::Kinds;
use error::about;
use events::Notes;
use http::Method;
use serde_json::{Value, json};
use std::sync::Arc;

/// The one name under which the agent owns fields, whichever replica applies.
const FIELD_MANAGER: &str = "agentk";

/// The agent's own way into its cluster. Clones are the same one.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    kinds: Arc<Kinds>,
    notes: Notes,
}

/// A kind of objects as the cluster serves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Kind {
    /// Empty for the core group.
    pub group: String,
    pub version: String,
    pub kind: String,
    /// As paths and RBAC rules name it.
    pub plural: String,
    /// Whether its objects live in namespaces.
    pub namespaced: bool,
}

/// What happens to what a deleted object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// It stays, without an owner.
    Orphan,
    /// It goes later.
    Background,
    /// It goes first.
    Foreground,
}

impl Kind {
    /// One that needs no looking up.
    pub fn new(group: &str, version: &str, kind: &str, plural: &str, namespaced: bool) -> Self {
        Self {
            group: group.to_owned(),
            version: version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
            namespaced,
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        match self.group.as_str() {
            "" => self.version.clone(),
            group => format!("{group}/{}", self.version),
        }
    }
}

impl Propagation {
    /// As `propagationPolicy` of DeleteOptions has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Orphan => "Orphan",
            Self::Background => "Background",
            Self::Foreground => "Foreground",
        }
    }
}

impl Cluster {
    /// The cluster behind `access`, and the task that writes its Events. `instance` says which replica they are from:
    /// the pod's name.
    pub fn new(access: Access, instance: &str, metrics: &Metrics) -> (Self, Recorder) {
        let client = Client::new(access, metrics);
        let (notes, recorder) = events::channel(client.clone(), instance, metrics);
        (Self { client, kinds: Arc::default(), notes }, recorder)
    }

    /// Looks a kind up; `version` may be empty and then is the one that the cluster prefers. Answers are remembered.
    ///
    /// # Errors
    /// [`ClusterError::UnknownKind`] if the cluster does not serve it now. It may a moment later: the cluster is asked
    /// again, but not twice within two seconds.
    pub async fn kind(&self, group: &str, version: &str, kind: &str) -> Result<Kind, ClusterError> {
        self.kinds.find(&self.client, group, version, kind).await
    }

    /// What is remembered of a group is no longer true: a CustomResourceDefinition of it came, changed or went.
    pub fn forget(&self, group: &str) {
        self.kinds.forget(group);
    }

    /// Server-side apply: the object becomes what `object` says, whoever owned its fields before. `object` has a name,
    /// and a namespace if its kind has one. Answers the object as it is now, or with `dry_run` as it would be.
    pub async fn apply(&self, kind: &Kind, object: &Value, dry_run: bool) -> Result<Value, ClusterError> {
        let (namespace, name) = place(object);
        let mut target = path::object(kind, namespace, name)?;
        target.push_str("?fieldManager=");
        target.push_str(FIELD_MANAGER);
        target.push_str("&force=true&fieldValidation=Warn");
        if dry_run {
            target.push_str("&dryRun=All");
        }
        let question =
            Question::new(Verb::Apply, Method::PATCH, target, about("apply", kind, namespace, name))
                .with("application/apply-patch+yaml", object)
                .on(kind);
        let answer = self.client.ask(&question).await;
        if let Err(error) = &answer
            && error.lacks_path()
        {
            self.forget(&kind.group);
        }
        answer
    }

    /// An object as it is, or `None` if there is no such.
    pub async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>, ClusterError> {
        let target = path::object(kind, namespace, name)?;
        let question = Question::new(Verb::Get, Method::GET, target, about("get", kind, namespace, name));
        match self.client.ask(&question.on(kind)).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if error.is_not_found() => {
                if error.lacks_path() {
                    self.forget(&kind.group);
                }
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Deletes the object that has this `uid`; an empty one means whichever has the name. That it is gone already, or
    /// another one has its name by now, is no error. Does not wait until it is gone.
    pub async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        how: Propagation,
        dry_run: bool,
    ) -> Result<(), ClusterError> {
        let mut options =
            json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": how.as_str()});
        if !uid.is_empty() {
            options["preconditions"] = json!({"uid": uid});
        }
        if dry_run {
            options["dryRun"] = json!(["All"]);
        }
        let target = path::object(kind, namespace, name)?;
        let question =
            Question::new(Verb::Delete, Method::DELETE, target, about("delete", kind, namespace, name));
        match self.client.ask(&question.with("application/json", &options).on(kind)).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            // The server does not say in a form to rely on which of its conditions was not met.
            Err(error) if error.is_conflict() && !uid.is_empty() => {
                match self.get(kind, namespace, name).await? {
                    Some(object) if object["metadata"]["uid"] == uid => Err(error),
                    _ => Ok(()),
                }
            }
            Err(error) => Err(error),
        }
    }

    /// Creates an object; one that is there already is a conflict.
    pub async fn create(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        let (namespace, name) = place(object);
        let target = format!("{}?fieldManager={FIELD_MANAGER}", path::objects(kind, namespace)?);
        let question =
            Question::new(Verb::Create, Method::POST, target, about("create", kind, namespace, name));
        self.client.ask(&question.with("application/json", object).on(kind)).await
    }

    /// Replaces an object. With `metadata.resourceVersion` only if it has not changed since, else that is a conflict.
    pub async fn replace(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        let (namespace, name) = place(object);
        let target = format!("{}?fieldManager={FIELD_MANAGER}", path::object(kind, namespace, name)?);
        let question =
            Question::new(Verb::Replace, Method::PUT, target, about("replace", kind, namespace, name));
        self.client.ask(&question.with("application/json", object).on(kind)).await
    }

    /// Follows all objects of a kind, in one namespace or in all, until the answer is dropped.
    pub fn follow(&self, kind: &Kind, namespace: Option<&str>) -> Following {
        Following::start(self.client.clone(), kind.clone(), namespace.map(str::to_owned))
    }

    /// The document of `/version`.
    pub async fn version(&self) -> Result<Value, ClusterError> {
        let what = "get the version of the API server".to_owned();
        self.client.ask(&Question::new(Verb::Get, Method::GET, "/version".to_owned(), what)).await
    }

    /// Writes an Event about an object, some time soon. Never waits: with too many of them at once some are dropped.
    pub fn record(&self, note: Note) {
        self.notes.put(note);
    }

    /// How many requests have been made for callers of this; not counting what `follow`, Events and Leases take.
    pub fn calls(&self) -> u64 {
        self.client.calls()
    }
}

/// Namespace and name of an object; empty where it has none.
fn place(object: &Value) -> (&str, &str) {
    let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
    (of("namespace"), of("name"))
}
