//! Makes the cluster what the manifests say, and keeps it so: one task for each project while this replica leads.
//! Before it: `gitops.rs`, which receives commits. After it: `cluster.rs`. What is known is forgotten when leadership is
//! lost; whoever leads next finds the inventory in the cluster.
//!
//! A commit goes its way in `engine/task.rs`; how far each object is, in `engine/objects.rs`.

pub mod api;

mod bring;
mod claims;
mod desired;
mod likeness;
mod needs;
mod objects;
mod progress;
mod record;
mod remove;
mod results;
mod scopes;
mod task;

#[cfg(test)]
mod fake;
#[cfg(test)]
mod tests;

pub use results::Tell;

use crate::{
    configuration::Latest,
    error,
    gitops::{Manifests, Project, settings::Settings},
    observability::Metrics,
};
use api::Api;
use claims::Claims;
use postern_wire::proto::{
    gitlab::agent::agentcfg::ManifestProjectCf,
    postern::agent::{GitopsReport, Problem},
};
use results::Results;
use std::{collections::BTreeMap, sync::Arc};
use task::Task;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error};

/// Applies manifests for as long as this replica leads.
pub struct Engine<A> {
    /// The cluster.
    pub cluster: A,
    /// What is received.
    pub manifests: Manifests,
    /// What says which agent this is.
    pub configuration: Latest,
    /// Whether this replica leads. Nothing is written to the cluster when it does not.
    pub leads: watch::Receiver<bool>,
    /// Where reports go.
    pub tell: Arc<dyn Tell>,
    /// What counts.
    pub metrics: Metrics,
}

/// Tasks of projects. Dropping it ends them.
#[derive(Default)]
struct Running {
    projects: BTreeMap<String, (Arc<ManifestProjectCf>, CancellationToken)>,
    tasks: JoinSet<String>,
    claims: Claims,
}

impl<A: Api> Engine<A> {
    /// Never returns.
    pub async fn run(mut self) {
        loop {
            if self.leads.wait_for(|leads| *leads).await.is_err() {
                // Its sender has ended, and with it the process.
                return std::future::pending().await;
            }
            let mut leads = self.leads.clone();
            tokio::select! {
                biased;
                () = lost(&mut leads) => debug!("manifests are not applied by this replica any more"),
                () = self.apply() => {}
            }
        }
    }

    /// Until it is dropped.
    async fn apply(&mut self) {
        let mut running = Running::default();
        let configuration = self.configuration.wait_for(Option::is_some).await;
        let agent_id = configuration.ok().and_then(|latest| latest.as_ref().map(|latest| latest.agent_id));
        let Some(agent_id) = agent_id else {
            return std::future::pending().await;
        };
        self.manifests.mark_changed();
        loop {
            tokio::select! {
                changed = self.manifests.changed() => {
                    if changed.is_err() {
                        return std::future::pending().await;
                    }
                    let projects = self.manifests.borrow_and_update().clone();
                    self.follow(&projects, agent_id, &mut running).await;
                }
                Some(ended) = running.tasks.join_next() => check(ended),
            }
        }
    }

    /// Starts and stops tasks until they are those of `projects`.
    async fn follow(&self, projects: &BTreeMap<String, Project>, agent_id: i64, running: &mut Running) {
        running.projects.retain(|id, (settings, stop)| {
            let stays = projects.get(id).is_some_and(|project| Arc::ptr_eq(&project.settings, settings));
            if !stays {
                stop.cancel();
            }
            stays
        });
        // Two tasks of one project would undo each other's work.
        while running.tasks.len() > running.projects.len() {
            match running.tasks.join_next().await {
                Some(ended) => check(ended),
                None => break,
            }
        }
        for (id, project) in projects {
            if running.projects.contains_key(id) {
                continue;
            }
            let stop = CancellationToken::new();
            running.projects.insert(id.clone(), (project.settings.clone(), stop.clone()));
            let task = self.task(id, project, agent_id, &running.claims);
            let (id, mut leads) = (id.clone(), self.leads.clone());
            running.tasks.spawn(async move {
                let task = async {
                    match task {
                        Some(task) => task.run().await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    biased;
                    // Looked at before every step, so that nothing is sent after the end.
                    () = lost(&mut leads) => {}
                    () = stop.cancelled() => {}
                    () = task => stop.cancelled().await,
                }
                id
            });
        }
    }

    /// `None`: its settings cannot be followed, which has been said.
    fn task(&self, id: &str, project: &Project, agent_id: i64, claims: &Claims) -> Option<Task<A>> {
        let settings = match Settings::of(&project.settings) {
            Ok(settings) => settings,
            Err(problem) => {
                let text = error::chain(&problem);
                error!(project = id, error = text, "manifests are not applied");
                self.tell.gitops(GitopsReport {
                    project: id.to_owned(),
                    state: "failed".to_owned(),
                    problems: vec![Problem { text, ..Problem::default() }],
                    ..GitopsReport::default()
                });
                return None;
            }
        };
        let dry_run = settings.dry_run.is_dry();
        let results = Results::new(id.to_owned(), dry_run, self.tell.clone(), self.metrics.clone());
        let (cluster, received) = (self.cluster.clone(), project.received.clone());
        Some(Task::new(cluster, settings, agent_id, claims.of(id), received, results))
    }
}

/// Until this replica does not lead.
async fn lost(leads: &mut watch::Receiver<bool>) {
    let _ = leads.wait_for(|leads| !leads).await;
}

/// Tasks end when they are stopped.
fn check(ended: Result<String, tokio::task::JoinError>) {
    if let Err(failed) = ended
        && failed.is_panic()
    {
        // A defect, which ends the agent like that of any other part.
        std::panic::resume_unwind(failed.into_panic());
    }
}
