//! Limits of open requests, through the whole agent: what counts, who is refused and how, and that every end of a
//! request gives its place back.

use crate::{
    fake_api::FakeApi,
    fake_broker::{
        Answer, FakeBroker, MAKE_REQUEST, Tunnel, Via, data, head, impersonating, trailer, upgrade_data,
    },
    harness::{Running, logged, soon, start},
};
use postern_wire::proto::gitlab::agent::{
    agent_configuration::rpc::ConfigurationResponse,
    agentcfg::{AgentConfiguration, KubernetesApiCf},
    grpctool::{HttpRequest, http_response},
    kubernetes_api::rpc::ImpersonationConfig,
};
use tonic::Status;

struct Field {
    broker: FakeBroker,
    _api: FakeApi,
    agent: Running,
}

impl Field {
    async fn with(in_all: u32, per_caller: u32) -> Self {
        let broker = FakeBroker::start(Via::Grpc).await;
        let api = FakeApi::start().await;
        let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
        let field = Self { broker, _api: api, agent };
        field.limit(in_all, per_caller).await;
        field
    }

    /// Pushes limits and waits until they are in force.
    async fn limit(&self, max_concurrent_requests: u32, max_concurrent_requests_per_caller: u32) {
        let wanted = KubernetesApiCf { max_concurrent_requests, max_concurrent_requests_per_caller };
        let configuration =
            AgentConfiguration { agent_id: 7, kubernetes_api: Some(wanted), ..Default::default() };
        let commit_id = format!("{max_concurrent_requests}/{max_concurrent_requests_per_caller}");
        let response = ConfigurationResponse { configuration: Some(configuration), commit_id };
        self.broker.state.configuration.send_replace(Some(response));
        let mut latest = self.agent.configuration.clone();
        let known = latest
            .wait_for(|latest| latest.as_ref().is_some_and(|latest| latest.kubernetes_api == Some(wanted)));
        soon("limits in force", known).await.expect("the agent runs");
    }

    /// A watch that has begun.
    async fn watch(&mut self, whose: Option<&str>) -> Tunnel {
        let mut tunnel = self.broker.tunnel().await;
        tunnel.call(MAKE_REQUEST).await;
        tunnel.say(get("/watch", whose)).await;
        tunnel.say(trailer()).await;
        assert_eq!(tunnel.hear_head().await.status_code, 200);
        tunnel
    }

    async fn ask(&mut self, request: HttpRequest) -> Answer {
        let mut tunnel = self.broker.tunnel().await;
        tunnel.ask(vec![request, trailer()]).await.expect("an answer")
    }

    async fn status(&mut self, whose: Option<&str>) -> i32 {
        self.ask(get("/x", whose)).await.head.status_code
    }

    /// Waits until this many requests are open.
    async fn open(&self, count: usize) {
        let line = format!("agentk_kubernetes_api_open {count}\n");
        soon(&line, async { while !self.agent.probe("/metrics").await.1.contains(&line) {} }).await;
    }
}

fn get(path: &str, whose: Option<&str>) -> HttpRequest {
    let request = head("GET", path, &[], Some(0));
    match whose {
        None => request,
        Some(name) => {
            impersonating(request, ImpersonationConfig { username: name.to_owned(), ..Default::default() })
        }
    }
}

#[tokio::test]
async fn who_is_over_the_limit_hears_so_at_once_in_the_words_of_kubernetes() {
    let mut field = Field::with(1, 0).await;
    let watch = field.watch(None).await;
    let refused = field.ask(get("/x", None)).await;
    assert_eq!((refused.head.status_code, refused.header("Retry-After")), (429, Some("1")));
    assert_eq!(refused.header("Content-Type"), Some("application/json"));
    let status: serde_json::Value = serde_json::from_slice(&refused.body).expect("JSON");
    assert_eq!(
        (status["kind"].as_str(), status["reason"].as_str()),
        (Some("Status"), Some("TooManyRequests"))
    );
    assert!(
        status["message"].as_str().unwrap().contains("kubernetes_api.max_concurrent_requests"),
        "{status}"
    );
    logged(&["request to the Kubernetes API refused", "\"limit\":\"all\"", "\"in_all\":1"]).await;
    // A body that nobody wants does not hold the answer up.
    let mut tunnel = field.broker.tunnel().await;
    let upload = vec![head("POST", "/echo", &[], Some(6)), data(b"abc"), data(b"def"), trailer()];
    assert_eq!(tunnel.ask(upload).await.unwrap().head.status_code, 429);
    let answer = field.ask(head("HEAD", "/x", &[], Some(0))).await;
    assert_eq!((answer.head.status_code, answer.body.len()), (429, 0));
    let (_, metrics) = field.agent.probe("/metrics").await;
    assert!(metrics.contains("agentk_kubernetes_api_refused_total{limit=\"all\"} 3"), "{metrics}");
    drop(watch);
    field.open(0).await;
    assert_eq!(field.status(None).await, 200);
}

#[tokio::test]
async fn each_caller_has_places_of_its_own_and_a_watch_holds_one_until_it_ends() {
    let mut field = Field::with(0, 2).await;
    let mut annas = vec![field.watch(Some("anna")).await, field.watch(Some("anna")).await];
    assert_eq!(field.status(Some("anna")).await, 429);
    assert_eq!(field.status(Some("otto")).await, 200);
    // Names that callers give themselves are not callers.
    let _agents = (field.watch(None).await, field.watch(None).await);
    let named = head("GET", "/x", &[("Impersonate-User", "another")], Some(0));
    assert_eq!(field.ask(named).await.head.status_code, 429);
    annas.pop();
    field.open(3).await;
    assert_eq!(field.status(Some("anna")).await, 200);
}

#[tokio::test]
async fn limits_follow_the_configuration_while_requests_are_open() {
    let mut field = Field::with(0, 0).await;
    let mut watches = vec![field.watch(None).await, field.watch(None).await];
    field.limit(1, 0).await;
    assert_eq!(field.status(None).await, 429);
    // Nobody is cut off.
    for watch in &mut watches {
        assert!(matches!(watch.hear().await, Ok(http_response::Message::Data(_))));
    }
    field.limit(3, 0).await;
    assert_eq!(field.status(None).await, 200);
    field.limit(3, 2).await;
    assert_eq!(field.status(None).await, 429);
    field.limit(0, 0).await;
    assert_eq!(field.status(None).await, 200);
}

#[tokio::test]
async fn however_a_request_ends_its_place_is_given_back() {
    let mut field = Field::with(1, 1).await;
    let upgrade = [("Upgrade", "SPDY/3.1"), ("Connection", "Upgrade")];
    // How it begins, and whether the tunnel then ends politely, with an error, or not before its answer.
    let table = [
        (vec![head("GET", "/x", &[], Some(0)), trailer()], "answered"),
        (vec![head("GET", "/cut", &[], Some(0)), trailer()], "answered"),
        (vec![head("POST", "/early", &[], Some(-1)), data(b"a")], "answered"),
        (vec![head("GET", "/x", &[], Some(0)), data(b"unexpected")], "answered"),
        (vec![head("POST", "/slow", &[], Some(-1)), upgrade_data(b"x")], "answered"),
        (vec![head("GET", "x", &[], Some(0))], "answered"),
        (vec![trailer()], "answered"),
        (vec![head("GET", "/watch", &[], Some(0)), trailer()], "politely"),
        (vec![head("GET", "/watch", &[], Some(0)), trailer()], "with an error"),
        (vec![head("POST", "/slow", &[], Some(-1)), data(b"a")], "politely"),
        (vec![head("POST", "/slow", &[], Some(-1)), data(b"a")], "with an error"),
        (vec![head("POST", "/slow", &[], None)], "with an error"),
        (vec![head("POST", "/exec", &upgrade, Some(0)), trailer()], "with an error"),
        (vec![head("POST", "/exec", &upgrade, Some(0)), trailer()], "politely"),
    ];
    for (messages, end) in table {
        let mut tunnel = field.broker.tunnel().await;
        tunnel.call(MAKE_REQUEST).await;
        for message in messages {
            tunnel.say(message).await;
        }
        match end {
            "answered" => {
                let _ = tunnel.hear_all().await;
            }
            "politely" => {
                field.open(1).await;
                tunnel.end();
            }
            _ => {
                field.open(1).await;
                tunnel.fail(Status::cancelled("gone")).await;
            }
        }
        field.open(0).await;
        assert_eq!(field.status(None).await, 200, "{end}");
    }
}

#[tokio::test]
async fn an_upgraded_connection_holds_its_place_until_it_ends() {
    let mut field = Field::with(1, 0).await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call(MAKE_REQUEST).await;
    let upgrade = [("Upgrade", "SPDY/3.1"), ("Connection", "Upgrade")];
    tunnel.say(head("POST", "/exec", &upgrade, Some(0))).await;
    tunnel.say(trailer()).await;
    assert_eq!(tunnel.hear_head().await.status_code, 101);
    assert_eq!(field.status(None).await, 429);
    tunnel.say(upgrade_data(b"x")).await;
    assert_eq!(field.status(None).await, 429);
    tunnel.close_send().await;
    assert!(tunnel.hear_all().await.unwrap().body.ends_with(b"bye"));
    field.open(0).await;
    assert_eq!(field.status(None).await, 200);
}
