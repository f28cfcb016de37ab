//! Objects that are refused, files that cannot be read, kinds that are not there, a cluster that does not answer.

use super::*;
use crate::{
    cluster::ClusterError,
    gitops::{cost::Cost, engine::fake::refused},
};
use postern_wire::proto::gitlab::agent::agentcfg::manifest_project_cf::PruneOneof;

#[tokio::test(start_paused = true)]
async fn one_bad_object_blocks_nobody_and_is_told_once_with_its_file_and_line() {
    let bench = Bench::start();
    bench.fake.fault(|verb, id| (verb == "apply" && id.name == "bad").then(|| refused(422, "it is invalid")));
    let manifests: String = ["a", "bad", "z"].map(|name| config_map("default", name, "1")).concat();
    bench.commit("c1", &[("dir/a.yaml", &manifests)]);
    let report = bench.state("c1", "degraded").await;
    assert_eq!((report.objects, report.applied, report.failed, report.ready), (3, 2, 1, 2));
    let [result] = report.results.as_slice() else { panic!("{report:#?}") };
    assert_eq!((result.name.as_str(), result.result.as_str()), ("bad", "failed"));
    assert_eq!((result.file.as_str(), result.line), ("dir/a.yaml", 6));
    assert!(result.text.contains("it is invalid"));
    bench.pass(600).await;
    let tries = bench.fake.calls_of("apply ConfigMap default/bad").len();
    assert!((8..=20).contains(&tries), "{tries}");
    assert_eq!((bench.counted("failed"), bench.fake.notes().len()), (1, 1));
    assert_eq!(bench.fake.notes()[0].reason, "ApplyFailed");
    // It is fine as soon as the cluster takes it.
    bench.fake.no_faults();
    bench.synchronized("c1").await;
}

#[tokio::test(start_paused = true)]
async fn dependents_of_a_failed_object_wait_and_say_why() {
    let bench = Bench::start();
    bench.fake.all_at_once();
    bench.fake.fault(|verb, id| (verb == "apply" && id.name == "a").then(|| refused(403, "not you")));
    let manifests = [deployment("b", "a"), deployment("a", ""), config_map("default", "m", "1")].concat();
    bench.commit("c1", &[("a.yaml", &manifests)]);
    let report = bench.state("c1", "degraded").await;
    let waiting = report.results.iter().find(|result| result.name == "b").unwrap();
    assert_eq!(waiting.result, "waiting");
    assert!(
        waiting.text.contains("apps/Deployment default/a, which failed: ")
            && waiting.text.contains("not you")
    );
    assert_eq!(report.ready, 1);
    assert!(bench.fake.calls_of("apply apps/Deployment default/b").is_empty());
    bench.fake.no_faults();
    assert_eq!(bench.synchronized("c1").await.ready, 3);
}

#[tokio::test(start_paused = true)]
async fn trouble_that_passes_is_tried_again_soon() {
    let bench = Bench::start();
    let unreachable = || ClusterError::Unreachable { what: "ask".to_owned(), cause: "away".to_owned() };
    bench.fake.fault(move |_, _| Some(unreachable()));
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.pass(20).await;
    let began = Instant::now();
    bench.fake.no_faults();
    bench.synchronized("c1").await;
    assert!(began.elapsed() < Duration::from_secs(40), "{:?}", began.elapsed());
    let tries = bench.fake.calls().len();
    assert!(tries < 20, "{tries}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_pruned_while_a_file_is_broken() {
    let bench = Bench::start();
    let two = [config_map("default", "a", "1"), config_map("default", "b", "1")].concat();
    bench.commit("c1", &[("a.yaml", &two)]);
    bench.synchronized("c1").await;
    let broken = [config_map("default", "a", "2"), "a: [\n---\n".to_owned()].concat();
    bench.commit("c2", &[("a.yaml", &broken)]);
    let report = bench.state("c2", "degraded").await;
    assert_eq!((report.applied, report.pruned, report.problems.len()), (1, 0, 1));
    assert_eq!(report.problems[0].r#where, "a.yaml");
    assert!(report.problems[0].line >= 6, "{report:?}");
    bench.pass(600).await;
    assert!(bench.fake.get_now(&map("b")).is_some());
    assert_eq!(bench.inventory().len(), 2);
    bench.commit("c3", &[("a.yaml", &config_map("default", "a", "2"))]);
    assert_eq!(bench.synchronized("c3").await.pruned, 1);
}

#[tokio::test(start_paused = true)]
async fn a_commit_without_files_prunes_nothing_and_says_why() {
    let bench = Bench::start();
    bench.commit("c0", &[]);
    bench.synchronized("c0").await;
    let two = [config_map("default", "a", "1"), config_map("default", "b", "1")].concat();
    bench.commit("c1", &[("a.yaml", &two)]);
    bench.synchronized("c1").await;
    bench.commit("c2", &[]);
    let report = bench.state("c2", "degraded").await;
    assert_eq!((report.pruned, report.problems.len()), (0, 1));
    assert!(report.problems[0].text.starts_with("no file of the commit fits paths"), "{report:?}");
    bench.pass(600).await;
    assert!(bench.fake.get_now(&map("a")).is_some() && bench.fake.get_now(&map("b")).is_some());
    assert_eq!(bench.inventory().len(), 2);
    bench.commit("c3", &[("a.yaml", "")]);
    assert_eq!(bench.synchronized("c3").await.pruned, 2);
}

#[tokio::test(start_paused = true)]
async fn an_object_of_an_unknown_kind_waits_for_it_and_holds_pruning_back() {
    let bench = Bench::start();
    bench.commit(
        "c1",
        &[("a.yaml", &[config_map("default", "a", "1"), config_map("default", "b", "1")].concat())],
    );
    bench.synchronized("c1").await;
    bench.commit("c2", &[("a.yaml", &[&config_map("default", "a", "1"), WIDGET].concat())]);
    let report = bench.state("c2", "degraded").await;
    assert_eq!((report.failed, report.pruned), (1, 0));
    assert!(report.results[0].text.contains("does not serve Widget"), "{report:?}");
    bench.pass(100).await;
    assert!(bench.fake.get_now(&map("b")).is_some());
    // Somebody else installs it.
    let definition = id("apiextensions.k8s.io", "CustomResourceDefinition", "", "widgets.example.com");
    let spec = serde_json::json!({"spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"kind": "Widget", "plural": "widgets"},
    }});
    bench.fake.put(&definition, spec);
    bench.fake.ready(&definition);
    let report = bench.synchronized("c2").await;
    assert_eq!((report.pruned, report.ready), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn an_extension_of_the_api_that_is_away_holds_only_its_own_objects_up() {
    let bench = Bench::start();
    bench.fake.fault(|verb, _| (verb == "discover").then(|| refused(503, "service unavailable")));
    bench.commit("c1", &[("a.yaml", &[&config_map("default", "a", "1"), WIDGET].concat())]);
    let report = bench.state("c1", "degraded").await;
    assert_eq!((report.applied, report.ready, report.failed), (1, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn an_object_that_does_not_go_is_told_and_stays_listed() {
    let settings = ManifestProjectCf {
        prune_timeout: Some(prost_types::Duration { seconds: 30, nanos: 0 }),
        ..Default::default()
    };
    let bench = Bench::with(Fake::new(), settings);
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.synchronized("c1").await;
    bench.fake.sticks(&map("a"));
    bench.commit("c2", &[("a.yaml", "")]);
    let report = bench.state("c2", "degraded").await;
    assert!(report.results[0].text.contains("still there after 30s"), "{report:?}");
    assert_eq!(bench.inventory().len(), 1);
    bench.fake.remove(&map("a"));
    bench.synchronized("c2").await;
    assert!(bench.inventory().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_happens_while_an_object_does_not_go_is_told_at_once() {
    let bench = Bench::start();
    let two = [config_map("default", "a", "1"), config_map("default", "b", "1")].concat();
    bench.commit("c1", &[("a.yaml", &two)]);
    bench.synchronized("c1").await;
    bench.fake.sticks(&map("a"));
    bench.commit("c2", &[("a.yaml", &config_map("default", "b", "1"))]);
    bench.state("c2", "degraded").await;
    // By now its deletion is tried again, and waited for.
    bench.pass(100).await;
    let began = Instant::now();
    bench.fake.edit(&map("b"), "/data/key", "mine".into());
    let report = bench.report("it", |report| report.corrected == 1).await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    assert_eq!((report.state.as_str(), report.failed), ("degraded", 1));
    bench.fake.remove(&map("a"));
    bench.synchronized("c2").await;
}

#[tokio::test(start_paused = true)]
async fn settings_that_cannot_be_followed_are_reported_and_nothing_is_done() {
    let settings = ManifestProjectCf { inventory_policy: "whatever".to_owned(), ..Default::default() };
    let bench = Bench::with(Fake::new(), settings);
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    let report = bench.report("failed", |report| report.state == "failed").await;
    assert!(report.problems[0].text.contains("inventory_policy"), "{report:?}");
    bench.pass(60).await;
    assert!(bench.fake.calls().is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_cluster_is_not_asked_for_ever_more_groups_that_nobody_serves() {
    let bench = Bench::start();
    bench.commit("c0", &[("a.yaml", &config_map("default", "gone", "1"))]);
    bench.synchronized("c0").await;
    let unicorns: String = (0..200)
        .map(|at| format!("apiVersion: g{at}.example.com/v1\nkind: Unicorn\nmetadata: {{name: u}}\n---\n"))
        .collect();
    let manifests = [config_map("default", "a", "1"), unicorns].concat();
    bench.commit("c1", &[("a.yaml", &manifests)]);
    let report = bench.state("c1", "degraded").await;
    assert_eq!((report.objects, report.ready, report.pruned), (201, 1, 0), "{report:?}");
    assert_eq!(bench.fake.calls_of("discover").len(), 50);
    assert!(bench.fake.get_now(&map("gone")).is_some());
}

#[tokio::test(start_paused = true)]
async fn many_rejected_objects_and_a_long_inventory_take_no_time_together() {
    const MANY: usize = 9_000;
    let fake = Fake::new();
    let listed: serde_json::Map<_, _> =
        (0..MANY).map(|at| (format!("default_listed-{at}__ConfigMap"), serde_json::json!(""))).collect();
    let labels = serde_json::json!({"cli-utils.sigs.k8s.io/inventory-id": "7-42"});
    fake.put(&map("inventory-7-42"), serde_json::json!({"metadata": {"labels": labels}, "data": listed}));
    let settings = ManifestProjectCf { prune_oneof: Some(PruneOneof::Prune(false)), ..Default::default() };
    let bench = Bench::with(fake, settings);
    let manifests: String = (0..MANY)
        .map(|at| {
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: rejected-{at}\n  annotations: \
                 {{config.kubernetes.io/depends-on: nonsense}}\n---\n"
            )
        })
        .collect();
    bench.commit("c1", &[("a.yaml", &manifests)]);
    // Of this thread, on which everything but the reading of files happens; reading has a test of its own.
    let cost = Cost::begin();
    bench.state("c1", "degraded").await;
    assert!(cost.so_far() < Duration::from_secs(10), "{:?}", cost.so_far());
}

#[tokio::test(start_paused = true)]
async fn who_stood_still_for_longer_than_the_lease_lasts_sends_nothing() {
    let bench = Bench::start();
    bench.commit("c1", &[("a.yaml", &config_map("default", "a", "1"))]);
    bench.synchronized("c1").await;
    bench.term.lasts_until(Instant::now() + Duration::from_secs(10));
    let calls = bench.fake.calls().len();
    tokio::time::advance(Duration::from_secs(20)).await;
    // Nobody has told yet that it does not lead.
    bench.fake.edit(&map("a"), "/data/key", "mine".into());
    let manifests = [config_map("default", "a", "1"), config_map("default", "b", "1")].concat();
    bench.commit("c2", &[("a.yaml", &manifests)]);
    bench.pass(60).await;
    let sent: Vec<_> =
        bench.fake.calls().into_iter().skip(calls).filter(|call| !call.starts_with("get")).collect();
    assert!(sent.is_empty(), "{sent:#?}");
    bench.term.lasts_until(Instant::now() + Duration::from_secs(10_000));
    bench.synchronized("c2").await;
}
