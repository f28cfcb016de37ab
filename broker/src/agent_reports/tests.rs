//! Over real sockets: agents' gRPC clients, a stand-in GitLab that says who they are, and two brokers that ask each other.

use super::{
    codec::Counted,
    known::{Known, Others, Pages},
    rpc::KnowledgeService,
    views::{Kind, Limits, Page, Summary},
    *,
};
use crate::{
    events::Published,
    fleet::PeerUrl,
    gitlab::Periods,
    stage::{Stage, TOKEN_A, TOKEN_B, agents, call_as, serve},
};
use futures::future::BoxFuture;
use postern_wire::{
    ids::AgentId,
    metadata::RETRY_PUSHBACK,
    proto::postern::{
        agent::{
            ConfigurationReport, GitopsReport, ObjectReport, ViewEntry,
            agent_reports_client::AgentReportsClient, report_request::About,
        },
        fleet::{FollowRequest, agent_knowledge_server::AgentKnowledgeServer},
    },
};
use stand_ins::rails::Options;
use std::collections::HashMap;
use tokio::{
    sync::{broadcast::Receiver, mpsc},
    task::JoinHandle,
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{client::Grpc, codec::CompressionEncoding, service::Routes, transport::Channel};

const SOON: Duration = Duration::from_secs(60);
const A: AgentId = AgentId(1);
const B: AgentId = AgentId(2);

struct Field {
    channel: Channel,
    agent: AgentReportsClient<Channel>,
    board: Board,
    views: Views,
    events: Receiver<Arc<Published>>,
    departures: Departures,
    _stage: Stage,
}

impl Field {
    async fn start(age: Duration) -> Self {
        let options = Options { agents: agents(|project| project), ..Options::default() };
        let stage = Stage::start(options, Periods::default()).await;
        let (board, views, events) = (Board::default(), Views::default(), Arc::new(Events::default()));
        let heard = events.subscribe();
        let departures = Departures::default();
        let mut service = ReportsService::new(
            (board.clone(), views.clone()),
            events,
            KnownMetrics::default(),
            Ages::steady(age),
            departures.clone(),
        );
        // None of so many comes back while a test lasts.
        service.reports = Arc::new(Paces::new((REPORTS.0, Duration::from_secs(3_600))));
        let channel = serve(Routes::new(stage.admission.guard(service.server())), &stage.stop).await;
        let agent = AgentReportsClient::new(channel.clone());
        Self { channel, agent, board, views, events: heard, departures, _stage: stage }
    }

    async fn lasting() -> Self {
        Self::start(Duration::from_secs(3_600)).await
    }

    async fn report(&self, token: &str, about: About) -> Result<(), Status> {
        let request = ReportRequest { pod_name: "agent-0".to_owned(), about: Some(about) };
        self.agent.clone().report(call_as(token, request)).await.map(|_| ())
    }

    /// Tells, and does not end the call.
    fn hold(
        &self,
        token: &str,
        about: About,
    ) -> (mpsc::Sender<ReportRequest>, JoinHandle<Result<(), Status>>) {
        let (reports, receiver) = mpsc::channel(1);
        reports.try_send(ReportRequest { pod_name: String::new(), about: Some(about) }).unwrap();
        let call = call_as(token, ReceiverStream::new(receiver));
        let (path, channel) = ("/postern.agent.AgentReports/Report".parse().unwrap(), self.channel.clone());
        let ended = tokio::spawn(async move {
            let mut grpc = Grpc::new(channel);
            grpc.ready().await.unwrap();
            let codec = Counted::<ReportResponse, ReportRequest>::new(codec::REPORT);
            grpc.client_streaming(call, path, codec).await.map(|_| ())
        });
        (reports, ended)
    }

    fn push(&self, token: &str) -> Pushing {
        let (updates, receiver) = mpsc::channel(8);
        let mut agent = self.agent.clone();
        let call = call_as(token, ReceiverStream::new(receiver));
        Pushing { updates, ended: tokio::spawn(async move { agent.push_views(call).await }) }
    }
}

/// An agent's stream.
struct Pushing {
    updates: mpsc::Sender<ViewUpdate>,
    ended: JoinHandle<Result<Response<PushViewsResponse>, Status>>,
}

impl Pushing {
    async fn send(&self, update: ViewUpdate) {
        self.updates.send(update).await.unwrap();
    }

    async fn ended(self) -> Result<Response<PushViewsResponse>, Status> {
        timeout(SOON, self.ended).await.expect("it ends soon").unwrap()
    }
}

pub(crate) fn whole(view: &str, entries: &[(&str, &str)]) -> ViewUpdate {
    let entry = |(key, json): &(&str, &str)| ViewEntry {
        key: (*key).to_owned(),
        value: (*json).to_owned().into_bytes().into(),
    };
    let entries = entries.iter().map(entry).collect();
    ViewUpdate { view: view.to_owned(), whole: true, entries, ..ViewUpdate::default() }
}

async fn until(met: impl AsyncFn() -> bool) {
    let met = async {
        while !met().await {
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, met).await.expect("it comes soon");
}

fn gitops(project: &str, state: &str, commit: &str) -> About {
    About::Gitops(GitopsReport {
        project: project.to_owned(),
        state: state.to_owned(),
        commit_id: commit.to_owned(),
        ..GitopsReport::default()
    })
}

#[tokio::test]
async fn a_report_is_kept_for_its_agent_and_is_an_event_once() {
    let mut field = Field::lasting().await;
    let configuration =
        |commit: &str| ConfigurationReport { commit_id: commit.to_owned(), applied: true, problems: vec![] };
    field.report(TOKEN_A, About::Configuration(configuration("c1"))).await.unwrap();
    for (state, commit) in
        [("synchronizing", "d1"), ("synchronized", "d1"), ("synchronized", "d1"), ("failed", "d2")]
    {
        field.report(TOKEN_A, gitops("group/p", state, commit)).await.unwrap();
    }
    field.report(TOKEN_B, gitops("group/p", "degraded", "d1")).await.unwrap();
    let mut told = Vec::new();
    while let Ok(published) = field.events.try_recv() {
        told.push((published.event.agent_id, published.event.project_id.0, published.event.kind.name()));
    }
    let wanted = [
        (A, 10, "agent_configuration_applied"),
        (A, 10, "gitops_synchronized"),
        (A, 10, "gitops_failed"),
        (B, 20, "gitops_degraded"),
    ];
    assert_eq!(told, wanted);
    let kept = field.board.of(A);
    assert_eq!(kept.iter().map(|last| &*last.project).collect::<Vec<_>>(), ["", "group/p"]);
    assert!(kept[1].json.contains(r#""state":"failed""#) && kept[1].json.contains(r#""pod_name":"agent-0""#));
    assert_eq!(field.board.of(B).len(), 1);
}

#[tokio::test]
async fn reports_of_strangers_and_nonsense_and_floods_are_refused() {
    let field = Field::lasting().await;
    let refused = field.report("glagent-none-such", gitops("p", "failed", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = field.report(TOKEN_A, gitops("p", "great", "")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(field.board.of(A).is_empty());
    let flood = async {
        loop {
            if let Err(status) = field.report(TOKEN_A, gitops("p", "failed", "")).await {
                return status;
            }
        }
    };
    assert_eq!(timeout(SOON, flood).await.unwrap().code(), Code::ResourceExhausted);
    field.report(TOKEN_B, gitops("p", "failed", "")).await.expect("another agent is not touched");
}

#[tokio::test]
async fn what_takes_much_more_than_its_bytes_is_not_read() {
    let field = Field::lasting().await;
    let report = |results| {
        About::Gitops(GitopsReport {
            project: "p".to_owned(),
            state: "degraded".to_owned(),
            results,
            ..GitopsReport::default()
        })
    };
    let long = ObjectReport { text: "x".repeat(300 << 10), ..ObjectReport::default() };
    for results in [vec![ObjectReport::default(); 100_000], vec![long]] {
        let refused = field.report(TOKEN_A, report(results)).await.unwrap_err();
        assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    }
    let mut compresses = field.agent.clone().send_compressed(CompressionEncoding::Gzip);
    let request = ReportRequest { pod_name: String::new(), about: Some(report(vec![])) };
    let refused = compresses.report(call_as(TOKEN_A, request)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(field.board.of(A).is_empty());
    let long = format!(r#"{{"a":"{}"}}"#, "x".repeat(600 << 10));
    let many = ViewUpdate { entries: vec![ViewEntry::default(); 100_000], ..whole("nodes", &[]) };
    for update in [many, whole("nodes", &[("a", &long)])] {
        let pushing = field.push(TOKEN_A);
        pushing.send(update).await;
        assert_eq!(pushing.ended().await.unwrap_err().code(), Code::OutOfRange);
    }
}

#[tokio::test]
async fn reports_whose_calls_do_not_end_keep_others_of_their_agent_only_waiting_and_unread() {
    let field = Field::lasting().await;
    let (first, first_ended) = field.hold(TOKEN_A, gitops("p1", "failed", ""));
    let (_second, _) = field.hold(TOKEN_A, gitops("p2", "failed", ""));
    until(async || field.board.of(A).len() == 2).await;
    let third = field.report(TOKEN_A, gitops("p3", "failed", ""));
    tokio::pin!(third);
    tokio::select! {
        answer = &mut third => panic!("it does not wait: {answer:?}"),
        other = field.report(TOKEN_B, gitops("p", "failed", "")) => other.expect("another agent is not touched"),
    }
    assert_eq!(field.board.of(A).len(), 2);
    drop(first);
    timeout(SOON, first_ended).await.unwrap().unwrap().expect("it is taken");
    timeout(SOON, third).await.unwrap().expect("it is its turn");
    let (twice, ended) = field.hold(TOKEN_B, gitops("p", "failed", ""));
    twice.send(ReportRequest::default()).await.unwrap();
    let refused = timeout(SOON, ended).await.unwrap().unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    let held = (0..=CALLS).map(|_| field.hold(TOKEN_B, gitops("p", "failed", "")));
    let (_open, ended): (Vec<_>, Vec<_>) = held.unzip();
    let (refused, ..) = timeout(SOON, futures::future::select_all(ended)).await.unwrap();
    assert_eq!(refused.unwrap().unwrap_err().code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn views_are_kept_under_the_agent_whose_token_it_is() {
    let field = Field::lasting().await;
    let (a, b) = (field.push(TOKEN_A), field.push(TOKEN_B));
    a.send(whole("nodes", &[("n", r#"{"ready":true}"#)])).await;
    b.send(whole("nodes", &[("m", "{}")])).await;
    until(async || field.views.summaries(A).len() + field.views.summaries(B).len() == 2).await;
    let mut follower = field.views.follow(A, Kind::Nodes).unwrap();
    let page = follower.next().await.unwrap();
    let (key, json) = &page.entries[0];
    assert_eq!((&**key, &**json, page.entries.len()), ("n", r#"{"ready":true}"#, 1));
    drop(a.updates);
    assert!(timeout(SOON, a.ended).await.unwrap().unwrap().is_ok(), "an agent may end it");
    assert!(follower.next().await.unwrap().stale);
    assert!(!field.views.summaries(B)[0].stale);
    b.send(whole("nodes", &[("m", "[]")])).await;
    let refused = b.ended().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("view nodes, entry m"), "{refused:?}");
    until(async || field.views.summaries(B)[0].stale).await;
}

#[tokio::test]
async fn large_messages_about_views_are_read_as_slowly_as_many() {
    let field = Field::lasting().await;
    let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(8_000));
    let keys: Vec<_> = (0..60).map(|at| format!("n{at:02}")).collect();
    let entries: Vec<_> = keys.iter().map(|key| (key.as_str(), json.as_str())).collect();
    let (pushing, begin) = (field.push(TOKEN_A), Instant::now());
    // 24 MiB, of which four take two seconds.
    for _ in 0..52 {
        pushing.send(whole("nodes", &entries)).await;
    }
    pushing.send(whole("events", &[])).await;
    let other = field.push(TOKEN_B);
    other.send(whole("nodes", &[])).await;
    until(async || field.views.summaries(B).len() == 1).await;
    until(async || field.views.summaries(A).len() == 2).await;
    assert!(begin.elapsed() > Duration::from_millis(1_500), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_agent_has_so_many_streams_of_views() {
    let field = Field::lasting().await;
    let streams: Vec<_> = (0..STREAMS_PER_AGENT).map(|_| field.push(TOKEN_A)).collect();
    for (stream, view) in streams.iter().zip(Kind::ALL) {
        stream.send(whole(view.name(), &[])).await;
    }
    until(async || field.views.summaries(A).len() == STREAMS_PER_AGENT).await;
    assert_eq!(field.push(TOKEN_A).ended().await.unwrap_err().code(), Code::ResourceExhausted);
    let other = field.push(TOKEN_B);
    other.send(whole("nodes", &[])).await;
    until(async || field.views.summaries(B).len() == 1).await;
}

#[tokio::test]
async fn a_stream_that_is_old_or_in_the_way_of_a_drain_ends_well() {
    let field = Field::start(Duration::from_millis(20)).await;
    let response = field.push(TOKEN_A).ended().await.expect("OK");
    assert!(response.metadata().get(RETRY_PUSHBACK).is_none());

    let field = Field::lasting().await;
    let pushing = field.push(TOKEN_A);
    pushing.send(whole("nodes", &[])).await;
    until(async || field.views.summaries(A).len() == 1).await;
    field.departures.begin(1, None, Instant::now());
    let response = pushing.ended().await.expect("OK");
    assert!(response.metadata().get(RETRY_PUSHBACK).is_some(), "with the hint: {response:?}");
    timeout(SOON, field.departures.gone()).await.expect("nothing holds the drain up");
    assert!(field.views.summaries(A)[0].stale);
}

/// What a server does whose work takes longer than a head may.
#[tokio::test]
async fn the_head_of_a_stream_is_answered_before_its_end() {
    use http_body_util::BodyExt as _;
    use std::convert::Infallible;
    use tower_service::Service as _;

    #[derive(Clone)]
    struct Slow(Arc<tokio::sync::Notify>, bool);

    impl tower_service::Service<http::Request<()>> for Slow {
        type Response = http::Response<tonic::body::Body>;
        type Error = Infallible;
        type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

        fn poll_ready(&mut self, _: &mut std::task::Context<'_>) -> std::task::Poll<Result<(), Infallible>> {
            std::task::Poll::Ready(Ok(()))
        }

        fn call(&mut self, _: http::Request<()>) -> Self::Future {
            let Self(done, refuses) = self.clone();
            Box::pin(async move {
                done.notified().await;
                if refuses {
                    return Ok(Status::resource_exhausted("too much").into_http());
                }
                let mut trailers = http::HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let body = http_body_util::Full::new(bytes::Bytes::from_static(b"\0\0\0\0\0"));
                let body = body.with_trailers(async { Some(Ok(trailers)) });
                let mut response = http::Response::new(tonic::body::Body::new(body));
                response.headers_mut().insert("x-hint", "7".parse().unwrap());
                Ok(response)
            })
        }
    }

    for (refuses, status, hint) in [(false, "0", true), (true, "8", false)] {
        let done = Arc::new(tokio::sync::Notify::new());
        let mut service = Prompt::new(Slow(Arc::clone(&done), refuses), "/a/b");
        let request = |path: &str| http::Request::builder().uri(path).body(()).unwrap();
        let other = service.call(request("/a/c"));
        tokio::pin!(other);
        assert!(futures::poll!(&mut other).is_pending(), "other methods are as they are");
        let response = timeout(SOON, service.call(request("/a/b"))).await.unwrap().unwrap();
        assert_eq!(response.headers()["content-type"], "application/grpc");
        done.notify_waiters();
        // Whichever waits first.
        done.notify_one();
        let body = timeout(SOON, response.into_body().collect()).await.unwrap().unwrap();
        let trailers = body.trailers().unwrap().clone();
        assert_eq!(
            (trailers["grpc-status"].to_str().unwrap(), trailers.contains_key("x-hint")),
            (status, hint)
        );
        assert_eq!(body.to_bytes().len(), if refuses { 0 } else { 5 });
    }
}

/// Other brokers over real connections; whoever is not there is silent.
pub(crate) struct Brokers {
    own: PeerUrl,
    others: HashMap<PeerUrl, Option<Channel>>,
}

impl Others for Brokers {
    fn own(&self) -> PeerUrl {
        self.own.clone()
    }

    fn peers(&self) -> Vec<PeerUrl> {
        self.others.keys().cloned().collect()
    }

    fn views(&self, peer: &PeerUrl, agent: AgentId) -> BoxFuture<'static, Result<Vec<Summary>, Status>> {
        match self.others[peer].clone() {
            Some(channel) => Box::pin(rpc::views(channel, agent)),
            None => Box::pin(std::future::pending()),
        }
    }

    fn reports(
        &self,
        peer: &PeerUrl,
        agent: AgentId,
    ) -> BoxFuture<'static, Result<Vec<board::Last>, Status>> {
        match self.others[peer].clone() {
            Some(channel) => Box::pin(rpc::reports(channel, agent)),
            None => Box::pin(std::future::pending()),
        }
    }

    fn follow(&self, peer: &PeerUrl, request: FollowRequest) -> BoxFuture<'static, Result<Pages, Status>> {
        match self.others[peer].clone() {
            Some(channel) => Box::pin(rpc::follow(channel, request)),
            None => Box::pin(std::future::pending()),
        }
    }
}

pub(crate) fn peer(number: u16) -> PeerUrl {
    format!("grpc://b{number}:8155").parse().unwrap()
}

/// Several brokers' memories, each of which asks the others.
pub(crate) struct Fleet {
    pub(crate) boards: Vec<Board>,
    pub(crate) views: Vec<Views>,
    pub(crate) known: Vec<Known>,
    pub(crate) stop: CancellationToken,
}

impl Fleet {
    /// So many that answer, and as many that never do.
    pub(crate) async fn start(answering: u16, silent: u16) -> Self {
        let stop = CancellationToken::new();
        let boards: Vec<_> = (0..answering).map(|_| Board::default()).collect();
        let views: Vec<_> =
            (0..answering).map(|_| Views::new(Limits::default(), KnownMetrics::default())).collect();
        let mut channels = Vec::new();
        for (board, views) in boards.iter().zip(&views) {
            let service = KnowledgeService { board: board.clone(), views: views.clone(), stop: stop.clone() };
            channels.push(Some(serve(Routes::new(AgentKnowledgeServer::new(service)), &stop).await));
        }
        channels.extend((0..silent).map(|_| None));
        let known = (0..answering).map(|own| {
            let others = (0..).zip(channels.iter().cloned()).filter(|(number, _)| *number != own);
            let others = others.map(|(number, channel)| (peer(number), channel)).collect();
            let known = Known::new(boards[usize::from(own)].clone(), views[usize::from(own)].clone());
            known.among(Arc::new(Brokers { own: peer(own), others }))
        });
        let known = known.collect();
        Self { boards, views, known, stop }
    }
}

async fn page(source: &mut known::Source) -> Option<Page> {
    timeout(SOON, source.next()).await.expect("it comes soon").unwrap()
}

#[tokio::test]
async fn a_broker_reads_a_view_that_another_one_has_and_finds_it_when_it_moves() {
    let fleet = Fleet::start(3, 0).await;
    let _stop = fleet.stop.clone().drop_guard();
    let mut first = fleet.views[1].begin(A);
    let large: Vec<_> = (0..300).map(|at| format!("n{at:03}")).collect();
    let json = format!(r#"{{"a":"{}"}}"#, "x".repeat(1_000));
    let entries: Vec<_> = large.iter().map(|key| (key.as_str(), json.as_str())).collect();
    first.apply(whole("nodes", &entries)).unwrap();

    let mut source = fleet.known[0].find(A, Kind::Nodes, true).await.unwrap();
    assert_eq!(source.broker, Some(peer(1)));
    let begin = page(&mut source).await.unwrap();
    assert!(begin.whole && begin.more);
    let mut seen = begin.entries.len();
    loop {
        let page = page(&mut source).await.unwrap();
        seen += page.entries.len();
        if !page.more {
            break;
        }
    }
    assert_eq!(seen, 300);
    first.apply(ViewUpdate { gone: vec!["n000".to_owned()], whole: false, ..whole("nodes", &[]) }).unwrap();
    assert_eq!(&*page(&mut source).await.unwrap().gone[0], "n000");

    // The agent goes elsewhere: the old copy is stale, the new one is found.
    drop(first);
    assert!(page(&mut source).await.unwrap().stale);
    assert!(fleet.known[0].find_live(A, Kind::Nodes).await.is_none());
    let mut second = fleet.views[2].begin(A);
    second.apply(whole("nodes", &[("n", "{}")])).unwrap();
    let live = fleet.known[0].find_live(A, Kind::Nodes).await.expect("it is there");
    assert_eq!(live.broker, Some(peer(2)));
    let found = fleet.known[1].views(A).await.found;
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].0.stale, found[0].1.as_ref()),
        (false, Some(&peer(2))),
        "not its own, which is stale"
    );
    let mut once = fleet.known[0].find(A, Kind::Nodes, false).await.unwrap();
    assert_eq!(page(&mut once).await.unwrap().entries.len(), 1);
    assert_eq!(page(&mut once).await, None, "no more was asked for");
    second.apply(ViewUpdate { ended: true, ..whole("nodes", &[]) }).unwrap();
    assert!(fleet.known[0].find(B, Kind::Nodes, true).await.unwrap_err().is_empty());
}

#[tokio::test]
async fn the_newest_report_about_each_project_is_the_one_that_counts_and_silent_brokers_are_named() {
    let fleet = Fleet::start(2, 1).await;
    let _stop = fleet.stop.clone().drop_guard();
    let report = |project: &str, commit: &str| {
        let request =
            ReportRequest { pod_name: String::new(), about: Some(gitops(project, "synchronized", commit)) };
        report::read(request).unwrap().kept()
    };
    fleet.boards[1].put(A, report("p", "old"));
    // No two clocks have to agree, so reports are told apart where more is between them than a question takes.
    tokio::time::pause();
    tokio::time::advance(SOON).await;
    tokio::time::resume();
    fleet.boards[0].put(A, report("p", "new"));
    for number in 0..20 {
        fleet.boards[1].put(A, report(&format!("q{number:02}"), "c"));
    }
    fleet.boards[0].put(B, report("other", "c"));
    for (own, known) in fleet.known.iter().enumerate() {
        let answer = known.reports(A).await;
        assert_eq!(answer.missing, [peer(2)], "{own}");
        assert_eq!(answer.found.len(), 21, "{own}");
        let (last, broker) = &answer.found[0];
        assert!(last.json.contains(r#""commit_id":"new""#), "{own}: {}", last.json);
        assert_eq!(broker, &Some(peer(0)), "{own}");
    }
    let nowhere = fleet.known[0].find(A, Kind::Nodes, true).await.unwrap_err();
    assert_eq!(nowhere, [peer(2)]);
}

#[tokio::test]
async fn a_broker_that_does_not_know_the_question_is_not_missing() {
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let stranger = serve(Routes::default(), &stop).await;
    let others = HashMap::from([(peer(1), Some(stranger))]);
    let known = Known::default().among(Arc::new(Brokers { own: peer(0), others }));
    assert!(known.reports(A).await.missing.is_empty());
    assert!(known.views(A).await.missing.is_empty());
}

/// Puts a report about the configuration and one about a project.
pub(crate) fn reported(board: &Board, agent: AgentId) {
    let configuration = ConfigurationReport { commit_id: "c1".to_owned(), applied: true, problems: vec![] };
    for about in [About::Configuration(configuration), gitops("group/p", "degraded", "d1")] {
        let request = ReportRequest { pod_name: "agent-0".to_owned(), about: Some(about) };
        board.put(agent, report::read(request).unwrap().kept());
    }
}
