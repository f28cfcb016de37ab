//! Policies that are edited while an edge and three brokers serve: all of them obey, and nobody loses anything.

#[path = "policies/field.rs"]
mod field;

use field::{Field, Load, PROCESSES, Word};
use std::{collections::BTreeMap, fs, time::Duration};
use tokio::time::Instant;

const EDITS: usize = 40;
/// At each process after a bad edit.
const LOOKS: u64 = 20;

#[tokio::test]
async fn every_process_obeys_each_edit_and_no_stream_is_dropped() {
    let mut field = Field::start().await;
    let load = field.load();
    let mut after = Vec::new();
    for edit in 0..EDITS {
        let word = if edit % 2 == 0 { Word::Shut } else { Word::Open };
        let begin = field.edit(word);
        after.push(field.meets(word, begin).await);
    }
    for (process, name) in PROCESSES.iter().enumerate() {
        let mut times: Vec<Duration> = after.iter().map(|edit| edit[process]).collect();
        times.sort_unstable();
        println!(
            "{name}: half of {EDITS} edits in force after {:?}, all after {:?}",
            times[EDITS / 2],
            times[EDITS - 1]
        );
    }
    unharmed(&field, load).await;
}

#[tokio::test]
async fn a_bad_edit_changes_nothing_for_anybody_and_is_told() {
    let mut field = Field::start().await;
    field.edit(Word::Shut);
    field.stands(Word::Shut).await;
    let load = field.load();
    fs::write(field.folder().join("second.yaml"), "apiVersion: postern/v1\nkind: LimitPolicyy\n").unwrap();
    field.complain("LimitPolicyy").await;
    field.keeps(Word::Shut, LOOKS).await;
    // The good half of the files is not in force either while the other half is bad.
    field.edit(Word::Open);
    fs::write(field.folder().join("second.yaml"), "apiVersion: postern/v2\n").unwrap();
    field.complain("postern/v2").await;
    field.keeps(Word::Shut, LOOKS).await;
    fs::remove_file(field.folder().join("second.yaml")).unwrap();
    let begin = Instant::now();
    field.meets(Word::Open, begin).await;
    unharmed(&field, load).await;
}

/// All requests were answered, and all tunnels are where they were.
async fn unharmed(field: &Field, load: Load) {
    let outcomes = load.stop().await;
    println!("answers: {outcomes:?}");
    let answered = outcomes.get("200").copied().unwrap_or_default();
    assert_eq!(outcomes, BTreeMap::from([("200".to_owned(), answered)]));
    let tally = field.agents.tally();
    println!("agents: {tally:?}");
    assert_eq!((tally.failed, tally.moved), (0, 0), "{:?}", tally.failures);
}
