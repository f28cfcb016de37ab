//! The few calls by which the engine reaches a cluster, so that it can be tried without one. `cluster.rs` implements
//! them for real; the tests have a small one in memory.

use crate::cluster::{Change, Cluster, ClusterError, Following, Kind, Note, Propagation, leader::Term};
use serde_json::Value;
use std::future::Future;

/// A cluster. What a call means, and what its errors are, is said at [`Cluster`]'s function of the same name.
pub trait Api: Clone + Send + Sync + 'static {
    /// What a list and watch is read from.
    type Following: Follow;

    /// What the cluster knows about a kind.
    fn kind(
        &self,
        group: &str,
        version: &str,
        kind: &str,
    ) -> impl Future<Output = Result<Kind, ClusterError>> + Send;
    /// A group has changed: a definition of a kind was applied.
    fn forget(&self, group: &str);
    /// Server-side apply; the answer is the object as it is now.
    fn apply(
        &self,
        kind: &Kind,
        object: &Value,
        dry_run: bool,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;
    /// `None`: there is no such object.
    fn get(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<Option<Value>, ClusterError>> + Send;
    /// Only the very object with this `uid`.
    fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        how: Propagation,
        dry_run: bool,
    ) -> impl Future<Output = Result<(), ClusterError>> + Send;
    /// Fails if there is one already.
    fn create(&self, kind: &Kind, object: &Value)
    -> impl Future<Output = Result<Value, ClusterError>> + Send;
    /// Fails if it is not at the object's `resourceVersion` any more.
    fn replace(
        &self,
        kind: &Kind,
        object: &Value,
    ) -> impl Future<Output = Result<Value, ClusterError>> + Send;
    /// All objects of a kind, and their changes from then on. `None`: in all namespaces.
    fn follow(&self, kind: &Kind, namespace: Option<&str>) -> Self::Following;
    /// Leaves a note at an object, if there is time.
    fn record(&self, note: Note);
}

/// What a list and watch gives, for ever.
pub trait Follow: Send + 'static {
    /// The next change. Nothing is lost when this is dropped early.
    fn next(&mut self) -> impl Future<Output = Change> + Send;
}

/// A cluster that is changed only while this replica leads. What is refused when it may not any more passes.
#[derive(Clone)]
pub struct Led<A> {
    /// The cluster.
    pub cluster: A,
    /// Looked at right before each request that changes something.
    pub term: Term,
}

impl<A> Led<A> {
    fn may(&self, verb: &str, kind: &Kind, object: &Value) -> Result<(), ClusterError> {
        let of = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        self.may_at(verb, kind, of("namespace"), of("name"))
    }

    fn may_at(&self, verb: &str, kind: &Kind, namespace: &str, name: &str) -> Result<(), ClusterError> {
        self.term.allows(|| match namespace {
            "" => format!("{verb} {} {name}", kind.kind),
            namespace => format!("{verb} {} {namespace}/{name}", kind.kind),
        })
    }
}

impl<A: Api> Api for Led<A> {
    type Following = A::Following;

    async fn kind(&self, group: &str, version: &str, kind: &str) -> Result<Kind, ClusterError> {
        self.cluster.kind(group, version, kind).await
    }

    fn forget(&self, group: &str) {
        self.cluster.forget(group);
    }

    async fn apply(&self, kind: &Kind, object: &Value, dry_run: bool) -> Result<Value, ClusterError> {
        self.may("apply", kind, object)?;
        self.cluster.apply(kind, object, dry_run).await
    }

    async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>, ClusterError> {
        self.cluster.get(kind, namespace, name).await
    }

    async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        how: Propagation,
        dry_run: bool,
    ) -> Result<(), ClusterError> {
        self.may_at("delete", kind, namespace, name)?;
        self.cluster.delete(kind, namespace, name, uid, how, dry_run).await
    }

    async fn create(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        self.may("create", kind, object)?;
        self.cluster.create(kind, object).await
    }

    async fn replace(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        self.may("replace", kind, object)?;
        self.cluster.replace(kind, object).await
    }

    fn follow(&self, kind: &Kind, namespace: Option<&str>) -> Self::Following {
        self.cluster.follow(kind, namespace)
    }

    fn record(&self, note: Note) {
        self.cluster.record(note);
    }
}

impl Api for Cluster {
    type Following = Following;

    async fn kind(&self, group: &str, version: &str, kind: &str) -> Result<Kind, ClusterError> {
        Self::kind(self, group, version, kind).await
    }

    fn forget(&self, group: &str) {
        Self::forget(self, group);
    }

    async fn apply(&self, kind: &Kind, object: &Value, dry_run: bool) -> Result<Value, ClusterError> {
        Self::apply(self, kind, object, dry_run).await
    }

    async fn get(&self, kind: &Kind, namespace: &str, name: &str) -> Result<Option<Value>, ClusterError> {
        Self::get(self, kind, namespace, name).await
    }

    async fn delete(
        &self,
        kind: &Kind,
        namespace: &str,
        name: &str,
        uid: &str,
        how: Propagation,
        dry_run: bool,
    ) -> Result<(), ClusterError> {
        Self::delete(self, kind, namespace, name, uid, how, dry_run).await
    }

    async fn create(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        Self::create(self, kind, object).await
    }

    async fn replace(&self, kind: &Kind, object: &Value) -> Result<Value, ClusterError> {
        Self::replace(self, kind, object).await
    }

    fn follow(&self, kind: &Kind, namespace: Option<&str>) -> Following {
        Self::follow(self, kind, namespace)
    }

    fn record(&self, note: Note) {
        Self::record(self, note);
    }
}

impl Follow for Following {
    async fn next(&mut self) -> Change {
        Self::next(self).await
    }
}
