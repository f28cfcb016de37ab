//! What somebody else does to objects in force, and what the engine does about it.

use super::*;
use serde_json::json;

async fn settled() -> Bench {
    let bench = Bench::start();
    let manifests =
        [config_map("default", "a", "1"), config_map("default", "b", "1"), namespace("some")].concat();
    bench.commit("c1", &[("a.yaml", &manifests)]);
    bench.synchronized("c1").await;
    bench
}

fn key(fake: &Fake, name: &str) -> serde_json::Value {
    fake.get_now(&map(name)).map(|live| live["data"]["key"].clone()).unwrap_or_default()
}

#[tokio::test(start_paused = true)]
async fn a_hand_edit_is_undone_within_two_seconds_and_told_once() {
    let bench = settled().await;
    let calls = bench.fake.calls().len();
    for n in 0..2 {
        let began = Instant::now();
        bench.fake.edit(&map("a"), "/data/key", "mine".into());
        bench.fake.until("it is put back", |fake| key(fake, "a") == "1").await;
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        bench.report("it", |report| report.corrected == 1).await;
        bench.pass(60).await;
        assert_eq!(bench.counted("corrected"), n + 1);
    }
    assert_eq!(bench.fake.calls().len(), calls + 2, "{:#?}", bench.fake.calls());
    let notes = bench.fake.notes();
    assert!(notes.iter().all(|note| note.reason == "Corrected" && note.name == "a"), "{notes:?}");
    assert_eq!(notes.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_others_add_is_left_alone_and_costs_no_call() {
    let bench = settled().await;
    let calls = bench.fake.calls().len();
    for n in 0..100 {
        let mut live = bench.fake.get_now(&map("a")).unwrap();
        live["metadata"]["labels"] = json!({"seen": n.to_string()});
        live["data"]["other"] = n.into();
        bench.fake.put(&map("a"), live);
        bench.pass(1).await;
    }
    assert_eq!(bench.fake.calls().len(), calls);
    assert_eq!(bench.fake.get_now(&map("a")).unwrap()["data"]["other"], 99);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_object_comes_back() {
    let bench = settled().await;
    let began = Instant::now();
    bench.fake.remove(&map("a"));
    bench.fake.until("it is back", |fake| key(fake, "a") == "1").await;
    assert!(began.elapsed() < Duration::from_secs(2));
    bench.report("it", |report| report.corrected == 1 && report.state == "synchronized").await;
}

#[tokio::test(start_paused = true)]
async fn somebody_who_fights_for_a_field_is_answered_less_and_less_often() {
    let bench = settled().await;
    let calls = bench.fake.calls().len();
    let fake = bench.fake.clone();
    // Changes it back whenever it is put right.
    let fighter = tokio::spawn(async move {
        loop {
            fake.until("it is put back", |fake| key(fake, "a") == "1").await;
            fake.edit(&map("a"), "/data/key", "mine".into());
        }
    });
    bench.pass(600).await;
    fighter.abort();
    let fights = bench.fake.calls().len() - calls;
    assert!((8..=25).contains(&fights), "{fights}");
    // Others are put right meanwhile.
    bench.fake.edit(&map("b"), "/data/key", "mine".into());
    let began = Instant::now();
    bench.fake.until("the other one is put back", |fake| key(fake, "b") == "1").await;
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn a_list_anew_finds_what_the_watch_missed_and_nothing_else() {
    let bench = settled().await;
    let calls = bench.fake.calls().len();
    bench.fake.unseen(|fake| {
        fake.edit(&map("a"), "/data/key", "mine".into());
        fake.remove(&map("b"));
    });
    bench.pass(60).await;
    assert_eq!(bench.fake.calls().len(), calls, "nobody knows yet");
    bench.fake.relist();
    bench.pass(60).await;
    assert_eq!(["a", "b"].map(|name| key(&bench.fake, name)), ["1", "1"]);
    bench.fake.relist();
    bench.pass(60).await;
    assert_eq!(bench.fake.calls().len(), calls + 2, "{:#?}", bench.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn objects_that_cannot_be_watched_are_applied_and_looked_at_now_and_then() {
    let fake = Fake::new();
    fake.unlisted("Secret");
    let bench = Bench::with(fake, ManifestProjectCf::default());
    let secret = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {key: value}\n";
    bench.commit("c1", &[("a.yaml", secret)]);
    bench.synchronized("c1").await;
    let id = id("", "Secret", "default", "s");
    bench.fake.edit(&id, "/stringData/key", "mine".into());
    bench.fake.until("put back", |fake| fake.get_now(&id).unwrap()["stringData"]["key"] == "value").await;
    let calls = bench.fake.calls_of("get Secret").len();
    assert!(calls <= 3, "{calls}");
}

#[tokio::test(start_paused = true)]
async fn what_a_list_found_before_the_commit_named_it_is_not_taken_from_its_owner() {
    let bench = settled().await;
    bench
        .fake
        .put(&map("theirs"), json!({"metadata": {"annotations": {OWNER: "other"}}, "data": {"key": "2"}}));
    bench.pass(60).await;
    // The list has told of that object when the commit comes, and ends after it.
    bench.fake.relist_up_to("theirs");
    bench.pass(1).await;
    let manifests = [
        config_map("default", "a", "1"),
        config_map("default", "b", "1"),
        config_map("default", "theirs", "1"),
    ]
    .concat();
    bench.commit("c2", &[("a.yaml", &manifests)]);
    bench.pass(2).await;
    bench.fake.finish_lists();
    bench.state("c2", "degraded").await;
    bench.pass(60).await;
    assert_eq!(key(&bench.fake, "theirs"), "2");
    assert_eq!(bench.fake.calls_of("apply ConfigMap default/theirs").len(), 0, "{:#?}", bench.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn when_a_watch_breaks_and_nothing_can_be_listed_objects_are_asked_for() {
    let bench = settled().await;
    bench.fake.relist_up_to("");
    bench.fake.unlisted("ConfigMap");
    bench.pass(1).await;
    // Nobody tells of this, and what was known before says nothing of its new owner.
    bench.fake.remove(&map("a"));
    bench.fake.put(&map("a"), json!({"metadata": {"annotations": {OWNER: "other"}}, "data": {"key": "2"}}));
    bench.fake.remove(&map("b"));
    let manifests =
        [config_map("default", "a", "3"), config_map("default", "b", "1"), namespace("some")].concat();
    bench.commit("c2", &[("a.yaml", &manifests)]);
    bench.state("c2", "degraded").await;
    assert_eq!(key(&bench.fake, "a"), "2");
    bench.fake.until("it is put back", |fake| key(fake, "b") == "1").await;
}

#[tokio::test(start_paused = true)]
async fn an_object_that_is_deleted_before_the_answer_comes_is_made_again() {
    let bench = settled().await;
    bench.fake.set_lag(Duration::from_secs(2));
    bench.fake.edit(&map("a"), "/data/key", "mine".into());
    bench.fake.until("it is put back", |fake| key(fake, "a") == "1").await;
    bench.fake.remove(&map("a"));
    bench.fake.until("it is made again", |fake| key(fake, "a") == "1").await;
    bench.pass(60).await;
    assert_eq!(bench.fake.calls_of("apply ConfigMap default/a").len(), 3, "{:#?}", bench.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_hand_edit_that_only_a_slow_list_sees_is_undone_at_once() {
    let bench = settled().await;
    bench.fake.relist_up_to("");
    bench.pass(20).await;
    // By now objects would be looked at in minutes.
    bench.fake.edit(&map("a"), "/data/key", "mine".into());
    let began = Instant::now();
    bench.fake.until("it is put back", |fake| key(fake, "a") == "1").await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_the_server_writes_in_its_own_way_is_no_quarrel_with_others() {
    let fake = Fake::new();
    fake.writes(|live| {
        if live["data"]["cpu"] == 0.5 {
            live["data"]["cpu"] = "500m".into();
        }
    });
    let bench = Bench::with(fake, ManifestProjectCf::default());
    let manifest = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {key: \"1\", cpu: 0.5}\n";
    bench.commit("c1", &[("a.yaml", manifest)]);
    bench.synchronized("c1").await;
    let calls = bench.fake.calls().len();
    for n in 0..100 {
        let mut live = bench.fake.get_now(&map("a")).unwrap();
        live["data"]["replicas"] = n.into();
        bench.fake.put(&map("a"), live);
        bench.pass(1).await;
    }
    assert_eq!(bench.fake.calls().len(), calls, "{:#?}", bench.fake.calls());
    bench.fake.edit(&map("a"), "/data/cpu", "600m".into());
    let began = Instant::now();
    bench
        .fake
        .until("it is put back", |fake| fake.get_now(&map("a")).unwrap()["data"]["cpu"] == "500m")
        .await;
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn readiness_that_no_watch_tells_of_is_seen_within_seconds() {
    let bench = Bench::start();
    bench.commit("c1", &[("a.yaml", &deployment("web", ""))]);
    let web = id("apps", "Deployment", "default", "web");
    bench.fake.until("it is applied", |fake| fake.get_now(&web).is_some()).await;
    bench.pass(30).await;
    bench.fake.relist_up_to("");
    bench.fake.unlisted("Deployment");
    bench.pass(30).await;
    bench.fake.ready(&web);
    let began = Instant::now();
    bench.synchronized("c1").await;
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
}
