//! How long honest callers wait while strangers do harm, against how long they wait otherwise, with an optimised edge:
//! the table of `make bench-attacks`. Ends with an error where the others' p99 is more than twice its quiet value (in the
//! median of three looks, where the first one says so), a call of theirs failed, or memory grew past its bound. The first argument chooses attacks by a part of their names;
//! with POSTERN_ATTACK_EVERYWHERE each of their connections comes from another address.

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

use attacks::ground::From;
use attacks::kinds::ATTACKS;
use attacks::{Field, Outcome, SHORT};
use std::process::ExitCode;
use std::time::Duration;

/// The edge forgives within four seconds: each attack finds it as the first one did.
const EACH: Duration = Duration::from_secs(4);
const TIMES: usize = 2;
const RATIO: f64 = 2.0;
/// At an attack beside which callers seem to wait too long.
const LOOKS: usize = 3;

#[tokio::main(worker_threads = 2)]
async fn main() -> ExitCode {
    let field = Field::begin(SHORT).await;
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    let everywhere = std::env::var_os("POSTERN_ATTACK_EVERYWHERE").is_some();
    if !field.keep_apart() {
        println!("one processor for all: what is measured is also who gets it");
    }
    let mut well = true;
    println!("{}", Outcome::HEAD);
    let chosen = ATTACKS.iter().zip(1..).filter(|(attack, _)| attack.name.contains(&wanted));
    for (attack, last) in chosen {
        let from = if everywhere { From::Everywhere } else { From::One(last) };
        let mut ratios = Vec::new();
        let mut fine = true;
        // The quiet value itself differs by a factor of two from one look to the next: what seems too slow is looked at
        // again, and the median counts.
        while ratios.is_empty() || ratios.len() < LOOKS && ratios[0] > RATIO {
            let outcome = field.suffer(attack, from, EACH, TIMES).await;
            fine &= outcome.under.failed == 0 && outcome.growth() <= attack.memory;
            ratios.push(outcome.ratio());
            println!("{}", outcome.row());
        }
        ratios.sort_by(f64::total_cmp);
        let median = ratios[ratios.len() / 2];
        fine &= median <= RATIO;
        if ratios.len() > 1 || !fine {
            println!("{:37} median ratio {median:.2}{}", "", if fine { "" } else { "  NOT WELL" });
        }
        well &= fine;
    }
    if wanted.is_empty() {
        for outcome in field.lose_a_broker(EACH).await {
            println!("{}", outcome.row());
        }
    }
    if well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
