//! A small HTTP client for tests: HTTP/1.1 or HTTP/2 over TLS to the edge, one connection a request unless kept.

use super::{Field, PATIENCE};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::BoxBody};
use hyper::{Request, Response, body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{net::SocketAddr, sync::Arc};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls};

/// A request's body.
pub(crate) type Body = BoxBody<Bytes, std::io::Error>;

pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// The status of a probe, `None` if nobody answers.
pub(crate) async fn probe(address: SocketAddr, path: &str) -> Option<u16> {
    Some(text(address, path).await?.0)
}

/// Status and body of a plain GET.
pub(crate) async fn text(address: SocketAddr, path: &str) -> Option<(u16, String)> {
    let got = timeout(PATIENCE, async {
        let stream = TcpStream::connect(address).await.ok()?;
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = Request::get(path).header("host", "probe").body(full("")).ok()?;
        let response = send.send_request(request).await.ok()?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.ok()?.to_bytes();
        Some((status, String::from_utf8_lossy(&body).into_owned()))
    });
    got.await.ok()?
}

/// Sends a GET with these headers and no others to a path of the cluster, on a connection of its own.
pub(crate) async fn get(field: &Field, path: &str, headers: &[(&str, &str)]) -> Response<Incoming> {
    ask(field, "GET", path, headers).await
}

/// As [`get`], with another method.
pub(crate) async fn ask(
    field: &Field,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> Response<Incoming> {
    let mut client = Client::new(field).await;
    let uri = format!("/k8s-proxy{path}");
    let mut request = Request::builder().method(method).uri(uri).header("host", "localhost");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    client.raw(request.body(full("")).expect("a request")).await.expect("an answer")
}

/// Checks that an answer is a Kubernetes `Status` of that code; returns its message.
pub(crate) async fn status(response: Response<Incoming>, code: u16, reason: &str) -> String {
    assert_eq!(response.status().as_u16(), code, "{response:?}");
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = response.into_body().collect().await.expect("whole").to_bytes();
    let status: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((&status["kind"], &status["apiVersion"]), (&"Status".into(), &"v1".into()), "{status}");
    assert_eq!((&status["code"], &status["reason"]), (&code.into(), &reason.into()), "{status}");
    status["message"].as_str().expect("text").to_owned()
}

/// A TLS client configuration that trusts the field's CA.
pub(crate) fn tls(field: &Field, alpn: &[&[u8]]) -> Arc<rustls::ClientConfig> {
    let file = field.folder.path().join("ca.crt");
    postern_certs::client::ClientTrust::load(Some(file)).expect("CA").config(alpn)
}

/// A TLS connection to the edge.
pub(crate) async fn connect(field: &Field, alpn: &[&[u8]]) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(field.addresses.edge_tls).await.expect("edge accepts");
    stream.set_nodelay(true).expect("nodelay");
    let connector = TlsConnector::from(tls(field, alpn));
    connector.connect("localhost".try_into().expect("name"), stream).await.expect("TLS handshake")
}

/// One HTTP/1.1 connection through the edge to the Kubernetes API.
pub(crate) struct Client {
    send: http1::SendRequest<Body>,
    bearer: String,
}

impl Client {
    pub(crate) async fn new(field: &Field) -> Self {
        let stream = connect(field, &[b"http/1.1"]).await;
        let (send, connection) = http1::handshake(TokioIo::new(stream)).await.expect("handshake");
        tokio::spawn(connection.with_upgrades());
        Self { send, bearer: field.bearer() }
    }

    /// Sends a request for a path of the cluster.
    pub(crate) async fn send(&mut self, method: &str, path: &str, body: Body) -> Response<Incoming> {
        let request = self.request(method, path).body(body).expect("request");
        self.raw(request).await.expect("an answer")
    }

    /// A request with the caller's token, to be completed.
    pub(crate) fn request(&self, method: &str, path: &str) -> hyper::http::request::Builder {
        Request::builder()
            .method(method)
            .uri(format!("/k8s-proxy{path}"))
            .header("host", "localhost")
            .header("authorization", &self.bearer)
    }

    pub(crate) async fn raw(&mut self, request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        self.send.ready().await?;
        timeout(PATIENCE, self.send.send_request(request)).await.expect("an answer in time")
    }

    /// Status and whole body of a GET.
    pub(crate) async fn get(&mut self, path: &str) -> (u16, Bytes) {
        let response = self.send("GET", path, full("")).await;
        let status = response.status().as_u16();
        let body = timeout(PATIENCE, response.into_body().collect()).await.expect("in time").expect("whole");
        (status, body.to_bytes())
    }
}
