//! The store by itself: versions, bounds, history, finalizers.

use serde_json::json;

use super::super::resources;
use super::{Mode, Place, Store};

fn place(plural: &str, namespace: &str, name: &str) -> Place {
    let resource = resources::find("", "v1", plural).unwrap();
    Place { resource, namespace: namespace.to_owned(), name: name.to_owned() }
}

fn named(name: &str) -> serde_json::Value {
    json!({"metadata": {"name": name}})
}

fn store_with_namespace(history: usize) -> Store {
    let store = Store::new(history);
    store.create(&place("namespaces", "", "default"), named("default"), Mode::Keep).unwrap();
    store
}

#[test]
fn an_object_needs_its_namespace() {
    let store = Store::new(8);
    let refused = store.create(&place("configmaps", "nowhere", "a"), named("a"), Mode::Keep).unwrap_err();
    assert_eq!(refused.code, 404);
}

#[test]
fn deleting_a_namespace_deletes_what_is_in_it() {
    let store = store_with_namespace(8);
    let config = place("configmaps", "default", "a");
    store.create(&config, named("a"), Mode::Keep).unwrap();
    store.delete(&place("namespaces", "", "default"), &json!(null), Mode::Keep).unwrap();
    assert_eq!(store.get(&config).unwrap_err().code, 404);
}

#[test]
fn an_update_of_an_old_version_conflicts_and_an_empty_one_keeps_the_version() {
    let store = store_with_namespace(8);
    let config = place("configmaps", "default", "a");
    let first = store.create(&config, named("a"), Mode::Keep).unwrap();
    let same = store.update(&config, Mode::Keep, |now| Ok(now.clone())).unwrap();
    assert_eq!(first["metadata"]["resourceVersion"], same["metadata"]["resourceVersion"]);
    let change = |_: &serde_json::Value| {
        let mut next = (*first).clone();
        next["data"] = json!({"key": "value"});
        Ok(next)
    };
    store.update(&config, Mode::Keep, change).unwrap();
    assert_eq!(store.update(&config, Mode::Keep, change).unwrap_err().code, 409);
}

#[test]
fn a_dry_run_keeps_nothing() {
    let store = store_with_namespace(8);
    let config = place("configmaps", "default", "a");
    store.create(&config, named("a"), Mode::DryRun).unwrap();
    assert_eq!(store.get(&config).unwrap_err().code, 404);
}

#[test]
fn a_finalizer_keeps_the_object_until_it_is_taken_away() {
    let store = store_with_namespace(8);
    let config = place("configmaps", "default", "a");
    let held = json!({"metadata": {"name": "a", "finalizers": ["example.com/hold"]}});
    store.create(&config, held, Mode::Keep).unwrap();
    store.delete(&config, &json!(null), Mode::Keep).unwrap();
    assert!(store.get(&config).unwrap()["metadata"]["deletionTimestamp"].is_string());
    let release = |now: &serde_json::Value| {
        let mut next = now.clone();
        next["metadata"]["finalizers"] = json!([]);
        Ok(next)
    };
    store.update(&config, Mode::Keep, release).unwrap();
    assert_eq!(store.get(&config).unwrap_err().code, 404);
}

#[test]
fn a_watch_that_asks_for_forgotten_changes_is_told_so() {
    let store = store_with_namespace(4);
    let (_, version) = store.list(resources::namespaces(), None);
    let config = place("configmaps", "default", "a");
    for round in 0..3 {
        store.create(&config, named("a"), Mode::Keep).unwrap();
        store.delete(&config, &json!(null), Mode::Keep).unwrap();
        let known = store.changes(config.resource, Some("default"), version, 100);
        match round {
            0 | 1 => assert_eq!(known.unwrap().0.len(), 2 * (round + 1)),
            _ => assert_eq!(known.unwrap_err().code, 410),
        }
    }
}

#[test]
fn changes_come_in_pieces_and_only_of_the_kind_asked_for() {
    let store = store_with_namespace(100);
    let (_, version) = store.list(resources::namespaces(), None);
    for name in ["a", "b", "c"] {
        store.create(&place("configmaps", "default", name), named(name), Mode::Keep).unwrap();
        store.create(&place("secrets", "default", name), named(name), Mode::Keep).unwrap();
    }
    let resource = resources::find("", "v1", "configmaps").unwrap();
    let (first, cursor) = store.changes(resource, None, version, 2).unwrap();
    let (rest, _) = store.changes(resource, None, cursor, 2).unwrap();
    let names: Vec<_> =
        first.iter().chain(&rest).map(|c| c.last["metadata"]["name"].as_str().unwrap().to_owned()).collect();
    assert_eq!(names, ["a", "b", "c"]);
}
