//! From commit to commit: what is applied, in which order, what is pruned, and what is left alone.

use super::*;
use crate::gitops::{
    cost::Cost,
    engine::remove::{Fate, Removal},
    inventory::InUse,
    settings::Settings,
};
use postern_wire::proto::gitlab::agent::agentcfg::manifest_project_cf::PruneOneof;

#[tokio::test(start_paused = true)]
async fn a_commit_is_applied_and_the_next_one_prunes_exactly_what_it_lost() {
    let bench = Bench::start();
    let all: String = (0..20).map(|n| config_map("default", &format!("m{n:02}"), "1")).collect();
    bench.commit("c1", &[("all.yaml", &all)]);
    let report = bench.synchronized("c1").await;
    assert_eq!((report.objects, report.applied, report.ready, report.failed), (20, 20, 20, 0));
    assert_eq!(bench.inventory().len(), 20);
    assert!(bench.fake.most_flying() <= 8);
    let live = bench.fake.get_now(&map("m00")).unwrap();
    assert_eq!(live["metadata"]["annotations"][OWNER], "7-42");
    // Neither ours nor to be touched.
    bench.fake.put(&map("foreign"), serde_json::json!({}));

    let half: String = (0..10).map(|n| config_map("default", &format!("m{n:02}"), "1")).collect();
    bench.commit("c2", &[("all.yaml", &half)]);
    let report = bench.synchronized("c2").await;
    assert_eq!((report.objects, report.applied, report.unchanged, report.pruned), (10, 0, 10, 10));
    let mut left: Vec<String> = (0..10).map(|n| format!("ConfigMap default/m{n:02}")).collect();
    left.insert(0, "ConfigMap default/inventory-7-42".to_owned());
    left.insert(0, "ConfigMap default/foreign".to_owned());
    assert_eq!(bench.fake.names("ConfigMap"), left);
    assert_eq!(bench.inventory().len(), 10);
    assert_eq!((bench.counted("applied"), bench.counted("pruned")), (20, 10));
}

#[tokio::test(start_paused = true)]
async fn an_unchanged_commit_takes_no_calls() {
    let bench = Bench::start();
    let manifests = [config_map("default", "a", "1"), deployment("d", "")].concat();
    bench.fake.all_at_once();
    bench.commit("c1", &[("a.yaml", &manifests)]);
    bench.synchronized("c1").await;
    let calls = bench.fake.calls().len();
    bench.commit("c2", &[("moved.yaml", &manifests)]);
    let report = bench.synchronized("c2").await;
    assert_eq!((report.applied, report.unchanged), (0, 2));
    bench.pass(3600).await;
    assert_eq!(bench.fake.calls().len(), calls, "{:#?}", bench.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn of_a_thousand_commits_in_a_minute_few_are_applied_and_the_last_one_is_in_force() {
    let bench = Bench::start();
    for n in 0..1000 {
        let manifests: String =
            (0..10).map(|m| config_map("default", &format!("m{m}"), &n.to_string())).collect();
        bench.commit(&format!("c{n}"), &[("a.yaml", &manifests)]);
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    bench.synchronized("c999").await;
    assert_eq!(bench.fake.get_now(&map("m9")).unwrap()["data"]["key"], "999");
    let applied = bench.fake.calls_of("apply").len();
    assert!((10..=700).contains(&applied), "{applied}");
    assert_eq!(bench.inventory().len(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_newer_commit_does_not_wait_for_what_the_older_one_waits_for() {
    let bench = Bench::start();
    bench.commit("c1", &[("a.yaml", &[deployment("a", ""), deployment("b", "a")].concat())]);
    bench.report("b waits", |report| report.results.iter().any(|result| result.name == "b")).await;
    bench.commit("c2", &[("a.yaml", &config_map("default", "m", "1"))]);
    let report = bench.synchronized("c2").await;
    assert_eq!(report.pruned, 1);
    assert!(bench.fake.names("Deployment").is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_definition_is_awaited_before_its_objects_and_namespaces_come_first() {
    let bench = Bench::start();
    bench.fake.slow("CustomResourceDefinition");
    let manifests = [WIDGET, &config_map("new", "m", "1"), DEFINITION, &namespace("new")].concat();
    bench.commit("c1", &[("a.yaml", &manifests)]);
    let definition = id("apiextensions.k8s.io", "CustomResourceDefinition", "", "widgets.example.com");
    let waits = |report: &GitopsReport| {
        report.results.iter().any(|result| result.name == "w" && result.text.contains("widgets.example.com"))
    };
    bench.report("the widget waits", waits).await;
    bench.fake.until("the definition", |fake| fake.get_now(&definition).is_some()).await;
    bench.pass(100).await;
    assert_eq!(bench.fake.calls_of("apply example.com").len(), 0);
    bench.fake.ready(&definition);
    let report = bench.synchronized("c1").await;
    assert_eq!((report.applied, report.ready), (4, 4));
    let order = bench.fake.calls_of("apply");
    let place = |text: &str| order.iter().position(|call| call.contains(text)).unwrap();
    assert!(place("Namespace new") < place("ConfigMap new/m"), "{order:?}");
    // It is watched like everything else.
    let widget = id("example.com", "Widget", "default", "w");
    bench.fake.edit(&widget, "/spec/size", 2.into());
    bench
        .fake
        .until("the widget is put back", |fake| fake.get_now(&widget).unwrap()["spec"]["size"] == 1)
        .await;
    // All of it can go at once, the definition last.
    bench.commit("c2", &[("a.yaml", "")]);
    bench.report("all gone", |report| report.commit_id == "c2" && report.pruned == 4).await;
    let order = bench.fake.calls_of("delete");
    let place = |text: &str| order.iter().position(|call| call.contains(text)).unwrap();
    assert!(place("Widget") < place("CustomResourceDefinition"), "{order:?}");
    assert!(place("ConfigMap new/m") < place("Namespace new"), "{order:?}");
}

#[tokio::test(start_paused = true)]
async fn objects_go_in_the_order_in_which_they_depend_on_each_other() {
    let bench = Bench::start();
    let manifests = [deployment("c", "b"), deployment("b", "a"), deployment("a", "")].concat();
    bench.commit("c1", &[("a.yaml", &manifests)]);
    for name in ["a", "b", "c"] {
        let id = id("apps", "Deployment", "default", name);
        bench.fake.until(name, |fake| fake.get_now(&id).is_some()).await;
        bench.pass(30).await;
        let after = bench.fake.names("Deployment");
        assert_eq!(after.last().unwrap(), &id.to_string());
        bench.fake.ready(&id);
    }
    let report = bench.synchronized("c1").await;
    assert_eq!(report.ready, 3);
}

#[tokio::test(start_paused = true)]
async fn a_dry_run_changes_nothing_and_says_what_it_would() {
    for (strategy, trial) in [("client", 0), ("server", 2)] {
        let fake = Fake::new();
        let bench = Bench::with(fake.clone(), ManifestProjectCf::default());
        bench.commit(
            "c1",
            &[("a.yaml", &[config_map("default", "a", "1"), config_map("default", "b", "1")].concat())],
        );
        bench.synchronized("c1").await;
        drop(bench);
        let before = (fake.names("ConfigMap"), fake.get_now(&map("a")), fake.calls().len());

        let settings = ManifestProjectCf { dry_run_strategy: strategy.to_owned(), ..Default::default() };
        let bench = Bench::with(fake.clone(), settings);
        bench.commit(
            "c2",
            &[("a.yaml", &[config_map("default", "a", "2"), config_map("default", "new", "1")].concat())],
        );
        let report = bench.synchronized("c2").await;
        assert!(report.dry_run);
        assert_eq!((report.objects, report.applied, report.pruned), (2, 2, 1), "{strategy}");
        assert_eq!((fake.names("ConfigMap"), fake.get_now(&map("a"))), (before.0, before.1));
        let sent: Vec<_> =
            fake.calls().split_off(before.2).into_iter().filter(|call| !call.starts_with("get")).collect();
        assert_eq!(sent.iter().filter(|call| call.starts_with("try ")).count(), trial, "{sent:?}");
        assert!(sent.iter().all(|call| call.starts_with("try")), "{sent:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_prune_what_left_the_manifests_stays_and_is_forgotten() {
    let settings = ManifestProjectCf { prune_oneof: Some(PruneOneof::Prune(false)), ..Default::default() };
    let bench = Bench::with(Fake::new(), settings);
    bench.commit(
        "c1",
        &[("a.yaml", &[config_map("default", "a", "1"), config_map("default", "b", "1")].concat())],
    );
    bench.synchronized("c1").await;
    bench.commit("c2", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.synchronized("c2").await;
    assert!(bench.fake.get_now(&map("b")).is_some());
    assert_eq!(bench.inventory(), ["default_a__ConfigMap"]);
}

#[tokio::test(start_paused = true)]
async fn who_no_longer_leads_writes_nothing_more_and_the_next_leader_goes_on() {
    let bench = Bench::start();
    bench.fake.set_latency(Duration::from_millis(100));
    let all: String = (0..100).map(|n| config_map("default", &format!("m{n:02}"), "1")).collect();
    bench.commit("c1", &[("a.yaml", &all)]);
    bench.fake.until("some are applied", |fake| fake.calls_of("apply").len() > 20).await;
    bench.leads.send_replace(false);
    let calls = bench.fake.calls().len();
    bench.pass(600).await;
    assert_eq!(bench.fake.calls().len(), calls);
    assert!(bench.fake.names("ConfigMap").len() < 60);
    // All of it is listed, so whoever leads next loses nothing.
    assert_eq!(bench.inventory().len(), 100);
    bench.leads.send_replace(true);
    bench.synchronized("c1").await;
    assert_eq!(bench.fake.names("ConfigMap").len(), 101);
}

#[tokio::test(start_paused = true)]
async fn many_objects_that_all_need_each_other_leave_without_blocking_others() {
    const SIDE: usize = 900;
    let fake = Fake::new();
    let name = |n: usize| format!("n{n:03}");
    let all: Vec<_> = (0..SIDE).map(|n| format!("/namespaces/default/ConfigMap/{}", name(n))).collect();
    let needs = serde_json::json!({"config.kubernetes.io/depends-on": all.join(","), OWNER: "7-42"});
    let mut objects = std::collections::BTreeSet::new();
    for n in 0..SIDE {
        let (needed, user) = (map(&name(n)), map(&format!("u{n:03}")));
        fake.put(&needed, serde_json::json!({"metadata": {"annotations": {OWNER: "7-42"}}}));
        fake.put(&user, serde_json::json!({"metadata": {"annotations": needs}}));
        objects.extend([needed, user]);
    }
    let settings = ManifestProjectCf { dry_run_strategy: "client".to_owned(), ..Default::default() };
    let removal = Removal {
        api: fake,
        objects,
        settings: Arc::new(Settings::of(&settings).unwrap()),
        owner: Arc::from("7-42"),
        in_use: InUse::default(),
        gone: tokio::sync::broadcast::channel(1).1,
    };
    let cost = Cost::begin();
    let fates = removal.run().await;
    assert!(fates.len() == 2 * SIDE && fates.values().all(|fate| matches!(fate, Fate::Pruned)));
    eprintln!("took {:?}", cost.so_far());
    assert!(cost.so_far() < Duration::from_secs(20), "{:?}", cost.so_far());
}
