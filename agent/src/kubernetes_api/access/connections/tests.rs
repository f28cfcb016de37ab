//! Connections to a server over TLS in this process, which says how each request came.

use super::*;
use http::{Request, StatusCode, Version};
use http_body_util::{BodyExt, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::{client::legacy::connect::HttpConnector, rt::TokioIo};
use postern_certs::dev::Ca;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use std::{
    convert::Infallible,
    sync::atomic::{AtomicUsize, Ordering::SeqCst},
};
use tokio::{net::TcpListener, sync::watch};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt;

const SOON: Duration = Duration::from_secs(60);

struct Server {
    config: Config,
    seen: Arc<Seen>,
    leave: watch::Sender<u32>,
}

/// How it serves HTTP/2.
#[derive(Clone, Copy)]
enum Serving {
    /// So many streams of a connection at a time.
    Streams(u32),
    /// None, however often it is asked.
    Refusing,
}

#[derive(Default)]
struct Seen {
    opened: AtomicUsize,
    open_streams: AtomicUsize,
    drops: AtomicUsize,
}

struct Open(Arc<Seen>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open_streams.fetch_sub(1, SeqCst);
    }
}

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// `/watch`: an answer that says nothing. `/flood`: one that never ends; `/drops`: likewise, in pieces of two bytes. Others:
/// which version the request came in.
async fn answer(mut request: Request<Incoming>, seen: Arc<Seen>) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    if request.headers().contains_key(header::UPGRADE) {
        tokio::spawn(async move { hyper::upgrade::on(&mut request).await.map(drop) });
        let answer = Response::builder()
            .status(StatusCode::SWITCHING_PROTOCOLS)
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "SPDY/3.1");
        return Ok(answer.body(Empty::new().boxed_unsync()).unwrap());
    }
    if !matches!(path.as_str(), "/watch" | "/flood" | "/drops") {
        let version = if request.version() == Version::HTTP_2 { "2" } else { "1.1" };
        return Ok(Response::new(Full::from(version).boxed_unsync()));
    }
    seen.open_streams.fetch_add(1, SeqCst);
    let open = Open(seen);
    let pieces = futures::stream::unfold(open, move |open| {
        let piece: Option<&[u8]> = match path.as_str() {
            "/flood" => Some(&[7; 16 << 10]),
            "/drops" => Some(&[7; 2]),
            _ => None,
        };
        async move {
            let Some(piece) = piece else { return std::future::pending().await };
            open.0.drops.fetch_add(1, SeqCst);
            Some((Ok(Frame::data(Bytes::from_static(piece))), open))
        }
    });
    Ok(Response::new(StreamBody::new(pieces).boxed_unsync()))
}

impl Server {
    async fn start(protocols: &[&str]) -> Self {
        Self::serving(protocols, Serving::Streams(100)).await
    }

    async fn serving(protocols: &[&str], serving: Serving) -> Self {
        postern_certs::install_provider();
        let ca = Ca::new();
        let issued = ca.issue(&["127.0.0.1"]);
        let chain = vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()];
        let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap();
        let mut tls =
            rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
        tls.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let acceptor = TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let seen = Arc::new(Seen::default());
        let leave = watch::Sender::new(0);
        let (told, counts) = (leave.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, seen, mut told) = (acceptor.clone(), Arc::clone(&counts), told.subscribe());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    seen.opened.fetch_add(1, SeqCst);
                    let is_2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
                    let service = service_fn(move |request| answer(request, Arc::clone(&seen)));
                    if !is_2 {
                        let connection =
                            http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                        let _ = connection.with_upgrades().await;
                        return;
                    }
                    let Serving::Streams(streams) = serving else {
                        let mut connection = h2::server::handshake(stream).await.unwrap();
                        while let Some(Ok((_, mut respond))) = connection.accept().await {
                            respond.send_reset(h2::Reason::REFUSED_STREAM);
                        }
                        return;
                    };
                    let mut builder = http2::Builder::new(TokioExecutor::new());
                    let connection = builder
                        .max_concurrent_streams(streams)
                        .serve_connection(TokioIo::new(stream), service);
                    let mut connection = std::pin::pin!(connection);
                    tokio::select! {
                        _ = &mut connection => return,
                        _ = told.changed() => connection.as_mut().graceful_shutdown(),
                    }
                    let _ = connection.await;
                });
            }
        });
        let mut config = Config::new(url.parse().unwrap());
        config.root_cert = Some(vec![CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap().to_vec()]);
        Self { config, seen, leave }
    }

    fn connections(&self) -> Connections<HttpConnector> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        Connections::new(&self.config, tcp).unwrap()
    }

    fn opened(&self) -> usize {
        self.seen.opened.load(SeqCst)
    }

    /// Waits until so many endless answers are open here.
    async fn serves(&self, count: usize) {
        let all = async {
            while self.seen.open_streams.load(SeqCst) != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, all).await.expect("as many are open");
    }

    async fn get(&self, by: &Connections<HttpConnector>, path: &str) -> Response<AnswerBody> {
        self.send(by, path, |request| request).await
    }

    async fn send(
        &self,
        by: &Connections<HttpConnector>,
        path: &str,
        with: impl Fn(http::request::Builder) -> http::request::Builder,
    ) -> Response<AnswerBody> {
        let url = format!("{}{}", self.config.cluster_url.to_string().trim_end_matches('/'), path);
        let request = with(Request::get(url)).body(RequestBody::whole(Bytes::new())).unwrap();
        self.ask(by, request).await
    }

    async fn ask(&self, by: &Connections<HttpConnector>, request: ApiRequest) -> Response<AnswerBody> {
        tokio::time::timeout(SOON, by.clone().oneshot(request)).await.expect("an answer in time").unwrap()
    }

    /// Which version of HTTP a short request takes.
    async fn version(&self, by: &Connections<HttpConnector>) -> String {
        said(self.get(by, "/").await).await
    }
}

async fn said(answer: Response<AnswerBody>) -> String {
    let body = tokio::time::timeout(SOON, answer.into_body().collect()).await.expect("an answer that ends");
    String::from_utf8(body.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn hundreds_of_watches_share_a_few_connections() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let connections = server.connections();
    let mut watches = Vec::new();
    for _ in 0..250 {
        watches.push(server.get(&connections, "/watch").await);
    }
    server.serves(250).await;
    assert_eq!(server.opened(), 3);
    watches.drain(..100);
    // Cancelled at the server, too.
    server.serves(150).await;
    for _ in 0..100 {
        watches.push(server.get(&connections, "/watch").await);
    }
    server.serves(250).await;
    assert_eq!((server.opened(), server.version(&connections).await.as_str()), (3, "2"));
}

#[tokio::test]
async fn callers_that_do_not_read_hold_up_nobody() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let connections = server.connections();
    let mut unread = Vec::new();
    for _ in 0..STREAMS - 1 {
        unread.push(server.get(&connections, "/flood").await);
    }
    for _ in 0..20 {
        assert_eq!(server.version(&connections).await, "2");
    }
    assert_eq!(server.opened(), 1);
    let mut body = unread.swap_remove(7).into_body();
    for _ in 0..100 {
        assert!(!body.frame().await.unwrap().unwrap().into_data().unwrap().is_empty());
    }
}

#[tokio::test]
async fn the_smallest_frames_that_nobody_reads_hold_up_nobody_either() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let connections = server.connections();
    let unread = server.get(&connections, "/drops").await;
    let window = STREAM_WINDOW as usize / 2;
    let full = async {
        while server.seen.drops.load(SeqCst) < window {
            assert_eq!(server.version(&connections).await, "2");
        }
    };
    tokio::time::timeout(SOON, full).await.expect("as much as the window holds");
    assert_eq!((server.version(&connections).await.as_str(), server.opened()), ("2", 1));
    let mut body = unread.into_body();
    for _ in 0..1000 {
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 2);
    }
}

#[tokio::test]
async fn what_has_a_body_or_is_said_by_programs_has_a_connection_of_its_own() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let connections = server.connections();
    let url = |path: &str| format!("{}{path}", server.config.cluster_url.to_string().trim_end_matches('/'));
    let alone = [
        (Method::POST, "/api/v1/namespaces/a/configmaps", "{}"),
        (Method::GET, "/api/v1/namespaces/a/configmaps?watch=1", "{}"),
        (Method::DELETE, "/api/v1/namespaces/a/configmaps/b", ""),
        (Method::GET, "/api/v1/namespaces/a/pods/b/log?follow=1", ""),
        (Method::GET, "/api/v1/namespaces/a/services/b/proxy/c", ""),
    ];
    for (method, path, body) in alone {
        let body = RequestBody::whole(Bytes::from_static(body.as_bytes()));
        let request = Request::builder().method(method).uri(url(path)).body(body).unwrap();
        assert_eq!(said(server.ask(&connections, request).await).await, "1.1", "{path}");
    }
    for path in ["/api/v1/pods?watch=1", "/apis/apps/v1/namespaces/logs-of-a/deployments/proxying"] {
        assert_eq!(said(server.get(&connections, path).await).await, "2", "{path}");
    }
}

#[tokio::test]
async fn what_the_server_did_not_begin_is_asked_again_alone() {
    let server = Server::serving(&["h2", "http/1.1"], Serving::Refusing).await;
    assert_eq!(server.version(&server.connections()).await, "1.1");
    // Fewer streams than are asked of it: the next one would wait until one of the others ends.
    let server = Server::serving(&["h2", "http/1.1"], Serving::Streams(5)).await;
    let connections = Connections { begins: Duration::from_secs(1), ..server.connections() };
    let mut watches = Vec::new();
    for _ in 0..5 {
        watches.push(server.get(&connections, "/watch").await);
    }
    server.version(&connections).await;
}

#[tokio::test]
async fn what_switches_protocols_has_a_connection_of_its_own() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let connections = server.connections();
    assert_eq!(server.version(&connections).await, "2");
    let asks = |request: http::request::Builder| {
        request.header(header::CONNECTION, "upgrade").header(header::UPGRADE, "SPDY/3.1")
    };
    let answer = server.send(&connections, "/exec", asks).await;
    assert_eq!(answer.status(), StatusCode::SWITCHING_PROTOCOLS);
    hyper::upgrade::on(answer).await.unwrap();
    assert_eq!(server.opened(), 2);
}

#[tokio::test]
async fn what_no_shared_connection_has_room_for_has_one_of_its_own() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let connections = server.connections();
    let taken: Vec<_> =
        connections.shared.iter().map(|shared| shared.room.clone().try_acquire_many_owned(99)).collect();
    let mut watches = Vec::new();
    for _ in 0..SHARED {
        watches.push(server.get(&connections, "/watch").await);
    }
    assert_eq!((server.opened(), server.version(&connections).await.as_str()), (SHARED, "1.1"));
    drop((taken, watches));
    assert_eq!(server.version(&connections).await, "2");
}

#[tokio::test]
async fn a_server_without_http2_is_spoken_to_in_its_own() {
    for protocols in [&["http/1.1"][..], &[]] {
        let server = Server::start(protocols).await;
        let connections = server.connections();
        let watch = server.get(&connections, "/watch").await;
        for _ in 0..5 {
            assert_eq!(server.version(&connections).await, "1.1");
        }
        assert_eq!(server.opened(), 2);
        drop(watch);
    }
}

#[tokio::test]
async fn a_connection_that_the_server_leaves_is_replaced_and_what_runs_on_it_goes_on() {
    let server = Server::start(&["h2", "http/1.1"]).await;
    let connections = server.connections();
    let mut flood = server.get(&connections, "/flood").await.into_body();
    server.leave.send_modify(|times| *times += 1);
    let replaced = async {
        while server.opened() < 2 {
            assert_eq!(server.version(&connections).await, "2");
        }
    };
    tokio::time::timeout(SOON, replaced).await.expect("another connection");
    for _ in 0..100 {
        assert!(!flood.frame().await.unwrap().unwrap().into_data().unwrap().is_empty());
    }
}
