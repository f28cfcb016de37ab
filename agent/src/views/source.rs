//! Where views get objects from: the cluster, or a cluster in memory in tests. What comes is passed on as it is;
//! retrying and listing anew is up to whoever implements it.

use super::{
    facts::{WORD, text},
    plan::Watched,
};
use crate::{
    cluster::{Cluster, Following, Kind},
    error,
};
use std::future::Future;
use tracing::debug;

pub(crate) use crate::cluster::Change;

/// Something whose objects can be followed.
pub(crate) trait Source: Send + Sync + 'static {
    type Following: Follow;

    /// For ever; of all namespaces if `namespace` is `None`.
    fn follow(&self, watched: Watched, namespace: Option<&str>) -> Self::Following;

    /// The API server's version, such as `v1.34.1`; `None` if it does not say.
    fn version(&self) -> impl Future<Output = Option<Box<str>>> + Send;
}

/// One kind that is followed.
pub(crate) trait Follow: Send + 'static {
    /// Waits for the next change. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Change> + Send;
}

impl Source for Cluster {
    type Following = Following;

    fn follow(&self, watched: Watched, namespace: Option<&str>) -> Following {
        let (group, version, kind, plural, namespaced) = watched.kind();
        self.follow(&Kind::new(group, version, kind, plural, namespaced), namespace)
    }

    async fn version(&self) -> Option<Box<str>> {
        match self.version().await {
            Ok(version) => Some(text(&version["gitVersion"], WORD)).filter(|version| !version.is_empty()),
            Err(error) => {
                debug!(error = %error::chain(&error), "the API server's version is not known");
                None
            }
        }
    }
}

impl Follow for Following {
    fn next(&mut self) -> impl Future<Output = Change> + Send {
        self.next()
    }
}
