//! The rules for kinds of Kubernetes itself, whose conditions say too little. After it: nothing; `status.rs` calls it
//! once what holds for all kinds has been looked at. A kind without rules here has none.

use super::{Condition, Status, conditions, number, short, text};
use serde_json::Value;

/// The controller takes a deployment without a deadline, or with this one, as one that always progresses.
const NO_DEADLINE: i64 = i32::MAX as i64;

/// Of the object by its kind; `None` if its kind has no rules.
pub(super) fn status(object: &Value) -> Option<Status> {
    let version = text(object, "/apiVersion");
    let group = version.rsplit_once('/').map_or("", |(group, _)| group);
    let judged = match (group, text(object, "/kind")) {
        ("apps" | "extensions", "Deployment") => deployment(object),
        ("apps", "StatefulSet") => stateful_set(object),
        ("apps" | "extensions", "DaemonSet") => daemon_set(object),
        ("apps" | "extensions", "ReplicaSet") => replica_set(object),
        ("batch", "Job") => job(object),
        ("", "Pod") => pod(object),
        ("", "PersistentVolumeClaim") => claim(object),
        ("", "Service") => service(object),
        ("apiextensions.k8s.io", "CustomResourceDefinition") => definition(object),
        // Nothing but their generation counts, and that has been looked at.
        ("policy", "PodDisruptionBudget") | ("batch", "CronJob") | ("", "ConfigMap" | "Secret") => {
            Status::Current
        }
        _ => return None,
    };
    Some(judged)
}

/// The first comparison that does not hold says what is missing: what there is, and of how many.
fn counts(table: &[(&str, i64, i64)]) -> Option<Status> {
    let (what, is, wanted) = table.iter().find(|(_, is, wanted)| is < wanted)?;
    Some(Status::InProgress(format!("{is} of {wanted} {what}")))
}

/// Pods of an earlier state that have yet to go.
fn leftover(is: i64, wanted: i64) -> Option<Status> {
    (is > wanted).then(|| Status::InProgress(format!("{} pods are still to go", is.saturating_sub(wanted))))
}

/// How many replicas are asked for; one if nobody says.
fn replicas(object: &Value) -> i64 {
    number(object, "/spec/replicas").unwrap_or(1)
}

/// A number of the status; zero if its controller has not said.
fn seen(object: &Value, field: &str) -> i64 {
    object.pointer("/status").and_then(|status| status.get(field)).and_then(Value::as_i64).unwrap_or(0)
}

fn deployment(object: &Value) -> Status {
    let mut progressing =
        number(object, "/spec/progressDeadlineSeconds").unwrap_or(NO_DEADLINE) == NO_DEADLINE;
    let mut available = false;
    for condition in conditions(object) {
        match condition.kind {
            "Progressing" if condition.reason == "ProgressDeadlineExceeded" => {
                return Status::Failed("its progress deadline is exceeded".to_owned());
            }
            "Progressing" if condition.status == "True" && condition.reason == "NewReplicaSetAvailable" => {
                progressing = true;
            }
            "Available" if condition.status == "True" => available = true,
            _ => {}
        }
    }
    let wanted = replicas(object);
    let (all, updated) = (seen(object, "replicas"), seen(object, "updatedReplicas"));
    counts(&[("replicas exist", all, wanted), ("replicas are updated", updated, wanted)])
        .or_else(|| leftover(all, wanted))
        .or_else(|| {
            counts(&[
                ("updated replicas are available", seen(object, "availableReplicas"), updated),
                ("replicas are ready", seen(object, "readyReplicas"), wanted),
            ])
        })
        .or_else(|| (!progressing).then(|| in_progress("its new replica set is not available")))
        .or_else(|| (!available).then(|| in_progress("it is not available")))
        .unwrap_or(Status::Current)
}

fn stateful_set(object: &Value) -> Status {
    // Whoever deletes its pods decides when it is updated; there is nothing to wait for.
    if text(object, "/spec/updateStrategy/type") == "OnDelete" {
        return Status::Current;
    }
    let wanted = replicas(object);
    let all = seen(object, "replicas");
    let short_of = counts(&[
        ("replicas exist", all, wanted),
        ("replicas are ready", seen(object, "readyReplicas"), wanted),
    ])
    .or_else(|| leftover(all, wanted));
    if let Some(missing) = short_of {
        return missing;
    }
    // Pods below the partition stay as they were.
    if let Some(partition) = number(object, "/spec/updateStrategy/rollingUpdate/partition") {
        let wanted = wanted.saturating_sub(partition);
        return counts(&[(
            "replicas above the partition are updated",
            seen(object, "updatedReplicas"),
            wanted,
        )])
        .unwrap_or(Status::Current);
    }
    counts(&[("replicas are of the current revision", seen(object, "currentReplicas"), wanted)])
        .or_else(|| {
            let (current, update) =
                (text(object, "/status/currentRevision"), text(object, "/status/updateRevision"));
            (current != update).then(|| in_progress("its pods are not all of the updated revision"))
        })
        .unwrap_or(Status::Current)
}

fn daemon_set(object: &Value) -> Status {
    // Its controller sets both as soon as it has looked once; zeros before that mean nothing.
    if number(object, "/metadata/generation").is_none()
        || number(object, "/status/observedGeneration").is_none()
    {
        return in_progress("its controller has not seen it");
    }
    let Some(wanted) = number(object, "/status/desiredNumberScheduled") else {
        return in_progress("its controller has not counted its nodes");
    };
    counts(&[
        ("nodes have a pod", seen(object, "currentNumberScheduled"), wanted),
        ("pods are updated", seen(object, "updatedNumberScheduled"), wanted),
        ("pods are available", seen(object, "numberAvailable"), wanted),
        ("pods are ready", seen(object, "numberReady"), wanted),
    ])
    .unwrap_or(Status::Current)
}

fn replica_set(object: &Value) -> Status {
    if let Some(failure) = found(object, "ReplicaFailure", "True") {
        return Status::InProgress(failure.says());
    }
    let wanted = replicas(object);
    counts(&[
        ("replicas have the template's labels", seen(object, "fullyLabeledReplicas"), wanted),
        ("replicas are available", seen(object, "availableReplicas"), wanted),
        ("replicas are ready", seen(object, "readyReplicas"), wanted),
    ])
    .or_else(|| leftover(seen(object, "replicas"), wanted))
    .unwrap_or(Status::Current)
}

/// A job counts as soon as it runs: how it ends is up to it, and only a failed one says so.
fn job(object: &Value) -> Status {
    for condition in conditions(object).filter(|condition| condition.status == "True") {
        match condition.kind {
            "Complete" => return Status::Current,
            "Failed" => return Status::Failed(condition.says()),
            _ => {}
        }
    }
    // One that was asked to rest will never start by itself.
    let rests = object.pointer("/spec/suspend").and_then(Value::as_bool).unwrap_or(false);
    if text(object, "/status/startTime").is_empty() && !rests {
        return in_progress("it has not started");
    }
    Status::Current
}

fn pod(object: &Value) -> Status {
    match text(object, "/status/phase") {
        // Both are an end; whoever made the pod judges it.
        "Succeeded" | "Failed" => Status::Current,
        "Running" if found(object, "Ready", "True").is_some() => Status::Current,
        "Running" => {
            let looping = looping(object);
            if looping.is_empty() {
                in_progress("it runs and is not ready")
            } else {
                Status::Failed(format!("crash-looping containers: {}", short(&looping.join(", "))))
            }
        }
        // kstatus calls it failed 15 s later. A node that is being added takes longer than that.
        "Pending" => match found(object, "PodScheduled", "False") {
            Some(refused) if refused.reason == "Unschedulable" => {
                Status::InProgress(format!("no node takes it: {}", refused.says()))
            }
            _ => in_progress("it is pending"),
        },
        "" => in_progress("nobody has looked at it"),
        other => Status::InProgress(format!("its phase is {}", short(other))),
    }
}

/// Names of the containers that the kubelet lets wait before it starts them once more.
fn looping(pod: &Value) -> Vec<&str> {
    let containers = pod.pointer("/status/containerStatuses").and_then(Value::as_array);
    let waits = |container: &&Value| text(container, "/state/waiting/reason") == "CrashLoopBackOff";
    containers.into_iter().flatten().filter(waits).map(|container| text(container, "/name")).collect()
}

fn claim(object: &Value) -> Status {
    match text(object, "/status/phase") {
        "Bound" => Status::Current,
        "" => in_progress("no volume is bound"),
        phase => Status::InProgress(format!("no volume is bound, its phase is {}", short(phase))),
    }
}

fn service(object: &Value) -> Status {
    let waits = text(object, "/spec/type") == "LoadBalancer" && text(object, "/spec/clusterIP").is_empty();
    if waits { in_progress("it has no cluster IP") } else { Status::Current }
}

fn definition(object: &Value) -> Status {
    for condition in conditions(object) {
        match (condition.kind, condition.status) {
            ("NamesAccepted", "False") => return Status::Failed(condition.says()),
            ("Established", "False") if condition.reason != "Installing" => {
                return Status::Failed(condition.says());
            }
            ("Established", "True") => return Status::Current,
            _ => {}
        }
    }
    in_progress("it is not established")
}

fn found<'a>(object: &'a Value, kind: &str, status: &str) -> Option<Condition<'a>> {
    conditions(object).find(|condition| condition.kind == kind && condition.status == status)
}

fn in_progress(what: &str) -> Status {
    Status::InProgress(what.to_owned())
}
