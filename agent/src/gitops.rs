//! Receives the manifests of the projects that the agent's configuration names: one task and one stream a project.
//! Before it: `configuration.rs`. After it: `gitops/engine.rs`, which watches what is published here and applies it.
//! Receiving touches no cluster, and nothing is kept across restarts.

pub mod collect;
#[cfg(test)]
mod cost;
pub mod engine;
pub mod inventory;
pub mod object;
pub mod order;
mod pace;
pub mod plan;
mod project;
pub mod read;
pub mod settings;
pub mod status;
mod stream;

use crate::{broker::Road, configuration::Latest, error, observability::Metrics};
use bytes::Bytes;
use postern_wire::proto::gitlab::agent::agentcfg::{AgentConfiguration, ManifestProjectCf};
use std::{collections::BTreeMap, sync::Arc};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinError, JoinSet},
};
use tracing::{error, info};

/// One file of a commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// Its path in the repository; at most [`collect::NAME`] bytes. A label: never a path on this machine.
    pub source: String,
    /// Its content, byte for byte; at most [`collect::FILE`].
    pub data: Bytes,
}

/// A commit's manifests, all of them; within the limits of [`collect`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The project's path, as configured.
    pub project: String,
    /// The project's number, 0 if the broker is too old to tell.
    pub project_id: i64,
    /// Which commit.
    pub commit_id: String,
    /// In the broker's order, each path once.
    pub files: Vec<File>,
}

impl Received {
    /// Bytes of all files.
    pub fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.data.len()).sum()
    }
}

/// A project that is followed.
#[derive(Clone, Debug)]
pub struct Project {
    /// As configured; `id` and `paths` are filled in, other defaults are up to who applies.
    pub settings: Arc<ManifestProjectCf>,
    /// The latest whole commit, `None` until the first. Closed once the project, or these settings, are not followed.
    pub received: watch::Receiver<Option<Arc<Received>>>,
}

/// Projects by path.
pub type Projects = Arc<BTreeMap<String, Project>>;
/// What appliers watch. An entry is replaced by a new one when its settings change.
pub type Manifests = watch::Receiver<Projects>;

/// Receives manifests for ever.
pub struct Receiver {
    /// The way to the broker.
    pub road: Road,
    /// What names the projects.
    pub configuration: Latest,
    /// Whether this replica applies manifests; others need none.
    pub leads: watch::Receiver<bool>,
    /// Where manifests go.
    pub manifests: watch::Sender<Projects>,
    /// What counts them.
    pub metrics: Metrics,
}

/// Projects that are followed, and their tasks. Dropping it ends them.
#[derive(Default)]
struct Running {
    projects: BTreeMap<String, (Project, AbortHandle)>,
    tasks: JoinSet<()>,
}

impl Receiver {
    /// Never returns.
    pub async fn receive(mut self) {
        let mut running = Running::default();
        loop {
            let configuration = self.configuration.borrow_and_update().clone();
            let leads = *self.leads.borrow_and_update();
            match configuration.filter(|_| leads) {
                Some(configuration) => self.follow(&configuration, &mut running),
                None => self.leave(&mut running),
            }
            loop {
                let changed = tokio::select! {
                    changed = self.configuration.changed() => changed,
                    changed = self.leads.changed() => changed,
                    Some(ended) = running.tasks.join_next() => {
                        check(ended);
                        continue;
                    }
                };
                match changed {
                    Ok(()) => break,
                    // Its sender has ended, and with it the process.
                    Err(_) => return std::future::pending().await,
                }
            }
        }
    }

    /// Another replica receives now, or nobody knows what.
    fn leave(&self, running: &mut Running) {
        if running.projects.is_empty() {
            return;
        }
        *running = Running::default();
        self.publish(running);
    }

    /// Starts and stops tasks until they are those of the configuration. A configuration that cannot be followed as a
    /// whole changes nothing: half of it could be worse than the one before.
    fn follow(&self, configuration: &AgentConfiguration, running: &mut Running) {
        let plan = match plan::plan(configuration) {
            Ok(plan) => plan,
            Err(problem) => {
                error!(error = %error::chain(&problem), "manifest projects of the configuration ignored");
                return;
            }
        };
        running.projects.retain(|id, (_, task)| {
            let stays = plan.contains_key(id);
            if !stays {
                task.abort();
                info!(project = %id, "manifest project is not configured any more");
            }
            stays
        });
        for (id, settings) in plan {
            match running.projects.get(&id) {
                Some((project, _)) if *project.settings == settings => continue,
                Some((_, task)) => {
                    task.abort();
                    info!(project = %id, "manifest project changed; receiving it anew");
                }
                None => info!(project = %id, "receiving manifests of a project"),
            }
            let settings = Arc::new(settings);
            let (latest, received) = watch::channel(None);
            let task = project::Task {
                road: self.road.clone(),
                settings: settings.clone(),
                latest,
                metrics: self.metrics.clone(),
            };
            let task = running.tasks.spawn(task.receive());
            running.projects.insert(id, (Project { settings, received }, task));
        }
        self.publish(running);
    }

    fn publish(&self, running: &Running) {
        self.metrics.gitops_projects.set(i64::try_from(running.projects.len()).unwrap_or(i64::MAX));
        let projects = running.projects.iter().map(|(id, (project, _))| (id.clone(), project.clone()));
        self.manifests.send_replace(Arc::new(projects.collect()));
    }
}

/// Tasks end when they are stopped, and never by themselves.
fn check(ended: Result<(), JoinError>) {
    if let Err(failed) = ended
        && failed.is_panic()
    {
        // A defect, which ends the agent like that of any other part.
        std::panic::resume_unwind(failed.into_panic());
    }
}
