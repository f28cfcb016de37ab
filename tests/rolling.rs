//! Brokers that are restarted one after the other behind one edge, under load: no short request fails, long ones end only
//! at the deadline of their broker's drain, and no agent is without a tunnel for a moment.

mod field;
mod load;

use crate::harness::{PATIENCE, http, stalls::Stalls, until};
use field::{Fleet, GRACE, Shape};
use load::{Load, Streams};
use std::{collections::BTreeMap, time::Duration};
use tokio::{sync::watch, time::Instant};

/// A clock that is read in two processes, and a busy machine.
const SLACK: Duration = Duration::from_millis(1500);

#[tokio::test]
async fn every_request_that_a_draining_broker_took_is_answered() {
    let mut fleet = Fleet::start(Shape { brokers: 1, agents: 2 }).await;
    let load = Load::start(&fleet);
    let streams = Streams::start(&fleet, 2).await;
    load.answered(200).await;
    let (stalls, begin) = (Stalls::watch(), Instant::now());
    let status = fleet.brokers[0].drain().await;
    // No earlier by any clock, and not much later by one that stands still while the machine does.
    let in_time = |ended: Instant, slack: Duration| {
        ended - begin >= GRACE && stalls.between(begin, ended) < GRACE + slack
    };
    let (ended, took) = (Instant::now(), begin.elapsed());
    println!("the broker ended {took:?} after SIGTERM");
    assert_eq!(status.code(), Some(1), "it says that streams were cut");
    assert!(in_time(ended, Duration::from_secs(5)), "{took:?}");
    let answers = load.stop().await;
    println!("answers: {:?}", answers.by_outcome());
    for ask in answers.asked {
        // From the broker, or from an edge that reached none: never one that was lost on the way.
        let after = ask.at.saturating_duration_since(begin);
        assert!(
            matches!(ask.outcome, Ok(200 | 503)),
            "{after:?} after SIGTERM: {:?} {}",
            ask.outcome,
            ask.said
        );
    }
    for ended in streams.ended().await {
        assert!(in_time(ended, SLACK), "a stream ended {:?} after SIGTERM", ended - begin);
    }
}

#[tokio::test]
async fn a_rolling_restart_of_all_brokers_fails_no_request() {
    let mut fleet = Fleet::start(Shape { brokers: 3, agents: 4 }).await;
    let (stop, stopped) = watch::channel(false);
    let readiness = tokio::spawn(ready_all_the_time(fleet.agents_probes(), stopped));
    let load = Load::start(&fleet);
    let streams = Streams::start(&fleet, 6).await;
    load.answered(400).await;
    let (stalls, mut drains) = (Stalls::watch(), Vec::new());
    for index in 0..fleet.brokers.len() {
        let begin = Instant::now();
        fleet.brokers[index].drain().await;
        drains.push(begin);
        println!("broker {index} ended {:?} after SIGTERM", begin.elapsed());
        fleet.restart(index).await;
        load.answered(200).await;
    }
    let answers = load.stop().await;
    println!("answers: {:?}, slowest {:?}", answers.by_outcome(), answers.slowest());
    let failed: Vec<_> = answers.asked.iter().filter(|ask| ask.outcome != Ok(200)).collect();
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), answers.asked.len(), &failed[..1]);
    for ended in streams.ended().await {
        let after: Vec<_> = drains.iter().map(|begin| ended.saturating_duration_since(*begin)).collect();
        let during = drains.iter().zip(&after).any(|(begin, after)| {
            *after >= GRACE - Duration::from_millis(100) && stalls.between(*begin, ended) < GRACE + SLACK
        });
        assert!(during, "a stream ended at none of the deadlines: {after:?} after the drains began");
    }
    stop.send_replace(true);
    let unready = readiness.await.unwrap();
    assert!(unready.is_empty(), "agents were not ready: {unready:?}");
    // A broker with nothing but idle agents is gone within seconds.
    let begin = Instant::now();
    let status = fleet.brokers[0].drain().await;
    let took = stalls.between(begin, Instant::now());
    assert!(status.success(), "{}", fleet.brokers[0].process.text());
    assert!(took < Duration::from_secs(3), "{took:?}");
}

/// What agents said when they were not ready, and how often, until `stop`.
async fn ready_all_the_time(
    agents: Vec<std::net::SocketAddr>,
    stop: watch::Receiver<bool>,
) -> BTreeMap<String, usize> {
    let mut unready = BTreeMap::new();
    let mut pace = tokio::time::interval(Duration::from_millis(50));
    while !*stop.borrow() {
        pace.tick().await;
        for agent in &agents {
            match http::text(*agent, "/readiness").await {
                Some((200, _)) => {}
                Some((_, why)) => *unready.entry(why).or_default() += 1,
                None => *unready.entry("no answer".to_owned()).or_default() += 1,
            }
        }
    }
    unready
}

/// Waits until this probe answers with 200.
async fn ready(what: &str, probes: std::net::SocketAddr) {
    let ready = until(what, async || (http::probe(probes, "/readiness").await == Some(200)).then_some(()));
    tokio::time::timeout(PATIENCE, ready).await.unwrap_or_else(|_| panic!("{what}"));
}
