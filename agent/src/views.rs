//! Views: what goes on in the cluster, computed here from watches and pushed to the broker as it changes, so that nobody
//! has to ask the cluster. Only views that the configuration names, and only while this replica leads. Before it:
//! `configuration.rs` and `cluster.rs`; after it: the broker. Keeps a few fields of each object, and nothing on disk.

mod facts;
mod keep;
mod kept;
mod plan;
mod published;
mod push;
mod quantity;
mod source;
mod state;
#[cfg(test)]
mod tests;

use crate::{broker::Road, cluster::Cluster, configuration::Latest};
use keep::{Keeper, Line};
use plan::Plan;
use push::Pusher;
use source::Source;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Keeps views for ever.
pub struct Views {
    /// The way to the broker.
    pub road: Road,
    /// What they are computed from.
    pub cluster: Cluster,
    /// What names them.
    pub configuration: Latest,
    /// Whether this replica leads.
    pub leads: watch::Receiver<bool>,
}

impl Views {
    /// Never returns.
    pub async fn keep(self) {
        let Self { road, cluster, mut configuration, mut leads } = self;
        let cluster = Arc::new(cluster);
        let (plans, plan) = watch::channel(Plan::default());
        let mut wanted = plan.clone();
        let following = async {
            loop {
                let asked = Plan::of(configuration.borrow_and_update().as_deref());
                plans.send_if_modified(|plan| {
                    let differs = *plan != asked;
                    *plan = asked;
                    differs
                });
                if configuration.changed().await.is_err() {
                    // Its sender has ended, and with it the process.
                    return std::future::pending::<()>().await;
                }
            }
        };
        let keeping = async {
            loop {
                let led = leads.wait_for(|leads| *leads).await.map(|_| ());
                let asked = wanted.wait_for(|plan| !plan.is_empty()).await.map(|_| ());
                if led.is_err() || asked.is_err() {
                    return std::future::pending().await;
                }
                tokio::select! {
                    () = run(&road, cluster.clone(), &plan) => {}
                    // What goes on is another replica's to tell: not even an end.
                    _ = leads.wait_for(|leads| !*leads) => info!("no views any more: another replica leads"),
                }
            }
        };
        tokio::join!(following, keeping);
    }
}

/// Until nothing is configured any more.
async fn run<S: Source>(road: &Road, source: Arc<S>, plan: &watch::Receiver<Plan>) {
    let (line, listens) = watch::channel(Line::Closed);
    let closing = CancellationToken::new();
    let keeper = Keeper { source, plan: plan.clone(), line: listens };
    let pusher = Pusher { road: road.clone(), line, closing: closing.clone() };
    let keep = async {
        keeper.keep().await;
        closing.cancel();
    };
    tokio::join!(keep, pusher.push());
}
