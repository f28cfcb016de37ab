//! `KubernetesApi.MakeRequest`: HTTP that arrives as messages goes to the Kubernetes API, the answer goes back the same
//! way, both at once and as fast as the slower side. Before it: a tunnel. After it: the API server.
//! It follows no redirect, changes no body, sets no timer of its own, queues nobody, and never logs a query, a header or a body.

mod access;
mod body;
mod impersonation;
pub mod limits;
mod upgrade;

pub(crate) use access::AnswerBody;
pub use access::{Access, AccessError, Overrides, Settings};
pub(crate) use body::RequestBody;

use crate::{
    error,
    services::{Call, Replies},
    spans::Recording,
};
use body::{Feed, Length};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version, header};
use http_body_util::BodyExt;
use limits::{Caller, Limits};
use postern_telemetry::Exporter;
use postern_wire::{
    http::{MAX_DATA, append_via, from_values, request_target, response_header, strip_hop_by_hop},
    metadata::{INTERNAL_PREFIX, Program},
    order::RequestOrder,
    proto::gitlab::agent::grpctool::{HttpRequest, HttpResponse, http_request, http_response},
};
use prost::Message as _;
use std::{pin::pin, time::Duration};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::debug;

/// The service's full name.
pub const SERVICE: &str = "gitlab.agent.kubernetes_api.rpc.KubernetesApi";
/// Its one method.
pub const METHOD: &str = "MakeRequest";

/// Old brokers do not say whether a body follows; the first message after the header tells, if it comes soon.
const BODY_COMES: Duration = Duration::from_millis(200);

/// Headers that are the caller's business with the broker, or that this hop makes anew.
const NOT_FORWARDED: &[header::HeaderName] = &[
    header::AUTHORIZATION,
    header::COOKIE,
    header::PROXY_AUTHORIZATION,
    header::HOST,
    header::CONTENT_LENGTH,
    header::EXPECT,
];

/// Serves one cluster.
pub struct KubernetesApi {
    access: Access,
    program: Program,
    limits: Limits,
    /// Absent: nothing is traced.
    exporter: Option<Exporter>,
}

impl KubernetesApi {
    /// With credentials for the cluster; `program` is what `Via` says.
    pub fn new(access: Access, program: Program) -> Self {
        Self { access, program, limits: Limits::default(), exporter: None }
    }

    /// Lets in no more than `limits` allow at any time.
    pub fn limited(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Reports requests that belong to a trace.
    pub fn traced(self, exporter: Option<Exporter>) -> Self {
        Self { exporter, ..self }
    }

    /// Serves one request. Dropping the future drops the request to the API server.
    pub async fn make_request(&self, call: Call) -> Result<(), Status> {
        let Some(limit) = self.access.request_timeout() else {
            return self.serve(call).await;
        };
        tokio::time::timeout(limit, self.serve(call)).await.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!(
                "gRPC -> HTTP: not finished within --request-timeout={limit:?}"
            )))
        })
    }

    async fn serve(&self, call: Call) -> Result<(), Status> {
        let Call { requests, replies } = call;
        let mut requests = Requests { messages: requests, order: RequestOrder::new() };
        let Some(http_request::Message::Header(header)) = requests.next().await? else {
            return Err(Status::invalid_argument("gRPC -> HTTP: the request has no header"));
        };
        let (mut head, upgrade) = self.head(&header)?;
        let mut recording =
            Recording::begin(self.exporter.as_ref(), &mut head.headers, &head.method, &head.target);
        let recording = &mut recording;
        // Held until the end of this request, whatever it will be: a watch and an upgraded connection count all along.
        let _permit = match self.limits.enter(head.caller) {
            Ok(permit) => permit,
            Err(busy) => {
                busy.answer(&head.method, &self.program, &replies).await?;
                if let Some(recording) = recording {
                    recording.answered(StatusCode::TOO_MANY_REQUESTS);
                    recording.complete();
                }
                return Ok(());
            }
        };
        let (length, first) = requests.first_of_body(header.content_length).await?;
        let (feed, body) = body::channel(length);
        let mut request = Request::new(body);
        *request.method_mut() = head.method;
        *request.uri_mut() =
            head.target.parse().map_err(|_| bad("the request's path is not one of a URL"))?;
        *request.headers_mut() = head.headers;
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());

        // The answer may begin, and even end, before the request is complete.
        let response = {
            let feeding = pin!(requests.feed(feed, first, length));
            let mut exchange = Exchange { feeding, fed: false };
            let response =
                exchange.beside(async { self.access.send(request).await.map_err(unavailable) }).await?;
            debug!(%method, path, status = response.status().as_u16(), "answered by the Kubernetes API");
            if let Some(recording) = recording {
                recording.answered(response.status());
            }
            let switching = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let answer = self.answer(&response, switching);
            exchange.beside(async { Ok(replies.send(&answer).await?) }).await?;
            if !switching {
                let sent = exchange.beside(send_body(response.into_body(), &replies)).await;
                if let (Ok(()), Some(recording)) = (&sent, recording) {
                    recording.complete();
                }
                return sent;
            }
            exchange.finish().await?;
            response
        };
        if !upgrade {
            return Err(unavailable("the API server switched protocols unasked"));
        }
        let carried = upgrade::carry(response, requests, replies).await;
        if let (Ok(()), Some(recording)) = (&carried, recording) {
            recording.complete();
        }
        carried
    }

    fn head(&self, header: &http_request::Header) -> Result<(Head, bool), Status> {
        let request = header.request.as_ref().ok_or_else(|| bad("the header is empty"))?;
        let method = Method::from_bytes(request.method.as_bytes()).map_err(|_| bad("illegal method"))?;
        let target = request_target(request).map_err(bad)?;
        let mut headers = from_values(&request.header).map_err(bad)?;
        let upgrade = headers.contains_key(header::UPGRADE);
        strip_hop_by_hop(&mut headers, upgrade);
        for name in NOT_FORWARDED {
            headers.remove(name);
        }
        remove_internal(&mut headers);
        let caller = impersonation::apply(&mut headers, header.extra.as_ref(), self.access.impersonates())
            .map_err(unavailable)?;
        append_via(&mut headers, &format!("gRPC/1.0 {}", self.program));
        Ok((Head { method, target, headers, caller }, upgrade))
    }

    fn answer(&self, response: &Response<AnswerBody>, switching: bool) -> HttpResponse {
        let mut headers = response.headers().clone();
        strip_hop_by_hop(&mut headers, switching);
        let version = match response.version() {
            Version::HTTP_10 => "1.0",
            Version::HTTP_2 => "2.0",
            _ => "1.1",
        };
        append_via(&mut headers, &format!("{version} {}", self.program));
        response_header(response.status(), &headers)
    }
}

struct Head {
    method: Method,
    target: String,
    headers: HeaderMap,
    caller: Caller,
}

fn remove_internal(headers: &mut HeaderMap) {
    let internal: Vec<_> =
        headers.keys().filter(|name| name.as_str().starts_with(INTERNAL_PREFIX)).cloned().collect();
    for name in internal {
        headers.remove(name);
    }
}

/// The caller's messages, in the order they must have.
struct Requests {
    messages: mpsc::Receiver<Bytes>,
    order: RequestOrder,
}

impl Requests {
    /// The next message, or `None` once the caller has half-closed. Cancel safe.
    async fn next(&mut self) -> Result<Option<http_request::Message>, Status> {
        let Some(bytes) = self.messages.recv().await else {
            self.order.finish().map_err(|error| Status::invalid_argument(error.to_string()))?;
            return Ok(None);
        };
        let message = HttpRequest::decode(bytes).map_err(|_| bad("a message is not an HttpRequest"))?;
        self.order.accept(&message).map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(message.message)
    }

    /// How long the body will be, and its first piece if that had to be waited for.
    async fn first_of_body(&mut self, content_length: Option<i64>) -> Result<(Length, First), Status> {
        match content_length {
            Some(0) => return Ok((Length::None, First::Unread)),
            Some(length) if length > 0 => return Ok((Length::Exact(length.unsigned_abs()), First::Unread)),
            _ => {}
        }
        match tokio::time::timeout(BODY_COMES, self.next()).await {
            Err(_) => Ok((Length::Unknown, First::Unread)),
            Ok(Ok(Some(http_request::Message::Data(data)))) => Ok((Length::Unknown, First::Data(data.data))),
            Ok(Ok(_)) => Ok((Length::None, First::Complete)),
            Ok(Err(status)) => Err(status),
        }
    }

    /// Moves the body up to the trailer, at the API server's pace.
    async fn feed(&mut self, feed: Feed, first: First, length: Length) -> Result<(), Status> {
        let mut complete = false;
        match first {
            First::Complete => complete = true,
            First::Data(data) => feed.data(data).await,
            First::Unread => {}
        }
        while !complete {
            match self.next().await? {
                Some(http_request::Message::Data(_)) if length == Length::None => {
                    return Err(Status::internal("unexpected HttpRequest_Data message received"));
                }
                Some(http_request::Message::Data(data)) => feed.data(data.data).await,
                _ => complete = true,
            }
        }
        feed.finish().await;
        Ok(())
    }
}

/// What was read to learn whether there is a body.
enum First {
    Unread,
    Data(Bytes),
    Complete,
}

/// A request body on its way beside whatever else happens.
struct Exchange<'a, F> {
    feeding: std::pin::Pin<&'a mut F>,
    fed: bool,
}

impl<F: Future<Output = Result<(), Status>>> Exchange<'_, F> {
    /// Does something while the request body goes on. A broken request ends both.
    async fn beside<T>(&mut self, other: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
        let mut other = pin!(other);
        loop {
            tokio::select! {
                biased;
                done = &mut other => return done,
                fed = &mut self.feeding, if !self.fed => {
                    self.fed = true;
                    fed?;
                }
            }
        }
    }

    /// Waits for the end of the request body.
    async fn finish(self) -> Result<(), Status> {
        if self.fed { Ok(()) } else { self.feeding.await }
    }
}

async fn send_body(mut body: AnswerBody, replies: &Replies) -> Result<(), Status> {
    while let Some(frame) = body.frame().await {
        // HTTP trailers have no place in the messages.
        let Ok(mut data) = frame.map_err(unavailable_error)?.into_data() else {
            continue;
        };
        while !data.is_empty() {
            let data = data.split_to(data.len().min(MAX_DATA));
            replies.send(&response(http_response::Message::Data(http_response::Data { data }))).await?;
        }
    }
    Ok(replies.send(&response(http_response::Message::Trailer(http_response::Trailer {}))).await?)
}

fn response(message: http_response::Message) -> HttpResponse {
    HttpResponse { message: Some(message) }
}

fn bad(what: impl std::fmt::Display) -> Status {
    Status::invalid_argument(format!("gRPC -> HTTP: {what}"))
}

fn unavailable(what: impl std::fmt::Display) -> Status {
    Status::unavailable(format!("gRPC -> HTTP: {what}"))
}

fn unavailable_error(cause: hyper::Error) -> Status {
    unavailable(error::chain(&cause))
}

/// Requests as the API client takes them.
pub(crate) type ApiRequest = Request<RequestBody>;
