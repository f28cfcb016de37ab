//! What the broker shows of a cluster, against the real control plane: a node that comes, a Deployment that is scaled, a pod
//! that crashes again and again, without the cluster being asked.

use crate::{
    gitops::field::{Gitops, api, apply},
    harness::{AGENT, until},
};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

const ALL: &str = "views: {nodes: true, workloads: true, events: true, versions: true, capacity: true}\n";

/// An entry of a view, if it is there.
async fn entry(field: &Gitops, view: &str, key: &str) -> Option<Value> {
    let (status, page) = field.ask(&format!("/api/v1/agents/{AGENT}/views/{view}")).await;
    (status == 200).then(|| page["entries"].get(key).cloned())?
}

/// Waits for an entry that fits; prints how long that took.
async fn shows(field: &Gitops, view: &str, key: &str, what: &str, fits: impl Fn(&Value) -> bool) -> Value {
    let begin = Instant::now();
    let found = until(what, async || entry(field, view, key).await.filter(&fits)).await;
    println!("{what}: shown after {:?}", begin.elapsed());
    found
}

fn deployment(namespace: &str, name: &str, replicas: u32, script: &str) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": namespace},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": name}},
            "template": {"metadata": {"labels": {"app": name}},
                "spec": {"terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "c", "image": "none", "command": ["sh", "-c", script],
                        "env": [{"name": "PASSWORD", "value": "is-nobodys-business"}]}]}}}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_in_the_cluster_is_shown_by_the_broker() {
    let field = Gitops::start("", ALL).await;
    let namespace = field.prefix.clone();
    let api_server = shows(&field, "versions", "kubernetes", "the views are there", |_| true).await;
    assert!(api_server["version"].as_str().unwrap().starts_with("v1."), "{api_server}");

    let node = format!("{namespace}-node");
    apply(&field.client, &json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})).await;
    shows(&field, "nodes", &node, "a new node", |node| node["ready"] == false).await;
    let nodes = api(&field.client, "", "v1", "Node", "nodes", None);
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True", "reason": "Fine"}]}});
    nodes.patch_status(&node, &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
    shows(&field, "nodes", &node, "a node that is ready", |node| node["ready"] == true).await;
    nodes.delete(&node, &DeleteParams::default()).await.unwrap();
    let begin = Instant::now();
    until("the node is gone", async || entry(&field, "nodes", &node).await.is_none().then_some(())).await;
    println!("a node that is gone: after {:?}", begin.elapsed());

    let web = format!("{namespace}/Deployment/web");
    apply(&field.client, &deployment(&namespace, "web", 1, "exec sleep 1000")).await;
    shows(&field, "workloads", &web, "a Deployment that is ready", |web| {
        web["state"] == "ready" && web["ready"] == 1
    })
    .await;
    let deployments = api(&field.client, "apps", "v1", "Deployment", "deployments", Some(&namespace));
    let scale = Patch::Merge(json!({"spec": {"replicas": 3}}));
    deployments.patch("web", &PatchParams::default(), &scale).await.unwrap();
    shows(&field, "workloads", &web, "a Deployment that is scaled", |web| web["wanted"] == 3).await;
    shows(&field, "workloads", &web, "all of it", |web| web["ready"] == 3).await;

    apply(&field.client, &deployment(&namespace, "broken", 1, "exit 3")).await;
    let broken = shows(&field, "workloads", &format!("{namespace}/Deployment/broken"), "a crash", |broken| {
        broken["state"] == "degraded" && broken["pods"][0]["restarts"].as_u64() >= Some(1)
    })
    .await;
    assert_eq!(broken["pods"][0]["exit_code"], 3, "{broken}");

    let (status, page) = field.ask(&format!("/api/v1/agents/{AGENT}/views/capacity")).await;
    assert_eq!((status, page["entries"]["cluster"]["cpu"].is_object()), (200, true), "{page}");
    let everything = field.ask(&format!("/api/v1/agents/{AGENT}/views/workloads")).await.1.to_string();
    assert!(!everything.contains("PASSWORD") && !everything.contains("nobodys"), "{everything}");
    // Nobody else's.
    assert_eq!(field.ask("/api/v1/agents/8/views/nodes").await.0, 404);

    // A configuration without views: nothing is shown any more.
    field.configure("", "");
    until("the views are gone", async || {
        (field.ask(&format!("/api/v1/agents/{AGENT}/views/nodes")).await.0 == 404).then_some(())
    })
    .await;
}
