//! What an object that came or went changes: what is kept of it, the sums and indices that follow, and the keys of the
//! entries to look at again.

use super::{EVENTS, State};
use crate::views::{
    facts::{self, Event, Node, Trouble, Use, Workload},
    kept::Put,
    plan::{View, Watched},
    quantity::Amount,
};
use serde_json::Value;

impl State {
    pub(super) fn put(&mut self, slot: usize, object: &Value) {
        let Some((namespace, name)) = facts::names(object) else {
            return;
        };
        let watched = self.slots[slot].watched;
        match watched {
            Watched::Nodes => self.put_node(slot, name, Node::of(object)),
            Watched::Pods => {
                let key = format!("{namespace}/{name}");
                if self.plan.has(View::Capacity) {
                    match Use::of(object) {
                        Some(takes) => self.put_use(slot, &key, takes),
                        None => self.remove_use(slot, &key),
                    }
                }
                if self.plan.has(View::Workloads) {
                    match Trouble::of(object).filter(|_| self.plan.shows(namespace)) {
                        Some(trouble) => self.put_trouble(slot, &key, trouble),
                        None => self.remove_trouble(slot, &key),
                    }
                }
            }
            Watched::Deployments | Watched::StatefulSets | Watched::DaemonSets => {
                if !self.plan.shows(namespace) {
                    return;
                }
                let key = workload_key(watched, namespace, name);
                match self.workloads.put(&key, Workload::of(watched, object), self.origin(slot)) {
                    Put::Full => self.lack(slot, View::Workloads),
                    Put::Same => {}
                    Put::New | Put::Instead(_) => self.touch(View::Workloads, &key),
                }
            }
            Watched::Events => {
                let key = format!("{namespace}/{name}");
                match Event::of(object).filter(|_| self.plan.shows(namespace)) {
                    Some(event) => self.put_event(slot, &key, event),
                    None => self.remove_event(slot, &key),
                }
            }
        }
    }

    pub(super) fn remove(&mut self, slot: usize, object: &Value) {
        let Some((namespace, name)) = facts::names(object) else {
            return;
        };
        let key = format!("{namespace}/{name}");
        match self.slots[slot].watched {
            Watched::Nodes => {
                if let Some(node) = self.nodes.remove(name, slot) {
                    self.node_gone(name, &node);
                }
            }
            Watched::Pods => {
                self.remove_use(slot, &key);
                self.remove_trouble(slot, &key);
            }
            Watched::Events => self.remove_event(slot, &key),
            watched => {
                let key = workload_key(watched, namespace, name);
                if self.workloads.remove(&key, slot).is_some() {
                    self.touch(View::Workloads, &key);
                }
            }
        }
    }

    /// The watch's list is over: what it did not bring again has gone.
    pub(super) fn sweep(&mut self, slot: usize) {
        let origin = self.origin(slot);
        match self.slots[slot].watched {
            Watched::Nodes => {
                for (name, node) in self.nodes.sweep(origin) {
                    self.node_gone(&name, &node);
                }
            }
            Watched::Pods => {
                for (_, takes) in self.uses.sweep(origin) {
                    self.use_gone(&takes);
                }
                for (pod, trouble) in self.troubles.sweep(origin) {
                    self.trouble_gone(pod, trouble);
                }
            }
            Watched::Events => {
                for (key, event) in self.events.sweep(origin) {
                    self.event_gone(key, &event);
                }
            }
            _ => {
                for (key, _) in self.workloads.sweep(origin) {
                    self.touch(View::Workloads, &key);
                }
            }
        }
    }

    fn put_node(&mut self, slot: usize, name: &str, node: Node) {
        let parts: Vec<String> = node.versions().map(part_key).collect();
        match self.nodes.put(name, node, self.origin(slot)) {
            Put::Full => {
                for view in [View::Nodes, View::Versions, View::Capacity] {
                    if self.plan.has(view) {
                        self.lack(slot, view);
                    }
                }
                return;
            }
            Put::Same => return,
            Put::New => {}
            Put::Instead(before) => self.node_gone(name, &before),
        }
        for part in parts {
            self.touch(View::Versions, &part);
            *self.parts.entry(part.into()).or_default() += 1;
        }
        self.touch_node(name);
    }

    fn node_gone(&mut self, name: &str, node: &Node) {
        for part in node.versions().map(part_key) {
            if let Some(nodes) = self.parts.get_mut(&*part) {
                *nodes -= 1;
                if *nodes == 0 {
                    self.parts.remove(&*part);
                }
            }
            self.touch(View::Versions, &part);
        }
        self.touch_node(name);
    }

    fn touch_node(&mut self, name: &str) {
        self.touch(View::Nodes, name);
        self.touch(View::Capacity, &format!("node/{name}"));
        self.touch(View::Capacity, "cluster");
    }

    fn put_use(&mut self, slot: usize, pod: &str, takes: Use) {
        let node = takes.node.clone();
        let amount = takes.amount;
        match self.uses.put(pod, takes, self.origin(slot)) {
            Put::Full => return self.lack(slot, View::Capacity),
            Put::Same => return,
            Put::New => {}
            Put::Instead(before) => self.use_gone(&before),
        }
        self.touch_use(&node);
        let used = self.used.entry(node).or_default();
        *used = used.plus(amount);
    }

    fn remove_use(&mut self, slot: usize, pod: &str) {
        if let Some(takes) = self.uses.remove(pod, slot) {
            self.use_gone(&takes);
        }
    }

    fn use_gone(&mut self, takes: &Use) {
        if let Some(used) = self.used.get_mut(&takes.node) {
            *used = used.minus(takes.amount);
            if *used == Amount::default() {
                self.used.remove(&takes.node);
            }
        }
        self.touch_use(&takes.node);
    }

    fn touch_use(&mut self, node: &str) {
        if !node.is_empty() {
            self.touch(View::Capacity, &format!("node/{node}"));
        }
        self.touch(View::Capacity, "cluster");
    }

    fn put_trouble(&mut self, slot: usize, pod: &str, trouble: Trouble) {
        let workload = trouble.workload.clone();
        match self.troubles.put(pod, trouble, self.origin(slot)) {
            Put::Full => return self.lack(slot, View::Workloads),
            Put::Same => return,
            Put::New => {}
            Put::Instead(before) => self.trouble_gone(pod.into(), before),
        }
        self.touch(View::Workloads, &workload);
        self.troubled.insert((workload, pod.into()));
    }

    fn remove_trouble(&mut self, slot: usize, pod: &str) {
        if let Some(trouble) = self.troubles.remove(pod, slot) {
            self.trouble_gone(pod.into(), trouble);
        }
    }

    fn trouble_gone(&mut self, pod: Box<str>, trouble: Trouble) {
        self.touch(View::Workloads, &trouble.workload);
        self.troubled.remove(&(trouble.workload, pod));
    }

    fn put_event(&mut self, slot: usize, key: &str, event: Event) {
        let moment: Box<str> = event.moment().into();
        if self.events.len() >= EVENTS && self.events.get(key).is_none() {
            // The oldest gives way.
            let oldest =
                self.newest.first().filter(|(oldest, _)| *oldest < moment).map(|(_, key)| key.clone());
            let Some(oldest) = oldest else {
                return self.lack(slot, View::Events);
            };
            if let Some((event, origin)) = self.events.take(&oldest) {
                self.event_gone(oldest, &event);
                self.lack(origin.slot, View::Events);
            }
        }
        match self.events.put(key, event, self.origin(slot)) {
            Put::Full | Put::Same => return,
            Put::New => {}
            Put::Instead(before) => self.event_gone(key.into(), &before),
        }
        self.newest.insert((moment, key.into()));
        self.touch(View::Events, key);
    }

    fn remove_event(&mut self, slot: usize, key: &str) {
        if let Some(event) = self.events.remove(key, slot) {
            self.event_gone(key.into(), &event);
        }
    }

    fn event_gone(&mut self, key: Box<str>, event: &Event) {
        self.touch(View::Events, &key);
        self.newest.remove(&(event.moment().into(), key));
    }
}

fn workload_key(watched: Watched, namespace: &str, name: &str) -> String {
    format!("{namespace}/{}/{name}", watched.kind().2)
}

fn part_key((part, version): (&str, &str)) -> String {
    format!("{part}/{version}")
}
