//! Turns on paused time: lanes, deadlines, and rates that change while somebody waits.

use super::*;
use futures::{StreamExt, stream::FuturesUnordered};
use std::pin::pin;

const PATIENCE: Duration = Duration::from_secs(60);

fn bucket() -> Bucket {
    Bucket::new(Rate { per_second: 10.0, burst: 3 }, PATIENCE)
}

#[tokio::test(start_paused = true)]
async fn a_burst_goes_at_once_and_the_rest_at_the_rate() {
    let (bucket, begin) = (bucket(), Instant::now());
    let mut times = Vec::new();
    for _ in 0..5 {
        bucket.wait(None).await.unwrap();
        times.push(begin.elapsed().as_millis() / 10);
    }
    assert_eq!(times, [0, 0, 0, 10, 20]);
    tokio::time::advance(Duration::from_secs(60)).await;
    let begin = Instant::now();
    for _ in 0..4 {
        bucket.wait(None).await.unwrap();
    }
    assert_eq!(begin.elapsed().as_millis() / 10, 10, "a quiet minute fills the bucket, not more");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_before_the_turn_is_refused_at_once_and_costs_nobody_a_turn() {
    let bucket = bucket();
    for _ in 0..3 {
        bucket.wait(None).await.unwrap();
    }
    let begin = Instant::now();
    let refused = bucket.wait(Some(begin + Duration::from_millis(50))).await;
    assert_eq!(refused, Err(TooLong { wait: Duration::from_millis(100) }));
    assert_eq!(begin.elapsed(), Duration::ZERO);
    assert_eq!(bucket.wait(Some(begin + Duration::from_millis(150))).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_leaves_gives_its_turn_back() {
    let bucket = bucket();
    for _ in 0..3 {
        bucket.wait(None).await.unwrap();
    }
    let begin = Instant::now();
    {
        let mut leaving = pin!(bucket.wait(None));
        assert!(futures::poll!(&mut leaving).is_pending());
    }
    bucket.wait(None).await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(150));
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_longer_than_the_patience() {
    let bucket = Bucket::new(Rate { per_second: 1.0, burst: 1 }, Duration::from_secs(2));
    let turns: Vec<_> = (0..5).map(|_| bucket.enter(Lane::Agents, None)).collect();
    assert_eq!(turns.iter().filter(|turn| turn.is_ok()).count(), 3);
}

/// How many of those who ask at this moment and in this lane are not refused at once; they wait in `field`.
fn ask<'a>(
    bucket: &'a Bucket,
    lane: Lane,
    number: usize,
    field: &FuturesUnordered<futures::future::BoxFuture<'a, Lane>>,
) -> usize {
    let mut accepted = 0;
    for _ in 0..number {
        let mut turn = Box::pin(bucket.wait_in(lane, None));
        match futures::FutureExt::now_or_never(&mut turn) {
            Some(Err(_)) => {}
            Some(Ok(())) => accepted += 1,
            None => {
                accepted += 1;
                field.push(Box::pin(async move {
                    turn.await.expect("nobody has a deadline");
                    lane
                }));
            }
        }
    }
    accepted
}

#[tokio::test(start_paused = true)]
async fn a_flood_in_one_lane_leaves_the_other_its_share() {
    for (flooded, other) in [(Lane::Callers, Lane::Agents), (Lane::Agents, Lane::Callers)] {
        let (bucket, field) = (bucket(), FuturesUnordered::new());
        assert!(ask(&bucket, flooded, 5_000, &field) >= 300);
        let flood = field;
        let mut few = FuturesUnordered::new();
        assert_eq!(ask(&bucket, other, 20, &few), 20, "{other:?} are not kept out");
        let begin = Instant::now();
        let both = async {
            let mut flood = flood;
            while flood.next().await.is_some() {}
        };
        let others = async {
            while few.next().await.is_some() {}
            begin.elapsed()
        };
        let ((), took) = tokio::join!(both, others);
        assert!(took < Duration::from_millis(4_500), "{other:?} took {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn callers_fill_no_more_than_half_of_the_queue_and_renewals_almost_none() {
    for (lane, most) in [(Lane::Agents, 604), (Lane::Callers, 304), (Lane::Renewals, 14)] {
        let (bucket, field) = (bucket(), FuturesUnordered::new());
        let accepted = ask(&bucket, lane, 5_000, &field);
        assert!((most - 3..=most).contains(&accepted), "{lane:?}: {accepted}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_lane_does_not_need_the_other_has() {
    let (bucket, mut field) = (bucket(), FuturesUnordered::new());
    assert_eq!(ask(&bucket, Lane::Callers, 103, &field), 103);
    let begin = Instant::now();
    while field.next().await.is_some() {}
    assert!(begin.elapsed() < Duration::from_millis(10_500), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn those_behind_one_that_leaves_move_up() {
    let (bucket, mut field) = (bucket(), FuturesUnordered::new());
    ask(&bucket, Lane::Agents, 103, &field);
    let mut last = pin!(bucket.wait(None));
    assert!(futures::poll!(&mut last).is_pending());
    field.clear();
    let begin = Instant::now();
    last.await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_is_raised_serves_those_who_wait_at_once_and_refills_nothing() {
    let (bucket, mut field) = (bucket(), FuturesUnordered::new());
    assert_eq!(ask(&bucket, Lane::Agents, 23, &field), 23);
    assert_eq!(field.len(), 20);
    let begin = Instant::now();
    bucket.set(Rate { per_second: 100.0, burst: 3 });
    while field.next().await.is_some() {}
    let took = begin.elapsed();
    assert!((195..=205).contains(&took.as_millis()), "{took:?}: the three that were taken stay taken");
}

#[tokio::test(start_paused = true)]
async fn what_was_used_stays_used_in_turns_whatever_the_rate_becomes() {
    for (rate, wait) in [(1.0, 1_000), (10.0, 100), (1_000.0, 1)] {
        let bucket = bucket();
        for _ in 0..3 {
            bucket.wait(None).await.unwrap();
        }
        for other in [0.01, 7.0, 1e6, rate] {
            bucket.set(Rate { per_second: other, burst: 3 });
        }
        let refused = bucket.wait(Some(Instant::now())).await.unwrap_err();
        let error = refused.wait.as_secs_f64() * 1e3 - f64::from(wait);
        assert!(error.abs() < 0.01 * f64::from(wait), "{rate}: {:?}", refused.wait);
    }
    let bucket = bucket();
    for _ in 0..3 {
        bucket.wait(None).await.unwrap();
    }
    bucket.set(Rate { per_second: 10.0, burst: 5 });
    let at_once = (0..5).filter(|_| bucket.enter(Lane::Agents, None).is_ok_and(|place| place.is_none()));
    assert_eq!(at_once.count(), 2, "a larger burst gives what it is larger by");
}

#[tokio::test(start_paused = true)]
async fn under_a_lower_rate_those_whose_deadline_is_too_near_are_told_at_once_and_others_wait_on() {
    let bucket = bucket();
    for _ in 0..3 {
        bucket.wait(None).await.unwrap();
    }
    let begin = Instant::now();
    let mut patient = pin!(bucket.wait(None));
    let mut hurried = pin!(bucket.wait(Some(begin + Duration::from_secs(1))));
    assert!(futures::poll!(&mut patient).is_pending() && futures::poll!(&mut hurried).is_pending());
    bucket.set(Rate { per_second: 1.0, burst: 3 });
    assert_eq!(hurried.await, Err(TooLong { wait: Duration::from_secs(2) }));
    assert_eq!(begin.elapsed(), Duration::ZERO);
    patient.await.unwrap();
    assert_eq!(begin.elapsed().as_millis(), 1_000);
}

#[tokio::test(start_paused = true)]
async fn under_a_lower_rate_no_more_wait_than_fit_into_the_patience() {
    let (bucket, mut field) = (bucket(), FuturesUnordered::new());
    let mut waiting: Vec<_> = (0..603).map(|_| Box::pin(bucket.wait(None))).collect();
    waiting.retain_mut(|turn| futures::FutureExt::now_or_never(turn).is_none());
    assert_eq!(waiting.len(), 600);
    bucket.set(Rate { per_second: 1.0, burst: 3 });
    field.extend(waiting);
    let begin = Instant::now();
    let results: Vec<_> = field.collect().await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 60);
    assert!(begin.elapsed() <= Duration::from_secs(61), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn those_behind_one_that_does_not_look_have_their_turn_all_the_same() {
    let bucket = bucket();
    let mut idle: Vec<_> = (0..23).map(|_| Box::pin(bucket.wait(None))).collect();
    let ready = idle.iter_mut().filter_map(futures::FutureExt::now_or_never).count();
    assert_eq!(ready, 3);
    let begin = Instant::now();
    bucket.wait(None).await.unwrap();
    assert!(begin.elapsed() < Duration::from_millis(2_400), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_burst_that_was_taken_is_not_waited_for_once_bursts_are_smaller() {
    for ((per_second, burst), (lower, smaller), wait) in [
        ((10.0, 50), (0.1, 1), 10_000),
        ((10.0, 5_000), (10.0, 50), 100),
        ((10.0, 50), (1.0, 50), 1_000),
        ((10.0, 50), (10.0, 1), 100),
        ((1e6, 1), (0.001, u32::MAX), 0),
    ] {
        let bucket = Bucket::new(Rate { per_second, burst }, PATIENCE);
        for _ in 0..burst {
            bucket.wait(None).await.unwrap();
        }
        bucket.set(Rate { per_second: lower, burst: smaller });
        let waited =
            bucket.wait(Some(Instant::now())).await.map_or_else(|refused| refused.wait, |()| Duration::ZERO);
        let error = waited.as_secs_f64() * 1e3 - f64::from(wait);
        assert!(error.abs() <= 0.01 * f64::from(wait), "{burst} -> {lower}/s, {smaller}: {waited:?}");
    }
}
