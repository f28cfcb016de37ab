//! Turns, halves and hints on paused time, with other brokers that do what the test says.

use super::*;
use futures::FutureExt;
use postern_wire::metadata::RETRY_PUSHBACK;
use std::sync::atomic::{AtomicBool, Ordering};

const AGENT: AgentId = AgentId(7);
const MINUTE: Duration = Duration::from_secs(60);

/// Other brokers.
#[derive(Debug)]
pub(crate) struct Peers {
    moved: watch::Sender<Vec<AgentId>>,
    pub(crate) left: AtomicBool,
}

impl Peers {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { moved: watch::Sender::default(), left: AtomicBool::default() })
    }

    pub(crate) fn announce(&self, agent: AgentId) {
        self.moved.send_modify(|moved| moved.push(agent));
    }
}

impl Others for Peers {
    fn begin(&self) {}

    fn any(&self) -> bool {
        true
    }

    fn moved(&self, agent: AgentId) -> BoxFuture<'_, ()> {
        let mut moved = self.moved.subscribe();
        async move {
            moved.wait_for(|moved| moved.contains(&agent)).await.expect("it outlives its subscribers");
        }
        .boxed()
    }

    fn leave(&self) -> BoxFuture<'_, ()> {
        self.left.store(true, Ordering::Relaxed);
        std::future::ready(()).boxed()
    }
}

/// When each of these ended, after the drain's begin, and with what pause.
async fn ends(stays: Vec<Stay>, begin: Instant) -> Vec<(Duration, Duration)> {
    futures::future::join_all(stays.into_iter().map(|stay| async move {
        let goodbye = stay.tunnel_over().await;
        (begin.elapsed(), goodbye.pause)
    }))
    .await
}

#[tokio::test(start_paused = true)]
async fn nothing_ends_before_a_drain() {
    let departures = Departures::default();
    let stay = departures.stay(AGENT);
    assert!(tokio::time::timeout(MINUTE * 60, stay.tunnel_over()).await.is_err());
    assert!(tokio::time::timeout(MINUTE, departures.gone()).await.is_err());
    drop(stay);
    departures.gone().await;
}

#[tokio::test(start_paused = true)]
async fn agents_go_one_after_the_other_over_a_time_that_grows_with_their_number() {
    for (agents, window) in [(1, SHORTEST), (1000, EACH * 1000), (100_000, LONGEST)] {
        let departures = Departures::default();
        let stays = (0..2000).map(|agent| departures.stay(AgentId(agent))).collect();
        departures.begin(agents, Some(Peers::new()), Instant::now() + MINUTE);
        let mut ends = ends(stays, Instant::now()).await;
        ends.sort_unstable();
        assert!(ends.iter().all(|(at, pause)| *at <= window + Duration::from_millis(1) && pause.is_zero()));
        // Evenly: any tenth of the time has about a tenth of them.
        for tenth in 0..10 {
            let span = window.mul_f64(f64::from(tenth) / 10.0)..window.mul_f64(f64::from(tenth + 1) / 10.0);
            let here = ends.iter().filter(|(at, _)| span.contains(at)).count();
            assert!((120..290).contains(&here), "{agents} agents, tenth {tenth}: {here}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn half_of_an_agents_tunnels_stay_until_it_stands_elsewhere() {
    let departures = Departures::default();
    let peers = Peers::new();
    let others: Arc<dyn Others> = Arc::clone(&peers) as _;
    for (tunnels, first) in [(1, 1), (2, 1), (5, 3), (10, 5)] {
        let agent = AgentId(100 + i64::from(first) * 10 + tunnels);
        let tunnels = usize::try_from(tunnels).unwrap();
        let first = usize::try_from(first).unwrap();
        let stays: Vec<_> = (0..tunnels).map(|_| departures.stay(agent)).collect();
        departures.begin(1, Some(Arc::clone(&others)), Instant::now() + MINUTE);
        let begin = Instant::now();
        let ends = tokio::spawn(ends(stays, begin));
        tokio::time::sleep(Duration::from_secs(3)).await;
        peers.announce(agent);
        let ends = ends.await.unwrap();
        let at_once = ends.iter().filter(|(at, _)| *at <= SHORTEST + Duration::from_millis(1)).count();
        assert_eq!(at_once, first, "{tunnels} tunnels: {ends:?}");
        let later = ends.iter().filter(|(at, _)| *at > SHORTEST + Duration::from_millis(1));
        assert!(later.clone().all(|(at, _)| at.as_millis().abs_diff(3000) <= 2), "{ends:?}");
        assert!(ends.iter().all(|(_, pause)| pause.is_zero()));
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_come_to_stand_elsewhere_is_waited_for_but_not_past_the_deadline() {
    for (deadline, at_most) in [(MINUTE, MOVES + SHORTEST), (Duration::from_secs(2), Duration::from_secs(2))]
    {
        let departures = Departures::default();
        let stays = vec![departures.stay(AGENT), departures.stay(AGENT)];
        departures.begin(1, Some(Peers::new()), Instant::now() + deadline);
        let ends = ends(stays, Instant::now()).await;
        let last = ends.iter().map(|(at, _)| *at).max().unwrap();
        assert!(last <= at_most + Duration::from_millis(2) && last + SHORTEST >= at_most, "{last:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn long_polls_go_at_their_turn_whatever_the_tunnels_do() {
    let departures = Departures::default();
    let stay = departures.stay(AGENT);
    departures.begin(1, Some(Peers::new()), Instant::now() + MINUTE);
    let begin = Instant::now();
    assert_eq!(stay.stream_over().await, Goodbye::now());
    assert!(begin.elapsed() <= SHORTEST + Duration::from_millis(1));
    // It took nobody's place among the halves.
    assert!(!departures.is_second(AGENT));
}

#[tokio::test(start_paused = true)]
async fn with_no_other_broker_all_go_at_their_turn_and_are_asked_to_pause_a_little() {
    let departures = Departures::default();
    let stays = (0..100).map(|_| departures.stay(AGENT)).collect();
    departures.begin(1, None, Instant::now() + MINUTE);
    let ends = ends(stays, Instant::now()).await;
    assert!(ends.iter().all(|(at, pause)| *at <= SHORTEST + Duration::from_millis(1) && *pause < PAUSE));
    let distinct: std::collections::HashSet<_> = ends.iter().map(|(_, pause)| pause).collect();
    assert!(distinct.len() > 50, "they would all come back together");
}

#[tokio::test(start_paused = true)]
async fn the_end_of_a_drain_takes_no_turns() {
    let departures = Departures::default();
    let stays = vec![departures.stay(AGENT), departures.stay(AGENT)];
    departures.begin(100_000, Some(Peers::new()), Instant::now() + MINUTE);
    let ends = tokio::spawn(ends(stays, Instant::now()));
    tokio::task::yield_now().await;
    departures.end();
    let ends = ends.await.unwrap();
    assert!(ends.iter().all(|(at, _)| *at <= Duration::from_millis(1)), "{ends:?}");
    // Those that come late are told at once.
    departures.stay(AgentId(8)).tunnel_over().now_or_never().expect("it is over");
}

#[test]
fn a_goodbye_is_ok_with_a_hint_in_its_trailers() {
    let status = Goodbye { pause: Duration::from_millis(750) }.status();
    assert_eq!(status.code(), Code::Ok);
    assert_eq!(status.metadata().get(RETRY_PUSHBACK).unwrap(), "750");
    assert_eq!(Goodbye::now().status().metadata().get(RETRY_PUSHBACK).unwrap(), "0");
}

#[tokio::test(start_paused = true)]
async fn requests_are_waited_for_and_then_cut() {
    let running = Running::default();
    let (one, two) = (running.enter(), running.enter());
    drop(one);
    assert!(tokio::time::timeout(MINUTE, running.wait()).await.is_err());
    let request = tokio::spawn(async move { two.cut().cancelled().await });
    assert_eq!(running.cut().await, 1);
    request.await.unwrap();
    running.wait().await;
}
