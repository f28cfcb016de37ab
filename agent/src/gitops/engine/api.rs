//! The few calls by which the engine reaches a cluster, so that it can be tried without one. `cluster.rs` implements
//! them for real; the tests have a small one in memory.

use crate::{
    cluster::{self, Change, Cluster, ClusterError, Following, Kind, Note},
    gitops::settings::Propagation,
};
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
        let how = match how {
            Propagation::Orphan => cluster::Propagation::Orphan,
            Propagation::Background => cluster::Propagation::Background,
            Propagation::Foreground => cluster::Propagation::Foreground,
        };
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
