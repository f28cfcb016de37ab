//! What views keep of a Pod: what it asks of its node, and what is wrong with it, if anything is. Most Pods are fine,
//! and nothing is kept of them but their requests.

use super::{NAME, WORD, condition, count, is_name, list, names, text};
use crate::views::quantity::Amount;
use serde_json::{Value, json};

/// What a container may wait for while all is well.
const BEING_MADE: [&str; 3] = ["", "ContainerCreating", "PodInitializing"];

/// Nobody has so much; the sum over all Pods that are counted is still exact.
const ABSURD: u64 = 1 << 47;

/// What a Pod takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Use {
    /// Empty while it has none.
    pub(crate) node: Box<str>,
    pub(crate) amount: Amount,
}

/// What is wrong with a Pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// `namespace/kind/name` of what it belongs to, itself if it belongs to nothing.
    pub(crate) workload: Box<str>,
    pub(crate) reason: Box<str>,
    container: Box<str>,
    restarts: u64,
    exit_code: Option<i64>,
    last_reason: Box<str>,
}

impl Use {
    /// `None` if the Pod has finished.
    pub(crate) fn of(pod: &Value) -> Option<Self> {
        if matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed")) {
            return None;
        }
        let Amount { cpu, memory, pods } = requests(&pod["spec"]);
        let amount = Amount { cpu: cpu.min(ABSURD), memory: memory.min(ABSURD), pods };
        Some(Self { node: text(&pod["spec"]["nodeName"], NAME), amount })
    }
}

/// As the scheduler counts: containers and sidecars run together, other init containers before them, one after the
/// other, beside the sidecars that have been started by then.
fn requests(spec: &Value) -> Amount {
    let of = |container: &Value| Amount::of(&container["resources"]["requests"]);
    let mut sidecars = Amount::default();
    let mut initial = Amount::default();
    for container in list(&spec["initContainers"]) {
        let here = sidecars.plus(of(container));
        if container["restartPolicy"] == "Always" {
            sidecars = here;
        }
        initial = initial.or_more(here);
    }
    let together = list(&spec["containers"]).map(of).fold(sidecars, Amount::plus);
    let mut all = together.or_more(initial);
    // What is said of the whole Pod holds instead.
    let pod = &spec["resources"]["requests"];
    let whole = Amount::of(pod);
    if !pod["cpu"].is_null() {
        all.cpu = whole.cpu;
    }
    if !pod["memory"].is_null() {
        all.memory = whole.memory;
    }
    let all = all.plus(Amount::of(&spec["overhead"]));
    Amount { pods: 1, ..all }
}

impl Trouble {
    /// `None` if nothing is wrong, or it is about to go anyway.
    pub(crate) fn of(pod: &Value) -> Option<Self> {
        let status = &pod["status"];
        let finished = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
        if finished || !pod["metadata"]["deletionTimestamp"].is_null() {
            return None;
        }
        let (namespace, name) = names(pod)?;
        let (kind, owner) = owner(pod).unwrap_or(("Pod", name));
        let trouble = |reason: Box<str>, container: &Value| {
            let ended = [&container["state"], &container["lastState"]].map(|state| &state["terminated"]);
            let ended = ended.into_iter().find(|ended| ended.is_object()).unwrap_or(&Value::Null);
            Self {
                workload: format!("{namespace}/{kind}/{owner}").into(),
                reason,
                container: text(&container["name"], WORD),
                restarts: count(&container["restartCount"]),
                exit_code: ended["exitCode"].as_i64(),
                last_reason: text(&ended["reason"], WORD),
            }
        };
        let containers = list(&status["initContainerStatuses"]).chain(list(&status["containerStatuses"]));
        let mut wrong = containers.filter_map(|container| Some((wrong(&container["state"])?, container)));
        if let Some((reason, container)) = wrong.next() {
            return Some(trouble(reason, container));
        }
        let scheduled = condition(pod, "PodScheduled")?;
        let nowhere = scheduled["status"] == "False" && scheduled["reason"] == "Unschedulable";
        nowhere.then(|| trouble("Unschedulable".into(), &Value::Null))
    }

    pub(crate) fn entry(&self, pod: &str) -> Value {
        json!({
            "name": pod,
            "container": self.container,
            "reason": self.reason,
            "restarts": self.restarts,
            "exit_code": self.exit_code,
            "last_reason": self.last_reason,
        })
    }
}

/// What is wrong with a container in this state.
fn wrong(state: &Value) -> Option<Box<str>> {
    let waiting = &state["waiting"]["reason"];
    if let Some(reason) = waiting.as_str().filter(|reason| !BEING_MADE.contains(reason)) {
        return Some(text(&json!(reason), WORD));
    }
    let ended = &state["terminated"];
    let failed = ended["exitCode"].as_i64().is_some_and(|code| code != 0);
    failed.then(|| text(&ended["reason"], WORD)).map(|reason| match &*reason {
        "" => "Error".into(),
        _ => reason,
    })
}

/// Kind and name of the Pod's controller; of a ReplicaSet's Deployment rather than of the ReplicaSet, whose name is the
/// Deployment's with the hash of the Pods' template.
fn owner(pod: &Value) -> Option<(&str, &str)> {
    let metadata = &pod["metadata"];
    let owner = list(&metadata["ownerReferences"]).find(|owner| owner["controller"] == true)?;
    let (kind, name) = (owner["kind"].as_str()?, owner["name"].as_str()?);
    if !is_name(name) || !is_name(kind) || kind.len() > WORD {
        return None;
    }
    let hash = metadata["labels"]["pod-template-hash"].as_str();
    let deployment =
        hash.filter(|_| kind == "ReplicaSet").and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'));
    match deployment {
        Some(deployment) if !deployment.is_empty() => Some(("Deployment", deployment)),
        _ => Some((kind, name)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_takes_what_the_scheduler_counts() {
        let asks = |cpu: &str| json!({"resources": {"requests": {"cpu": cpu, "memory": "1Ki"}}});
        let sidecar = |cpu: &str| json!({"restartPolicy": "Always", "resources": {"requests": {"cpu": cpu}}});
        let table = [
            (json!({}), 0, 0),
            (json!({"containers": [asks("100m"), asks("200m")]}), 300, 2048),
            (json!({"containers": [asks("100m")], "initContainers": [asks("1"), asks("2")]}), 2000, 1024),
            (
                json!({"containers": [asks("100m")], "initContainers": [sidecar("50m"), asks("10m")]}),
                150,
                1024,
            ),
            (
                json!({"containers": [asks("100m")], "initContainers": [sidecar("50m"), asks("1")]}),
                1050,
                1024,
            ),
            (
                json!({"containers": [asks("100m")], "initContainers": [asks("1"), sidecar("50m")]}),
                1000,
                1024,
            ),
            (json!({"containers": [asks("100m")], "overhead": {"cpu": "10m"}}), 110, 1024),
            (
                json!({"containers": [asks("100m")], "resources": {"requests": {"cpu": "1"}}, "overhead": {"cpu": "1m"}}),
                1001,
                1024,
            ),
        ];
        for (spec, cpu, memory) in table {
            assert_eq!(requests(&spec), Amount { cpu, memory, pods: 1 }, "{spec}");
        }
    }

    #[test]
    fn finished_pods_take_nothing() {
        for (phase, takes) in [("Running", true), ("Pending", true), ("Succeeded", false), ("Failed", false)]
        {
            let pod = json!({"spec": {"nodeName": "n"}, "status": {"phase": phase}});
            assert_eq!(Use::of(&pod).is_some(), takes, "{phase}");
        }
    }

    fn pod(owner: Value, status: Value) -> Value {
        json!({
            "metadata": {"name": "web-5d9c-x", "namespace": "shop", "labels": {"pod-template-hash": "5d9c"},
                         "ownerReferences": owner},
            "status": status,
        })
    }

    #[test]
    fn pods_in_trouble_are_told_from_those_that_start_or_end() {
        let one =
            |state: Value| json!({"containerStatuses": [{"name": "app", "restartCount": 3, "state": state}]});
        let waiting = |reason: &str| one(json!({"waiting": {"reason": reason}}));
        let table = [
            (waiting("CrashLoopBackOff"), Some("CrashLoopBackOff")),
            (waiting("ImagePullBackOff"), Some("ImagePullBackOff")),
            (waiting("ContainerCreating"), None),
            (waiting("PodInitializing"), None),
            (one(json!({"waiting": {}})), None),
            (one(json!({"running": {"startedAt": "2026-11-22T00:00:00Z"}})), None),
            (one(json!({"terminated": {"exitCode": 0, "reason": "Completed"}})), None),
            (one(json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}})), Some("OOMKilled")),
            (one(json!({"terminated": {"exitCode": 1}})), Some("Error")),
            (
                json!({"initContainerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}],
                       "containerStatuses": [{"state": {"waiting": {"reason": "PodInitializing"}}}]}),
                Some("CrashLoopBackOff"),
            ),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}),
                Some("Unschedulable"),
            ),
            (
                json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
                None,
            ),
            (json!({}), None),
        ];
        for (status, reason) in table {
            let found = Trouble::of(&pod(json!([]), status.clone())).map(|trouble| trouble.reason);
            assert_eq!(found.as_deref(), reason, "{status}");
        }
        let mut going = pod(json!([]), waiting("CrashLoopBackOff"));
        going["metadata"]["deletionTimestamp"] = json!("2026-11-22T00:00:00Z");
        assert_eq!(Trouble::of(&going), None);
        let mut failed = pod(json!([]), waiting("CrashLoopBackOff"));
        failed["status"]["phase"] = json!("Failed");
        assert_eq!(Trouble::of(&failed), None);
    }

    #[test]
    fn a_pod_belongs_to_its_deployment_to_its_controller_or_to_itself() {
        let status = json!({"containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
        let by = |kind: &str, name: &str| json!([{"kind": kind, "name": name, "controller": true}]);
        let table = [
            (by("ReplicaSet", "web-5d9c"), "shop/Deployment/web"),
            (by("ReplicaSet", "bare"), "shop/ReplicaSet/bare"),
            (by("ReplicaSet", "-5d9c"), "shop/ReplicaSet/-5d9c"),
            (by("StatefulSet", "db-5d9c"), "shop/StatefulSet/db-5d9c"),
            (by("Job", "once"), "shop/Job/once"),
            (json!([{"kind": "Job", "name": "once"}]), "shop/Pod/web-5d9c-x"),
            (json!([]), "shop/Pod/web-5d9c-x"),
            (json!("odd"), "shop/Pod/web-5d9c-x"),
            (by("", ""), "shop/Pod/web-5d9c-x"),
        ];
        for (owner, workload) in table {
            let trouble = Trouble::of(&pod(owner.clone(), status.clone())).unwrap();
            assert_eq!(&*trouble.workload, workload, "{owner}");
        }
    }
}
