//! One table for each kind, and content of any shape.

use super::*;
use serde_json::json;

fn waits(what: &str) -> Status {
    Status::InProgress(what.to_owned())
}

fn fails(why: &str) -> Status {
    Status::Failed(why.to_owned())
}

/// One object per row, `spec` and `status` of the kind that the test is about.
fn check(api: &str, kind: &str, table: Vec<(Value, Value, Status)>) {
    for (spec, status, expected) in table {
        let object = json!({
            "apiVersion": api, "kind": kind, "metadata": {"name": "web"}, "spec": spec, "status": status,
        });
        assert_eq!(super::status(&object), expected, "{object}");
    }
}

fn condition(kind: &str, status: &str, reason: &str, message: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": message})
}

#[test]
fn what_holds_for_every_kind_comes_before_the_kinds_own_rules() {
    let custom = |metadata: Value, status: Value| json!({"apiVersion": "example.com/v1", "kind": "Shelf", "metadata": metadata, "status": status});
    let with = |conditions: Value| custom(json!({}), json!({"conditions": conditions}));
    let table = [
        (custom(json!({}), json!({})), Status::Current),
        (custom(json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}), json!({})), Status::Terminating),
        (
            // Deleted beats everything.
            custom(
                json!({"deletionTimestamp": "2026-01-01T00:00:00Z", "generation": 2}),
                json!({"observedGeneration": 1}),
            ),
            Status::Terminating,
        ),
        (
            custom(json!({"generation": 2}), json!({"observedGeneration": 1})),
            waits("its controller has seen generation 1 and not yet 2, the latest"),
        ),
        (custom(json!({"generation": 2}), json!({"observedGeneration": 2})), Status::Current),
        (custom(json!({"generation": 2}), json!({})), Status::Current),
        (with(json!([condition("Reconciling", "True", "Busy", "building")])), waits("building")),
        (with(json!([condition("Reconciling", "False", "Busy", "building")])), Status::Current),
        (with(json!([condition("Stalled", "True", "NoDisk", "")])), fails("NoDisk")),
        (with(json!([condition("Stalled", "Unknown", "NoDisk", "")])), Status::Current),
        (with(json!([condition("Ready", "True", "", "")])), Status::Current),
        (with(json!([condition("Ready", "False", "", "")])), waits("Ready is False")),
        (with(json!([condition("Ready", "Unknown", "Asleep", "")])), waits("Asleep")),
        (with(json!([condition("Ready", "maybe", "", "")])), Status::Current),
        (
            with(json!([condition("Ready", "True", "", ""), condition("Reconciling", "True", "", "more")])),
            waits("more"),
        ),
    ];
    for (object, expected) in table {
        assert_eq!(status(&object), expected, "{object}");
    }
}

#[test]
fn a_deployment_waits_for_its_replicas_and_fails_at_its_deadline() {
    let counts = |all: i64, updated: i64, available: i64, ready: i64, conditions: Value| {
        json!({
            "replicas": all, "updatedReplicas": updated, "availableReplicas": available, "readyReplicas": ready,
            "conditions": conditions,
        })
    };
    let good = json!([
        condition("Progressing", "True", "NewReplicaSetAvailable", ""),
        condition("Available", "True", "MinimumReplicasAvailable", ""),
    ]);
    let available = json!([condition("Available", "True", "MinimumReplicasAvailable", "")]);
    let two = || json!({"replicas": 2, "progressDeadlineSeconds": 600});
    let table = vec![
        (two(), json!({}), waits("0 of 2 replicas exist")),
        (json!({}), json!({}), waits("0 of 1 replicas exist")),
        (two(), counts(2, 1, 1, 1, good.clone()), waits("1 of 2 replicas are updated")),
        (two(), counts(3, 2, 2, 2, good.clone()), waits("1 pods are still to go")),
        (two(), counts(2, 2, 1, 2, good.clone()), waits("1 of 2 updated replicas are available")),
        (two(), counts(2, 2, 2, 1, good.clone()), waits("1 of 2 replicas are ready")),
        (two(), counts(2, 2, 2, 2, available.clone()), waits("its new replica set is not available")),
        (
            two(),
            counts(2, 2, 2, 2, json!([condition("Progressing", "True", "NewReplicaSetAvailable", "")])),
            waits("it is not available"),
        ),
        (two(), counts(2, 2, 2, 2, good.clone()), Status::Current),
        // Without a deadline nobody sets the condition.
        (json!({"replicas": 2}), counts(2, 2, 2, 2, available.clone()), Status::Current),
        (
            json!({"replicas": 2, "progressDeadlineSeconds": i32::MAX}),
            counts(2, 2, 2, 2, available),
            Status::Current,
        ),
        (json!({"replicas": 0}), json!({}), waits("it is not available")),
        (json!({"replicas": 0}), counts(0, 0, 0, 0, good), Status::Current),
        (
            two(),
            counts(2, 1, 1, 1, json!([condition("Progressing", "False", "ProgressDeadlineExceeded", "")])),
            fails("its progress deadline is exceeded"),
        ),
    ];
    check("apps/v1", "Deployment", table.clone());
    check("extensions/v1beta1", "Deployment", table);
}

#[test]
fn a_stateful_set_waits_for_its_revision_or_its_partition() {
    let counts = |all: i64, ready: i64, current: i64, updated: i64| {
        json!({
            "replicas": all, "readyReplicas": ready, "currentReplicas": current, "updatedReplicas": updated,
            "currentRevision": "web-1", "updateRevision": "web-1",
        })
    };
    let partition = json!({"replicas": 3, "updateStrategy": {"rollingUpdate": {"partition": 2}}});
    let three = || json!({"replicas": 3});
    let mut turning = counts(3, 3, 3, 3);
    turning["updateRevision"] = json!("web-2");
    check(
        "apps/v1",
        "StatefulSet",
        vec![
            (three(), json!({}), waits("0 of 3 replicas exist")),
            (three(), counts(3, 2, 3, 3), waits("2 of 3 replicas are ready")),
            (three(), counts(4, 3, 3, 3), waits("1 pods are still to go")),
            (three(), counts(3, 3, 2, 3), waits("2 of 3 replicas are of the current revision")),
            (three(), turning, waits("its pods are not all of the updated revision")),
            (three(), counts(3, 3, 3, 3), Status::Current),
            (partition.clone(), counts(3, 3, 0, 0), waits("0 of 1 replicas above the partition are updated")),
            (partition, counts(3, 3, 0, 1), Status::Current),
            (json!({"replicas": 3, "updateStrategy": {"type": "OnDelete"}}), json!({}), Status::Current),
            (json!({"replicas": 0}), json!({}), Status::Current),
        ],
    );
}

#[test]
fn a_daemon_set_waits_until_its_controller_has_counted() {
    let object = |metadata: Value, status: Value| json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": metadata, "status": status});
    let counts = |current: i64, updated: i64, available: i64, ready: i64| {
        json!({
            "observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": current,
            "updatedNumberScheduled": updated, "numberAvailable": available, "numberReady": ready,
        })
    };
    let first = || json!({"generation": 1});
    let table = [
        (object(json!({}), counts(2, 2, 2, 2)), waits("its controller has not seen it")),
        (object(first(), json!({})), waits("its controller has not seen it")),
        (
            object(first(), json!({"observedGeneration": 1})),
            waits("its controller has not counted its nodes"),
        ),
        (object(first(), counts(1, 2, 2, 2)), waits("1 of 2 nodes have a pod")),
        (object(first(), counts(2, 1, 2, 2)), waits("1 of 2 pods are updated")),
        (object(first(), counts(2, 2, 0, 2)), waits("0 of 2 pods are available")),
        (object(first(), counts(2, 2, 2, 1)), waits("1 of 2 pods are ready")),
        (object(first(), counts(2, 2, 2, 2)), Status::Current),
    ];
    for (object, expected) in table {
        assert_eq!(status(&object), expected, "{object}");
    }
}

#[test]
fn a_replica_set_waits_for_its_replicas() {
    let counts = |labelled: i64, available: i64, ready: i64, all: i64| {
        json!({
            "fullyLabeledReplicas": labelled, "availableReplicas": available, "readyReplicas": ready,
            "replicas": all,
        })
    };
    let two = || json!({"replicas": 2});
    check(
        "apps/v1",
        "ReplicaSet",
        vec![
            (two(), json!({}), waits("0 of 2 replicas have the template's labels")),
            (two(), counts(2, 1, 2, 2), waits("1 of 2 replicas are available")),
            (two(), counts(2, 2, 1, 2), waits("1 of 2 replicas are ready")),
            (two(), counts(2, 2, 2, 3), waits("1 pods are still to go")),
            (two(), counts(2, 2, 2, 2), Status::Current),
            (
                two(),
                json!({"conditions": [condition("ReplicaFailure", "True", "FailedCreate", "quota exceeded")]}),
                waits("quota exceeded"),
            ),
        ],
    );
}

#[test]
fn a_job_counts_once_it_runs_and_fails_when_it_says_so() {
    check(
        "batch/v1",
        "Job",
        vec![
            (json!({}), json!({}), waits("it has not started")),
            (json!({"suspend": true}), json!({}), Status::Current),
            (json!({}), json!({"startTime": "2026-01-01T00:00:00Z", "active": 1}), Status::Current),
            (json!({}), json!({"conditions": [condition("Complete", "True", "", "")]}), Status::Current),
            (
                json!({}),
                json!({"conditions": [condition("Complete", "False", "", "")]}),
                waits("it has not started"),
            ),
            (
                json!({}),
                json!({
                    "startTime": "2026-01-01T00:00:00Z",
                    "conditions": [condition("Failed", "True", "BackoffLimitExceeded", "tried 6 times")],
                }),
                fails("tried 6 times"),
            ),
        ],
    );
}

#[test]
fn a_pod_is_done_when_ready_or_ended_and_fails_in_a_crash_loop() {
    let ready = |status: &str| json!([condition("Ready", status, "", "")]);
    let container =
        |name: &str, reason: &str| json!({"name": name, "state": {"waiting": {"reason": reason}}});
    let unschedulable = condition("PodScheduled", "False", "Unschedulable", "0/3 nodes are available");
    check(
        "v1",
        "Pod",
        vec![
            (json!({}), json!({}), waits("nobody has looked at it")),
            (json!({}), json!({"phase": "Pending"}), waits("it is pending")),
            (
                json!({}),
                json!({"phase": "Pending", "conditions": [unschedulable]}),
                waits("no node takes it: 0/3 nodes are available"),
            ),
            (json!({}), json!({"phase": "Running", "conditions": ready("True")}), Status::Current),
            (
                json!({}),
                json!({"phase": "Running", "conditions": ready("False")}),
                waits("it runs and is not ready"),
            ),
            (
                json!({}),
                json!({
                    "phase": "Running",
                    "conditions": ready("False"),
                    "containerStatuses": [
                        container("web", "CrashLoopBackOff"), container("log", "ContainerCreating"),
                        container("proxy", "CrashLoopBackOff"), {"name": "fine", "state": {"running": {}}},
                    ],
                }),
                fails("crash-looping containers: web, proxy"),
            ),
            (json!({}), json!({"phase": "Succeeded"}), Status::Current),
            (json!({}), json!({"phase": "Failed"}), Status::Current),
            (json!({}), json!({"phase": "Unknown"}), waits("its phase is Unknown")),
        ],
    );
}

#[test]
fn a_definition_waits_until_it_is_established() {
    let with = |conditions: Value| json!({"conditions": conditions});
    check(
        "apiextensions.k8s.io/v1",
        "CustomResourceDefinition",
        vec![
            (json!({}), json!({}), waits("it is not established")),
            (
                json!({}),
                with(json!([
                    condition("NamesAccepted", "True", "NoConflicts", ""),
                    condition("Established", "False", "Installing", "the initial names have been accepted"),
                ])),
                waits("it is not established"),
            ),
            (
                json!({}),
                with(json!([condition("Established", "True", "InitialNamesAccepted", "")])),
                Status::Current,
            ),
            (
                json!({}),
                with(json!([condition("Established", "False", "NotAccepted", "not all names are accepted")])),
                fails("not all names are accepted"),
            ),
            (
                json!({}),
                with(json!([condition("NamesAccepted", "False", "PluralConflict", "shelves is in use")])),
                fails("shelves is in use"),
            ),
        ],
    );
}

#[test]
fn smaller_kinds_have_smaller_rules() {
    check(
        "v1",
        "PersistentVolumeClaim",
        vec![
            (json!({}), json!({}), waits("no volume is bound")),
            (json!({}), json!({"phase": "Pending"}), waits("no volume is bound, its phase is Pending")),
            (json!({}), json!({"phase": "Bound"}), Status::Current),
        ],
    );
    check(
        "v1",
        "Service",
        vec![
            (json!({}), json!({}), Status::Current),
            (json!({"type": "LoadBalancer"}), json!({}), waits("it has no cluster IP")),
            (json!({"type": "LoadBalancer", "clusterIP": "10.0.0.1"}), json!({}), Status::Current),
        ],
    );
    for (api, kind) in
        [("policy/v1", "PodDisruptionBudget"), ("batch/v1", "CronJob"), ("v1", "ConfigMap"), ("v1", "Secret")]
    {
        // Their conditions, if any, are about something else.
        let unready = json!({"conditions": [condition("Ready", "False", "", "")]});
        check(api, kind, vec![(json!({}), unready, Status::Current)]);
    }
    // The same kind's name in a group of somebody else has none of these rules.
    check("example.com/v1", "Deployment", vec![(json!({"replicas": 2}), json!({}), Status::Current)]);
}

#[test]
fn content_of_any_shape_gets_an_answer() {
    let odd = [
        json!(null),
        json!(1),
        json!("x"),
        json!([]),
        json!({"type": 1}),
        json!([null, 3, {"type": []}]),
        json!(true),
    ];
    let kinds = [
        ("apps/v1", "Deployment"),
        ("apps/v1", "StatefulSet"),
        ("apps/v1", "DaemonSet"),
        ("apps/v1", "ReplicaSet"),
        ("batch/v1", "Job"),
        ("v1", "Pod"),
        ("v1", "PersistentVolumeClaim"),
        ("v1", "Service"),
        ("apiextensions.k8s.io/v1", "CustomResourceDefinition"),
        ("example.com/v1", "Shelf"),
    ];
    for (api, kind) in kinds {
        for odd in &odd {
            let whole = [
                json!({"apiVersion": api, "kind": kind, "metadata": odd, "spec": odd, "status": odd}),
                json!({"apiVersion": api, "kind": kind, "spec": {"replicas": odd}, "status": {"conditions": odd}}),
                json!({"apiVersion": api, "kind": kind, "status": {"phase": odd, "containerStatuses": odd}}),
                json!({"apiVersion": odd, "kind": odd}),
            ];
            for object in &whole {
                status(object);
            }
            status(odd);
        }
        let extreme = json!({
            "apiVersion": api, "kind": kind, "metadata": {"generation": 1},
            "spec": {"replicas": i64::MIN, "updateStrategy": {"rollingUpdate": {"partition": i64::MAX}}},
            "status": {"replicas": i64::MAX, "observedGeneration": 1, "desiredNumberScheduled": i64::MIN},
        });
        status(&extreme);
    }
}

#[test]
fn texts_are_one_line_and_bounded() {
    let message = format!("a\nb\t{}", "ä".repeat(1000));
    let object = json!({"status": {"conditions": [condition("Ready", "False", "", &message)]}});
    let Status::InProgress(text) = status(&object) else { panic!("ready") };
    assert!(text.starts_with("a b ää") && text.ends_with('…'), "{text}");
    assert_eq!(text.chars().count(), TEXT + 1);
}

#[test]
fn a_status_reads_as_a_person_would_say_it() {
    assert_eq!(Status::Current.to_string(), "ready");
    assert_eq!(waits("0 of 1 replicas exist").to_string(), "not ready yet: 0 of 1 replicas exist");
    assert_eq!(fails("tried 6 times").to_string(), "failed: tried 6 times");
    assert_eq!(Status::Terminating.to_string(), "being deleted");
}
