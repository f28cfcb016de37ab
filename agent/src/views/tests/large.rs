//! Clusters larger than views.

use super::{
    Field, QUIET, all,
    cluster::FakeCluster,
    objects::{event, node, pod, running},
    plan,
};
use crate::views::{
    plan::{View, Watched},
    source::Change,
    state::State,
};
use postern_wire::proto::gitlab::agent::agentcfg::ViewsCf;
use serde_json::json;
use std::sync::Arc;

#[tokio::test(start_paused = true)]
async fn more_nodes_than_the_view_holds_are_left_out_until_there_is_room() {
    let cluster = FakeCluster::default();
    for number in 0..5_400 {
        cluster.apply(Watched::Nodes, node(&format!("n{number}"), true, "v1.34.1"));
    }
    let mut field = Field::settled(cluster, ViewsCf { nodes: true, ..ViewsCf::default() }).await;
    assert_eq!(field.broker.view("nodes").len(), 5_000);
    assert!(field.broker.truncated.contains("nodes"));
    assert!(field.broker.messages > 5, "it comes in parts");
    for number in 0..1_000 {
        field.cluster.delete(Watched::Nodes, "", &format!("n{number}"));
    }
    field.broker.settle(QUIET).await;
    assert_eq!(field.broker.view("nodes").len(), 4_400);
    assert!(!field.broker.truncated.contains("nodes"));
    assert_eq!(field.cluster.watches(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_newest_events_are_shown_and_older_ones_when_those_go() {
    let cluster = FakeCluster::default();
    for number in 0..300 {
        cluster.apply(Watched::Events, event("shop", &format!("e{number}"), number));
    }
    let mut field = Field::settled(cluster, ViewsCf { events: true, ..ViewsCf::default() }).await;
    let shown = |field: &Field| field.broker.view("events").len();
    assert_eq!(shown(&field), 200);
    assert!(field.broker.truncated.contains("events"));
    assert!(field.broker.entry("events", "shop/e99").is_none());
    for number in 200..300 {
        field.cluster.delete(Watched::Events, "shop", &format!("e{number}"));
    }
    field.broker.settle(QUIET).await;
    assert_eq!(shown(&field), 200);
    assert!(!field.broker.truncated.contains("events"));
    assert!(field.broker.entry("events", "shop/e0").is_some());
    // More than are remembered, and then fewer than are shown.
    for number in 0..3_000 {
        field.cluster.apply(Watched::Events, event("shop", &format!("e{number}"), number));
    }
    for number in 100..3_000 {
        field.cluster.delete(Watched::Events, "shop", &format!("e{number}"));
    }
    field.broker.settle(QUIET).await;
    assert_eq!(shown(&field), 100);
    assert!(!field.broker.truncated.contains("events"));
}

#[test]
fn memory_is_bounded_whatever_the_cluster_holds() {
    let plan = plan(all());
    let mut state = State::new(&plan);
    let number = |watched| plan.follows().iter().position(|follows| follows.0 == watched).unwrap();
    let pods = number(Watched::Pods);
    state.take(pods, &Change::Begun);
    for number in 0..50_100 {
        let pod = pod("shop", &format!("p{number}"), "", "n1", running());
        state.take(pods, &Change::Found(Arc::new(pod)));
    }
    state.take(pods, &Change::Listed);
    assert!(state.lacks(View::Capacity));
    assert!(!state.lacks(View::Workloads), "none of them is in trouble");
    assert_eq!(state.again(), None);
    let nodes = number(Watched::Nodes);
    state.take(nodes, &Change::Applied(Arc::new(node("n1", true, "v1"))));
    assert_eq!(state.entry(View::Capacity, "node/n1").unwrap()["pods"]["requested"], 50_000);
    for number in 0..5_001 {
        let pod = json!({"metadata": {"namespace": "shop", "name": format!("p{number}")}});
        state.take(pods, &Change::Deleted(Arc::new(pod)));
    }
    assert_eq!(state.again(), Some(pods), "there is room again for what was left out");
    state.begins_again(pods);
    assert_eq!(state.again(), None);
}

#[tokio::test(start_paused = true)]
async fn an_entry_is_bounded_whatever_is_in_the_object() {
    let long = "\u{1}".repeat(100_000);
    let cluster = FakeCluster::default();
    let mut odd = node("n1", false, &long);
    odd["status"]["conditions"] = (0..100)
        .map(|_| json!({"type": long, "status": "True"}))
        .chain([json!({"type": "Ready", "status": "False", "reason": long, "message": long})])
        .collect();
    cluster.apply(Watched::Nodes, odd);
    let mut warning = event("shop", "e", 1);
    warning["message"] = json!(long);
    cluster.apply(Watched::Events, warning);
    // The model of the broker looks at the size of everything.
    let field = Field::settled(cluster, all()).await;
    assert!(field.broker.entry("nodes", "n1").is_some());
    assert!(field.broker.entry("events", "shop/e").is_some());
    assert_eq!(field.broker.views.len(), 5);
    assert!(field.broker.truncated.is_empty());
}
