//! Whether a configuration as a whole can be followed: every module looks at its part before any of them follows it.
//! Before it: `configuration.rs`. It changes nothing and asks nobody; what it says names keys and never secrets.

use crate::{
    alerts,
    gitops::{plan, settings::Settings},
    kubernetes_api::limits,
    report,
};
use postern_wire::proto::{
    gitlab::agent::agentcfg::{AgentConfiguration, git_ref_cf::Ref, path_cf::Path},
    postern::agent::Problem,
};
use std::{collections::BTreeSet, fmt};

/// More are taken for a mistake.
const NAMESPACES: usize = 500;

/// A problem with this key; one line, however long what it quotes is.
pub fn problem(key: impl Into<String>, text: impl fmt::Display) -> Problem {
    let mut text = text.to_string();
    report::line(&mut text);
    Problem { r#where: key.into(), line: 0, column: 0, text }
}

/// Every module's, in the order of the keys.
const CHECKS: [fn(&AgentConfiguration) -> Vec<Problem>; 4] = [gitops, cilium, limits::check, views];

/// Everything that keeps a configuration from being followed; nothing if it can be.
pub fn judge(configuration: &AgentConfiguration) -> Vec<Problem> {
    CHECKS.iter().flat_map(|check| check(configuration)).collect()
}

fn gitops(configuration: &AgentConfiguration) -> Vec<Problem> {
    let key = "gitops.manifest_projects";
    let mut problems: Vec<_> =
        plan::plan(configuration).err().into_iter().map(|error| problem(key, error)).collect();
    let projects = configuration.gitops.as_ref().map_or(&[][..], |gitops| &gitops.manifest_projects);
    for (at, project) in projects.iter().enumerate().take(plan::PROJECTS) {
        if let Err(error) = Settings::of(project) {
            problems.push(problem(format!("{key}[{at}]"), error));
        }
        let empty = |path: &Option<Path>| match path {
            Some(Path::Glob(name) | Path::File(name)) => name.is_empty(),
            None => true,
        };
        if let Some(nth) = project.paths.iter().position(|path| empty(&path.path)) {
            problems.push(problem(format!("{key}[{at}].paths[{nth}]"), "needs a glob or a file"));
        }
        let named = |name: &Ref| match name {
            Ref::Tag(name) | Ref::Branch(name) | Ref::Commit(name) => !name.is_empty(),
        };
        let branch = project.r#ref.as_ref();
        if branch.is_some_and(|branch| !branch.r#ref.as_ref().is_some_and(named)) {
            problems.push(problem(format!("{key}[{at}].ref"), "needs a tag, a branch or a commit"));
        }
    }
    problems
}

fn cilium(configuration: &AgentConfiguration) -> Vec<Problem> {
    let bad = alerts::Settings::of(configuration).err();
    bad.into_iter().map(|error| problem("cilium.hubble_relay_address", error)).collect()
}

fn views(configuration: &AgentConfiguration) -> Vec<Problem> {
    let Some(views) = &configuration.views else { return Vec::new() };
    let key = "views.namespaces";
    let mut problems = Vec::new();
    if views.namespaces.len() > NAMESPACES {
        let count = views.namespaces.len();
        let text =
            format!("{count} namespaces are more than {NAMESPACES}; leave the list out to watch all of them");
        problems.push(problem(key, text));
    }
    let mut known = BTreeSet::new();
    for (at, name) in views.namespaces.iter().enumerate().take(NAMESPACES) {
        let key = format!("{key}[{at}]");
        if !is_namespace(name) {
            let text = format!(
                "{name:?} is not a namespace: at most 63 characters, each a-z, 0-9 or '-', with no '-' at either end"
            );
            problems.push(problem(key, text));
        } else if !known.insert(name) {
            problems.push(problem(key, format!("{name:?} is there twice")));
        }
    }
    problems
}

fn is_namespace(name: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len())
        && name.bytes().all(legal)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::proto::gitlab::agent::agentcfg::{
        CiliumCf, GitRefCf, GitopsCf, KubernetesApiCf, ManifestProjectCf, PathCf, ViewsCf,
    };

    fn at(configuration: &AgentConfiguration) -> Vec<String> {
        judge(configuration).into_iter().map(|problem| problem.r#where).collect()
    }

    fn cilium(address: &str) -> AgentConfiguration {
        let cilium = Some(CiliumCf { hubble_relay_address: address.to_owned() });
        AgentConfiguration { cilium, ..Default::default() }
    }

    #[test]
    fn an_empty_configuration_is_a_good_one() {
        assert_eq!(judge(&AgentConfiguration::default()), []);
        let parts = AgentConfiguration {
            gitops: Some(GitopsCf::default()),
            kubernetes_api: Some(KubernetesApiCf::default()),
            views: Some(ViewsCf::default()),
            ..Default::default()
        };
        assert_eq!(judge(&parts), []);
    }

    #[test]
    fn every_module_says_what_is_wrong_with_its_part() {
        let project = |id: &str| ManifestProjectCf { id: id.to_owned(), ..Default::default() };
        let odd = ManifestProjectCf {
            dry_run_strategy: "perhaps".into(),
            paths: vec![PathCf { path: Some(Path::File("a".into())) }, PathCf { path: None }],
            r#ref: Some(GitRefCf { r#ref: Some(Ref::Branch(String::new())) }),
            ..project("b")
        };
        let configuration = AgentConfiguration {
            gitops: Some(GitopsCf { manifest_projects: vec![project("a"), project("a"), odd] }),
            kubernetes_api: Some(KubernetesApiCf {
                max_concurrent_requests: 1,
                max_concurrent_requests_per_caller: 2,
            }),
            views: Some(ViewsCf {
                namespaces: vec!["ok".into(), "Not".into(), "ok".into()],
                ..Default::default()
            }),
            ..cilium("")
        };
        let wanted = [
            "gitops.manifest_projects",
            "gitops.manifest_projects[2]",
            "gitops.manifest_projects[2].paths[1]",
            "gitops.manifest_projects[2].ref",
            "cilium.hubble_relay_address",
            "kubernetes_api.max_concurrent_requests_per_caller",
            "views.namespaces[1]",
            "views.namespaces[2]",
        ];
        assert_eq!(at(&configuration), wanted);
        let project = ManifestProjectCf { dry_run_strategy: "x".repeat(100_000), ..project("a") };
        let gitops = Some(GitopsCf { manifest_projects: vec![project] });
        assert!(judge(&AgentConfiguration { gitops, ..Default::default() })[0].text.len() <= report::TEXT);
        let text = &judge(&configuration)[1].text;
        assert!(text.contains("perhaps") && text.contains("client"), "{text}");
    }

    #[test]
    fn relays_are_addressed_by_host_and_port() {
        for good in ["relay:80", "10.0.0.1:4245", "[::1]:80", "dns:///relay.kube-system.svc:80"] {
            assert_eq!(judge(&cilium(good)), [], "{good}");
        }
        for bad in [
            "",
            "relay",
            "[::1]",
            ":80",
            "relay:",
            "relay:0",
            "relay:99999",
            "u:p@relay:80",
            "relay/x",
            "a b:80",
            "::1",
            "a:1:2",
        ] {
            assert_eq!(at(&cilium(bad)), ["cilium.hubble_relay_address"], "{bad}");
        }
    }
}
