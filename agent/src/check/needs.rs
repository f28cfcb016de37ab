//! What the agent may have to do in its cluster, feature by feature, as RBAC puts it, and what of it is missing as rules
//! to paste. Before it: the agent's configuration. After it: `access.rs`, which asks the cluster. It asks nobody.

use postern_wire::proto::gitlab::agent::agentcfg::{AgentConfiguration, ci_access_as_cf};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
};

/// Where Leases are if nothing says in which namespace the agent runs, and manifests that name no namespace.
const DEFAULT_NAMESPACE: &str = "default";
/// Projects may be a hundred; a few show what kind of rights there are.
const NAMESPACES: usize = 5;

/// Rights that belong together.
#[derive(Debug)]
pub(super) struct Feature {
    /// As findings and comments name it.
    pub(super) name: &'static str,
    /// Whether it is a warning that some are missing.
    pub(super) warns: bool,
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    /// Empty: in all of them, or of what has none.
    namespace: String,
    group: &'static str,
    /// With their subresources.
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
}

/// One right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Right {
    pub(super) namespace: String,
    pub(super) group: &'static str,
    /// `pods`, `userextras/agent.gitlab.com/id`.
    pub(super) resource: &'static str,
    pub(super) verb: &'static str,
}

const CORE: &str = "";
const FOLLOW: &[&str] = &["list", "watch"];
const MANAGE: &[&str] = &["get", "list", "watch", "create", "patch", "delete"];

/// What a configuration makes necessary. Without one, all there is.
pub(super) fn features(configuration: Option<&AgentConfiguration>, pod_namespace: &str) -> Vec<Feature> {
    // Absent configurations may well ask for it.
    let wants = |asks: fn(&AgentConfiguration) -> bool| configuration.is_none_or(asks);
    let gitops = wants(|c| c.gitops.as_ref().is_some_and(|gitops| !gitops.manifest_projects.is_empty()));
    let alerts = wants(|c| c.cilium.as_ref().is_some_and(|cilium| !cilium.hubble_relay_address.is_empty()));
    let views = wants(|c| {
        c.views.as_ref().is_some_and(|v| v.nodes || v.workloads || v.events || v.versions || v.capacity)
    });
    let everywhere = |group, resources, verbs| Rule { namespace: String::new(), group, resources, verbs };

    let mut features = vec![
        Feature {
            name: "calls as the agent",
            warns: true,
            rules: vec![everywhere(CORE, &["pods"], &["get", "list", "watch"])],
        },
        Feature {
            name: "calls as others (access_as)",
            warns: configuration.is_some_and(impersonates),
            rules: vec![
                everywhere(CORE, &["users", "groups"], &["impersonate"]),
                everywhere("authentication.k8s.io", EXTRAS, &["impersonate"]),
            ],
        },
    ];
    if gitops {
        let mut rules = vec![everywhere(CORE, &["events"], &["create", "patch"])];
        for namespace in namespaces(configuration) {
            let rule =
                |group, resources, verbs| Rule { namespace: namespace.clone(), group, resources, verbs };
            rules.push(rule(CORE, &["configmaps", "services"], MANAGE));
            rules.push(rule(CORE, &["configmaps"], &["update"]));
            rules.push(rule("apps", &["deployments"], MANAGE));
        }
        features.push(Feature { name: "gitops", warns: true, rules });
    }
    if alerts {
        let rules = vec![everywhere("cilium.io", &["ciliumnetworkpolicies"], FOLLOW)];
        features.push(Feature { name: "alerts", warns: true, rules });
    }
    if views {
        let rules = vec![
            everywhere(CORE, &["nodes", "pods", "events"], FOLLOW),
            everywhere("apps", &["deployments", "statefulsets", "daemonsets"], FOLLOW),
        ];
        features.push(Feature { name: "views", warns: true, rules });
    }
    if gitops || alerts || views {
        let namespace = if pod_namespace.is_empty() { DEFAULT_NAMESPACE } else { pod_namespace }.to_owned();
        let verbs = &["get", "create", "update"];
        let rule = Rule { namespace, group: "coordination.k8s.io", resources: &["leases"], verbs };
        features.push(Feature { name: "leases", warns: true, rules: vec![rule] });
    }
    features
}

/// What the broker says of a job's or a user's origin when the agent is to act as somebody else.
const EXTRAS: &[&str] = &[
    "userextras/agent.gitlab.com/id",
    "userextras/agent.gitlab.com/config_project_id",
    "userextras/agent.gitlab.com/project_id",
    "userextras/agent.gitlab.com/ci_pipeline_id",
    "userextras/agent.gitlab.com/ci_job_id",
    "userextras/agent.gitlab.com/username",
];

fn impersonates(configuration: &AgentConfiguration) -> bool {
    let Some(access) = &configuration.ci_access else {
        return false;
    };
    let projects = access.projects.iter().map(|project| &project.access_as);
    let groups = access.groups.iter().map(|group| &group.access_as);
    projects.chain(groups).flatten().any(|access_as| {
        access_as.r#as.as_ref().is_some_and(|who| !matches!(who, ci_access_as_cf::As::Agent(_)))
    })
}

/// Where manifests go that name no namespace of their own, and the inventory.
fn namespaces(configuration: Option<&AgentConfiguration>) -> BTreeSet<String> {
    let projects = configuration.and_then(|configuration| configuration.gitops.as_ref());
    let Some(gitops) = projects else {
        return BTreeSet::from([String::new()]);
    };
    let namespace =
        |given: &String| if given.is_empty() { DEFAULT_NAMESPACE.to_owned() } else { given.clone() };
    let all: BTreeSet<_> =
        gitops.manifest_projects.iter().map(|project| namespace(&project.default_namespace)).collect();
    all.into_iter().take(NAMESPACES).collect()
}

impl Feature {
    /// One by one, as the cluster is asked.
    pub(super) fn rights(&self) -> Vec<Right> {
        let mut rights = Vec::new();
        for Rule { namespace, group, resources, verbs } in &self.rules {
            for (resource, verb) in resources.iter().flat_map(|r| verbs.iter().map(move |verb| (*r, *verb))) {
                rights.push(Right { namespace: namespace.clone(), group, resource, verb });
            }
        }
        rights
    }
}

/// The rights as rules of a ClusterRole, or of a Role per namespace, with a comment that says which.
pub(super) fn yaml(feature: &str, rights: &[Right]) -> String {
    let mut verbs_of: BTreeMap<(&str, &str, &str), Vec<&str>> = BTreeMap::new();
    for right in rights {
        verbs_of.entry((&right.namespace, right.group, right.resource)).or_default().push(right.verb);
    }
    let mut rules: BTreeMap<(&str, &str, Vec<&str>), Vec<&str>> = BTreeMap::new();
    for ((namespace, group, resource), verbs) in verbs_of {
        rules.entry((namespace, group, verbs)).or_default().push(resource);
    }
    let mut text = String::new();
    let mut last = None;
    for ((namespace, group, verbs), resources) in rules {
        if last.replace(namespace) != Some(namespace) {
            let place = match namespace {
                "" => "rules of a ClusterRole".to_owned(),
                namespace => format!("rules of a Role in namespace {}", one_word(namespace)),
            };
            let _ = writeln!(text, "# {feature}: {place}");
        }
        let group = if group.is_empty() { "\"\"" } else { group };
        let _ = writeln!(text, "- apiGroups: [{group}]");
        let _ = writeln!(text, "  resources: [{}]", resources.join(", "));
        let _ = writeln!(text, "  verbs: [{}]", verbs.join(", "));
    }
    text
}

/// Namespaces come from a file of somebody else, and this is a comment in YAML.
fn one_word(namespace: &str) -> String {
    namespace.chars().filter(|c| c.is_ascii_graphic()).take(63).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::gitlab::agent::agentcfg::{
        CiAccessAsCf, CiAccessAsCiJobCf, CiAccessCf, CiAccessProjectCf, GitopsCf, ManifestProjectCf, ViewsCf,
    };

    fn names(configuration: Option<&AgentConfiguration>) -> Vec<&'static str> {
        features(configuration, "postern").iter().map(|feature| feature.name).collect()
    }

    #[test]
    fn only_what_a_configuration_asks_for_is_needed() {
        let calls = ["calls as the agent", "calls as others (access_as)"];
        assert_eq!(names(Some(&AgentConfiguration::default())), calls);
        let views = AgentConfiguration {
            views: Some(ViewsCf { nodes: true, ..ViewsCf::default() }),
            ..AgentConfiguration::default()
        };
        assert_eq!(names(Some(&views)), [&calls[..], &["views", "leases"]].concat());
        assert_eq!(names(None), [&calls[..], &["gitops", "alerts", "views", "leases"]].concat());
    }

    #[test]
    fn impersonation_is_a_matter_of_those_who_have_configured_it() {
        let warns = |configuration: Option<&AgentConfiguration>| features(configuration, "")[1].warns;
        assert!(!warns(None) && !warns(Some(&AgentConfiguration::default())));
        let access_as = CiAccessAsCf { r#as: Some(ci_access_as_cf::As::CiJob(CiAccessAsCiJobCf {})) };
        let project = CiAccessProjectCf { access_as: Some(access_as), ..CiAccessProjectCf::default() };
        let ci_access = Some(CiAccessCf { projects: vec![project], ..CiAccessCf::default() });
        assert!(warns(Some(&AgentConfiguration { ci_access, ..AgentConfiguration::default() })));
    }

    #[test]
    fn missing_rights_become_rules_by_namespace() {
        let project = |namespace: &str| ManifestProjectCf {
            default_namespace: namespace.to_owned(),
            ..ManifestProjectCf::default()
        };
        let gitops = GitopsCf { manifest_projects: vec![project("shop"), project(""), project("shop")] };
        let configuration = AgentConfiguration { gitops: Some(gitops), ..AgentConfiguration::default() };
        let features = features(Some(&configuration), "postern");
        let gitops = features.iter().find(|feature| feature.name == "gitops").unwrap();
        let missing: Vec<Right> = gitops
            .rights()
            .into_iter()
            .filter(|right| right.namespace != "default" && matches!(right.verb, "create" | "patch"))
            .collect();
        assert_eq!(
            yaml("gitops", &missing),
            "# gitops: rules of a ClusterRole\n\
             - apiGroups: [\"\"]\n  resources: [events]\n  verbs: [create, patch]\n\
             # gitops: rules of a Role in namespace shop\n\
             - apiGroups: [\"\"]\n  resources: [configmaps, services]\n  verbs: [create, patch]\n\
             - apiGroups: [apps]\n  resources: [deployments]\n  verbs: [create, patch]\n"
        );
        let leases = features.last().unwrap().rights();
        assert!(leases.iter().all(|right| right.namespace == "postern"), "{leases:?}");
    }
}
