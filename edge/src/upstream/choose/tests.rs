//! Who is chosen: as a table of brokers' states and loads, in paused time.

use super::*;
use crate::config;
use crate::decide::Route;
use crate::upstream::Outcome;
use crate::upstream::broker::Load;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::advance;

fn found(port: u16) -> Found {
    Found { address: ([127, 0, 0, 1], port).into(), host: "localhost".to_owned(), leaving: false }
}

fn group_of(ports: std::ops::Range<u16>, configured: config::Upstream) -> Group {
    let settings = Settings::new(Route::Agents, configured, Duration::from_secs(1), None);
    let group = Group::new(settings, ports.map(found).collect());
    for broker in group.brokers().iter() {
        broker.set_up(true);
    }
    group
}

fn group(ports: std::ops::Range<u16>) -> Group {
    group_of(ports, config::Upstream::default())
}

fn at(group: &Group, token: &impl Hash, tried: &[SocketAddr]) -> SocketAddr {
    group.choose(token, tried).unwrap().address
}

fn fill(broker: &Arc<Broker>, streams: usize) -> Vec<Load> {
    (0..streams).map(|_| broker.enter().unwrap()).collect()
}

/// How many of `tokens` go where.
fn shares(group: &Group, tokens: std::ops::Range<u32>) -> HashMap<u16, u32> {
    let mut shares = HashMap::new();
    for token in tokens {
        *shares.entry(at(group, &token, &[]).port()).or_insert(0) += 1;
    }
    shares
}

#[test]
fn a_token_keeps_its_broker_when_another_one_joins() {
    let (four, five) = (group(1..5), group(1..6));
    let mut moved = 0;
    for token in 0..2000 {
        let (before, after) = (at(&four, &token, &[]), at(&five, &token, &[]));
        assert!(before == after || after.port() == 5);
        moved += usize::from(before != after);
    }
    assert!((300..500).contains(&moved), "{moved}");
    let share = shares(&five, 0..2000);
    assert!(share.values().all(|n| (320..480).contains(n)), "{share:?}");
}

#[test]
fn a_broker_that_leaves_is_spared_unless_it_is_all_there_is() {
    let group = group(1..4);
    let first = at(&group, &"token", &[]);
    group.find(first).unwrap().mark_leaving();
    let second = at(&group, &"token", &[]);
    assert_ne!(first, second);
    group.find(second).unwrap().mark_leaving();
    let third = at(&group, &"token", &[]);
    assert!(third != first && third != second);
    // Of two that are in trouble, the one that still serves.
    group.find(third).unwrap().mark_down();
    assert_eq!(at(&group, &"token", &[]), first);
    // It went, and another process is there now.
    group.find(first).unwrap().mark_down();
    group.find(first).unwrap().set_up(true);
    assert_eq!(at(&group, &"token", &[]), first);
    assert_eq!(at(&group, &"token", &[first]), second);
}

#[test]
fn a_broker_that_is_down_is_the_last_resort_and_one_that_failed_is_none() {
    let group = group(1..4);
    let first = at(&group, &"token", &[]);
    group.find(first).unwrap().mark_down();
    assert_ne!(at(&group, &"token", &[]), first);
    for broker in group.brokers().iter() {
        broker.mark_down();
    }
    assert_eq!(at(&group, &"token", &[]), first);
    assert_ne!(at(&group, &"token", &[first]), first);
    let all: Vec<_> = group.brokers().iter().map(|broker| broker.address).collect();
    assert!(group.choose(&"token", &all).is_none());
}

#[test]
fn a_crowded_broker_passes_tokens_on_but_small_numbers_move_nobody() {
    let group = group(1..4);
    let first = group.choose(&"token", &[]).unwrap();
    let mut held = fill(&first, FLOOR as usize - 1);
    assert_eq!(at(&group, &"token", &[]), first.address);
    held.extend(fill(&first, 1));
    let second = group.choose(&"token", &[]).unwrap();
    assert_ne!(second.address, first.address);
    // A third each, so a quarter more than that is everybody's limit.
    for broker in group.brokers().iter() {
        held.extend(fill(broker, 1000));
    }
    assert_eq!((first.streams(), second.streams()), (1256, 1000));
    assert_eq!(at(&group, &"token", &[]), first.address);
    held.extend(fill(&first, 300));
    assert_eq!(at(&group, &"token", &[]), second.address);
    // Crowded is better than nobody.
    let others: Vec<_> =
        group.brokers().iter().map(|one| one.address).filter(|one| *one != first.address).collect();
    assert_eq!(at(&group, &"token", &others), first.address);
    drop(held);
    assert_eq!((first.streams(), at(&group, &"token", &[])), (0, first.address));
}

#[test]
fn without_a_load_factor_the_hash_alone_decides() {
    let group = group_of(1..4, config::Upstream { load_percent: None, ..Default::default() });
    let first = group.choose(&"token", &[]).unwrap();
    let _held = fill(&first, 5000);
    assert_eq!(at(&group, &"token", &[]), first.address);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_comes_back_takes_a_growing_share_and_no_token_flaps() {
    let group = group(1..3);
    // In its first moments the edge knows nobody as new.
    assert!((800..1200).contains(&shares(&group, 0..2000)[&2]));
    advance(Duration::from_secs(3600)).await;
    let back = group.find(found(2).address).unwrap();
    back.mark_down();
    back.set_up(true);
    let mut of_it: Vec<u32> = Vec::new();
    for (percent, expected) in [(10, 60..140), (50, 400..600), (100, 850..1150)] {
        let now: Vec<u32> = (0..2000).filter(|token| at(&group, token, &[]).port() == 2).collect();
        assert!(expected.contains(&now.len()), "{percent} %: {}", now.len());
        // What went there once goes there still.
        assert!(of_it.iter().all(|token| now.contains(token)));
        of_it = now;
        advance(Duration::from_secs(15)).await;
    }
    assert!(!back.is_timed());
    // Where it is the only one, all of it from the start.
    back.mark_down();
    back.set_up(true);
    group.find(found(1).address).unwrap().mark_down();
    assert_eq!(shares(&group, 0..100)[&2], 100);
}

#[tokio::test(start_paused = true)]
async fn a_loaded_broker_is_not_crowded_by_one_that_has_just_come_back_empty() {
    let group = group(1..3);
    advance(Duration::from_secs(3600)).await;
    let (one, back) = (group.find(found(1).address).unwrap(), group.find(found(2).address).unwrap());
    back.mark_down();
    let mut held = fill(&one, 10_000);
    back.set_up(true);
    let share = shares(&group, 0..1000);
    assert!(share[&1] > 900, "{share:?}");
    // What a tenth of the load is, it gets and no more.
    held.extend(fill(&back, 1500));
    assert_eq!(shares(&group, 0..1000)[&1], 1000);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_fails_requests_is_ejected_for_longer_each_time() {
    let group = group(1..4);
    let first = group.choose(&"token", &[]).unwrap();
    let fail = |times| (0..times).for_each(|_| first.note(Outcome::Broken));
    fail(4);
    first.note(Outcome::Answered);
    fail(4);
    assert_eq!(at(&group, &"token", &[]), first.address, "never five in a row");
    fail(1);
    for seconds in [10, 20, 30] {
        assert_ne!(at(&group, &"token", &[]), first.address);
        advance(Duration::from_secs(seconds) - Duration::from_millis(10)).await;
        assert!(first.is_ejected(group.settings.now()), "{seconds}");
        advance(Duration::from_millis(20)).await;
        assert!(!first.is_ejected(group.settings.now()), "{seconds}");
        // It begins anew, as slowly as one that has come up.
        assert_eq!(first.share(group.settings.now()), WHOLE / 10);
        fail(5);
    }
    // Long calm makes up for all of it.
    advance(Duration::from_secs(3600)).await;
    assert_eq!(at(&group, &"token", &[]), first.address);
    fail(5);
    advance(Duration::from_millis(10_010)).await;
    assert!(!first.is_ejected(group.settings.now()));
}

#[test]
fn at_most_half_of_the_brokers_are_ejected_at_once() {
    for (brokers, most) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
        let group = group(1..brokers + 1);
        for broker in group.brokers().iter() {
            (0..20).for_each(|_| broker.note(Outcome::Unreached));
        }
        let now = group.settings.now();
        let ejected = group.brokers().iter().filter(|broker| broker.is_ejected(now)).count();
        assert_eq!(ejected, most, "of {brokers}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_share_of_failures_ejects_where_it_is_configured() {
    let mut configured = config::Upstream::default();
    configured.ejection.share = NonZeroU32::new(50);
    let group = group_of(1..3, configured);
    let first = group.choose(&"token", &[]).unwrap();
    let half = |requests: usize| {
        for _ in 0..requests / 2 {
            first.note(Outcome::Answered);
            first.note(Outcome::Broken);
        }
    };
    half(18);
    // Too few in one window, however many windows.
    advance(Duration::from_secs(31)).await;
    half(18);
    assert_eq!(at(&group, &"token", &[]), first.address);
    half(4);
    assert_ne!(at(&group, &"token", &[]), first.address);
}

#[test]
fn a_full_broker_takes_nothing_and_all_of_them_say_so() {
    let configured = config::Upstream { max_streams: NonZeroU32::new(2), ..Default::default() };
    let group = group_of(1..3, configured);
    let mut held = Vec::new();
    for _ in 0..4 {
        assert!(!group.is_full());
        held.push(group.choose(&"token", &[]).unwrap().enter().unwrap());
    }
    assert!(group.is_full() && group.choose(&"token", &[]).is_none());
    let first = held.remove(0);
    assert!(first.broker().enter().is_none());
    let address = first.address;
    drop(first);
    assert_eq!(at(&group, &"token", &[]), address);
}

#[test]
fn as_many_streams_wait_for_a_connection_as_may() {
    let configured = config::Upstream { max_pending: NonZeroU32::new(1), ..Default::default() };
    let group = group_of(1..2, configured);
    let broker = group.choose(&"token", &[]).unwrap();
    let waiting = broker.wait_in_line();
    assert!(waiting.is_some() && broker.wait_in_line().is_none());
    drop(waiting);
    assert!(broker.wait_in_line().is_some());
}

#[test]
fn brokers_come_and_go_and_those_that_stay_are_the_same() {
    let group = group(1..4);
    let stays = group.find(found(2).address).unwrap();
    let goes = group.find(found(3).address).unwrap();
    let load = goes.enter().unwrap();
    let new = group.update(vec![found(2), Found { leaving: true, ..found(1) }, found(4), found(4)]);
    assert_eq!(new.iter().map(|broker| broker.address.port()).collect::<Vec<_>>(), [4]);
    assert!(Arc::ptr_eq(&stays, &group.find(stays.address).unwrap()));
    assert!(goes.is_gone() && !stays.is_gone());
    assert_eq!(group.gone().iter().map(|broker| broker.address.port()).collect::<Vec<_>>(), [3]);
    // Number 1 is leaving, 4 not yet known to be up.
    assert_eq!(shares(&group, 0..100)[&2], 100);
    let back = group.update(vec![found(2), found(3)]);
    assert_ne!(back[0].id, goes.id);
    drop((load, goes, new));
    let gone = group.gone().iter().map(|broker| broker.address.port()).collect::<Vec<_>>();
    assert!(gone.is_empty(), "{gone:?}");
    group.update(Vec::new());
    assert!(group.choose(&"token", &[]).is_none() && !group.is_full());
}
