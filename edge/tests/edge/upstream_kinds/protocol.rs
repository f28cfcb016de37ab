//! Brokers behind TLS with a private CA, behind a WebSocket, and behind both.

use super::listener;
use crate::clients::{Wire, call, echo, grpc, h2, tcp};
use crate::harness::{Edge, exchange, token, until};
use crate::upstreams::{read_head, send_all};
use http::{HeaderMap, Response};
use postern_certs::dev::Ca;
use postern_wire::sniff::{Limits, Opening, sniff};
use postern_wire::ws::{self, WsStream};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use std::sync::{Arc, Mutex};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio_rustls::TlsAcceptor;

/// The name in brokers' certificates here.
const NAME: &str = "broker.internal";

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
        (*shown.last().unwrap() != before).then_some(())
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
