//! Access policies while requests run: a file is edited, and who is no longer allowed ends.

use super::*;
use crate::{
    config::{ListenAddress, ListenConfig},
    listeners::{kubernetes, socket::Listener},
    stage::PolicyFile,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const SOON: Duration = Duration::from_secs(60);
const ALL: &str = "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {name: callers}\n\
                   spec: {kubernetesApi: {otherwise: allow}}\n";
const READ: &str = "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {name: callers}\nspec:\n  kubernetesApi:\n    \
                    rules:\n    - {effect: allow, verbs: [get, list]}\n    otherwise: deny\n";
const READ_TRIAL: &str = "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {name: trial}\nmode: report\nspec:\n  \
                          kubernetesApi:\n    rules:\n    - {effect: allow, verbs: [get, list]}\n    otherwise: deny\n";

/// A broker with policies, and an agent for each request to come.
struct Field {
    policies: PolicyFile,
    api: Arc<KubernetesApi>,
    registry: Arc<Registry>,
    _identities: tempfile::NamedTempFile,
}

impl Field {
    fn new(text: &str) -> Self {
        let policies = PolicyFile::new(text);
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let hash = TokenKey::of(b"SECRET").to_hex();
        write!(
            file,
            "agents: [{{id: 1, name: a, token_sha256: []}}]\n\
             callers: [{{name: deployer, agents: [1], token_sha256: [{hash}]}}]"
        )
        .unwrap();
        let identities = Identities::File(IdentitySource::load(file.path().to_owned()).unwrap());
        let registry = Arc::new(Registry::default());
        std::mem::forget(registry.present(AgentId(1), "here".into(), true));
        let api = KubernetesApi {
            identities,
            cors: Cors::NoCookies,
            counted: Arc::new(()),
            router: Router { registry: Arc::clone(&registry), fleet: None },
            url_path_prefix: "/k8s/".into(),
            policies: policies.live.clone(),
            agent_wait: Duration::ZERO,
            proxies: Proxies::parse(&["127.0.0.1"]).unwrap(),
            program: crate::app::PROGRAM,
            metrics: Arc::default(),
            under_way: Running::default(),
            tracing: None,
        };
        Self { policies, api: Arc::new(api), registry, _identities: file }
    }

    /// One more idle tunnel.
    fn agent(&self) -> Agent {
        let (tunnel, agent) = pair();
        let Offer::Idle(ticket, claimed) = self.registry.offer(AgentId(1)) else { panic!("nobody waits") };
        tokio::spawn(async move {
            let _ticket = ticket;
            if let Ok(claim) = claimed.await {
                let _ = claim.send(Lease::of(tunnel).0);
            }
        });
        agent
    }

    async fn caller(&self) -> client::SendRequest<Full<Bytes>> {
        serve_shared(Arc::clone(&self.api)).await
    }

    fn counted(&self, denial: &str) -> u64 {
        let text = self.api.metrics.text(&self.registry, &self.policies.live.status(), None).unwrap();
        let line = format!("postern_broker_access_denials_total{{denial=\"{denial}\"}} ");
        text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0)
    }
}

fn request(method: &str, path: &str) -> Request<Full<Bytes>> {
    let request = Request::builder().method(method).uri(path).header("host", "broker");
    request.header("authorization", "Bearer postern:1:SECRET").body(Full::default()).unwrap()
}

/// Sends a request; the agent answers with this head.
async fn answered(
    field: &Field,
    request: Request<Full<Bytes>>,
    status: StatusCode,
    headers: &[(&'static str, &'static str)],
) -> (Response<Incoming>, Agent) {
    let (mut agent, mut caller) = (field.agent(), field.caller().await);
    let (answered, agent) = tokio::join!(caller.send_request(request), async {
        agent.request().await;
        agent.head(status, headers).await;
        agent
    });
    // The connection lives as long as its task.
    std::mem::forget(caller);
    (answered.unwrap(), agent)
}

async fn forbidden(response: Response<Incoming>) -> String {
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        (&status["kind"], &status["reason"], &status["code"]),
        (&"Status".into(), &"Forbidden".into(), &403.into())
    );
    let message = status["message"].as_str().unwrap().to_owned();
    assert!(!message.contains("SECRET") && !message.contains("yaml"), "{message}");
    message
}

/// How the agent's side ends.
async fn cancelled(mut agent: Agent) {
    let status = tokio::time::timeout(SOON, async {
        loop {
            match futures::StreamExt::next(&mut agent.receive).await.expect("a status") {
                Ok(_) => {}
                Err(status) => return status,
            }
        }
    });
    assert_eq!(status.await.expect("it ends").code(), Code::Cancelled);
}

#[tokio::test]
async fn an_edit_decides_over_the_next_request() {
    let field = Field::new(ALL);
    let pod = "/k8s/api/v1/namespaces/prod/pods/web-0";
    let (allowed, _agent) = answered(&field, request("DELETE", pod), StatusCode::NO_CONTENT, &[]).await;
    assert_eq!(allowed.status(), StatusCode::NO_CONTENT);

    field.policies.edit(READ).await;
    let (mut agent, mut caller) = (field.agent(), field.caller().await);
    let message = forbidden(caller.send_request(request("DELETE", pod)).await.unwrap()).await;
    let wanted = "GitLab Agent Server: Forbidden: AccessPolicy callers does not let deployer delete pods in namespace prod \
                  at agent 1. Trace ID: ";
    assert!(message.starts_with(wanted), "{message}");
    assert!(futures::FutureExt::now_or_never(agent.hears()).is_none(), "the agent heard of it");
    assert_eq!(field.registry.census().idle, 1, "no tunnel was taken");
    assert_eq!((field.counted("refused"), field.counted("ended")), (1, 0));
    let (read, ()) = tokio::join!(caller.send_request(request("GET", pod)), async {
        agent.request().await;
        agent.head(StatusCode::NO_CONTENT, &[]).await;
    });
    assert_eq!(read.unwrap().status(), StatusCode::NO_CONTENT);

    field.policies.edit(ALL).await;
    let (allowed, _agent) = answered(&field, request("DELETE", pod), StatusCode::NO_CONTENT, &[]).await;
    assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn a_policy_to_try_out_counts_and_lets_everything_through() {
    let field = Field::new(READ_TRIAL);
    let path = "/k8s/api/v1/namespaces/prod/pods/web-0";
    for (method, reported) in [("GET", 0), ("DELETE", 1), ("PUT", 2)] {
        let (allowed, _agent) = answered(&field, request(method, path), StatusCode::NO_CONTENT, &[]).await;
        assert_eq!(allowed.status(), StatusCode::NO_CONTENT);
        assert_eq!(field.counted("reported"), reported);
    }
    assert_eq!((field.counted("refused"), field.counted("ended")), (0, 0));
    // Nor does it end what runs.
    let watch = request("GET", "/k8s/api/v1/pods?watch=true");
    let (watching, agent) = answered(&field, watch, StatusCode::OK, &[]).await;
    field.policies.edit(&READ_TRIAL.replace("[get, list]", "[get]")).await;
    agent.data("event").await;
    let mut body = watching.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "event");
}

#[tokio::test]
async fn a_watch_that_is_no_longer_allowed_ends_with_an_event_that_says_why() {
    let field = Field::new(ALL);
    let json = [("content-type", "application/json;stream=watch")];
    let watch = || request("GET", "/k8s/api/v1/namespaces/prod/pods?watch=true");
    let (watching, agent) = answered(&field, watch(), StatusCode::OK, &json).await;
    let list = request("GET", "/k8s/api/v1/namespaces/prod/pods");
    let (listing, other) = answered(&field, list, StatusCode::OK, &json).await;
    agent.data("{\"type\":\"ADDED\"}\n").await;
    let mut body = watching.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "{\"type\":\"ADDED\"}\n");

    field.policies.edit(READ).await;
    let rest = tokio::time::timeout(SOON, body.collect()).await.expect("it ends");
    let rest = rest.expect("it ends as a watch does").to_bytes();
    assert!(rest.ends_with(b"\n"));
    let event: serde_json::Value = serde_json::from_slice(&rest).unwrap();
    assert_eq!((&event["type"], &event["object"]["reason"]), (&"ERROR".into(), &"Forbidden".into()));
    let message = event["object"]["message"].as_str().unwrap();
    assert!(
        message.contains("AccessPolicy callers does not let deployer watch pods in namespace prod"),
        "{message}"
    );
    cancelled(agent).await;
    assert_eq!(field.counted("ended"), 1);

    // Who may still do what it does is not touched.
    other.data("{}").await;
    assert!(other.end().await.is_none());
    assert_eq!(listing.into_body().collect().await.unwrap().to_bytes(), "{}");
}

#[tokio::test]
async fn a_watch_in_the_middle_of_an_event_and_one_that_is_no_json_break_off() {
    for (kind, piece) in
        [("application/json", "{\"type\":"), ("application/vnd.kubernetes.protobuf;stream=watch", "\n")]
    {
        let field = Field::new(ALL);
        let watch = request("GET", "/k8s/api/v1/pods?watch=true");
        let (watching, agent) = answered(&field, watch, StatusCode::OK, &[("content-type", kind)]).await;
        agent.data(piece).await;
        let mut body = watching.into_body();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), piece);
        field.policies.edit(READ).await;
        let rest = tokio::time::timeout(SOON, body.collect()).await.expect("it ends");
        assert!(rest.is_err(), "it must not look complete");
        cancelled(agent).await;
    }
}

#[tokio::test]
async fn a_request_that_waits_for_its_answer_is_told_of_the_change() {
    let field = Field::new(ALL);
    let (mut agent, mut caller) = (field.agent(), field.caller().await);
    let path = "/k8s/api/v1/namespaces/prod/pods/web-0";
    let (answered, ()) = tokio::join!(caller.send_request(request("DELETE", path)), async {
        agent.request().await;
        field.policies.edit(READ).await;
    });
    let message = forbidden(answered.unwrap()).await;
    assert!(
        message.contains("no longer allowed: AccessPolicy callers does not let deployer delete pods"),
        "{message}"
    );
    cancelled(agent).await;
}

#[tokio::test]
async fn exec_and_port_forward_end_with_the_permission_and_others_go_on() {
    let field = Field::new(ALL);
    let upgrade = |path: &str, protocol: &'static str| {
        let mut request = request("GET", path);
        request.headers_mut().insert("connection", HeaderValue::from_static("upgrade"));
        request.headers_mut().insert("upgrade", HeaderValue::from_static(protocol));
        request
    };
    let session = async |subresource: &str, protocol: &'static str| {
        let path = format!("/k8s/api/v1/namespaces/prod/pods/web-0/{subresource}");
        let headers = [("upgrade", protocol), ("connection", "upgrade")];
        let (switched, agent) =
            answered(&field, upgrade(&path, protocol), StatusCode::SWITCHING_PROTOCOLS, &headers).await;
        assert_eq!(switched.status(), StatusCode::SWITCHING_PROTOCOLS);
        let trailer = http_response::Message::Trailer(http_response::Trailer {});
        agent.answer(HttpResponse { message: Some(trailer) }).await;
        (TokioIo::new(hyper::upgrade::on(switched).await.unwrap()), agent)
    };
    let (mut exec, agent) = session("exec", "SPDY/3.1").await;
    let (mut forward, forwarding) = session("portforward", "websocket").await;
    let (mut log, logging) = session("log", "websocket").await;
    field
        .policies
        .edit(&READ.replace(
            "- {effect: allow",
            "- {effect: deny, resources: ['pods/exec', 'pods/portforward']}\n    - {effect: allow",
        ))
        .await;
    for (session, closed) in [(&mut exec, false), (&mut forward, true)] {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(SOON, session.read_to_end(&mut rest)).await;
        let _ = ended.expect("it ends");
        let reason = rest.strip_prefix(&[0x88, 94, 0x03, 0xf0]).map(String::from_utf8_lossy);
        let wanted =
            "AccessPolicy callers does not let deployer get pods/portforward in namespace prod at agent 1";
        assert_eq!(reason.as_deref(), closed.then_some(wanted), "{rest:?}");
    }
    cancelled(agent).await;
    cancelled(forwarding).await;
    assert_eq!(field.counted("ended"), 2);
    let data = postern_wire::proto::gitlab::agent::grpctool::http_response::UpgradeData {
        data: Bytes::from_static(b"x"),
    };
    logging.answer(HttpResponse { message: Some(http_response::Message::UpgradeData(data)) }).await;
    assert_eq!(log.read_u8().await.unwrap(), b'x');

    // A new one is refused before it becomes a connection.
    let mut caller = field.caller().await;
    let refused =
        caller.send_request(upgrade("/k8s/api/v1/namespaces/prod/pods/web-0/exec", "SPDY/3.1")).await;
    assert!(forbidden(refused.unwrap()).await.contains("get pods/exec in namespace prod"));
}

#[tokio::test]
async fn a_policy_says_how_long_an_agent_is_waited_for() {
    let field = Field::new(
        "apiVersion: postern/v1\nkind: TunnelPolicy\nmetadata: {name: a}\nmatch: {agentIds: [7]}\nspec: {agentWait: 3s}\n",
    );
    let wait = |agent: u64| field.api.agent_wait(&Subject { agent_id: Some(agent), ..Subject::default() });
    assert_eq!((wait(7), wait(8)), (Duration::from_secs(3), Duration::ZERO));
}

#[tokio::test]
async fn the_access_line_names_the_policy_the_place_and_the_hash_of_the_token() {
    let log = super::gitlab::Log::default();
    let writer = log.clone();
    let subscriber =
        tracing_subscriber::fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
    // With one alone, a place that another test's thread logs from first would be taken for silent for good.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _logging = tracing::subscriber::set_default(subscriber);
    let path = "/k8s/api/v1/namespaces/prod/pods/web-0";
    let field = Field::new(READ);
    forbidden(field.caller().await.send_request(request("DELETE", path)).await.unwrap()).await;
    let field = Field::new(READ_TRIAL);
    let (trial, agent) = answered(&field, request("DELETE", path), StatusCode::NO_CONTENT, &[]).await;
    trial.into_body().collect().await.unwrap();
    assert!(agent.end().await.is_none());
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("SECRET"), "{text}");
    let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["target"] == "access").collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in &lines {
        assert_eq!(line["token"], TokenKey::of(b"postern:1:SECRET").to_string());
        assert_eq!(line["caller"], "deployer");
    }
    let shown = |line: &serde_json::Value| {
        let names = ["decision", "outcome", "status", "policy", "reported_policy"];
        serde_json::Value::from(names.map(|name| line[name].clone()).to_vec())
    };
    assert_eq!(shown(&lines[0]), serde_json::json!(["denied", "refused", 403, "callers", null]));
    assert!(lines[0]["rule"].as_str().unwrap().contains("policies.yaml:"), "{text}");
    assert!(lines[0]["why"].as_str().unwrap().contains("does not let deployer delete pods"), "{text}");
    assert_eq!(shown(&lines[1]), serde_json::json!(["allowed", "complete", 204, null, "trial"]));
    assert!(lines[1]["reported_rule"].as_str().unwrap().contains("policies.yaml:"), "{text}");
}

/// A real listener in front; what is allowed is answered with 503, since no agent has a tunnel.
async fn listening(field: &Field) -> (std::net::SocketAddr, tokio_util::sync::DropGuard) {
    let config = ListenConfig { address: ListenAddress::Tcp(([127, 0, 0, 1], 0).into()), tls: None };
    let listener = Listener::bind(&config, "kubernetes_api").await.unwrap();
    let ListenAddress::Tcp(address) = listener.address else { panic!("it is TCP") };
    let stop = CancellationToken::new();
    let api = Arc::clone(&field.api);
    tokio::spawn(kubernetes::serve(Arc::new(listener), api, stop.clone(), TaskTracker::new()));
    (address, stop.drop_guard())
}

/// The status of the answer to a request line, with more headers.
async fn status(address: std::net::SocketAddr, line: &str, headers: &str) -> u16 {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: broker\r\nAuthorization: Bearer postern:1:SECRET\r\nConnection: close\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("it answers").unwrap();
    let answer = String::from_utf8_lossy(&answer);
    answer
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("{line}: {answer:?}"))
}

#[tokio::test]
async fn no_odd_request_slips_through_the_listener() {
    let field = Field::new(
        &READ.replace("- {effect: allow", "- {effect: deny, resources: [secrets]}\n    - {effect: allow"),
    );
    let (address, _stop) = listening(&field).await;
    for (line, headers, wanted) in [
        ("GET /k8s/api/v1/pods", "", 503),
        ("GET /k8s/api/v1/secrets", "", 403),
        ("GET http://broker/k8s/api/v1/secrets", "", 403),
        ("GET /k8s/api/v1/secrets/", "", 403),
        ("GET /k8s/%61pi/v1/%73ecrets", "", 403),
        ("GET /k8s/api/v1/namespaces%2Fa%2Fsecrets", "", 403),
        ("GET /k8s//api/v1/secrets", "", 403),
        ("GET /k8s/api//v1/secrets", "", 403),
        ("GET /k8s/version/../api/v1/secrets", "", 403),
        ("GET /k8s/%2e%2e/api/v1/secrets", "", 403),
        ("GET /k8s/..%2f/api/v1/secrets", "", 403),
        ("GET /k8s/x%5c..%5capi/v1/secrets", "", 403),
        ("GET /k8s/api/v1/pods%00", "", 403),
        ("GET /k8s/api/v1/pods?watch=1", "", 403),
        ("GET /k8s/api/v1/pods?watch=true&watch=false", "", 403),
        ("GET /k8s/api/v1/watch/pods", "", 403),
        ("POST /k8s/api/v1/namespaces/a/pods", "Content-Length: 0\r\n", 403),
        ("GET /k8s/api/v1/pods", "X-HTTP-Method-Override: DELETE\r\n", 403),
        ("get /k8s/api/v1/pods", "", 403),
        ("PROPFIND /k8s/api/v1/pods", "", 403),
        ("GET /k8s/api/v1/namespaces/a/pods/x/exec", "Upgrade: SPDY/3.1\r\nConnection: Upgrade\r\n", 503),
        ("POST /k8s/api/v1/namespaces/a/pods/x/exec", "Upgrade: SPDY/3.1\r\nConnection: Upgrade\r\n", 403),
        ("GET /k8s/API/v1/secrets", "", 503),
        ("GET /K8S/api/v1/secrets", "", 400),
        ("GET /%6b8s/api/v1/secrets", "", 400),
        ("GET /x/../k8s/api/v1/secrets", "", 400),
        ("GET //k8s/api/v1/secrets", "", 400),
    ] {
        assert_eq!(status(address, line, headers).await, wanted, "{line} {headers}");
    }
}

#[tokio::test]
async fn a_policy_for_addresses_sees_the_caller_behind_a_trusted_proxy() {
    let field = Field::new(&format!(
        "{ALL}---\n{}",
        ALL.replace("name: callers}", "name: elsewhere}\nmatch: {clientCidrs: [192.0.2.0/24]}")
            .replace("allow", "deny")
    ));
    let (address, _stop) = listening(&field).await;
    for (headers, wanted) in [
        ("", 503),
        ("X-Forwarded-For: 198.51.100.1\r\n", 503),
        ("X-Forwarded-For: 192.0.2.1\r\n", 403),
        ("X-Forwarded-For: 198.51.100.1, 192.0.2.1\r\n", 403),
        ("X-Forwarded-For: 192.0.2.1, 198.51.100.1\r\n", 503),
        ("X-Forwarded-For: 192.0.2.1:4711\r\n", 403),
        ("X-Forwarded-For: 198.51.100.1:4711\r\n", 503),
        ("X-Forwarded-For: unknown\r\n", 403),
    ] {
        assert_eq!(status(address, "GET /k8s/api/v1/pods", headers).await, wanted, "{headers}");
    }
}
