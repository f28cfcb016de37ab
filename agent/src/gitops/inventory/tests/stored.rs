//! Which ConfigMap is the inventory, how it is read, and when it is written.

use super::*;

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
    let (template, _) = take(vec![manifest("ConfigMap", elsewhere, 1)]).unwrap();
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
fn no_default_inventory_is_made_up_while_the_projects_own_may_be_unread() {
    let file = |text: &'static str| File { source: "a.yaml".to_owned(), data: text.into() };
    let files = [file("kind: ["), file("metadata: {labels: {cli-utils.sigs.k8s.io/inventory-id: a")];
    assert_eq!(template().certain(&files), Err(InventoryError::Hidden));
    assert_eq!(template().certain(&files[..1]), Ok(()));
    let own = manifest("ConfigMap", json!({"name": "list", "labels": {LABEL: "mine"}}), 1);
    assert_eq!(take(vec![own]).unwrap().0.certain(&files), Ok(()));
}

#[test]
fn a_template_with_the_shared_name_gets_one_of_its_own() {
    let name = |inventory_id: &str| {
        let metadata = json!({"name": "inventory", "labels": {LABEL: inventory_id}});
        take(vec![manifest("ConfigMap", metadata, 1)]).unwrap().0.name
    };
    let (one, other) = (name("one"), name("other"));
    assert_ne!(one, other);
    assert_eq!(one, name("one"));
    assert!(one.len() == "inventory-12345678".len() && one.starts_with("inventory-"), "{one}");
}

#[test]
fn templates_that_nobody_could_use_are_told_with_their_place() {
    let labelled = |inventory_id: &str| json!({"name": "list", "labels": {LABEL: inventory_id}});
    let refused = |objects| take(objects).unwrap_err().to_string();
    let two = vec![manifest("ConfigMap", labelled("a"), 1), manifest("ConfigMap", labelled("b"), 9)];
    assert!(refused(two).ends_with("the first is at a.yaml:1, the second at a.yaml:9"));
    let group = refused(vec![manifest("ResourceGroup", labelled("a"), 3)]);
    assert!(group.starts_with("a.yaml:3:1: ResourceGroup list carries the label"), "{group}");
    for illegal in ["a b", "-a", "a.", &"a".repeat(64), "ä"] {
        let text = refused(vec![manifest("ConfigMap", labelled(illegal), 3)]);
        assert!(text.starts_with("a.yaml:3:1: the label"), "{text}");
    }
    // An empty label is none.
    let unlabelled = vec![manifest("ConfigMap", labelled(" "), 1)];
    assert_eq!(take(unlabelled).unwrap().1.len(), 1);
}

#[test]
fn no_template_names_the_inventory_of_another_project() {
    let labelled = |inventory_id: &str| json!({"name": "list", "labels": {LABEL: inventory_id}});
    for (inventory_id, taken) in [
        ("7-42", true),
        ("7-43", false),
        ("7-042", false),
        ("7-4", false),
        ("8-43", true),
        ("17-43", true),
        ("7-43.a", true),
        ("7", true),
    ] {
        match take(vec![manifest("ConfigMap", labelled(inventory_id), 3)]) {
            Ok((template, _)) => assert!(taken && template.id == inventory_id, "{inventory_id}"),
            Err(error) => {
                let text = error.to_string();
                let told =
                    text.starts_with("a.yaml:3:1: the label") && text.contains("this one has the number 42");
                assert!(!taken && told, "{inventory_id}: {text}");
            }
        }
    }
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
