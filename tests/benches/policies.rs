//! What policies cost and how soon an edit is in force: the figures of `make bench-policies`, printed and written to
//! `target/bench/policies.json`. Asserts nothing but that no stream was dropped.
//!
//! The time is that from the rename of a file to the first decision by what it says, as somebody met it who asks each
//! process all the time, while 100 agents hold 200 tunnels and callers send 500 requests a second through the edge. What a
//! decision costs is measured by `policies/benches/decide.rs`, whose lines are read from the file in `POSTERN_DECISIONS`.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail right where it stands")]

#[path = "../policies/field.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod field;
#[path = "../harness.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod harness;

use field::{Field, PROCESSES, Word};
use serde_json::{Value, json};
use std::{fs, path::Path, process::ExitCode, time::Duration};
use tokio::time::{Instant, sleep_until};

const EDITS: usize = 200;
/// From the start of one edit to that of the next, if it is in force by then.
const EVERY: Duration = Duration::from_millis(150);

#[tokio::main]
async fn main() -> ExitCode {
    // First: without them there is nothing to measure the rest for.
    let decisions = match decisions() {
        Ok(decisions) => decisions,
        Err(missing) => {
            eprintln!("{missing}; run `make bench-policies`");
            return ExitCode::FAILURE;
        }
    };
    let mut field = Field::start().await;
    let load = field.load();
    let mut after = vec![Vec::with_capacity(EDITS); PROCESSES.len()];
    for edit in 0..EDITS {
        let word = if edit % 2 == 0 { Word::Shut } else { Word::Open };
        let begin = field.edit(word);
        for (process, time) in field.meets(word, begin).await.into_iter().enumerate() {
            after[process].push(time);
        }
        sleep_until(begin + EVERY).await;
    }
    let begin = Instant::now();
    let outcomes = load.stop().await;
    println!(
        "{:<10}{:>10}{:>10}{:>10}   of {EDITS} edits, rename to first decision",
        "", "p50", "p99", "max"
    );
    let mut worst = Duration::ZERO;
    for (name, times) in PROCESSES.iter().zip(&mut after) {
        times.sort_unstable();
        let at = |share: f64| times[((times.len() - 1) as f64 * share).round() as usize];
        println!("{name:<10}{:>10.1?}{:>10.1?}{:>10.1?}", at(0.5), at(0.99), at(1.0));
        worst = worst.max(at(0.99));
    }
    let tally = field.agents.tally();
    let unanswered: u64 =
        outcomes.iter().filter(|(outcome, _)| *outcome != "200").map(|(_, count)| count).sum();
    let dropped = unanswered + tally.failed + tally.moved;
    println!("answers {outcomes:?}, agents {tally:?}, the last answers after {:?}", begin.elapsed());
    println!("decisions {decisions}");
    let figures = json!({
        "decision_ns": decisions["decision_ns"],
        "decision_allocs": decisions["decision_allocs"],
        "reload_p99_ms": (worst.as_secs_f64() * 1e5).round() / 1e2,
        "dropped_streams": dropped,
    });
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent").join("target/bench");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("policies.json");
    fs::write(&file, format!("{figures:#}\n")).unwrap();
    println!("{figures}\nwritten to {}", file.display());
    if dropped == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Lines such as `decision_ns 120`. `Err`: which figures are missing, and where.
fn decisions() -> Result<Value, String> {
    let file =
        std::env::var("POSTERN_DECISIONS").map_err(|_| "POSTERN_DECISIONS names no file".to_owned())?;
    let text = fs::read_to_string(&file).map_err(|error| format!("POSTERN_DECISIONS {file}: {error}"))?;
    let pairs = text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), json!(value.trim().parse::<f64>().ok()?)))
    });
    let decisions = Value::Object(pairs.collect());
    match ["decision_ns", "decision_allocs"].into_iter().find(|name| !decisions[*name].is_number()) {
        Some(name) => Err(format!("POSTERN_DECISIONS {file}: there is no line `{name} NUMBER`")),
        None => Ok(decisions),
    }
}
