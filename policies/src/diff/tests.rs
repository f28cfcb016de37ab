//! Pairs of directories and the lines that tell them apart.

use super::diff;
use crate::explain::tests::set;

/// The changes as people see them, with directories left out.
fn lines(before: &[(&str, &str, &str)], after: &[(&str, &str, &str)]) -> Vec<String> {
    let lines = diff(&set(before), &set(after));
    lines
        .iter()
        .map(|change| {
            let line = change.to_string();
            let words = line.split(' ').map(|word| {
                word.rsplit_once('/').filter(|_| word.starts_with('/')).map_or(word, |(_, file)| file)
            });
            words.collect::<Vec<_>>().join(" ")
        })
        .collect()
}

const ALL: (&str, &str, &str) = ("LimitPolicy", "all", "spec: {streamsPerToken: 50}");
const ONE: (&str, &str, &str) = ("LimitPolicy", "one", "match: {agentIds: [42]}\nspec: {streamsPerToken: 5}");

#[test]
fn what_is_the_same_is_no_change() {
    assert!(lines(&[], &[]).is_empty());
    assert!(lines(&[ALL, ONE], &[ALL, ONE]).is_empty());
    // Other lines, other files, other names, the same written otherwise.
    let moved = ("LimitPolicy", "all", "\n\n# A word.\nspec:\n  streamsPerToken: 50");
    let renamed = ("LimitPolicy", "first", "match: {agentIds: [42]}\nspec: {streamsPerToken: 5}");
    assert!(lines(&[ALL, ONE], &[moved, renamed]).is_empty());
    let rates = ["spec: {requestsPerIp: {perMinute: 120}}", "spec: {requestsPerIp: {rate: 2, burst: 120}}"];
    let [before, after] = rates.map(|rest| [("LimitPolicy", "all", rest)]);
    assert!(lines(&before, &after).is_empty());
}

#[test]
fn changes_name_the_field_the_selector_and_both_values() {
    assert_eq!(
        lines(&[ALL], &[ALL, ONE]),
        ["+ LimitPolicy streamsPerToken for agentIds: [42]: 5 (one, one.yaml:5); was 50 (all, all.yaml:4)"]
    );
    assert_eq!(
        lines(&[ALL, ONE], &[ALL]),
        ["- LimitPolicy streamsPerToken for agentIds: [42]: 5 (one, one.yaml:5); then 50 (all, all.yaml:4)"]
    );
    assert_eq!(
        lines(&[ALL], &[]),
        [
            "- LimitPolicy streamsPerToken for everybody: 50 (all, all.yaml:4); then as the program's own configuration says"
        ]
    );
    let other = ("LimitPolicy", "one", "match: {agentIds: [42]}\nspec: {streamsPerToken: 6, bodyBytes: 9}");
    assert_eq!(
        lines(&[ALL, ONE], &[ALL, other]),
        [
            "~ LimitPolicy streamsPerToken for agentIds: [42]: 5 -> 6 (one, one.yaml:5)",
            "+ LimitPolicy bodyBytes for agentIds: [42]: 9 (one, one.yaml:5); was as the program's own configuration says",
        ]
    );
}

#[test]
fn a_document_for_others_is_one_change() {
    let others = (
        "LimitPolicy",
        "one",
        "match: {agentIds: [43], clientCidrs: [10.0.0.0/8]}\nspec: {streamsPerToken: 5}",
    );
    assert_eq!(
        lines(&[ONE], &[others]),
        [
            "~ LimitPolicy streamsPerToken for agentIds: [42]: 5 (one, one.yaml:5) -> for agentIds: [43], clientCidrs: \
         [10.0.0.0/8]: 5 (one, one.yaml:5)"
        ]
    );
    let reports = ("LimitPolicy", "one", "mode: report\nmatch: {agentIds: [42]}\nspec: {streamsPerToken: 5}");
    assert_eq!(
        lines(&[ONE], &[reports]),
        [
            "~ LimitPolicy streamsPerToken for agentIds: [42]: 5 (one, one.yaml:5) -> for agentIds: [42], mode: report: 5 (one, \
         one.yaml:6)"
        ]
    );
    let canary = |share| format!("canary: {share}\nmatch: {{agentIds: [42]}}\nspec: {{streamsPerToken: 5}}");
    let [small, large] = ["0.25%", "12.5%"].map(canary);
    assert_eq!(
        lines(&[("LimitPolicy", "one", &small)], &[("LimitPolicy", "one", &large)]),
        [
            "~ LimitPolicy streamsPerToken for agentIds: [42], canary: 0.25%: 5 (one, one.yaml:6) -> for agentIds: [42], canary: \
         12.5%: 5 (one, one.yaml:6)"
        ]
    );
}

#[test]
fn changes_of_rules_for_callers_are_seen_whatever_their_lines() {
    let rules = |line: &str, verb: &str| {
        format!(
            "{line}spec: {{kubernetesApi: {{otherwise: deny, rules: [{{effect: allow, verbs: [{verb}]}}]}}}}"
        )
    };
    let [before, moved, other] = [rules("", "get"), rules("# A word.\n", "get"), rules("", "list")];
    let [before, moved, other] =
        [&before, &moved, &other].map(|rest| [("AccessPolicy", "callers", rest.as_str())]);
    assert!(lines(&before, &moved).is_empty());
    assert_eq!(
        lines(&before, &other),
        [
            "~ AccessPolicy kubernetesApi for everybody: {rules: [{effect: allow, verbs: [get]}], otherwise: deny} -> {rules: \
         [{effect: allow, verbs: [list]}], otherwise: deny} (callers, callers.yaml:4)"
        ]
    );
}
