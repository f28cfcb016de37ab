use super::*;
use crate::gitops::object::{Manifest, digest};
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

fn template() -> Template {
    Template::take(Vec::new(), "infra", 7, ("group/a", 42)).unwrap().0
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
        id("rbac.authorization.k8s.io", "ClusterRole", "", "_a"),
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

#[test]
fn a_policy_decides_which_objects_are_taken_over_and_pruned() {
    use Policy::{AdoptAll, AdoptIfNoInventory, MustMatch};
    let deployment = id("apps", "Deployment", "a", "web");
    for (policy, owner, apply, prune) in [
        (MustMatch, Some("7-42"), true, true),
        (MustMatch, None, false, false),
        (MustMatch, Some("8-42"), false, false),
        (MustMatch, Some(""), false, false),
        (AdoptIfNoInventory, Some("7-42"), true, true),
        (AdoptIfNoInventory, None, true, true),
        (AdoptIfNoInventory, Some("8-42"), false, false),
        (AdoptIfNoInventory, Some(""), false, false),
        (AdoptAll, Some("7-42"), true, true),
        (AdoptAll, None, true, true),
        (AdoptAll, Some("8-42"), true, true),
        (AdoptAll, Some(""), true, true),
    ] {
        let live = owned_by(owner);
        assert_eq!(may_apply(policy, Some(&live), "7-42").is_ok(), apply, "{policy:?} {owner:?}");
        let pruned = may_prune(policy, &deployment, Some(&live), "7-42", &InUse::default());
        assert_eq!(pruned.is_ok(), prune, "{policy:?} {owner:?}");
    }
    for policy in [MustMatch, AdoptIfNoInventory, AdoptAll] {
        assert_eq!(may_apply(policy, None, "7-42"), Ok(()));
        assert_eq!(may_prune(policy, &deployment, None, "7-42", &InUse::default()), Ok(()));
    }
    let why = |owner| may_apply(MustMatch, Some(&owned_by(owner)), "7-42").unwrap_err();
    assert!(why(None).ends_with("take it over with inventory_policy adopt_if_no_inventory"));
    assert!(why(Some("8-42")).contains("inventory \"8-42\"") && why(Some("8-42")).contains("adopt_all"));
}

#[test]
fn objects_stay_whose_annotations_namespaces_or_other_names_are_in_use() {
    let deployment = id("apps", "Deployment", "a", "web");
    let mut in_use = InUse::by(&template());
    in_use.hold(&deployment, "9");
    in_use.hold(&id("", "Namespace", "", "empty"), "");
    let annotated = |key: &str, value: &str| {
        let mut live = owned_by(Some("7-42"));
        live["metadata"]["annotations"][key] = value.into();
        live
    };
    let mine = owned_by(Some("7-42"));
    let mut applied = mine.clone();
    applied["metadata"]["uid"] = "9".into();
    let keep = "cli-utils.sigs.k8s.io/on-remove";
    let detach = "client.lifecycle.config.k8s.io/deletion";
    for (object, live, expected) in [
        (deployment.clone(), annotated(keep, "keep"), Some(Keep::Detached { key: keep, value: "keep" })),
        (deployment.clone(), annotated(keep, "detach"), None),
        (
            deployment.clone(),
            annotated(detach, "detach"),
            Some(Keep::Detached { key: detach, value: "detach" }),
        ),
        (deployment.clone(), annotated(detach, "keep"), None),
        (id("", "Namespace", "", "a"), mine.clone(), Some(Keep::InUse)),
        (id("", "Namespace", "", "infra"), mine.clone(), Some(Keep::InUse)),
        (id("", "Namespace", "", "empty"), mine.clone(), None),
        (id("example.com", "Namespace", "", "a"), mine.clone(), None),
        (id("extensions", "Deployment", "a", "web"), applied, Some(Keep::JustApplied)),
        (deployment.clone(), mine, None),
    ] {
        // Not even whoever adopts all may delete these.
        for policy in [Policy::MustMatch, Policy::AdoptAll] {
            let kept = may_prune(policy, &object, Some(&live), "7-42", &in_use).err();
            assert_eq!(kept, expected, "{object} {live}");
        }
    }
    for (keep, forgotten) in [
        (Keep::Unowned, false),
        (Keep::OtherOwner { owner: "8-42".to_owned() }, true),
        (Keep::Detached { key: detach, value: "detach" }, true),
        (Keep::InUse, false),
        (Keep::JustApplied, true),
    ] {
        assert_eq!(keep.forgets(), forgotten, "{keep}");
    }
}

#[test]
fn an_owner_is_set_on_what_is_applied_and_taken_from_what_is_forgotten() {
    for metadata in [json!({}), json!({"annotations": null}), json!({"annotations": {OWNER: "8-42"}})] {
        assert_eq!(owner(&own(&json!({"metadata": metadata}), "7-42")), Some("7-42"));
    }
    let kept = own(&json!({"metadata": {"name": "a", "annotations": {"note": "x"}}, "spec": 1}), "7-42");
    assert_eq!(
        kept,
        json!({"metadata": {"name": "a", "annotations": {"note": "x", OWNER: "7-42"}}, "spec": 1})
    );
    assert_eq!(disown(&owned_by(Some("7-42")), "7-42"), Some(owned_by(None)));
    assert_eq!(disown(&owned_by(Some("8-42")), "7-42"), None);
    assert_eq!(disown(&owned_by(None), "7-42"), None);
    for odd in [json!(null), json!({"metadata": 1}), json!({"metadata": {"annotations": [OWNER]}})] {
        own(&odd, "7-42");
        assert_eq!((owner(&odd), disown(&odd, "7-42")), (None, None));
    }
    for (key, expected) in [(OWNER, true), ("cli-utils.sigs.k8s.io/on-remove", true), ("note", false)] {
        assert_eq!(is_about_ownership(key), expected, "{key}");
    }
    let long = may_apply(Policy::MustMatch, Some(&owned_by(Some(&"ä".repeat(1000)))), "7-42").unwrap_err();
    assert!(long.len() < 400, "{long}");
}

#[test]
fn the_default_inventory_is_named_after_agent_and_project() {
    let template = template();
    assert_eq!((template.namespace.as_str(), template.name.as_str()), ("infra", "inventory-7-42"));
    assert_eq!(template.id, "7-42");
    let Write::Create(created) =
        Stored::default().write(&template, ids(&[&id("", "Namespace", "", "a")])).unwrap()
    else {
        panic!("not created")
    };
    let expected = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": "inventory-7-42", "namespace": "infra", "labels": {"cli-utils.sigs.k8s.io/inventory-id": "7-42"},
        },
        "data": {"_a__Namespace": ""},
    });
    assert_eq!(created, expected);
    for numbers in [(0, 42), (7, 0), (-1, 42)] {
        let refused = Template::take(Vec::new(), "infra", numbers.0, ("group/a", numbers.1)).unwrap_err();
        assert_eq!(refused, InventoryError::Numberless { project: "group/a".to_owned() });
    }
}

#[test]
fn a_manifest_with_the_label_is_the_inventory_and_no_object() {
    let metadata = json!({
        "name": "list", "resourceVersion": "5", "uid": "u", "annotations": {"note": "x"},
        "labels": {LABEL: " mine ", "team": "a"},
    });
    let objects = vec![manifest("Secret", json!({"name": "s"}), 1), manifest("ConfigMap", metadata, 9)];
    // Numbers are not needed then.
    let (template, rest) = Template::take(objects, "infra", 0, ("group/a", 0)).unwrap();
    assert_eq!(rest.iter().map(|object| object.id.name.as_str()).collect::<Vec<_>>(), ["s"]);
    assert_eq!((template.namespace.as_str(), template.name.as_str()), ("infra", "list"));
    assert_eq!(template.id, "mine");
    let Write::Create(created) = Stored::default().write(&template, ids(&[&rest[0].id])).unwrap() else {
        panic!("not created")
    };
    assert_eq!(
        created["metadata"],
        json!({
            "name": "list", "namespace": "infra", "labels": {LABEL: "mine", "team": "a"}, "annotations": {"note": "x"},
        })
    );
    let elsewhere = json!({"name": "list", "namespace": "b", "labels": {LABEL: "mine"}});
    let (template, _) =
        Template::take(vec![manifest("ConfigMap", elsewhere, 1)], "infra", 7, ("group/a", 42)).unwrap();
    assert_eq!(template.namespace, "b");
    for (object, needed) in [
        (id("", "Namespace", "", "b"), true),
        (id("", "Namespace", "", "infra"), false),
        (id("example.com", "Namespace", "", "b"), false),
        (id("", "ConfigMap", "", "b"), false),
    ] {
        assert_eq!(template.needs(&object), needed, "{object}");
    }
}

#[test]
fn a_template_with_the_shared_name_gets_one_of_its_own() {
    let name = |inventory_id: &str| {
        let metadata = json!({"name": "inventory", "labels": {LABEL: inventory_id}});
        Template::take(vec![manifest("ConfigMap", metadata, 1)], "infra", 7, ("group/a", 42)).unwrap().0.name
    };
    let (one, other) = (name("one"), name("other"));
    assert_ne!(one, other);
    assert_eq!(one, name("one"));
    assert!(one.len() == "inventory-12345678".len() && one.starts_with("inventory-"), "{one}");
}

#[test]
fn templates_that_nobody_could_use_are_told_with_their_place() {
    let labelled = |inventory_id: &str| json!({"name": "list", "labels": {LABEL: inventory_id}});
    let refused = |objects| Template::take(objects, "infra", 7, ("group/a", 42)).unwrap_err().to_string();
    let two = vec![manifest("ConfigMap", labelled("a"), 1), manifest("ConfigMap", labelled("b"), 9)];
    assert!(refused(two).ends_with("the first is at a.yaml:1, the second at a.yaml:9"));
    let group = refused(vec![manifest("ResourceGroup", labelled("a"), 3)]);
    assert!(group.starts_with("a.yaml:3:1: ResourceGroup list carries the label"), "{group}");
    for illegal in ["a b", "-a", "a.", &"a".repeat(64), "ä"] {
        let text = refused(vec![manifest("ConfigMap", labelled(illegal), 3)]);
        assert!(text.starts_with("a.yaml:3:1: the label") && !text.contains(illegal), "{text}");
    }
    // An empty label is none.
    assert!(
        Template::take(vec![manifest("ConfigMap", labelled(" "), 1)], "a", 7, ("b", 42)).unwrap().1.len()
            == 1
    );
}

#[test]
fn what_the_cluster_lists_is_found_by_its_label_whatever_its_name() {
    let (template, web) = (template(), id("apps", "Deployment", "a", "web"));
    let by_label = config_map("inventory-12345678", "7-42", &["a_web_apps_Deployment"]);
    let unlabelled = config_map("inventory-7-42", "", &[]);
    let others = config_map("inventory-7-42", "8-42", &["a_web_apps_Deployment"]);
    let unrelated = config_map("settings", "8-42", &[]);
    for (config_map, expected) in
        [(&by_label, true), (&unlabelled, true), (&others, true), (&unrelated, false)]
    {
        assert_eq!(template.concerns(config_map), expected, "{config_map}");
    }
    for foreign in [unlabelled, others] {
        assert!(matches!(
            Stored::read(vec![foreign.clone()], &template),
            Err(InventoryError::Foreign { .. })
        ));
        // A name that is taken does not matter once there is an inventory of another name.
        let stored = Stored::read(vec![foreign, by_label.clone()], &template).unwrap();
        assert_eq!(stored.inventory.objects, ids(&[&web]));
        assert!(stored.superfluous.is_empty());
    }
}

#[test]
fn nothing_is_written_that_the_cluster_knows_already() {
    let (template, web) = (template(), id("apps", "Deployment", "a", "web"));
    let mut live = config_map("inventory-7-42", "7-42", &["a_web_apps_Deployment", "README"]);
    live["data"]["a_web_apps_Deployment"] = json!(r#"{"actuation":"Succeeded"}"#);
    live["metadata"]["annotations"] = json!({"note": "x"});
    let mut stored = Stored::read(vec![live.clone()], &template).unwrap();
    assert_eq!(stored.write(&template, ids(&[&web])), Ok(Write::Nothing));
    assert_eq!(Stored::default().write(&template, BTreeSet::new()), Ok(Write::Nothing));

    let namespace = id("", "Namespace", "", "b");
    let Write::Replace(replaced) = stored.write(&template, ids(&[&namespace])).unwrap() else {
        panic!("not replaced")
    };
    // The rest of the object stays, with what makes a change of somebody else a conflict.
    assert_eq!(replaced["metadata"], live["metadata"]);
    assert_eq!(replaced["data"], json!({"_b__Namespace": "", "README": ""}));
    stored.wrote(replaced);
    assert_eq!(stored.inventory.objects, ids(&[&namespace]));
    assert_eq!(stored.write(&template, ids(&[&namespace])), Ok(Write::Nothing));

    let Write::Replace(emptied) = stored.write(&template, BTreeSet::new()).unwrap() else {
        panic!("not replaced")
    };
    assert_eq!(emptied["data"], json!({"README": ""}));
}

#[test]
fn several_config_maps_of_one_inventory_become_one_and_lose_nothing() {
    let template = template();
    let (web, api) = (id("apps", "Deployment", "a", "web"), id("apps", "Deployment", "a", "api"));
    let first = config_map("inventory-1", "7-42", &["a_web_apps_Deployment"]);
    let second = config_map("inventory-2", "7-42", &["a_api_apps_Deployment"]);
    let stored = Stored::read(vec![second.clone(), first], &template).unwrap();
    assert_eq!(stored.inventory.objects, ids(&[&web, &api]));
    assert_eq!(stored.superfluous, [second]);
    let Write::Replace(union) = stored.write(&template, stored.inventory.objects.clone()).unwrap() else {
        panic!("not replaced")
    };
    assert_eq!(union["metadata"]["name"], "inventory-1");
    assert_eq!(union["data"], json!({"a_api_apps_Deployment": "", "a_web_apps_Deployment": ""}));
}

#[test]
fn the_list_at_the_end_is_what_may_be_in_the_cluster() {
    let object = id("apps", "Deployment", "a", "web");
    let untouched = id("apps", "Deployment", "a", "api");
    for (outcome, if_new, if_listed) in [
        (Outcome::Applied, true, true),
        (Outcome::NotApplied, false, true),
        (Outcome::Unanswered, true, true),
        (Outcome::Gone, false, false),
        (Outcome::Undeleted, true, true),
        (Outcome::Left, false, false),
    ] {
        for (before, expected) in [(ids(&[&untouched]), if_new), (ids(&[&untouched, &object]), if_listed)] {
            let after = exact(&before, [(object.clone(), outcome)]);
            assert_eq!(after.contains(&object), expected, "{outcome:?}");
            assert!(after.contains(&untouched));
        }
    }
}
