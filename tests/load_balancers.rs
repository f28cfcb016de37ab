//! The edge behind real HAProxy, nginx and Envoy, configured with the very files of `deploy/load-balancers`: only addresses
//! and paths are replaced. Agents come through, callers come through, and everybody keeps their own address.

/// Starts a load balancer from its file.
mod balancer;
/// What stands behind the edge in place of a broker's Kubernetes API, and remembers whom it was asked for.
mod origin;

use crate::harness::{
    Field, Options, PATIENCE, Process,
    http::{self, Client, full},
    until,
};
use balancer::{Balancer, Kind};
use h2::client;
use http_body_util::BodyExt;
use hyper::{Request, StatusCode, client::conn::http1};
use hyper_util::rt::TokioIo;
use origin::Origin;
use std::{
    net::{Ipv4Addr, SocketAddr},
    path::Path,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

/// Whom nobody could take for a balancer.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 77);

/// A field, whose agent goes through the balancer and another edge, and the origin behind that edge.
struct Scene {
    field: Field,
    edge: Process,
    _origin: Origin,
    balancer: Balancer,
}

impl Scene {
    async fn start(kind: Kind) -> Self {
        let field = Field::with(Options { ready: false, ..Options::default() }).await;
        let origin = Origin::start().await;
        let here = field.folder.path();
        let (edge, address, admin) = start_edge(here, kind, &field, origin.address).await;
        let balancer = Balancer::start(here, kind, address, admin).await;
        Self { field, edge, _origin: origin, balancer }
    }

    /// A connection to the balancer from an address of its own.
    async fn connect(&self, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((CLIENT, 0))).unwrap();
        let stream = socket.connect(self.balancer.address).await.expect("the balancer accepts");
        stream.set_nodelay(true).unwrap();
        let connector = TlsConnector::from(http::tls(&self.field, alpn));
        let tls = timeout(PATIENCE, connector.connect("localhost".try_into().unwrap(), stream)).await;
        tls.expect("in time").expect("TLS through the balancer")
    }
}

/// A second edge, from the file of `deploy/load-balancers` that goes with this kind.
async fn start_edge(
    here: &Path,
    kind: Kind,
    field: &Field,
    kubernetes_api: SocketAddr,
) -> (Process, SocketAddr, SocketAddr) {
    let (name, port) =
        if kind.ends_tls() { ("edge-behind-https.yaml", 8080) } else { ("edge-behind-tcp.yaml", 8443) };
    let agents = format!("127.0.0.1:{}", field.addresses.broker_agents.port());
    let text = balancer::deployed(
        name,
        &[
            (&format!("address: 0.0.0.0:{port}"), "address: 127.0.0.1:0"),
            ("listen: 0.0.0.0:8181", "listen: 127.0.0.1:0"),
            // The balancers of this test, and not its clients.
            ("10.0.1.0/28", "127.0.0.1/32"),
            ("127.0.0.1:8150", &agents),
            ("127.0.0.1:8154", &kubernetes_api.to_string()),
            ("pre: 20s", "pre: 0s"),
        ],
    );
    let file = here.join("edge-behind.yaml");
    std::fs::write(&file, text).unwrap();
    let arguments = ["--config".to_owned(), file.display().to_string()];
    let mut edge = Process::start("edge-behind", "postern-edge", here, &arguments, &[]);
    let address = edge.address("listening", |line| line["tls"] == !kind.ends_tls()).await;
    let admin = edge.address("admin listening", |_| true).await;
    (edge, address, admin)
}

async fn everything_works_behind(kind: Kind) {
    let mut scene = Scene::start(kind).await;
    the_balancer_is_ready(&scene).await;
    a_request_keeps_its_clients_address(&scene).await;
    an_upgrade_carries_bytes_both_ways(&scene).await;
    a_grpc_call_keeps_its_clients_address(&mut scene).await;
    agents_serve_requests(&mut scene).await;
    assert!(scene.edge.alive() && scene.balancer.process.alive());
}

/// Envoy asks an edge whether it is ready before it sends anybody there.
async fn the_balancer_is_ready(scene: &Scene) {
    until("the balancer passes requests on", async || {
        let io = scene.connect(&[b"http/1.1"]).await;
        let (mut send, connection) = http1::handshake(TokioIo::new(io)).await.ok()?;
        tokio::spawn(connection);
        let response = timeout(PATIENCE, send.send_request(ask("GET", "/version").body(full("")).unwrap()));
        (response.await.ok()?.ok()?.status() == StatusCode::OK).then_some(())
    })
    .await;
}

fn ask(method: &str, path: &str) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("host", "kas.example.com")
        .header("authorization", "Bearer caller")
}

/// With what the client itself claims to come from left out.
async fn a_request_keeps_its_clients_address(scene: &Scene) {
    let io = scene.connect(&[b"http/1.1"]).await;
    let (mut send, connection) = http1::handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    // Twice on one connection, and with a body.
    for (method, body) in [("GET", ""), ("POST", "a body of some length")] {
        let request = ask(method, "/k8s-proxy/api/v1/pods").header("x-forwarded-for", "192.0.2.1");
        let response = send.send_request(request.body(full(body)).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let said = response.into_body().collect().await.unwrap().to_bytes();
        let said = String::from_utf8(said.to_vec()).unwrap().to_lowercase();
        assert!(said.starts_with(&format!("{} /k8s-proxy/api/v1/pods ", method.to_lowercase())), "{said}");
        assert!(said.contains("host: kas.example.com\r\n"), "{said}");
        assert!(said.contains("x-forwarded-proto: https\r\n"), "{said}");
        assert!(said.ends_with(body), "{said}");
        let chain = said.lines().find_map(|line| line.strip_prefix("x-forwarded-for: ")).expect("a chain");
        let first = chain.split(',').next().unwrap().trim();
        assert_eq!(first, CLIENT.to_string(), "{said}");
        assert!(!chain.contains("192.0.2.1"), "{said}");
    }
}

async fn an_upgrade_carries_bytes_both_ways(scene: &Scene) {
    for (protocol, method) in [("websocket", "GET"), ("SPDY/3.1", "POST")] {
        let mut io = scene.connect(&[b"http/1.1"]).await;
        let head = format!(
            "{method} /k8s-proxy/api/v1/namespaces/a/pods/b/exec?stdin=1 HTTP/1.1\r\nHost: kas.example.com\r\n\
             Authorization: Bearer caller\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v5.channel.k8s.io\r\n\r\n"
        );
        io.write_all(head.as_bytes()).await.unwrap();
        let answer = origin::read_head(&mut io).await.expect("an answer");
        assert!(answer.0.starts_with("HTTP/1.1 101"), "{protocol}: {}", answer.0);
        let payload: Vec<u8> = (0..100_000u32).map(|n| (n % 251) as u8).collect();
        let (mut read, mut write) = tokio::io::split(io);
        let sent = payload.clone();
        let writing = tokio::spawn(async move {
            write.write_all(&sent).await.unwrap();
            write.flush().await.unwrap();
            write
        });
        let mut echoed = answer.1;
        while echoed.len() < payload.len() {
            let more = timeout(PATIENCE, read.read_buf(&mut echoed)).await.expect("stuck").unwrap();
            assert!(more > 0, "{protocol} ended after {} bytes", echoed.len());
        }
        assert!(echoed == payload, "{protocol}");
        drop(writing.await.unwrap());
    }
}

/// A stranger's call, which the broker refuses; the edge wrote down whose it was.
async fn a_grpc_call_keeps_its_clients_address(scene: &mut Scene) {
    let io = scene.connect(&[b"h2"]).await;
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut client, connection) = client::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let method = "/gitlab.agent.agent_registrar.rpc.AgentRegistrar/Register";
    let request = Request::post(format!("https://localhost{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("authorization", "Bearer glagent-of-a-stranger");
    let (response, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
    let mut response = timeout(PATIENCE, response).await.expect("in time").expect("an answer");
    let status = match response.headers().get("grpc-status") {
        Some(status) => status.clone(),
        None => {
            while response.body_mut().data().await.is_some() {}
            response.body_mut().trailers().await.unwrap().expect("trailers")["grpc-status"].clone()
        }
    };
    assert_eq!(status, "16");
    let line = scene.edge.logged("stream finished", |line| line["method"] == method).await;
    let address = line["client"].as_str().expect("a client").to_owned();
    assert!(address.starts_with(&CLIENT.to_string()), "{line}");
}

/// Over both transports: the agent's tunnels go through the balancer, the request comes the other way.
async fn agents_serve_requests(scene: &mut Scene) {
    let port = scene.balancer.address.port();
    let addresses =
        [format!("wss://localhost:{port}/-/kubernetes-agent/"), format!("grpcs://localhost:{port}")];
    for address in addresses {
        scene
            .field
            .replace_agent(|options| {
                options.scheme = address.clone();
                options.ready = true;
            })
            .await;
        let mut client = Client::new(&scene.field).await;
        for _ in 0..5 {
            let (status, body) = client.get("/version").await;
            assert_eq!(status, 200, "{address}: {}", String::from_utf8_lossy(&body));
        }
    }
}

#[tokio::test]
async fn everything_works_behind_haproxy_that_passes_tcp_through() {
    everything_works_behind(Kind::HaproxyTcp).await;
}

#[tokio::test]
async fn everything_works_behind_haproxy_that_ends_tls() {
    everything_works_behind(Kind::HaproxyHttps).await;
}

#[tokio::test]
async fn everything_works_behind_nginx_that_passes_tcp_through() {
    everything_works_behind(Kind::NginxStream).await;
}

#[tokio::test]
async fn everything_works_behind_nginx_that_ends_tls() {
    everything_works_behind(Kind::NginxHttp).await;
}

#[tokio::test]
async fn everything_works_behind_envoy_that_passes_tcp_through() {
    everything_works_behind(Kind::EnvoyTcp).await;
}

#[tokio::test]
async fn everything_works_behind_envoy_that_ends_tls() {
    everything_works_behind(Kind::EnvoyHttps).await;
}
