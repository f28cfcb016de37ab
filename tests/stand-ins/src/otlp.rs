//! A collector of traces: OTLP over HTTP/1.1 and over gRPC, a port each, spans kept in memory. It reads the standard's
//! messages with definitions of its own, so that a mistake in ours does not cancel out.

use bytes::{Buf, Bytes};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{
    body::Incoming,
    server::conn::{http1, http2},
    service::service_fn,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use std::{collections::BTreeMap, convert::Infallible, io, net::SocketAddr};
use tokio::{net::TcpListener, sync::watch};

/// More than any test makes.
const MOST: usize = 10_000;

/// A span as it arrived.
#[derive(Clone, Debug, Default)]
pub struct Span {
    /// `service.name` of who sent it.
    pub service: String,
    pub name: String,
    /// Hexadecimal, as in `traceparent`; likewise the next two.
    pub trace: String,
    pub id: String,
    /// Empty: it begins the trace.
    pub parent: String,
    /// Numbers as text.
    pub attributes: BTreeMap<String, String>,
    /// Empty: nothing went wrong.
    pub error: String,
    pub nanos: u64,
    /// What came with the message, names in lower case.
    pub headers: HeaderMap,
}

/// Listens until it is dropped.
#[derive(Debug)]
pub struct Collector {
    http: SocketAddr,
    grpc: SocketAddr,
    spans: watch::Receiver<Vec<Span>>,
    tasks: Vec<tokio::task::AbortHandle>,
}

impl Collector {
    /// On two ports that the system chooses.
    ///
    /// # Errors
    /// No port is free.
    pub async fn start() -> io::Result<Self> {
        let (http, grpc) = (TcpListener::bind("127.0.0.1:0").await?, TcpListener::bind("127.0.0.1:0").await?);
        let (keep, spans) = watch::channel(Vec::new());
        let addresses = (http.local_addr()?, grpc.local_addr()?);
        let tasks = vec![
            tokio::spawn(listen(http, false, keep.clone())).abort_handle(),
            tokio::spawn(listen(grpc, true, keep)).abort_handle(),
        ];
        Ok(Self { http: addresses.0, grpc: addresses.1, spans, tasks })
    }

    /// For OTLP over HTTP.
    pub fn http_url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// For OTLP over gRPC.
    pub fn grpc_url(&self) -> String {
        format!("http://{}", self.grpc)
    }

    /// What has arrived so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// The first span that fits, once it is there.
    pub async fn span(&self, fits: impl Fn(&Span) -> bool) -> Span {
        let mut spans = self.spans.clone();
        let found = spans.wait_for(|spans| spans.iter().any(&fits)).await;
        let found = found.expect("the collector listens as long as it lives");
        found.iter().find(|span| fits(span)).expect("just seen").clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::AbortHandle::abort);
    }
}

async fn listen(listener: TcpListener, grpc: bool, keep: watch::Sender<Vec<Span>>) {
    while let Ok((tcp, _)) = listener.accept().await {
        let keep = keep.clone();
        let service = service_fn(move |request| {
            let keep = keep.clone();
            async move { Ok::<_, Infallible>(receive(request, grpc, &keep).await) }
        });
        let io = TokioIo::new(tcp);
        if grpc {
            tokio::spawn(http2::Builder::new(TokioExecutor::new()).serve_connection(io, service));
        } else {
            tokio::spawn(http1::Builder::new().serve_connection(io, service));
        }
    }
}

async fn receive(
    request: Request<Incoming>,
    grpc: bool,
    keep: &watch::Sender<Vec<Span>>,
) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let path =
        if grpc { "/opentelemetry.proto.collector.trace.v1.TraceService/Export" } else { "/v1/traces" };
    let mut response = Response::new(Full::default());
    let Ok(body) = body.collect().await else { return response };
    let mut body = body.to_bytes();
    if grpc {
        response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/grpc"));
        // One message that is not compressed; its length is that of the rest.
        body.advance(body.len().min(5));
    }
    let status = match Export::decode(body) {
        Ok(_) if head.uri.path() != path => 12,
        Err(_) => 3,
        Ok(export) => {
            keep.send_modify(|spans| {
                spans.extend(export.spans(&head.headers));
                spans.truncate(MOST);
            });
            0
        }
    };
    if grpc {
        response.headers_mut().insert("grpc-status", status.into());
    } else if status != 0 {
        *response.status_mut() = StatusCode::BAD_REQUEST;
    }
    response
}

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    of_resources: Vec<OfResource>,
}

#[derive(Clone, PartialEq, Message)]
struct OfResource {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    of_scopes: Vec<OfScope>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, Message)]
struct OfScope {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Received>,
}

#[derive(Clone, PartialEq, Message)]
struct Received {
    #[prost(bytes = "vec", tag = "1")]
    trace: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
    #[prost(message, optional, tag = "15")]
    status: Option<SpanStatus>,
}

#[derive(Clone, PartialEq, Message)]
struct SpanStatus {
    #[prost(string, tag = "2")]
    message: String,
}

#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AttributeValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeValue {
    #[prost(string, optional, tag = "1")]
    text: Option<String>,
    #[prost(int64, optional, tag = "3")]
    number: Option<i64>,
}

impl Export {
    fn spans(self, headers: &HeaderMap) -> Vec<Span> {
        let mut all = Vec::new();
        for of_resource in self.of_resources {
            let resource = attributes(of_resource.resource.unwrap_or_default().attributes);
            let service = resource.get("service.name").cloned().unwrap_or_default();
            for span in of_resource.of_scopes.into_iter().flat_map(|scope| scope.spans) {
                all.push(Span {
                    service: service.clone(),
                    name: span.name,
                    trace: hex::encode(span.trace),
                    id: hex::encode(span.id),
                    parent: hex::encode(span.parent),
                    attributes: attributes(span.attributes),
                    error: span.status.unwrap_or_default().message,
                    nanos: span.end.saturating_sub(span.start),
                    headers: headers.clone(),
                });
            }
        }
        all
    }
}

fn attributes(given: Vec<Attribute>) -> BTreeMap<String, String> {
    given
        .into_iter()
        .map(|attribute| {
            let value = attribute.value.unwrap_or_default();
            let number = value.number.map(|number| number.to_string());
            (attribute.key, value.text.or(number).unwrap_or_default())
        })
        .collect()
}
