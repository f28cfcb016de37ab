//! What this API server serves: one table of kinds, and the discovery documents that follow from it. Routing, the
//! store and the printed tables look kinds up here; a kind that is not in the table does not exist.

use serde_json::{Value, json};

/// One kind of object.
#[derive(Debug)]
pub(super) struct Resource {
    /// Empty for the core group.
    pub(super) group: &'static str,
    pub(super) version: &'static str,
    pub(super) plural: &'static str,
    singular: &'static str,
    pub(super) kind: &'static str,
    pub(super) namespaced: bool,
    short: &'static [&'static str],
    in_all: bool,
    pub(super) subresources: &'static [&'static str],
}

const fn core(
    plural: &'static str,
    singular: &'static str,
    kind: &'static str,
    short: &'static [&'static str],
) -> Resource {
    let (group, version) = ("", "v1");
    Resource {
        group,
        version,
        plural,
        singular,
        kind,
        namespaced: true,
        short,
        in_all: false,
        subresources: &[],
    }
}

const STATUS: &[&str] = &["status"];

/// Every kind, in discovery order. The store keys objects by the position in this table.
pub(super) static RESOURCES: [Resource; 12] = [
    Resource {
        namespaced: false,
        subresources: STATUS,
        ..core("namespaces", "namespace", "Namespace", &["ns"])
    },
    Resource {
        in_all: true,
        subresources: &["status", "log", "exec", "attach", "portforward"],
        ..core("pods", "pod", "Pod", &["po"])
    },
    core("configmaps", "configmap", "ConfigMap", &["cm"]),
    core("secrets", "secret", "Secret", &[]),
    Resource { in_all: true, subresources: STATUS, ..core("services", "service", "Service", &["svc"]) },
    core("events", "event", "Event", &["ev"]),
    core("serviceaccounts", "serviceaccount", "ServiceAccount", &["sa"]),
    core("endpoints", "endpoints", "Endpoints", &["ep"]),
    Resource {
        group: "apps",
        in_all: true,
        subresources: STATUS,
        ..core("deployments", "deployment", "Deployment", &["deploy"])
    },
    Resource {
        group: "apps",
        in_all: true,
        subresources: STATUS,
        ..core("replicasets", "replicaset", "ReplicaSet", &["rs"])
    },
    Resource { group: "coordination.k8s.io", ..core("leases", "lease", "Lease", &[]) },
    // As if its definition were installed.
    Resource {
        group: "cilium.io",
        version: "v2",
        ..core("ciliumnetworkpolicies", "ciliumnetworkpolicy", "CiliumNetworkPolicy", &["cnp"])
    },
];

/// The kind of namespaces; always in the table.
pub(super) fn namespaces() -> &'static Resource {
    &RESOURCES[0]
}

pub(super) fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    RESOURCES.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The kind that a document says it is.
pub(super) fn of_document(document: &Value) -> Option<&'static Resource> {
    RESOURCES
        .iter()
        .find(|r| document["kind"] == r.kind && document["apiVersion"] == r.api_version().as_str())
}

impl Resource {
    pub(super) fn api_version(&self) -> String {
        match self.group {
            "" => self.version.to_owned(),
            group => format!("{group}/{}", self.version),
        }
    }

    /// `deployments.apps`: how errors name the kind.
    pub(super) fn qualified(&self) -> String {
        match self.group {
            "" => self.plural.to_owned(),
            group => format!("{}.{group}", self.plural),
        }
    }

    /// Whether a change of `spec` counts up `metadata.generation`.
    pub(super) fn has_generation(&self) -> bool {
        self.group == "apps"
    }

    fn discovery(&self) -> Vec<Value> {
        const VERBS: [&str; 8] =
            ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
        let mut own = json!({
            "name": self.plural,
            "singularName": self.singular,
            "namespaced": self.namespaced,
            "kind": self.kind,
            "verbs": VERBS,
        });
        if !self.short.is_empty() {
            own["shortNames"] = json!(self.short);
        }
        if self.in_all {
            own["categories"] = json!(["all"]);
        }
        let mut rows = vec![own];
        for sub in self.subresources {
            let verbs: &[&str] = match *sub {
                "status" => &["get", "patch", "update"],
                "log" => &["get"],
                _ => &["create", "get"],
            };
            rows.push(json!({
                "name": format!("{}/{sub}", self.plural),
                "singularName": "",
                "namespaced": self.namespaced,
                "kind": self.kind,
                "verbs": verbs,
            }));
        }
        rows
    }
}

/// `GET /api`
pub(super) fn core_versions() -> Value {
    json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})
}

/// `GET /apis`
pub(super) fn groups() -> Value {
    let mut names: Vec<&str> = RESOURCES.iter().map(|r| r.group).filter(|group| !group.is_empty()).collect();
    names.dedup();
    let groups: Vec<Value> = names.into_iter().filter_map(group).collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

/// `GET /apis/<name>`; `None` for a group without kinds.
pub(super) fn group(name: &str) -> Option<Value> {
    let version = RESOURCES.iter().find(|r| r.group == name && !name.is_empty())?.version;
    let version = json!({"groupVersion": format!("{name}/{version}"), "version": version});
    Some(
        json!({"kind": "APIGroup", "apiVersion": "v1", "name": name, "versions": [version], "preferredVersion": version}),
    )
}

/// `GET /api/v1` and `GET /apis/<group>/<version>`; `None` for a group without kinds.
pub(super) fn resource_list(group: &str, version: &str) -> Option<Value> {
    let rows: Vec<Value> = RESOURCES
        .iter()
        .filter(|r| r.group == group && r.version == version)
        .flat_map(Resource::discovery)
        .collect();
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let list = json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": rows});
    (!rows.is_empty()).then_some(list)
}

/// `GET /version`
pub(super) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "32",
        "gitVersion": "v1.32.0+stand-in",
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": "linux/amd64",
    })
}

/// An OpenAPI v2 document without a single path: kubectl then skips what it would check on its own side. The
/// protobuf form is what kubectl asks for: swagger = "2.0" (field 1), info (2) with title and version, paths (8).
pub(super) const OPENAPI_V2_PROTOBUF: &[u8] = b"\x0a\x032.0\x12\x13\x0a\x08stand-in\x12\x07v1.32.0\x42\x00";

pub(super) fn openapi_v2() -> Value {
    json!({"swagger": "2.0", "info": {"title": "stand-in", "version": "v1.32.0"}, "paths": {}})
}
