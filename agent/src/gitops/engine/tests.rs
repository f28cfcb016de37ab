//! The engine against a cluster in memory, from a commit that is received to what is in the cluster and in reports.
//! Time is paused: minutes take none.

mod commits;
mod disturbances;
mod failures;
mod inventories;

use crate::{
    cluster::leader::Term,
    gitops::{
        File, Project, Received,
        engine::{
            Engine, Tell,
            api::Led,
            fake::{Fake, id},
        },
        object::ObjectId,
    },
    observability::Metrics,
};
use postern_wire::proto::{
    gitlab::agent::agentcfg::{AgentConfiguration, ManifestProjectCf},
    postern::agent::GitopsReport,
};
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, timeout},
};

const PROJECT: &str = "group/manifests";
const OWNER: &str = "config.k8s.io/owning-inventory";

/// Keeps every report.
struct Reports(watch::Sender<Vec<GitopsReport>>);

impl Tell for Reports {
    fn gitops(&self, report: GitopsReport) {
        self.0.send_modify(|reports| reports.push(report));
    }

    fn forget(&self, _project: &str) {}
}

/// An engine that runs, with one project.
struct Bench {
    fake: Fake,
    commits: watch::Sender<Option<Arc<Received>>>,
    reports: watch::Receiver<Vec<GitopsReport>>,
    leads: watch::Sender<bool>,
    term: Term,
    metrics: Metrics,
    _configuration: watch::Sender<Option<Arc<AgentConfiguration>>>,
    manifests: watch::Sender<Arc<BTreeMap<String, Project>>>,
    task: JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    fn start() -> Self {
        Self::with(Fake::new(), ManifestProjectCf::default())
    }

    fn with(fake: Fake, settings: ManifestProjectCf) -> Self {
        let settings = Arc::new(ManifestProjectCf { id: PROJECT.to_owned(), ..settings });
        let (commits, received) = watch::channel(None);
        let projects = BTreeMap::from([(PROJECT.to_owned(), Project { settings, received })]);
        let (manifests_sender, manifests) = watch::channel(Arc::new(projects));
        let configuration = AgentConfiguration { agent_id: 7, ..Default::default() };
        let (configuration_sender, configuration) = watch::channel(Some(Arc::new(configuration)));
        let (leads_sender, leads) = watch::channel(true);
        let term = Term::default();
        term.lasts_until(Instant::now() + Duration::from_secs(1_000_000));
        let (told, reports) = watch::channel(Vec::new());
        let metrics = Metrics::default();
        let engine = Engine {
            cluster: Led { cluster: fake.clone(), term: term.clone() },
            manifests,
            configuration,
            leads,
            tell: Arc::new(Reports(told)),
            metrics: metrics.clone(),
        };
        Self {
            fake,
            commits,
            reports,
            leads: leads_sender,
            term,
            metrics,
            _configuration: configuration_sender,
            manifests: manifests_sender,
            task: tokio::spawn(engine.run()),
        }
    }

    fn commit(&self, commit_id: &str, files: &[(&str, &str)]) {
        let files = files.iter().map(|(source, data)| File {
            source: (*source).to_owned(),
            data: data.as_bytes().to_vec().into(),
        });
        let received = Received {
            project: PROJECT.to_owned(),
            project_id: 42,
            commit_id: commit_id.to_owned(),
            files: files.collect(),
        };
        self.commits.send_replace(Some(Arc::new(received)));
    }

    /// The first report that is so, from now on the last one included.
    async fn report(&self, what: &str, check: impl Fn(&GitopsReport) -> bool) -> GitopsReport {
        let mut reports = self.reports.clone();
        let wanted = |reports: &Vec<GitopsReport>| reports.last().is_some_and(&check);
        match timeout(Duration::from_secs(4 * 3600), reports.wait_for(wanted)).await {
            Ok(reports) => reports.unwrap().last().unwrap().clone(),
            Err(_) => panic!(
                "{what} was not reported; last: {:#?}; calls: {:#?}",
                self.reports.borrow().last(),
                self.fake.calls()
            ),
        }
    }

    async fn state(&self, commit_id: &str, state: &str) -> GitopsReport {
        self.report(&format!("{commit_id} {state}"), |report| {
            report.commit_id == commit_id && report.state == state
        })
        .await
    }

    async fn synchronized(&self, commit_id: &str) -> GitopsReport {
        self.state(commit_id, "synchronized").await
    }

    /// Lets so much time pass.
    async fn pass(&self, seconds: u64) {
        let until = Instant::now() + Duration::from_secs(seconds);
        tokio::time::sleep_until(until).await;
    }

    /// What the inventory lists.
    fn inventory(&self) -> Vec<String> {
        let live = self.fake.get_now(&id("", "ConfigMap", "default", "inventory-7-42"));
        let data = live.map(|live| live["data"].as_object().cloned().unwrap_or_default());
        data.unwrap_or_default().into_iter().map(|(key, _)| key).collect()
    }

    fn counted(&self, result: &'static str) -> u64 {
        self.metrics.gitops_objects.get_or_create_owned(&[("result", result)]).get()
    }
}

fn config_map(namespace: &str, name: &str, value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{namespace: {namespace}, name: {name}}}\n\
         data: {{key: \"{value}\"}}\n---\n"
    )
}

fn namespace(name: &str) -> String {
    format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n---\n")
}

fn deployment(name: &str, depends_on: &str) -> String {
    let annotations = match depends_on {
        "" => String::new(),
        on => format!(
            ", annotations: {{config.kubernetes.io/depends-on: apps/namespaces/default/Deployment/{on}}}"
        ),
    };
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{namespace: default, name: {name}{annotations}}}\n\
         spec: {{replicas: 1}}\n---\n"
    )
}

const DEFINITION: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {kind: Widget, plural: widgets}
---
";
const WIDGET: &str = "
apiVersion: example.com/v1
kind: Widget
metadata: {name: w}
spec: {size: 1}
---
";

fn map(name: &str) -> ObjectId {
    id("", "ConfigMap", "default", name)
}
