//! One connection to the collector, over HTTP/1.1 or gRPC, with or without TLS; dialled when there is something to
//! send, kept while it works. Before it: `exporter`, with whole messages. It retries nothing itself.

use crate::endpoint::{Endpoint, Protocol};
use crate::exporter::ExportError;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use postern_certs::client::ClientTrust;
use rustls_pki_types::ServerName;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Dial, TLS, message and answer together: OTLP's usual limit.
const EXCHANGE: Duration = Duration::from_secs(10);
/// An answer says how many spans were rejected, and why.
const ANSWER: usize = 64 * 1024;

/// Why a message did not arrive.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) why: String,
    /// Whether the standard says to try again.
    pub(crate) for_now: bool,
}

pub(crate) struct Sender {
    endpoint: Endpoint,
    headers: HeaderMap,
    tls: Option<(Arc<ClientTrust>, ServerName<'static>)>,
    connection: Option<Connection>,
}

/// Its task ends with it.
enum Connection {
    Http(http1::SendRequest<Full<Bytes>>),
    Grpc(http2::SendRequest<Full<Bytes>>),
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Sender {
    pub(crate) fn new(
        endpoint: Endpoint,
        headers: Vec<(HeaderName, HeaderValue)>,
        ca_file: Option<PathBuf>,
    ) -> Result<Self, ExportError> {
        let tls = if endpoint.tls {
            let name = || endpoint.to_string();
            let trust = ClientTrust::load(ca_file)
                .map_err(|source| ExportError::Trust { endpoint: name(), source: Box::new(source) })?;
            let server = ServerName::try_from(endpoint.host().to_owned())
                .map_err(|_| ExportError::Name { endpoint: name() })?;
            Some((trust, server))
        } else {
            None
        };
        Ok(Self { endpoint, headers: headers.into_iter().collect(), tls, connection: None })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Reads the file of CAs again when it changes, until the guard is dropped.
    pub(crate) fn keep_fresh(&self, stop: CancellationToken) -> Option<DropGuard> {
        let (trust, _) = self.tls.as_ref()?;
        let stop = stop.child_token();
        tokio::spawn(trust.keep_fresh(stop.clone()));
        Some(stop.drop_guard())
    }

    /// Sends one message and waits for the answer.
    pub(crate) async fn send(&mut self, message: Bytes) -> Result<(), Refused> {
        let sent = timeout(EXCHANGE, self.exchange(message)).await;
        let result = sent.unwrap_or_else(|_| Err(Refused::now(format!("no answer within {EXCHANGE:?}"))));
        if result.is_err() {
            self.connection = None;
        }
        result
    }

    async fn exchange(&mut self, message: Bytes) -> Result<(), Refused> {
        let closed = match &self.connection {
            Some(Connection::Http(connection)) => connection.is_closed(),
            Some(Connection::Grpc(connection)) => connection.is_closed(),
            None => true,
        };
        if closed {
            self.connection = Some(self.dial().await?);
        }
        let request = self.request(message)?;
        match self.connection.as_mut().expect("just dialled") {
            Connection::Http(connection) => {
                connection.ready().await.map_err(Refused::network)?;
                http_answer(connection.send_request(request).await.map_err(Refused::network)?).await
            }
            Connection::Grpc(connection) => {
                connection.ready().await.map_err(Refused::network)?;
                grpc_answer(connection.send_request(request).await.map_err(Refused::network)?).await
            }
        }
    }

    async fn dial(&self) -> Result<Connection, Refused> {
        let tcp = TcpStream::connect((self.endpoint.host(), self.endpoint.port())).await;
        let tcp = tcp.map_err(|error| Refused::now(format!("dial: {error}")))?;
        let io: Box<dyn Io> = match &self.tls {
            None => Box::new(tcp),
            Some((trust, name)) => {
                let protocol: &[u8] =
                    if self.endpoint.protocol == Protocol::Grpc { b"h2" } else { b"http/1.1" };
                let connector = TlsConnector::from(trust.config(&[protocol]));
                let stream = connector.connect(name.clone(), tcp).await;
                Box::new(stream.map_err(|error| Refused::now(format!("TLS: {error}")))?)
            }
        };
        let io = TokioIo::new(io);
        // Both tasks end when the connection's handle is dropped.
        Ok(match self.endpoint.protocol {
            Protocol::Http => {
                let (handle, connection) = http1::handshake(io).await.map_err(Refused::network)?;
                tokio::spawn(connection);
                Connection::Http(handle)
            }
            Protocol::Grpc => {
                let handshake = http2::handshake(TokioExecutor::new(), io);
                let (handle, connection) = handshake.await.map_err(Refused::network)?;
                tokio::spawn(connection);
                Connection::Grpc(handle)
            }
        })
    }

    fn request(&self, message: Bytes) -> Result<Request<Full<Bytes>>, Refused> {
        let Endpoint { protocol, tls, authority, path } = &self.endpoint;
        let (body, kind) = match protocol {
            Protocol::Http => (message, "application/x-protobuf"),
            Protocol::Grpc => (framed(&message)?, "application/grpc"),
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = Method::POST;
        *request.headers_mut() = self.headers.clone();
        request.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        let uri = match protocol {
            Protocol::Http => {
                let host = HeaderValue::try_from(authority.as_str());
                request.headers_mut().insert(header::HOST, host.expect("an authority is visible ASCII"));
                http::Uri::from(path.clone())
            }
            Protocol::Grpc => {
                request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
                *request.version_mut() = Version::HTTP_2;
                let scheme = if *tls { "https" } else { "http" };
                let built = http::Uri::builder()
                    .scheme(scheme)
                    .authority(authority.clone())
                    .path_and_query(path.clone());
                built.build().expect("a scheme, an authority and a path make a URI")
            }
        };
        *request.uri_mut() = uri;
        Ok(request)
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// gRPC's frame of one message that is not compressed.
fn framed(message: &Bytes) -> Result<Bytes, Refused> {
    let length = u32::try_from(message.len()).map_err(|_| Refused::final_("the message is too large"))?;
    let mut body = BytesMut::with_capacity(5 + message.len());
    body.put_u8(0);
    body.put_u32(length);
    body.put_slice(message);
    Ok(body.freeze())
}

async fn http_answer(response: Response<Incoming>) -> Result<(), Refused> {
    let status = response.status();
    // Read to its end, so that the connection can be used again.
    drop(Limited::new(response.into_body(), ANSWER).collect().await);
    match status {
        status if status.is_success() => Ok(()),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => Err(Refused::now(format!("answered {status}"))),
        status => Err(Refused::final_(format!("answered {status}"))),
    }
}

async fn grpc_answer(response: Response<Incoming>) -> Result<(), Refused> {
    let (head, body) = response.into_parts();
    if head.status != StatusCode::OK {
        return Err(Refused::final_(format!("answered {}", head.status)));
    }
    let code = |headers: &HeaderMap| headers.get("grpc-status")?.to_str().ok()?.parse::<u16>().ok();
    let status = match code(&head.headers) {
        Some(status) => Some(status),
        None => {
            let body = Limited::new(body, ANSWER).collect().await;
            let body = body.map_err(|error| Refused::now(format!("the answer broke: {error}")))?;
            body.trailers().and_then(code)
        }
    };
    match status {
        Some(0) => Ok(()),
        // Cancelled, deadline exceeded, resource exhausted, aborted, out of range, unavailable, data loss.
        Some(status @ (1 | 4 | 8 | 10 | 11 | 14 | 15)) => {
            Err(Refused::now(format!("answered gRPC status {status}")))
        }
        Some(status) => Err(Refused::final_(format!("answered gRPC status {status}"))),
        None => Err(Refused::now("answered without a gRPC status")),
    }
}

impl Refused {
    fn now(why: impl Into<String>) -> Self {
        Self { why: why.into(), for_now: true }
    }

    fn final_(why: impl Into<String>) -> Self {
        Self { why: why.into(), for_now: false }
    }

    fn network(error: hyper::Error) -> Self {
        Self::now(format!("connection: {error}"))
    }
}

#[cfg(test)]
mod tests;
