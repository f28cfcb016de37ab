//! Kubernetes API requests over HTTP/1.1, through pingora's phases in their order: decide, admit, choose, forward,
//! account. Upgrades included.
//!
//! After `transport`, or after `bridge` for callers that speak HTTP/2. Policy stands in `decide`, `admit`, `limits` and
//! `upstream`; answers in `reply`. gRPC goes another way, through `relay`.

mod failure;

use crate::access_log::{self, Fault, Line};
use crate::admit::{self, Admission};
use crate::decide::{self, Decision, Route, Upgrade};
use crate::drain::{Handle, StreamGuard, Streams};
use crate::life::Why;
use crate::limits::{Call, Limits, Permit, Reported};
use crate::listen::page;
use crate::observability::connections::Register;
use crate::observability::metrics::Metrics;
use crate::policy::Policies;
use crate::reply::{self, Reason};
use crate::silence;
use crate::trace::{Ids, Tracing};
use crate::transport::Connection;
use crate::upstream::{Load, Outcome, Upstreams};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Digest;
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, Session, http_proxy};
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType, RetryType};
use postern_wire::metadata::LEAVING;
use postern_wire::token::TokenKey;
use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::time::Instant;

/// The body is larger than it may be.
const TOO_LARGE: ErrorType = ErrorType::HTTPStatus(413);

/// What all requests of the process share.
#[derive(Debug)]
pub struct Shared {
    pub upstreams: Arc<Upstreams>,
    pub limits: Limits,
    pub metrics: Metrics,
    pub streams: Arc<Streams>,
    pub connections: Arc<Register>,
    /// `None`: nothing is traced.
    pub tracing: Option<Tracing>,
    pub policies: Arc<Policies>,
    /// Starts the drain from within.
    pub handle: Handle,
}

/// The phases.
#[derive(Debug)]
pub struct EdgeProxy(Arc<Shared>);

/// pingora's proxy with the edge's phases in it. One per worker, so that upstream connections stay on one thread.
pub type Proxy = HttpProxy<EdgeProxy>;

/// What is known about one request so far.
pub struct Request {
    begin: Instant,
    ids: Option<Ids>,
    decision: Option<Decision>,
    token: Option<TokenKey>,
    /// Whom the caller wants to reach.
    agent: Option<u64>,
    client: Option<SocketAddr>,
    upstream: Option<SocketAddr>,
    tried: Vec<SocketAddr>,
    /// The broker that has it now, which counts it as long.
    load: Option<Load>,
    /// Its connection to that one.
    connection: RawFd,
    /// It was sent once already, to a broker that closed the connection without a word.
    again: bool,
    refused: Option<Reason>,
    /// Policies of `mode: report` that would have refused it.
    reported: Vec<Reported>,
    /// Bytes of the body so far, and how many there may be.
    body: (u64, Option<NonZeroU64>),
    /// What its limits granted, until the request is over.
    permit: Option<Permit>,
    /// Counts the request as under way until its log line.
    _guard: StreamGuard,
}

impl EdgeProxy {
    /// Whether a visitor without a request for anybody's cluster is shown what this is.
    fn may_look(&self, connection: Option<&Connection>, headers: &HeaderMap) -> bool {
        connection.is_none_or(|connection| {
            let judged = || connection.judged(headers);
            connection.admits(headers)
                && (!self.0.policies.are_configured()
                    || judged().is_none_or(|client| self.0.policies.admits(client, None).is_ok()))
        })
    }
}

/// Builds the proxy of one worker.
pub fn build(shared: Arc<Shared>) -> Arc<Proxy> {
    let conf = ServerConf { threads: 1, work_stealing: false, ..ServerConf::default() };
    Arc::new(http_proxy(&Arc::new(conf), EdgeProxy(shared)))
}

impl Request {
    fn route(&self) -> Route {
        self.decision.map_or(Route::KubernetesApi, |decision| decision.route)
    }

    /// As limits see it.
    fn call(&self, connection: Option<&Connection>, head: &RequestHeader) -> Call<'static> {
        Call {
            client: connection.map(|connection| connection.origin(&head.headers).client.ip()),
            token: self.token,
            agent: self.agent,
            ..Call::default()
        }
    }
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            begin: Instant::now(),
            ids: None,
            decision: None,
            token: None,
            agent: None,
            client: None,
            upstream: None,
            tried: Vec::new(),
            load: None,
            connection: -1,
            again: false,
            refused: None,
            reported: Vec::new(),
            body: (0, None),
            permit: None,
            _guard: self.0.streams.open(),
        }
    }

    /// No modules: the edge neither compresses nor caches.
    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {}

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> pingora::Result<bool> {
        // The 60 s default would cut an exec session that is silent, and a slow upload. Dead peers are found by TCP
        // keepalive and by the WebSocket's ping.
        session.set_read_timeout(None);
        let connection = Connection::of(session.digest());
        request.client = connection.map(|connection| connection.client);
        let head = session.req_header();
        let decision = decide::decide(head.version, head.uri.path(), &head.headers);
        request.decision = Some(decision);
        request.ids = Some(Ids::of(self.0.tracing.as_ref(), decision.purpose, &head.headers));
        if decision.route == Route::KubernetesApi
            && self.may_look(Connection::of(session.digest()), &head.headers)
            && let Some(page) = page::of(&head.method, head.uri.path(), &head.headers)
        {
            reply::show(session, page).await?;
            return Ok(true);
        }
        let Admission { token, agent, mut verdict, counting, reported, body } = admit::admit(
            &self.0,
            Connection::of(session.digest()),
            decision,
            head.version,
            &head.headers,
            head.uri.query(),
        );
        request.token = token;
        request.agent = agent;
        request.reported = reported;
        if let Some(counting) = counting {
            verdict = counting.await.and(verdict);
        }
        // What follows an upgrade is no body.
        if decision.upgrade == Upgrade::None {
            request.body.1 = body;
        }
        let verdict = verdict.and_then(|permit| match too_large(head, request.body.1) {
            Some(reason) => Err(reason),
            None => Ok(permit),
        });
        match verdict {
            Ok(permit) => {
                request.permit = Some(permit);
                Ok(false)
            }
            Err(reason) => {
                session.set_keepalive(None);
                reply::refuse(session, &reason).await?;
                request.refused = Some(reason);
                Ok(true)
            }
        }
    }

    /// Bodies whose length nobody announced.
    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end_of_stream: bool,
        request: &mut Request,
    ) -> pingora::Result<()> {
        request.body.0 += body.as_ref().map_or(0, |body| body.len() as u64);
        match request.body.1 {
            Some(most) if request.body.0 > most.get() => Err(Error::new_down(TOO_LARGE)),
            _ => Ok(()),
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> pingora::Result<Box<HttpPeer>> {
        let decision = request.decision.ok_or_else(|| Error::new_in(ErrorType::InternalError))?;
        let group = self.0.upstreams.of(decision.route);
        // What it had before has failed.
        request.load = None;
        let load = loop {
            let broker = match request.token {
                Some(token) => group.choose(&token, &request.tried),
                None => group.choose(&request.client.map(|client| client.ip()), &request.tried),
            };
            let broker = broker.ok_or_else(|| Error::new_up(ErrorType::ConnectError))?;
            if let Some(load) = broker.enter() {
                break load;
            }
        };
        request.upstream = Some(load.address);
        let broker = load.broker().clone();
        request.load = Some(load);
        let head = session.req_header();
        let bodiless = !head.headers.contains_key(http::header::TRANSFER_ENCODING)
            && head.headers.get(http::header::CONTENT_LENGTH).is_none_or(|length| length == "0");
        let bare = decision.upgrade == Upgrade::None && bodiless;
        Ok(broker.peer(decision, bare))
    }

    /// Nothing was sent yet, so any request may be tried elsewhere.
    fn fail_to_connect(
        &self,
        _session: &mut Session,
        _peer: &HttpPeer,
        request: &mut Request,
        mut error: Box<Error>,
    ) -> Box<Error> {
        let route = request.route();
        let group = self.0.upstreams.of(route);
        if let Some(load) = request.load.take() {
            load.mark_down();
            load.note(Outcome::Unreached);
            request.tried.push(load.address);
        }
        let another = group.choose(&request.token, &request.tried).is_some();
        if another {
            self.0.metrics.retry(route);
        }
        error.set_retry(another);
        error
    }

    async fn connected_to_upstream(
        &self,
        _session: &mut Session,
        _reused: bool,
        _peer: &HttpPeer,
        connection: RawFd,
        _digest: Option<&Digest>,
        request: &mut Request,
    ) -> pingora::Result<()> {
        request.connection = connection;
        Ok(())
    }

    /// The broker closed the connection, or it broke. What certainly never was a request to the broker may be sent again;
    /// so may, once, what does the same twice as once, unless its answer has begun.
    fn error_while_proxy(
        &self,
        peer: &HttpPeer,
        session: &mut Session,
        mut error: Box<Error>,
        request: &mut Request,
        reused: bool,
    ) -> Box<Error> {
        silence::waits_no_more();
        if let Some(load) = &request.load
            && error.esource() == &ErrorSource::Upstream
            && !reused
        {
            load.note(Outcome::Broken);
        }
        let whole = session.response_written().is_none() && !session.as_ref().retry_buffer_truncated();
        let unsent = whole && error.etype() == &ErrorType::WriteError && failure::is_about_head(&error);
        let head = session.req_header();
        // An exec is a GET, too.
        let plain = request.decision.is_some_and(|decision| decision.upgrade == Upgrade::None);
        let repeatable = plain && (head.method.is_safe() || reused && head.method.is_idempotent());
        let silent = matches!(error.retry, RetryType::ReusedOnly);
        let retry = unsent || whole && silent && repeatable && !std::mem::replace(&mut request.again, true);
        if retry {
            self.0.metrics.retry(request.route());
        }
        error.set_retry(retry);
        error.more_context(format!("Peer: {peer}"))
    }

    /// A broker says by its answer whether it knows the token, and in it that it is about to leave.
    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        silence::waits_no_more();
        // Anybody's OPTIONS is answered.
        let let_in = response.status.is_success() || response.status == 101;
        if let_in
            && request.token.is_some()
            && session.req_header().method != http::Method::OPTIONS
            && let Some(connection) = Connection::of(session.digest())
        {
            connection.seat.trust(request.token);
        }
        if let Some(load) = &request.load {
            load.note(Outcome::Answered);
        }
        if let Some(client) = request.client
            && let Some(told) = told(&session.req_header().method, response)
        {
            self.0.limits.finished(client.ip(), request.token, told, None);
        }
        if response.remove_header(LEAVING).is_some()
            && let Some(load) = &request.load
        {
            load.mark_leaving();
        }
        Ok(())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        let internal: Vec<HeaderName> =
            upstream.headers.keys().filter(|name| admit::is_ours(name)).cloned().collect();
        for name in internal {
            upstream.remove_header(&name);
        }
        if request.decision.is_some_and(|decision| decision.upgrade == Upgrade::Other) {
            // pingora passes such a head on as it is; what belongs to this hop must not decide about the next.
            for name in ["keep-alive", "te", "proxy-authorization", "proxy-connection", "http2-settings"] {
                upstream.remove_header(name);
            }
            upstream.insert_header(http::header::CONNECTION, "Upgrade")?;
        }
        for (name, value) in
            request.ids.iter().flat_map(|ids| ids.changes(request.route(), &session.req_header().headers))
        {
            match value {
                Some(value) => upstream.insert_header(name, value)?,
                None => drop(upstream.remove_header(&name)),
            }
        }
        if let Some(load) = &request.load {
            silence::waits_for(load.broker(), request.connection);
        }
        let Some(connection) = Connection::of(session.digest()) else { return Ok(()) };
        let origin = connection.origin(&session.req_header().headers);
        for (name, value) in admit::forwarded(&origin) {
            upstream.insert_header(name, value)?;
        }
        Ok(())
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        request: &mut Request,
    ) -> FailToProxy {
        let begun = session.response_written().is_some();
        let reason = match failure::reason(error, request, &self.0.upstreams) {
            Some(reason) => reason,
            // Nobody is there to read an answer.
            None => return FailToProxy { error_code: 0, can_reuse_downstream: false },
        };
        // Otherwise the client sees a body that ends too early, which is the truth.
        if !begun {
            session.set_keepalive(None);
            if let Err(error) = reply::refuse(session, &reason).await {
                tracing::debug!(%error, "the answer to a failed request was not read");
            }
        }
        let error_code = reason.status().as_u16();
        request.refused = Some(reason);
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    /// The access log says it all, once.
    fn suppress_error_log(&self, _session: &Session, _request: &Request, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _request: &Request,
        _error: &Error,
        _context: pingora::proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, request: &mut Request) {
        let head = session.req_header();
        let route = request.route();
        let status = session.response_written().map_or(0, |response| response.status.as_u16());
        let refused = request.refused.as_ref().map(Reason::name);
        let connection = Connection::of(session.digest());
        let cut = connection.and_then(|connection| connection.seat.cut());
        let fault = match (error, &request.refused) {
            // Nobody left: the edge ended the connection.
            (Some(error), _) if cut.is_some() && error.esource() == &ErrorSource::Downstream => {
                if cut == Some(Why::Denied) { Fault::Downstream } else { Fault::Internal }
            }
            (Some(error), _) => match error.esource() {
                ErrorSource::Upstream => Fault::Upstream,
                ErrorSource::Downstream => Fault::Downstream,
                ErrorSource::Internal | ErrorSource::Unset => Fault::Internal,
            },
            (None, Some(_)) => Fault::Downstream,
            (None, None) => Fault::None,
        };
        let mut body_rule = None;
        if self.0.limits.rule_bodies() {
            let call = request.call(connection, head);
            if let Some(Reason::TooLarge { .. }) = request.refused {
                body_rule = self.0.limits.body_rule(&call);
            }
            // What follows an upgrade is no body.
            if request.decision.is_some_and(|decision| decision.upgrade == Upgrade::None)
                && let Some(reported) = self.0.limits.supposed_body(&call, session.body_bytes_read() as u64)
            {
                self.0.metrics.report(&reported);
                request.reported.push(reported);
            }
        }
        let line = Line {
            connection: connection.and_then(|connection| connection.entry.as_deref()),
            certificate: connection.and_then(|connection| connection.certificate.as_deref()),
            ids: request.ids.as_ref(),
            client: request.client,
            route,
            method: head.method.as_str(),
            token: request.token,
            upstream: request.upstream,
            status,
            grpc_status: None,
            bytes_in: session.body_bytes_read(),
            bytes_out: session.body_bytes_sent(),
            duration: request.begin.elapsed(),
            fault,
            refused,
            rule: request.refused.as_ref().and_then(Reason::rule).or(body_rule.as_deref()),
            reported: &request.reported,
            error: match cut {
                Some(why) if fault == Fault::Internal || why == Why::Denied => Some(why.name()),
                _ => error.map(failure::what),
            },
        };
        access_log::finish(&self.0, &line, false);
    }
}

/// The status of a broker's answer, if that says anything about the token.
fn told(method: &Method, response: &ResponseHeader) -> Option<u16> {
    let status = response.status.as_u16();
    // A preflight is answered before anybody is authenticated, and a cluster's own 401 is none of a broker's.
    let cluster = status == 401 && !response.headers.contains_key(reply::UNAUTHORIZED);
    (method != Method::OPTIONS && !cluster).then_some(status)
}

/// A body that is announced as larger than it may be.
fn too_large(head: &RequestHeader, most: Option<NonZeroU64>) -> Option<Reason> {
    let most = most?.get();
    let length = head.headers.get(http::header::CONTENT_LENGTH)?.to_str().ok()?.parse::<u64>().ok()?;
    (length > most).then_some(Reason::TooLarge { most })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_after_authentication_say_anything_about_a_token() {
        for (method, status, unauthorized, wanted) in [
            (Method::GET, 200, false, Some(200)),
            (Method::GET, 101, false, Some(101)),
            (Method::POST, 401, true, Some(401)),
            (Method::POST, 401, false, None),
            (Method::OPTIONS, 200, false, None),
            (Method::OPTIONS, 401, true, None),
        ] {
            let mut response = ResponseHeader::build(status, None).unwrap();
            if unauthorized {
                response.insert_header(reply::UNAUTHORIZED, "true").unwrap();
            }
            assert_eq!(told(&method, &response), wanted, "{method} {status}");
        }
    }
}
