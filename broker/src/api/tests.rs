//! Everything on the API listener, over real sockets: clients with good JWTs and with bad ones, and the stand-in for
//! Gitaly behind it.

mod agents;
mod connections;
mod known;
mod listings;

use super::*;
use crate::{
    agent_tracker::{Tracker, Who},
    api::jwt::tests::jwt,
    config::{ListenAddress, ListenConfig},
    fleet::roster::{Fleet, LastSeen},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::gitlab::agent::{
        agent_tracker::{
            ConnectedAgentInfo,
            rpc::{
                GetConnectedAgentsByAgentIDsRequest, GetConnectedAgentsByProjectIDsRequest,
                GetConnectedAgentsRequest, agent_tracker_client::AgentTrackerClient,
                get_connected_agents_request::Request as Wanted,
            },
        },
        configuration_project::rpc::{
            ListAgentConfigFilesRequest, configuration_project_client::ConfigurationProjectClient,
        },
        event::{GitPushEvent, Project},
        modshared::AgentMeta,
        notifications::rpc::{GitPushEventRequest, notifications_client::NotificationsClient},
        server_info::rpc::{GetServerInfoRequest, server_info_client::ServerInfoClient},
    },
};
use serde_json::{Value, json};
use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::Mutex,
    time::{SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

const SECRET: &[u8] = b"shared with Rails";
const PROGRAM: Program = Program { name: "gitlab-kas", version: "v1.2.3", commit: "abc1234" };
const SOON: Duration = Duration::from_secs(60);

/// A served API.
struct Field {
    folder: TempDir,
    address: SocketAddr,
    tracker: Tracker,
    pushed: Arc<Mutex<Vec<String>>>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct With {
    gitaly: Option<Arc<Gitaly>>,
    beside: Option<Beside>,
    fleet: Option<Arc<dyn Fleet>>,
    remembers: Option<LastSeen>,
    known: Known,
    tls: Option<postern_certs::CertFiles>,
}

impl Field {
    async fn start(with: With) -> Self {
        postern_certs::install_provider();
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("secret");
        std::fs::write(&file, STANDARD.encode(SECRET)).unwrap();
        let listen = ListenConfig { address: ListenAddress::Tcp(([127, 0, 0, 1], 0).into()), tls: with.tls };
        let listener = Arc::new(Listener::bind(&listen, "api").await.unwrap());
        let ListenAddress::Tcp(address) = listener.address else { panic!("TCP") };
        let config = ApiConfig {
            listen,
            authentication_secret_file: file,
            max_connection_age: Duration::from_secs(7200),
        };
        let (tracker, pushed) = (Tracker::default(), Arc::new(Mutex::new(Vec::new())));
        let sink = Arc::clone(&pushed);
        let mut roster = Roster::new(tracker.clone()).remembering(move |_| with.remembers.clone());
        if let Some(fleet) = with.fleet {
            roster = roster.among(fleet);
        }
        let api = Api {
            secret: secret(&config).unwrap(),
            roster,
            known: with.known,
            metrics: KnownMetrics::default(),
            gitaly: with.gitaly,
            on_push: Arc::new(move |event| sink.lock().unwrap().push(event.project.unwrap().full_path)),
            program: PROGRAM,
        };
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let age = config.max_connection_age;
        serve(listener, api, with.beside, age, (stop.clone(), stop.clone()), &tasks);
        Self { folder, address, tracker, pushed, stop, tasks }
    }

    fn secret_file(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect_lazy()
    }

    /// The message of a refusal of a call with these `authorization` values.
    async fn refused(&self, authorization: &[&str]) -> Status {
        let mut request = Request::new(GetServerInfoRequest {});
        for value in authorization {
            request.metadata_mut().append("authorization", value.parse().unwrap());
        }
        ServerInfoClient::new(self.channel()).get_server_info(request).await.unwrap_err()
    }

    /// What comes back for this text, until the connection ends.
    async fn http1(&self, text: &str) -> String {
        said(TcpStream::connect(self.address).await.unwrap(), text).await
    }
}

impl Drop for Field {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn said(mut io: impl AsyncRead + AsyncWrite + Unpin, text: &str) -> String {
    io.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(SOON, io.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

fn who(agent: i64, project: i64) -> Who {
    let (agent, project) = (AgentId(agent), ProjectId(project));
    Who { agent, project, name: "prod".to_owned(), address: "192.0.2.1:5000".to_owned() }
}

fn unix() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What Rails says in its JWTs, with changes.
fn claims(changes: &Value) -> Value {
    let mut claims = json!({
        "iss": "gitlab.example.com", "aud": "gitlab-kas", "jti": "2c7b1cd0-7ad6-4a5b-a0b7-6cf44c6b5d1b",
        "iat": unix(), "nbf": unix() - 5, "exp": unix() + 60,
    });
    let members = claims.as_object_mut().unwrap();
    for (name, value) in changes.as_object().unwrap() {
        match value {
            Value::Null => drop(members.remove(name)),
            _ => drop(members.insert(name.clone(), value.clone())),
        }
    }
    claims
}

fn good() -> String {
    jwt("HS256", SECRET, &claims(&json!({})))
}

/// A call as Rails makes it.
fn call<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    metadata.insert("authorization", format!("bearer {}", good()).parse().unwrap());
    metadata.insert("kas-feature-agent-events", "true".parse().unwrap());
    metadata.insert("kas-feature-none-such", "false".parse().unwrap());
    request
}

#[tokio::test]
async fn connected_agents_are_found_by_every_call() {
    let field = Field::start(With::default()).await;
    let meta =
        |pod: &str| AgentMeta { version: "v14.1.1".into(), pod_name: pod.into(), ..AgentMeta::default() };
    let _one = field.tracker.connected(who(1, 10), meta("one"));
    field.tracker.registered(who(2, 10), meta("two"), 77);
    field.tracker.registered(who(3, 30), meta("three"), 88);
    let mut client = AgentTrackerClient::new(field.channel());
    let ids = |agents: &[ConnectedAgentInfo]| agents.iter().map(|info| info.agent_id).collect::<Vec<_>>();

    let by = |wanted| call(GetConnectedAgentsRequest { request: Some(wanted) });
    let found = client.get_connected_agents(by(Wanted::ProjectId(10))).await.unwrap().into_inner().agents;
    assert_eq!(ids(&found), [1, 2]);
    assert_eq!(found[1].connection_id, 77);
    assert_eq!(found[1].agent_meta.as_ref().unwrap().version, "v14.1.1");
    assert!(found[1].connected_at.unwrap().seconds.abs_diff(i64::try_from(unix()).unwrap()) < 60);
    let found = client.get_connected_agents(by(Wanted::AgentId(3))).await.unwrap().into_inner().agents;
    assert_eq!((ids(&found), found[0].project_id), (vec![3], 30));
    assert!(
        client.get_connected_agents(by(Wanted::AgentId(9))).await.unwrap().into_inner().agents.is_empty()
    );
    let none =
        client.get_connected_agents(call(GetConnectedAgentsRequest { request: None })).await.unwrap_err();
    assert_eq!(none.code(), Code::InvalidArgument);

    let several = || call(GetConnectedAgentsByAgentIDsRequest { agent_ids: vec![3, 1, 3, 9] });
    let found = client.get_connected_agents_by_agent_i_ds(several()).await.unwrap().into_inner().agents;
    assert_eq!(ids(&found), [1, 3]);
    let found = client.get_connected_agentks_by_agent_i_ds(several()).await.unwrap().into_inner().agents;
    assert_eq!(ids(&found), [1, 3]);
    let several = GetConnectedAgentsByProjectIDsRequest { project_ids: vec![30, 10] };
    let found = client.get_connected_agents_by_project_i_ds(call(several)).await.unwrap().into_inner().agents;
    assert_eq!(ids(&found), [1, 2, 3]);
}

#[tokio::test]
async fn a_message_is_bounded_and_may_be_compressed() {
    let field = Field::start(With::default()).await;
    let mut client = AgentTrackerClient::new(field.channel()).send_compressed(CompressionEncoding::Gzip);
    let ask = |ids: i64| call(GetConnectedAgentsByAgentIDsRequest { agent_ids: (0..ids).collect() });
    assert!(client.get_connected_agents_by_agent_i_ds(ask(1000)).await.is_ok());
    let error = client.get_connected_agents_by_agent_i_ds(ask(100_000)).await.unwrap_err();
    assert!(matches!(error.code(), Code::OutOfRange | Code::ResourceExhausted), "{error:?}");
}

#[tokio::test]
async fn a_push_is_passed_on_and_nonsense_is_not() {
    let field = Field::start(With::default()).await;
    let mut client = NotificationsClient::new(field.channel());
    let mut push = async |project: Option<Project>| {
        let event = Some(GitPushEvent { project });
        client.git_push_event(call(GitPushEventRequest { event })).await
    };
    let project = |id, path: &str| Some(Project { id, full_path: path.to_owned() });
    push(project(5, "group/sub/project")).await.unwrap();
    for (bad, words) in [
        (None, "event.project is required"),
        (project(0, "group/project"), "id must be greater than 0"),
        (project(-1, "group/project"), "id must be greater than 0"),
        (project(5, ""), "full_path is required"),
    ] {
        let status = push(bad).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(words), "{status:?}");
    }
    assert_eq!(*field.pushed.lock().unwrap(), ["group/sub/project"]);
}

#[tokio::test]
async fn the_version_is_told_as_rails_compares_it() {
    let field = Field::start(With::default()).await;
    let mut client = ServerInfoClient::new(field.channel());
    let info = client.get_server_info(call(GetServerInfoRequest {})).await.unwrap().into_inner();
    let info = info.current_server_info.unwrap();
    assert_eq!((info.version.as_str(), info.git_ref.as_str()), ("1.2.3", "abc1234"));
}

#[tokio::test]
async fn without_a_gitlab_there_is_nothing_to_list() {
    let field = Field::start(With::default()).await;
    let mut client = ConfigurationProjectClient::new(field.channel());
    let asked = client.list_agent_config_files(call(ListAgentConfigFilesRequest::default())).await;
    let status = asked.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("no section gitlab"), "{status:?}");
}

#[tokio::test]
async fn every_bad_jwt_gets_the_same_words_and_no_jwt_gets_others() {
    let field = Field::start(With::default()).await;
    let bad =
        |alg: &str, secret: &[u8], changes: Value| format!("Bearer {}", jwt(alg, secret, &claims(&changes)));
    for (what, value) in [
        ("expired", bad("HS256", SECRET, json!({"exp": unix() - 1}))),
        ("not yet valid", bad("HS256", SECRET, json!({"nbf": unix() + 100}))),
        ("for another", bad("HS256", SECRET, json!({"aud": ["gitlab"]}))),
        ("for nobody", bad("HS256", SECRET, json!({"aud": null}))),
        ("of another key", bad("HS256", b"another", json!({}))),
        ("not signed", bad("none", SECRET, json!({}))),
        ("with a key pair", bad("RS256", SECRET, json!({}))),
        ("garbage", "Bearer garbage".to_owned()),
        ("dots", "bearer a.b.c".to_owned()),
        ("huge", format!("Bearer {}", "A".repeat(10_000))),
    ] {
        let status = field.refused(&[&value]).await;
        assert_eq!(
            (status.code(), status.message()),
            (Code::Unauthenticated, "JWT validation failed"),
            "{what}"
        );
    }
    let value = format!("Bearer {}", good());
    assert_eq!(field.refused(&[&value, &value]).await.message(), "JWT validation failed");
    for values in [&[][..], &["Basic QUJD"], &["Bearer"], &[good().as_str()]] {
        let status = field.refused(values).await;
        let wanted = (Code::Unauthenticated, "Request unauthenticated with bearer");
        assert_eq!((status.code(), status.message()), wanted, "{values:?}");
    }
}

#[tokio::test]
async fn every_call_wants_a_jwt_and_takes_all_three_hmacs() {
    let field = Field::start(With::default()).await;
    let channel = field.channel();
    let refusals = [
        AgentTrackerClient::new(channel.clone())
            .get_connected_agents(GetConnectedAgentsRequest::default())
            .await
            .unwrap_err(),
        ConfigurationProjectClient::new(channel.clone())
            .list_agent_config_files(ListAgentConfigFilesRequest::default())
            .await
            .unwrap_err(),
        NotificationsClient::new(channel.clone())
            .git_push_event(GitPushEventRequest::default())
            .await
            .unwrap_err(),
        ServerInfoClient::new(channel.clone()).get_server_info(GetServerInfoRequest {}).await.unwrap_err(),
    ];
    assert!(refusals.iter().all(|status| status.code() == Code::Unauthenticated), "{refusals:?}");
    for alg in ["HS256", "HS384", "HS512"] {
        let mut request = Request::new(GetServerInfoRequest {});
        let value = format!("BEARER {}", jwt(alg, SECRET, &claims(&json!({"exp": null, "nbf": null}))));
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        ServerInfoClient::new(channel.clone()).get_server_info(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_replaced_secret_is_in_force_without_a_restart() {
    let field = Field::start(With::default()).await;
    let new = b"another one, of another length, that Rails has now";
    let mut client = ServerInfoClient::new(field.channel());
    let mut ask = async || {
        let mut request = Request::new(GetServerInfoRequest {});
        let value = format!("Bearer {}", jwt("HS256", new, &claims(&json!({}))));
        request.metadata_mut().insert("authorization", value.parse().unwrap());
        client.get_server_info(request).await
    };
    assert_eq!(ask().await.unwrap_err().code(), Code::Unauthenticated);
    // The file is watched since the listener serves, so one change is enough.
    std::fs::write(field.secret_file(), STANDARD.encode(new)).unwrap();
    let replaced = async { while ask().await.is_err() {} };
    timeout(SOON, replaced).await.unwrap();
    assert_eq!(field.refused(&[&format!("Bearer {}", good())]).await.message(), "JWT validation failed");
}
