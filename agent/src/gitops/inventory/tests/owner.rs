//! Who may apply and prune what.

use super::*;
use crate::cluster::Kind;

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
        (AdoptIfNoInventory, None, true, false),
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
    in_use.hold_kind(&Kind::new("example.com", "v1", "Widget", "widgets", true));
    let definition = |name: &str| id("apiextensions.k8s.io", "CustomResourceDefinition", "", name);
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
        (definition("widgets.example.com"), mine.clone(), Some(Keep::InUse)),
        (definition("gadgets.example.com"), mine.clone(), None),
        (id("extensions", "Deployment", "a", "web"), applied, Some(Keep::JustApplied)),
        (deployment.clone(), mine, None),
    ] {
        // Not even whoever adopts all may delete these.
        for policy in [Policy::MustMatch, Policy::AdoptAll] {
            let kept = may_prune(policy, &object, Some(&live), "7-42", &in_use).err();
            assert_eq!(kept, expected, "{object} {live}");
        }
    }
    for (keep, forgotten, for_good) in [
        (Keep::Unowned, false, false),
        (Keep::OtherOwner { owner: "8-42".to_owned() }, true, true),
        (Keep::Detached { key: detach, value: "detach" }, true, true),
        (Keep::InUse, false, false),
        (Keep::Needed { by: deployment }, true, true),
        (Keep::JustApplied, true, false),
    ] {
        assert_eq!((keep.forgets(), keep.is_for_good()), (forgotten, for_good), "{keep}");
    }
}

#[test]
fn an_owner_is_set_on_what_is_applied_and_taken_from_what_is_forgotten() {
    for metadata in [json!({}), json!({"annotations": null}), json!({"annotations": {OWNER: "8-42"}})] {
        assert_eq!(owner_of(&own(&json!({"metadata": metadata}), "7-42")), Some("7-42"));
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
        assert_eq!((owner_of(&odd), disown(&odd, "7-42")), (None, None));
    }
    for (key, expected) in [(OWNER, true), ("cli-utils.sigs.k8s.io/on-remove", true), ("note", false)] {
        assert_eq!(is_about_ownership(key), expected, "{key}");
    }
    let long = may_apply(Policy::MustMatch, Some(&owned_by(Some(&"ä".repeat(1000)))), "7-42").unwrap_err();
    assert!(long.len() < 400, "{long}");
}
