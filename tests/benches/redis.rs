//! What brokers ask of Redis at rest, against the published load of a kas, and whether refreshing the entries of many
//! agents delays requests. Counted by Redis itself. `make bench-redis` runs it with the programs as `make` builds them:
//! what is counted does not depend on how fast they are, and of times only ratios are of interest.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail right where it stands")]

#[path = "../harness.rs"]
#[expect(dead_code, reason = "the tests use the rest of it")]
mod harness;

#[path = "redis/load.rs"]
mod load;
#[path = "redis/refresh.rs"]
mod refresh;

use std::{process::ExitCode, time::Duration};

/// Shorter trials say so and judge nothing.
const SECONDS: &str = "POSTERN_BENCH_SECONDS";

#[tokio::main]
async fn main() -> ExitCode {
    let trial = std::env::var(SECONDS).ok().map(|text| {
        let seconds = text.parse().unwrap_or_else(|_| panic!("{SECONDS}={text:?}: a number is wanted"));
        Duration::from_secs(seconds)
    });
    println!("programs: {}", harness::binary("kas").parent().unwrap().display());
    let good = load::measure(trial).await;
    println!();
    refresh::measure(trial).await;
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
