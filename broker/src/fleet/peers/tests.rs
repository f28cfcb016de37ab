//! Connections: how many, for how long, and what becomes of those that fail. Real sockets, short limits.

use super::*;
use crate::fleet::{
    remote::{Answer, RemoteTunnel},
    stage::{AGENT, Broker, METHOD, Wire, peers_of, within},
};
use bytes::BytesMut;
use futures::future::BoxFuture;
use h2::server::{Connection, SendResponse};
use http::Response;
use postern_certs::dev::Ca;
use postern_wire::proto::gitlab::agent::{
    kas::{GatewayKasResponse, gateway_kas_response as gateway},
    notifications::rpc::{
        GitPushEventRequest, GitPushEventResponse,
        notifications_client::NotificationsClient,
        notifications_server::{Notifications, NotificationsServer},
    },
};
use prost::Message;
use std::{net::Ipv4Addr, sync::atomic::Ordering};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tonic::{Code, Status, service::Routes};

fn short() -> Limits {
    Limits {
        dial: Duration::from_millis(300),
        ping_busy: Duration::from_millis(50),
        ping_idle: Duration::from_millis(200),
        pong: Duration::from_millis(200),
        idle: Duration::from_secs(600),
        pause: (Duration::from_millis(100), Duration::from_secs(1)),
    }
}

async fn knock(peers: &Peers, url: &PeerUrl) -> Result<Knock, PeerError> {
    within(peers.knock(url, AGENT, METHOD, &HashMap::new())).await
}

async fn listener() -> (TcpListener, PeerUrl) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap()).parse().unwrap();
    (listener, url)
}

#[tokio::test]
async fn one_dial_serves_all_who_want_it() {
    let broker = Broker::start().await;
    let wire = Wire::to(broker.address()).await;
    let peers = peers_of(b"ours", None, Limits::default());
    let knocks = futures::future::join_all((0..100).map(|_| knock(&peers, &wire.url))).await;
    for knock in knocks {
        let mut knock = knock.unwrap();
        assert_eq!(within(knock.answer()).await.unwrap(), Answer::NoTunnel { busy: false });
    }
    assert_eq!(wire.dials.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_broker_that_refuses_is_not_dialled_again_at_once() {
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, short());
    // It closes whatever comes.
    let dials = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = Arc::clone(&dials);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            drop(socket);
        }
    });
    for result in futures::future::join_all((0..10).map(|_| knock(&peers, &url))).await {
        let error = result.unwrap_err();
        assert!(matches!(error, PeerError::NotHttp2 { .. } | PeerError::Lost { .. }), "{error:?}");
    }
    let begin = Instant::now();
    knock(&peers, &url).await.unwrap_err();
    assert!(begin.elapsed() < Duration::from_millis(50));
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    // After the pause it is.
    within(async {
        while dials.load(Ordering::SeqCst) < 2 {
            let _ = knock(&peers, &url).await;
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert!(begin.elapsed() >= Duration::from_millis(50));

    let gone: PeerUrl = "grpc://127.0.0.1:1".parse().unwrap();
    let error = knock(&peers, &gone).await.unwrap_err();
    let text = crate::error::chain(&error);
    assert!(
        text.starts_with("the broker grpc://127.0.0.1:1 cannot be reached: Connection refused"),
        "{text}"
    );
}

#[tokio::test]
async fn a_black_hole_costs_no_more_than_the_dial_limit() {
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, short());
    let begin = Instant::now();
    let error = knock(&peers, &url).await.unwrap_err();
    assert_eq!(error.to_string(), format!("the broker {url} cannot be reached: no answer within 300ms"));
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(listener);
}

#[tokio::test]
async fn a_broker_that_falls_silent_ends_all_its_streams() {
    let broker = Broker::start().await;
    let wire = Wire::to(broker.address()).await;
    let peers = peers_of(b"ours", None, short());
    let mut agent = broker.agent();
    let mut ready = knock(&peers, &wire.url).await.unwrap();
    assert_eq!(within(ready.answer()).await.unwrap(), Answer::Ready);
    let (_request, mut response) = within(ready.accept().open()).await.unwrap();
    agent.hears_info().await;
    let mut waiting = knock(&peers, &wire.url).await.unwrap();
    assert_eq!(within(waiting.answer()).await.unwrap(), Answer::NoTunnel { busy: false });
    wire.silent.cancel();
    let begin = Instant::now();
    let error = within(response.next()).await.unwrap_err();
    assert!(error.to_string().contains("was lost while the request was under way"), "{error}");
    let error = within(waiting.answer()).await.unwrap_err();
    assert!(matches!(error, PeerError::Lost { .. }), "{error:?}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}

/// Serves HTTP/2 by hand on the next connection.
async fn accept(listener: &TcpListener, streams: u32) -> Connection<TcpStream, Bytes> {
    let (socket, _) = listener.accept().await.unwrap();
    h2::server::Builder::new().max_concurrent_streams(streams).handshake(socket).await.unwrap()
}

fn framed(msg: gateway::Msg) -> Bytes {
    framed_bytes(&GatewayKasResponse { msg: Some(msg) }.encode_to_vec())
}

fn framed_bytes(message: &[u8]) -> Bytes {
    let mut bytes = BytesMut::from(&[0][..]);
    bytes.extend_from_slice(&u32::try_from(message.len()).unwrap().to_be_bytes());
    bytes.extend_from_slice(message);
    bytes.freeze()
}

fn head() -> Response<()> {
    Response::builder().header("content-type", "application/grpc").body(()).unwrap()
}

fn ended(code: &'static str) -> HeaderMap {
    HeaderMap::from_iter([(HeaderName::from_static("grpc-status"), HeaderValue::from_static(code))])
}

#[tokio::test]
async fn a_full_connection_is_not_queued_on() {
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, Limits::default());
    let (opened, mut streams) = mpsc::channel(100);
    tokio::spawn(async move {
        for connection in 0.. {
            let mut server = accept(&listener, 2).await;
            let opened = opened.clone();
            tokio::spawn(async move {
                while let Some(Ok((request, respond))) = server.accept().await {
                    let _ = opened.send((connection, request, respond)).await;
                }
            });
        }
    });
    let mut knocks = Vec::new();
    let mut on = Vec::new();
    for _ in 0..5 {
        knocks.push(knock(&peers, &url).await.unwrap());
        on.push(within(streams.recv()).await.unwrap());
    }
    let connections: Vec<i32> = on.iter().map(|(connection, ..)| *connection).collect();
    assert_eq!(connections, [0, 0, 1, 1, 2]);
    // A stream that is over makes room.
    drop(knocks.remove(0));
    let _knock = knock(&peers, &url).await.unwrap();
    assert_eq!(within(streams.recv()).await.unwrap().0, 0);
}

/// Sends these messages and then nothing.
async fn answered(mut respond: SendResponse<Bytes>, messages: Vec<Bytes>) {
    let mut body = respond.send_response(head(), false).unwrap();
    for message in messages {
        body.send_data(message, false).unwrap();
    }
    std::future::pending::<()>().await;
}

/// What happens to a request at a hand-made broker, which answers like this whatever it is sent.
async fn against(
    answer: impl Fn(SendResponse<Bytes>) -> BoxFuture<'static, ()> + Send + 'static,
) -> Result<(PeerUrl, RemoteTunnel), PeerError> {
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, Limits::default());
    tokio::spawn(async move {
        let mut server = accept(&listener, 100).await;
        while let Some(Ok((request, respond))) = server.accept().await {
            let answered = answer(respond);
            tokio::spawn(async move {
                let _request = request;
                answered.await;
            });
        }
    });
    let mut knock = knock(&peers, &url).await.unwrap();
    loop {
        if within(knock.answer()).await? == Answer::Ready {
            return Ok((url, knock.accept()));
        }
    }
}

#[tokio::test]
async fn a_kas_of_14_1_says_ready_and_nothing_of_the_agent() {
    use gateway::Msg::{Header, Message, Trailer, TunnelReady};
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, Limits::default());
    let (opened, mut streams) = mpsc::channel(100);
    tokio::spawn(async move {
        let mut server = accept(&listener, 100).await;
        while let Some(Ok(stream)) = server.accept().await {
            let _ = opened.send(stream).await;
        }
    });
    let mut asked = knock(&peers, &url).await.unwrap();
    let (request, mut respond) = within(streams.recv()).await.unwrap();
    assert_eq!(request.uri().path(), METHOD);
    assert_eq!(request.headers()["kas-hop-routing-agent-id"], "1");
    let mut to_router = respond.send_response(head(), false).unwrap();
    to_router.send_data(framed(TunnelReady(Default::default())), false).unwrap();
    assert_eq!(within(asked.answer()).await.unwrap(), Answer::Ready);
    let tunnel = asked.accept();
    assert!(!tunnel.carries_upgrades() && !tunnel.carries_impersonation());
    let (to_agent, mut response) = within(tunnel.open()).await.unwrap();
    to_agent.send(Bytes::from_static(b"question")).await.unwrap();
    to_agent.close().await.unwrap();
    // StartStreaming has no bytes.
    let (mut from_router, mut received) = (request.into_body(), Vec::new());
    while let Some(data) = within(from_router.data()).await {
        received.extend_from_slice(&data.unwrap());
    }
    assert_eq!(received, [&[0; 5][..], &framed_bytes(b"question")].concat());
    let data = gateway::Message { data: Bytes::from_static(b"answer") };
    for message in [Header(Default::default()), Message(data), Trailer(Default::default())] {
        to_router.send_data(framed(message), false).unwrap();
    }
    to_router.send_trailers(ended("0")).unwrap();
    assert_eq!(within(response.next()).await.unwrap().unwrap(), "answer");
    assert!(within(response.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_kas_that_ends_without_a_tunnel_is_passed_over() {
    for (trailers_only, wanted) in [
        ("0", "no longer looks for a tunnel"),
        ("14", "refused:  (Unavailable)"),
        (
            "16",
            "refused:  (Unauthenticated); do both have the same private_api.listen.authentication_secret_file",
        ),
        ("12", "refused:  (Unimplemented); is that the private API of a kas?"),
    ] {
        let refused = against(move |mut respond| {
            Box::pin(async move {
                let mut head = head();
                head.headers_mut().extend(ended(trailers_only));
                respond.send_response(head, true).unwrap();
            })
        });
        let error = refused.await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn a_broker_that_breaks_the_rules_is_not_believed() {
    use gateway::Msg::{Message, NoTunnel, TunnelReady};
    let raw = |bytes: &'static [u8]| {
        move |respond: SendResponse<Bytes>| -> BoxFuture<'static, ()> {
            Box::pin(answered(respond, vec![Bytes::from_static(bytes)]))
        }
    };
    let said = |messages: &'static [fn() -> gateway::Msg]| {
        move |respond: SendResponse<Bytes>| -> BoxFuture<'static, ()> {
            Box::pin(answered(respond, messages.iter().map(|message| framed(message())).collect()))
        }
    };
    let no_grpc = |mut respond: SendResponse<Bytes>| -> BoxFuture<'static, ()> {
        Box::pin(async move {
            respond.send_response(Response::builder().status(404).body(()).unwrap(), true).unwrap();
        })
    };
    for (refused, wanted) in [
        (against(raw(&[0, 0x7f, 0xff, 0xff, 0xff])).await, "a message is larger than 4 MiB"),
        (against(raw(&[1, 0, 0, 0, 0])).await, "a message is compressed"),
        (against(raw(&[0, 0, 0, 0, 2, 0xff, 0xff])).await, "decode"),
        (against(raw(&[0, 0, 0, 0, 0])).await, "a message without a known kind"),
        (against(said(&[|| Message(Default::default())])).await, "transition from -2 to 3"),
        (
            against(said(&[|| NoTunnel(Default::default()), || NoTunnel(Default::default())])).await,
            "transition from 6 to 6",
        ),
        (against(no_grpc).await, "it does not speak gRPC"),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, PeerError::Rules { .. }), "{error:?}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    // The same goes for a request under way.
    let (url, tunnel) =
        against(said(&[|| TunnelReady(Default::default()), || Message(Default::default())])).await.unwrap();
    let (_request, mut response) = within(tunnel.open()).await.unwrap();
    let error = within(response.next()).await.unwrap_err().to_string();
    let wanted =
        format!("the broker {url} that holds the agent's tunnel ended the request: transition from 1 to 3");
    assert!(error.starts_with(&wanted), "{error}");
}

#[tokio::test]
async fn a_connection_that_nobody_needs_is_closed() {
    let broker = Broker::start().await;
    let wire = Wire::to(broker.address()).await;
    let peers = peers_of(b"ours", None, Limits { idle: Duration::from_millis(100), ..short() });
    let mut held = knock(&peers, &wire.url).await.unwrap();
    within(held.answer()).await.unwrap();
    // Longer than it may be idle, but it is not.
    let mut pings = tokio::time::interval(Duration::from_millis(50));
    for _ in 0..8 {
        pings.tick().await;
    }
    drop(knock(&peers, &wire.url).await.unwrap());
    assert_eq!(wire.dials.load(Ordering::SeqCst), 1);
    drop(held);
    within(async {
        while peers.pool.connections() > 0 {
            pings.tick().await;
        }
    })
    .await;
    drop(knock(&peers, &wire.url).await.unwrap());
    assert_eq!(wire.dials.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn the_number_of_brokers_is_bounded_and_those_in_use_stay() {
    let broker = Broker::start().await;
    let peers = peers_of(b"ours", None, Limits::default());
    let mut held = knock(&peers, &broker.url).await.unwrap();
    within(held.answer()).await.unwrap();
    for port in 1..=100 {
        let gone = format!("grpc://127.0.0.1:{port}").parse().unwrap();
        knock(&peers, &gone).await.unwrap_err();
    }
    assert_eq!(peers.pool.brokers(), 64);
    let agent = broker.agent();
    assert_eq!(within(held.answer()).await.unwrap(), Answer::Ready);
    drop(agent);
}

#[tokio::test]
async fn a_connection_that_the_other_end_closes_is_replaced_while_its_streams_go_on() {
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, Limits::default());
    let (accepted, mut connections) = mpsc::channel(100);
    tokio::spawn(async move {
        loop {
            let mut server = accept(&listener, 100).await;
            let accepted = accepted.clone();
            tokio::spawn(async move {
                let mut streams = Vec::new();
                while let Some(Ok((request, mut respond))) = server.accept().await {
                    let mut body = respond.send_response(head(), false).unwrap();
                    let ready = gateway::Msg::TunnelReady(Default::default());
                    body.send_data(framed(ready), false).unwrap();
                    // As at the end of a connection's age.
                    server.graceful_shutdown();
                    let _ = accepted.send(()).await;
                    streams.push((request, body));
                }
            });
        }
    });
    let mut first = knock(&peers, &url).await.unwrap();
    assert_eq!(within(first.answer()).await.unwrap(), Answer::Ready);
    within(connections.recv()).await.unwrap();
    let mut second = within(async {
        loop {
            // Until the GOAWAY has arrived the old connection may still take a stream and lose it.
            let mut second = knock(&peers, &url).await.unwrap();
            if within(second.answer()).await.is_ok() {
                return second;
            }
        }
    })
    .await;
    drop(second.answer());
    let (request, _response) = within(first.accept().open()).await.unwrap();
    within(request.send(Bytes::from_static(b"still here"))).await.unwrap();
}

#[tokio::test]
async fn tls_is_trusted_only_with_the_ca_that_the_file_names() {
    postern_certs::install_provider();
    let folder = tempfile::tempdir().unwrap();
    let (ca, other) = (Ca::new(), Ca::new());
    let files = ca.issue(&["127.0.0.1", "brokers.internal"]).write(folder.path()).unwrap();
    let broker = Broker::start_with(Some(files), Routes::default()).await;
    let trust = |ca: &Ca, name: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, ca.pem()).unwrap();
        Some(ClientTrust::load(Some(path)).unwrap())
    };
    let good = peers_of(b"ours", trust(&ca, "ca.pem"), Limits::default());
    let mut answered = knock(&good, &broker.url).await.unwrap();
    assert_eq!(within(answered.answer()).await.unwrap(), Answer::NoTunnel { busy: false });

    let config = |trust, server_name: Option<&str>| PeersConfig {
        secret: crate::fleet::stage::secret(b"ours"),
        trust,
        server_name: server_name.map(str::to_owned),
        program: crate::fleet::stage::PROGRAM,
    };
    let named = Peers::new(config(trust(&ca, "ca.pem"), Some("brokers.internal")));
    let mut answered = knock(&named, &broker.url).await.unwrap();
    assert_eq!(within(answered.answer()).await.unwrap(), Answer::NoTunnel { busy: false });

    for (peers, wanted) in [
        (
            Peers::new(config(trust(&other, "other.pem"), None)),
            "neither one in the file given with private_api.listen.ca_certificate_file",
        ),
        (Peers::new(config(None, None)), "this broker was given nothing to trust"),
        (Peers::new(config(trust(&ca, "ca.pem"), Some("others.internal"))), "others.internal"),
    ] {
        let error = knock(&peers, &broker.url).await.unwrap_err();
        assert!(matches!(error, PeerError::Tls { .. }), "{error:?}");
        let begin = format!("TLS to the broker {} failed: ", broker.url);
        let text = error.to_string();
        assert!(text.starts_with(&begin) && text.contains(wanted), "{text}");
    }
    // Without TLS where it is wanted.
    let plain = format!("grpc://{}", broker.address()).parse().unwrap();
    let error = knock(&good, &plain).await.unwrap_err().to_string();
    assert!(error.contains("does not speak HTTP/2") || error.contains("was lost"), "{error}");
}

#[derive(Clone)]
struct Pushes;

#[tonic::async_trait]
impl Notifications for Pushes {
    async fn git_push_event(
        &self,
        request: tonic::Request<GitPushEventRequest>,
    ) -> Result<tonic::Response<GitPushEventResponse>, Status> {
        assert!(request.metadata().get("authorization").is_none());
        match request.into_inner().event {
            Some(_) => Ok(tonic::Response::new(GitPushEventResponse {})),
            None => Err(Status::invalid_argument("nothing was pushed")),
        }
    }
}

#[tokio::test]
async fn generated_clients_call_what_is_served_beside_behind_the_same_door() {
    let broker = Broker::start_with(None, Routes::new(NotificationsServer::new(Pushes))).await;
    let wire = Wire::to(broker.address()).await;
    let peers = peers_of(b"ours", None, Limits::default());
    let mut client = NotificationsClient::new(peers.channel(&wire.url));
    let pushed = GitPushEventRequest { event: Some(Default::default()) };
    within(client.git_push_event(pushed.clone())).await.unwrap();
    let refused = within(client.git_push_event(GitPushEventRequest::default())).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "nothing was pushed"));
    drop(knock(&peers, &wire.url).await.unwrap());
    assert_eq!(wire.dials.load(Ordering::SeqCst), 1);

    let strangers = peers_of(b"theirs", None, Limits::default());
    let mut client = NotificationsClient::new(strangers.channel(&broker.url));
    let refused = within(client.git_push_event(pushed)).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unauthenticated, "JWT validation failed"));
    let mut refused = knock(&strangers, &broker.url).await.unwrap();
    let error = within(refused.answer()).await.unwrap_err().to_string();
    assert!(error.contains("do both have the same private_api.listen.authentication_secret_file"), "{error}");
}

#[tokio::test]
async fn what_a_peer_knows_cannot_be_printed() {
    let broker = Broker::start().await;
    let peers = peers_of(b"ours", None, Limits::default());
    let knock = knock(&peers, &broker.url).await.unwrap();
    let printed = format!("{peers:?} {knock:?} {:?}", peers.channel(&broker.url));
    assert!(!printed.contains("eyJ") && !printed.contains("Bearer"), "{printed}");
}

#[tokio::test]
async fn a_kas_is_pinged_rarely() {
    // Nothing in its answers says that it is a broker of ours.
    let (listener, url) = listener().await;
    let limits =
        Limits { ping_busy: Duration::from_millis(10), ping_idle: Duration::from_secs(60), ..short() };
    let peers = peers_of(b"ours", None, limits);
    let (near, url_of_wire) = {
        let wire = Wire::to(listener.local_addr().unwrap()).await;
        (wire.url.clone(), wire)
    };
    drop(url);
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        // The client's preface, settings, window and first ping; the answers to it are made by hand.
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        tokio::io::AsyncWriteExt::write_all(&mut socket, &settings).await.unwrap();
        let mut preface = [0; 24];
        socket.read_exact(&mut preface).await.unwrap();
        let mut pings = 0;
        let mut quiet = tokio::time::interval(Duration::from_millis(300));
        quiet.reset();
        loop {
            let mut head = [0; 9];
            tokio::select! {
                read = socket.read_exact(&mut head) => { read.unwrap(); }
                _ = quiet.tick() => return pings,
            }
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            socket.read_exact(&mut payload).await.unwrap();
            if head[3] == 6 && head[4] == 0 {
                pings += 1;
                let answer = [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &payload].concat();
                tokio::io::AsyncWriteExt::write_all(&mut socket, &answer).await.unwrap();
            }
        }
    });
    let _knock = knock(&peers, &near).await.unwrap();
    assert_eq!(within(served).await.unwrap(), 1, "only the first one");
    drop(url_of_wire);
}
