//! What admission, controllers and a kubelet would fill in, in the least form that kubectl can show: a pod runs at
//! once, a service gets an address, a secret's `stringData` becomes `data`. Deployments get no pods. The store calls
//! this on every write; nothing here looks at other objects.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::resources::Resource;

/// Second precision, as all Kubernetes timestamps.
pub(super) fn now() -> String {
    timestamp(OffsetDateTime::now_utc())
}

pub(super) fn timestamp(at: OffsetDateTime) -> String {
    let at = at.replace_nanosecond(0).unwrap_or(at);
    at.format(&Rfc3339).expect("a time of this era has an RFC 3339 form")
}

/// Unique in this process by its version, and among processes by the time of the first call.
pub(super) fn uid(version: u64) -> String {
    static STARTED: LazyLock<u64> = LazyLock::new(|| {
        let nanos = OffsetDateTime::now_utc().unix_timestamp_nanos();
        u64::try_from(nanos).unwrap_or_default() >> 10
    });
    let started = *STARTED;
    format!("{:08x}-{:04x}-4000-8000-{version:012x}", started >> 16 & 0xffff_ffff, started & 0xffff)
}

/// Completes a new object.
pub(super) fn on_create(resource: &Resource, object: &mut Value, version: u64) {
    object["kind"] = json!(resource.kind);
    object["apiVersion"] = json!(resource.api_version());
    match resource.kind {
        "Namespace" => {
            object["spec"] = json!({"finalizers": ["kubernetes"]});
            object["status"] = json!({"phase": "Active"});
            let name = object["metadata"]["name"].clone();
            object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        }
        "Pod" => pod(object, version),
        "Service" => service(object, version),
        "Deployment" | "ReplicaSet" => {
            default(&mut object["spec"], "replicas", json!(1));
            if resource.kind == "Deployment" {
                let strategy = json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}});
                default(&mut object["spec"], "strategy", strategy);
                default(&mut object["spec"], "revisionHistoryLimit", json!(10));
                default(&mut object["spec"], "progressDeadlineSeconds", json!(600));
            }
            object["status"] = json!({});
        }
        _ => {}
    }
    on_update(resource, object);
}

/// Keeps what follows from other fields in step.
pub(super) fn on_update(resource: &Resource, object: &mut Value) {
    match resource.kind {
        "Secret" => {
            default(object, "type", json!("Opaque"));
            let Some(Value::Object(plain)) = object.as_object_mut().and_then(|o| o.remove("stringData"))
            else {
                return;
            };
            for (key, value) in plain {
                object["data"][key] = json!(BASE64.encode(value.as_str().unwrap_or_default()));
            }
        }
        "Deployment" | "ReplicaSet" => {
            if let Some(pod_spec) = object.pointer_mut("/spec/template/spec") {
                container_ports(pod_spec);
            }
            object["status"]["observedGeneration"] = object["metadata"]["generation"].clone();
        }
        _ => {}
    }
}

fn pod(object: &mut Value, version: u64) {
    let started = object["metadata"]["creationTimestamp"].clone();
    let spec = &mut object["spec"];
    default(spec, "restartPolicy", json!("Always"));
    default(spec, "nodeName", json!("stand-in-node"));
    default(spec, "serviceAccountName", json!("default"));
    default(spec, "terminationGracePeriodSeconds", json!(30));
    container_ports(spec);
    let mut statuses = Vec::new();
    for container in spec.get_mut("containers").and_then(Value::as_array_mut).into_iter().flatten() {
        default(container, "imagePullPolicy", json!("IfNotPresent"));
        statuses.push(json!({
            "name": container["name"],
            "image": container["image"],
            "imageID": "",
            "containerID": format!("stand-in://{version:x}"),
            "ready": true,
            "started": true,
            "restartCount": 0,
            "state": {"running": {"startedAt": started}},
            "lastState": {},
        }));
    }
    let conditions: Vec<Value> = ["Initialized", "Ready", "ContainersReady", "PodScheduled"]
        .iter()
        .map(|kind| json!({"type": kind, "status": "True", "lastProbeTime": null, "lastTransitionTime": started}))
        .collect();
    let address = format!("10.1.{}.{}", version >> 8 & 0xff, version & 0xff);
    object["status"] = json!({
        "phase": "Running",
        "conditions": conditions,
        "hostIP": "192.0.2.1",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": started,
        "containerStatuses": statuses,
        "qosClass": "BestEffort",
    });
}

fn container_ports(pod_spec: &mut Value) {
    let containers = pod_spec.get_mut("containers").and_then(Value::as_array_mut);
    let ports = containers.into_iter().flatten().filter_map(|container| container.get_mut("ports"));
    for port in ports.filter_map(Value::as_array_mut).flatten() {
        default(port, "protocol", json!("TCP"));
    }
}

fn service(object: &mut Value, version: u64) {
    let spec = &mut object["spec"];
    default(spec, "type", json!("ClusterIP"));
    default(spec, "sessionAffinity", json!("None"));
    if spec["type"] != "ExternalName" {
        default(spec, "clusterIP", json!(format!("10.96.{}.{}", version >> 8 & 0xff, version & 0xff)));
        let address = spec["clusterIP"].clone();
        default(spec, "clusterIPs", json!([address]));
    }
    for port in spec.get_mut("ports").and_then(Value::as_array_mut).into_iter().flatten() {
        default(port, "protocol", json!("TCP"));
        let number = port["port"].clone();
        default(port, "targetPort", number);
    }
    object["status"] = json!({"loadBalancer": {}});
}

/// Sets a field that is absent or null. What should be an object and is not stays as it came.
fn default(target: &mut Value, field: &str, value: Value) {
    if target.is_null() {
        *target = Value::Object(Map::new());
    }
    if target.is_object() && target.get(field).is_none_or(Value::is_null) {
        target[field] = value;
    }
}
