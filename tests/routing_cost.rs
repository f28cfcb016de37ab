//! What a request costs Redis: to an agent of the broker that got it, to one of another broker, known there or not. Also
//! that requests are served while entries of many agents are refreshed; how fast is `make bench-redis`' business.

use crate::harness::{
    agents::{Agents, Habits},
    brokers::{Brokers, Caller},
    redis::Audit,
    until,
};
use std::collections::BTreeMap;

/// Enough for a round without replacing any.
const TUNNELS: usize = 10;
const ROUND: u64 = 8;
/// A command that has nothing to do with requests may fall into one round; not into every one.
const ROUNDS: usize = 3;
/// So many equal looks in a row, a hundredth of a second apart, and Redis is at rest.
const EQUAL_LOOKS: usize = 20;

type Cost = BTreeMap<String, u64>;

fn sum(cost: &Cost) -> u64 {
    cost.values().sum()
}

/// Waits until nothing is asked of Redis any more; what was asked so far.
async fn at_rest(brokers: &mut Brokers) -> Audit {
    let mut last = brokers.auditor.audit().await;
    let mut equal = 0;
    until("redis is at rest", async || {
        let now = brokers.auditor.audit().await;
        equal = if now.since(&last).is_empty() { equal + 1 } else { 0 };
        last = now;
        (equal >= EQUAL_LOOKS).then(|| last.clone())
    })
    .await
}

/// What these requests cost, without those tunnels that agents open instead of used ones.
async fn cost(brokers: &mut Brokers, agents: &Agents, caller: &mut Caller, requests: &[i64]) -> Cost {
    agents.replace_used(true);
    agents.stand().await;
    agents.replace_used(false);
    let before = at_rest(brokers).await;
    for agent in requests {
        caller.reach(*agent).await;
    }
    at_rest(brokers).await.since(&before)
}

/// The least of some rounds.
async fn least(brokers: &mut Brokers, agents: &Agents, caller: &mut Caller, agent: i64) -> Cost {
    let mut costs = Vec::new();
    for _ in 0..ROUNDS {
        costs.push(cost(brokers, agents, caller, &[agent; ROUND as usize]).await);
    }
    costs.into_iter().min_by_key(sum).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_asks_redis_nothing_for_an_agent_here_and_once_for_an_unknown_one_elsewhere() {
    // Two agents on each of two brokers: odd ones on the first.
    let mut brokers = Brokers::start(2, 4, "").await;
    let agents = brokers.with_agents(Habits { tunnels: TUNNELS, aged: false }).await;
    let mut first = brokers.caller(0).await;

    let here = least(&mut brokers, &agents, &mut first, 1).await;
    println!("{ROUND} requests to an agent here: {here:?}");
    assert_eq!(sum(&here), 0, "{here:?}");

    // Known from now on, if it was not before.
    first.reach(2).await;
    let cached = least(&mut brokers, &agents, &mut first, 2).await;
    println!("{ROUND} requests to an agent elsewhere, known: {cached:?}");
    assert!(sum(&cached) <= ROUND, "{cached:?}");

    // A broker that came after the agents has heard of none of them.
    brokers.add().await;
    let mut third = brokers.caller(2).await;
    let mut unknown = Vec::new();
    for agent in 1..=4 {
        unknown.push(cost(&mut brokers, &agents, &mut third, &[agent]).await);
    }
    println!("a request to an agent elsewhere, unknown, four times: {unknown:?}");
    assert!(unknown.iter().any(|cost| sum(cost) <= 1), "{unknown:?}");

    // The tunnels that agents open instead of used ones are counted against the limit of their token.
    agents.replace_used(true);
    agents.stand().await;
    let before = at_rest(&mut brokers).await;
    for _ in 0..5 * ROUND {
        first.reach(2).await;
    }
    let all = at_rest(&mut brokers).await.since(&before);
    println!("{} requests to an agent elsewhere, with the tunnels that follow: {all:?}", 5 * ROUND);
    assert!(sum(&all) <= 5 * ROUND, "{all:?}");
    let tally = agents.tally();
    assert_eq!(tally.failed, 0, "{tally:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn brokers_at_rest_hold_half_the_connections_and_bytes_of_a_kas_at_most() {
    // The first line of the published table; what is asked in a second takes `make bench-redis` to count.
    let mut brokers = Brokers::start(2, 10, "").await;
    let agents = brokers.with_agents(Habits { tunnels: TUNNELS, aged: false }).await;
    let connections = at_rest(&mut brokers).await.connections;
    let mut held = brokers.auditor.held().await;
    // What counted the agents' arrival is gone within a minute.
    held.retain(|kind, _| !kind.contains("limit"));
    println!("{connections} connections, {held:?}");
    assert!(connections <= 5, "{connections} connections");
    assert!(held.values().map(|held| held.bytes).sum::<u64>() <= 2_200, "{held:?}");
    assert!(held.values().map(|held| held.keys).sum::<u64>() >= 10, "each agent is known: {held:?}");
    drop(agents);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_served_while_the_entries_of_two_hundred_agents_are_refreshed() {
    const AGENTS: u64 = 200;
    let often = "  redis_conn_info_refresh: 1s\n  redis_conn_info_ttl: 10s\n";
    let mut brokers = Brokers::start(1, AGENTS as usize, often).await;
    let agents = brokers.with_agents(Habits { tunnels: 2, aged: false }).await;
    let mut caller = brokers.caller(0).await;
    let before = brokers.auditor.audit().await;
    let mut requests = 0;
    // The first entries may be among them.
    let entries = until("two refreshes", async || {
        for _ in 0..10 {
            caller.reach(rand::random_range(1..=AGENTS as i64)).await;
            requests += 1;
        }
        let since = brokers.auditor.audit().await.since(&before);
        since.get("hset").copied().filter(|entries| *entries >= 3 * AGENTS)
    })
    .await;
    println!("{requests} requests while {entries} entries were written");
    // An agent counts its answer after it sent it.
    until("all answers are counted", async || (agents.tally().served == requests).then_some(())).await;
    assert_eq!(agents.tally().failed, 0, "{:?}", agents.tally());
}
