//! Whatever happens in whatever order, what the broker has in the end is what there is.

use super::{
    Field, QUIET,
    broker::Entries,
    cluster::FakeCluster,
    objects::{SECRET, crash_looping, deployment, event, node, pod, running},
    plan,
};
use crate::views::{plan::Watched, source::Change, state::State};
use postern_wire::proto::gitlab::agent::agentcfg::ViewsCf;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

const KINDS: [Watched; 6] = [
    Watched::Nodes,
    Watched::Pods,
    Watched::Deployments,
    Watched::StatefulSets,
    Watched::DaemonSets,
    Watched::Events,
];
const NAMESPACES: [&str; 3] = ["a", "b", "c"];

fn views(random: &mut StdRng) -> ViewsCf {
    let mut flip = || random.random_bool(0.7);
    let [nodes, workloads, events, versions, capacity] = [(); 5].map(|()| flip());
    let namespaces = NAMESPACES.into_iter().filter(|_| random.random_bool(0.3)).map(str::to_owned).collect();
    ViewsCf { nodes, workloads, events, versions, capacity, namespaces }
}

/// Few names, so that most of what happens happens to something that is there.
fn name(random: &mut StdRng) -> String {
    format!("o{}", random.random_range(0..4))
}

fn namespace(random: &mut StdRng, watched: Watched) -> &'static str {
    if watched == Watched::Nodes { "" } else { NAMESPACES.choose(random).copied().unwrap() }
}

fn object(random: &mut StdRng, watched: Watched) -> Value {
    let (of, name) = (namespace(random, watched), name(random));
    let small = random.random_range(0..3);
    match watched {
        Watched::Nodes => {
            let mut node = node(&name, random.random_bool(0.7), &format!("v1.{small}"));
            node["spec"]["unschedulable"] = json!(random.random_bool(0.2));
            node["status"]["allocatable"]["cpu"] = json!(small);
            node
        }
        Watched::Pods => {
            let state = match small {
                0 => crash_looping(),
                1 => json!({"terminated": {"exitCode": random.random_range(0..2)}}),
                _ => running(),
            };
            let workload = if random.random_bool(0.7) {
                format!("o{}", random.random_range(0..5))
            } else {
                String::new()
            };
            let on = if random.random_bool(0.8) {
                format!("o{}", random.random_range(0..5))
            } else {
                String::new()
            };
            let mut pod = pod(of, &name, &workload, &on, state);
            if random.random_bool(0.2) {
                pod["status"]["phase"] = json!("Succeeded");
            }
            pod["spec"]["containers"][0]["resources"]["requests"]["cpu"] = json!(format!("{small}00m"));
            pod
        }
        Watched::Events => {
            let mut event = event(of, &name, random.random_range(0..5));
            if random.random_bool(0.2) {
                event["type"] = json!("Normal");
            }
            event
        }
        _ => deployment(of, &name, small, random.random_range(0..3)),
    }
}

async fn something_happens(random: &mut StdRng, field: &mut Field) {
    let watched = *KINDS.choose(random).unwrap();
    let (of, called) = (namespace(random, watched), name(random));
    match random.random_range(0..20) {
        0..7 => field.cluster.apply(watched, object(random, watched)),
        7..10 => field.cluster.delete(watched, of, &called),
        // A watch is away for a while.
        10 | 11 => {
            for _ in 0..random.random_range(0..6) {
                field.cluster.store(watched, object(random, watched));
                field.cluster.lose(watched, namespace(random, watched), &name(random));
            }
            let breaks = random.random_bool(0.5).then(|| random.random_range(0..4));
            field.cluster.list_anew(watched, breaks);
        }
        // So is the API server.
        12 => {
            field.cluster.upgrade_to(&format!("v1.{}", random.random_range(0..9)));
            for watched in KINDS {
                field.cluster.store(watched, object(random, watched));
                field.cluster.lose(watched, namespace(random, watched), &name(random));
                field.cluster.list_anew(watched, None);
            }
        }
        13..16 => tokio::time::sleep(Duration::from_millis(random.random_range(0..200))).await,
        16 | 17 => field.broker.settle(Duration::from_millis(random.random_range(0..200))).await,
        18 => match random.random_range(0..4) {
            0 => field.broker.disconnect(),
            _ => field.broker.connect(),
        },
        _ => {
            field.plan.send_replace(plan(ViewsCf { nodes: true, ..views(random) }));
        }
    }
}

/// What the views of a cluster are, computed at once.
fn from_scratch(cluster: &FakeCluster, field: &Field) -> BTreeMap<String, Entries> {
    let plan = field.plan.borrow().clone();
    let mut state = State::new(&plan);
    for (number, (watched, namespace)) in plan.follows().into_iter().enumerate() {
        let list: Vec<Change> = cluster.list(watched, namespace.as_deref());
        list.iter().for_each(|change| state.take(number, change));
    }
    state.take_version(cluster.server_version());
    let entries = |view| {
        let entry = |key: Box<str>| Some((key.to_string(), state.entry(view, &key)?));
        (view.name().to_owned(), state.keys(view).into_iter().filter_map(entry).collect())
    };
    plan.views().map(entries).collect()
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_the_broker_ends_with_what_there_is() {
    let given = std::env::var("POSTERN_SEED").ok().and_then(|seed| seed.parse().ok());
    let (first, runs) = given.map_or_else(|| (rand::random(), 100), |seed: u64| (seed, 1));
    for run in 0..runs {
        let seed = first.wrapping_add(run);
        println!("POSTERN_SEED={seed}");
        let random = &mut StdRng::seed_from_u64(seed);
        let mut field = Field::new(FakeCluster::default(), ViewsCf { nodes: true, ..views(random) });
        field.broker.connect();
        for _ in 0..random.random_range(10..120) {
            something_happens(random, &mut field).await;
        }
        if random.random_bool(0.2) || matches!(*field.broker.line.borrow(), super::Line::Closed) {
            field.broker.connect();
        }
        field.broker.settle(QUIET).await;
        let wanted = from_scratch(&field.cluster, &field);
        assert_eq!(field.broker.views, wanted, "POSTERN_SEED={seed}");
        assert!(!format!("{:?}", field.broker.views).contains(SECRET), "POSTERN_SEED={seed}");
    }
}
