//! The cluster's side of the agent against a stand-in API server: over HTTP, over restarts, and when nothing answers.

mod events;
mod following;
mod kinds;
mod leading;
mod objects;

use super::*;
use crate::kubernetes_api::{Overrides, Settings};
use http::StatusCode;
use stand_ins::kube_api::{KubeApi, Options};
use std::{collections::BTreeSet, future::Future, time::Duration};
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

const PATIENCE: Duration = Duration::from_secs(60);

/// Awaits with a deadline.
async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} did not happen within {PATIENCE:?}"))
}

/// Time that stands still although requests are answered: paused time leaps only when nobody has anything to do. In the end
/// it may, so that what hangs is noticed.
fn stand_still() -> AbortOnDropHandle<()> {
    tokio::time::pause();
    let begin = std::time::Instant::now();
    AbortOnDropHandle::new(tokio::spawn(async move {
        while begin.elapsed() < PATIENCE {
            tokio::task::yield_now().await;
        }
    }))
}

/// A way to a server, and what writes its Events.
async fn reach(url: &str, metrics: &Metrics) -> (Cluster, Recorder) {
    postern_certs::install_provider();
    let overrides = Overrides { server: Some(url.parse().unwrap()), ..Overrides::default() };
    let access = Access::load(Settings { overrides, ..Settings::default() }).await.unwrap();
    Cluster::new(access, "pod-1", metrics)
}

async fn start() -> (KubeApi, Cluster) {
    let api = KubeApi::start(Options::default()).await.unwrap();
    let (cluster, _) = reach(&api.url(), &Metrics::default()).await;
    (api, cluster)
}

fn config_maps() -> Kind {
    Kind::new("", "v1", "ConfigMap", "configmaps", true)
}

fn config_map(name: &str, value: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default"},
        "data": {"key": value},
    })
}

/// How many requests there have been to this path.
fn asked(api: &KubeApi, path: &str) -> usize {
    api.requests().iter().filter(|seen| seen.uri.path() == path).count()
}
