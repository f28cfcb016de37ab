//! One report: read, cut and cleaned. Before it: the message of an agent. After it: the log, an event, and the JSON that
//! [`super::board`] keeps.

use super::{board::Kept, clean::line};
use crate::{events::EventKind, observability::ReportOutcome};
use postern_wire::{
    ids::AgentId,
    proto::postern::agent::{
        ConfigurationReport, GitopsReport, ObjectReport, Problem, ReportRequest, report_request::About,
    },
};
use serde::Serialize;
use tonic::Status;

/// Problems of a report that are kept.
const PROBLEMS: usize = 50;
/// Objects of a report that are kept.
const RESULTS: usize = 100;
/// Of a project's path, a commit, a reason, and of names of files and of everything in Kubernetes; in bytes.
const PROJECT: usize = 1_024;
const COMMIT: usize = 64;
const TEXT: usize = 512;
const NAME: usize = 256;

/// A report as it may be shown.
#[derive(Debug)]
pub(super) struct Report {
    /// For the metric.
    pub(super) outcome: ReportOutcome,
    /// What is told to those who watch, if it is news.
    pub(super) event: Option<EventKind>,
    /// Empty: about the configuration.
    project: String,
    commit_id: String,
    /// What is wrong, in a line; empty: nothing.
    error: String,
    json: String,
}

#[derive(Serialize)]
struct Configuration<'a> {
    commit_id: &'a str,
    applied: bool,
    problems: Vec<Wrong>,
    pod_name: String,
}

#[derive(Serialize)]
struct Gitops<'a> {
    project: &'a str,
    project_id: i64,
    commit_id: &'a str,
    state: &'static str,
    dry_run: bool,
    objects: u32,
    applied: u32,
    unchanged: u32,
    corrected: u32,
    pruned: u32,
    failed: u32,
    ready: u32,
    results: Vec<Outcome>,
    problems: Vec<Wrong>,
    pod_name: String,
}

#[derive(Serialize)]
struct Wrong {
    #[serde(rename = "where")]
    place: String,
    line: u32,
    column: u32,
    text: String,
}

#[derive(Serialize)]
struct Outcome {
    group: String,
    kind: String,
    namespace: String,
    name: String,
    result: String,
    text: String,
    file: String,
    line: u32,
}

impl From<Problem> for Wrong {
    fn from(problem: Problem) -> Self {
        let Problem { r#where, line: at, column, text } = problem;
        Self { place: line(&r#where, PROJECT), line: at, column, text: line(&text, TEXT) }
    }
}

impl Wrong {
    /// As compilers write it.
    fn text(&self) -> String {
        match (self.place.is_empty(), self.line) {
            (true, _) => self.text.clone(),
            (false, 0) => format!("{}: {}", self.place, self.text),
            (false, at) => format!("{}:{at}:{}: {}", self.place, self.column, self.text),
        }
    }
}

impl From<ObjectReport> for Outcome {
    fn from(object: ObjectReport) -> Self {
        let ObjectReport { group, kind, namespace, name, result, text, file, line: at } = object;
        Self {
            group: line(&group, NAME),
            kind: line(&kind, NAME),
            namespace: line(&namespace, NAME),
            name: line(&name, NAME),
            result: line(&result, NAME),
            text: line(&text, TEXT),
            file: line(&file, PROJECT),
            line: at,
        }
    }
}

impl Outcome {
    fn text(&self) -> String {
        let Self { group, kind, namespace, name, text, .. } = self;
        let group = if group.is_empty() { String::new() } else { format!("{group}/") };
        let namespace = if namespace.is_empty() { String::new() } else { format!("{namespace}/") };
        format!("{group}{kind} {namespace}{name}: {text}")
    }
}

/// # Errors
/// `InvalidArgument`: it is about nothing, or says of it what cannot be.
pub(super) fn read(request: ReportRequest) -> Result<Report, Status> {
    let pod_name = line(&request.pod_name, NAME);
    match request.about {
        Some(About::Configuration(report)) => Ok(configuration(report, pod_name)),
        Some(About::Gitops(report)) => gitops(report, pod_name),
        None => Err(Status::invalid_argument("about: one of configuration and gitops is wanted")),
    }
}

fn problems(found: Vec<Problem>) -> Vec<Wrong> {
    found.into_iter().take(PROBLEMS).map(Wrong::from).collect()
}

fn configuration(report: ConfigurationReport, pod_name: String) -> Report {
    let ConfigurationReport { commit_id, applied, problems: found } = report;
    let commit_id = line(&commit_id, COMMIT);
    let problems = problems(found);
    let error = problems.first().map(Wrong::text).unwrap_or_default();
    let event = match applied {
        true => EventKind::AgentConfigurationApplied { commit_id: commit_id.clone() },
        false => EventKind::AgentConfigurationFailed { commit_id: commit_id.clone(), error: error.clone() },
    };
    let outcome = match applied {
        true => ReportOutcome::ConfigurationApplied,
        false => ReportOutcome::ConfigurationFailed,
    };
    let json = json(&Configuration { commit_id: &commit_id, applied, problems, pod_name });
    Report { outcome, event: Some(event), project: String::new(), commit_id, error, json }
}

fn gitops(report: GitopsReport, pod_name: String) -> Result<Report, Status> {
    let project = line(&report.project, PROJECT);
    if project.is_empty() {
        return Err(Status::invalid_argument("gitops.project: a project's path is wanted"));
    }
    let commit_id = line(&report.commit_id, COMMIT);
    let problems = problems(report.problems);
    let results: Vec<_> = report.results.into_iter().take(RESULTS).map(Outcome::from).collect();
    let failed = results.iter().find(|outcome| outcome.result == "failed").map(Outcome::text);
    let error = problems.first().map(Wrong::text).or(failed).unwrap_or_default();
    let about = || (project.clone(), commit_id.clone());
    let (outcome, state, event) = match report.state.as_str() {
        "synchronizing" => (ReportOutcome::Synchronizing, "synchronizing", None),
        "synchronized" => {
            let (manifest_project, commit_id) = about();
            let event = EventKind::GitopsSynchronized { manifest_project, commit_id };
            (ReportOutcome::Synchronized, "synchronized", Some(event))
        }
        "degraded" => {
            let (manifest_project, commit_id) = about();
            let (failed, objects, error) = (report.failed, report.objects, error.clone());
            let event = EventKind::GitopsDegraded { manifest_project, commit_id, failed, objects, error };
            (ReportOutcome::Degraded, "degraded", Some(event))
        }
        "failed" => {
            let (manifest_project, commit_id) = about();
            let event = EventKind::GitopsFailed { manifest_project, commit_id, error: error.clone() };
            (ReportOutcome::Failed, "failed", Some(event))
        }
        _ => {
            return Err(Status::invalid_argument(
                "gitops.state: one of synchronizing, synchronized, degraded, failed is wanted",
            ));
        }
    };
    let json = json(&Gitops {
        project: &project,
        project_id: report.project_id,
        commit_id: &commit_id,
        state,
        dry_run: report.dry_run,
        objects: report.objects,
        applied: report.applied,
        unchanged: report.unchanged,
        corrected: report.corrected,
        pruned: report.pruned,
        failed: report.failed,
        ready: report.ready,
        results,
        problems,
        pod_name,
    });
    Ok(Report { outcome, event, project, commit_id, error, json })
}

fn json(document: &impl Serialize) -> String {
    serde_json::to_string(document).expect("texts and numbers are JSON")
}

impl Report {
    /// For the board.
    pub(super) fn kept(&self) -> Kept {
        Kept::new(&self.project, (self.outcome, &self.commit_id, &self.error), self.json.as_str().into())
    }

    /// In the log once, however often it is told.
    pub(super) fn log(&self, agent: AgentId, is_news: bool) {
        let Self { outcome, project, commit_id, error, .. } = self;
        match outcome {
            _ if !is_news => {
                tracing::debug!(agent_id = %agent, project, commit_id, ?outcome, "agent reports the same again");
            }
            ReportOutcome::ConfigurationApplied if error.is_empty() => {
                tracing::info!(agent_id = %agent, commit_id, "agent applied its configuration");
            }
            ReportOutcome::ConfigurationApplied => {
                tracing::warn!(agent_id = %agent, commit_id, error, "agent applied part of its configuration");
            }
            ReportOutcome::ConfigurationFailed => {
                tracing::warn!(agent_id = %agent, commit_id, error, "agent does not apply its configuration");
            }
            ReportOutcome::Synchronizing => {
                tracing::debug!(agent_id = %agent, project, commit_id, "agent applies manifests");
            }
            ReportOutcome::Synchronized => {
                tracing::info!(agent_id = %agent, project, commit_id, "agent applied manifests");
            }
            ReportOutcome::Degraded => {
                tracing::warn!(agent_id = %agent, project, commit_id, error, "agent applied part of the manifests");
            }
            ReportOutcome::Failed => {
                tracing::warn!(agent_id = %agent, project, commit_id, error, "agent applied no manifests");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gitops_of(report: GitopsReport) -> Result<Report, Status> {
        read(ReportRequest { pod_name: "agent-0".to_owned(), about: Some(About::Gitops(report)) })
    }

    #[test]
    fn a_report_is_cut_cleaned_and_written_anew() {
        let long = "x\n\u{1b}[2J".repeat(10_000);
        let problem = |text: &str| Problem {
            r#where: "a/b.yaml".to_owned(),
            line: 3,
            column: 7,
            text: text.to_owned(),
        };
        let object = ObjectReport {
            group: "apps".to_owned(),
            kind: "Deployment".to_owned(),
            namespace: "default".to_owned(),
            name: long.clone(),
            result: "failed".to_owned(),
            text: long.clone(),
            file: long.clone(),
            line: u32::MAX,
        };
        let report = gitops_of(GitopsReport {
            project: format!("group/{long}"),
            commit_id: long.clone(),
            state: "degraded".to_owned(),
            results: vec![object; 1_000],
            problems: vec![problem(&long); 1_000],
            ..GitopsReport::default()
        });
        let report = report.unwrap();
        assert!(report.json.len() < 512 * 1024 && !report.json.contains('\u{1b}'), "{}", report.json.len());
        let json: serde_json::Value = serde_json::from_str(&report.json).unwrap();
        assert_eq!(json["results"].as_array().unwrap().len(), RESULTS);
        assert_eq!(json["problems"].as_array().unwrap().len(), PROBLEMS);
        assert_eq!(json["commit_id"].as_str().unwrap().len(), COMMIT);
        assert_eq!(json["pod_name"], "agent-0");
        assert!(report.error.starts_with("a/b.yaml:3:7: x"), "{}", report.error);
    }

    #[test]
    fn what_is_wrong_is_said_in_a_line() {
        let object = ObjectReport {
            group: "apps".to_owned(),
            kind: "Deployment".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
            result: "failed".to_owned(),
            text: "forbidden".to_owned(),
            ..ObjectReport::default()
        };
        let waits = ObjectReport { result: "waiting".to_owned(), ..object.clone() };
        let report = gitops_of(GitopsReport {
            project: "group/p".to_owned(),
            commit_id: "c0ffee".to_owned(),
            state: "degraded".to_owned(),
            objects: 2,
            failed: 1,
            results: vec![waits, object],
            ..GitopsReport::default()
        });
        let wanted = EventKind::GitopsDegraded {
            manifest_project: "group/p".to_owned(),
            commit_id: "c0ffee".to_owned(),
            failed: 1,
            objects: 2,
            error: "apps/Deployment default/web: forbidden".to_owned(),
        };
        assert_eq!(report.unwrap().event, Some(wanted));
        let problem =
            Problem { r#where: "gitops".to_owned(), text: "twice".to_owned(), ..Problem::default() };
        let report = ConfigurationReport { problems: vec![problem], ..ConfigurationReport::default() };
        let about = Some(About::Configuration(report));
        let report = read(ReportRequest { about, ..ReportRequest::default() }).unwrap();
        let wanted = EventKind::AgentConfigurationFailed {
            commit_id: String::new(),
            error: "gitops: twice".to_owned(),
        };
        assert_eq!(report.event, Some(wanted));
    }

    #[test]
    fn what_is_about_nothing_is_refused() {
        for about in [
            None,
            Some(About::Gitops(GitopsReport { state: "failed".to_owned(), ..GitopsReport::default() })),
            Some(About::Gitops(GitopsReport { project: "p".to_owned(), ..GitopsReport::default() })),
        ] {
            let status = read(ReportRequest { about, ..ReportRequest::default() }).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument, "{status:?}");
        }
    }
}
