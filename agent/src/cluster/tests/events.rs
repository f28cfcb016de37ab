//! Notes that become Events, once each.

use super::*;

fn note(message: &str) -> Note {
    Note {
        kind: Kind::new("apps", "v1", "Deployment", "deployments", true),
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: "u-1".to_owned(),
        warning: true,
        reason: "ApplyFailed",
        message: message.to_owned(),
    }
}

async fn written(cluster: &Cluster, count: usize) -> Vec<Value> {
    let kind = Kind::new("", "v1", "Event", "events", true);
    let mut following = cluster.follow(&kind, Some("default"));
    soon("Events", async {
        let mut all = Vec::new();
        while all.len() < count {
            if let Change::Found(event) | Change::Applied(event) = following.next().await {
                all.push(Value::clone(&event));
            }
        }
        all
    })
    .await
}

#[tokio::test]
async fn a_note_becomes_an_event_about_its_object() {
    let api = KubeApi::start(Options::default()).await.unwrap();
    let (cluster, recorder) = reach(&api.url(), &Metrics::default()).await;
    let writing = tokio::spawn(recorder.run());
    cluster.record(note("it\ndid not work"));
    let mut node = note("of the whole cluster");
    (node.kind, node.namespace) = (Kind::new("", "v1", "Node", "nodes", false), String::new());
    cluster.record(node);
    let events = written(&cluster, 2).await;
    let event = events.iter().find(|event| event["involvedObject"]["kind"] == "Deployment").unwrap();
    assert_eq!(
        event["involvedObject"],
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "default", "name": "web", "uid": "u-1"})
    );
    assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("ApplyFailed")));
    assert_eq!((&event["message"], &event["count"]), (&json!("it did not work"), &json!(1)));
    assert_eq!(event["source"]["component"], "agentk");
    assert_eq!(event["reportingInstance"], "pod-1");
    assert!(events.iter().any(|event| event["involvedObject"]["kind"] == "Node"));
    assert_eq!(cluster.calls(), 0, "Events are not calls");
    writing.abort();
}

#[tokio::test]
async fn a_note_that_comes_again_is_counted_and_not_written_again() {
    let api = KubeApi::start(Options::default()).await.unwrap();
    let metrics = Metrics::default();
    let (cluster, recorder) = reach(&api.url(), &metrics).await;
    let writing = tokio::spawn(recorder.run());
    cluster.record(note("again and again"));
    let written = metrics.cluster_events.get_or_create_owned(&[("outcome", "written")]);
    soon("the first", async {
        while written.get() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for _ in 0..30 {
        cluster.record(note("again and again"));
    }
    // The recorder has its turn and finds them known.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    let kind = Kind::new("", "v1", "Event", "events", true);
    let mut following = cluster.follow(&kind, Some("default"));
    let count = soon("the count", async {
        loop {
            if let Change::Found(event) | Change::Applied(event) = following.next().await
                && event["count"] != 1
            {
                return event["count"].clone();
            }
        }
    })
    .await;
    assert_eq!(count, 31);
    writing.abort();
}

#[tokio::test]
async fn too_many_notes_are_dropped_and_nobody_waits() {
    let api = KubeApi::start(Options::default()).await.unwrap();
    let (cluster, recorder) = reach(&api.url(), &Metrics::default()).await;
    for n in 0..10_000 {
        cluster.record(note(&format!("number {n}")));
    }
    let writing = tokio::spawn(recorder.run());
    written(&cluster, 25).await;
    writing.abort();
    assert!(asked(&api, "/api/v1/namespaces/default/events") < 40);
}
