//! Under paused time: how often is asked, what ends a standing, and what does not.

use super::super::Reason;
use super::*;
use crate::rate::{Bucket, Lane, Rate};
use http::StatusCode;
use std::{
    collections::HashSet,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
};
use tokio::time::{Instant, timeout};

const PERIOD: Duration = Duration::from_secs(300);

/// A GitLab with one switch.
#[derive(Default)]
struct GitLab {
    asked: AtomicU32,
    status: Mutex<Option<u16>>,
}

struct Field {
    gitlab: Arc<GitLab>,
    standings: Standings<u8, u32>,
}

impl Field {
    fn new() -> Self {
        let settings = Settings { capacity: 10, ok: PERIOD, error: Duration::from_secs(60) };
        let standings = Standings::new(settings, CancellationToken::new(), TaskTracker::new());
        Self { gitlab: Arc::default(), standings }
    }

    async fn of(&self, key: u8) -> Result<Standing<u32>, RailsError> {
        let gitlab = Arc::clone(&self.gitlab);
        let asked = self.standings.of(key, move |_| {
            let gitlab = Arc::clone(&gitlab);
            async move {
                gitlab.asked.fetch_add(1, Ordering::Relaxed);
                match *gitlab.status.lock().unwrap() {
                    None => Ok(Arc::new(7)),
                    Some(status) => Err(RailsError {
                        call: "agent_info",
                        host: "h".into(),
                        fault: Fault::of(StatusCode::from_u16(status).unwrap(), Reason::default()),
                    }),
                }
            }
        });
        asked.await
    }

    fn answers(&self, status: Option<u16>) {
        *self.gitlab.status.lock().unwrap() = status;
    }

    fn asked(&self) -> u32 {
        self.gitlab.asked.load(Ordering::Relaxed)
    }
}

#[tokio::test(start_paused = true)]
async fn a_hundred_streams_of_a_token_ask_once_a_period() {
    let field = Field::new();
    let mut held = Vec::new();
    for _ in 0..100 {
        held.push(field.of(1).await.unwrap());
    }
    assert_eq!(field.asked(), 1);
    tokio::time::sleep(PERIOD * 10).await;
    assert!((11..=13).contains(&field.asked()), "{}", field.asked());
    let before = field.asked();
    drop(held);
    tokio::time::sleep(PERIOD * 10).await;
    assert_eq!(field.asked(), before, "nobody needs it any more");
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_token_is_noticed_within_a_period_by_all_who_hold_it() {
    for status in [401, 403] {
        let field = Field::new();
        let (one, other) = (field.of(1).await.unwrap(), field.of(1).await.unwrap());
        field.answers(Some(status));
        let start = Instant::now();
        for standing in [&one, &other] {
            let mut watch = standing.watch();
            let gone = timeout(PERIOD, watch.wait_for(Result::is_err)).await;
            assert!(gone.is_ok(), "{status} is noticed");
        }
        assert!(start.elapsed() <= PERIOD);
        assert!(field.of(1).await.is_err(), "and nobody new gets in");
        field.answers(None);
        tokio::time::sleep(Duration::from_secs(61)).await;
        assert!(field.of(1).await.is_ok(), "until GitLab thinks better of it");
        assert!(one.now().is_err(), "what ended stays ended");
    }
}

#[tokio::test(start_paused = true)]
async fn the_period_begins_with_the_answer_and_not_with_who_comes_later_and_is_told_the_same() {
    let field = Field::new();
    drop(field.of(1).await.unwrap());
    let answered = Instant::now();
    tokio::time::sleep(PERIOD / 2).await;
    let later = field.of(1).await.unwrap();
    assert_eq!(field.asked(), 1, "the answer is still good");
    field.answers(Some(401));
    let mut watch = later.watch();
    timeout(PERIOD, watch.wait_for(Result::is_err)).await.expect("it is noticed").unwrap();
    assert!(answered.elapsed() <= PERIOD, "{:?} after the last answer", answered.elapsed());
}

/// A thousand tokens are in use, GitLab is away for ten minutes and comes back.
#[tokio::test(start_paused = true)]
async fn after_an_outage_who_comes_anew_waits_seconds_and_who_is_here_is_asked_for_in_minutes() {
    const HELD: u32 = 1_000;
    let settings = Settings { capacity: 10_000, ok: PERIOD, error: Duration::from_secs(60) };
    let standings: Standings<u32, u32> =
        Standings::new(settings, CancellationToken::new(), TaskTracker::new());
    let bucket = Arc::new(Bucket::new(Rate::default(), PERIOD / 5));
    let (away, renewed) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(HashSet::new())));
    let of = |key: u32| {
        let (bucket, away, renewed) = (Arc::clone(&bucket), Arc::clone(&away), Arc::clone(&renewed));
        standings.of(key, move |occasion| {
            let (bucket, away, renewed) = (Arc::clone(&bucket), Arc::clone(&away), Arc::clone(&renewed));
            async move {
                let error = |fault| RailsError { call: "agent_info", host: "h".into(), fault };
                let lane = if occasion == Occasion::Again { Lane::Renewals } else { Lane::Agents };
                let turn = bucket.wait_in(lane, None).await;
                turn.map_err(|late| error(Fault::RateLimited(late.wait)))?;
                if away.load(Ordering::Relaxed) {
                    return Err(error(Fault::Silent(Duration::ZERO)));
                }
                renewed.lock().unwrap().insert(key);
                Ok(Arc::new(7))
            }
        })
    };
    let mut held = Vec::new();
    for key in 0..HELD {
        held.push(of(key).await.unwrap());
    }
    away.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_secs(600)).await;
    away.store(false, Ordering::Relaxed);
    renewed.lock().unwrap().clear();
    for key in HELD..HELD + 20 {
        let begin = Instant::now();
        of(key).await.unwrap();
        assert!(begin.elapsed() < Duration::from_secs(3), "{:?}", begin.elapsed());
    }
    let all = async {
        while (0..HELD).any(|key| !renewed.lock().unwrap().contains(&key)) {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(PERIOD, all).await.expect("everybody is asked for again");
    assert!(held.iter().all(|held| held.now().is_ok()));
}

#[tokio::test(start_paused = true)]
async fn an_outage_ends_nothing_keeps_who_is_here_and_is_no_storm() {
    for status in [404, 500, 502] {
        outage(status).await;
    }
}

async fn outage(status: u16) {
    let field = Field::new();
    let held = field.of(1).await.unwrap();
    field.answers(Some(status));
    tokio::time::sleep(PERIOD).await;
    let before = field.asked();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(field.asked() - before < 30, "{} questions in ten minutes", field.asked() - before);
    assert!(held.now().is_ok());
    assert!(field.of(1).await.is_ok(), "a tunnel of an agent that is here may be opened anew");
    assert!(field.of(2).await.is_err(), "a stranger has to wait for GitLab");
    field.answers(None);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(field.of(2).await.is_ok(), "who comes anew is asked for again within seconds");
}

#[test]
fn pauses_are_spread_and_bounded() {
    for (failures, random, wanted) in
        [(0, 0.0, 300), (0, 1.0, 240), (1, 0.0, 2), (1, 1.0, 4), (3, 0.0, 8), (100, 0.0, 30), (100, 1.0, 60)]
    {
        assert_eq!(pause(PERIOD, failures, random), Duration::from_secs(wanted), "{failures} {random}");
    }
}
