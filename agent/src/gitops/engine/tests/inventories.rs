//! The inventory in the cluster: when it is written, what it says, and whose objects may be touched.

use super::*;
use crate::{cluster::ClusterError, gitops::engine::fake::refused};
use serde_json::json;

#[tokio::test(start_paused = true)]
async fn the_inventory_lists_an_object_before_it_is_applied_and_forgets_it_after_it_is_gone() {
    let bench = Bench::start();
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.synchronized("c1").await;
    let inventory = "ConfigMap default/inventory-7-42";
    assert_eq!(bench.fake.calls(), [format!("create {inventory}"), "apply ConfigMap default/a".to_owned()]);
    bench.commit("c2", &[("a.yaml", &config_map("default", "b", "1"))]);
    bench.synchronized("c2").await;
    let calls: Vec<_> = bench.fake.calls().split_off(2);
    let expected = [
        format!("replace {inventory}"),
        // It may have been there all the time, and nobody has looked.
        "get ConfigMap default/b".to_owned(),
        "apply ConfigMap default/b".to_owned(),
        "get ConfigMap default/a".to_owned(),
        "delete ConfigMap default/a".to_owned(),
        format!("replace {inventory}"),
    ];
    assert_eq!(calls, expected);
    let live = bench.fake.get_now(&map("inventory-7-42")).unwrap();
    assert_eq!(live["metadata"]["labels"]["cli-utils.sigs.k8s.io/inventory-id"], "7-42");
    assert_eq!(bench.inventory(), ["default_b__ConfigMap"]);
}

#[tokio::test(start_paused = true)]
async fn the_inventorys_own_namespace_may_be_part_of_the_commit() {
    let settings = ManifestProjectCf { default_namespace: "fresh".to_owned(), ..Default::default() };
    let bench = Bench::with(Fake::new(), settings);
    bench.commit("c1", &[("a.yaml", &[namespace("fresh"), config_map("fresh", "a", "1")].concat())]);
    let report = bench.synchronized("c1").await;
    assert_eq!(report.ready, 2);
    let live = bench.fake.get_now(&id("", "ConfigMap", "fresh", "inventory-7-42")).unwrap();
    assert_eq!(live["data"].as_object().unwrap().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn an_inventory_without_its_namespace_is_a_problem_that_is_told() {
    let settings = ManifestProjectCf { default_namespace: "nowhere".to_owned(), ..Default::default() };
    let bench = Bench::with(Fake::new(), settings);
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    let report = bench.state("c1", "failed").await;
    assert!(report.problems[0].text.contains("namespace nowhere does not exist"), "{report:?}");
    assert!(bench.fake.calls_of("apply").is_empty());
    bench.fake.put(&id("", "Namespace", "", "nowhere"), json!({}));
    bench.synchronized("c1").await;
}

#[tokio::test(start_paused = true)]
async fn what_exists_is_taken_over_as_the_policy_says() {
    let owners = [("nobody", None), ("own", Some("7-42")), ("other", Some("1-1"))];
    for (policy, taken) in [
        ("", &["own"][..]),
        ("must_match", &["own"]),
        ("adopt_if_no_inventory", &["nobody", "own"]),
        ("adopt_all", &["nobody", "other", "own"]),
    ] {
        let fake = Fake::new();
        for (name, owner) in owners {
            let annotations = owner.map(|owner| json!({OWNER: owner}));
            fake.put(&map(name), json!({"metadata": {"annotations": annotations}, "data": {"key": "0"}}));
        }
        let settings = ManifestProjectCf { inventory_policy: policy.to_owned(), ..Default::default() };
        let bench = Bench::with(fake, settings);
        let manifests: String = owners.map(|(name, _)| config_map("default", name, "1")).concat();
        bench.commit("c1", &[("a.yaml", &manifests)]);
        let state = if taken.len() == 3 { "synchronized" } else { "degraded" };
        bench.state("c1", state).await;
        let key = |name: &str| bench.fake.get_now(&map(name)).unwrap()["data"]["key"].clone();
        let mut applied: Vec<_> =
            owners.map(|(name, _)| name).into_iter().filter(|name| key(name) == "1").collect();
        applied.sort_unstable();
        assert_eq!(applied, taken, "{policy}");
        let listed: Vec<_> = taken.iter().map(|name| format!("default_{name}__ConfigMap")).collect();
        assert_eq!(bench.inventory(), listed, "{policy}");
        // What is refused here is not asked for again and again.
        let calls = bench.fake.calls().len();
        bench.pass(600).await;
        assert_eq!(bench.fake.calls().len(), calls, "{:#?}", bench.fake.calls());
    }
}

#[tokio::test(start_paused = true)]
async fn an_inventory_written_by_others_is_taken_over_and_pruned_by() {
    let fake = Fake::new();
    for (name, owner) in [("kept", "7-42"), ("gone", "7-42"), ("foreign", "1-1")] {
        fake.put(&map(name), json!({"metadata": {"annotations": {OWNER: owner}}}));
    }
    let detached = json!({OWNER: "7-42", "cli-utils.sigs.k8s.io/on-remove": "keep"});
    fake.put(&map("detached"), json!({"metadata": {"annotations": detached}}));
    let data: serde_json::Map<_, _> = ["kept", "gone", "foreign", "detached", "never"]
        .map(|name| (format!("default_{name}__ConfigMap"), json!("")))
        .into_iter()
        .collect();
    let labels = json!({"cli-utils.sigs.k8s.io/inventory-id": "7-42"});
    fake.put(&map("some-name"), json!({"metadata": {"labels": labels}, "data": data}));
    let bench = Bench::with(fake, ManifestProjectCf::default());
    bench.commit("c1", &[("a.yaml", &config_map("default", "kept", "1"))]);
    let report = bench.synchronized("c1").await;
    assert_eq!(report.pruned, 1, "{report:?}");
    let left = bench.fake.names("ConfigMap");
    let expected =
        ["detached", "foreign", "kept", "some-name"].map(|name| format!("ConfigMap default/{name}"));
    assert_eq!(left, expected);
    let listed = bench.fake.get_now(&map("some-name")).unwrap()["data"].clone();
    let listed: Vec<_> = listed.as_object().unwrap().keys().cloned().collect();
    assert_eq!(listed, ["default_kept__ConfigMap"]);
    // It is nobody's now.
    assert_eq!(bench.fake.get_now(&map("detached")).unwrap()["metadata"]["annotations"][OWNER], json!(null));
}

#[tokio::test(start_paused = true)]
async fn an_inventory_that_somebody_deletes_comes_back() {
    let bench = Bench::start();
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.synchronized("c1").await;
    bench.fake.remove(&map("inventory-7-42"));
    bench.fake.until("it is back", |fake| fake.get_now(&map("inventory-7-42")).is_some()).await;
    assert_eq!(bench.inventory(), ["default_a__ConfigMap"]);
    let calls = bench.fake.calls().len();
    bench.pass(60).await;
    assert_eq!(bench.fake.calls().len(), calls);
}

#[tokio::test(start_paused = true)]
async fn what_agentk_applied_is_pruned_with_every_policy_and_what_nobody_did_with_adopt_all_only() {
    for (policy, pruned) in [("must_match", 1), ("adopt_if_no_inventory", 1), ("adopt_all", 2)] {
        let fake = Fake::new();
        // agentk annotates all that it applies.
        fake.put(&map("applied"), json!({"metadata": {"annotations": {OWNER: "7-42"}}}));
        fake.put(&map("bystander"), json!({"data": {"key": "0"}}));
        let data = json!({"default_applied__ConfigMap": "", "default_bystander__ConfigMap": ""});
        let labels = json!({"cli-utils.sigs.k8s.io/inventory-id": "7-42"});
        fake.put(&map("inventory-7-42"), json!({"metadata": {"labels": labels}, "data": data}));
        let settings = ManifestProjectCf { inventory_policy: policy.to_owned(), ..Default::default() };
        let bench = Bench::with(fake, settings);
        bench.commit("c1", &[("a.yaml", &config_map("default", "b", "1"))]);
        let report = bench.report("c1 done", |report| report.pruned == pruned && report.ready == 1).await;
        bench.pass(60).await;
        assert!(bench.fake.get_now(&map("applied")).is_none(), "{policy}: {report:?}");
        assert_eq!(bench.fake.get_now(&map("bystander")).is_some(), pruned == 1, "{policy}");
    }
}

/// A ConfigMap that is the project's inventory.
fn template(name: &str, inventory_id: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: {name}\n  namespace: default\n  labels:\n    \
         cli-utils.sigs.k8s.io/inventory-id: {inventory_id}\n---\n"
    )
}

#[tokio::test(start_paused = true)]
async fn two_projects_never_have_one_inventory_and_the_second_gets_it_when_the_first_has_gone() {
    const OTHER: &str = "group/other";
    for (other_template, then) in
        [(template("elsewhere", "mine"), "synchronized"), (template("list", "other"), "failed")]
    {
        let bench = Bench::start();
        let manifests = [template("list", "mine"), config_map("default", "a", "1")].concat();
        bench.commit("c1", &[("a.yaml", &manifests)]);
        bench.synchronized("c1").await;
        let manifests = [other_template, config_map("default", "b", "1")].concat();
        let received = Received {
            project: OTHER.to_owned(),
            project_id: 43,
            commit_id: "o1".to_owned(),
            files: vec![File { source: "b.yaml".to_owned(), data: manifests.into_bytes().into() }],
        };
        let (_commits, received) = watch::channel(Some(Arc::new(received)));
        let settings = Arc::new(ManifestProjectCf { id: OTHER.to_owned(), ..Default::default() });
        let other = Project { settings, received };
        bench.manifests.send_modify(|projects| {
            let both = projects.iter().map(|(id, project)| (id.clone(), project.clone()));
            *projects = Arc::new(both.chain([(OTHER.to_owned(), other)]).collect());
        });
        let failed = |report: &GitopsReport| report.project == OTHER && report.state == "failed";
        let report = bench.report("the other one refused", failed).await;
        let text = &report.problems[0].text;
        assert!(
            text.contains("the project \"group/manifests\" of this agent has the inventory \"mine\""),
            "{text}"
        );
        bench.pass(600).await;
        assert!(bench.fake.get_now(&map("a")).is_some() && bench.fake.get_now(&map("b")).is_none());
        bench.manifests.send_modify(|projects| {
            let mut left = BTreeMap::clone(projects);
            left.remove(PROJECT);
            *projects = Arc::new(left);
        });
        // A ConfigMap that only has the name is nobody's.
        let done = |report: &GitopsReport| {
            let refused = report.problems.iter().any(|problem| problem.text.contains("of this agent"));
            report.project == OTHER && report.state == then && !refused
        };
        bench.report("the other one's turn", done).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_inventory_of_too_many_or_too_large_config_maps_is_told_and_nothing_is_applied() {
    let note = |bytes: usize| json!({"note": "x".repeat(bytes)});
    for (count, bytes, taken) in [(16, 0, true), (17, 0, false), (15, 1 << 20, true), (16, 1 << 20, false)] {
        let fake = Fake::new();
        for at in 0..count {
            let labels = json!({"cli-utils.sigs.k8s.io/inventory-id": "7-42"});
            let metadata = json!({"labels": labels, "annotations": note(bytes)});
            fake.put(&map(&format!("list-{at}")), json!({"metadata": metadata, "data": {}}));
        }
        let bench = Bench::with(fake, ManifestProjectCf::default());
        bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
        if taken {
            bench.synchronized("c1").await;
            continue;
        }
        let report = bench.state("c1", "failed").await;
        let text = &report.problems[0].text;
        assert!(
            text.starts_with("more than 16 ConfigMaps of the namespace default, or more than 16 MiB"),
            "{text}"
        );
        assert!(bench.fake.calls_of("apply").is_empty());
    }
}

/// An inventory that lists these objects, as somebody else would have written it.
fn listing(fake: &Fake, keys: &[&str]) {
    let data: serde_json::Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), json!(""))).collect();
    let labels = json!({"cli-utils.sigs.k8s.io/inventory-id": "7-42"});
    fake.put(&map("inventory-7-42"), json!({"metadata": {"labels": labels}, "data": data}));
}

const KEPT: &str = "cli-utils.sigs.k8s.io/on-remove";

#[tokio::test(start_paused = true)]
async fn a_namespace_stays_for_good_with_an_object_in_it_that_does() {
    for annotations in [json!({OWNER: "7-42", KEPT: "keep"}), json!({OWNER: "1-1"})] {
        let fake = Fake::new();
        let (namespace, object) = (id("", "Namespace", "", "n"), id("", "ConfigMap", "n", "o"));
        fake.put(&namespace, json!({"metadata": {"annotations": {OWNER: "7-42"}}}));
        fake.put(&object, json!({"metadata": {"annotations": annotations}}));
        listing(&fake, &["_n__Namespace", "n_o__ConfigMap"]);
        let bench = Bench::with(fake, ManifestProjectCf::default());
        bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
        bench.synchronized("c1").await;
        bench.commit("c2", &[("a.yaml", &config_map("default", "b", "1"))]);
        assert_eq!(bench.synchronized("c2").await.pruned, 1);
        bench.pass(600).await;
        assert!(bench.fake.get_now(&object).is_some(), "{:#?}", bench.fake.calls());
        let live = bench.fake.get_now(&namespace).unwrap();
        // It is nobody's now.
        assert_eq!(live["metadata"]["annotations"][OWNER], json!(null));
        assert_eq!(bench.inventory(), ["default_b__ConfigMap"]);
    }
}

#[tokio::test(start_paused = true)]
async fn an_object_that_stays_is_not_forgotten_before_its_namespace_could_be_looked_at() {
    let fake = Fake::new();
    let (namespace, object) = (id("", "Namespace", "", "n"), id("", "ConfigMap", "n", "o"));
    fake.put(&namespace, json!({"metadata": {"annotations": {OWNER: "7-42"}}}));
    fake.put(&object, json!({"metadata": {"annotations": {OWNER: "7-42", KEPT: "keep"}}}));
    listing(&fake, &["_n__Namespace", "n_o__ConfigMap"]);
    fake.fault(|verb, id| (verb == "get" && id.kind == "Namespace").then(|| refused(500, "not now")));
    let bench = Bench::with(fake, ManifestProjectCf::default());
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.state("c1", "degraded").await;
    assert_eq!(bench.inventory().len(), 3);
    bench.fake.no_faults();
    bench.synchronized("c1").await;
    assert!(bench.fake.get_now(&object).is_some(), "{:#?}", bench.fake.calls());
    assert_eq!(bench.inventory(), ["default_a__ConfigMap"]);
}

#[tokio::test(start_paused = true)]
async fn a_definition_stays_for_good_with_an_object_of_its_kind_that_does() {
    let bench = Bench::start();
    let kept = WIDGET.replace("{name: w}", &format!("{{name: w, annotations: {{{KEPT}: keep}}}}"));
    bench.commit("c1", &[("a.yaml", &[DEFINITION, &kept].concat())]);
    bench.synchronized("c1").await;
    bench.commit("c2", &[("a.yaml", "")]);
    assert_eq!(bench.synchronized("c2").await.pruned, 0);
    bench.pass(600).await;
    let definition = id("apiextensions.k8s.io", "CustomResourceDefinition", "", "widgets.example.com");
    assert!(bench.fake.get_now(&definition).is_some(), "{:#?}", bench.fake.calls());
    assert!(bench.inventory().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_left_stays_while_objects_of_its_kind_are_wanted() {
    let bench = Bench::start();
    bench.commit("c1", &[("a.yaml", &[DEFINITION, WIDGET].concat())]);
    bench.synchronized("c1").await;
    bench.commit("c2", &[("a.yaml", WIDGET)]);
    let report = bench.synchronized("c2").await;
    assert_eq!((report.pruned, report.ready), (0, 1), "{report:#?}");
    assert_eq!((report.results[0].result.as_str(), bench.inventory().len()), ("kept", 2));
    bench.commit("c3", &[("a.yaml", "")]);
    assert_eq!(bench.synchronized("c3").await.pruned, 2);
}

#[tokio::test(start_paused = true)]
async fn what_could_not_be_deleted_is_no_trouble_once_somebody_takes_it_off_the_list() {
    let settings = ManifestProjectCf {
        prune_timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    let bench = Bench::with(Fake::new(), settings);
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.synchronized("c1").await;
    bench.fake.sticks(&map("a"));
    bench.commit("c2", &[("a.yaml", "")]);
    bench.state("c2", "degraded").await;
    bench.fake.edit(&map("inventory-7-42"), "/data", json!({}));
    bench.synchronized("c2").await;
    assert!(bench.fake.get_now(&map("a")).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_definition_waits_for_what_is_in_its_group_and_cannot_be_looked_at() {
    let fake = Fake::new();
    let definition = id("apiextensions.k8s.io", "CustomResourceDefinition", "", "widgets.example.com");
    fake.put(&definition, json!({"metadata": {"annotations": {OWNER: "7-42"}}}));
    listing(
        &fake,
        &[
            "_widgets.example.com_apiextensions.k8s.io_CustomResourceDefinition",
            "default_w_example.com_Widget",
        ],
    );
    let away = || ClusterError::Unreachable { what: "ask".to_owned(), cause: "away".to_owned() };
    fake.fault(move |verb, _| (verb == "discover").then(away));
    let bench = Bench::with(fake, ManifestProjectCf::default());
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.state("c1", "degraded").await;
    bench.pass(600).await;
    assert!(bench.fake.get_now(&definition).is_some(), "{:#?}", bench.fake.calls());
    assert_eq!(bench.inventory().len(), 3);
}
