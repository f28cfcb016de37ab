//! Races without brokers: what the directory and the brokers say comes from scripts, time is paused.

use super::race::{AGAIN, Fleet, Guide, HEAD_START, Lost, Race, Runner, Won};
use crate::{
    fleet::{
        PeerUrl,
        directory::{Found, LastSeen},
        peers::PeerError,
        remote::Answer,
    },
    tunnel::{
        registry::{FindError, Offer, Registry},
        stream::tests::tunnel,
    },
};
use postern_wire::ids::AgentId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep},
};

const AGENT: AgentId = AgentId(1);
const WAIT: Duration = Duration::from_secs(20);
const NO: Answer = Answer::NoTunnel { busy: false };

fn broker(number: u16) -> PeerUrl {
    PeerUrl::Tcp { host: "broker".into(), port: number, tls: false }
}

/// News after so many milliseconds each.
struct News(Vec<(u64, Found)>);

impl Guide for News {
    async fn next(&mut self) -> Found {
        let Some((after, _)) = self.0.first() else { return std::future::pending().await };
        sleep(Duration::from_millis(*after)).await;
        self.0.remove(0).1
    }
}

/// What each broker says, after so many milliseconds each; `None`: it cannot be reached.
type Script = Vec<(u64, Option<Answer>)>;

struct Scripted {
    name: PeerUrl,
    script: Script,
    left: Arc<Mutex<Vec<PeerUrl>>>,
}

impl Runner for Scripted {
    async fn answer(&mut self) -> Result<Answer, PeerError> {
        let Some((after, _)) = self.script.first() else { return std::future::pending().await };
        sleep(Duration::from_millis(*after)).await;
        self.script.remove(0).1.ok_or_else(unreachable)
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.left.lock().unwrap().push(self.name.clone());
    }
}

fn unreachable() -> PeerError {
    PeerError::Ended { broker: broker(0) }
}

/// All brokers, and who was asked when.
#[derive(Default)]
struct Stage {
    registry: Arc<Registry>,
    scripts: HashMap<PeerUrl, Script>,
    asked: Mutex<Vec<(PeerUrl, Duration)>>,
    forgotten: Mutex<Vec<PeerUrl>>,
    left: Arc<Mutex<Vec<PeerUrl>>>,
    known_here: bool,
    grace: Duration,
}

impl Fleet for Stage {
    fn forget(&self, agent: AgentId, peer: &PeerUrl) {
        assert_eq!(agent, AGENT);
        self.forgotten.lock().unwrap().push(peer.clone());
    }
    fn peers(&self) -> Vec<PeerUrl> {
        let mut all: Vec<_> = self.scripts.keys().cloned().collect();
        all.sort();
        all
    }
}

impl Stage {
    fn says(mut self, number: u16, script: Script) -> Self {
        self.scripts.insert(broker(number), script);
        self
    }

    async fn run(&self, news: Vec<(u64, Found)>) -> (Won<Scripted>, Duration) {
        let begin = Instant::now();
        let race = Race {
            agent: AGENT,
            known_here: self.known_here,
            deadline: begin + WAIT,
            answers: begin + WAIT,
            grace: begin + self.grace,
        };
        let here = self.registry.wait(AGENT);
        tokio::pin!(here);
        let ask = |peer: PeerUrl| {
            self.asked.lock().unwrap().push((peer.clone(), begin.elapsed()));
            let script = self.scripts.get(&peer).cloned();
            async move {
                let script = script.ok_or_else(unreachable)?;
                Ok(Scripted { name: peer, script, left: Arc::clone(&self.left) })
            }
        };
        let won = race.run(here, News(news), self, ask).await;
        (won, begin.elapsed())
    }

    fn asked(&self) -> Vec<(u16, u64)> {
        let asked = self.asked.lock().unwrap();
        let number = |peer: &PeerUrl| match peer {
            PeerUrl::Tcp { port, .. } => *port,
            PeerUrl::Unix(_) => 0,
        };
        asked.iter().map(|(peer, at)| (number(peer), u64::try_from(at.as_millis()).unwrap())).collect()
    }
}

fn winner(won: &Won<Scripted>) -> u16 {
    match won {
        Won::There(Scripted { name: PeerUrl::Tcp { port, .. }, .. }) => *port,
        _ => panic!("nobody else won"),
    }
}

fn nothing(won: Won<Scripted>) -> Lost {
    match won {
        Won::Nothing(lost) => lost,
        _ => panic!("somebody won"),
    }
}

fn at(number: u16) -> (u64, Found) {
    (0, Found::Peer(broker(number)))
}

#[tokio::test(start_paused = true)]
async fn the_broker_that_is_known_to_hold_the_agent_is_asked_alone_if_it_answers() {
    let stage =
        Stage::default().says(1, vec![(3, Some(Answer::Ready))]).says(2, vec![(0, Some(Answer::Ready))]);
    let (won, took) = stage.run(vec![at(1), at(2)]).await;
    assert_eq!((winner(&won), took), (1, Duration::from_millis(3)));
    assert_eq!(stage.asked(), [(1, 0)]);
}

#[tokio::test(start_paused = true)]
async fn a_silent_broker_gets_company_after_its_head_start_and_is_let_go_when_it_loses() {
    let stage = Stage::default().says(1, vec![]).says(2, vec![(5, Some(Answer::Ready))]);
    let (won, took) = stage.run(vec![at(1), at(2)]).await;
    assert_eq!((winner(&won), took), (2, HEAD_START + Duration::from_millis(5)));
    drop(won);
    assert_eq!(*stage.left.lock().unwrap(), [broker(1), broker(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_has_none_makes_way_at_once_and_may_still_win_later() {
    let stage = Stage::default()
        .says(1, vec![(2, Some(NO)), (100, Some(Answer::Ready))])
        .says(2, vec![(1, Some(NO))]);
    let (won, took) = stage.run(vec![at(1), at(2)]).await;
    assert_eq!((winner(&won), took), (1, Duration::from_millis(102)));
    assert_eq!(stage.asked(), [(1, 0), (2, 2)]);
    assert_eq!(*stage.forgotten.lock().unwrap(), [broker(1), broker(2)]);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_here_wins_over_brokers_that_are_asked() {
    let stage = Stage::default().says(1, vec![(2, Some(NO))]);
    let registry = Arc::clone(&stage.registry);
    let arrives = async move {
        sleep(Duration::from_millis(30)).await;
        let Offer::Wanted(claim) = registry.offer(AGENT) else { panic!("a request waits") };
        claim.send(tunnel(AGENT)).unwrap();
    };
    let ((won, took), ()) = tokio::join!(stage.run(vec![at(1)]), arrives);
    assert!(matches!(won, Won::Here(_)));
    assert_eq!(took, Duration::from_millis(30));
}

#[tokio::test(start_paused = true)]
async fn an_agent_nobody_ever_saw_is_refused_at_once_but_during_the_grace() {
    let stage = Stage::default();
    let (won, took) = stage.run(vec![(1, Found::Nobody { last: None })]).await;
    assert!(nothing(won).never_seen);
    assert_eq!(took, Duration::from_millis(1));
    let young = Stage { grace: Duration::from_secs(3), ..Stage::default() };
    let (won, took) = young.run(vec![(1, Found::Nobody { last: None })]).await;
    assert!(nothing(won).never_seen);
    assert_eq!(took, Duration::from_secs(3));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_gone_is_waited_for_and_served_as_soon_as_it_is_announced() {
    let last = LastSeen {
        at: SystemTime::UNIX_EPOCH,
        from: "192.0.2.1".into(),
        broker: "grpc://broker:9".into(),
        refusal: None,
    };
    let gone = || Found::Nobody { last: Some(last.clone()) };
    let stage = Stage::default();
    let (won, took) = stage.run(vec![(1, gone())]).await;
    let lost = nothing(won);
    assert!(!lost.never_seen && lost.last.is_some());
    assert_eq!(took, WAIT);
    // Asked already, it says so itself; the announcement comes later.
    let stage = Stage::default().says(1, vec![(1, Some(NO)), (4000, Some(Answer::Ready))]);
    let (won, took) = stage.run(vec![(1, gone()), (5000, Found::Peer(broker(1)))]).await;
    assert_eq!((winner(&won), took), (1, Duration::from_millis(4002)));
    // Nobody knew of the broker before it announced the agent.
    let stage = Stage::default();
    let (won, _) = stage.run(vec![(1, gone()), (4000, Found::Peer(broker(1)))]).await;
    assert_eq!((nothing(won).unreachable, stage.asked()[0]), (vec![broker(1)], (1, 4001)));
}

#[tokio::test(start_paused = true)]
async fn where_the_directory_knows_nothing_every_broker_is_asked() {
    let stage = Stage::default()
        .says(1, vec![(1, Some(NO))])
        .says(2, vec![(1, None)])
        .says(3, vec![(1, Some(Answer::Ready))]);
    let (won, _) = stage.run(vec![(100, Found::Unknown)]).await;
    assert_eq!(winner(&won), 3);
    let alone = Stage::default();
    let (won, took) = alone.run(vec![(0, Found::Unknown)]).await;
    assert!(nothing(won).never_seen);
    assert_eq!(took, super::START_GRACE);
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_cannot_be_reached_is_asked_again_when_it_is_named_again_but_not_at_once() {
    let stage = Stage { known_here: true, ..Stage::default() };
    let named = || (0, Found::Peer(broker(1)));
    let (won, took) = stage.run(vec![named(), named(), (1, Found::Peer(broker(1)))]).await;
    let asked = stage.asked();
    assert_eq!(asked, [(1, 0), (1, u64::try_from(AGAIN.as_millis()).unwrap())]);
    assert_eq!((nothing(won).unreachable, took), (vec![broker(1)], WAIT));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_busy_with_the_agent_is_named_in_the_end() {
    let stage = Stage::default().says(1, vec![(1, Some(Answer::NoTunnel { busy: true }))]);
    let (won, took) = stage.run(vec![at(1)]).await;
    assert_eq!((nothing(won).busy_at, took), (Some(broker(1)), WAIT));
    assert!(stage.forgotten.lock().unwrap().is_empty(), "the route is right");
}

#[tokio::test(start_paused = true)]
async fn a_draining_broker_still_asks_the_others() {
    let stage = Stage::default().says(1, vec![(50, Some(Answer::Ready))]);
    stage.registry.drain();
    let (won, _) = stage.run(vec![at(1)]).await;
    assert_eq!(winner(&won), 1);
    let refused: Result<_, FindError> = stage.registry.wait(AGENT).await.map(|_| ());
    assert_eq!(refused, Err(FindError::Draining));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_twice_at_a_time_however_often_it_is_named() {
    let stage = Stage { known_here: true, ..Stage::default() }.says(1, vec![(1, Some(NO))]);
    let (news, told) = mpsc::channel(100);
    for _ in 0..100 {
        news.send(Found::Peer(broker(1))).await.unwrap();
    }
    struct Told(mpsc::Receiver<Found>);
    impl Guide for Told {
        async fn next(&mut self) -> Found {
            self.0.recv().await.expect("kept open")
        }
    }
    let begin = Instant::now();
    let race =
        Race { agent: AGENT, known_here: true, deadline: begin + WAIT, answers: begin + WAIT, grace: begin };
    let here = stage.registry.wait(AGENT);
    tokio::pin!(here);
    let asked = Mutex::new(0);
    let ask = |peer: PeerUrl| {
        *asked.lock().unwrap() += 1;
        let script = stage.scripts[&peer].clone();
        let left = Arc::clone(&stage.left);
        async move { Ok(Scripted { name: peer, script, left }) }
    };
    let won = race.run(here, Told(told), &stage, ask).await;
    assert!(matches!(won, Won::Nothing(_)));
    assert_eq!(*asked.lock().unwrap(), 1);
    drop(news);
}

#[tokio::test(start_paused = true)]
async fn an_agent_whose_broker_cannot_be_reached_is_waited_for_whatever_else_is_not_known_of_it() {
    for news in [Found::Nobody { last: None }, Found::Unknown] {
        let stage = Stage::default().says(2, vec![(1, None)]);
        let (won, took) = stage.run(vec![at(2), (50, news)]).await;
        assert_eq!((nothing(won).unreachable, took), (vec![broker(2)], WAIT));
    }
}

#[tokio::test(start_paused = true)]
async fn where_redis_names_nobody_the_brokers_are_asked_all_the_same() {
    let nobody = || vec![(5, Found::Nobody { last: None })];
    let cut_off = Stage::default().says(1, vec![(1, Some(NO))]).says(2, vec![(2, Some(Answer::Ready))]);
    let (won, _) = cut_off.run(nobody()).await;
    assert_eq!(winner(&won), 2, "it lost Redis and has the agent");
    let nowhere = Stage::default().says(1, vec![(1, Some(NO))]).says(2, vec![(2, Some(NO))]);
    let (won, took) = nowhere.run(nobody()).await;
    assert!(nothing(won).never_seen);
    assert_eq!(took, Duration::from_millis(8), "as soon as the last one has said no");
    let silent = Stage::default().says(1, vec![]);
    let (won, took) = silent.run(nobody()).await;
    assert!(nothing(won).never_seen);
    assert_eq!(took, Duration::from_millis(1005));
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_there_gets_the_time_to_answer_however_short_an_absent_agent_is_waited_for() {
    let stage = Stage { known_here: true, ..Stage::default() }.says(1, vec![(300, Some(Answer::Ready))]);
    let begin = Instant::now();
    let race = Race {
        agent: AGENT,
        known_here: true,
        deadline: begin,
        answers: begin + Duration::from_secs(2),
        grace: begin,
    };
    let here = stage.registry.wait(AGENT);
    tokio::pin!(here);
    let script = stage.scripts[&broker(1)].clone();
    let ask = |name: PeerUrl| {
        let (script, left) = (script.clone(), Arc::clone(&stage.left));
        async move { Ok(Scripted { name, script, left }) }
    };
    let won = race.run(here, News(vec![(10, Found::Peer(broker(1)))]), &stage, ask).await;
    assert_eq!(winner(&won), 1);
}
