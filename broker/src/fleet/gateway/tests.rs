//! What callers of other kinds than ours see: with a plain gRPC client, and without any network.

use super::*;
use crate::{
    fleet::{
        PeerUrl,
        stage::{AGENT, Broker, METHOD, keep, secret, within},
    },
    gitlab::Words,
    outgoing::Outgoing,
    tunnel::stream::tests::{Agent, pair},
};
use bytes::{Buf as _, BufMut as _, Bytes};
use futures::StreamExt;
use http_body_util::StreamBody;
use postern_wire::proto::gitlab::agent::kas::{GatewayKasResponse, gateway_kas_response::Msg};
use prost::Message as _;
use std::time::SystemTime;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Request, Streaming,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    metadata::MetadataValue,
    server::StreamingService as _,
    transport::Endpoint,
};

/// The client's side of [`Raw`].
#[derive(Clone, Copy, Default)]
struct Calling;

impl Codec for Calling {
    type Encode = Bytes;
    type Decode = GatewayKasResponse;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        Self
    }
    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Calling {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, message: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.put(message);
        Ok(())
    }
}

impl Decoder for Calling {
    type Item = GatewayKasResponse;
    type Error = Status;
    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<GatewayKasResponse>, Status> {
        Ok(Some(GatewayKasResponse::decode(from.copy_to_bytes(from.remaining())).unwrap()))
    }
}

/// A call with these headers; each may come more than once.
async fn call(
    broker: &Broker,
    headers: &[(&'static str, String)],
) -> Result<(mpsc::Sender<Bytes>, Streaming<GatewayKasResponse>), Status> {
    let channel =
        Endpoint::try_from(format!("http://{}", broker.address())).unwrap().connect().await.unwrap();
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let (send, messages) = mpsc::channel(8);
    let mut request = Request::new(ReceiverStream::new(messages));
    for (key, value) in headers {
        request.metadata_mut().append(*key, value.parse::<MetadataValue<_>>().unwrap());
    }
    let path = http::uri::PathAndQuery::from_static(METHOD);
    let response = within(client.streaming(request, path, Calling)).await?;
    Ok((send, response.into_inner()))
}

const NAME: &str = "gitlab-kas";

fn jwt(key: &[u8], issuer: &'static str, audience: &'static str, at: SystemTime) -> String {
    let words = Words { issuer, audience, leeway: Duration::from_secs(5) };
    secret(key).bearer(&words, at).to_str().unwrap().to_owned()
}

#[tokio::test]
async fn nobody_without_a_good_jwt_gets_past_the_door() {
    let broker = Broker::start().await;
    let agent = broker.agent();
    let now = SystemTime::now();
    let long_ago = now - Duration::from_secs(120);
    for (authorization, wanted) in [
        (None, "Request unauthenticated with bearer"),
        (Some("Basic abc".to_owned()), "Request unauthenticated with bearer"),
        (Some("Bearer abc".to_owned()), "JWT validation failed"),
        (Some(jwt(b"theirs", NAME, NAME, now)), "JWT validation failed"),
        (Some(jwt(b"ours", "gitlab", NAME, now)), "JWT validation failed"),
        (Some(jwt(b"ours", NAME, "gitlab", now)), "JWT validation failed"),
        (Some(jwt(b"ours", NAME, NAME, long_ago)), "JWT validation failed"),
        (Some(jwt(b"ours", NAME, NAME, now + Duration::from_secs(120))), "JWT validation failed"),
    ] {
        let mut headers = vec![("kas-hop-routing-agent-id", "1".to_owned())];
        headers.extend(authorization.clone().map(|value| ("authorization", value)));
        let refused = call(&broker, &headers).await.err().unwrap();
        assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, wanted), "{authorization:?}");
    }
    drop(agent);
}

#[tokio::test]
async fn the_agent_has_to_be_named_exactly_once() {
    let broker = Broker::start().await;
    for (ids, wanted) in [
        (&[][..], "Expecting a single kas-hop-routing-agent-id, got 0"),
        (&["1", "2"], "Expecting a single kas-hop-routing-agent-id, got 2"),
        (&["one"], "Invalid kas-hop-routing-agent-id"),
        (&[""], "Invalid kas-hop-routing-agent-id"),
        (&["99999999999999999999"], "Invalid kas-hop-routing-agent-id"),
    ] {
        let mut headers = vec![("authorization", jwt(b"ours", NAME, NAME, SystemTime::now()))];
        headers.extend(ids.iter().map(|id| ("kas-hop-routing-agent-id", (*id).to_owned())));
        let refused = call(&broker, &headers).await.err().unwrap();
        assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, wanted), "{ids:?}");
    }
}

#[tokio::test]
async fn a_kas_is_served_and_what_it_proves_itself_with_never_reaches_the_agent() {
    let broker = Broker::start().await;
    let mut agent = broker.agent();
    let headers = [
        ("authorization", jwt(b"ours", NAME, NAME, SystemTime::now())),
        ("kas-hop-routing-agent-id", "1".to_owned()),
        ("kas-hop-anything", "x".to_owned()),
        ("x-gitlab-correlation-id", "c1".to_owned()),
        ("several", "one".to_owned()),
        ("several", "two".to_owned()),
    ];
    let (send, mut answers) = call(&broker, &headers).await.unwrap();
    let ready = within(answers.message()).await.unwrap().unwrap();
    assert!(matches!(ready.msg, Some(Msg::TunnelReady(ready)) if ready.agent_version == "16.5"));
    send.send(Bytes::new()).await.unwrap();
    let info = agent.hears_info().await;
    let mut meta: Vec<_> =
        info.meta.iter().map(|(key, values)| (key.as_str(), values.value.join(" "))).collect();
    meta.sort_unstable();
    let text = |text: &str| text.to_owned();
    assert_eq!(
        meta,
        [
            ("content-type", text("application/grpc")),
            ("several", text("one two")),
            ("x-gitlab-correlation-id", text("c1")),
        ]
    );
    send.send(Bytes::from_static(b"question")).await.unwrap();
    assert_eq!(agent.hears_data().await, "question");
    // An error without any answer: the order of the stream wants a head and a trailer before it.
    agent.begins().await;
    agent.ends().await;
    drop(agent.send);
    let mut kinds = Vec::new();
    while let Some(message) = within(answers.message()).await.unwrap() {
        kinds.push(postern_wire::order::Kind::kind(&message).unwrap());
    }
    assert_eq!(kinds, [2, 4]);
}

#[tokio::test]
async fn a_gateway_over_a_unix_socket_serves_as_well() {
    use crate::{
        config::{ListenAddress, ListenConfig},
        fleet::{
            remote::Answer,
            stage::{PROGRAM, peers},
        },
    };
    let folder = tempfile::tempdir().unwrap();
    let address = ListenAddress::Unix(folder.path().join("kas.sock"));
    let listener = Listener::bind(&ListenConfig { address, tls: None }, "private_api").await.unwrap();
    let url: PeerUrl = listener.address.to_string().parse().unwrap();
    let gateway = Gateway {
        secret: secret(b"ours"),
        registry: Arc::default(),
        program: PROGRAM,
        under_way: TaskTracker::new(),
    };
    let stop = CancellationToken::new();
    let _stop = stop.clone().drop_guard();
    let ends = (stop.clone(), stop);
    serve(Arc::new(listener), gateway, Routes::default(), Duration::from_secs(60), ends, &TaskTracker::new());
    let mut knock = within(peers().knock(&url, AGENT, METHOD, &Default::default())).await.unwrap();
    assert_eq!(within(knock.answer()).await.unwrap(), Answer::NoTunnel);
}

/// A call without a network.
struct Call {
    send: Option<mpsc::Sender<Bytes>>,
    answers: Outgoing<GatewayKasResponse>,
}

impl Call {
    async fn to(registry: &Arc<Registry>) -> Self {
        let (send, messages) = mpsc::channel::<Bytes>(8);
        let frames = ReceiverStream::new(messages).map(|message| {
            let mut framed = vec![0];
            framed.put_u32(message.len().try_into().unwrap());
            framed.put(message);
            Ok::<_, Status>(http_body::Frame::data(Bytes::from(framed)))
        });
        let messages = Streaming::new_request(Raw, StreamBody::new(frames), None, None);
        let mut request = Request::new(messages);
        request.metadata_mut().insert("kas-hop-routing-agent-id", AGENT.0.into());
        let mut requests = MakeRequest { registry: Arc::clone(registry), under_way: TaskTracker::new() };
        Self { send: Some(send), answers: requests.call(request).await.unwrap().into_inner() }
    }

    async fn next(&mut self) -> Option<Result<Msg, Status>> {
        self.answers.next().await.map(|message| message.map(|message| message.msg.unwrap()))
    }

    async fn is_ready(&mut self) {
        while !matches!(self.next().await.unwrap().unwrap(), Msg::TunnelReady(_)) {}
    }

    async fn says(&self, message: &'static [u8]) {
        self.send.as_ref().unwrap().send(Bytes::from_static(message)).await.unwrap();
    }
}

fn one_tunnel() -> (Arc<Registry>, Agent) {
    let registry = Arc::new(Registry::default());
    let (tunnel, agent) = pair();
    tokio::spawn(keep(Arc::clone(&registry), tunnel));
    (registry, agent)
}

/// The one tunnel still serves.
async fn serves(registry: &Arc<Registry>, agent: &mut Agent) {
    let mut call = Call::to(registry).await;
    call.is_ready().await;
    call.says(b"").await;
    agent.hears_info().await;
    call.says(b"x").await;
    assert_eq!(agent.hears_data().await, "x");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_closes_instead_of_starting_leaves_the_tunnel_as_it_was() {
    let (registry, mut agent) = one_tunnel();
    let mut call = Call::to(&registry).await;
    call.is_ready().await;
    call.send = None;
    assert!(call.next().await.is_none(), "the call ends well");
    serves(&registry, &mut agent).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_never_starts_holds_the_tunnel_for_a_while_only() {
    let (registry, mut agent) = one_tunnel();
    let mut call = Call::to(&registry).await;
    call.is_ready().await;
    let begin = tokio::time::Instant::now();
    let ended = call.next().await.unwrap().unwrap_err();
    assert_eq!(ended.code(), Code::DeadlineExceeded);
    assert_eq!(begin.elapsed(), Duration::from_secs(20));
    serves(&registry, &mut agent).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_breaks_the_order_is_told_and_the_tunnel_goes_on() {
    let (registry, mut agent) = one_tunnel();
    let mut call = Call::to(&registry).await;
    call.is_ready().await;
    call.says(b"a request without StartStreaming").await;
    assert_eq!(call.next().await.unwrap().unwrap_err().code(), Code::InvalidArgument);
    serves(&registry, &mut agent).await;

    let mut call = Call::to(&Arc::default()).await;
    assert!(matches!(call.next().await.unwrap().unwrap(), Msg::NoTunnel(_)));
    call.says(b"").await;
    let ended = call.next().await.unwrap().unwrap_err();
    assert_eq!(
        (ended.code(), ended.message()),
        (Code::InvalidArgument, "a message before there is a tunnel")
    );
}

#[tokio::test(start_paused = true)]
async fn a_kas_of_14_1_that_ends_at_no_tunnel_leaves_nothing_behind() {
    let registry = Arc::new(Registry::default());
    for leaves_politely in [true, false] {
        let mut call = Call::to(&registry).await;
        assert!(matches!(call.next().await.unwrap().unwrap(), Msg::NoTunnel(_)));
        assert_eq!(registry.census().waiting, 1);
        if leaves_politely {
            call.send = None;
            assert!(call.next().await.is_none());
        }
        drop(call);
        while registry.census().waiting > 0 {
            tokio::task::yield_now().await;
        }
    }
    let (tunnel, mut agent) = pair();
    tokio::spawn(keep(Arc::clone(&registry), tunnel));
    serves(&registry, &mut agent).await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_drains_tells_those_who_wait() {
    let registry = Arc::new(Registry::default());
    let mut call = Call::to(&registry).await;
    assert!(matches!(call.next().await.unwrap().unwrap(), Msg::NoTunnel(_)));
    registry.drain();
    let ended = call.next().await.unwrap().unwrap_err();
    assert_eq!((ended.code(), ended.message()), (Code::Unavailable, "kas is shutting down"));
}
