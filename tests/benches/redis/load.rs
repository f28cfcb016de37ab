//! The load table: brokers and agents at rest, what Redis is asked by them and holds for them, beside a kas' figures.
//! The agents have all ages, so that streams end, move and register in the window as often as in a fleet that is old.

use crate::harness::{
    agents::{Agents, Habits, Tally},
    brokers::Brokers,
    redis::{Audit, Held},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::time::{Instant, sleep};

/// One period in which a broker refreshes everything once, whenever it begins.
const WINDOW: Duration = Duration::from_secs(240);
/// What follows the arrival of agents is not rest.
const SETTLE: Duration = Duration::from_secs(10);
const TUNNELS: usize = 10;

/// A line of the published table.
struct Scenario {
    brokers: usize,
    agents: usize,
    connections: f64,
    /// Round trips, as published.
    requests_per_second: f64,
    /// The same load of the same program, counted in commands as this does.
    commands_per_second: f64,
    bytes: f64,
}

const SCENARIOS: [Scenario; 2] = [
    Scenario {
        brokers: 2,
        agents: 10,
        connections: 10.0,
        requests_per_second: 0.47,
        commands_per_second: 1.97,
        bytes: 4_400.0,
    },
    Scenario {
        brokers: 10,
        agents: 100,
        connections: 50.0,
        requests_per_second: 4.7,
        commands_per_second: 19.7,
        bytes: 44_000.0,
    },
];

/// What was counted.
struct Counted {
    connections: u64,
    commands: BTreeMap<String, u64>,
    held: BTreeMap<String, Held>,
    received: u64,
    sent: u64,
    window: Duration,
    before: Tally,
    after: Tally,
}

impl Counted {
    fn per_second(&self, count: u64) -> f64 {
        count as f64 / self.window.as_secs_f64()
    }

    fn commands_per_second(&self) -> f64 {
        self.per_second(self.commands.values().sum())
    }

    fn bytes(&self) -> u64 {
        self.held.values().map(|held| held.bytes).sum()
    }
}

/// Measures, prints and writes; whether everything is at most half of what it is compared with.
pub(crate) async fn measure(trial: Option<Duration>) -> bool {
    let window = trial.unwrap_or(WINDOW);
    println!(
        "brokers and agents at rest for {window:?}; every agent has {TUNNELS} tunnels and all ages a stream can have"
    );
    if trial.is_some() {
        println!("A TRIAL: a refresh takes {WINDOW:?} to come round; nothing is judged or written");
    }
    // One after the other, so that nobody's start is in anybody's window.
    let mut fields = Vec::new();
    for Scenario { brokers, agents, .. } in &SCENARIOS {
        let brokers = Brokers::start(*brokers, *agents, "").await;
        let agents = brokers.with_agents(Habits { tunnels: TUNNELS, aged: true }).await;
        fields.push((brokers, agents));
    }
    sleep(SETTLE).await;
    let [(two, few), (ten, many)] = &mut fields[..] else {
        unreachable!("there are two scenarios");
    };
    let counted = tokio::join!(count(two, few, window), count(ten, many, window));
    let counted = [counted.0, counted.1];

    let mut good = true;
    println!("\n{:<24}{:<28}{:>10}{:>11}{:>8}   at most half", "", "", "ours", "reference", "ratio");
    for (scenario, counted) in SCENARIOS.iter().zip(&counted) {
        good &= table(scenario, counted);
    }
    for (scenario, counted) in SCENARIOS.iter().zip(&counted) {
        details(scenario, counted);
    }
    if trial.is_some() {
        return true;
    }
    let file =
        write(SCENARIOS.iter().zip(&counted).map(|(scenario, counted)| figures(scenario, counted)).collect());
    println!("\nwritten: {}", file.display());
    if !good {
        println!("NOT everything is at most half of the reference");
    }
    good
}

async fn count(brokers: &mut Brokers, agents: &Agents, window: Duration) -> Counted {
    let (begin, before, first) = (Instant::now(), agents.tally(), brokers.auditor.audit().await);
    sleep(window).await;
    let (window, after, last) = (begin.elapsed(), agents.tally(), brokers.auditor.audit().await);
    // Only now: what counted the agents' arrival is gone.
    let held = brokers.auditor.held().await;
    let traffic = |of: fn(&Audit) -> u64| of(&last) - of(&first);
    Counted {
        connections: first.connections.max(last.connections),
        commands: last.since(&first),
        held,
        received: traffic(|audit| audit.received),
        sent: traffic(|audit| audit.sent),
        window,
        before,
        after,
    }
}

fn table(scenario: &Scenario, counted: &Counted) -> bool {
    let commands = counted.commands_per_second();
    let lines = [
        ("connections", counted.connections as f64, scenario.connections, 0),
        ("commands/s, its round trips", commands, scenario.requests_per_second, 3),
        ("commands/s, its commands", commands, scenario.commands_per_second, 3),
        ("bytes", counted.bytes() as f64, scenario.bytes, 0),
    ];
    let mut name = format!("{} brokers, {} agents", scenario.brokers, scenario.agents);
    let mut good = true;
    for (what, ours, reference, digits) in lines {
        let half = ours <= reference / 2.0;
        good &= half;
        let (ratio, half) = (ours / reference, if half { "yes" } else { "NO" });
        println!("{name:<24}{what:<28}{ours:>10.digits$}{reference:>11}{ratio:>8.2}   {half}");
        name.clear();
    }
    good
}

fn details(scenario: &Scenario, counted: &Counted) {
    println!("\n{} brokers, {} agents, in detail", scenario.brokers, scenario.agents);
    for (name, calls) in &counted.commands {
        println!("  {name:<32}{calls:>8} calls{:>10.4}/s", counted.per_second(*calls));
    }
    for (kind, held) in &counted.held {
        println!("  {kind:<48}{:>6} keys{:>8} bytes", held.keys, held.bytes);
    }
    println!(
        "  network: {:.0} B/s to redis, {:.0} B/s from it, this program's own few kB among them",
        counted.per_second(counted.received),
        counted.per_second(counted.sent)
    );
    let during = |of: fn(&Tally) -> u64| of(&counted.after) - of(&counted.before);
    println!(
        "  meanwhile {} streams were renewed, {} replicas registered, {} agents went to another broker, {} calls failed",
        during(|tally| tally.renewed),
        during(|tally| tally.registered),
        during(|tally| tally.moved),
        during(|tally| tally.failed)
    );
    for failure in &counted.after.failures {
        println!("  failed: {failure}");
    }
}

fn figures(scenario: &Scenario, counted: &Counted) -> Value {
    json!({
        "brokers": scenario.brokers,
        "agents": scenario.agents,
        "connections": counted.connections,
        "commands_per_s": (counted.commands_per_second() * 1e4).round() / 1e4,
        "bytes": counted.bytes(),
    })
}

/// Beside the sources, wherever cargo builds.
fn write(figures: Vec<Value>) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder).unwrap();
    let file = folder.join("redis.json");
    fs::write(&file, format!("{:#}\n", Value::Array(figures))).unwrap();
    file
}
