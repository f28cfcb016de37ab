//! Tells what becomes of a project's objects: lines in the log, metrics, Events at objects, and the report for the
//! broker. Before it: `task.rs`. Nothing here is ever waited for, and no text has a value of an object.

use crate::{
    cluster::{Kind, Note},
    gitops::{
        engine::{
            api::Api,
            progress::{Deed, Object},
            remove::Fate,
        },
        object::{Manifest, ObjectId},
    },
    observability::Metrics,
    report::Reports,
};
use postern_wire::proto::postern::agent::{GitopsReport, ObjectReport, Problem};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::{debug, info, warn};

/// Where reports go. Neither call may wait.
pub trait Tell: Send + Sync {
    /// How a project's objects are now.
    fn gitops(&self, report: GitopsReport);
    /// The project is not this replica's any more.
    fn forget(&self, project: &str);
}

impl Tell for Reports {
    fn gitops(&self, report: GitopsReport) {
        Self::gitops(self, report);
    }

    fn forget(&self, project: &str) {
        Self::forget(self, project);
    }
}

/// Of one project.
pub(crate) struct Results {
    project: String,
    project_id: i64,
    commit_id: String,
    dry_run: bool,
    began: Option<Instant>,
    tell: Arc<dyn Tell>,
    metrics: Metrics,
    state: &'static str,
    told: Option<GitopsReport>,
}

impl Results {
    pub(crate) fn new(project: String, dry_run: bool, tell: Arc<dyn Tell>, metrics: Metrics) -> Self {
        Self {
            project,
            project_id: 0,
            commit_id: String::new(),
            dry_run,
            began: None,
            tell,
            metrics,
            state: "",
            told: None,
        }
    }

    pub(crate) fn begin(&mut self, commit_id: &str, project_id: i64, now: Instant) {
        self.project_id = project_id;
        commit_id.clone_into(&mut self.commit_id);
        self.began = Some(now);
    }

    /// The commit was read.
    pub(crate) fn read(&self, objects: usize, problems: usize) {
        let Self { project, commit_id, dry_run, .. } = self;
        info!(project, commit_id, objects, problems, dry_run, "applying manifests");
    }

    /// A document of the commit is broken.
    pub(crate) fn broken(&self, problem: &crate::gitops::object::Problem) {
        let Self { project, commit_id, .. } = self;
        warn!(
            project,
            commit_id,
            file = %problem.file,
            line = problem.line,
            column = problem.column,
            error = problem.text,
            "a manifest cannot be read; nothing is pruned until it can"
        );
    }

    /// An object of the commit cannot be applied, whatever the cluster says.
    pub(crate) fn rejected(&self, manifest: &Manifest, why: &str) {
        self.count("failed");
        let Self { project, commit_id, .. } = self;
        warn!(
            project,
            commit_id,
            object = %manifest.id,
            file = %manifest.file,
            line = manifest.line,
            error = why,
            "object cannot be applied"
        );
    }

    /// Nothing of the commit can be applied.
    pub(crate) fn hindered(&self, error: &str, retry_in: Duration) {
        let Self { project, commit_id, .. } = self;
        warn!(project, commit_id, error, ?retry_in, "manifests cannot be applied");
    }

    /// Objects that would have been deleted stay for now.
    pub(crate) fn unpruned(&self, objects: usize, why: &str) {
        let Self { project, commit_id, .. } = self;
        warn!(project, commit_id, objects, why, "objects that left the manifests are not deleted");
    }

    /// Something was done about an object.
    pub(crate) fn did<A: Api>(&self, api: &A, object: &Object, deed: Deed, took: Option<Duration>) {
        self.count(deed.as_str());
        if let Some(took) = took {
            self.metrics.gitops_apply_seconds.observe(took);
        }
        let Self { project, commit_id, dry_run, .. } = self;
        let id = object.id();
        match deed {
            Deed::Unchanged => debug!(project, commit_id, object = %id, "object is as it should be"),
            Deed::Applied => info!(project, commit_id, object = %id, dry_run, "object applied"),
            Deed::Corrected => {
                info!(project, commit_id, object = %id, "object put back: somebody had changed or deleted it");
                let message = format!(
                    "Put back as it is in {project}, commit {commit_id}, {}:{}: somebody had changed or deleted it",
                    object.wanted.manifest.file, object.wanted.manifest.line
                );
                api.record(note(&object.wanted.kind, id, false, "Corrected", message));
            }
        }
    }

    /// Something could not be done about an object.
    pub(crate) fn failed<A: Api>(
        &self,
        api: &A,
        object: &Object,
        error: &str,
        retry_in: Duration,
        news: bool,
    ) {
        let Self { project, commit_id, dry_run, .. } = self;
        let (id, manifest) = (object.id(), &object.wanted.manifest);
        if !news {
            debug!(project, commit_id, object = %id, error, ?retry_in, "object still cannot be applied");
            return;
        }
        self.count("failed");
        let (file, line) = (&*manifest.file, manifest.line);
        warn!(project, commit_id, object = %id, file, line, error, ?retry_in, "object cannot be applied");
        if !dry_run {
            let message = format!("Not applied from {project}, commit {commit_id}, {file}:{line}: {error}");
            api.record(note(&object.wanted.kind, id, true, "ApplyFailed", message));
        }
    }

    /// What became of an object that left the commit.
    pub(crate) fn left(&self, id: &ObjectId, fate: &Fate) {
        let Self { project, commit_id, dry_run, .. } = self;
        match fate {
            Fate::Pruned => {
                self.count("pruned");
                info!(project, commit_id, object = %id, dry_run, "object pruned");
            }
            Fate::Absent => debug!(project, commit_id, object = %id, "object is gone already"),
            Fate::Kept(keep) => {
                self.count("kept");
                info!(project, commit_id, object = %id, why = %keep, "object kept though it left the manifests");
            }
            Fate::Failed { text, .. } => {
                self.count("failed");
                warn!(project, commit_id, object = %id, error = text, "object cannot be pruned");
            }
        }
    }

    /// Whether that is what was told last.
    pub(crate) fn is_synchronized(&self) -> bool {
        self.state == "synchronized"
    }

    /// How things are. Says so in the log only when that has changed.
    pub(crate) fn tell(&mut self, mut report: GitopsReport, now: Instant) {
        report.project.clone_from(&self.project);
        report.project_id = self.project_id;
        report.commit_id.clone_from(&self.commit_id);
        report.dry_run = self.dry_run;
        if self.told.as_ref() == Some(&report) {
            return;
        }
        let state = match report.state.as_str() {
            "synchronized" => "synchronized",
            "degraded" => "degraded",
            "failed" => "failed",
            _ => "synchronizing",
        };
        let same = self.told.as_ref().is_some_and(|told| told.commit_id == report.commit_id);
        if !same || state != self.state {
            self.say(state, &report, now);
        }
        self.count_state(state);
        self.told = Some(report.clone());
        self.tell.gitops(report);
    }

    fn say(&mut self, state: &'static str, report: &GitopsReport, now: Instant) {
        let Self { project, commit_id, dry_run, .. } = &*self;
        let GitopsReport { objects, applied, unchanged, pruned, failed, ready, .. } = report;
        match (state, self.began) {
            ("synchronized", Some(began)) => {
                let took = now.duration_since(began);
                info!(
                    project,
                    commit_id,
                    objects,
                    applied,
                    unchanged,
                    pruned,
                    ready,
                    dry_run,
                    ?took,
                    "synchronized"
                );
                self.metrics.gitops_synchronization_seconds.observe(took);
                // What follows is no part of the commit's way.
                self.began = None;
            }
            ("synchronized", None) if self.state == "synchronizing" => {
                debug!(project, commit_id, "synchronized again");
            }
            ("synchronized", None) => info!(project, commit_id, objects, ready, "synchronized again"),
            ("degraded", _) => warn!(
                project,
                commit_id,
                objects,
                applied,
                unchanged,
                pruned,
                failed,
                ready,
                dry_run,
                "not all is as the manifests say"
            ),
            _ => {}
        }
    }

    fn count(&self, result: &'static str) {
        self.metrics.gitops_objects.get_or_create(&[("result", result)]).inc();
    }

    /// Empty: it is not counted.
    fn count_state(&mut self, state: &'static str) {
        let before = std::mem::replace(&mut self.state, state);
        if before == state {
            return;
        }
        let of = |state| self.metrics.gitops_states.get_or_create_owned(&[("state", state)]);
        if !before.is_empty() {
            of(before).dec();
        }
        if !state.is_empty() {
            of(state).inc();
        }
    }
}

/// The project is not this replica's any more.
impl Drop for Results {
    fn drop(&mut self) {
        self.count_state("");
        self.tell.forget(&self.project);
    }
}

fn note(kind: &Kind, id: &ObjectId, warning: bool, reason: &'static str, message: String) -> Note {
    Note {
        kind: kind.clone(),
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        uid: String::new(),
        warning,
        reason,
        message,
    }
}

/// A line of a report.
pub(crate) fn line(id: &ObjectId, result: &str, text: String, manifest: Option<&Manifest>) -> ObjectReport {
    ObjectReport {
        group: id.group.clone(),
        kind: id.kind.clone(),
        namespace: id.namespace.clone(),
        name: id.name.clone(),
        result: result.to_owned(),
        text,
        file: manifest.map(|manifest| manifest.file.to_string()).unwrap_or_default(),
        line: manifest.map_or(0, |manifest| number(manifest.line)),
    }
}

pub(crate) fn problem(problem: &crate::gitops::object::Problem) -> Problem {
    Problem {
        r#where: problem.file.to_string(),
        line: number(problem.line),
        column: number(problem.column),
        text: problem.text.clone(),
    }
}

pub(crate) fn number(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
