//! What views keep of a Node: readiness, versions and what Pods may use of it.

use super::{WORD, condition, list, text};
use crate::views::quantity::Amount;
use serde_json::{Value, json};

/// More roles or pressures than this are not shown.
const MANY: usize = 8;
const ROLE: &str = "node-role.kubernetes.io/";

/// A node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Node {
    ready: bool,
    reason: Box<str>,
    message: Box<str>,
    since: Box<str>,
    cordoned: bool,
    pressures: Vec<Box<str>>,
    roles: Vec<Box<str>>,
    zone: Box<str>,
    architecture: Box<str>,
    /// Kubelet, runtime, kernel and operating system, as [`Node::PARTS`].
    versions: [Box<str>; 4],
    pub(crate) allocatable: Amount,
}

impl Node {
    /// What there is several versions of in a cluster.
    pub(crate) const PARTS: [&str; 4] = ["kubelet", "runtime", "kernel", "os"];

    pub(crate) fn of(object: &Value) -> Self {
        let ready = condition(object, "Ready").unwrap_or(&Value::Null);
        let info = &object["status"]["nodeInfo"];
        let labels = &object["metadata"]["labels"];
        let pressures = list(&object["status"]["conditions"])
            .filter(|condition| condition["status"] == "True" && condition["type"] != "Ready")
            .map(|condition| text(&condition["type"], WORD));
        let roles =
            labels.as_object().into_iter().flatten().filter_map(|(label, _)| label.strip_prefix(ROLE));
        Self {
            ready: ready["status"] == "True",
            reason: text(&ready["reason"], WORD),
            message: text(&ready["message"], super::MESSAGE),
            since: text(&ready["lastTransitionTime"], WORD),
            cordoned: object["spec"]["unschedulable"] == true,
            pressures: pressures.take(MANY).collect(),
            roles: roles.take(MANY).map(|role| text(&json!(role), WORD)).collect(),
            zone: text(&labels["topology.kubernetes.io/zone"], WORD),
            architecture: text(&info["architecture"], WORD),
            versions: ["kubeletVersion", "containerRuntimeVersion", "kernelVersion", "osImage"]
                .map(|version| text(&info[version], WORD)),
            allocatable: Amount::of(&object["status"]["allocatable"]),
        }
    }

    /// Whether new Pods may come.
    pub(crate) fn schedulable(&self) -> bool {
        self.ready && !self.cordoned
    }

    /// Part and version, of those that are known.
    pub(crate) fn versions(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let versions = Self::PARTS.into_iter().zip(self.versions.iter().map(|version| &**version));
        versions.filter(|(_, version)| !version.is_empty())
    }

    pub(crate) fn entry(&self, name: &str) -> Value {
        let [kubelet, runtime, kernel, os] = &self.versions;
        json!({
            "name": name,
            "ready": self.ready,
            "reason": self.reason,
            "message": self.message,
            "since": self.since,
            "schedulable": !self.cordoned,
            "pressures": self.pressures,
            "roles": self.roles,
            "zone": self.zone,
            "kubelet": kubelet,
            "runtime": runtime,
            "os": os,
            "kernel": kernel,
            "architecture": self.architecture,
        })
    }
}
