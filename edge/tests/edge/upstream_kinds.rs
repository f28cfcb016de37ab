//! Upstreams of every kind: TLS, WebSockets, DNS, EndpointSlices, readiness, limits of streams.

use crate::clients::{Wire, call, echo, grpc, h2, tcp};
use crate::harness::{DEADLINE, Edge, SECRET, exchange, token};
use crate::upstreams::{Agents, KubernetesApi, read_head, send_all};
use bytes::Bytes;
use http::{HeaderMap, Response};
use postern_certs::dev::Ca;
use postern_wire::sniff::{Limits, Opening, sniff};
use postern_wire::ws::{self, WsStream};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

/// The name in brokers' certificates here.
const NAME: &str = "broker.internal";

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Waits for what something else brings about.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waited = tokio::time::timeout(DEADLINE, async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    waited.await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// gRPC that echoes, on whatever the connection is.
async fn echoing(io: impl Wire) {
    let Ok(mut connection) = h2::server::handshake(io).await else { return };
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut out = respond.send_response(head, false)?;
            let mut body = request.into_body();
            while let Some(data) = body.data().await {
                let data = data?;
                body.flow_control().release_capacity(data.len())?;
                send_all(&mut out, data).await?;
            }
            out.send_trailers(HeaderMap::from_iter([(
                http::HeaderName::from_static("grpc-status"),
                http::HeaderValue::from_static("0"),
            )]))
        });
    }
}

/// A CA, what the edge shows, and the brokers' side of TLS, which asks for it.
struct Private {
    ca: Ca,
    directory: TempDir,
    acceptor: TlsAcceptor,
}

impl Private {
    fn new(alpn: &[&[u8]]) -> Self {
        let (ca, directory) = (Ca::new(), TempDir::new().unwrap());
        ca.write(directory.path()).unwrap();
        ca.issue(&["edge"]).write(directory.path()).unwrap();
        let issued = ca.issue(&[NAME]);
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().unwrap();
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_slice(issued.certificate_pem.as_bytes()).unwrap()],
                PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Self { ca, directory, acceptor: TlsAcceptor::from(Arc::new(config)) }
    }

    /// The section `tls` of an upstream.
    fn section(&self, server_name: &str) -> String {
        let at = self.directory.path().display();
        format!(
            "{{ca_file: {at}/ca.crt, certificate_file: {at}/tls.crt, key_file: {at}/tls.key, server_name: {server_name}}}"
        )
    }
}

#[tokio::test]
async fn brokers_behind_tls_are_reached_with_a_private_ca_and_a_certificate_that_may_change() {
    let private = Private::new(&[b"h2", b"http/1.1"]);
    let (agents, agents_address) = listener().await;
    let shown: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    tokio::spawn({
        let (acceptor, shown) = (private.acceptor.clone(), shown.clone());
        async move {
            while let Ok((tcp, _)) = agents.accept().await {
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                shown.lock().unwrap().push(tls.get_ref().1.peer_certificates().unwrap()[0].to_vec());
                tokio::spawn(echoing(tls));
            }
        }
    });
    let (api, api_address) = listener().await;
    tokio::spawn({
        let acceptor = private.acceptor.clone();
        async move {
            while let Ok((tcp, _)) = api.accept().await {
                let Ok(mut tls) = acceptor.accept(tcp).await else { continue };
                tokio::spawn(async move {
                    read_head(&mut tls).await?;
                    tls.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.ok()?;
                    tls.shutdown().await.ok()
                });
            }
        }
    });
    let upstreams = format!(
        "agents: {{addresses: ['{agents_address}'], protocol: h2s, tls: {tls}}}\n  \
         kubernetes_api: {{addresses: ['{api_address}'], protocol: https, tls: {tls}}}",
        tls = private.section(NAME)
    );
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    edge.probe("/readiness", 200).await;
    let client = h2(tcp(edge.plain).await).await;
    echo(&client, &token("agent")).await;
    let request = format!(
        "GET /api HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: {}\r\n\r\n",
        token("caller")
    );
    for _ in 0..2 {
        let answer = exchange(edge.plain, request.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("ok"), "{answer}");
    }
    let before = shown.lock().unwrap()[0].clone();
    private.ca.issue(&["edge"]).write(private.directory.path()).unwrap();
    until("another certificate is shown", async || {
        let shown = shown.lock().unwrap();
        *shown.last().unwrap() != before
    })
    .await;
    echo(&client, &token("agent")).await;
    let answer = exchange(edge.plain, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_broker_with_another_name_in_its_certificate_is_not_spoken_to() {
    let private = Private::new(&[b"h2"]);
    let (listener, address) = listener().await;
    let acceptor = private.acceptor.clone();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok(tls) = acceptor.accept(tcp).await {
                tokio::spawn(echoing(tls));
            }
        }
    });
    let upstreams = format!(
        "agents: {{addresses: ['{address}'], protocol: h2s, tls: {tls}}}\n  \
         kubernetes_api: {{addresses: ['{address}'], protocol: https, tls: {tls}}}",
        tls = private.section("other.internal")
    );
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    let client = h2(tcp(edge.plain).await).await;
    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await.status().await;
    assert_eq!(code, 14);
    assert!(message.contains("TLS handshake failed"), "{message}");
    let request = format!(
        "GET /api HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: {}\r\n\r\n",
        token("caller")
    );
    let answer = exchange(edge.plain, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

/// Upgrades as a kas with `websocket: true`, notes what was asked for, and echoes.
async fn tunnelled(mut io: impl Wire, asked: Arc<Mutex<Vec<(String, String)>>>) {
    let Ok(Opening::Http1 { head, mut read }) = sniff(&mut io, Limits::default()).await else { return };
    let behind = read.split_off(head.size());
    let text = |name: &str| head.headers.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    asked.lock().unwrap().push((text("host"), text("user-agent")));
    let accepted = ws::accept(&head, &HeaderMap::new()).unwrap();
    io.write_all(&accepted.response).await.unwrap();
    echoing(WsStream::listener(io, behind.freeze(), None)).await;
}

#[tokio::test]
async fn a_kas_that_listens_with_websockets_is_spoken_to_through_one() {
    for protocol in ["ws", "wss"] {
        let private = Private::new(&[]);
        let acceptor = (protocol == "wss").then(|| private.acceptor.clone());
        let asked: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let (listener, address) = listener().await;
        tokio::spawn({
            let asked = Arc::clone(&asked);
            async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let (acceptor, asked) = (acceptor.clone(), asked.clone());
                    tokio::spawn(async move {
                        match acceptor {
                            None => tunnelled(tcp, asked).await,
                            Some(acceptor) => {
                                if let Ok(tls) = acceptor.accept(tcp).await {
                                    tunnelled(tls, asked).await;
                                }
                            }
                        }
                    });
                }
            }
        });
        let tls = if protocol == "wss" { format!(", tls: {}", private.section(NAME)) } else { String::new() };
        let upstreams = format!("agents: {{addresses: ['{address}'], protocol: {protocol}{tls}}}");
        let edge = Edge::start_with(&upstreams, "", &[]).await;
        edge.probe("/readiness", 200).await;
        let client = h2(tcp(edge.plain).await).await;
        for _ in 0..3 {
            echo(&client, &token("agent")).await;
        }
        let host = if protocol == "wss" { NAME.to_owned() } else { "127.0.0.1".to_owned() };
        let (asked_host, user_agent) = asked.lock().unwrap()[0].clone();
        assert_eq!(asked_host, format!("{host}:{}", address.port()));
        assert!(user_agent.starts_with("postern-edge/"), "{user_agent}");
    }
}

/// What a broker's readiness says: a status, or nothing at all.
type Ready = watch::Sender<Option<u16>>;

async fn readiness(at: SocketAddr) -> (SocketAddr, Ready) {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (ready, now) = watch::channel(Some(200));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let now = now.clone();
            tokio::spawn(async move {
                let (head, _) = read_head(&mut tcp).await?;
                assert!(head.starts_with("GET /readiness HTTP/1.1\r\n"), "{head}");
                let status = *now.borrow();
                let Some(status) = status else { return std::future::pending().await };
                let answer = format!("HTTP/1.1 {status} Whatever\r\nContent-Length: 0\r\n\r\n");
                tcp.write_all(answer.as_bytes()).await.ok()
            });
        }
    });
    (address, ready)
}

async fn told(edge: &Edge, message: &str, upstream: SocketAddr) {
    edge.line(|line| line["message"] == message && line["upstream"] == upstream.to_string()).await;
}

#[tokio::test]
async fn a_broker_that_calls_itself_unready_is_spared_though_its_listener_is_well() {
    let broker = Agents::start().await;
    let (health, ready) = readiness(([127, 0, 0, 1], 0).into()).await;
    let upstreams = format!(
        "agents: {{addresses: ['{}'], health: {{port: {}, every: 100ms}}}}",
        broker.address,
        health.port()
    );
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    edge.probe("/readiness", 200).await;
    ready.send_replace(Some(503));
    edge.probe("/readiness", 503).await;
    told(&edge, "broker is not reachable", broker.address).await;
    // It is all there is, so it is tried.
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
    ready.send_replace(Some(200));
    edge.probe("/readiness", 200).await;
}

/// Takes connections and requests, and answers none: a process that was stopped.
async fn stopped(at: SocketAddr, heard: watch::Sender<usize>) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let mut held: Vec<TcpStream> = Vec::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            if read_head(&mut tcp).await.is_some() {
                heard.send_modify(|count| *count += 1);
                held.push(tcp);
            }
        }
    });
    address
}

#[tokio::test]
async fn a_callers_request_at_a_broker_that_stopped_goes_elsewhere_or_gets_an_answer() {
    let agents = Agents::start().await;
    let (heard, mut hears) = watch::channel(0);
    let hung = stopped(([127, 0, 0, 1], 0).into(), heard).await;
    let (health, ready) = readiness(([127, 0, 0, 1], 0).into()).await;
    let upstreams = |more: &str| {
        format!(
            "agents: {{addresses: ['{}']}}\n  kubernetes_api: {{addresses: ['{hung}'{more}], \
             health: {{port: {}, every: 100ms, within: 100ms}}}}",
            agents.address,
            health.port()
        )
    };
    let ask = |method: &str, edge: &Edge| {
        let request = format!(
            "{method} /api/v1/pods HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: {}\r\n\
             Content-Length: 2\r\n\r\n{{}}",
            token("caller")
        );
        let address = edge.plain;
        tokio::spawn(async move { exchange(address, request.as_bytes()).await })
    };
    let edge = Edge::start_with(&upstreams(""), "", &[]).await;
    told(&edge, "broker is reachable", hung).await;
    let asked = ask("POST", &edge);
    tokio::time::timeout(DEADLINE, hears.wait_for(|count| *count == 1)).await.unwrap().unwrap();
    ready.send_replace(None);
    let answer = asked.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    assert!(answer.contains("fell silent") && answer.contains("\"kind\":\"Status\""), "{answer}");
    edge.access(|line| line["status"] == 504 && line["refused"] == "upstream_silent").await;
    drop(edge);

    // With another one, which is asked what may be asked twice.
    ready.send_replace(Some(200));
    let well = KubernetesApi::start().await;
    let (other, _ready) = readiness(SocketAddr::new([127, 0, 0, 2].into(), health.port())).await;
    let relayed = relay_to(SocketAddr::new(other.ip(), 0), well.address).await;
    let edge = Edge::start_with(&upstreams(&format!(", '{relayed}'")), "", &[]).await;
    told(&edge, "broker is reachable", hung).await;
    told(&edge, "broker is reachable", relayed).await;
    // Some tokens have this broker, some that.
    let before = *hears.borrow();
    let mut asked = Vec::new();
    for n in 0..16 {
        let request = format!(
            "GET /api/v1/pods HTTP/1.1\r\nHost: h\r\nConnection: close\r\nAuthorization: {}\r\n\r\n",
            token(&format!("caller-{n}"))
        );
        let address = edge.plain;
        asked.push(tokio::spawn(async move { exchange(address, request.as_bytes()).await }));
    }
    tokio::time::timeout(DEADLINE, hears.wait_for(|count| *count > before)).await.unwrap().unwrap();
    ready.send_replace(None);
    for asked in asked {
        let answer = asked.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}

/// The same server at another address.
async fn relay_to(at: SocketAddr, to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind(at).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut server = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut tcp, &mut server).await
            });
        }
    });
    address
}

#[tokio::test]
async fn brokers_are_found_by_the_name_that_they_share() {
    let broker = Agents::start().await;
    let port = broker.address.port();
    let upstreams = format!("agents: {{dns: {{name: localhost, port: {port}, every: 1s}}}}");
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    edge.probe("/readiness", 200).await;
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_yet_stops_nobody_and_is_told_to_callers() {
    let upstreams = "agents: {dns: {name: brokers.invalid, port: 8150, every: 1s}}";
    let edge = Edge::start_with(upstreams, "", &[]).await;
    edge.line(|line| line["level"] == "WARN" && line["name"] == "brokers.invalid").await;
    let client = h2(tcp(edge.plain).await).await;
    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await.status().await;
    assert_eq!(code, 14);
    assert!(message.contains("brokers.invalid:8150"), "{message}");
}

#[tokio::test]
async fn streams_beyond_what_a_broker_may_have_are_refused_with_a_hint() {
    let broker = Agents::start().await;
    let upstreams = format!("agents: {{addresses: ['{}'], max_streams: 2}}", broker.address);
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    edge.probe("/readiness", 200).await;
    let client = h2(tcp(edge.plain).await).await;
    let token = token("agent");
    let mut held = Vec::new();
    for _ in 0..2 {
        held.push(call(&client, grpc("/echo.Echo/Echo", Some(&token))).await);
    }
    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await.status().await;
    assert_eq!(code, 14);
    assert!(message.contains("upstreams.agents.max_streams"), "{message}");
    edge.access(|line| line["refused"] == "upstream_busy").await;
    let mut done = held.remove(0);
    done.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(done.status().await.0, 0);
    edge.access(|line| line["grpc_status"] == 0).await;
    until("a place is free", async || {
        let stream = call(&client, grpc("/trailers-only", Some(&token))).await;
        stream.status().await.0 == 5
    })
    .await;
}

/// As much of a Kubernetes API as lists and watches the EndpointSlices of one Service.
struct Cluster {
    address: SocketAddr,
    slices: watch::Sender<Vec<serde_json::Value>>,
}

impl Cluster {
    async fn start(slices: Vec<serde_json::Value>) -> Self {
        let (listener, address) = listener().await;
        let (slices, state) = watch::channel(slices);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(Self::serve(tcp, state.clone()));
            }
        });
        Self { address, slices }
    }

    async fn serve(mut tcp: TcpStream, mut state: watch::Receiver<Vec<serde_json::Value>>) -> Option<()> {
        loop {
            let (head, _) = read_head(&mut tcp).await?;
            let path = "GET /apis/discovery.k8s.io/v1/namespaces/postern/endpointslices?";
            assert!(head.starts_with(path), "{head}");
            assert!(head.contains("labelSelector=kubernetes.io%2Fservice-name%3Dbroker"), "{head}");
            if !head.contains("watch=true") {
                let items = state.borrow_and_update().clone();
                let list = serde_json::json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
                    "metadata": {"resourceVersion": "1"}, "items": items,
                })
                .to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{list}",
                    list.len()
                );
                tcp.write_all(answer.as_bytes()).await.ok()?;
                continue;
            }
            tcp.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            )
            .await
            .ok()?;
            // What came between the list and this.
            state.mark_changed();
            loop {
                state.changed().await.ok()?;
                let slices = state.borrow_and_update().clone();
                for slice in slices {
                    let event = format!("{}\n", serde_json::json!({"type": "MODIFIED", "object": slice}));
                    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                    tcp.write_all(chunk.as_bytes()).await.ok()?;
                }
            }
        }
    }

    fn kubeconfig(&self, directory: &Path) -> std::path::PathBuf {
        let file = directory.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: u, user: {{token: '{SECRET}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.address
        );
        std::fs::write(&file, text).unwrap();
        file
    }
}

fn slice(version: u32, endpoints: &[(SocketAddr, bool)]) -> serde_json::Value {
    let port = endpoints[0].0.port();
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, terminating)| {
            serde_json::json!({
                "addresses": [address.ip().to_string()],
                "conditions": {"ready": !terminating, "serving": true, "terminating": terminating},
            })
        })
        .collect();
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "broker-x", "namespace": "postern", "resourceVersion": version.to_string()},
        "ports": [{"name": "agents", "port": port}],
        "endpoints": endpoints,
    })
}

#[tokio::test]
async fn brokers_of_a_service_are_followed_and_those_that_go_finish_what_they_have() {
    let one = Agents::start().await;
    let two = Agents::at(SocketAddr::new([127, 0, 0, 2].into(), one.address.port())).await;
    let cluster = Cluster::start(vec![slice(1, &[(one.address, false)])]).await;
    let directory = TempDir::new().unwrap();
    let kubeconfig = cluster.kubeconfig(directory.path());
    let upstreams = "agents: {kubernetes: {namespace: postern, service: broker, port: agents}}";
    let edge = Edge::start_with(upstreams, "", &[("KUBECONFIG", kubeconfig.as_path())]).await;
    edge.probe("/readiness", 200).await;
    let client = h2(tcp(edge.plain).await).await;
    let token = token("agent");
    let mut old = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await;
    assert_eq!(one.seen.lock().unwrap().len(), 1);

    // It terminates, another one has come.
    cluster.slices.send_replace(vec![slice(2, &[(one.address, true), (two.address, false)])]);
    told(&edge, "broker is about to leave", one.address).await;
    told(&edge, "broker is reachable", two.address).await;
    echo(&client, &token).await;
    assert_eq!(two.seen.lock().unwrap().len(), 1);

    cluster.slices.send_replace(vec![slice(3, &[(two.address, false)])]);
    told(&edge, "broker is gone from discovery", one.address).await;
    echo(&client, &token).await;
    assert_eq!((one.seen.lock().unwrap().len(), two.seen.lock().unwrap().len()), (1, 2));
    old.send(b"still here").await;
    assert_eq!(old.read(10).await, b"still here");
    old.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(old.status().await.0, 0);
    // Nothing is left of it once its last stream is over.
    edge.line(|line| line["message"] == "closed: nobody has any use for the broker").await;
}
