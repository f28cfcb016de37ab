//! What a list holds and refuses. What is shared with the tests below: objects, manifests, ConfigMaps.

mod owner;
mod stored;

use super::*;
use crate::gitops::{
    File,
    object::{Manifest, digest},
};
use serde_json::json;

fn id(group: &str, kind: &str, namespace: &str, name: &str) -> ObjectId {
    let [group, kind, namespace, name] = [group, kind, namespace, name].map(str::to_owned);
    ObjectId { group, kind, namespace, name }
}

fn ids(objects: &[&ObjectId]) -> BTreeSet<ObjectId> {
    objects.iter().map(|object| (*object).clone()).collect()
}

/// A manifest of the core group.
fn manifest(kind: &str, metadata: Value, line: usize) -> Manifest {
    let value = json!({"apiVersion": "v1", "kind": kind, "metadata": metadata});
    let id = id("", kind, text(&value, &["metadata", "namespace"]), text(&value, &["metadata", "name"]));
    let digest = digest(&value);
    Manifest { id, version: "v1".to_owned(), value: value.into(), file: "a.yaml".into(), line, digest }
}

/// As agent 7 takes it out of these objects of project 42.
fn take(objects: Vec<Manifest>) -> Result<(Template, Vec<Manifest>), InventoryError> {
    Template::take(objects, "infra", 7, ("group/a", 42))
}

fn template() -> Template {
    take(Vec::new()).unwrap().0
}

/// A ConfigMap as the cluster has it.
fn config_map(name: &str, inventory_id: &str, keys: &[&str]) -> Value {
    let data: Map<_, _> = keys.iter().map(|key| ((*key).to_owned(), json!(""))).collect();
    json!({
        "apiVersion": "v1", "kind": "ConfigMap", "data": data,
        "metadata": {
            "name": name, "namespace": "infra", "resourceVersion": "5", "uid": "u", "labels": {LABEL: inventory_id},
        },
    })
}

fn owned_by(owner: Option<&str>) -> Value {
    match owner {
        Some(owner) => json!({"metadata": {"uid": "1", "annotations": {OWNER: owner, "note": "x"}}}),
        None => json!({"metadata": {"uid": "1", "annotations": {"note": "x"}}}),
    }
}

#[test]
fn objects_are_the_very_keys_that_agentk_writes() {
    let longest = "a".repeat(KEY - "default__apps_Deployment".len());
    for (object, key) in [
        (id("apps", "Deployment", "default", "web"), "default_web_apps_Deployment".to_owned()),
        (id("", "ConfigMap", "a", "web.conf"), "a_web.conf__ConfigMap".to_owned()),
        (id("", "Namespace", "", "a"), "_a__Namespace".to_owned()),
        (
            id("rbac.authorization.k8s.io", "ClusterRole", "", "system:node:a"),
            "_system__node__a_rbac.authorization.k8s.io_ClusterRole".to_owned(),
        ),
        (
            id("rbac.authorization.k8s.io", "Role", "a", ":edge:"),
            "a___edge___rbac.authorization.k8s.io_Role".to_owned(),
        ),
        (
            id("rbac.authorization.k8s.io", "Role", "a", "my_role"),
            "a_my_role_rbac.authorization.k8s.io_Role".to_owned(),
        ),
        (
            id("networking.k8s.io", "IPAddress", "", "fd00::1"),
            "_fd00____1_networking.k8s.io_IPAddress".to_owned(),
        ),
        (id("apps", "Deployment", "default", &longest), format!("default_{longest}_apps_Deployment")),
    ] {
        assert_eq!(keys::write(&object).as_deref(), Ok(key.as_str()));
        assert_eq!(keys::read(&key), Some(object));
    }
}

#[test]
fn what_would_be_read_back_as_something_else_is_refused() {
    let longer = "a".repeat(KEY - "default__apps_Deployment".len() + 1);
    for object in [
        id("rbac.authorization.k8s.io", "ClusterRole", "", "a__b"),
        id("rbac.authorization.k8s.io", "ClusterRole", "", "a_:b"),
        id("rbac.authorization.k8s.io", "ClusterRole", "", "a@b"),
        id("rbac.authorization.k8s.io", "ClusterRole", "", "ä"),
        id("apps", "Deployment", "default", &longer),
        id("apps", "Deployment", "default", ""),
        id("apps", "Deployment", "default", ".."),
    ] {
        let refused = Inventory::takes(&object).unwrap_err();
        assert_eq!(refused, InventoryError::Key { object });
    }
}

#[test]
fn every_key_that_is_understood_is_written_as_it_was() {
    let parts = ["", "a", "_", "__", "___", ".", "..", "a.b", "A-1"];
    let mut understood = 0;
    for namespace in parts {
        for name in parts {
            for end in ["_apps_Deployment", "__Namespace", "_", "__", "___", "", "_Deployment"] {
                let key = format!("{namespace}_{name}{end}");
                if let Some(object) = keys::read(&key) {
                    understood += 1;
                    assert_eq!(keys::write(&object), Ok(key));
                }
            }
        }
    }
    assert!(understood > 50, "{understood}");
}

#[test]
fn a_list_of_any_version_of_cli_utils_is_understood() {
    let status = r#"{"actuation":"Succeeded","reconcile":"Succeeded","strategy":"Apply"}"#;
    let live = json!({"data": {
        "default_web_apps_Deployment": status, "_a__Namespace": "", "README": "by hand", "default_.._apps_Deployment": "",
    }});
    let inventory = Inventory::of(&live);
    assert_eq!(
        inventory.objects,
        ids(&[&id("apps", "Deployment", "default", "web"), &id("", "Namespace", "", "a")])
    );
    assert_eq!(inventory.unread.keys().collect::<Vec<_>>(), ["README", "default_.._apps_Deployment"]);
    for odd in [json!(null), json!({}), json!({"data": null}), json!({"data": []}), json!({"data": "x"})] {
        assert_eq!(Inventory::of(&odd), Inventory::default());
    }
}

#[test]
fn a_list_that_no_config_map_can_hold_says_to_split_the_project() {
    let object =
        |number: usize| id("apps", "Deployment", "default", &format!("{}-{number}", "a".repeat(200)));
    let fits = Inventory { objects: (0..4000).map(object).collect(), ..Default::default() };
    assert!(fits.data().is_ok());
    let full = Inventory { objects: (0..5000).map(object).collect(), ..Default::default() };
    let InventoryError::Full { objects: 5000, bytes } = full.data().unwrap_err() else {
        panic!("another error")
    };
    assert!(bytes > SIZE);
}
