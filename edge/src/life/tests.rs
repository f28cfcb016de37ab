//! When connections are told to leave and when they are cut, with the clock in our hands. Real connections are in
//! tests/edge/ages.rs.

mod changes;

use super::pace::{Pace, tell_off};
use super::*;
use crate::config;
use postern_policies::PolicySet;
use std::future::poll_fn;
use std::net::Ipv4Addr;
use tokio::sync::watch;
use tokio::time::{advance, timeout};

const HOUR: Duration = Duration::from_secs(3600);
const IDLE: Duration = Duration::from_secs(600);

const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

fn terms(max_age: Option<Duration>, jitter_percent: u8, grace: Duration) -> Arc<Roll> {
    let connections = config::Connections { max_age, jitter_percent, grace };
    let drain =
        config::Drain { pre: Duration::ZERO, grace: Duration::from_secs(60), connections_per_second: 50 };
    Roll::new(&Terms::new(&connections, IDLE, &drain, Arc::new(PolicySet::empty())))
}

async fn next(life: &mut Life, open: bool) -> Sentence {
    poll_fn(|cx| life.poll(cx, open, CLIENT)).await
}

#[tokio::test(start_paused = true)]
async fn at_its_age_a_connection_is_told_and_at_the_end_of_grace_it_is_cut() {
    let seat = Arc::<Seat>::default();
    let _stream = seat.busy();
    let mut life = Life::new(&terms(Some(2 * HOUR), 0, HOUR), seat.clone(), CLIENT);
    let begin = Instant::now();
    assert_eq!(next(&mut life, true).await, Sentence::Leave(Why::Age));
    assert_eq!(begin.elapsed().as_secs(), 7200);
    assert!(seat.is_told() && life.is_leaving());
    assert_eq!(seat.cut(), None, "told is not cut");
    assert_eq!(next(&mut life, true).await, Sentence::Cut(Why::Age));
    assert_eq!(seat.cut(), Some(Why::Age));
    assert_eq!(begin.elapsed().as_secs(), 3 * 3600);
    assert!(timeout(100 * HOUR, next(&mut life, true)).await.is_err(), "each sentence comes once");
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_streams_only_wait_is_cut_soon_after_it_was_told() {
    let seat = Arc::<Seat>::default();
    seat.open();
    let mut life = Life::new(&terms(Some(HOUR), 0, HOUR), seat.clone(), CLIENT);
    assert_eq!(next(&mut life, true).await, Sentence::Leave(Why::Age));
    let told = Instant::now();
    assert!(timeout(Duration::from_secs(60), next(&mut life, true)).await.is_err(), "somebody waits");
    seat.park();
    assert_eq!(next(&mut life, true).await, Sentence::Cut(Why::Age));
    let parked = told.elapsed() - Duration::from_secs(60);
    assert!(parked >= AGE_SETTLES && parked <= 2 * AGE_SETTLES, "an answer takes time to arrive: {parked:?}");
}

#[tokio::test(start_paused = true)]
async fn ages_are_spread_and_never_above_the_maximum() {
    let mut ages = Vec::new();
    for _ in 0..200 {
        let mut life = Life::new(&terms(Some(HOUR), 10, HOUR), Arc::default(), CLIENT);
        let begin = Instant::now();
        next(&mut life, true).await;
        ages.push(begin.elapsed().as_secs());
    }
    ages.sort_unstable();
    assert!(ages[0] >= 3240 && ages[199] <= 3600, "{} {}", ages[0], ages[199]);
    assert!(ages[199] - ages[0] > 200, "not spread: {} {}", ages[0], ages[199]);
}

#[tokio::test(start_paused = true)]
async fn idleness_counts_from_the_end_of_the_last_stream() {
    let mut life = Life::new(&terms(None, 0, HOUR), Arc::default(), CLIENT);
    assert!(timeout(100 * HOUR, next(&mut life, true)).await.is_err(), "without an age it may stay for ever");
    let ended = Instant::now();
    assert_eq!(next(&mut life, false).await, Sentence::Leave(Why::Idle));
    assert!(
        ended.elapsed() >= IDLE && ended.elapsed() <= IDLE + Duration::from_secs(1),
        "{:?}",
        ended.elapsed()
    );
    assert_eq!(next(&mut life, false).await, Sentence::Cut(Why::Idle));
    assert_eq!((ended.elapsed() - IDLE).as_secs(), 15);
}

#[tokio::test(start_paused = true)]
async fn a_drain_wakes_tells_and_cuts() {
    let terms = terms(Some(HOUR), 0, HOUR);
    let seat = Arc::<Seat>::default();
    let stream = seat.busy();
    let mut life = Life::new(&terms, seat, CLIENT);
    let waiting = tokio::spawn(async move {
        let first = next(&mut life, true).await;
        (first, life)
    });
    tokio::task::yield_now().await;
    assert_eq!(terms.count(), (1, 1));
    assert!(terms.tell_next() && !terms.tell_next());
    let (first, mut life) = waiting.await.unwrap();
    assert_eq!(first, Sentence::Leave(Why::Drain));
    assert!(
        timeout(100 * HOUR, next(&mut life, true)).await.is_err(),
        "it is busy, and the drain has its own clock"
    );
    terms.cut_all();
    assert_eq!(next(&mut life, true).await, Sentence::Cut(Why::Drain));
    drop((stream, life));
    assert_eq!(terms.count(), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_drain_gives_no_turn_to_who_leaves_already() {
    let terms = terms(Some(HOUR), 0, HOUR);
    let seat = Arc::<Seat>::default();
    seat.open();
    seat.park();
    let mut life = Life::new(&terms, seat, CLIENT);
    assert_eq!(next(&mut life, true).await, Sentence::Leave(Why::Age));
    assert!(!terms.tell_next(), "it knows");
    let told = Instant::now();
    assert_eq!(next(&mut life, true).await, Sentence::Cut(Why::Age));
    assert_eq!(told.elapsed(), AGE_SETTLES);
}

#[tokio::test(start_paused = true)]
async fn never_more_than_the_rate_are_told_in_any_100_ms() {
    let roll = terms(None, 0, HOUR);
    let rolls = [Roll::new(&roll.terms), roll];
    let entries: Vec<_> = (0..400).map(|index| Roll::enter(&rolls[index % 2], Arc::default())).collect();
    let mut pace = Pace::new(500, entries.len(), Duration::from_secs(40));
    let (all_told, mut told) = watch::channel(false);
    let telling = tokio::spawn({
        let rolls = rolls.clone();
        async move { tell_off(&rolls, &mut pace, &all_told).await }
    });
    let begin = Instant::now();
    let mut curve = Vec::new();
    loop {
        advance(Duration::from_millis(10)).await;
        tokio::task::yield_now().await;
        curve.push(rolls.iter().map(|roll| roll.count().1).sum::<usize>());
        if *told.borrow_and_update() {
            break;
        }
    }
    for window in curve.windows(11) {
        assert!(window[0] - window[10] <= 50, "{curve:?}");
    }
    let taken = begin.elapsed();
    assert!(taken >= Duration::from_millis(780) && taken <= Duration::from_millis(900), "{taken:?}");
    // Who begins afterwards is told as well.
    let late = Arc::<Seat>::default();
    let _entry = Roll::enter(&rolls[0], late.clone());
    advance(Duration::from_millis(40)).await;
    tokio::task::yield_now().await;
    assert!(late.is_told());
    telling.abort();
}

#[test]
fn a_pace_that_would_outlast_its_time_is_raised_and_a_late_tick_is_not_made_up_for() {
    assert_eq!(Pace::new(500, 40_000, Duration::from_secs(40)).per_second(), Some(1000.0));
    assert_eq!(Pace::new(500, 10, Duration::from_secs(40)).per_second(), Some(500.0));
    assert_eq!(Pace::new(0, 10, Duration::from_secs(40)).per_second(), None);
    let begin = Instant::now();
    let mut pace = Pace::new(75, 0, Duration::from_secs(1));
    let turns: Vec<_> = [0, 5, 20, 40, 1000].map(|at| pace.turns(begin + Duration::from_millis(at))).into();
    assert_eq!(turns, [1, 0, 2, 1, 2]);
}
