//! Objects as an API server gives them, with what must never be shown in them.

use serde_json::{Value, json};

/// What no message may contain.
pub(super) const SECRET: &str = "hunter2";

fn metadata(namespace: &str, name: &str) -> Value {
    json!({"namespace": namespace, "name": name, "annotations": {"note": SECRET}, "labels": {"key": SECRET}})
}

pub(super) fn node(name: &str, ready: bool, kubelet: &str) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"note": SECRET},
                     "labels": {"node-role.kubernetes.io/worker": "", "topology.kubernetes.io/zone": "eu-1a"}},
        "spec": {},
        "status": {
            "allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "conditions": [
                {"type": "DiskPressure", "status": "False"},
                {"type": "Ready", "status": if ready { "True" } else { "False" }, "reason": "KubeletReady",
                 "lastTransitionTime": "2026-11-22T01:00:00Z", "lastHeartbeatTime": "2026-11-22T01:01:00Z"},
            ],
            "nodeInfo": {"kubeletVersion": kubelet, "containerRuntimeVersion": "containerd://2.1.4",
                         "kernelVersion": "6.8.0", "osImage": "Ubuntu", "architecture": "amd64"},
        },
    })
}

pub(super) fn deployment(namespace: &str, name: &str, replicas: u64, ready: u64) -> Value {
    json!({
        "metadata": metadata(namespace, name),
        "spec": {"replicas": replicas, "template": {"spec": {"containers": [{"env": [{"name": "A", "value": SECRET}]}]}}},
        "status": {"updatedReplicas": replicas, "readyReplicas": ready, "availableReplicas": ready},
    })
}

/// Of a Deployment, or on its own if that is empty.
pub(super) fn pod(namespace: &str, name: &str, deployment: &str, node: &str, state: Value) -> Value {
    let mut pod = json!({
        "metadata": metadata(namespace, name),
        "spec": {"nodeName": node, "containers": [{"name": "app", "env": [{"name": "A", "value": SECRET}],
                 "resources": {"requests": {"cpu": "250m", "memory": "64Mi"}}}]},
        "status": {"phase": "Running", "containerStatuses": [{"name": "app", "restartCount": 7, "state": state,
                   "lastState": {"terminated": {"exitCode": 1, "reason": "Error", "message": SECRET}}}]},
    });
    if !deployment.is_empty() {
        pod["metadata"]["labels"]["pod-template-hash"] = json!("5d9c");
        pod["metadata"]["ownerReferences"] =
            json!([{"kind": "ReplicaSet", "name": format!("{deployment}-5d9c"), "controller": true}]);
    }
    pod
}

pub(super) fn running() -> Value {
    json!({"running": {}})
}

pub(super) fn crash_looping() -> Value {
    json!({"waiting": {"reason": "CrashLoopBackOff", "message": SECRET}})
}

pub(super) fn event(namespace: &str, name: &str, second: usize) -> Value {
    let last = format!("2026-11-22T{:02}:{:02}:{:02}Z", second / 3600, second / 60 % 60, second % 60);
    json!({
        "metadata": metadata(namespace, name),
        "type": "Warning", "reason": "BackOff", "message": "Back-off restarting", "count": 3,
        "involvedObject": {"kind": "Pod", "name": "web"}, "lastTimestamp": last,
        "source": {"component": "kubelet"},
    })
}
