//! The poller's loop on paused time, with answers made here.

use super::*;
use tokio::time::sleep;
use tonic::Code;

const POLL: Duration = Duration::from_secs(20);
const PERIODS: Periods = Periods { retry: Duration::from_secs(10), retry_max: Duration::from_secs(60) };

struct Polled {
    looks: Arc<Mutex<Vec<Instant>>>,
    /// How long each look would have waited for its turn.
    turns: Arc<Mutex<Vec<Duration>>>,
    answer: Arc<Mutex<Head>>,
    head: watch::Sender<Head>,
    look: Arc<Notify>,
    _stop: DropGuard,
}

fn polled(answer: Head) -> Polled {
    polled_as(answer, false)
}

fn polled_as(answer: Head, fixed: bool) -> Polled {
    let turns = Arc::new(Mutex::new(Vec::new()));
    let (looks, answer) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(answer)));
    let head = watch::Sender::new(Err(GitalyError::NotAsked));
    let (look, stop) = (Arc::new(Notify::new()), CancellationToken::new());
    let task = {
        let (looks, answer, head, look) =
            (Arc::clone(&looks), Arc::clone(&answer), head.clone(), Arc::clone(&look));
        let turns = Arc::clone(&turns);
        async move {
            let ask = |turn| {
                looks.lock().unwrap().push(Instant::now());
                turns.lock().unwrap().push(turn);
                std::future::ready(answer.lock().unwrap().clone())
            };
            let plan = Plan { periods: PERIODS, fixed };
            let followers = Followers::new(Pacing::steady(POLL), Followed::Configuration);
            poll(|| "group/config".to_owned(), ask, head, &look, (plan, followers.rhythm())).await;
        }
    };
    tokio::spawn(stop.clone().run_until_cancelled_owned(task));
    Polled { looks, turns, answer, head, look, _stop: stop.drop_guard() }
}

impl Polled {
    fn answers(&self, answer: Head) {
        *self.answer.lock().unwrap() = answer;
    }

    fn gaps(&self) -> Vec<Duration> {
        self.looks.lock().unwrap().windows(2).map(|pair| pair[1] - pair[0]).collect()
    }
}

fn commit(id: &str) -> Head {
    Ok(id.into())
}

fn throttled() -> Head {
    let (address, wait) = ("tcp://gitaly:8075".to_owned(), Duration::from_secs(2));
    Err(GitalyError::Throttled { address, rpc: "FindCommit", wait })
}

/// Not away, and not right either.
fn failing() -> Head {
    let address = "tcp://gitaly:8075".to_owned();
    Err(GitalyError::Rpc { address, rpc: "FindCommit", code: Code::Internal, message: String::new() })
}

fn down() -> Head {
    let address = "tcp://gitaly:8075".to_owned();
    Err(GitalyError::Rpc { address, rpc: "FindCommit", code: Code::Unavailable, message: String::new() })
}

#[tokio::test(start_paused = true)]
async fn looks_are_at_most_a_period_apart_and_not_in_step() {
    let polled = polled(commit("a"));
    sleep(Duration::from_secs(600)).await;
    let gaps = polled.gaps();
    assert!(gaps.len() >= 29, "{gaps:?}");
    let millisecond = Duration::from_millis(2);
    assert!(gaps.iter().all(|gap| (POLL.mul_f64(0.8)..=POLL + millisecond).contains(gap)));
    assert!(gaps.iter().any(|gap| *gap != gaps[0]), "{gaps:?}");
}

#[tokio::test(start_paused = true)]
async fn failures_slow_it_down_and_an_answer_speeds_it_up() {
    let polled = polled(failing());
    sleep(Duration::from_secs(1_800)).await;
    let gaps = polled.gaps();
    for (gap, least) in gaps.iter().zip([10, 20, 40, 60, 60, 60]) {
        let least = Duration::from_secs(least);
        assert!((least..=least * 2 + Duration::from_millis(2)).contains(gap), "{gap:?} {least:?}");
    }
    polled.answers(commit("a"));
    sleep(Duration::from_secs(121)).await;
    let before = polled.gaps().len();
    sleep(Duration::from_secs(100)).await;
    assert!(polled.gaps().len() >= before + 4);
}

#[tokio::test(start_paused = true)]
async fn readers_are_told_of_changes_only() {
    let polled = polled(commit("a"));
    let mut head = polled.head.subscribe();
    head.wait_for(Result::is_ok).await.unwrap();
    sleep(Duration::from_secs(100)).await;
    assert!(!head.has_changed().unwrap());
    polled.answers(commit("b"));
    head.changed().await.unwrap();
    assert_eq!(*head.borrow_and_update(), commit("b"));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_does_not_take_back_a_commit_but_an_emptied_repository_does() {
    let polled = polled(commit("a"));
    let mut head = polled.head.subscribe();
    head.wait_for(Result::is_ok).await.unwrap();
    polled.answers(down());
    sleep(Duration::from_secs(300)).await;
    assert!(!head.has_changed().unwrap());
    let empty = Err(GitalyError::NoDefaultBranch { repository: "group/config".to_owned() });
    polled.answers(empty.clone());
    head.changed().await.unwrap();
    assert_eq!(*head.borrow_and_update(), empty);
}

#[tokio::test(start_paused = true)]
async fn a_push_is_looked_at_at_once_or_within_a_second_of_a_failure_but_no_storm_of_them_is() {
    let polled = polled(commit("a"));
    let mut head = polled.head.subscribe();
    head.wait_for(Result::is_ok).await.unwrap();
    let start = Instant::now();
    polled.answers(commit("b"));
    polled.look.notify_one();
    head.wait_for(|head| *head == commit("b")).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
    polled.answers(failing());
    polled.look.notify_one();
    sleep(Duration::from_millis(10)).await;
    let looks = polled.looks.lock().unwrap().len();
    for _ in 0..500 {
        polled.look.notify_one();
        sleep(Duration::from_millis(10)).await;
    }
    let more = polled.looks.lock().unwrap().len() - looks;
    assert!((4..=6).contains(&more), "{more} looks in 5 s");
    polled.answers(commit("c"));
    let start = Instant::now();
    polled.look.notify_one();
    head.wait_for(|head| *head == commit("c")).await.unwrap();
    assert!(start.elapsed() <= Duration::from_millis(1_100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_first_push_to_an_empty_repository_is_noticed_like_any_other() {
    let repository = "group/config".to_owned();
    let reference = "refs/heads/dev".to_owned();
    for none in [
        GitalyError::NoDefaultBranch { repository: repository.clone() },
        GitalyError::NoSuchReference { repository, reference },
    ] {
        let polled = polled(Err(none));
        sleep(Duration::from_secs(3_600)).await;
        let gaps = polled.gaps();
        assert!(gaps.iter().all(|gap| *gap <= POLL + Duration::from_millis(2)), "{gaps:?}");
        let mut head = polled.head.subscribe();
        polled.answers(commit("a"));
        polled.look.notify_one();
        let start = Instant::now();
        head.wait_for(Result::is_ok).await.unwrap();
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_waits_for_its_turn_briefly_unless_somebody_waits_for_it() {
    let polled = polled(throttled());
    let mut head = polled.head.subscribe();
    head.wait_for(|head| *head == throttled()).await.expect("whoever follows it is let go");
    sleep(Duration::from_secs(20)).await;
    polled.answers(commit("a"));
    head.wait_for(Result::is_ok).await.unwrap();
    assert!(polled.turns.lock().unwrap().iter().all(|turn| *turn == AWAITED_TURN));
    let known = polled.turns.lock().unwrap().len();
    sleep(Duration::from_secs(100)).await;
    let polls = polled.turns.lock().unwrap().split_off(known);
    assert!(polls.len() >= 4 && polls.iter().all(|turn| *turn == TURN), "{polls:?}");
    polled.look.notify_one();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(polled.turns.lock().unwrap().last(), Some(&AWAITED_TURN));
}

#[tokio::test(start_paused = true)]
async fn a_skipped_look_is_no_failure() {
    let polled = polled(commit("a"));
    let mut head = polled.head.subscribe();
    head.wait_for(Result::is_ok).await.unwrap();
    polled.answers(throttled());
    sleep(Duration::from_secs(600)).await;
    assert!(!head.has_changed().unwrap());
    let gaps = polled.gaps();
    assert!(gaps.iter().all(|gap| *gap <= POLL + Duration::from_millis(2)), "{gaps:?}");
    polled.answers(commit("b"));
    polled.look.notify_one();
    let start = Instant::now();
    head.wait_for(|head| *head == commit("b")).await.unwrap();
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn what_never_changes_is_looked_for_until_it_is_found() {
    let polled = polled_as(throttled(), true);
    sleep(Duration::from_secs(100)).await;
    polled.answers(commit("a"));
    polled.head.subscribe().wait_for(Result::is_ok).await.unwrap();
    let looks = polled.looks.lock().unwrap().len();
    sleep(Duration::from_secs(3_600)).await;
    assert_eq!(polled.looks.lock().unwrap().len(), looks);
}

#[test]
fn retries_never_overflow() {
    assert_eq!(retry(PERIODS, u32::MAX, 1.0), PERIODS.retry_max * 2);
    assert_eq!(retry(PERIODS, 0, 0.0), PERIODS.retry);
}

#[test]
fn a_server_that_is_away_is_looked_for_every_few_seconds() {
    for failures in [0, 1, 5, u32::MAX] {
        let pause = again(PERIODS, failures, true);
        assert!((AWAY..=AWAY_MAX * 2).contains(&pause), "{failures}: {pause:?}");
        assert!(again(PERIODS, failures, false) >= PERIODS.retry, "{failures}");
    }
    let quick = Periods { retry: Duration::ZERO, ..PERIODS };
    assert_eq!(again(quick, 0, true), Duration::ZERO, "never later than wanted");
}
