//! The entries of each view, one at a time, computed from what is kept.

use super::{SHOWN_EVENTS, State};
use crate::{
    VERSION,
    views::{facts::Trouble, plan::View, quantity::Amount},
};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Pods of a workload that are named.
const PODS: usize = 8;

impl State {
    /// Of all entries the view has, in order.
    pub(crate) fn keys(&self, view: View) -> BTreeSet<Box<str>> {
        match view {
            View::Nodes => self.nodes.iter().map(|(name, _)| name.into()).collect(),
            View::Workloads => {
                let known = self.workloads.iter().map(|(key, _)| key.into());
                known.chain(self.troubled.iter().map(|(workload, _)| workload.clone())).collect()
            }
            View::Events => self.newest.iter().rev().take(SHOWN_EVENTS).map(|(_, key)| key.clone()).collect(),
            View::Versions => {
                let programs = ["agentk", "kubernetes"].map(Box::from);
                self.parts.keys().cloned().chain(programs).collect()
            }
            View::Capacity => {
                let nodes = self.nodes.iter().map(|(name, _)| format!("node/{name}").into_boxed_str());
                nodes.chain([Box::from("cluster")]).collect()
            }
        }
    }

    /// `None` if the view has no such entry.
    pub(crate) fn entry(&self, view: View, key: &str) -> Option<Value> {
        match view {
            View::Nodes => self.nodes.get(key).map(|node| node.entry(key)),
            View::Workloads => self.workload(key),
            View::Events => {
                let event = self.events.get(key)?;
                let last = self.newest.iter().rev().nth(SHOWN_EVENTS - 1);
                let shown = last.is_none_or(|(moment, last)| (event.moment(), key) >= (&**moment, &**last));
                shown.then(|| event.entry())
            }
            View::Versions => self.version_entry(key),
            View::Capacity if key == "cluster" => Some(self.cluster()),
            View::Capacity => {
                let name = key.strip_prefix("node/")?;
                let node = self.nodes.get(name)?;
                let used = self.used.get(name).copied().unwrap_or_default();
                let free = node.allocatable.minus(used);
                let mut entry = amounts(node.allocatable, used, free);
                entry["node"] = json!(name);
                entry["schedulable"] = json!(node.schedulable());
                Some(entry)
            }
        }
    }

    fn workload(&self, key: &str) -> Option<Value> {
        let known = self.workloads.get(key);
        let mut pods = Vec::new();
        let mut troubled = 0;
        let mut reason = None;
        for (pod, trouble) in self.troubles_of(key) {
            troubled += 1;
            reason.get_or_insert(&trouble.reason);
            if pods.len() < PODS {
                pods.push(trouble.entry(pod.split_once('/').map_or(pod, |(_, name)| name)));
            }
        }
        if known.is_none() && troubled == 0 {
            return None;
        }
        let reason = known.and_then(|known| known.stalled.as_ref()).or(reason);
        let state = match known {
            _ if reason.is_some() => "degraded",
            Some(known) if known.is_ready() => "ready",
            _ => "progressing",
        };
        let mut parts = key.splitn(3, '/');
        let [namespace, kind, name] = [(); 3].map(|()| parts.next().unwrap_or_default());
        Some(json!({
            "namespace": namespace,
            "kind": kind,
            "name": name,
            "state": state,
            "reason": reason.map_or("", |reason| &**reason),
            "paused": known.is_some_and(|known| known.paused),
            "wanted": known.map(|known| known.wanted),
            "updated": known.map(|known| known.updated),
            "ready": known.map(|known| known.ready),
            "available": known.map(|known| known.available),
            "troubled": troubled,
            "pods": pods,
        }))
    }

    fn troubles_of<'a>(&'a self, workload: &'a str) -> impl Iterator<Item = (&'a str, &'a Trouble)> {
        let from: (Box<str>, Box<str>) = (workload.into(), "".into());
        let pods = self.troubled.range(from..).take_while(move |(of, _)| **of == *workload);
        pods.filter_map(move |(_, pod)| Some((&**pod, self.troubles.get(pod)?)))
    }

    fn version_entry(&self, key: &str) -> Option<Value> {
        let (part, version, nodes) = match key {
            "agentk" => ("agentk", VERSION, None),
            "kubernetes" => ("kubernetes", &**self.version.as_ref()?.as_ref()?, None),
            key => {
                let nodes = self.parts.get(key)?;
                let (part, version) = key.split_once('/')?;
                (part, version, Some(nodes))
            }
        };
        Some(json!({"part": part, "version": version, "nodes": nodes}))
    }

    fn cluster(&self) -> Value {
        let mut all = [Amount::default(); 3];
        let mut schedulable = 0;
        for (name, node) in self.nodes.iter() {
            let used = self.used.get(name).copied().unwrap_or_default();
            let free = match node.schedulable() {
                true => node.allocatable.minus(used),
                false => Amount::default(),
            };
            schedulable += u64::from(node.schedulable());
            let [allocatable, requested, left] = all;
            all = [allocatable.plus(node.allocatable), requested.plus(used), left.plus(free)];
        }
        let [allocatable, requested, free] = all;
        let mut entry = amounts(allocatable, requested, free);
        entry["node"] = Value::Null;
        entry["nodes"] = json!(self.nodes.len());
        entry["schedulable_nodes"] = json!(schedulable);
        entry["pending_pods"] = json!(self.used.get("").map_or(0, |pending| pending.pods));
        entry
    }
}

fn amounts(allocatable: Amount, requested: Amount, free: Amount) -> Value {
    let of = |part: fn(Amount) -> u64| json!({"allocatable": part(allocatable), "requested": part(requested), "free": part(free)});
    json!({"cpu": of(|all| all.cpu), "memory": of(|all| all.memory), "pods": of(|all| all.pods)})
}
