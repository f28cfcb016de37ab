//! A caller's HTTP request -> `KubernetesApi/MakeRequest` through a tunnel -> the answer, streamed both ways. It
//! comes after the Kubernetes API listener and before the tunnel; the agent's `kubernetes_api.rs` is its other end.
//!
//! There is no time limit between caller and cluster: a watch lives as long as both want it. A caller that leaves
//! cancels the request at the cluster. No body is ever held whole.

use crate::{
    auth::{self, CallerPermit, Identities},
    error::{ApiFailure, chain},
    observability::Metrics,
    tunnel::{
        registry::Registry,
        stream::{RequestHalf, ResponseHalf, TunnelError},
    },
};
use bytes::Bytes;
use futures::{FutureExt, future::Fuse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header, request::Parts};
use http_body::Body as _;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use postern_wire::{
    http as wire_http,
    metadata::{CORRELATION_ID, INTERNAL_PREFIX, Program},
    order::{OutOfOrder, ResponseOrder},
    proto::gitlab::agent::{
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
        prototool::Values,
    },
};
use prost::Message;
use rand::Rng;
use std::{collections::HashMap, io, sync::Arc, time::Duration};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

mod body;
mod upgrade;

/// What a caller receives.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

const METHOD: &str = "/gitlab.agent.kubernetes_api.rpc.KubernetesApi/MakeRequest";

/// The Kubernetes API as callers see it.
#[derive(Debug)]
pub struct KubernetesApi {
    /// Who may call.
    pub identities: Identities,
    /// Where tunnels are.
    pub registry: Arc<Registry>,
    /// Begins and ends with a slash; what follows it is the path in the cluster.
    pub url_path_prefix: String,
    /// How long a request waits for an agent that may be reconnecting.
    pub agent_wait: Duration,
    /// Who we are, for `Via` and `Server`.
    pub program: Program,
    /// Counted here.
    pub metrics: Arc<Metrics>,
    /// Every request under way.
    pub under_way: TaskTracker,
}

/// Why an answer did not come, or not whole.
#[derive(Debug, thiserror::Error)]
enum ExchangeError {
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    #[error("the agent sent an answer out of order")]
    Order(#[from] OutOfOrder),
    #[error("the agent sent something that is not an HTTP answer")]
    Decode(#[from] prost::DecodeError),
    #[error("the agent sent an answer that HTTP does not allow")]
    Head(#[from] wire_http::BadHead),
    #[error("the agent ended the request without an answer")]
    NoAnswer,
    #[error("the body of the request could not be read from the caller")]
    RequestBody(#[source] hyper::Error),
    #[error("the upgraded connection of the caller broke")]
    Upgraded(#[source] io::Error),
    #[error("the caller went away")]
    CallerGone,
    #[error("the caller may no longer reach this agent")]
    Withdrawn,
}

impl From<ExchangeError> for ApiFailure {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Withdrawn => Self::new(StatusCode::FORBIDDEN, format!("Forbidden: {error}")),
            ExchangeError::Tunnel(error) => error.into(),
            ExchangeError::RequestBody(_) => Self::new(StatusCode::BAD_REQUEST, chain(&error)),
            other => Self::new(StatusCode::BAD_GATEWAY, chain(&other)),
        }
    }
}

/// What the access log says about one request; written when it is dropped, so exactly once.
struct Account {
    trace_id: String,
    caller: String,
    agent: Option<i64>,
    method: Method,
    path: String,
    status: u16,
    outcome: &'static str,
    sent: u64,
    start: Instant,
    metrics: Arc<Metrics>,
    /// Counts the request as under way, from its head to its end, so that a drain can wait for it.
    _under_way: TaskTrackerToken,
}

impl Drop for Account {
    fn drop(&mut self) {
        self.metrics.finished(self.status);
        tracing::info!(
            target: "access", trace_id = %self.trace_id, caller = %self.caller, agent_id = self.agent,
            method = %self.method, path = %self.path, status = self.status, outcome = self.outcome,
            bytes_sent = self.sent, duration_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            "request"
        );
    }
}

impl KubernetesApi {
    /// Serves one request. Errors before the answer's head become Kubernetes `Status` documents.
    pub async fn serve(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let trace_id = format!("{:016x}", rand::rng().random::<u64>());
        let mut account = Account {
            trace_id: trace_id.clone(),
            caller: String::new(),
            agent: None,
            method: request.method().clone(),
            path: request.uri().path().chars().take(512).collect(),
            status: 0,
            outcome: "cancelled",
            sent: 0,
            start: Instant::now(),
            metrics: Arc::clone(&self.metrics),
            _under_way: self.under_way.token(),
        };
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let mut response = match self.exchange(parts, body, upgrade, &mut account).await {
            Ok(started) => started.respond(account),
            Err(failure) => {
                account.status = failure.code.as_u16();
                account.outcome = "refused";
                if failure.code.is_server_error() {
                    tracing::warn!(
                        trace_id,
                        agent_id = account.agent,
                        error = failure.message,
                        "request failed"
                    );
                }
                failure
                    .into_response(&trace_id)
                    .map(|body: Full<Bytes>| body.map_err(|e| match e {}).boxed_unsync())
            }
        };
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::try_from(trace_id) {
            headers.insert("x-request-id", id);
        }
        if let Ok(server) = HeaderValue::try_from(self.program.to_string()) {
            headers.entry(header::SERVER).or_insert(server);
        }
        response
    }

    async fn exchange(
        &self,
        parts: Parts,
        body: Incoming,
        upgrade: OnUpgrade,
        account: &mut Account,
    ) -> Result<Started, ApiFailure> {
        let path = parts.uri.path().strip_prefix(self.url_path_prefix.trim_end_matches('/'));
        let path = path.filter(|rest| rest.starts_with('/')).ok_or_else(|| {
            let prefix = &self.url_path_prefix;
            let message = format!("Bad request: URL does not start with expected prefix {prefix}");
            ApiFailure::new(StatusCode::BAD_REQUEST, message)
        })?;
        let permit = auth::caller(&self.identities, &parts.headers).await?;
        account.caller.clone_from(&permit.caller.name);
        account.agent = Some(permit.agent.0);

        let wants_upgrade = wire_http::upgrade_protocol(&parts.headers).is_some();
        let first = self.first_message(&parts, path, &body, wants_upgrade)?;
        let tunnel = tokio::select! {
            biased;
            () = permit.withdrawn() => return Err(ExchangeError::Withdrawn.into()),
            tunnel = self.registry.find(permit.agent, self.agent_wait) => tunnel?,
        };
        if wants_upgrade && !tunnel.carries_upgrades() {
            tunnel.close(Ok(()));
            return Err(ApiFailure::new(
                StatusCode::NOT_IMPLEMENTED,
                format!(
                    "agent {} is older than 15.1 and cannot carry exec, attach, cp or port-forward; upgrade agentk",
                    permit.agent
                ),
            ));
        }
        let correlation = Values { value: vec![account.trace_id.clone()] };
        let meta = HashMap::from([
            (CORRELATION_ID.to_owned(), correlation),
            ("content-type".to_owned(), Values { value: vec!["application/grpc".to_owned()] }),
        ]);
        let (to_agent, from_agent) = tunnel.open(METHOD, meta).await?;
        to_agent.send(first.encode_to_vec().into()).await?;

        let mut answer = Answer { from_agent, order: ResponseOrder::new() };
        let mut upload = upload(to_agent, body, wants_upgrade);
        // The answer may come before the request is complete, and a broken request must not wait for an answer.
        let header = tokio::select! {
            header = answer.header() => header?,
            Ok(failed) = &mut upload.failed => return Err(failed.into()),
            () = permit.withdrawn() => return Err(ExchangeError::Withdrawn.into()),
        };
        let (status, mut headers) = wire_http::response_head(&header).map_err(ExchangeError::from)?;
        let upgraded = wants_upgrade && status == StatusCode::SWITCHING_PROTOCOLS;
        if wants_upgrade && !upgraded {
            // The cluster wants no upgrade, so nothing more comes from the caller; an agent waits to be told.
            let kept = std::mem::replace(&mut upload.keep, oneshot::channel().1);
            tokio::spawn(async move {
                if let Ok(to_agent) = kept.await {
                    let _ = to_agent.close().await;
                }
            });
        }
        if status.is_informational() && !upgraded {
            return Err(ApiFailure::new(
                StatusCode::BAD_GATEWAY,
                format!("the cluster answered {status} to a request that asked for no upgrade"),
            ));
        }
        wire_http::strip_hop_by_hop(&mut headers, upgraded);
        wire_http::append_via(&mut headers, &format!("gRPC/1.0 {}", self.program));
        Ok(Started { status, headers, answer, upload, permit, upgrade: upgraded.then_some(upgrade) })
    }

    fn first_message(
        &self,
        parts: &Parts,
        path: &str,
        body: &Incoming,
        upgrade: bool,
    ) -> Result<HttpRequest, ApiFailure> {
        let mut headers = parts.headers.clone();
        let version = parts.version;
        for secret in [header::AUTHORIZATION, header::COOKIE, header::HOST] {
            headers.remove(secret);
        }
        let internal: Vec<_> =
            headers.keys().filter(|name| name.as_str().starts_with(INTERNAL_PREFIX)).cloned().collect();
        for name in internal {
            headers.remove(name);
        }
        wire_http::strip_hop_by_hop(&mut headers, upgrade);
        wire_http::append_via(&mut headers, &format!("{} {}", hop_version(version), self.program));
        let length = match body.size_hint().exact() {
            _ if upgrade || body.is_end_stream() => 0,
            Some(length) => i64::try_from(length).unwrap_or(-1),
            None => -1,
        };
        wire_http::request_header(&parts.method, path, parts.uri.query(), &headers, length, None)
            .map_err(|error| ApiFailure::new(StatusCode::BAD_REQUEST, format!("Bad request: {error}")))
    }
}

/// Sends the body in the background, or for an upgrade only says that there is none.
fn upload(to_agent: RequestHalf, body: Incoming, upgrade: bool) -> Upload {
    let (failed, has_failed) = oneshot::channel();
    let (kept, keep) = oneshot::channel();
    let task = tokio::spawn(async move {
        match body::send(&to_agent, body).await {
            // The half stays open for what follows the upgrade.
            Ok(()) if upgrade => drop(kept.send(to_agent)),
            Ok(()) => drop(to_agent.close().await),
            // The answer decides: a cluster may answer early and stop reading.
            Err(ExchangeError::Tunnel(_)) => {}
            Err(error) => drop(failed.send(error)),
        }
    });
    Upload { failed: has_failed.fuse(), keep, task: AbortOnDrop(task.abort_handle()) }
}

fn hop_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    }
}

/// The request's body on its way.
struct Upload {
    /// Resolves only if the caller's body broke.
    failed: Fuse<oneshot::Receiver<ExchangeError>>,
    /// Resolves with what an upgraded connection goes on with.
    keep: oneshot::Receiver<RequestHalf>,
    task: AbortOnDrop,
}

struct AbortOnDrop(tokio::task::AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The answer's messages, in order.
struct Answer {
    from_agent: ResponseHalf,
    order: ResponseOrder,
}

impl Answer {
    async fn next(&mut self) -> Result<Option<http_response::Message>, ExchangeError> {
        let Some(data) = self.from_agent.next().await? else {
            self.order.finish()?;
            return Ok(None);
        };
        let response = HttpResponse::decode(data)?;
        self.order.accept(&response)?;
        Ok(response.message)
    }

    async fn header(&mut self) -> Result<http_response::Header, ExchangeError> {
        match self.next().await {
            Ok(Some(http_response::Message::Header(header))) => Ok(header),
            Ok(_) => Err(ExchangeError::NoAnswer),
            Err(ExchangeError::Order(_)) => Err(ExchangeError::NoAnswer),
            Err(error) => Err(error),
        }
    }
}

/// The head of the answer is here; the rest streams.
struct Started {
    status: StatusCode,
    headers: HeaderMap,
    answer: Answer,
    upload: Upload,
    permit: CallerPermit,
    upgrade: Option<OnUpgrade>,
}

impl Started {
    fn respond(self, mut account: Account) -> Response<Body> {
        let Self { status, headers, answer, upload, permit, upgrade } = self;
        account.status = status.as_u16();
        let mut response = match upgrade {
            Some(client) => {
                tokio::spawn(upgrade::run(client, answer, upload, permit, account));
                Response::new(Full::default().map_err(|never| match never {}).boxed_unsync())
            }
            None => {
                let expected = body::expected(&account.method, status, &headers);
                Response::new(body::stream(expected, answer, upload, permit, account))
            }
        };
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// A request's message.
fn message(message: http_request::Message) -> Bytes {
    HttpRequest { message: Some(message) }.encode_to_vec().into()
}

#[cfg(test)]
mod tests;
