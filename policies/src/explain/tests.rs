//! What is said of a subject, from documents as they are written.

use crate::{Explained, PolicySet, Subject, load_dir};
use std::collections::HashSet;
use std::path::Path;

/// The set of files that hold documents with the head left out: each entry is a kind, a name and the rest of the document.
pub(crate) fn set(documents: &[(&str, &str, &str)]) -> PolicySet {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("none.yaml"), "# nothing\n").unwrap();
    for (kind, name, rest) in documents {
        let text = format!("apiVersion: postern/v1\nkind: {kind}\nmetadata: {{name: {name}}}\n{rest}\n");
        std::fs::write(directory.path().join(format!("{name}.yaml")), text).unwrap();
    }
    load_dir(directory.path()).unwrap_or_else(|problems| panic!("{problems}"))
}

fn of<'a>(explained: &'a [Explained], field: &str) -> &'a Explained {
    explained.iter().find(|one| one.field == field).unwrap()
}

/// A rule without its directory.
fn at(rule: &crate::Rule) -> String {
    format!("{} {}", rule.name, rule.line)
}

#[test]
fn every_field_says_what_holds_and_which_document_says_so() {
    let set = set(&[
        ("LimitPolicy", "all", "spec: {requestsPerToken: {perMinute: 600}, streamsPerToken: 50}"),
        ("LimitPolicy", "one", "match: {agentIds: [42]}\nspec: {requestsPerToken: {rate: 1, burst: 5}}"),
        ("LimitPolicy", "two", "match: {agentIds: [43]}\nspec: {requestsPerToken: unlimited}"),
        ("LimitPolicy", "net", "match: {clientCidrs: [10.0.0.0/8]}\nspec: {requestsPerToken: unlimited}"),
        ("LimitPolicy", "some", "canary: 5%\nspec: {requestsPerToken: unlimited}"),
        ("LimitPolicy", "try", "mode: report\nspec: {streamsPerToken: 5}"),
        ("ConnectionPolicy", "age", "spec: {maxAge: 1h30m, drain: {grace: 0.5s}}"),
    ]);
    let subject =
        Subject { agent_id: Some(42), client: Some("192.0.2.1".parse().unwrap()), ..Subject::default() };
    let explained = set.explain(&subject);
    let rate = of(&explained, "requestsPerToken");
    assert_eq!(rate.value.as_deref(), Some("{rate: 1, burst: 5}"));
    assert_eq!((at(rate.rule.as_ref().unwrap()), &rate.reported), ("one 5".to_owned(), &None));
    let why: Vec<_> = rate.passed_over.iter().map(|one| (one.rule.name.as_str(), one.why.as_str())).collect();
    assert_eq!(
        why,
        [
            ("all", "another document is more specific"),
            ("some", "it is a canary for 5% of the tokens, and no token is known here"),
            ("net", "its clientCidrs are others"),
            ("two", "its agentIds are others"),
        ]
    );
    let streams = of(&explained, "streamsPerToken");
    assert_eq!((streams.value.as_deref(), streams.passed_over.len()), (Some("50"), 0));
    let reported = streams.reported.as_ref().unwrap();
    assert_eq!((reported.value.as_str(), at(&reported.rule)), ("5", "try 5".to_owned()));
    assert_eq!(of(&explained, "maxAge").value.as_deref(), Some("5400s"));
    assert_eq!(of(&explained, "drain.grace").value.as_deref(), Some("0.5s"));
    let none = of(&explained, "idlePerAgent");
    assert_eq!((&none.value, &none.rule, none.passed_over.len()), (&None, &None, 0));
    assert_eq!(none.to_string(), "TunnelPolicy idlePerAgent: as the program's own configuration says");
    let text = streams.to_string();
    assert!(text.starts_with("LimitPolicy streamsPerToken: 50 (all, /"), "{text}");
    assert!(text.contains("\n  reported, not enforced: 5 (try, /"), "{text}");
}

#[test]
fn a_token_is_told_whether_it_is_in_a_canary() {
    let set = set(&[
        ("LimitPolicy", "all", "spec: {streamsPerToken: 50}"),
        ("LimitPolicy", "some", "canary: 50%\nspec: {streamsPerToken: 60}"),
    ]);
    let explained = |last: u16| {
        let mut hash = [0; 32];
        hash[6..8].copy_from_slice(&last.to_be_bytes());
        let explained = set.explain(&Subject { token_hash: Some(&hash), ..Subject::default() });
        let streams = of(&explained, "streamsPerToken");
        (streams.value.clone().unwrap(), streams.passed_over[0].why.clone())
    };
    assert_eq!(explained(4_999), ("60".to_owned(), "another document is more specific".to_owned()));
    let outside = "it is a canary for 50% of the tokens, and this is none of them";
    assert_eq!(explained(5_000), ("50".to_owned(), outside.to_owned()));
}

#[test]
fn values_are_said_as_they_would_be_written() {
    let rules = "{rules: [{effect: deny, access: [ci], verbs: [get, list], resources: [secrets, pods/*], namespaces: [prod*]}, \
                 {effect: allow, userIds: [1, 2], projectIds: [7], paths: [/version]}], otherwise: allow}";
    let set = set(&[
        ("AccessPolicy", "callers", &format!("spec: {{kubernetesApi: {rules}}}")),
        (
            "AccessPolicy",
            "clients",
            "spec: {clients: {allow: [10.0.0.0/8], deny: [10.1.0.0/16, \"2001:db8::/32\"]}}",
        ),
        ("BackendPolicy", "calls", "spec: {gitaly: {rate: {perSecond: 2.5, burst: 50}}}"),
        (
            "LimitPolicy",
            "lost",
            "spec: {redisLost: deny, bodyBytes: 0, requestsPerIp: {rate: 10, burst: 60}}",
        ),
    ]);
    let explained =
        set.explain(&Subject { client: Some("192.0.2.1".parse().unwrap()), ..Subject::default() });
    for (field, value) in [
        ("kubernetesApi", rules),
        ("clients", "{allow: [10.0.0.0/8], deny: [10.1.0.0/16, 2001:db8::/32]}"),
        ("gitaly.rate", "{perSecond: 2.5, burst: 50}"),
        ("redisLost", "deny"),
        ("bodyBytes", "0"),
        ("requestsPerIp", "{rate: 10, burst: 60}"),
    ] {
        assert_eq!(of(&explained, field).value.as_deref(), Some(value), "{field}");
    }
}

#[test]
fn every_field_that_ships_is_explained() {
    let shipped = load_dir(Path::new(env!("CARGO_MANIFEST_DIR"))).unwrap();
    let explained = shipped.explain(&PolicySet::everybody());
    let names: HashSet<_> = explained.iter().map(|one| (one.kind, one.field)).collect();
    assert_eq!(names.len(), explained.len());
    // A field that is added to the sets and not to the table is not in this text.
    let meant = include_str!("../meant.rs");
    assert_eq!(meant.matches(": Rules<").count(), explained.len());
    assert!(!shipped.is_empty() && PolicySet::empty().is_empty());
}

#[test]
fn of_many_documents_that_do_not_decide_the_first_are_named() {
    let many: String = (1..=300).map(|id| format!("---\napiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: p{id}}}\nmatch: {{agentIds: [{id}]}}\nspec: {{streamsPerToken: {id}}}\n")).collect();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("many.yaml"), many).unwrap();
    let explained =
        load_dir(directory.path()).unwrap().explain(&Subject { agent_id: Some(7), ..Subject::default() });
    let streams = of(&explained, "streamsPerToken");
    assert_eq!((streams.passed_over.len(), streams.more_passed_over), (100, 199));
}
