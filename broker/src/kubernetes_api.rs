//! A caller's HTTP request -> `KubernetesApi/MakeRequest` through a tunnel -> the answer, streamed both ways. It
//! comes after the Kubernetes API listener and before the tunnel; the agent's `kubernetes_api.rs` is its other end.
//!
//! There is no time limit between caller and cluster: a watch lives as long as both want it. A caller that leaves
//! cancels the request at the cluster. No body is ever held whole.

use crate::{
    auth::{
        Identities,
        caller::{Access, CallerPermit, Credential, Kind},
    },
    drain::{Running, SHUTTING_DOWN},
    error::{ApiFailure, Form, UNAUTHORIZED, chain},
    fleet::router::{Router, Tunnel},
    gitlab::Call,
    observability::Metrics,
    spans::Tracing,
    tunnel::stream::{ResponseHalf, TunnelError},
};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts,
};
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use postern_policies::{Live, Subject};
use postern_telemetry::TRACEPARENT;
use postern_wire::{
    http as wire_http,
    metadata::{CORRELATION_ID, INTERNAL_PREFIX, Program},
    order::{OutOfOrder, ResponseOrder},
    proto::gitlab::agent::{
        grpctool::{HttpRequest, HttpResponse, http_request, http_response},
        prototool::Values,
    },
    token::TokenKey,
};
use prost::Message;
use std::{collections::HashMap, io, sync::Arc, time::Duration};
use tokio::sync::oneshot;

mod account;
mod body;
mod client;
mod cors;
mod counted;
mod grant;
mod head;
mod rules;
mod upgrade;
mod upload;

use account::Account;
pub use client::{NoNetwork, Proxies, Transport};
pub use cors::Cors;
pub use counted::{Authorised, Counted};
use grant::Grant;
use head::Sent;
use rules::{Asked, Denied};
use upload::Upload;

/// What a caller receives.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

const METHOD: &str = "/gitlab.agent.kubernetes_api.rpc.KubernetesApi/MakeRequest";

/// The Kubernetes API as callers see it.
#[derive(Debug)]
pub struct KubernetesApi {
    /// Who may call.
    pub identities: Identities,
    /// Whose web pages may call.
    pub cors: Cors,
    /// Told of each request that is let in.
    pub counted: Arc<dyn Counted>,
    /// Where tunnels are found.
    pub router: Router,
    /// Begins and ends with a slash; what follows it is the path in the cluster.
    pub url_path_prefix: String,
    /// What callers may do, and how long for each agent.
    pub policies: Live,
    /// How long a request waits for an agent that may be reconnecting, unless a policy says otherwise.
    pub agent_wait: Duration,
    /// Who is believed about where callers are.
    pub proxies: Proxies,
    /// Who we are, for `Via` and `Server`.
    pub program: Program,
    /// Counted here.
    pub metrics: Arc<Metrics>,
    /// Every request under way.
    pub under_way: Running,
    /// Absent: nothing is traced.
    pub tracing: Option<Tracing>,
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
    #[error("the request is no longer allowed: {0}")]
    Denied(Box<Denied>),
    #[error("{SHUTTING_DOWN}")]
    ShuttingDown,
}

impl From<ExchangeError> for ApiFailure {
    fn from(error: ExchangeError) -> Self {
        match error {
            ExchangeError::Withdrawn | ExchangeError::Denied(_) => {
                Self::new(StatusCode::FORBIDDEN, format!("Forbidden: {error}"))
            }
            ExchangeError::Tunnel(error) => error.into(),
            ExchangeError::ShuttingDown => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            ExchangeError::RequestBody(_) => Self::new(StatusCode::BAD_REQUEST, chain(&error)),
            other => Self::new(StatusCode::BAD_GATEWAY, chain(&other)),
        }
    }
}

impl KubernetesApi {
    /// Serves one request. Errors before the answer's head become Kubernetes `Status` documents.
    pub async fn serve(self: Arc<Self>, mut request: Request<Incoming>) -> Response<Body> {
        let mut account =
            Account::open(&request, Arc::clone(&self.metrics), &self.under_way, self.tracing.as_ref());
        let trace_id = account.trace_id.clone();
        let form = Form::wanted(request.headers());
        let transport = request.extensions_mut().remove::<Transport>().and_then(|transport| transport.0);
        let client = self.proxies.client(transport, request.headers());
        account.comes_from(client);
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, body) = request.into_parts();
        let mut response = match self.cors.check(&parts.headers) {
            Err(cors::Foreign) => {
                let why = "Forbidden: the Origin is not that of gitlab.external_url";
                account.failed(&ApiFailure::new(StatusCode::FORBIDDEN, why));
                let mut response = Response::new(empty());
                *response.status_mut() = StatusCode::FORBIDDEN;
                response
            }
            Ok(grant) => {
                let mut response = if let Some(response) = cors::preflight(&parts.method, &parts.headers) {
                    account.preflight(response.status());
                    response.map(|()| empty())
                } else {
                    let cut = account.under_way.cut().clone();
                    let exchanged = tokio::select! {
                        biased;
                        () = cut.cancelled() => Err(ExchangeError::ShuttingDown.into()),
                        exchanged = self.exchange(parts, body, upgrade, &mut account) => exchanged,
                    };
                    match exchanged {
                        Ok(started) => started.respond(account),
                        Err(failure) => refused(failure, account, form),
                    }
                };
                grant.apply(response.headers_mut());
                response
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
        mut parts: Parts,
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
        let path = path.to_owned();
        let (permit, token) = self.admit(&parts, account).await?;
        let traced = account.through_tunnel(&mut parts.headers);

        let wants_upgrade = wire_http::upgrade_protocol(&parts.headers).is_some();
        let first = head::request(&parts, &path, &body, wants_upgrade, &permit.access, self.program)
            .inspect_err(|_| account.refuse())?;
        let project = self.identities.agent_project(&permit);
        let head = (&parts.method, &parts.headers);
        let asked = Asked::new(&permit, token, project, account.client(), head, Sent::of(&first));
        let (grant, verdict) = Grant::judged(permit, asked, &self.policies);
        account.judged(&verdict);
        if let Some(denied) = verdict.denied {
            return Err(ApiFailure::new(StatusCode::FORBIDDEN, format!("Forbidden: {denied}")));
        }
        let (permit, agent) = (&grant.permit, grant.permit.agent);
        let agent_wait = self.agent_wait(&grant.asked.subject());
        let correlation = Values { value: vec![account.trace_id.clone()] };
        let mut meta = HashMap::from([
            (CORRELATION_ID.to_owned(), correlation),
            ("content-type".to_owned(), Values { value: vec!["application/grpc".to_owned()] }),
        ]);
        if let Some(context) = traced {
            meta.insert(TRACEPARENT.to_string(), Values { value: vec![context.to_string()] });
        }
        let tunnel = tokio::select! {
            biased;
            error = grant.ended() => return Err(ended(account, error)),
            tunnel = self.router.find(agent, METHOD, &meta, agent_wait) => tunnel?,
        };
        account.routed(&tunnel);
        if let Some(lacking) = lacking(&tunnel, &permit.access, wants_upgrade) {
            account.refuse();
            let message = if tunnel.is_of_unknown_version() {
                format!(
                    "agent {agent} is connected to a broker that does not say its version, which may be older than \
                     {lacking}; that broker is a kas of another maker"
                )
            } else {
                format!("agent {agent} is older than {lacking}; upgrade agentk")
            };
            return Err(ApiFailure::new(StatusCode::NOT_IMPLEMENTED, message));
        }
        let opened = async {
            let (to_agent, from_agent) = tunnel.open(METHOD, meta).await?;
            to_agent.send(first.encode_to_vec().into()).await?;
            Ok::<_, TunnelError>((to_agent, from_agent))
        };
        let (to_agent, from_agent) = tokio::select! {
            biased;
            error = grant.ended() => return Err(ended(account, error)),
            opened = opened => opened?,
        };

        let mut answer = Answer { from_agent, order: ResponseOrder::new() };
        let mut upload = Upload::begin(to_agent, body, wants_upgrade, account.received());
        // The answer may come before the request is complete, and a broken request must not wait for an answer.
        let header = tokio::select! {
            header = answer.header() => header?,
            Ok(failed) = &mut upload.failed => return Err(failed.into()),
            error = grant.ended() => return Err(ended(account, error)),
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
        drop_internal(&mut headers);
        wire_http::append_via(&mut headers, &format!("gRPC/1.0 {}", self.program));
        cors::drop_foreign(&mut headers);
        if permit.kind == Kind::SessionCookie {
            // A cluster must not set cookies where GitLab's own are.
            headers.remove(header::SET_COOKIE);
        }
        let upgrade = upgraded.then_some(upgrade);
        Ok(Started { status, headers, answer, upload, grant, upgrade, method: parts.method })
    }

    /// The caller's token is not the agent's, which is the one that policies about tunnels are for.
    fn agent_wait(&self, asked: &Subject<'_>) -> Duration {
        let agent = Subject { token_hash: None, client: None, ..*asked };
        let set = self.policies.set();
        set.tunnels.agent_wait.find(&agent).map_or(self.agent_wait, |ruled| *ruled.value)
    }

    async fn admit(
        &self,
        parts: &Parts,
        account: &mut Account,
    ) -> Result<(CallerPermit, TokenKey), ApiFailure> {
        let credential = Credential::read(self.identities.issuer(), &parts.headers, parts.uri.query())?;
        account.claimed(&credential);
        let token = credential.token;
        let call = Call { deadline: None, correlation_id: Some(account.trace_id.clone()), ..Call::default() };
        match self.identities.admit(credential, &call).await {
            Ok(permit) => {
                account.allowed(&permit);
                self.counted.authorised(&Authorised::from(&permit));
                Ok((permit, token))
            }
            Err(refusal) => {
                account.known(refusal.who);
                Err(refusal.failure)
            }
        }
    }
}

/// What this request needs and the agent cannot do, and since when agents can.
fn lacking(tunnel: &Tunnel, access: &Access, upgrade: bool) -> Option<String> {
    match access {
        // An older one would not even notice.
        Access::As { mode, .. } if !tunnel.carries_impersonation() => {
            Some(format!("14.3 and cannot carry access_as {mode} (it would use its own rights instead)"))
        }
        _ if upgrade && !tunnel.carries_upgrades() => {
            Some("15.1 and cannot carry exec, attach, cp or port-forward".to_owned())
        }
        _ => None,
    }
}

/// What only this broker may say, to the edge and of tokens; a cluster may answer anything.
fn drop_internal(headers: &mut HeaderMap) {
    let internal = |name: &&HeaderName| name.as_str().starts_with(INTERNAL_PREFIX) || *name == UNAUTHORIZED;
    let internal: Vec<_> = headers.keys().filter(internal).cloned().collect();
    for name in internal {
        headers.remove(name);
    }
}

fn empty() -> Body {
    Full::default().map_err(|never| match never {}).boxed_unsync()
}

fn ended(account: &mut Account, error: ExchangeError) -> ApiFailure {
    account.ends(&error);
    error.into()
}

fn refused(failure: ApiFailure, mut account: Account, form: Form) -> Response<Body> {
    account.failed(&failure);
    let (trace_id, agent_id) = (account.trace_id.as_str(), account.agent);
    let (error, cause) = (failure.message.as_str(), failure.cause.as_deref());
    if failure.code.is_server_error() {
        tracing::warn!(trace_id, agent_id, error, cause, "request failed");
    } else if cause.is_some() {
        tracing::debug!(trace_id, agent_id, error, cause, "request refused");
    }
    failure.into_response(trace_id, form).map(|body: Full<Bytes>| body.map_err(|e| match e {}).boxed_unsync())
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
    grant: Grant,
    upgrade: Option<OnUpgrade>,
    method: Method,
}

impl Started {
    fn respond(self, mut account: Account) -> Response<Body> {
        let Self { status, headers, answer, upload, grant, upgrade, method } = self;
        account.status = status.as_u16();
        let mut response = match upgrade {
            Some(client) => {
                let websocket = headers
                    .get(header::UPGRADE)
                    .is_some_and(|protocol| protocol.as_bytes().eq_ignore_ascii_case(b"websocket"));
                tokio::spawn(upgrade::run((client, websocket), answer, upload, grant, account));
                Response::new(empty())
            }
            None => {
                let expected = body::expected(&method, status, &headers);
                let events = body::Events::of(&headers, &grant);
                Response::new(body::stream((expected, events), answer, upload, grant, account))
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
