//! The three forms in which clients ask for objects: as they are, metadata only, or as the `Table` that `kubectl get`
//! prints. Routes choose the form from `Accept` and the query; lists, single objects and watch events all go through
//! here.

use std::fmt::Write as _;
use std::sync::Arc;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::resources::Resource;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Plain,
    Metadata,
    Table(RowObject),
}

/// What a row of a table carries beside its cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RowObject {
    None,
    Metadata,
    Full,
}

const META: &str = "meta.k8s.io/v1";

impl Form {
    /// The first form in `Accept` that is known; kubectl lists them by preference.
    pub(super) fn choose(accept: &str, include_object: &str) -> Form {
        for range in accept.split(',') {
            let asked = |parameter: &str| range.split(';').any(|part| part.trim() == parameter);
            if asked("as=Table") && asked("g=meta.k8s.io") && asked("v=v1") {
                return Form::Table(match include_object {
                    "None" => RowObject::None,
                    "Object" => RowObject::Full,
                    _ => RowObject::Metadata,
                });
            }
            if asked("as=PartialObjectMetadata") || asked("as=PartialObjectMetadataList") {
                return Form::Metadata;
            }
            if range.split(';').next().is_some_and(|kind| kind.trim() == "application/json") {
                break;
            }
        }
        Form::Plain
    }

    pub(super) fn one(self, resource: &Resource, object: &Value) -> Value {
        match self {
            Form::Plain => object.clone(),
            Form::Metadata => metadata_only(object),
            Form::Table(include) => {
                let version = &object["metadata"]["resourceVersion"];
                table(resource, std::iter::once(object), include, version)
            }
        }
    }

    pub(super) fn list(self, resource: &Resource, objects: &[Arc<Value>], version: u64) -> Value {
        let version = json!(version.to_string());
        let metadata = json!({"resourceVersion": version});
        match self {
            Form::Table(include) => table(resource, objects.iter().map(|o| &**o), include, &version),
            Form::Metadata => {
                let items: Vec<Value> = objects.iter().map(|object| metadata_only(object)).collect();
                json!({"kind": "PartialObjectMetadataList", "apiVersion": META, "metadata": metadata, "items": items})
            }
            Form::Plain => {
                let kind = format!("{}List", resource.kind);
                let items: Vec<&Value> = objects.iter().map(|object| &**object).collect();
                json!({"kind": kind, "apiVersion": resource.api_version(), "metadata": metadata, "items": items})
            }
        }
    }
}

fn metadata_only(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": META, "metadata": object["metadata"]})
}

fn table<'a>(
    resource: &Resource,
    objects: impl Iterator<Item = &'a Value>,
    include: RowObject,
    version: &Value,
) -> Value {
    let rows: Vec<Value> = objects
        .map(|object| {
            let mut row = json!({"cells": cells(resource.kind, object)});
            match include {
                RowObject::None => {}
                RowObject::Metadata => row["object"] = metadata_only(object),
                RowObject::Full => row["object"] = object.clone(),
            }
            row
        })
        .collect();
    json!({
        "kind": "Table",
        "apiVersion": META,
        "metadata": {"resourceVersion": version},
        "columnDefinitions": columns(resource.kind),
        "rows": rows,
    })
}

/// Column names; those after `|` show with `-o wide` only.
fn columns(kind: &str) -> Vec<Value> {
    let names = match kind {
        "Namespace" => "Name,Status,Age",
        "Pod" => "Name,Ready,Status,Restarts,Age|IP,Node,Nominated Node,Readiness Gates",
        "ConfigMap" => "Name,Data,Age",
        "Secret" => "Name,Type,Data,Age",
        "Service" => "Name,Type,Cluster-IP,External-IP,Port(s),Age|Selector",
        "Event" => "Last Seen,Type,Reason,Object,Message|Name",
        "ServiceAccount" => "Name,Secrets,Age",
        "Deployment" => "Name,Ready,Up-to-date,Available,Age|Containers,Images,Selector",
        "ReplicaSet" => "Name,Desired,Current,Ready,Age|Containers,Images,Selector",
        _ => "Name,Age",
    };
    let (always, wide) = names.split_once('|').unwrap_or((names, ""));
    let column = |name: &str, priority: i32| {
        let format = if name == "Name" { "name" } else { "" };
        json!({"name": name, "type": "string", "format": format, "description": "", "priority": priority})
    };
    let always = always.split(',').map(|name| column(name, 0));
    always.chain(wide.split(',').filter(|name| !name.is_empty()).map(|name| column(name, 1))).collect()
}

fn cells(kind: &str, object: &Value) -> Vec<Value> {
    let (metadata, spec, status) = (&object["metadata"], &object["spec"], &object["status"]);
    let name = text(&metadata["name"]);
    let age = age(&metadata["creationTimestamp"]);
    let count = |value: &Value| value.as_object().map_or(0, serde_json::Map::len).to_string();
    let number = |value: &Value| value.as_u64().unwrap_or(0).to_string();
    let row: Vec<String> = match kind {
        "Namespace" => vec![name, phase(object), age],
        "Pod" => {
            let statuses = status["containerStatuses"].as_array().map_or(&[][..], Vec::as_slice);
            let ready = statuses.iter().filter(|s| s["ready"] == true).count();
            let restarts: u64 = statuses.iter().filter_map(|s| s["restartCount"].as_u64()).sum();
            let containers = spec["containers"].as_array().map_or(0, Vec::len);
            let (address, node) = (text(&status["podIP"]), text(&spec["nodeName"]));
            let none = || "<none>".to_owned();
            let ready = format!("{ready}/{containers}");
            vec![name, ready, phase(object), restarts.to_string(), age, address, node, none(), none()]
        }
        "ConfigMap" => vec![name, count(&object["data"]), age],
        "Secret" => vec![name, text(&object["type"]), count(&object["data"]), age],
        "Service" => {
            let ports: Vec<String> = spec["ports"].as_array().into_iter().flatten().map(port).collect();
            let address = text(&spec["clusterIP"]);
            let ports = if ports.is_empty() { "<none>".to_owned() } else { ports.join(",") };
            let selector = labels(&spec["selector"]);
            vec![name, text(&spec["type"]), address, "<none>".to_owned(), ports, age, selector]
        }
        "Event" => {
            let about = &object["involvedObject"];
            let about = format!("{}/{}", text(&about["kind"]).to_lowercase(), text(&about["name"]));
            let seen = self::age(&object["lastTimestamp"]);
            vec![seen, text(&object["type"]), text(&object["reason"]), about, text(&object["message"]), name]
        }
        "ServiceAccount" => vec![name, "0".to_owned(), age],
        "Deployment" | "ReplicaSet" => {
            let wanted = number(&spec["replicas"]);
            let template = spec["template"]["spec"]["containers"].as_array();
            let of_containers = |field: &str| {
                let values: Vec<String> = template.into_iter().flatten().map(|c| text(&c[field])).collect();
                values.join(",")
            };
            let ready = number(&status["readyReplicas"]);
            let counts = match kind {
                "Deployment" => {
                    let updated = number(&status["updatedReplicas"]);
                    [format!("{ready}/{wanted}"), updated, number(&status["availableReplicas"])]
                }
                _ => [wanted, number(&status["replicas"]), ready],
            };
            let mut row = vec![name];
            row.extend(counts);
            let selector = labels(&spec["selector"]["matchLabels"]);
            row.extend([age, of_containers("name"), of_containers("image"), selector]);
            row
        }
        _ => vec![name, age],
    };
    row.into_iter().map(Value::String).collect()
}

fn phase(object: &Value) -> String {
    match object["metadata"].get("deletionTimestamp") {
        Some(_) => "Terminating".to_owned(),
        None => text(&object["status"]["phase"]),
    }
}

fn port(port: &Value) -> String {
    let mut shown = port["port"].to_string();
    if let Some(node) = port["nodePort"].as_u64() {
        let _ = write!(shown, ":{node}");
    }
    format!("{shown}/{}", text(&port["protocol"]))
}

fn labels(map: &Value) -> String {
    let pairs = map.as_object().into_iter().flatten();
    let pairs: Vec<String> = pairs.map(|(key, value)| format!("{key}={}", text(value))).collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("<none>").to_owned()
}

fn age(timestamp: &Value) -> String {
    let then = timestamp.as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    then.map_or_else(
        || "<unknown>".to_owned(),
        |then| duration((OffsetDateTime::now_utc() - then).whole_seconds()),
    )
}

/// Two significant units at most, coarser as it gets longer, as kubectl users know it.
fn duration(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    let two = |big: i64, unit: char, small: i64, small_unit: char| match small {
        0 => format!("{big}{unit}"),
        small => format!("{big}{unit}{small}{small_unit}"),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        120..600 => two(minutes, 'm', seconds % 60, 's'),
        600..10_800 => format!("{minutes}m"),
        10_800..28_800 => two(hours, 'h', minutes % 60, 'm'),
        28_800..172_800 => format!("{hours}h"),
        172_800..691_200 => two(days, 'd', hours % 24, 'h'),
        691_200..63_072_000 => format!("{days}d"),
        _ => two(days / 365, 'y', days % 365, 'd'),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::resources;
    use super::{Form, RowObject, duration};

    #[test]
    fn the_first_form_in_accept_that_is_known_is_chosen() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(Form::choose(table, ""), Form::Table(RowObject::Metadata));
        assert_eq!(Form::choose(table, "Object"), Form::Table(RowObject::Full));
        assert_eq!(Form::choose("application/json, */*", ""), Form::Plain);
        let metadata = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io,application/json";
        assert_eq!(Form::choose(metadata, ""), Form::Metadata);
    }

    #[test]
    fn every_kind_has_a_cell_for_every_column() {
        for resource in &resources::RESOURCES {
            let object = json!({"metadata": {"name": "a"}});
            assert_eq!(super::cells(resource.kind, &object).len(), super::columns(resource.kind).len());
        }
    }

    #[test]
    fn ages_read_as_kubectl_users_know_them() {
        let cases =
            [(5, "5s"), (130, "2m10s"), (1_200, "20m"), (11_000, "3h3m"), (90_000, "25h"), (864_000, "10d")];
        for (seconds, want) in cases {
            assert_eq!(duration(seconds), want);
        }
    }
}
