//! The cache under paused time: what is asked again, when, and what a caller that leaves does to the others.

use super::*;
use std::sync::atomic::{AtomicU32, Ordering};
use tokio::sync::Notify;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Failure(Lasting);

impl Remember for Failure {
    fn lasting(&self) -> Lasting {
        self.0
    }
}

type Numbers = Cache<u32, u32, Failure>;

fn cache(capacity: usize) -> Numbers {
    Cache::new(Settings { capacity, ok: Duration::from_secs(300), error: Duration::from_secs(60) })
}

/// Asks at once, and says whether it had to.
async fn asks(cache: &Numbers, key: u32, result: Result<u32, Failure>) -> bool {
    let asked = AtomicU32::new(0);
    let answer = cache
        .get(key, || {
            asked.fetch_add(1, Ordering::Relaxed);
            async move { result }
        })
        .await;
    assert_eq!(answer, result);
    asked.into_inner() == 1
}

#[tokio::test(start_paused = true)]
async fn each_kind_of_answer_is_kept_for_its_own_time() {
    let table = [
        (Ok(1), 300_000),
        (Err(Failure(Lasting::Definitive)), 60_000),
        (Err(Failure(Lasting::Transient)), 2_000),
    ];
    for (key, (result, time)) in (0..).zip(table) {
        let cache = cache(10);
        assert!(asks(&cache, key, result).await);
        tokio::time::advance(Duration::from_millis(time * 9 / 10 - 1)).await;
        assert!(!asks(&cache, key, result).await, "{result:?} is forgotten too early");
        tokio::time::advance(Duration::from_millis(time / 10 + 1)).await;
        assert!(asks(&cache, key, result).await, "{result:?} is kept too long");
    }
    let cache = cache(10);
    let never = Err(Failure(Lasting::Never));
    assert!(asks(&cache, 0, never).await);
    assert!(asks(&cache, 0, never).await);
}

#[tokio::test(start_paused = true)]
async fn times_to_keep_differ_so_that_not_all_expire_at_once() {
    let cache = cache(1_000);
    for key in 0..100 {
        asks(&cache, key, Ok(1)).await;
    }
    tokio::time::advance(Duration::from_secs(285)).await;
    let mut again = 0;
    for key in 0..100 {
        again += u32::from(asks(&cache, key, Ok(1)).await);
    }
    assert!((10..=90).contains(&again), "{again} of 100 had expired");
}

#[tokio::test(start_paused = true)]
async fn a_hundred_callers_are_one_question() {
    let cache = cache(10);
    let (asked, go) = (Arc::new(AtomicU32::new(0)), Arc::new(Notify::new()));
    let callers = (0..100).map(|_| {
        let (asked, go) = (asked.clone(), go.clone());
        cache.get(7, move || async move {
            asked.fetch_add(1, Ordering::Relaxed);
            go.notified().await;
            Ok(49)
        })
    });
    // The question waits until all have asked.
    let (answers, ()) = tokio::join!(futures::future::join_all(callers), async { go.notify_one() });
    assert_eq!(answers, vec![Ok(49); 100]);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_first_caller_that_leaves_neither_stops_nor_poisons_the_others() {
    let cache = cache(10);
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let mut first = Box::pin(cache.get(7, move || async move {
        wait.notified().await;
        Ok(49)
    }));
    assert!(futures::poll!(&mut first).is_pending());
    let second = cache.clone();
    let second = tokio::spawn(async move { second.get(7, || async { Ok(0) }).await });
    tokio::task::yield_now().await;
    drop(first);
    go.notify_one();
    assert_eq!(second.await.unwrap(), Ok(49));
    assert!(!asks(&cache, 7, Ok(49)).await);
}

#[tokio::test(start_paused = true)]
async fn a_question_that_all_left_is_dropped_and_asked_anew() {
    let cache = cache(10);
    let held = Arc::new(());
    let inside = held.clone();
    let mut only = Box::pin(cache.get(7, move || async move {
        let _inside = inside;
        std::future::pending().await
    }));
    assert!(futures::poll!(&mut only).is_pending());
    drop(only);
    assert_eq!(Arc::strong_count(&held), 1, "nothing goes on for nobody");
    assert!(asks(&cache, 7, Ok(1)).await);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_kept_than_fits_and_failures_go_first() {
    let cache = cache(3);
    asks(&cache, 1, Ok(1)).await;
    asks(&cache, 2, Ok(1)).await;
    for key in 10..100 {
        asks(&cache, key, Err(Failure(Lasting::Definitive))).await;
        assert!(cache.len() <= 3);
    }
    assert!(!asks(&cache, 1, Ok(1)).await && !asks(&cache, 2, Ok(1)).await);
    tokio::time::advance(Duration::from_secs(400)).await;
    asks(&cache, 3, Ok(1)).await;
    assert_eq!(cache.len(), 1, "what expired is gone");
}

#[tokio::test(start_paused = true)]
async fn questions_beyond_the_capacity_are_asked_but_not_kept() {
    let cache = cache(1);
    let mut one = Box::pin(cache.get(1, std::future::pending::<Result<u32, Failure>>));
    assert!(futures::poll!(&mut one).is_pending());
    assert!(asks(&cache, 2, Ok(1)).await);
    assert!(cache.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_forgotten_is_asked_again_even_if_it_was_under_way() {
    let cache = cache(10);
    asks(&cache, 1, Ok(1)).await;
    cache.forget(&1);
    assert!(asks(&cache, 1, Ok(1)).await);
    let go = Arc::new(Notify::new());
    let wait = go.clone();
    let mut stale = Box::pin(cache.get(2, move || async move {
        wait.notified().await;
        Ok(0)
    }));
    assert!(futures::poll!(&mut stale).is_pending());
    cache.forget(&2);
    go.notify_one();
    assert_eq!(stale.await, Ok(0));
    assert!(asks(&cache, 2, Ok(1)).await);
}
