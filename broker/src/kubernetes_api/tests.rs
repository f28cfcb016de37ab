//! A caller over an in-memory connection, an agent made of channels, and the broker between them.

mod access;
mod gitlab;

use super::*;
use crate::{
    identities::IdentitySource,
    tunnel::{
        registry::{Offer, Registry},
        stream::{
            self, Lease,
            tests::{Agent, pair, says},
        },
    },
};
use hyper::{client::conn::http1 as client, server::conn::http1 as server, service::service_fn};
use hyper_util::rt::TokioIo;
use postern_wire::{
    ids::AgentId,
    proto::gitlab::agent::reverse_tunnel::rpc::{self, connect_request::Msg, connect_response},
    token::TokenKey,
};
use std::{convert::Infallible, io::Write};
use tonic::Code;

struct Caller {
    send: client::SendRequest<Full<Bytes>>,
    _identities: Option<tempfile::NamedTempFile>,
}

/// A broker with one idle tunnel of agent 1, and a token for it in the identities file.
async fn broker() -> (Caller, Agent) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let hash = TokenKey::of(b"token").to_hex();
    write!(
        file,
        "agents: [{{id: 1, name: a, token_sha256: []}}]\ncallers: [{{name: c, agents: [1], token_sha256: [{hash}]}}]"
    )
    .unwrap();
    let (tunnel, agent) = pair();
    let identities = Identities::File(IdentitySource::load(file.path().to_owned()).unwrap());
    let send = serve(api(identities, Cors::NoCookies, Arc::new(()), tunnel)).await;
    (Caller { send, _identities: Some(file) }, agent)
}

fn api(
    identities: Identities,
    cors: Cors,
    counted: Arc<dyn Counted>,
    tunnel: stream::Tunnel,
) -> KubernetesApi {
    let registry = Arc::new(Registry::default());
    std::mem::forget(registry.present(AgentId(1), "here".into(), true));
    let Offer::Idle(ticket, claimed) = registry.offer(AgentId(1)) else { panic!("nobody waits") };
    tokio::spawn(async move {
        let _ticket = ticket;
        let Ok(claim) = claimed.await else { return };
        claim.send(Lease::of(tunnel).0).unwrap();
    });
    KubernetesApi {
        identities,
        cors,
        counted,
        router: Router { registry, fleet: None },
        url_path_prefix: "/k8s/".into(),
        policies: Live::open(None).unwrap(),
        agent_wait: Duration::ZERO,
        proxies: Proxies::default(),
        program: crate::app::PROGRAM,
        metrics: Arc::default(),
        under_way: Running::default(),
        tracing: None,
    }
}

/// A connection to it.
async fn serve(api: KubernetesApi) -> client::SendRequest<Full<Bytes>> {
    serve_shared(Arc::new(api)).await
}

async fn serve_shared(api: Arc<KubernetesApi>) -> client::SendRequest<Full<Bytes>> {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let service = service_fn(move |request| {
        let api = Arc::clone(&api);
        async move { Ok::<_, Infallible>(api.serve(request).await) }
    });
    tokio::spawn(async move {
        let _ = server::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades().await;
    });
    let (send, connection) = client::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection.with_upgrades());
    send
}

impl Caller {
    async fn get(&mut self, path: &str) -> Response<Incoming> {
        let request = Request::get(path)
            .header("host", "broker")
            .header("authorization", "Bearer postern:1:token")
            .header("cookie", "secret")
            .header("x-postern-caller", "root");
        self.send.send_request(request.body(Full::default()).unwrap()).await.unwrap()
    }
}

impl Agent {
    /// The next message of the request.
    async fn request(&mut self) -> http_request::Message {
        loop {
            if let connect_response::Msg::Message(message) = self.hears().await {
                return HttpRequest::decode(message.data).unwrap().message.unwrap();
            }
        }
    }

    async fn answer(&self, response: HttpResponse) {
        let message = rpc::Message { data: response.encode_to_vec().into() };
        self.send.send(says(Msg::Message(message))).await.unwrap();
    }

    async fn head(&self, status: StatusCode, headers: &[(&'static str, &'static str)]) {
        let headers =
            headers.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
        self.send.send(says(Msg::Header(rpc::Header::default()))).await.unwrap();
        self.answer(wire_http::response_header(status, &HeaderMap::from_iter(headers))).await;
    }

    async fn data(&self, text: &'static str) {
        let data = http_response::Data { data: Bytes::from_static(text.as_bytes()) };
        self.answer(HttpResponse { message: Some(http_response::Message::Data(data)) }).await;
    }

    async fn end(self) -> Option<tonic::Status> {
        let trailer = http_response::Message::Trailer(http_response::Trailer {});
        self.answer(HttpResponse { message: Some(trailer) }).await;
        self.send.send(says(Msg::Trailer(rpc::Trailer::default()))).await.unwrap();
        let Self { send, mut receive } = self;
        drop(send);
        loop {
            match futures::StreamExt::next(&mut receive).await {
                None => return None,
                Some(Err(status)) => return Some(status),
                Some(Ok(_)) => {}
            }
        }
    }
}

#[tokio::test]
async fn an_answer_with_a_content_length_ends_the_tunnel_with_ok_however_late_its_trailer() {
    for (length, body) in [("2", "{}"), ("0", "")] {
        let (mut caller, mut agent) = broker().await;
        let (answered, agent) = tokio::join!(caller.get("/k8s/version"), async {
            agent.request().await;
            agent.head(StatusCode::OK, &[("content-length", length)]).await;
            if !body.is_empty() {
                agent.data(body).await;
            }
            agent
        });
        // The caller has all it was promised and goes on; only then does the agent finish.
        assert_eq!(answered.into_body().collect().await.unwrap().to_bytes(), body);
        assert!(agent.end().await.is_none(), "the tunnel was cancelled");
    }
}

#[tokio::test]
async fn a_caller_that_leaves_early_cancels_the_request() {
    let (mut caller, mut agent) = broker().await;
    let (answered, mut agent) = tokio::join!(caller.get("/k8s/watch"), async {
        agent.request().await;
        agent.head(StatusCode::OK, &[]).await;
        agent.data("event").await;
        agent
    });
    drop((answered, caller));
    let status = loop {
        match futures::StreamExt::next(&mut agent.receive).await.expect("a status") {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Cancelled);
}

#[tokio::test]
async fn secrets_and_internal_headers_stay_here() {
    let (mut caller, mut agent) = broker().await;
    let (answered, header) = tokio::join!(caller.get("/k8s/api%20x?b=1&a=2"), async {
        let http_request::Message::Header(header) = agent.request().await else { panic!("a header") };
        agent.head(StatusCode::NO_CONTENT, &[("x-postern-leaving", "1"), ("x-other", "1")]).await;
        header
    });
    let names: Vec<_> = answered.headers().keys().map(|name| name.as_str()).collect();
    assert!(names.contains(&"x-other") && !names.contains(&"x-postern-leaving"), "{names:?}");
    assert_eq!(header.content_length, Some(0));
    let request = header.request.unwrap();
    assert_eq!(request.url_path, "/api x");
    assert_eq!(request.query["a"].value, ["2"]);
    let mut names: Vec<_> = request.header.keys().map(String::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["Via"]);
}

/// An edge that believes it would refuse the caller's token.
#[tokio::test]
async fn a_cluster_cannot_say_that_a_token_is_none() {
    let (mut caller, mut agent) = broker().await;
    let (answered, ()) = tokio::join!(caller.get("/k8s/version"), async {
        agent.request().await;
        agent.head(StatusCode::UNAUTHORIZED, &[("gitlab-unauthorized", "true"), ("x-other", "1")]).await;
    });
    assert_eq!(answered.status(), StatusCode::UNAUTHORIZED);
    assert!(!answered.headers().contains_key(UNAUTHORIZED) && answered.headers().contains_key("x-other"));
}

#[tokio::test]
async fn an_answer_cut_short_is_seen_as_such() {
    let (mut caller, mut agent) = broker().await;
    let (answered, agent) = tokio::join!(caller.get("/k8s/list"), async {
        agent.request().await;
        agent.head(StatusCode::OK, &[]).await;
        agent.data("half").await;
        agent
    });
    drop(agent);
    assert!(answered.into_body().collect().await.is_err());
}

#[tokio::test]
async fn an_agent_that_vanishes_before_its_answer_is_a_502() {
    let (mut caller, mut agent) = broker().await;
    let (answered, ()) = tokio::join!(caller.get("/k8s/list"), async {
        agent.request().await;
        drop(agent);
    });
    assert_eq!(answered.status(), StatusCode::BAD_GATEWAY);
    let body = answered.into_body().collect().await.unwrap().to_bytes();
    let status: serde_json::Value = serde_json::from_slice(&body).unwrap();
    assert!(status["message"].as_str().unwrap().contains("connection to the agent was lost"), "{status}");
}

#[tokio::test]
async fn a_path_without_the_prefix_is_refused() {
    let (mut caller, _agent) = broker().await;
    for path in ["/version", "/k8sx/version", "/k8s"] {
        assert_eq!(caller.get(path).await.status(), StatusCode::BAD_REQUEST, "{path}");
    }
}
