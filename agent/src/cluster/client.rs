//! One request to the API server and its answer, as JSON. Every request has a deadline, every answer a largest size; a
//! server that is throttling is given the time it asks for. Never logs a query, a header or a body.

use super::{ClusterError, Kind, error::one_line};
use crate::{
    PROGRAM, error,
    kubernetes_api::{Access, AnswerBody, RequestBody},
    observability::Metrics,
};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use prometheus_client::metrics::{counter::Counter, family::Family};
use serde_json::Value;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::{sleep, timeout};
use tracing::{debug, info};

/// A call from its first byte to the last one of its answer.
pub(super) const DEADLINE: Duration = Duration::from_secs(30);
/// A page of a list may have to be read from etcd.
const LIST_DEADLINE: Duration = Duration::from_secs(60);
/// Of an answer. Objects are 1.5 MiB at most in etcd, as protobuf; a page of a list is asked for anew, and shorter.
pub(super) const MOST_BYTES: usize = 16 << 20;
/// Of the answer to something refused.
const MOST_REFUSAL: usize = 1 << 20;
/// Times that a request is made which the server has no time for.
const TRIES: u32 = 3;
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Why a request is made: its name in the metrics, and whether features are to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Discover,
    Get,
    Apply,
    Create,
    Replace,
    Delete,
    List,
    Watch,
    Event,
    Lease,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Discover => "discover",
            Self::Get => "get",
            Self::Apply => "apply",
            Self::Create => "create",
            Self::Replace => "replace",
            Self::Delete => "delete",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Event => "event",
            Self::Lease => "lease",
        }
    }

    fn deadline(self) -> Duration {
        if self == Self::List { LIST_DEADLINE } else { DEADLINE }
    }

    fn counts(self) -> bool {
        !matches!(self, Self::List | Self::Watch | Self::Event | Self::Lease)
    }
}

/// One request.
pub(super) struct Question {
    verb: Verb,
    method: Method,
    /// Path and query.
    target: String,
    body: Option<(&'static str, Bytes)>,
    /// As in `apply Deployment default/web`.
    what: String,
    /// It is about Secrets.
    secret: bool,
}

impl Question {
    pub(super) fn new(verb: Verb, method: Method, target: String, what: String) -> Self {
        Self { verb, method, target, body: None, what, secret: false }
    }

    /// With a document as its body.
    pub(super) fn with(self, content_type: &'static str, document: &Value) -> Self {
        Self { body: Some((content_type, Bytes::from(document.to_string()))), ..self }
    }

    /// About objects of a kind.
    pub(super) fn on(self, kind: &Kind) -> Self {
        Self { secret: kind.group.is_empty() && kind.kind == "Secret", ..self }
    }

    /// As events do that a watch of this question brings.
    pub(super) fn refused(&self, status: StatusCode, body: &[u8]) -> ClusterError {
        ClusterError::refused(&self.what, status, body, self.secret)
    }

    pub(super) fn unreachable(&self, cause: impl Into<String>) -> ClusterError {
        ClusterError::Unreachable { what: self.what.clone(), cause: cause.into() }
    }

    pub(super) fn odd(&self, problem: impl Into<String>) -> ClusterError {
        ClusterError::Odd { what: self.what.clone(), problem: problem.into() }
    }

    fn request(&self) -> Result<Request<RequestBody>, ClusterError> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.target)
            .header(header::ACCEPT, "application/json");
        request = request.header(header::USER_AGENT, PROGRAM.to_string());
        let body = match &self.body {
            Some((content_type, bytes)) => {
                request = request.header(header::CONTENT_TYPE, *content_type);
                RequestBody::whole(bytes.clone())
            }
            None => RequestBody::whole(Bytes::new()),
        };
        request.body(body).map_err(|_| self.odd("this makes no URL"))
    }
}

/// An answer of success.
pub(super) enum Answer {
    Whole(Bytes),
    /// More than [`MOST_BYTES`].
    TooLarge,
}

/// Makes requests.
#[derive(Clone)]
pub(super) struct Client {
    access: Access,
    calls: Arc<AtomicU64>,
    by_verb: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Client {
    pub(super) fn new(access: Access, metrics: &Metrics) -> Self {
        Self { access, calls: Arc::default(), by_verb: metrics.cluster_calls.clone() }
    }

    pub(super) fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Asks, and reads the answer.
    pub(super) async fn ask(&self, question: &Question) -> Result<Value, ClusterError> {
        match self.exchange(question).await? {
            Answer::Whole(bytes) => serde_json::from_slice(&bytes)
                .map_err(|_| question.odd("the answer is not JSON; is this the API server?")),
            Answer::TooLarge => Err(question.odd(format!("the answer is larger than {MOST_BYTES} bytes"))),
        }
    }

    /// Asks; waits and asks again while the server has no time.
    pub(super) async fn exchange(&self, question: &Question) -> Result<Answer, ClusterError> {
        let deadline = question.verb.deadline();
        let exchange = async {
            for _ in 1..TRIES {
                match self.once(question).await? {
                    Once::Throttled { wait, .. } => sleep(wait).await,
                    Once::Answered(answer) => return Ok(answer),
                }
            }
            match self.once(question).await? {
                Once::Throttled { refusal, .. } => Err(refusal),
                Once::Answered(answer) => Ok(answer),
            }
        };
        let late = |_| question.unreachable(format!("no complete answer within {deadline:?}"));
        timeout(deadline, exchange).await.map_err(late)?
    }

    /// Asks for an answer that goes on; it is a success and its body still to come.
    pub(super) async fn open(&self, question: &Question) -> Result<AnswerBody, ClusterError> {
        let opening = async {
            let response = self.send(question).await?;
            match response.status() {
                StatusCode::OK => Ok(response.into_body()),
                status => Err(question.refused(status, &refusal(response).await)),
            }
        };
        let late = |_| question.unreachable(format!("no answer within {DEADLINE:?}"));
        timeout(DEADLINE, opening).await.map_err(late)?
    }

    async fn once(&self, question: &Question) -> Result<Once, ClusterError> {
        let response = self.send(question).await?;
        let status = response.status();
        if !status.is_success() {
            let wait = retry_after(response.headers());
            let refusal = question.refused(status, &refusal(response).await);
            // What was not even begun may be asked for again, whatever it is.
            return match status {
                StatusCode::TOO_MANY_REQUESTS => Ok(Once::Throttled { wait, refusal }),
                _ => Err(refusal),
            };
        }
        tell_warnings(question, response.headers());
        match Limited::new(response.into_body(), MOST_BYTES).collect().await {
            Ok(body) => Ok(Once::Answered(Answer::Whole(body.to_bytes()))),
            Err(error) if error.is::<LengthLimitError>() => Ok(Once::Answered(Answer::TooLarge)),
            Err(error) => Err(question.unreachable(error::chain(&*error))),
        }
    }

    async fn send(&self, question: &Question) -> Result<Response<AnswerBody>, ClusterError> {
        self.by_verb.get_or_create(&[("verb", question.verb.as_str())]).inc();
        if question.verb.counts() {
            self.calls.fetch_add(1, Ordering::Relaxed);
        }
        let mut answer = self.access.send(question.request()?).await;
        // A connection that was idle may have ended just now. All but POST may be asked twice.
        if answer.is_err() && question.method != Method::POST {
            answer = self.access.send(question.request()?).await;
        }
        let response = answer.map_err(|error| question.unreachable(error::chain(&error)))?;
        debug!(what = question.what, status = response.status().as_u16(), "answered by the Kubernetes API");
        Ok(response)
    }
}

enum Once {
    Answered(Answer),
    Throttled { wait: Duration, refusal: ClusterError },
}

/// What there is of it; half of it still says something.
async fn refusal(response: Response<AnswerBody>) -> Vec<u8> {
    let mut body = Limited::new(response.into_body(), MOST_REFUSAL);
    let mut all = Vec::new();
    while let Some(Ok(frame)) = body.frame().await {
        if let Some(data) = frame.data_ref() {
            all.extend_from_slice(data);
        }
    }
    all
}

fn retry_after(headers: &HeaderMap) -> Duration {
    let asked = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    Duration::from_secs(asked.unwrap_or_default()).clamp(SHORTEST_WAIT, LONGEST_WAIT)
}

/// Misspelt fields and versions that will go: the server takes the object all the same.
fn tell_warnings(question: &Question, headers: &HeaderMap) {
    const AT_MOST: usize = 5;
    // A webhook's words about a Secret are not for the log.
    let warnings = headers.get_all(header::WARNING).iter().take(if question.secret { 0 } else { AT_MOST });
    for warning in warnings.filter_map(|value| value.to_str().ok()) {
        let words = warning.split_once('"').map_or(warning, |(_, words)| words.trim_end_matches('"'));
        info!(what = question.what, warning = one_line(words), "the API server warns");
    }
}
