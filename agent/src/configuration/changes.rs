//! What is different between two configurations, module by module, for the log. Keys, names of projects and numbers
//! only: whoever reads the log need not be somebody who may read the file. It applies nothing.

use crate::kubernetes_api::limits::Most;
use postern_wire::proto::gitlab::agent::agentcfg::{
    AgentConfiguration, CiAccessCf, CiliumCf, LoggingCf, LoggingLevelEnum, ManifestProjectCf, ViewsCf,
};
use std::collections::BTreeMap;

/// Projects that are named; the log is no place for a hundred.
const NAMED: usize = 20;

/// What is different for one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    /// The key at the root of the file.
    pub(super) module: &'static str,
    /// One line.
    pub(super) what: String,
    /// Whether this agent does what it asks for.
    pub(super) followed: bool,
}

/// In the order of the keys; `before` is the empty configuration for an agent that has none.
pub(super) fn changes(before: &AgentConfiguration, now: &AgentConfiguration) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut add = |module, followed, what: Vec<String>| {
        if !what.is_empty() {
            changes.push(Change { module, what: what.join(", "), followed });
        }
    };
    add("agent", true, agent(before, now));
    add("gitops", true, gitops(before, now));
    add("observability", true, observability(before, now));
    let relay = |configuration: &AgentConfiguration| {
        configuration.cilium.as_ref().map(|CiliumCf { hubble_relay_address }| hubble_relay_address.clone())
    };
    add("cilium", true, presence("hubble_relay_address", &relay(before), &relay(now)));
    // The broker's: it asks GitLab whom it lets in. The agent only sees that it is there.
    add("ci_access", true, ci_access(before.ci_access.as_ref(), now.ci_access.as_ref()));
    let (scanned, scanning) = (&before.container_scanning, &now.container_scanning);
    add("container_scanning", scanning.is_none(), presence("all", scanned, scanning));
    let (developed, developing) = (&before.remote_development, &now.remote_development);
    add("remote_development", developing.is_none(), presence("all", developed, developing));
    add("flux", now.flux.is_none(), presence("all", &before.flux, &now.flux));
    add("kubernetes_api", true, kubernetes_api(before, now));
    let none = ViewsCf::default();
    add("views", true, views(before.views.as_ref().unwrap_or(&none), now.views.as_ref().unwrap_or(&none)));
    changes
}

fn agent(before: &AgentConfiguration, now: &AgentConfiguration) -> Vec<String> {
    let mut what = Vec::new();
    if before.agent_id != now.agent_id {
        what.push(format!("id {}", now.agent_id));
    }
    if before.project_id != now.project_id || before.project_path != now.project_path {
        what.push(format!("project {} {:?}", now.project_id, now.project_path));
    }
    if before.gitlab_external_url != now.gitlab_external_url {
        what.push("gitlab_external_url".to_owned());
    }
    what
}

fn gitops(before: &AgentConfiguration, now: &AgentConfiguration) -> Vec<String> {
    fn projects(configuration: &AgentConfiguration) -> BTreeMap<&str, &ManifestProjectCf> {
        let projects = configuration.gitops.as_ref().map_or(&[][..], |gitops| &gitops.manifest_projects);
        let named = |project: &ManifestProjectCf| !project.id.is_empty();
        let id = |project| if named(project) { &*project.id } else { &*configuration.project_path };
        projects.iter().map(|project| (id(project), project)).collect()
    }
    let (before, now) = (projects(before), projects(now));
    let mut what = Vec::new();
    for (id, project) in &now {
        match before.get(id) {
            None => what.push(format!("{id} added")),
            Some(known) => {
                let keys = keys(known, project);
                if !keys.is_empty() {
                    what.push(format!("{id} changed ({})", keys.join(" ")));
                }
            }
        }
    }
    what.extend(before.keys().filter(|id| !now.contains_key(*id)).map(|id| format!("{id} removed")));
    if what.len() > NAMED {
        let more = what.len() - NAMED;
        what.truncate(NAMED);
        what.push(format!("and {more} more"));
    }
    what
}

/// The keys of a project that are different.
fn keys(before: &ManifestProjectCf, now: &ManifestProjectCf) -> Vec<&'static str> {
    let table = [
        ("default_namespace", before.default_namespace != now.default_namespace),
        ("paths", before.paths != now.paths),
        ("ref", before.r#ref != now.r#ref),
        ("reconcile_timeout", before.reconcile_timeout != now.reconcile_timeout),
        ("dry_run_strategy", before.dry_run_strategy != now.dry_run_strategy),
        ("prune", before.prune_oneof != now.prune_oneof),
        ("prune_timeout", before.prune_timeout != now.prune_timeout),
        ("prune_propagation_policy", before.prune_propagation_policy != now.prune_propagation_policy),
        ("inventory_policy", before.inventory_policy != now.inventory_policy),
    ];
    table.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}

fn observability(before: &AgentConfiguration, now: &AgentConfiguration) -> Vec<String> {
    fn logging(configuration: &AgentConfiguration) -> Option<LoggingCf> {
        configuration.observability.as_ref()?.logging
    }
    let profiler = |configuration: &AgentConfiguration| {
        configuration.observability.as_ref().and_then(|part| part.google_profiler.clone())
    };
    let level = |configuration| logging(configuration).map(|logging| logging.level());
    let grpc_level = |configuration| logging(configuration).and_then(|logging| logging.grpc_level);
    let mut what = Vec::new();
    if level(before) != level(now) {
        let word = |level: Option<LoggingLevelEnum>| level.map_or("unset", |level| level.as_str_name());
        what.push(format!("logging.level {} -> {}", word(level(before)), word(level(now))));
    }
    if grpc_level(before) != grpc_level(now) {
        what.push("logging.grpc_level".to_owned());
    }
    if profiler(before) != profiler(now) {
        what.push("google_profiler, which this agentk does not have".to_owned());
    }
    what
}

fn ci_access(before: Option<&CiAccessCf>, now: Option<&CiAccessCf>) -> Vec<String> {
    if before == now {
        return Vec::new();
    }
    let count = |access: Option<&CiAccessCf>| {
        access.map_or((0, 0), |access| (access.projects.len(), access.groups.len()))
    };
    let ((projects, groups), (projects_now, groups_now)) = (count(before), count(now));
    vec![format!("projects {projects} -> {projects_now}"), format!("groups {groups} -> {groups_now}")]
}

fn kubernetes_api(before: &AgentConfiguration, now: &AgentConfiguration) -> Vec<String> {
    let (before, now) = (Most::of(before), Most::of(now));
    let word = |most: u32| if most == 0 { "no limit".to_owned() } else { most.to_string() };
    [
        ("max_concurrent_requests", before.in_all, now.in_all),
        ("max_concurrent_requests_per_caller", before.per_caller, now.per_caller),
    ]
    .into_iter()
    .filter(|(_, before, now)| before != now)
    .map(|(key, before, now)| format!("{key} {} -> {}", word(before), word(now)))
    .collect()
}

fn views(before: &ViewsCf, now: &ViewsCf) -> Vec<String> {
    let table = [
        ("nodes", before.nodes, now.nodes),
        ("workloads", before.workloads, now.workloads),
        ("events", before.events, now.events),
        ("versions", before.versions, now.versions),
        ("capacity", before.capacity, now.capacity),
    ];
    let turned = table.into_iter().filter(|(_, before, now)| before != now);
    let mut what: Vec<_> =
        turned.map(|(key, _, now)| format!("{key} {}", if now { "on" } else { "off" })).collect();
    if before.namespaces != now.namespaces {
        let word =
            |names: &[String]| if names.is_empty() { "all".to_owned() } else { names.len().to_string() };
        what.push(format!("namespaces {} -> {}", word(&before.namespaces), word(&now.namespaces)));
    }
    what
}

/// Of something whose content is nobody's business here.
fn presence<T: PartialEq>(key: &str, before: &Option<T>, now: &Option<T>) -> Vec<String> {
    let word = match (before, now) {
        (before, now) if before == now => return Vec::new(),
        (None, _) => "set",
        (_, None) => "removed",
        _ => "changed",
    };
    vec![format!("{key} {word}")]
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::gitlab::agent::agentcfg::{
        CiAccessProjectCf, FluxCf, GitopsCf, KubernetesApiCf, ObservabilityCf, PathCf, path_cf::Path,
    };

    fn said(before: &AgentConfiguration, now: &AgentConfiguration) -> Vec<String> {
        changes(before, now).into_iter().map(|change| format!("{}: {}", change.module, change.what)).collect()
    }

    fn project(id: &str) -> ManifestProjectCf {
        ManifestProjectCf { id: id.to_owned(), ..Default::default() }
    }

    fn gitops(projects: Vec<ManifestProjectCf>) -> AgentConfiguration {
        AgentConfiguration {
            project_path: "own".to_owned(),
            gitops: Some(GitopsCf { manifest_projects: projects }),
            ..Default::default()
        }
    }

    #[test]
    fn what_stays_as_it_is_is_not_mentioned() {
        let some = gitops(vec![project("a"), project("")]);
        assert!(said(&some, &some).is_empty());
        // An entry without a project is about the configuration's own.
        assert!(said(&some, &gitops(vec![project("own"), project("a")])).is_empty());
    }

    #[test]
    fn projects_come_and_go_and_change_by_name() {
        let paths = vec![PathCf { path: Some(Path::File("secret-name".into())) }];
        let changed = ManifestProjectCf { paths, inventory_policy: "adopt_all".into(), ..project("b") };
        let before = gitops(vec![project("a"), project("b"), project("")]);
        let now = gitops(vec![project("c"), changed, project("")]);
        assert_eq!(said(&before, &now), ["gitops: b changed (paths inventory_policy), c added, a removed"]);
        let many: Vec<_> = (0..100).map(|n| project(&format!("p{n:02}"))).collect();
        let said = said(&gitops(Vec::new()), &gitops(many));
        assert!(said[0].ends_with("p19 added, and 80 more"), "{}", said[0]);
    }

    #[test]
    fn each_module_has_one_line_with_names_and_numbers_only() {
        let level = |level: LoggingLevelEnum| ObservabilityCf {
            logging: Some(LoggingCf { level: level as i32, grpc_level: None }),
            google_profiler: None,
        };
        let before = AgentConfiguration {
            agent_id: 7,
            observability: Some(level(LoggingLevelEnum::Info)),
            cilium: Some(CiliumCf { hubble_relay_address: "secret-name:80".into() }),
            ..Default::default()
        };
        let ci_access = CiAccessCf { projects: vec![CiAccessProjectCf::default()], groups: vec![] };
        let now = AgentConfiguration {
            agent_id: 7,
            observability: Some(level(LoggingLevelEnum::Debug)),
            cilium: Some(CiliumCf { hubble_relay_address: "another:80".into() }),
            ci_access: Some(ci_access),
            flux: Some(FluxCf { webhook_receiver_url: "https://secret-name".into() }),
            kubernetes_api: Some(KubernetesApiCf {
                max_concurrent_requests: 20,
                max_concurrent_requests_per_caller: 0,
            }),
            views: Some(ViewsCf { nodes: true, namespaces: vec!["a".into()], ..Default::default() }),
            ..Default::default()
        };
        let forth = [
            "observability: logging.level info -> debug",
            "cilium: hubble_relay_address changed",
            "ci_access: projects 0 -> 1, groups 0 -> 0",
            "flux: all set",
            "kubernetes_api: max_concurrent_requests no limit -> 20",
            "views: nodes on, namespaces all -> 1",
        ];
        assert_eq!(said(&before, &now), forth);
        let back = said(&now, &AgentConfiguration { agent_id: 7, ..Default::default() });
        assert_eq!(back[0], "observability: logging.level debug -> unset");
        assert_eq!(back[1], "cilium: hubble_relay_address removed");
        let unfollowed: Vec<_> =
            changes(&before, &now).into_iter().filter(|c| !c.followed).map(|c| c.module).collect();
        assert_eq!(unfollowed, ["flux"]);
    }
}
