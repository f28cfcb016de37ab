//! Brokers of one fleet ask each other, over real sockets or through a fake whose time is stopped.

use super::*;
use crate::{
    agent_tracker::{Kind, Who},
    stage::serve,
};
use postern_wire::proto::{gitlab::agent::modshared::AgentMeta, postern::fleet::roster_server::RosterServer};
use std::collections::HashMap;
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Channel};

const P: ProjectId = ProjectId(10);

fn peer(number: u16) -> PeerUrl {
    format!("grpc://b:{number}").parse().unwrap()
}

fn who(agent: i64) -> Who {
    Who { agent: AgentId(agent), project: P, name: "prod".to_owned(), address: format!("192.0.2.{agent}") }
}

fn tracker(agents: impl IntoIterator<Item = i64>) -> Tracker {
    let tracker = Tracker::default();
    for agent in agents {
        tracker.registered(who(agent), AgentMeta::default(), 7);
    }
    tracker
}

/// How another broker takes a question.
#[derive(Clone)]
enum Other {
    Answers(Tracker),
    AnswersAfter(Duration, Tracker),
    Silent,
    Fails(Status),
}

#[derive(Default)]
struct Fake {
    others: HashMap<PeerUrl, Other>,
    last: Option<LastSeen>,
}

impl Fleet for Fake {
    fn own(&self) -> PeerUrl {
        peer(1)
    }

    fn peers(&self) -> Vec<PeerUrl> {
        self.others.keys().cloned().collect()
    }

    fn last_seen(&self, _: AgentId) -> BoxFuture<'_, Option<LastSeen>> {
        Box::pin(async { self.last.clone() })
    }

    fn ask(&self, peer: &PeerUrl, _: ConnectedRequest) -> BoxFuture<'static, Result<Answer, Status>> {
        let other = self.others[peer].clone();
        Box::pin(async move {
            let list = |tracker: Tracker| {
                let (connected, truncated) = tracker.list(&Wanted::All, LIST_MAX);
                Ok(Answer { connected, truncated })
            };
            match other {
                Other::Answers(tracker) => list(tracker),
                Other::AnswersAfter(time, tracker) => {
                    tokio::time::sleep(time).await;
                    list(tracker)
                }
                Other::Silent => std::future::pending().await,
                Other::Fails(status) => Err(status),
            }
        })
    }
}

fn roster(own: Tracker, others: impl IntoIterator<Item = (u16, Other)>) -> Roster {
    let others = others.into_iter().map(|(number, other)| (peer(number), other)).collect();
    Roster::new(own).among(Arc::new(Fake { others, last: None }))
}

/// Agents and the brokers that have them.
fn listed(gathered: &Gathered) -> Vec<(i64, PeerUrl)> {
    let row = |entry: &Entry| (entry.connected.info.agent_id, entry.broker.clone().unwrap());
    gathered.entries.iter().map(row).collect()
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_is_slow_or_fails_is_named_and_the_others_are_listed_in_time() {
    let roster = roster(
        tracker([1]),
        [
            (2, Other::Answers(tracker([2]))),
            (3, Other::AnswersAfter(Duration::from_millis(650), tracker([3]))),
            (4, Other::Silent),
            (5, Other::Fails(Status::unavailable("nobody there"))),
            (6, Other::AnswersAfter(Duration::from_millis(800), tracker([6]))),
        ],
    );
    let begin = Instant::now();
    let gathered = roster.all(Duration::from_secs(10)).await;
    assert_eq!(begin.elapsed(), PATIENCE);
    assert_eq!(listed(&gathered), [(1, peer(1)), (2, peer(2)), (3, peer(3))]);
    assert_eq!((gathered.missing, gathered.truncated), (vec![peer(4), peer(5), peer(6)], false));
    let begin = Instant::now();
    let gathered = roster.all(Duration::from_millis(100)).await;
    assert_eq!(begin.elapsed().as_millis(), 100, "whoever asks may have less time");
    assert_eq!(listed(&gathered), [(1, peer(1)), (2, peer(2))]);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_registers_with_one_broker_and_has_its_stream_at_another_is_listed_once() {
    let (own, other) = (Tracker::default(), Tracker::default());
    let meta = || AgentMeta { pod_name: "agent-0".to_owned(), ..AgentMeta::default() };
    own.registered(who(1), meta(), 7);
    tokio::time::advance(Duration::from_secs(5)).await;
    let _stream = other.configured(who(1), meta()).unwrap();
    let roster = roster(own, [(2, Other::Answers(other))]);
    let gathered = roster.all(PATIENCE).await;
    assert_eq!(listed(&gathered), [(1, peer(2))]);
    let connected = &gathered.entries[0].connected;
    assert_eq!((connected.kind, connected.info.connection_id), (Kind::Registered, 7));
}

#[tokio::test(start_paused = true)]
async fn a_kas_that_does_not_know_the_question_is_not_missing() {
    let roster = roster(tracker([1]), [(2, Other::Fails(Status::unimplemented("unknown service")))]);
    let gathered = roster.all(PATIENCE).await;
    assert_eq!((listed(&gathered), gathered.missing), (vec![(1, peer(1))], vec![]));
}

#[tokio::test(start_paused = true)]
async fn nobody_is_asked_for_nobody() {
    let roster = roster(tracker([1]), [(2, Other::Silent)]);
    let begin = Instant::now();
    assert_eq!(roster.by_agents(BTreeSet::new(), PATIENCE).await, Gathered::default());
    assert_eq!(roster.by_projects(BTreeSet::new(), PATIENCE).await, Gathered::default());
    assert_eq!(begin.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn one_broker_alone_lists_its_own_without_a_name_for_itself() {
    let roster = Roster::new(tracker([1, 2]));
    let gathered = roster.by_agents([AgentId(2)].into(), PATIENCE).await;
    assert_eq!(gathered.entries.len(), 1);
    assert_eq!(gathered.entries[0].broker, None);
    assert_eq!(roster.by_projects([P].into(), PATIENCE).await.entries.len(), 2);
}

async fn served(tracker: Tracker, stop: &CancellationToken) -> Channel {
    serve(Routes::new(RosterServer::new(RosterService { tracker })), stop).await
}

fn wanted(agents: &[i64], projects: &[i64]) -> ConnectedRequest {
    rpc::request(&Wanted::Of {
        agents: agents.iter().copied().map(AgentId).collect(),
        projects: projects.iter().copied().map(ProjectId).collect(),
    })
}

#[tokio::test]
async fn a_broker_is_asked_over_grpc_and_answers_what_it_is_asked_for() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    // More than one page.
    let other = tracker(1..1000);
    let meta = AgentMeta { version: "v17.1.2".to_owned(), ..AgentMeta::default() };
    let _stream = other.connected(Who { project: ProjectId(30), ..who(1000) }, meta);
    let channel = served(other, &stop).await;

    let answer = ask(channel.clone(), rpc::request(&Wanted::All)).await.unwrap();
    let ids: Vec<i64> = answer.connected.iter().map(|connected| connected.info.agent_id).collect();
    assert_eq!((ids, answer.truncated), ((1..=1000).collect(), false));
    let stream = &answer.connected[999];
    assert_eq!((stream.kind, stream.info.project_id), (Kind::Stream, 30));
    assert_eq!(stream.info.agent_meta.as_ref().unwrap().version, "v17.1.2");

    let answer = ask(channel.clone(), wanted(&[5, 2000], &[30])).await.unwrap();
    let ids: Vec<i64> = answer.connected.iter().map(|connected| connected.info.agent_id).collect();
    assert_eq!(ids, [5, 1000]);
    let five = &answer.connected[0];
    assert_eq!((&*five.name, &*five.address, five.kind), ("prod", "192.0.2.5", Kind::Registered));
    assert!(five.info.connected_at.is_some());

    assert_eq!(ask(channel, wanted(&[], &[])).await.unwrap(), Answer::default());
    let stranger = serve(Routes::default(), &stop).await;
    assert_eq!(ask(stranger, wanted(&[5], &[])).await.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn an_answer_over_grpc_ends_at_its_bound_and_says_so() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let many = i64::try_from(LIST_MAX).unwrap() + 1;
    let channel = served(tracker(0..many), &stop).await;
    let answer = ask(channel, rpc::request(&Wanted::All)).await.unwrap();
    assert_eq!((answer.connected.len(), answer.truncated), (LIST_MAX, true));
}

#[tokio::test(start_paused = true)]
async fn who_is_gone_is_remembered_by_this_broker_or_by_all_together_whichever_knows_later() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let seen = move |seconds, broker: &str, refusal: Option<&str>| LastSeen {
        at: at(seconds),
        from: "192.0.2.1".to_owned(),
        broker: broker.to_owned(),
        refusal: refusal.map(str::to_owned),
    };
    let own = "grpc://b:1";
    let told = |seconds| Some(seen(seconds, "grpc://b:2", Some("revoked")));
    for (what, mine, others, wanted) in [
        ("nobody", None, None, None),
        ("this one", Some(seen(100, "", None)), None, Some(seen(100, own, None))),
        ("the others", None, told(50), told(50)),
        ("the others later", Some(seen(100, "", None)), told(200), told(200)),
        ("both, and the others know why", Some(seen(100, "", None)), told(98), told(98)),
        ("this one later", Some(seen(100, "", None)), told(50), Some(seen(100, own, None))),
    ] {
        let fleet = Fake { last: others, ..Fake::default() };
        let roster =
            Roster::new(Tracker::default()).remembering(move |_| mine.clone()).among(Arc::new(fleet));
        assert_eq!(roster.last_seen(AgentId(1)).await, wanted, "{what}");
    }
    let alone = Roster::new(Tracker::default()).remembering(move |_| Some(seen(100, "", None)));
    assert_eq!(alone.last_seen(AgentId(1)).await.unwrap().broker, "");
}
