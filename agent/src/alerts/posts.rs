//! Posts alerts to GitLab, through the broker's `GitlabAccess`: a few at a time, the others wait in a bounded queue. Before
//! it: `restraint.rs`. After it: the broker, which makes the HTTP request. What GitLab does not take is given up, said
//! and counted; the next flow like it is tried again.

use crate::{
    backoff::Backoff,
    broker::{Road, gate::Refusal},
    error,
};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture, stream, stream::FuturesUnordered};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use postern_wire::{
    http::{MAX_DATA, request_header, response_head},
    order::{OutOfOrder, ResponseOrder},
    proto::gitlab::agent::{
        gitlab_access::rpc::{HeaderExtra, gitlab_access_client::GitlabAccessClient},
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
    },
};
use prost::Message as _;
use prost_types::Any;
use serde_json::{Value, json};
use std::{collections::VecDeque, error::Error as _, sync::Arc, time::Duration};
use tonic::{Code, Status, Streaming, codec::CompressionEncoding};
use tracing::debug;

/// The module of GitLab that takes alerts.
const MODULE: &str = "cilium_alert";
const EXTRA: &str = "type.googleapis.com/gitlab.agent.gitlab_access.rpc.HeaderExtra";
/// Posts at a time.
const AT_A_TIME: usize = 4;
/// Alerts that wait; more are dropped.
const WAITING: usize = 128;
/// How often GitLab is asked to take one.
const TRIES: usize = 3;
/// A whole exchange.
const EXCHANGE: Duration = Duration::from_secs(60);
const CONNECTION_END: Duration = Duration::from_millis(200);
/// Bytes of an answer that are read; nobody looks at them.
const ANSWER: usize = 64 * 1024;

/// An alert that is to be posted.
pub(crate) struct Alert {
    /// What it is known by to who counts repetitions.
    pub(crate) key: u64,
    /// `namespace/name` of the policy.
    pub(crate) policy: String,
    /// As JSON.
    pub(crate) flow: Value,
    /// The policy itself.
    pub(crate) value: Arc<Value>,
}

/// What became of one.
pub(crate) struct Posted {
    pub(crate) key: u64,
    pub(crate) policy: String,
    pub(crate) result: Result<(), PostError>,
}

/// Why GitLab has not taken an alert.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    /// The broker did not carry it, or the way to it broke.
    #[error("{}{advice}", error::status(.0), advice = unserved(.0))]
    Status(Box<Status>),
    /// GitLab said something other than 200 or 204.
    #[error("GitLab answered {0}{advice}", advice = advice(.0))]
    Answer(StatusCode),
    /// What came is not an answer.
    #[error("the broker's answer is out of order")]
    OutOfOrder(#[from] OutOfOrder),
    /// Its head cannot be read.
    #[error("the broker's answer has no readable head")]
    Head(#[from] postern_wire::http::BadHead),
    /// Nobody finished.
    #[error("no answer within {EXCHANGE:?}")]
    Slow,
}

fn advice(status: &StatusCode) -> &'static str {
    match status.as_u16() {
        403 => "; are alerts part of this GitLab's licence?",
        404 => {
            "; GitLab 15.0 and later have no network-policy alerts of their own: something must serve this path"
        }
        _ => "",
    }
}

fn unserved(status: &Status) -> &'static str {
    match status.code() {
        Code::Unimplemented => {
            "; this broker carries no requests to GitLab: remove cilium from the configuration"
        }
        _ => "",
    }
}

impl PostError {
    /// Whether another try may go better.
    fn passes(&self) -> bool {
        match self {
            // An error behind it is that of the connection. A token that is refused may be replaced by a new one.
            Self::Status(status) => {
                let code = status.code();
                matches!(code, Code::Unavailable | Code::ResourceExhausted | Code::Cancelled)
                    || code == Code::Unauthenticated
                    || status.source().is_some()
            }
            Self::Answer(status) => matches!(status.as_u16(), 429 | 502..=504),
            Self::OutOfOrder(_) | Self::Head(_) | Self::Slow => false,
        }
    }
}

/// Alerts on their way. Dropping it gives them up.
pub(crate) struct Posts {
    road: Road,
    /// The first pause before another try.
    pause: Duration,
    waiting: VecDeque<Alert>,
    under_way: FuturesUnordered<BoxFuture<'static, Posted>>,
}

impl Posts {
    /// None yet.
    pub(crate) fn new(road: Road, pause: Duration) -> Self {
        Self { road, pause, waiting: VecDeque::new(), under_way: FuturesUnordered::new() }
    }

    /// Takes an alert, or gives it back where too many wait.
    pub(crate) fn put(&mut self, alert: Alert) -> Result<(), Alert> {
        if self.waiting.len() >= WAITING {
            return Err(alert);
        }
        self.waiting.push_back(alert);
        self.start();
        Ok(())
    }

    fn start(&mut self) {
        while self.under_way.len() < AT_A_TIME
            && let Some(alert) = self.waiting.pop_front()
        {
            self.under_way.push(carry(self.road.clone(), self.pause, alert).boxed());
        }
    }

    /// What became of the next one that is done. Waits for ever while there is none; cancel safe.
    pub(crate) async fn next(&mut self) -> Posted {
        match self.under_way.next().await {
            Some(posted) => {
                self.start();
                posted
            }
            None => std::future::pending().await,
        }
    }
}

async fn carry(road: Road, pause: Duration, alert: Alert) -> Posted {
    let Alert { key, policy, flow, value } = alert;
    let body = Bytes::from(json!({"alert": {"flow": flow, "ciliumNetworkPolicy": *value}}).to_string());
    let mut backoff = Backoff::new(pause, 30 * pause, 3.0);
    let mut tries = 1;
    let result = loop {
        let error = match post(&road, &body).await {
            Ok(()) => break Ok(()),
            Err(error) if tries < TRIES && error.passes() => error,
            Err(error) => break Err(error),
        };
        tries += 1;
        let delay = backoff.step();
        debug!(policy = %policy, error = %error::chain(&error), retry_in = ?delay, "alert not posted yet");
        tokio::time::sleep(delay).await;
    };
    Posted { key, policy, result }
}

async fn post(road: &Road, body: &Bytes) -> Result<(), PostError> {
    // However long the broker is away: alerts that wait are few.
    let connection = road.connection().await;
    let mut client = GitlabAccessClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
    let exchange = async {
        let answer = client.make_request(stream::iter(messages(body)?)).await.map_err(status)?;
        read(answer.into_inner()).await
    };
    let result = tokio::time::timeout(EXCHANGE, exchange).await.unwrap_or(Err(PostError::Slow));
    match &result {
        Ok(_) => road.admitted(),
        Err(PostError::Status(status)) => {
            // That there are too many alerts, or no module for them, must not hold back the tunnels.
            let about_token = matches!(Refusal::of(status), Some(Refusal::Unauthenticated | Refusal::Later));
            if !connection.ends_within(CONNECTION_END, status).await && about_token {
                road.refused(&connection, status);
            }
        }
        Err(_) => {}
    }
    match result? {
        StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
        other => Err(PostError::Answer(other)),
    }
}

fn status(status: Status) -> PostError {
    PostError::Status(Box::new(status))
}

fn messages(body: &Bytes) -> Result<Vec<HttpRequest>, PostError> {
    let extra = HeaderExtra { module_name: MODULE.to_owned() };
    let extra = Any { type_url: EXTRA.to_owned(), value: extra.encode_to_vec() };
    let headers =
        HeaderMap::from_iter([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
    let length = i64::try_from(body.len()).unwrap_or(-1);
    let mut messages = vec![request_header(&Method::POST, "/", None, &headers, length, Some(extra))?];
    let mut rest = body.clone();
    while !rest.is_empty() {
        let data = http_request::Data { data: rest.split_to(rest.len().min(MAX_DATA)) };
        messages.push(HttpRequest { message: Some(http_request::Message::Data(data)) });
    }
    let trailer = http_request::Message::Trailer(http_request::Trailer {});
    messages.push(HttpRequest { message: Some(trailer) });
    Ok(messages)
}

/// The answer's status. The rest is read as well, so that the call ends as it should.
async fn read(mut answer: Streaming<HttpResponse>) -> Result<StatusCode, PostError> {
    let mut order = ResponseOrder::new();
    let (mut head, mut bytes) = (None, 0);
    while let Some(message) = answer.message().await.map_err(status)? {
        order.accept(&message)?;
        match message.message {
            Some(http_response::Message::Header(header)) => head = Some(response_head(&header)?.0),
            Some(http_response::Message::Data(data)) => bytes += data.data.len(),
            _ => {}
        }
        if bytes > ANSWER {
            break;
        }
    }
    head.ok_or_else(|| status(Status::unknown("the broker ended the call without an answer")))
}
