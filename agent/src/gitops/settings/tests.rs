//! What the words of a configuration mean, and which are refused.

use super::*;

type Edit = fn(&mut ManifestProjectCf);

fn project(edit: impl FnOnce(&mut ManifestProjectCf)) -> ManifestProjectCf {
    let mut project = ManifestProjectCf { id: "group/a".to_owned(), ..Default::default() };
    edit(&mut project);
    project
}

fn seconds(seconds: i64, nanos: i32) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos })
}

#[test]
fn an_entry_that_says_nothing_gets_the_defaults_of_agentk() {
    let expected = Settings {
        default_namespace: "default".to_owned(),
        reconcile_timeout: Duration::from_secs(3600),
        dry_run: DryRun::None,
        prune: true,
        prune_timeout: Duration::from_secs(3600),
        propagation: Propagation::Foreground,
        policy: Policy::MustMatch,
    };
    assert_eq!(Settings::of(&project(|_| {})), Ok(expected));
}

#[test]
fn every_word_of_the_configuration_has_its_meaning() {
    for (text, expected) in
        [("none", DryRun::None), ("client", DryRun::Client), ("server", DryRun::Server), ("", DryRun::None)]
    {
        let settings = Settings::of(&project(|project| project.dry_run_strategy = text.to_owned())).unwrap();
        assert_eq!(settings.dry_run, expected, "{text}");
        assert_eq!(settings.dry_run.is_dry(), matches!(text, "client" | "server"), "{text}");
    }
    for (text, expected, sent) in [
        ("orphan", Propagation::Orphan, "Orphan"),
        ("background", Propagation::Background, "Background"),
        ("foreground", Propagation::Foreground, "Foreground"),
    ] {
        let settings = Settings::of(&project(|project| project.prune_propagation_policy = text.to_owned()));
        assert_eq!(settings.as_ref().unwrap().propagation, expected);
        assert_eq!(settings.unwrap().propagation.as_str(), sent);
    }
    for (text, expected) in [
        ("must_match", Policy::MustMatch),
        ("adopt_if_no_inventory", Policy::AdoptIfNoInventory),
        ("adopt_all", Policy::AdoptAll),
    ] {
        let settings = Settings::of(&project(|project| project.inventory_policy = text.to_owned())).unwrap();
        assert_eq!(settings.policy, expected);
    }
    for prune in [true, false] {
        let chosen = project(|project| project.prune_oneof = Some(PruneOneof::Prune(prune)));
        assert_eq!(Settings::of(&chosen).unwrap().prune, prune);
    }
}

#[test]
fn a_time_of_zero_is_not_the_default() {
    let chosen = project(|project| {
        project.reconcile_timeout = seconds(0, 0);
        project.prune_timeout = seconds(90, 500_000_000);
    });
    let settings = Settings::of(&chosen).unwrap();
    assert_eq!(settings.reconcile_timeout, Duration::ZERO);
    assert_eq!(settings.prune_timeout, Duration::from_millis(90_500));
}

#[test]
fn what_nobody_understands_is_refused_with_what_may_be_said() {
    let refused = |edit: Edit| Settings::of(&project(edit)).unwrap_err().to_string();
    let table: [(Edit, &str); 8] = [
        (
            |project| project.dry_run_strategy = "Server".to_owned(),
            "manifest project \"group/a\": dry_run_strategy is \"Server\"; it must be one of none, client and server",
        ),
        (
            |project| project.prune_propagation_policy = "cascade".to_owned(),
            "manifest project \"group/a\": prune_propagation_policy is \"cascade\"; it must be one of orphan, \
             background and foreground",
        ),
        (
            |project| project.inventory_policy = "adopt".to_owned(),
            "manifest project \"group/a\": inventory_policy is \"adopt\"; it must be one of must_match, \
             adopt_if_no_inventory and adopt_all",
        ),
        (
            |project| project.reconcile_timeout = seconds(-1, 0),
            "manifest project \"group/a\": reconcile_timeout must be between 0s and 366 days, as in \"3600s\"",
        ),
        (
            |project| project.prune_timeout = seconds(0, -1),
            "manifest project \"group/a\": prune_timeout must be between 0s and 366 days, as in \"3600s\"",
        ),
        (
            |project| project.prune_timeout = seconds(i64::MAX, i32::MAX),
            "manifest project \"group/a\": prune_timeout must be between 0s and 366 days, as in \"3600s\"",
        ),
        (
            |project| project.default_namespace = "Web".to_owned(),
            "manifest project \"group/a\": default_namespace is \"Web\"; a namespace is at most 63 characters, each \
             of them a-z, 0-9 or '-', with no '-' at either end",
        ),
        (
            |project| project.default_namespace = "-".to_owned(),
            "manifest project \"group/a\": default_namespace is \"-\"; a namespace is at most 63 characters, each of \
             them a-z, 0-9 or '-', with no '-' at either end",
        ),
    ];
    for (edit, expected) in table {
        assert_eq!(refused(edit), expected);
    }
    let long = |length: usize| project(|project| project.default_namespace = "a".repeat(length));
    assert!(Settings::of(&long(63)).is_ok());
    assert!(Settings::of(&long(64)).is_err());
}
