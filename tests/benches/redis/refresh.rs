//! Requests to thousands of agents of one broker, while it refreshes their entries every second and while it does not,
//! in turn, each time with a broker and a Redis of its own: nothing of one is at work beside the other.

use crate::harness::{
    agents::Habits,
    brokers::{Brokers, Caller},
    within,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

const AGENTS: usize = 2_000;
const TUNNELS: usize = 2;
/// Between two requests; each is sent when it is time, whether the one before was answered or not.
const PACE: Duration = Duration::from_millis(10);
const ROUND: Duration = Duration::from_secs(10);
const ROUNDS: usize = 3;
/// After all agents stand.
const SETTLE: Duration = Duration::from_secs(2);
const OFTEN: &str = "  redis_conn_info_refresh: 1s\n  redis_conn_info_ttl: 10s\n";
const HARDLY: &str = "  redis_conn_info_refresh: 3000s\n  redis_conn_info_ttl: 3600s\n";

/// One round of one of the two.
struct Round {
    /// Sorted.
    times: Vec<Duration>,
    commands: BTreeMap<String, u64>,
    took: Duration,
}

/// Measures and prints; asserts only that every request was answered and that there was a refresh where there should be.
pub(crate) async fn measure(trial: Option<Duration>) {
    let (length, rounds) = trial.map_or((ROUND, ROUNDS), |trial| (trial.min(ROUND), 1));
    println!(
        "{AGENTS} agents on one broker, {TUNNELS} tunnels each; a request every {PACE:?} to any of them, from the broker's \
         port through the agent and back; {rounds} x {length:?} each, in turn"
    );
    let (mut refreshing, mut still) = (Vec::new(), Vec::new());
    for number in 0..rounds {
        for often in [number % 2 == 0, number % 2 != 0] {
            let round = round(often, length).await;
            if often { refreshing.push(round) } else { still.push(round) }
        }
    }
    println!(
        "{:<16}{:>10}{:>12}{:>12}{:>12}{:>14}{:>14}",
        "refresh", "requests", "p50", "p99", "max", "commands/s", "hset/s"
    );
    let (with, without) = (merge(&refreshing), merge(&still));
    line("every second", &refreshing, &with);
    line("none", &still, &without);
    let ratio = |share| at(&with, share).as_secs_f64() / at(&without, share).as_secs_f64();
    println!("{:<16}{:>10}{:>12.2}{:>12.2}{:>12.2}", "ratio", "", ratio(0.5), ratio(0.99), ratio(1.0));
    let each = |rounds: &[Round]| {
        let all: Vec<_> = rounds.iter().map(|round| format!("{:.2?}", at(&round.times, 0.99))).collect();
        all.join(", ")
    };
    println!("p99 of each round: refreshing {}; not {}", each(&refreshing), each(&still));
}

async fn round(often: bool, length: Duration) -> Round {
    let mut brokers = Brokers::start(1, AGENTS, if often { OFTEN } else { HARDLY }).await;
    let agents = brokers.with_agents(Habits { tunnels: TUNNELS, aged: false }).await;
    let entries = |commands: &BTreeMap<String, u64>| commands.get("hset").copied().unwrap_or_default();
    if often {
        let standing = brokers.auditor.audit().await;
        within(Duration::from_secs(20), "a refresh", async || {
            let since = brokers.auditor.audit().await.since(&standing);
            (entries(&since) >= AGENTS as u64).then_some(())
        })
        .await;
    }
    sleep(SETTLE).await;
    let before = brokers.auditor.audit().await;
    let begin = Instant::now();
    let mut times = requests(&brokers, length).await;
    let took = begin.elapsed();
    let commands = brokers.auditor.audit().await.since(&before);
    let (written, tally) = (entries(&commands), agents.tally());
    assert_eq!(tally.failed, 0, "{tally:?}");
    if often {
        // Each of them, in every second but the broken ones at both ends and a late one.
        let least = AGENTS as u64 * length.as_secs().saturating_sub(3);
        assert!(written >= least, "a refresh every second writes {least} entries at least, not {written}");
    } else {
        assert!(written < AGENTS as u64, "nothing is refreshed, and {written} entries were written");
    }
    times.sort_unstable();
    Round { times, commands, took }
}

/// Each on a connection that carries no other meanwhile.
async fn requests(brokers: &Brokers, length: Duration) -> Vec<Duration> {
    let entrance = brokers.entrance(0);
    let unused: Arc<Mutex<Vec<Caller>>> = Arc::default();
    let mut times = Vec::new();
    let mut under_way = JoinSet::new();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let begin = Instant::now();
    while begin.elapsed() < length {
        pace.tick().await;
        let ((address, token), unused) = (entrance.clone(), Arc::clone(&unused));
        under_way.spawn(async move {
            let kept = unused.lock().unwrap().pop();
            let mut caller = match kept {
                Some(caller) => caller,
                None => Caller::connect(address, &token).await,
            };
            let begin = Instant::now();
            caller.reach(rand::random_range(1..=AGENTS as i64)).await;
            let took = begin.elapsed();
            unused.lock().unwrap().push(caller);
            took
        });
        while let Some(done) = under_way.try_join_next() {
            times.push(done.unwrap());
        }
    }
    while let Some(done) = under_way.join_next().await {
        times.push(done.unwrap());
    }
    times
}

fn merge(rounds: &[Round]) -> Vec<Duration> {
    let mut all: Vec<Duration> = rounds.iter().flat_map(|round| round.times.iter().copied()).collect();
    all.sort_unstable();
    all
}

/// Of sorted times, the one that this share does not exceed.
fn at(times: &[Duration], share: f64) -> Duration {
    let last = times.len() - 1;
    times[((times.len() as f64 * share).ceil() as usize).saturating_sub(1).min(last)]
}

fn line(name: &str, rounds: &[Round], times: &[Duration]) {
    let seconds: f64 = rounds.iter().map(|round| round.took.as_secs_f64()).sum();
    let per_second = |of: &dyn Fn(&Round) -> u64| rounds.iter().map(of).sum::<u64>() as f64 / seconds;
    println!(
        "{name:<16}{:>10}{:>12.2?}{:>12.2?}{:>12.2?}{:>14.1}{:>14.1}",
        times.len(),
        at(times, 0.5),
        at(times, 0.99),
        at(times, 1.0),
        per_second(&|round| round.commands.values().sum()),
        per_second(&|round| round.commands.get("hset").copied().unwrap_or_default()),
    );
}
