//! Over real sockets: an agent's gRPC client, a stand-in GitLab and a stand-in Gitaly with repositories of the real git.

use super::*;
use crate::{
    auth::{Admission, Identities},
    events::Published,
    gitaly::{self, Gitaly, poller::Pollers},
    gitlab::{self, cache::Settings},
    identities::IdentitySource,
    rate::Rate,
    repositories::{Repositories, local},
    stage::{Stage, TOKEN_A, TOKEN_B, agents, call_as, serve},
    tunnel::registry::Registry,
};
use futures::FutureExt;
use postern_certs::client::ClientTrust;
use postern_wire::{
    proto::gitlab::agent::{
        agentcfg::{GitRefCf, PathCf},
        gitops::rpc::{gitops_client::GitopsClient, gitops_server::GitopsServer},
    },
    token::TokenKey,
};
use stand_ins::{
    git::git,
    gitaly::{self as stand_in, Fault as Broken, Rpc},
    rails::{Endpoint, Faults, Options, Project as RailsProject},
};
use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::Mutex,
};
use tempfile::TempDir;
use tokio::sync::broadcast::Receiver;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Streaming, service::Routes, transport::Channel};

const QUICK: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(3_600);
const ALL: &str = "**/*.{yaml,yml,json}";

type Answers = Streaming<ObjectsToSynchronizeResponse>;

struct Field {
    folder: TempDir,
    gitaly: stand_in::Gitaly,
    stage: Stage,
    service: GitopsService,
    events: Mutex<Receiver<Arc<Published>>>,
    agent: GitopsClient<Channel>,
}

impl Field {
    async fn start() -> Self {
        Self::with(|_| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut GitopsService)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for project in [10, 20, 30] {
            let path = folder.path().join(format!("@hashed/{project}.git"));
            std::fs::create_dir_all(&path).unwrap();
            git(&path, &["init", "-q"]);
        }
        let gitaly = stand_in::Gitaly::start(stand_in::Options::new(folder.path())).await.unwrap();
        let place =
            |project: RailsProject| RailsProject { gitaly_address: gitaly.address().to_owned(), ..project };
        let public = RailsProject { public: true, ..place(RailsProject::new(30, "group/public")) };
        let options = Options { agents: agents(place), projects: vec![public], ..Options::default() };
        let settings = |ok| Settings { capacity: 100, ok, error: QUICK };
        let periods = gitlab::Periods {
            // The shortest that is possible.
            agents: settings(Duration::from_secs(5)),
            projects: settings(QUICK),
            callers: settings(QUICK),
        };
        let stage = Stage::start(options, periods).await;
        let fast = Rate { per_second: 1e4, burst: 10_000 };
        let options = gitaly::Options { global: fast, per_server: fast, ..gitaly::Options::default() };
        let client = Arc::new(Gitaly::new(options, trust(folder.path())));
        let periods = Periods { retry: QUICK, retry_max: QUICK };
        let pollers = Pollers::new(
            client,
            periods,
            (Pacing::steady(QUICK), Followed::Manifests),
            stage.stop.clone(),
            stage.tasks.clone(),
        );
        let (mut service, events) =
            service(Projects::GitLab { rails: Arc::clone(&stage.rails), pollers: Arc::new(pollers) });
        adjust(&mut service);
        let routes = Routes::new(stage.admission.guard(GitopsServer::new(service.clone())));
        let agent = GitopsClient::new(serve(routes, &stage.stop).await);
        Self { folder, gitaly, stage, service, events, agent }
    }

    fn repository(&self, project: i64) -> PathBuf {
        self.folder.path().join(format!("@hashed/{project}.git"))
    }

    fn commit(&self, project: i64, files: &[(&str, &[u8])]) -> String {
        commit(&self.repository(project), files)
    }

    async fn ask(&self, token: &str, project: &str, last: &str, globs: &[&str]) -> Result<Answers, Status> {
        self.request(token, request(project, last, globs)).await
    }

    async fn request(&self, token: &str, request: ObjectsToSynchronizeRequest) -> Result<Answers, Status> {
        let answers = self.agent.clone().get_objects_to_synchronize(call_as(token, request)).await?;
        Ok(answers.into_inner())
    }

    /// How a stream ends that brings nothing.
    async fn refusal(&self, token: &str, request: ObjectsToSynchronizeRequest) -> Status {
        match self.request(token, request).await {
            Err(status) => status,
            Ok(mut answers) => match soon(answers.message()).await {
                Err(status) => status,
                Ok(message) => panic!("no refusal: {message:?}"),
            },
        }
    }

    /// What happened since the last look.
    fn events(&self) -> Vec<Event> {
        let mut heard = self.events.lock().unwrap();
        std::iter::from_fn(|| heard.try_recv().ok()).map(|published| published.event.clone()).collect()
    }

    /// What agents were sent since the last look.
    fn sent(&self) -> Vec<(AgentId, String)> {
        let sent = |event: Event| match event.kind {
            EventKind::GitopsManifestsSent { commit_id, .. } => Some((event.agent_id, commit_id)),
            _ => None,
        };
        self.events().into_iter().filter_map(sent).collect()
    }

    /// Waits until GitLab was asked about projects so often more.
    async fn asked(&self, more: u64) {
        let mut arrivals = self.stage.gitlab.arrivals();
        let wanted = self.stage.gitlab.calls(Endpoint::ProjectInfo) + more;
        soon(async {
            while self.stage.gitlab.calls(Endpoint::ProjectInfo) < wanted {
                arrivals.changed().await.unwrap();
            }
        })
        .await;
    }
}

fn service(projects: Projects) -> (GitopsService, Mutex<Receiver<Arc<Published>>>) {
    let events = Arc::new(Events::default());
    let heard = Mutex::new(events.subscribe());
    let service = GitopsService {
        projects,
        limits: ManifestLimits::default(),
        periods: Periods { retry: QUICK, retry_max: QUICK },
        pacing: Pacing::steady(QUICK),
        ages: Ages::steady(LONG),
        departures: Departures::default(),
        room: Room::default(),
        usage: Arc::default(),
        events,
    };
    (service, heard)
}

fn trust(folder: &Path) -> Arc<ClientTrust> {
    let ca_file = folder.join("ca.pem");
    std::fs::write(&ca_file, postern_certs::dev::Ca::new().pem()).unwrap();
    ClientTrust::load(Some(ca_file)).unwrap()
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), what).await.expect("it takes no minute")
}

fn commit(folder: &Path, files: &[(&str, &[u8])]) -> String {
    for (file, content) in files {
        let path = folder.join(file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }
    git(folder, &["add", "."]);
    git(folder, &["commit", "-q", "--allow-empty", "-m", "change"]);
    git(folder, &["rev-parse", "HEAD"])
}

fn request(project: &str, last: &str, globs: &[&str]) -> ObjectsToSynchronizeRequest {
    let glob = |&glob: &&str| PathCf { path: Some(path_cf::Path::Glob(glob.to_owned())) };
    ObjectsToSynchronizeRequest {
        project_id: project.to_owned(),
        commit_id: last.to_owned(),
        paths: globs.iter().map(glob).collect(),
        r#ref: None,
    }
}

/// The project that an event says was not to be had.
fn refused(kind: &EventKind) -> &str {
    match kind {
        EventKind::GitopsRefused { manifest_project, error } if error.starts_with("project not found") => {
            manifest_project
        }
        other => panic!("something else happened: {other:?}"),
    }
}

/// A synchronization from its header to its proper end.
struct Got {
    header: Header,
    /// Name and bytes of each file, and how many pieces it came in.
    files: Vec<(String, Vec<u8>, usize)>,
}

async fn whole(mut answers: Answers) -> Got {
    let Some(Message::Header(header)) = soon(answers.message()).await.unwrap().unwrap().message else {
        panic!("a header comes first");
    };
    let mut files: Vec<(String, Vec<u8>, usize)> = Vec::new();
    loop {
        match soon(answers.message()).await.unwrap().unwrap().message.unwrap() {
            Message::Header(_) => panic!("a second header"),
            Message::Trailer(_) => break,
            Message::Object(object) => {
                assert!(object.data.len() <= gitaly::PIECE_MAX);
                match files.last_mut().filter(|(name, ..)| *name == object.source) {
                    Some((_, data, pieces)) => {
                        data.extend_from_slice(&object.data);
                        *pieces += 1;
                    }
                    None => files.push((object.source, object.data.to_vec(), 1)),
                }
            }
        }
    }
    assert!(soon(answers.message()).await.unwrap().is_none(), "OK after the trailer");
    Got { header, files }
}

#[tokio::test]
async fn manifests_arrive_whole_and_are_counted() {
    let field = Field::start().await;
    let large: Vec<u8> = (0..700_001_u32).map(|at| at.to_le_bytes()[at as usize % 3]).collect();
    let commit = field.commit(
        30,
        &[
            ("a.yaml", b"a: 1\n"),
            ("empty.yaml", b""),
            ("x/large.json", &large),
            (".hidden/no.yaml", b"x"),
            ("notes.txt", b"x"),
        ],
    );
    let answers = field.ask(TOKEN_A, "group/public", "", &[ALL]).await.unwrap();
    let got = whole(answers).await;
    assert_eq!(got.header, Header { commit_id: commit.clone(), project_id: 30 });
    let names: Vec<_> = got.files.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names, ["a.yaml", "empty.yaml", "x/large.json"]);
    assert_eq!(got.files[0].1, b"a: 1\n");
    assert_eq!((got.files[1].1.len(), got.files[1].2), (0, 1), "an empty file is one empty object");
    assert!(got.files[2].1 == large && got.files[2].2 >= 6);
    assert_eq!(field.sent(), [(AgentId(1), commit)]);
    let counted = format!("{:?}", field.service.usage);
    assert!(counted.contains("gitops_syncs: 1,"), "{counted}");
}

#[tokio::test]
async fn a_file_by_its_name_and_the_own_project_without_one() {
    let field = Field::start().await;
    field.commit(10, &[(".deploy/[a].yaml", b"one"), ("b.yaml", b"two")]);
    let mut request = request("", "", &["*.yaml"]);
    let file = |file: &str| PathCf { path: Some(path_cf::Path::File(file.to_owned())) };
    request.paths.push(file("/.deploy/[a].yaml"));
    let got = whole(field.request(TOKEN_A, request.clone()).await.unwrap()).await;
    assert_eq!(got.header.project_id, 10);
    assert_eq!(got.files.len(), 2);
    assert_eq!(got.files[1], (".deploy/[a].yaml".to_owned(), b"one".to_vec(), 1));
    request.paths = vec![file("missing.yaml")];
    let status = field.refusal(TOKEN_A, request).await;
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("missing.yaml does not exist"), "{status}");
}

#[tokio::test]
async fn a_new_commit_is_sent_to_an_agent_that_waits() {
    let field = Field::start().await;
    let first = field.commit(30, &[("a.yaml", b"one")]);
    let waiting = field.ask(TOKEN_A, "group/public", &first, &[ALL]).await.unwrap();
    field.asked(2).await;
    let second = field.commit(30, &[("a.yaml", b"two")]);
    let got = whole(waiting).await;
    assert_eq!(got.header.commit_id, second);
    assert_eq!(got.files[0].1, b"two");
}

#[tokio::test]
async fn branches_tags_and_commits_are_what_their_names_say() {
    let field = Field::start().await;
    let first = field.commit(30, &[("a.yaml", b"one")]);
    let repository = field.repository(30);
    git(&repository, &["tag", "-a", "-m", "x", "v1"]);
    git(&repository, &["branch", "old"]);
    let second = field.commit(30, &[("a.yaml", b"two")]);
    for fallback in [false, true] {
        if fallback {
            field.gitaly.break_call(Rpc::FindCommit, Broken::Unimplemented);
        }
        for (reference, commit) in [
            (git_ref_cf::Ref::Tag("v1".to_owned()), &first),
            (git_ref_cf::Ref::Branch("old".to_owned()), &first),
            (git_ref_cf::Ref::Branch("main".to_owned()), &second),
            (git_ref_cf::Ref::Commit(second.clone()), &second),
        ] {
            let mut request = request("group/public", "", &[ALL]);
            request.r#ref = Some(GitRefCf { r#ref: Some(reference) });
            let got = whole(field.request(TOKEN_A, request).await.unwrap()).await;
            assert_eq!(got.header.commit_id, *commit);
        }
    }
    for reference in [
        git_ref_cf::Ref::Branch("main~1".to_owned()),
        git_ref_cf::Ref::Tag(String::new()),
        git_ref_cf::Ref::Commit("HEAD".to_owned()),
    ] {
        let mut request = request("group/public", "", &[ALL]);
        request.r#ref = Some(GitRefCf { r#ref: Some(reference) });
        assert_eq!(field.refusal(TOKEN_A, request).await.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn a_commit_that_is_not_there_is_waited_for_and_never_taken_for_an_empty_one() {
    let field = Field::with(|service| service.ages = Ages::steady(Duration::from_secs(1))).await;
    field.commit(30, &[("a.yaml", b"one")]);
    let mut request = request("group/public", "", &[ALL]);
    let missing = git_ref_cf::Ref::Commit("0123456789abcdef0123456789abcdef01234567".to_owned());
    request.r#ref = Some(GitRefCf { r#ref: Some(missing) });
    let mut answers = field.request(TOKEN_A, request).await.unwrap();
    assert_eq!(soon(answers.message()).await.unwrap(), None, "it ends properly with its age");
}

#[tokio::test]
async fn what_the_configuration_gets_wrong_is_said_before_anything_is_sent() {
    let limits = ManifestLimits { paths: 2, files: 4, file_bytes: 10, total_bytes: 15 };
    let field = Field::with(|service| service.limits = limits).await;
    field.commit(30, &[("a.yaml", b"0123456789"), ("b.yaml", b"0123456789"), ("c/large.yaml", &[b'x'; 11])]);
    let table: &[(&[&str], Code, &str)] = &[
        (
            &["a", "b", "c"],
            Code::InvalidArgument,
            "maximum number of GitOps paths per manifest project is 2, but 3 was requested",
        ),
        (&[], Code::InvalidArgument, "paths: at least one is needed"),
        (&["[a"], Code::FailedPrecondition, "\"[a\" is not a valid glob"),
        (&["a.yaml", "*.yaml"], Code::FailedPrecondition, "a.yaml is selected by more than one glob"),
        (&["**/a.yaml", "**/b.yaml"], Code::FailedPrecondition, "more than 4 files to look at"),
        (&["c/*.yaml"], Code::FailedPrecondition, "c/large.yaml at"),
    ];
    for (globs, code, words) in table {
        let status = field.refusal(TOKEN_A, request("group/public", "", globs)).await;
        assert_eq!(status.code(), *code, "{globs:?}: {status}");
        assert!(status.message().contains(words), "{globs:?}: {status}");
        if *code == Code::FailedPrecondition {
            assert!(status.message().starts_with("GitOps: failed to get objects to synchronize: "));
        }
    }
    // Six times as long on its way, and the connection is an edge's: it must not end for that.
    let glob = format!("[{}", "ä".repeat(4_000));
    for paths in [vec![glob.as_str()], vec!["a.yaml", &glob]] {
        let status = field.refusal(TOKEN_A, request("group/public", "", &paths)).await;
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().len() < crate::status_text::MAX, "{} bytes", status.message().len());
        assert!(status.message().ends_with("ä..."), "{status}");
    }
    let mut neither = request("group/public", "", &[]);
    neither.paths = vec![PathCf { path: None }];
    assert_eq!(field.refusal(TOKEN_A, neither).await.code(), Code::InvalidArgument);
    let long = request(&"x".repeat(2_000), "", &[ALL]);
    assert_eq!(field.refusal(TOKEN_A, long).await.code(), Code::InvalidArgument);
    assert!(field.sent().is_empty());
}

#[tokio::test]
async fn an_agent_gets_nothing_of_another_s_private_project_though_that_one_is_followed() {
    let field = Field::start().await;
    let commit = field.commit(20, &[("secret.yaml", b"secret")]);
    let theirs = field.ask(TOKEN_B, "group/b", &commit, &[ALL]).await.unwrap();
    field.asked(2).await;
    let wanted = ["group/b", "20", "group/nothing"];
    let mut waiting = Vec::new();
    for project in wanted {
        waiting.push(field.ask(TOKEN_A, project, "", &[ALL]).await.unwrap());
    }
    let next = field.commit(20, &[("secret.yaml", b"secret 2")]);
    assert_eq!(whole(theirs).await.header.commit_id, next, "and its owner goes on");
    field.asked(12).await;
    for answers in &mut waiting {
        assert!(answers.message().now_or_never().is_none(), "neither a message nor an end");
    }
    let mut events = field.events();
    events.retain(|event| event.agent_id == AgentId(1));
    let told: BTreeSet<_> = events.iter().map(|event| refused(&event.kind)).collect();
    assert_eq!((events.len(), told), (3, BTreeSet::from(wanted)), "once for each stream: {events:?}");
}

#[tokio::test]
async fn a_revoked_token_ends_the_stream_that_waits_with_it() {
    let field = Field::start().await;
    let commit = field.commit(30, &[("a.yaml", b"one")]);
    let mut waiting = field.ask(TOKEN_A, "group/public", &commit, &[ALL]).await.unwrap();
    field.stage.gitlab.revoke(TOKEN_A);
    let status = soon(waiting.message()).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
}

#[tokio::test]
async fn a_project_that_is_forbidden_ends_the_stream_that_waits_for_it() {
    let field = Field::start().await;
    let commit = field.commit(30, &[("a.yaml", b"one")]);
    let mut waiting = field.ask(TOKEN_A, "group/public", &commit, &[ALL]).await.unwrap();
    field.asked(2).await;
    let forbidden = Faults { status: Some(http::StatusCode::FORBIDDEN), ..Faults::default() };
    field.stage.gitlab.set_faults(Endpoint::ProjectInfo, forbidden);
    assert_eq!(soon(waiting.message()).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_project_that_is_lost_is_read_no_more_until_it_is_back_and_the_stream_stays() {
    let field = Field::start().await;
    let commit = field.commit(30, &[("a.yaml", b"one")]);
    let mut waiting = field.ask(TOKEN_A, "group/public", &commit, &[ALL]).await.unwrap();
    field.asked(2).await;
    let missing = Faults { status: Some(http::StatusCode::NOT_FOUND), ..Faults::default() };
    field.stage.gitlab.set_faults(Endpoint::ProjectInfo, missing);
    // The memory of the last yes is used up then.
    field.asked(4).await;
    let looks = field.gitaly.calls(Rpc::FindCommit);
    let next = field.commit(30, &[("a.yaml", b"two")]);
    field.asked(4).await;
    assert!(field.gitaly.calls(Rpc::FindCommit) <= looks + 1, "nobody follows it");
    assert_eq!(field.gitaly.calls(Rpc::GetTreeEntries), 0);
    assert!(waiting.message().now_or_never().is_none(), "neither a message nor an end");
    let told: Vec<_> = field.events().iter().map(|event| refused(&event.kind).to_owned()).collect();
    assert_eq!(told, ["group/public"]);
    field.stage.gitlab.set_faults(Endpoint::ProjectInfo, Faults::default());
    assert_eq!(whole(waiting).await.header.commit_id, next);
}

#[tokio::test]
async fn neighbours_that_are_ill_delay_and_do_not_fail() {
    let field = Field::start().await;
    let commit = field.commit(30, &[("a.yaml", b"one")]);
    let ill = Faults { status: Some(http::StatusCode::INTERNAL_SERVER_ERROR), ..Faults::default() };
    field.stage.gitlab.set_faults(Endpoint::ProjectInfo, ill);
    field.gitaly.break_all(Broken::Unavailable);
    let waiting = field.ask(TOKEN_A, "group/public", "", &[ALL]).await.unwrap();
    field.asked(3).await;
    field.stage.gitlab.set_faults(Endpoint::ProjectInfo, Faults::default());
    field.asked(3).await;
    assert!(field.gitaly.calls(Rpc::FindCommit) >= 1);
    field.gitaly.mend();
    field.gitaly.break_call(Rpc::GetTreeEntries, Broken::Unavailable);
    // Every attempt looks again whether the agent may read.
    while field.gitaly.calls(Rpc::GetTreeEntries) < 2 {
        field.asked(1).await;
    }
    field.gitaly.mend();
    assert_eq!(whole(waiting).await.header.commit_id, commit);
}

#[tokio::test]
async fn nothing_is_read_for_an_agent_that_does_not_take_it() {
    let field = Field::start().await;
    let names: Vec<String> = (0..24).map(|at| format!("{at:02}.yaml")).collect();
    let content = vec![b'x'; 200_000];
    let files: Vec<(&str, &[u8])> = names.iter().map(|name| (name.as_str(), content.as_slice())).collect();
    field.commit(30, &files);
    let mut slow = field.ask(TOKEN_A, "group/public", "", &[ALL]).await.unwrap();
    let header = soon(slow.message()).await.unwrap().unwrap();
    assert!(matches!(header.message, Some(Message::Header(_))));
    // Time enough for another agent to get everything.
    let quick = whole(field.ask(TOKEN_B, "group/public", "", &[ALL]).await.unwrap()).await;
    assert_eq!(quick.files.len(), 24);
    let read = field.gitaly.calls(Rpc::TreeEntry) - 24;
    assert!(read < 10, "{read} of 24 files were read for an agent that takes none");
    let mut objects = 0;
    while let Some(message) = soon(slow.message()).await.unwrap() {
        objects += usize::from(matches!(message.message, Some(Message::Object(_))));
    }
    assert!(objects >= 48);
    assert_eq!(field.sent().len(), 2);
}

#[tokio::test]
async fn a_stream_that_waited_its_time_and_one_that_meets_a_drain_end_properly() {
    let field = Field::with(|service| service.ages = Ages::steady(QUICK)).await;
    let commit = field.commit(30, &[("a.yaml", b"one")]);
    let mut aged = field.ask(TOKEN_A, "group/public", &commit, &[ALL]).await.unwrap();
    assert_eq!(soon(aged.message()).await.unwrap(), None);

    let field = Field::start().await;
    let commit = field.commit(30, &[("a.yaml", b"one")]);
    let mut waiting = field.ask(TOKEN_A, "group/public", &commit, &[ALL]).await.unwrap();
    field.asked(1).await;
    field.service.departures.end();
    assert_eq!(soon(waiting.message()).await.unwrap(), None);
    // OK, and a hint that agents of other makers do not see.
    let trailers = soon(waiting.trailers()).await.unwrap().expect("they came with the end");
    let pause: u64 =
        trailers.get(postern_wire::metadata::RETRY_PUSHBACK).unwrap().to_str().unwrap().parse().unwrap();
    assert!(pause <= 1000, "{pause}");
}

#[tokio::test]
async fn one_agent_has_so_many_streams_and_no_more() {
    let field = Field::start().await;
    let commit = field.commit(30, &[("a.yaml", b"one")]);
    let mut held = Vec::new();
    for _ in 0..STREAMS_PER_AGENT {
        held.push(field.service.room.streams.try_enter(AgentId(1)).unwrap());
    }
    let status = field.refusal(TOKEN_A, request("group/public", "", &[ALL])).await;
    assert_eq!(status.code(), Code::ResourceExhausted);
    let other = field.ask(TOKEN_B, "group/public", "", &[ALL]).await.unwrap();
    assert_eq!(whole(other).await.header.commit_id, commit, "another agent is not touched");
    drop(held);
    whole(field.ask(TOKEN_A, "group/public", "", &[ALL]).await.unwrap()).await;
}

#[tokio::test]
async fn without_gitlab_an_agent_reads_its_own_repository_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    let repository = folder.path().join("config");
    std::fs::create_dir(&repository).unwrap();
    git(&repository, &["init", "-q"]);
    let large = vec![b'x'; 300_000];
    let files: [(&str, &[u8]); 5] = [
        ("a.yaml", b"one"),
        ("x/empty.yaml", b""),
        ("x/y/large.yaml", &large),
        (".z/hidden.yaml", b"x"),
        ("a.txt", b"x"),
    ];
    let first = commit(&repository, &files);
    git(&repository, &["tag", "-a", "-m", "x", "v1"]);
    let hash = TokenKey::of(TOKEN_A.as_bytes()).to_hex();
    let file = folder.path().join("identities.yaml");
    let text = format!(
        "agents: [{{id: 1, name: a, token_sha256: [{hash}], project: {{id: 10, path: group/a}}, repository: {}}}]",
        repository.display()
    );
    std::fs::write(&file, text).unwrap();
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    let _stop = stop.clone().drop_guard();
    let local = local::Repositories::new(Pacing::steady(Duration::from_secs(1)), stop.clone(), tasks);
    let (service, _) = service(Projects::Local(Arc::new(Repositories { local, gitaly: None })));
    let admission = Admission {
        identities: Identities::File(IdentitySource::load(file).unwrap()),
        registry: Arc::new(Registry::default()),
        limit: None,
    };
    let routes = Routes::new(admission.guard(GitopsServer::new(service)));
    let mut agent = GitopsClient::new(serve(routes, &stop).await);
    let mut ask = async |request| -> Result<Answers, Status> {
        Ok(agent.get_objects_to_synchronize(call_as(TOKEN_A, request)).await?.into_inner())
    };
    for project in ["", "group/a"] {
        let got = whole(ask(request(project, "", &[ALL])).await.unwrap()).await;
        assert_eq!(got.header, Header { commit_id: first.clone(), project_id: 10 });
        let names: Vec<_> = got.files.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(names, ["a.yaml", "x/empty.yaml", "x/y/large.yaml"]);
        assert!(got.files[2].1 == large && got.files[2].2 == 3);
    }
    let mut other = ask(request("group/b", "", &[ALL])).await.unwrap();
    assert_eq!(soon(other.message()).await.unwrap_err().code(), Code::PermissionDenied);
    let mut wrong = ask(request("", "", &["x/*.yaml", "x/empty.yaml"])).await.unwrap();
    assert_eq!(soon(wrong.message()).await.unwrap_err().code(), Code::FailedPrecondition);

    let waiting = ask(request("", &first, &["*.yaml"])).await.unwrap();
    let second = commit(&repository, &[("a.yaml", b"two")]);
    assert_eq!(whole(waiting).await.header.commit_id, second);
    let mut tagged = request("", "", &["*.yaml"]);
    tagged.r#ref = Some(GitRefCf { r#ref: Some(git_ref_cf::Ref::Tag("v1".to_owned())) });
    assert_eq!(whole(ask(tagged).await.unwrap()).await.header.commit_id, first);
}
