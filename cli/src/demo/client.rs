//! The demo's own HTTP/1.1 client: probes in plain, the tour through the edge over TLS with the demo's CA and nothing
//! else trusted. One connection carries one request after the other. Every wait has a deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longer than the broker waits for an agent.
const PATIENCE: Duration = Duration::from_secs(30);
const MAX_BODY: usize = 32 << 20;

/// Why a request got no usable answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClientError {
    #[error("connect to {0}")]
    Connect(SocketAddr, #[source] io::Error),
    #[error("TLS with {0}")]
    Tls(SocketAddr, #[source] io::Error),
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Late,
    #[error("the connection failed")]
    Http(#[from] hyper::Error),
    #[error("the answer broke off or is too long: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    #[error("the answer is not JSON")]
    Json(#[from] serde_json::Error),
}

/// A server and how to speak to it.
#[derive(Clone)]
pub(super) struct Server {
    address: SocketAddr,
    tls: Option<TlsConnector>,
}

impl Server {
    pub(super) fn plain(address: SocketAddr) -> Server {
        Server { address, tls: None }
    }

    /// TLS for `localhost`, trusting this CA only.
    pub(super) fn tls(address: SocketAddr, ca_pem: &str) -> Server {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            let certificate = certificate.expect("the demo wrote this PEM itself");
            roots.add(certificate).expect("the demo made this certificate itself");
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has cipher suites for every version")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Server { address, tls: Some(TlsConnector::from(Arc::new(config))) }
    }

    /// Opens a connection that sends `token` with every request.
    pub(super) async fn connect(&self, token: Option<&str>) -> Result<Connection, ClientError> {
        let opened = timeout(PATIENCE, async {
            let tcp =
                TcpStream::connect(self.address).await.map_err(|e| ClientError::Connect(self.address, e))?;
            let _ = tcp.set_nodelay(true);
            let Some(tls) = &self.tls else { return handshake(tcp).await };
            let name = ServerName::try_from("localhost").expect("localhost is a DNS name");
            let tls = tls.connect(name, tcp).await.map_err(|e| ClientError::Tls(self.address, e))?;
            handshake(tls).await
        });
        let sender = opened.await.map_err(|_| ClientError::Late)??;
        let authorization = token.map(|token| {
            let mut value = HeaderValue::try_from(format!("Bearer {token}"))
                .expect("the demo's tokens are made of header characters");
            value.set_sensitive(true);
            value
        });
        Ok(Connection { sender, authorization })
    }
}

async fn handshake<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, ClientError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(async move {
        // Whoever waits for an answer hears of it too.
        let _ = connection.await;
    });
    Ok(sender)
}

pub(super) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    authorization: Option<HeaderValue>,
}

impl Connection {
    /// Sends a request; waits for the head of its answer.
    pub(super) async fn send(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "localhost")
            .header(header::USER_AGENT, concat!("postern-demo/", env!("CARGO_PKG_VERSION")))
            .header(header::ACCEPT, "application/json");
        if let Some(value) = &self.authorization {
            request = request.header(header::AUTHORIZATION, value.clone());
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = request.body(Full::new(body)).expect("the demo's own paths and headers are valid");
        let answer = timeout(PATIENCE, async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        });
        Ok(answer.await.map_err(|_| ClientError::Late)??)
    }

    /// Sends a request and reads its whole answer.
    pub(super) async fn ask(
        &mut self,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Result<Answer, ClientError> {
        let response = self.send(method, path, body).await?;
        let (head, body) = response.into_parts();
        let body = timeout(PATIENCE, Limited::new(body, MAX_BODY).collect()).await;
        let body = body.map_err(|_| ClientError::Late)?.map_err(ClientError::Body)?.to_bytes();
        Ok(Answer { status: head.status, retry_after: head.headers.get(header::RETRY_AFTER).cloned(), body })
    }
}

pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) retry_after: Option<HeaderValue>,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(&self) -> Result<Value, ClientError> {
        Ok(serde_json::from_slice(&self.body)?)
    }

    /// What it says when it is not what was hoped for: the status, and the message of a `Status` document.
    pub(super) fn summary(&self) -> String {
        let document = self.json().unwrap_or_default();
        match document["message"].as_str() {
            Some(message) => format!("{}: {message}", self.status),
            None => format!("{}: {}", self.status, String::from_utf8_lossy(&self.body).trim()),
        }
    }
}

/// The events of a watch, one by one.
pub(super) struct Events {
    body: Incoming,
    received: Vec<u8>,
}

impl Events {
    pub(super) fn of(response: Response<Incoming>) -> Events {
        Events { body: response.into_body(), received: Vec::new() }
    }

    /// The next event; `None` when the watch has ended.
    pub(super) async fn next(&mut self) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(end) = self.received.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=end).collect();
                return Ok(Some(serde_json::from_slice(&line)?));
            }
            if self.received.len() > MAX_BODY {
                return Err(ClientError::Body("an event without end".into()));
            }
            let frame = timeout(PATIENCE, self.body.frame()).await.map_err(|_| ClientError::Late)?;
            match frame.transpose()? {
                None => return Ok(None),
                Some(frame) => self.received.extend_from_slice(&frame.into_data().unwrap_or_default()),
            }
        }
    }
}
