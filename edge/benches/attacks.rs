//! How long honest callers wait while strangers do harm, against how long they wait otherwise, with an optimised edge:
//! the table of `make bench-attacks`. Ends with an error where the others' p99 is more than twice its quiet value, a
//! call of theirs failed, or memory grew past its bound.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail right where it stands")]
#![expect(dead_code, reason = "the tests use the rest of what is shared")]

#[path = "../tests/edge/attacks.rs"]
mod attacks;
#[path = "../tests/edge/clients.rs"]
mod clients;
#[path = "../tests/edge/harness.rs"]
mod harness;
#[path = "../tests/edge/upstreams.rs"]
mod upstreams;

use attacks::kinds::ATTACKS;
use attacks::{Field, Outcome, SHORT};
use std::process::ExitCode;
use std::time::Duration;

/// The edge forgives within four seconds: each attack finds it as the first one did.
const EACH: Duration = Duration::from_secs(4);
const TIMES: usize = 2;
const RATIO: f64 = 2.0;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let field = Field::begin(SHORT).await;
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let mut well = true;
    println!("{}", Outcome::HEAD);
    for attack in ATTACKS.iter().filter(|attack| attack.name.contains(&wanted)) {
        let outcome = field.suffer(attack, EACH, TIMES).await;
        let fine = outcome.under.failed == 0 && outcome.growth() <= attack.memory && outcome.ratio() <= RATIO;
        println!("{}{}", outcome.row(), if fine { "" } else { "  NOT WELL" });
        well &= fine;
    }
    if wanted.is_empty() {
        for outcome in field.lose_a_broker(EACH).await {
            println!("{}", outcome.row());
        }
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
