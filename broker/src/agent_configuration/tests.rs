//! Over real sockets: an agent's gRPC client, a stand-in GitLab and a stand-in Gitaly with a repository of the real git.

use super::*;
use crate::{
    agent_tracker::Wanted,
    events::Published,
    gitaly::{self, Gitaly, poller::Pollers},
    gitlab,
    policies::{Followed, Pacing},
    rate::Rate,
    repositories::local,
    stage::{Stage, TOKEN_A, agents, call_as, serve},
};
use postern_certs::client::ClientTrust;
use postern_wire::proto::gitlab::agent::{
    agent_configuration::rpc::{
        agent_configuration_client::AgentConfigurationClient,
        agent_configuration_server::AgentConfigurationServer,
    },
    modshared::AgentMeta,
};
use stand_ins::{
    git::git,
    gitaly::{self as stand_in, Fault, Rpc},
    rails::{Options, Project},
};
use std::time::Duration;
use tempfile::TempDir;
use tokio::{sync::broadcast::Receiver, time::timeout};
use tonic::{Code, Streaming, service::Routes, transport::Channel};

const QUICK: Duration = Duration::from_millis(50);

struct Field {
    folder: TempDir,
    gitaly: stand_in::Gitaly,
    events: Receiver<Arc<Published>>,
    agent: AgentConfigurationClient<Channel>,
    tracker: Tracker,
    _stage: Stage,
}

impl Field {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let repository = folder.path().join("@hashed/10.git");
        std::fs::create_dir_all(&repository).unwrap();
        git(&repository, &["init", "-q"]);
        let gitaly = stand_in::Gitaly::start(stand_in::Options::new(folder.path())).await.unwrap();
        let place = |project: Project| Project { gitaly_address: gitaly.address().to_owned(), ..project };
        let options = Options { agents: agents(place), ..Options::default() };
        let stage = Stage::start(options, gitlab::Periods::default()).await;
        let fast = Rate { per_second: 1e4, burst: 10_000 };
        let options = gitaly::Options { global: fast, per_server: fast, ..gitaly::Options::default() };
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, postern_certs::dev::Ca::new().pem()).unwrap();
        let client = Arc::new(Gitaly::new(options, ClientTrust::load(Some(ca_file)).unwrap()));
        let pacing = Pacing::steady(QUICK);
        let periods = poller::Periods { retry: QUICK, retry_max: QUICK };
        let (stop, tasks) = (stage.stop.clone(), stage.tasks.clone());
        let events = Arc::new(Events::default());
        let heard = events.subscribe();
        let tracker = Tracker::default();
        let service = ConfigurationService {
            repositories: Arc::new(Repositories {
                local: local::Repositories::new(pacing.clone(), stop.clone(), tasks.clone()),
                gitaly: Some(Pollers::new(
                    client,
                    periods,
                    (pacing, Followed::Configuration),
                    stop.clone(),
                    tasks,
                )),
            }),
            registry: Arc::default(),
            tracker: tracker.clone(),
            events,
            reports: None,
            external_url: "https://gitlab.example.com/".to_owned(),
            documents: Arc::default(),
            streams: PerAgent::new(STREAMS_PER_AGENT),
            retry: periods,
            max_file_size: 1024,
            ages: Ages::steady(Duration::from_secs(3600)),
            departures: Departures::default(),
        };
        let routes = Routes::new(stage.admission.guard(AgentConfigurationServer::new(service)));
        let agent = AgentConfigurationClient::new(serve(routes, &stop).await);
        Self { folder, gitaly, events: heard, agent, tracker, _stage: stage }
    }

    fn commit(&self, text: &str) -> String {
        let repository = self.folder.path().join("@hashed/10.git");
        let file = repository.join(".gitlab/agents/a/config.yaml");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
        git(&repository, &["add", "."]);
        git(&repository, &["commit", "-q", "--allow-empty", "-m", "change"]);
        git(&repository, &["rev-parse", "HEAD"]).trim().to_owned()
    }

    async fn ask(&self, last: &str) -> Streaming<ConfigurationResponse> {
        let request = ConfigurationRequest { commit_id: last.to_owned(), ..Default::default() };
        let asked = self.agent.clone().get_configuration(call_as(TOKEN_A, request)).await;
        asked.expect("the agent is known").into_inner()
    }
}

async fn next(
    stream: &mut Streaming<ConfigurationResponse>,
) -> Result<Option<ConfigurationResponse>, Status> {
    timeout(Duration::from_secs(60), stream.message()).await.expect("it takes no minute")
}

#[tokio::test]
async fn a_gitaly_that_cannot_read_a_new_file_ends_no_stream() {
    let mut field = Field::start().await;
    let first = field.commit("observability: {logging: {level: debug}}\n");
    let mut stream = field.ask("").await;
    let told = next(&mut stream).await.unwrap().unwrap();
    assert_eq!(told.commit_id, first);
    assert_eq!(told.configuration.unwrap().gitlab_external_url, "https://gitlab.example.com/");
    let before = field.gitaly.calls(Rpc::TreeEntry);
    field.gitaly.break_call(Rpc::TreeEntry, Fault::Unavailable);
    let second = field.commit("observability: {logging: {level: warn}}\n");
    let tried = async {
        while field.gitaly.calls(Rpc::TreeEntry) < before + 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(60), tried).await.expect("it is tried again and again");
    field.gitaly.mend();
    assert_eq!(next(&mut stream).await.unwrap().unwrap().commit_id, second);
    while let Ok(published) = field.events.try_recv() {
        let kind = &published.event.kind;
        assert!(matches!(kind, EventKind::ConfigurationSent { .. }), "nothing was refused: {kind:?}");
    }
}

#[tokio::test]
async fn a_file_that_its_owner_must_mend_ends_the_stream_with_the_reason() {
    let mut field = Field::start().await;
    for (text, words) in [
        ("observability: {loging: {}}\n", "line 1 column 17: observability.loging: unknown key"),
        (&*"#".repeat(2000), "more than the 1024 bytes"),
    ] {
        let commit = field.commit(text);
        let status = next(&mut field.ask("").await).await.unwrap_err();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert!(status.message().starts_with("Config: ") && status.message().contains(words), "{status:?}");
        let refused = field.events.try_recv().unwrap();
        let EventKind::ConfigurationRefused { commit_id, error } = &refused.event.kind else {
            panic!("{refused:?}")
        };
        assert!(*commit_id == commit && error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn limits_and_views_are_passed_on() {
    let field = Field::start().await;
    field.commit("kubernetes_api: {max_concurrent_requests: 5}\nviews: {nodes: true, namespaces: [a]}\n");
    let told = next(&mut field.ask("").await).await.unwrap().unwrap().configuration.unwrap();
    assert_eq!(told.kubernetes_api.unwrap().max_concurrent_requests, 5);
    let views = told.views.unwrap();
    assert_eq!((views.nodes, views.events, views.namespaces), (true, false, vec!["a".to_owned()]));
}

#[tokio::test]
async fn a_missing_file_is_an_empty_configuration() {
    let field = Field::start().await;
    let repository = field.folder.path().join("@hashed/10.git");
    git(&repository, &["commit", "-q", "--allow-empty", "-m", "nothing"]);
    let told = next(&mut field.ask("").await).await.unwrap().unwrap().configuration.unwrap();
    assert_eq!((told.agent_id, told.project_path.as_str()), (1, "group/a"));
    assert_eq!(told.observability, None);
}

#[tokio::test]
async fn whoever_asks_for_its_configuration_is_listed_also_if_it_registers_elsewhere() {
    let field = Field::start().await;
    field.commit("observability: {logging: {level: debug}}\n");
    let mut streams = Vec::new();
    for (pod_name, skip_register, listed) in [("old", false, 1), ("new", true, 2), ("", true, 2)] {
        let meta = AgentMeta { pod_name: pod_name.to_owned(), ..AgentMeta::default() };
        let request =
            ConfigurationRequest { agent_meta: Some(meta), skip_register, ..ConfigurationRequest::default() };
        let asked = field.agent.clone().get_configuration(call_as(TOKEN_A, request)).await;
        let mut stream = asked.expect("the agent is known").into_inner();
        next(&mut stream).await.unwrap().unwrap();
        assert_eq!(field.tracker.list(&Wanted::All, 10).0.len(), listed, "{pod_name}");
        streams.push(stream);
    }
}
