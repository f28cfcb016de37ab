//! Directories of policies, good and bad, and what comes of them.

use std::num::NonZeroU32;
use std::time::Duration;

use super::*;
use crate::RateLimit;

fn directory(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn complaints(files: &[(&str, &str)]) -> Vec<String> {
    let directory = directory(files);
    let problems = load_dir(directory.path()).unwrap_err();
    let prefix = format!("{}/", directory.path().display());
    problems.to_string().replace(&prefix, "").lines().map(str::to_owned).collect()
}

fn limit(name: &str, spec: &str) -> String {
    format!("apiVersion: postern/v1\nkind: LimitPolicy\nmetadata:\n  name: {name}\nspec:\n{spec}")
}

fn n(count: u32) -> NonZeroU32 {
    NonZeroU32::new(count).unwrap()
}

#[test]
fn the_shipped_policy_is_valid_and_says_what_it_says() {
    let limit = Policy::shipped().requests_per_token.unwrap();
    assert_eq!((limit.rule.as_str(), limit.rate), ("default", RateLimit::per_minute(n(40_000))));
}

#[test]
fn both_ways_to_write_a_rate_are_read() {
    let both = [
        ("  requestsPerToken: {perMinute: 120}\n", Duration::from_millis(500), 120),
        ("  match: {}\n  requestsPerToken:\n    rate: 4\n    burst: 9\n", Duration::from_millis(250), 9),
    ];
    for (spec, interval, burst) in both {
        let directory = directory(&[("a.yml", &limit("a", spec))]);
        let rate = load_dir(directory.path()).unwrap().requests_per_token.unwrap().rate;
        assert_eq!((rate.interval(), rate.burst()), (interval, n(burst)));
    }
    let fast = RateLimit::per_second(n(u32::MAX), n(1));
    assert_eq!(fast.interval(), Duration::from_nanos(1));
}

#[test]
fn several_documents_and_files_make_one_policy_and_other_files_are_left_alone() {
    let two =
        format!("# about\n---\n{}---\n# nothing\n---\n{}", limit("a", "  {}\n"), limit("b", "  match: {}\n"));
    let directory = directory(&[
        ("1.yaml", &two),
        ("2.yaml", &limit("c", "  requestsPerToken: {perMinute: 7}\n")),
        ("notes.txt", "not a policy"),
        (".hidden.yaml", "nor: this"),
    ]);
    fs::create_dir(directory.path().join("sub.yaml")).unwrap();
    let limit = load_dir(directory.path()).unwrap().requests_per_token.unwrap();
    assert_eq!(limit.rule, "c");
}

#[test]
fn every_problem_is_told_at_once_with_file_line_and_path() {
    let several = [
        &limit("Big_Name", "  requestsPerToken:\n    rate: 0\n    burst: -1\n"),
        "---\n",
        &limit("extra", "  match:\n    agentIds: [1]\n"),
        "--- # comment\n",
        "apiVersion: postern/v2\nkind: LimitPolicy\n",
        "---\n",
        "apiVersion: postern/v1\nkind: Limits\n",
        "---\n",
        "a: [unclosed\n",
        "---\n",
        "just a word\n",
    ]
    .concat();
    let second = limit("two", "  requestsPerToken:\n    perMinute: 1\n    rate: 5\n");
    let told = complaints(&[("a.yaml", &several), ("b.yaml", &second), ("c.yaml", "\0")]);
    let wanted = [
        "a.yaml:4: metadata.name: got \"Big_Name\", want 1 to 63 of a-z, 0-9 and '-'",
        "a.yaml:7: spec.requestsPerToken.rate: got 0, want 1 to 4294967295",
        "a.yaml:8: spec.requestsPerToken.burst: got -1, want 1 to 4294967295",
        "a.yaml:16: spec.match: unknown field `agentIds`",
        "a.yaml:18: apiVersion: got \"postern/v2\", want \"postern/v1\"",
        "a.yaml:22: kind: got \"Limits\", want \"LimitPolicy\"",
        "a.yaml:2",
        "a.yaml:2",
        "b.yaml:7: spec.requestsPerToken.perMinute: stands alone; want either perMinute, or rate and burst",
        "c.yaml",
    ];
    assert_eq!(told.len(), wanted.len(), "{told:#?}");
    for (told, wanted) in told.iter().zip(wanted) {
        assert!(told.starts_with(wanted), "{told:?} should begin with {wanted:?}");
    }
}

#[test]
fn half_a_rate_two_documents_with_one_name_and_two_limits_for_everybody_are_refused() {
    let told = complaints(&[("a.yaml", &limit("a", "  requestsPerToken: {rate: 1}\n"))]);
    assert_eq!(told, ["a.yaml:6: spec.requestsPerToken.burst: missing; rate needs it"]);
    let told = complaints(&[("a.yaml", &limit("a", "  requestsPerToken: {}\n"))]);
    assert_eq!(told.len(), 1, "{told:?}");

    let one = limit("same", "  requestsPerToken: {perMinute: 1}\n");
    let told = complaints(&[("a.yaml", &one), ("b.yaml", &one)]);
    assert_eq!(told.len(), 2, "{told:?}");
    assert!(
        told[0].starts_with("b.yaml:4: metadata.name: there is another LimitPolicy \"same\" in a.yaml"),
        "{told:?}"
    );
    assert!(told[1].starts_with("b.yaml:6: spec.requestsPerToken: LimitPolicy \"same\" sets it"), "{told:?}");
}

#[test]
fn a_directory_that_is_missing_or_empty_is_a_problem() {
    let empty = tempfile::tempdir().unwrap();
    let told = load_dir(empty.path()).unwrap_err().to_string();
    assert!(told.contains("no policy here"), "{told}");
    let told = load_dir(&empty.path().join("nowhere")).unwrap_err().to_string();
    assert!(told.contains("nowhere: cannot be read: No such file"), "{told}");
}
