//! Three brokers, an edge, fifty agents and Redis as one fleet, every host in a network namespace of its own: each broker
//! reaches each agent, and when a broker, a link or Redis fails, requests to agents elsewhere notice nothing. Needs root.
//! One fleet at a time: it is the whole machine's work.

/// Those who ask.
mod callers;
/// The fleet, running.
mod field;
/// Network namespaces and links that fail.
mod hosts;
/// Redis on hosts of its own.
mod redis;

use crate::harness::{Process, stalls::Stalls, within};
use callers::{Entrance, Spread};
use field::{BROKERS, Fleet, Kind};
use std::{
    collections::{BTreeMap, BTreeSet},
    convert::Infallible,
    time::Duration,
};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval},
};

/// The broker that something happens to.
const VICTIM: usize = 0;
/// From when a broker's death can be known until its agents are reachable through the others.
const BACK: Duration = Duration::from_millis(1500);
/// The edge knows by then that a broker is silent: it looks every 2 s, and then waits 5 s for connections to answer.
const DETECTED: Duration = Duration::from_secs(11);
/// From when an empty Redis answers until it knows again where agents are.
const KNOWN_AGAIN: Duration = Duration::from_secs(2);
/// A sentinel that did not run for two seconds trusts nothing and does nothing for half a minute.
const FAIL_OVER: Duration = Duration::from_secs(120);
/// 50 requests a second.
const EVERY: Duration = Duration::from_millis(20);
const A_SECOND: usize = 50;

static TURN: Mutex<()> = Mutex::const_new(());

/// Does this to a fleet of its own, and looks afterwards whether anything happened that never may.
async fn fleet(kind: Kind, work: impl AsyncFnOnce(&mut Fleet)) {
    let _turn = TURN.lock().await;
    let mut fleet = Fleet::start(kind).await;
    work(&mut fleet).await;
    fleet.check();
}

/// Every entrance but that of the victim; the edge first.
fn others() -> Vec<Entrance> {
    let brokers = (0..BROKERS).filter(|broker| *broker != VICTIM).map(Entrance::Broker);
    [Entrance::Edge].into_iter().chain(brokers).collect()
}

/// Every entrance.
fn all() -> Vec<Entrance> {
    let mut all = others();
    all.push(Entrance::Broker(VICTIM));
    all
}

/// Each of these agents through each of these entrances.
fn pairs(agents: impl IntoIterator<Item = i64>, entrances: &[Entrance]) -> Vec<(Entrance, i64)> {
    agents.into_iter().flat_map(|agent| entrances.iter().map(move |entrance| (*entrance, agent))).collect()
}

/// Agents of a fleet by what the victim's fate means for them.
struct Shares {
    elsewhere: Vec<i64>,
    /// They dial the edge, which finds another broker for them.
    lost: Vec<i64>,
}

impl Shares {
    fn of(fleet: &Fleet, homes: &BTreeMap<i64, BTreeSet<usize>>) -> Self {
        let of_victim = fleet.agents.iter().filter(|agent| homes[&agent.id] == BTreeSet::from([VICTIM]));
        let lost: Vec<_> = of_victim.filter(|agent| agent.straight.is_none()).map(|agent| agent.id).collect();
        let elsewhere: Vec<_> = fleet.ids().filter(|id| !homes[id].contains(&VICTIM)).collect();
        assert!(!lost.is_empty() && !elsewhere.is_empty(), "all agents are on one side");
        Self { elsewhere, lost }
    }
}

/// Asks every agent through every entrance.
async fn everyone_reaches_everyone(fleet: &Fleet, what: &str) {
    let pairs = pairs(fleet.ids(), &all());
    fleet.callers.ask_all(&pairs).await.none_failed(what);
}

#[tokio::test]
async fn each_broker_and_the_edge_reach_each_of_fifty_agents() {
    fleet(Kind::Single, async |fleet| {
        fleet.homes().await;
        everyone_reaches_everyone(fleet, "each agent through each entrance").await;
    })
    .await;
}

#[tokio::test]
async fn agents_of_a_killed_broker_are_reachable_again_at_once_and_others_notice_nothing() {
    fleet(Kind::Single, async |fleet| {
        let homes = fleet.homes().await;
        let Shares { elsewhere, lost } = Shares::of(fleet, &homes);
        // Every route is cached.
        everyone_reaches_everyone(fleet, "before the kill").await;
        let mut load = fleet.callers.load(pairs(elsewhere, &others()), EVERY);
        load.goes_on(A_SECOND).await;
        let (stalls, start) = (Stalls::watch(), Instant::now());
        fleet.brokers[VICTIM].process.kill().await;
        let answers = fleet.callers.first_answers(&lost, &others()[1..], Duration::from_secs(60)).await;
        load.goes_on(2 * A_SECOND).await;
        let report = load.end().await;
        let back: Vec<_> = answers.values().map(|at| stalls.between(start, *at)).collect();
        let back = Spread::of(&back);
        println!("agents of the killed broker answered after {back}");
        report.none_failed("agents elsewhere, their broker alive");
        let missing = lost.iter().filter(|id| !answers.contains_key(id)).collect::<Vec<_>>();
        assert!(missing.is_empty(), "never reachable again: {missing:?}");
        assert!(back.max() <= BACK, "{:?} is more than {BACK:?}", back.max());

        // Those that dial it themselves had nowhere to go.
        fleet.restart_broker(VICTIM).await;
        let straight: Vec<_> = fleet.agents.iter().filter(|agent| agent.straight == Some(VICTIM)).collect();
        let straight: Vec<_> = straight.into_iter().map(|agent| agent.id).collect();
        let answers = fleet.callers.first_answers(&straight, &all(), Duration::from_secs(60)).await;
        assert_eq!(answers.len(), straight.len(), "not all came back to the broker that they dial");
        everyone_reaches_everyone(fleet, "with the broker back").await;
    })
    .await;
}

/// The moments at which a process logs a line with all these words, from now on; never ends.
async fn sightings(process: &Process, words: &[&str], mut seen: impl FnMut(Instant)) -> Infallible {
    let matches = |line: &&str| words.iter().all(|word| line.contains(word));
    let mut known = process.text().lines().filter(matches).count();
    let mut ticks = interval(Duration::from_millis(20));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = process.text().lines().filter(matches).count();
        for _ in known..now {
            seen(Instant::now());
        }
        known = now;
    }
}

#[tokio::test]
async fn agents_of_a_silent_broker_are_reachable_again_once_its_silence_is_known_and_others_notice_nothing() {
    fleet(Kind::Single, async |fleet| {
        let homes = fleet.homes().await;
        let Shares { elsewhere, lost } = Shares::of(fleet, &homes);
        everyone_reaches_everyone(fleet, "before the silence").await;
        let victim = &fleet.brokers[VICTIM];
        let straight = fleet.callers.load(pairs(elsewhere.clone(), &others()[1..]), EVERY);
        // What the edge gave to the silent broker is lost with it, but must have an end.
        let mut through_edge = fleet.callers.load(pairs(elsewhere, &[Entrance::Edge]), 5 * EVERY);
        through_edge.goes_on(A_SECOND / 5).await;
        let (stalls, start) = (Stalls::watch(), Instant::now());
        fleet.hosts.cut(&victim.host);
        let (mut detected, mut avoided) = (Vec::new(), Vec::new());
        let agents = victim.agents();
        let (silent, avoids) =
            (["does not answer HTTP/2 pings", &agents], ["not reachable", "kubernetes_api"]);
        let survivors = &others()[1..];
        let answers = tokio::select! {
            answers = fleet.callers.first_answers(&lost, survivors, 4 * DETECTED) => answers,
            never = sightings(&fleet.edge, &silent, |at| detected.push(at)) => match never {},
            never = sightings(&fleet.edge, &avoids, |at| avoided.push(at)) => match never {},
        };
        through_edge.goes_on(A_SECOND).await;
        let (straight, through_edge) = (straight.end().await, through_edge.end().await);

        let after = |moments: &[Instant]| moments.iter().map(|at| *at - start).collect::<Vec<_>>();
        println!("the edge gave up connections {:.3?} after the cut", after(&detected));
        println!("the edge avoided it for requests {:.3?} after the cut", after(&avoided));
        // Each connection of the edge has pings of its own; which agents it carried is not known out here.
        let known = |at: &Instant| detected.iter().filter(|known| *known <= at).max().copied();
        let since_known = |at: &Instant| known(at).map_or(Duration::ZERO, |known| stalls.between(known, *at));
        let back: Vec<_> = answers.values().map(since_known).collect();
        let since_cut: Vec<_> = answers.values().map(|at| *at - start).collect();
        let back = Spread::of(&back);
        println!("agents of the silent broker answered {} after the cut", Spread::of(&since_cut));
        println!("and after the edge gave up a connection: {back}");
        straight.none_failed("agents elsewhere, through the other brokers");
        // Those that it had just given to the silent broker it sends to another one.
        through_edge.none_failed("agents elsewhere, through the edge");
        let missing = lost.iter().filter(|id| !answers.contains_key(id)).collect::<Vec<_>>();
        assert!(missing.is_empty(), "never reachable again: {missing:?}");
        assert!(back.max() <= BACK, "{:?} is more than {BACK:?}", back.max());
        let last = detected.iter().max().map(|at| stalls.between(start, *at));
        assert!(
            last.is_none_or(|last| last <= DETECTED),
            "the edge took {last:?} to see that the broker is silent"
        );
        fleet.hosts.heal(&victim.host);
    })
    .await;
}

#[tokio::test]
async fn without_redis_a_broker_reaches_agents_elsewhere_and_is_reached_itself() {
    fleet(Kind::Single, async |fleet| {
        fleet.homes().await;
        fleet.hosts.part(&fleet.brokers[VICTIM].host, &fleet.redis.master.host);
        let mut load = fleet.callers.load(pairs(fleet.ids(), &all()), EVERY);
        load.goes_on(15 * A_SECOND).await;
        fleet.hosts.join(&fleet.brokers[VICTIM].host, &fleet.redis.master.host);
        load.goes_on(2 * A_SECOND).await;
        load.end().await.none_failed("one broker without Redis");
        everyone_reaches_everyone(fleet, "with Redis again").await;
    })
    .await;
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_soon_knows_all_agents_again_and_no_request_fails() {
    fleet(Kind::Single, async |fleet| {
        let homes = fleet.homes().await;
        let mut load = fleet.callers.load(pairs(fleet.ids(), &all()), EVERY);
        load.goes_on(2 * A_SECOND).await;
        fleet.redis.master.restart().await;
        let (stalls, start) = (Stalls::watch(), Instant::now());
        within(Duration::from_secs(30), "Redis knows all agents again", async || {
            let directory = fleet.redis.master.directory().await.ok()?;
            let known = |(id, home): (&i64, &BTreeSet<usize>)| {
                let urls = directory.get(id);
                home.iter().any(|home| urls.is_some_and(|urls| urls.contains(&fleet.brokers[*home].url())))
            };
            homes.iter().all(known).then_some(())
        })
        .await;
        let known = stalls.between(start, Instant::now());
        println!("Redis knew all agents again {known:?} after it answered");
        load.goes_on(2 * A_SECOND).await;
        load.end().await.none_failed("while Redis was away and empty");
        everyone_reaches_everyone(fleet, "with an empty Redis").await;
        assert!(known <= KNOWN_AGAIN, "{known:?} is more than {KNOWN_AGAIN:?}");
    })
    .await;
}

#[tokio::test]
async fn when_the_sentinel_makes_another_redis_master_no_request_fails() {
    fleet(Kind::Sentinel, async |fleet| {
        fleet.homes().await;
        let mut load = fleet.callers.load(pairs(fleet.ids(), &all()), EVERY);
        load.goes_on(A_SECOND).await;
        let start = Instant::now();
        fleet.redis.master.kill().await;
        fleet.redis.failed_over();
        let address = fleet.redis.master.host.address.to_string();
        for broker in &fleet.brokers {
            let connected = |line: &serde_json::Value| {
                line["message"] == "connected to redis" && line["server"].to_string().contains(&address)
            };
            within(FAIL_OVER, "a broker is connected to the new master", async || {
                broker.process.lines().iter().any(connected).then_some(())
            })
            .await;
        }
        println!(
            "all brokers were connected to the new master {:?} after the old one's end",
            start.elapsed()
        );
        load.goes_on(2 * A_SECOND).await;
        load.end().await.none_failed("during the fail-over");
        fleet.homes().await;
        everyone_reaches_everyone(fleet, "after the fail-over").await;
    })
    .await;
}
