//! Both forms of a document, and every mistake of a bad one.

use super::*;
use agentcfg as wire;
use serde_json::json;

fn problems(text: &str) -> String {
    parse(text.as_bytes()).map(|_| ()).unwrap_err().to_string()
}

#[test]
fn an_empty_document_is_an_empty_configuration() {
    for text in ["", "# nothing\n", "{}", "null", "gitops:\n"] {
        let parsed = parse(text.as_bytes()).unwrap();
        assert_eq!(
            parsed,
            Parsed { file: wire::ConfigurationFile::default(), document: json!({}) },
            "{text:?}"
        );
    }
}

const ALL: &str = "\
gitops:
  manifest_projects:
  - id: group/project
    default_namespace: apps
    paths: [{glob: '**/*.yaml'}, {file: a.yaml}]
    reconcile_timeout: 30s
    dry_run_strategy: none
    prune: false
    prune_propagation_policy: ''
    ref: {branch: main}
observability: {logging: {level: debug, grpc_level: info}, google_profiler: {enabled: false, project_id: p}}
cilium: {hubble_relay_address: 'relay:80'}
ci_access:
  projects: [{id: a/b, access_as: {impersonate: {username: u, extra: [{key: k, val: [v]}]}}}]
  groups: [{id: g, access_as: {ci_job: {}}, environments: [prod], protected_branches_only: true, resource_management: {enabled: true}}]
  instance: {}
container_scanning: {cadence: '0 0 * * *', resource_requirements: {limits: {cpu: '1'}}, scanner_timeout: 5m}
user_access: {access_as: {user: {}}, projects: [{id: a}], groups: [{id: g}]}
remote_development:
  enabled: true
  dns_zone: x
  partial_sync_interval: 0.5s
  full_sync_interval: null
  network_policy: {enabled: false, egress: [{allow: 0.0.0.0/0, except: [10.0.0.0/8]}]}
  workspaces_quota: 5
flux: {webhook_receiver_url: 'http://x'}
kubernetes_api: {max_concurrent_requests: 100, max_concurrent_requests_per_caller: 10}
views: {nodes: true, workloads: true, events: false, namespaces: [default, apps]}
";

#[test]
fn agents_get_the_sections_of_both_generations() {
    let file = parse(ALL.as_bytes()).unwrap().file;
    let project = &file.gitops.unwrap().manifest_projects[0];
    assert_eq!(project.prune_oneof, Some(wire::manifest_project_cf::PruneOneof::Prune(false)));
    assert_eq!(project.reconcile_timeout.unwrap().seconds, 30);
    assert_eq!(project.dry_run_strategy, "none");
    assert!(matches!(&project.paths[1].path, Some(wire::path_cf::Path::File(file)) if file == "a.yaml"));
    let logging = file.observability.unwrap().logging.unwrap();
    assert_eq!((logging.level, logging.grpc_level), (1, Some(0)));
    let access = file.ci_access.unwrap();
    let access_as = access.groups[0].access_as.as_ref().unwrap();
    assert!(matches!(access_as.r#as, Some(wire::ci_access_as_cf::As::CiJob(_))));
    assert_eq!(file.remote_development.unwrap().network_policy.unwrap().enabled, Some(false));
    let limits = file.kubernetes_api.unwrap();
    assert_eq!((limits.max_concurrent_requests, limits.max_concurrent_requests_per_caller), (100, 10));
    let views = wire::ViewsCf {
        nodes: true,
        workloads: true,
        namespaces: vec!["default".to_owned(), "apps".to_owned()],
        ..wire::ViewsCf::default()
    };
    assert_eq!(file.views, Some(views));
}

#[test]
fn rails_gets_what_was_written_without_defaults_and_nulls() {
    let wanted = json!({
        "gitops": {"manifest_projects": [{
            "id": "group/project",
            "default_namespace": "apps",
            "paths": [{"glob": "**/*.yaml"}, {"file": "a.yaml"}],
            "reconcile_timeout": "30s",
            "dry_run_strategy": "none",
            "prune": false,
            "ref": {"branch": "main"},
        }]},
        "observability": {
            "logging": {"level": "debug", "grpc_level": "info"},
            "google_profiler": {"project_id": "p"},
        },
        "cilium": {"hubble_relay_address": "relay:80"},
        "ci_access": {
            "projects": [{
                "id": "a/b",
                "access_as": {"impersonate": {"username": "u", "extra": [{"key": "k", "val": ["v"]}]}},
            }],
            "groups": [{
                "id": "g",
                "access_as": {"ci_job": {}},
                "environments": ["prod"],
                "protected_branches_only": true,
                "resource_management": {"enabled": true},
            }],
            "instance": {},
        },
        "container_scanning": {
            "cadence": "0 0 * * *",
            "resource_requirements": {"limits": {"cpu": "1"}},
            "scanner_timeout": "5m",
        },
        "user_access": {"access_as": {"user": {}}, "projects": [{"id": "a"}], "groups": [{"id": "g"}]},
        "remote_development": {
            "enabled": true,
            "dns_zone": "x",
            "partial_sync_interval": "0.500s",
            "network_policy": {
                "enabled": false,
                "egress": [{"allow": "0.0.0.0/0", "except": ["10.0.0.0/8"]}],
            },
            "workspaces_quota": 5,
        },
        "flux": {"webhook_receiver_url": "http://x"},
        "kubernetes_api": {"max_concurrent_requests": 100, "max_concurrent_requests_per_caller": 10},
        "views": {"nodes": true, "workloads": true, "namespaces": ["default", "apps"]},
    });
    assert_eq!(parse(ALL.as_bytes()).unwrap().document, wanted);
    let info = parse(b"observability: {logging: {level: info}}").unwrap().document;
    assert_eq!(info, json!({"observability": {"logging": {}}}));
}

#[test]
fn what_is_written_of_limits_and_views_is_sent_as_it_is() {
    let file = |text: &str| parse(text.as_bytes()).unwrap();
    let none = file("kubernetes_api: {max_concurrent_requests: 0}\nviews: {}\n");
    assert_eq!(none.file.kubernetes_api, Some(wire::KubernetesApiCf::default()));
    assert_eq!(none.file.views, Some(wire::ViewsCf::default()));
    assert_eq!(none.document, json!({"kubernetes_api": {}, "views": {}}));
    assert_eq!((file("").file.kubernetes_api, file("").file.views), (None, None));
    for (text, words) in [
        ("views: {node: true}", "views.node: unknown key; did you mean `nodes`?"),
        ("views: {nodes: 1}", "views.nodes"),
        ("views: {namespaces: default}", "views.namespaces"),
        ("kubernetes_api: {max_concurrent_requests: -1}", "kubernetes_api.max_concurrent_requests"),
        ("kubernetes_api: {max_concurrent_requests: 5000000000}", "kubernetes_api.max_concurrent_requests"),
        ("kubernetes_api: {max_concurrent_request: 1}", "did you mean `max_concurrent_requests`?"),
    ] {
        let said = problems(text);
        assert!(said.starts_with("line 1 ") && said.contains(words), "{text}: {said}");
    }
}

#[test]
fn every_mistake_is_reported_with_its_line_and_path() {
    let text = "\
gitops:
  manifest_projects:
  - idd: x
    paths: [{glob: a, file: b}, {}, {glob: ''}]
    dry_run_strategy: maybe
    reconcile_timeout: 1h
    prune: 'nope'
cilium: {}
ci_access:
  projects: [{default_namespace: n, access_as: {agnet: {}}}]
  groups: {id: g}
observability: {logging: {level: loud}}
container_scanning: {resource_requirements: {limits: {cpu: 1}}}
";
    let wanted = "\
line 3 column 5: gitops.manifest_projects[0].idd: unknown key; did you mean `id`?
line 4 column 23: gitops.manifest_projects[0].paths[0]: both glob and file; exactly one of glob, file is wanted
line 4 column 33: gitops.manifest_projects[0].paths[1]: an empty mapping; exactly one of glob, file is wanted
line 4 column 44: gitops.manifest_projects[0].paths[2].glob: empty text; a value is wanted
line 5 column 23: gitops.manifest_projects[0].dry_run_strategy: \"maybe\"; one of none, client, server is wanted
line 6 column 24: gitops.manifest_projects[0].reconcile_timeout: \"1h\"; a duration in seconds such as 30s or 0.5s is wanted
line 7 column 12: gitops.manifest_projects[0].prune: \"nope\"; true or false is wanted
line 8 column 9: cilium.hubble_relay_address: it is missing; a value is wanted
line 10 column 14: ci_access.projects[0].id: it is missing; a value is wanted
line 10 column 49: ci_access.projects[0].access_as.agnet: unknown key; did you mean `agent`?
line 11 column 11: ci_access.groups: a mapping; a list is wanted
line 12 column 34: observability.logging.level: \"loud\"; one of info, debug, warn, error is wanted
line 13 column 60: container_scanning.resource_requirements.limits.cpu: 1 is a number; text is wanted: put quotes around it, \"1\"";
    assert_eq!(problems(text), wanted);
}

#[test]
fn what_is_no_text_has_its_line() {
    assert_eq!(
        parse(b"gitops:\n  \xff").map(|_| ()).unwrap_err().to_string(),
        "line 2 column 1: bytes that are not UTF-8; UTF-8 is wanted"
    );
}

#[test]
fn long_reports_are_cut_and_counted() {
    let text: String = (0..100).map(|at| format!("nonsense_{at}: 1\n")).collect();
    let said = problems(&text);
    assert!(said.ends_with(" more problems") && said.len() < 4_000, "{said}");
}

#[test]
fn aliases_do_not_make_a_small_file_a_large_document() {
    let file = |times: usize| {
        let text = "x".repeat(1_000);
        format!("starboard: {{a: &a \"{text}\", b: [{}]}}", "*a, ".repeat(times))
    };
    assert!(parse(file(400).as_bytes()).is_ok());
    let said = problems(&file(600));
    assert!(said.starts_with("line 1 column 1: 6") && said.contains("524288 at most are wanted"), "{said}");
    // What has no aliases may be as long as files may be.
    let long = format!("starboard: [{}]", "\"\\\"\", ".repeat(1 << 17));
    assert!(parse(long.as_bytes()).is_ok());
}

/// As `yaml.rs` has them, and those that are YAML and cost those who read it.
fn hostile() -> Vec<(&'static str, String)> {
    const SIZE: usize = 128 * 1024;
    let mut documents = postern_yaml::hostile::hostile();
    let (mut keys, mut at) = (String::new(), 0);
    while keys.len() < SIZE / 2 {
        keys += &format!("prune_propagation_policies_of_everything_{at:06}: 1, ");
        at += 1;
    }
    let projects = |project: &str| {
        let again = "*p, ".repeat(SIZE / 8);
        format!("gitops: {{manifest_projects: [&p {project}, {again}]}}")
    };
    let again = |times: usize| "*k, ".repeat(times);
    documents.extend([
        ("unknown keys", format!("remote_development: {{{keys}}}")),
        ("unknown keys often", format!("gitops: {{manifest_projects: [&k {{{keys}}}, {}]}}", again(35))),
        ("misspelt words often", projects("{dry_run_strategy: cliant, prune_propagation_policy: foregrund}")),
        ("nothing that is wanted, often", projects("{idd: 1}")),
        (
            "two ways often",
            format!(
                "gitops: {{manifest_projects: [{{paths: [&k {{glob: a, file: b}}, {}]}}]}}",
                again(30_000)
            ),
        ),
        ("much for Rails", format!("starboard: {{a: &k \"{}\", b: [{}]}}", "x".repeat(1_000), again(3_000))),
    ]);
    documents
}

#[test]
fn hostile_documents_cost_little_and_break_nothing() {
    for (name, text) in hostile() {
        let before = crate::processor_time::of_this_thread();
        let said = parse(text.as_bytes()).map(|_| ()).map_err(|problems| problems.to_string());
        let took = crate::processor_time::of_this_thread() - before;
        assert!(took < std::time::Duration::from_secs(5), "{name} took {took:?}");
        assert!(said.is_ok() || said.is_err_and(|said| said.len() < 8_000), "{name}");
    }
}
