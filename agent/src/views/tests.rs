//! Views kept of a cluster in memory for a broker that is a model, in paused time.

mod broker;
mod cluster;
mod large;
mod objects;
mod pushing;
mod random;

use super::{
    keep::{Keeper, Line},
    plan::{Plan, Watched},
};
use broker::Broker;
use cluster::FakeCluster;
use objects::{SECRET, crash_looping, deployment, event, node, pod, running};
use postern_wire::proto::gitlab::agent::agentcfg::{AgentConfiguration, ViewsCf};
use serde_json::json;
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::Instant};
use tokio_util::task::AbortOnDropHandle;

const SOON: Duration = Duration::from_millis(150);
const QUIET: Duration = Duration::from_secs(1);

fn all() -> ViewsCf {
    ViewsCf {
        nodes: true,
        workloads: true,
        events: true,
        versions: true,
        capacity: true,
        namespaces: Vec::new(),
    }
}

fn plan(views: ViewsCf) -> Plan {
    Plan::of(Some(&AgentConfiguration { views: Some(views), ..AgentConfiguration::default() }))
}

/// A cluster, whoever keeps views of it, and a broker.
struct Field {
    cluster: FakeCluster,
    broker: Broker,
    plan: watch::Sender<Plan>,
    keeper: AbortOnDropHandle<()>,
}

impl Field {
    fn new(cluster: FakeCluster, views: ViewsCf) -> Self {
        let broker = Broker::new();
        let (sender, plan) = watch::channel(plan(views));
        let keeper = Keeper { source: Arc::new(cluster.clone()), plan, line: broker.line.subscribe() };
        let keeper = AbortOnDropHandle::new(tokio::spawn(keeper.keep()));
        Self { cluster, broker, plan: sender, keeper }
    }

    /// Connected, and everything has been pushed.
    async fn settled(cluster: FakeCluster, views: ViewsCf) -> Self {
        let mut field = Self::new(cluster, views);
        field.broker.connect();
        field.broker.settle(QUIET).await;
        field
    }
}

fn small_cluster() -> FakeCluster {
    let cluster = FakeCluster::default();
    cluster.upgrade_to("v1.34.1");
    cluster.apply(Watched::Nodes, node("n1", true, "v1.34.1"));
    cluster.apply(Watched::Deployments, deployment("shop", "web", 2, 2));
    for name in ["web-1", "web-2"] {
        cluster.apply(Watched::Pods, pod("shop", name, "web", "n1", running()));
    }
    cluster.apply(Watched::Events, event("shop", "web.1", 10));
    cluster
}

#[tokio::test(start_paused = true)]
async fn what_happens_in_the_cluster_is_pushed_at_once() {
    let mut field = Field::settled(small_cluster(), all()).await;
    let (cluster, broker) = (&field.cluster, &mut field.broker);
    assert_eq!(broker.entry("workloads", "shop/Deployment/web").unwrap()["state"], "ready");
    assert_eq!(
        *broker.entry("capacity", "node/n1").unwrap(),
        json!({
            "node": "n1", "schedulable": true,
            "cpu": {"allocatable": 4000, "requested": 500, "free": 3500},
            "memory": {"allocatable": 8_u64 << 30, "requested": 128 << 20, "free": (8_u64 << 30) - (128 << 20)},
            "pods": {"allocatable": 110, "requested": 2, "free": 108},
        })
    );

    let began = Instant::now();
    cluster.apply(Watched::Nodes, node("n2", true, "v1.33.5"));
    broker.until("a node was added", |broker| broker.entry("nodes", "n2").is_some()).await;
    broker
        .until("it adds to what there is", |broker| {
            broker.entry("capacity", "cluster").is_some_and(|cluster| cluster["cpu"]["free"] == 7500)
                && broker.entry("versions", "kubelet/v1.33.5").is_some_and(|version| version["nodes"] == 1)
        })
        .await;
    assert!(began.elapsed() <= SOON, "{:?}", began.elapsed());

    let began = Instant::now();
    cluster.apply(Watched::Deployments, deployment("shop", "web", 5, 2));
    let scaled = json!([5, 2, "progressing"]);
    broker
        .until("a Deployment was scaled", |broker| {
            let web = broker.entry("workloads", "shop/Deployment/web").unwrap();
            json!([web["wanted"], web["ready"], web["state"]]) == scaled
        })
        .await;
    assert!(began.elapsed() <= SOON, "{:?}", began.elapsed());

    let began = Instant::now();
    cluster.apply(Watched::Pods, pod("shop", "web-2", "web", "n1", crash_looping()));
    broker
        .until("a Pod crashes again and again", |broker| {
            broker.entry("workloads", "shop/Deployment/web").unwrap()["state"] == "degraded"
        })
        .await;
    assert!(began.elapsed() <= SOON, "{:?}", began.elapsed());
    let web = broker.entry("workloads", "shop/Deployment/web").unwrap();
    assert_eq!(
        json!([web["reason"], web["troubled"], web["pods"]]),
        json!(["CrashLoopBackOff", 1, [{
            "name": "web-2", "container": "app", "reason": "CrashLoopBackOff", "restarts": 7, "exit_code": 1,
            "last_reason": "Error",
        }]])
    );

    cluster.apply(Watched::Pods, pod("shop", "once", "", "", crash_looping()));
    let alone = |broker: &Broker| broker.entry("workloads", "shop/Pod/once").cloned();
    broker.until("a Pod on its own is in trouble", |broker| alone(broker).is_some()).await;
    assert_eq!(alone(broker).unwrap()["wanted"], json!(null));
    broker
        .until("it has no node", |broker| broker.entry("capacity", "cluster").unwrap()["pending_pods"] == 1)
        .await;
    cluster.delete(Watched::Pods, "shop", "once");
    broker.until("it is gone", |broker| alone(broker).is_none()).await;
    cluster.delete(Watched::Nodes, "", "n2");
    broker
        .until("a node is gone", |broker| {
            broker.entry("nodes", "n2").is_none() && broker.entry("capacity", "node/n2").is_none()
        })
        .await;
    assert!(!format!("{:?}", broker.views).contains(SECRET));
}

#[tokio::test(start_paused = true)]
async fn changes_that_come_together_are_told_together_and_none_is_told_for_nothing() {
    let mut field = Field::settled(small_cluster(), all()).await;
    let before = field.broker.messages;
    for number in 0..50 {
        field.cluster.apply(Watched::Events, event("shop", "web.1", 20 + number));
    }
    // A heartbeat.
    let mut beating = node("n1", true, "v1.34.1");
    beating["status"]["conditions"][1]["lastHeartbeatTime"] = json!("2026-11-22T02:00:00Z");
    field.cluster.apply(Watched::Nodes, beating);
    field.cluster.apply(Watched::Pods, pod("shop", "web-1", "web", "n1", running()));
    field.broker.settle(QUIET).await;
    assert_eq!(field.broker.messages, before + 1);
    assert_eq!(field.broker.entry("events", "shop/web.1").unwrap()["last"], "2026-11-22T00:01:09Z");
    // Nothing new: nothing is said.
    for watched in [Watched::Nodes, Watched::Pods, Watched::Deployments, Watched::Events] {
        field.cluster.list_anew(watched, None);
    }
    field.broker.settle(Duration::from_secs(3600)).await;
    assert_eq!(field.broker.messages, before + 1);
}

#[tokio::test(start_paused = true)]
async fn what_was_missed_is_right_again_after_another_list() {
    let mut field = Field::settled(small_cluster(), all()).await;
    // The API server is away for a while, and another one when it is back.
    field.cluster.lose(Watched::Nodes, "", "n1");
    field.cluster.store(Watched::Nodes, node("n2", false, "v1.35.0"));
    field.cluster.lose(Watched::Pods, "shop", "web-1");
    field.cluster.store(Watched::Pods, pod("shop", "web-2", "web", "n2", crash_looping()));
    field.cluster.lose(Watched::Events, "shop", "web.1");
    field.cluster.upgrade_to("v1.35.0");
    for watched in [Watched::Nodes, Watched::Pods, Watched::Deployments, Watched::Events] {
        field.cluster.list_anew(watched, Some(1));
    }
    field.broker.settle(QUIET).await;
    let broker = &field.broker;
    assert_eq!(broker.view("nodes").keys().collect::<Vec<_>>(), ["n2"]);
    assert_eq!(broker.entry("nodes", "n2").unwrap()["ready"], false);
    assert_eq!(broker.entry("workloads", "shop/Deployment/web").unwrap()["troubled"], 1);
    assert!(broker.view("events").is_empty());
    assert_eq!(broker.entry("versions", "kubernetes").unwrap()["version"], "v1.35.0");
    let cluster = broker.entry("capacity", "cluster").unwrap();
    assert_eq!(json!([cluster["cpu"]["requested"], cluster["cpu"]["free"]]), json!([250, 0]));
}

#[tokio::test(start_paused = true)]
async fn another_broker_learns_everything_and_one_that_is_away_finds_it_as_it_is() {
    let mut field = Field::settled(small_cluster(), all()).await;
    let followed = field.cluster.followed();
    field.broker.disconnect();
    for number in 0..100 {
        field.cluster.apply(Watched::Nodes, node(&format!("m{number}"), true, "v1.34.1"));
    }
    field.cluster.delete(Watched::Nodes, "", "n1");
    tokio::time::sleep(Duration::from_secs(300)).await;
    field.broker.connect();
    field.broker.settle(QUIET).await;
    assert_eq!(field.broker.view("nodes").len(), 100);
    assert_eq!(field.broker.views.len(), 5);
    assert_eq!(field.cluster.followed(), followed, "nothing is listed again for it");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_followed_without_a_broker_that_wants_views() {
    let field = Field::new(small_cluster(), all());
    tokio::time::sleep(QUIET).await;
    assert_eq!(field.cluster.followed(), 0);
    field.broker.line.send_replace(Line::Unwanted);
    tokio::time::sleep(QUIET).await;
    assert_eq!(field.cluster.followed(), 0);

    let mut field = Field::settled(small_cluster(), all()).await;
    assert_eq!(field.cluster.watches(), 6);
    field.broker.line.send_replace(Line::Unwanted);
    tokio::time::sleep(QUIET).await;
    assert_eq!(field.cluster.watches(), 0);
    field.broker.connect();
    field.broker.settle(QUIET).await;
    assert_eq!((field.broker.views.len(), field.cluster.watches()), (5, 6));
}

#[tokio::test(start_paused = true)]
async fn a_configuration_changes_what_is_followed_and_told() {
    let nodes = ViewsCf { nodes: true, ..ViewsCf::default() };
    let mut field = Field::settled(small_cluster(), nodes).await;
    assert_eq!(field.broker.views.keys().collect::<Vec<_>>(), ["nodes"]);
    assert_eq!(field.cluster.watches(), 1);

    let workloads = ViewsCf { workloads: true, namespaces: vec!["other".to_owned()], ..ViewsCf::default() };
    field.cluster.apply(Watched::Deployments, deployment("other", "db", 1, 1));
    field.plan.send_replace(plan(workloads));
    field.broker.settle(QUIET).await;
    assert_eq!(field.broker.views.keys().collect::<Vec<_>>(), ["workloads"]);
    assert_eq!(field.broker.view("workloads").keys().collect::<Vec<_>>(), ["other/Deployment/db"]);
    assert_eq!(field.cluster.watches(), 4);

    field.plan.send_replace(Plan::default());
    field.broker.settle(QUIET).await;
    assert!(field.broker.views.is_empty());
    assert_eq!((field.broker.ended.len(), field.cluster.watches()), (5, 0));
    (&mut field.keeper).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn keeping_ends_without_a_broker_when_nothing_is_configured_any_more() {
    let mut field = Field::new(small_cluster(), all());
    tokio::time::sleep(QUIET).await;
    field.plan.send_replace(Plan::default());
    (&mut field.keeper).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_view_comes_once_everything_it_needs_is_known() {
    let cluster = small_cluster();
    let mut field = Field::new(cluster, ViewsCf { versions: true, nodes: true, ..ViewsCf::default() });
    field.broker.connect();
    field.broker.until("nodes are listed", |broker| broker.views.contains_key("nodes")).await;
    field.broker.settle(QUIET).await;
    let versions = field.broker.view("versions");
    let keys: Vec<_> = versions.keys().map(String::as_str).collect();
    let runtime = "runtime/containerd://2.1.4";
    assert_eq!(keys, ["agentk", "kernel/6.8.0", "kubelet/v1.34.1", "kubernetes", "os/Ubuntu", runtime]);
    assert_eq!(versions[runtime], json!({"part": "runtime", "version": "containerd://2.1.4", "nodes": 1}));
}
