//! Connections: how many, for how long, and what becomes of those that fail. Real sockets, short limits.

use super::*;
use crate::fleet::{
    remote::Answer,
    stage::{AGENT, Broker, METHOD, Wire, peers_of, within},
};
use bytes::BytesMut;
use h2::server::Connection;
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
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::Instant,
};
use tonic::{Code, Status, service::Routes};

mod foreign;

/// Looks often, and takes nobody for lost or gone for a moment's silence.
fn short() -> Limits {
    Limits {
        dial: Duration::from_secs(60),
        ping_busy: Duration::from_millis(50),
        ping_idle: Duration::from_millis(200),
        pong: Duration::from_secs(30),
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
    let pause = (Duration::from_secs(600), Duration::from_secs(600));
    let peers = peers_of(b"ours", None, Limits { pause, ..short() });
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
    knock(&peers, &url).await.unwrap_err();
    assert_eq!(dials.load(Ordering::SeqCst), 1);
    // After the pause it is.
    tokio::time::pause();
    tokio::time::advance(pause.0).await;
    tokio::time::resume();
    within(async {
        while dials.load(Ordering::SeqCst) < 2 {
            let _ = knock(&peers, &url).await;
            tokio::task::yield_now().await;
        }
    })
    .await;

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
    let peers = peers_of(b"ours", None, Limits { dial: Duration::from_millis(300), ..short() });
    // Nobody but the limit can end the wait, and so time need not really pass.
    tokio::time::pause();
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
    // From here on nobody but the limits can end a wait, and so time need not really pass.
    tokio::time::pause();
    let begin = Instant::now();
    let error = within(response.next()).await.unwrap_err();
    assert!(error.to_string().contains("was lost while the request was under way"), "{error}");
    let error = within(waiting.answer()).await.unwrap_err();
    assert!(matches!(error, PeerError::Lost { .. }), "{error:?}");
    assert!(begin.elapsed() < short().pong + Duration::from_secs(3));
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
        requires_tls: true,
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
    // A broker with TLS of its own does not even try.
    let error = knock(&named, &plain).await.unwrap_err();
    assert!(matches!(error, PeerError::Clear { .. }), "{error:?}");
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
