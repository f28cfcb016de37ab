//! What views keep of a Deployment, StatefulSet or DaemonSet: how many Pods it wants and how far it has come.

use super::{condition, count, text};
use crate::views::plan::Watched;
use serde_json::Value;

/// A workload's own word on its Pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Workload {
    pub(crate) paused: bool,
    pub(crate) wanted: u64,
    pub(crate) updated: u64,
    pub(crate) ready: u64,
    pub(crate) available: u64,
    /// Why it gave up, if it did.
    pub(crate) stalled: Option<Box<str>>,
    /// Whether its controller has seen what is wanted now, and every Pod that should be is of the newest version.
    rolled_out: bool,
}

impl Workload {
    pub(crate) fn of(watched: Watched, object: &Value) -> Self {
        let (spec, status) = (&object["spec"], &object["status"]);
        let seen = count(&status["observedGeneration"]) >= count(&object["metadata"]["generation"]);
        let stalled = condition(object, "Progressing")
            .filter(|progressing| progressing["status"] == "False")
            .map(|progressing| text(&progressing["reason"], super::WORD));
        let daemons = watched == Watched::DaemonSets;
        let names = match daemons {
            true => ["updatedNumberScheduled", "numberReady", "numberAvailable"],
            false => ["updatedReplicas", "readyReplicas", "availableReplicas"],
        };
        let [updated, ready, available] = names.map(|name| count(&status[name]));
        let wanted = match daemons {
            true => count(&status["desiredNumberScheduled"]),
            false => spec["replicas"].as_u64().unwrap_or(1),
        };
        // Pods that are to stay as they are until somebody deletes them, or below the partition.
        let old = match spec["updateStrategy"]["type"].as_str() {
            Some("OnDelete") => wanted,
            _ => count(&spec["updateStrategy"]["rollingUpdate"]["partition"]),
        };
        Self {
            paused: spec["paused"] == true,
            wanted,
            updated,
            ready,
            available,
            stalled,
            rolled_out: seen && updated.saturating_add(old) >= wanted,
        }
    }

    /// Whether all that is wanted is there.
    pub(crate) fn is_ready(&self) -> bool {
        self.rolled_out && self.ready >= self.wanted && self.available >= self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_workload_is_ready_when_all_its_pods_are_new_and_available() {
        let deployment = |generation: u64, counts: [u64; 3]| {
            let [updated, ready, available] = counts;
            json!({
                "metadata": {"generation": generation},
                "spec": {"replicas": 2},
                "status": {"observedGeneration": 3, "updatedReplicas": updated, "readyReplicas": ready,
                           "availableReplicas": available},
            })
        };
        let table = [
            (Watched::Deployments, deployment(3, [2, 2, 2]), true),
            (Watched::Deployments, deployment(4, [2, 2, 2]), false),
            (Watched::Deployments, deployment(3, [1, 2, 2]), false),
            (Watched::Deployments, deployment(3, [2, 1, 2]), false),
            (Watched::Deployments, deployment(3, [2, 2, 1]), false),
            // One replica is wanted unless another number is.
            (Watched::Deployments, json!({}), false),
            (Watched::Deployments, json!({"spec": {"replicas": 0}}), true),
            (
                Watched::StatefulSets,
                json!({"spec": {"updateStrategy": {"type": "OnDelete"}},
                       "status": {"readyReplicas": 1, "availableReplicas": 1}}),
                true,
            ),
            (
                Watched::StatefulSets,
                json!({"spec": {"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}},
                       "status": {"updatedReplicas": 1, "readyReplicas": 3, "availableReplicas": 3}}),
                true,
            ),
            (
                Watched::DaemonSets,
                json!({"status": {"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberReady": 3,
                                  "numberAvailable": 2}}),
                false,
            ),
            (Watched::DaemonSets, json!({}), true),
        ];
        for (watched, object, ready) in table {
            assert_eq!(Workload::of(watched, &object).is_ready(), ready, "{object}");
        }
    }
}
