//! Every request of the edge through pingora's phases, in their order: decide, admit, choose, forward, account.
//!
//! After `transport`. Policy stands in `decide`, `limits` and `upstream`; answers in `reply`. Streams of agents come
//! this way too for now; they part from it where [`serve`] hands a connection to pingora.

use crate::access_log::{self, Fault, Line};
use crate::decide::{self, Decision, Purpose, Route};
use crate::drain::{StreamGuard, Streams};
use crate::limits::Limits;
use crate::observability::metrics::Metrics;
use crate::reply::{self, Reason};
use crate::token::Caller;
use crate::transport::Connection;
use crate::upstream::{CONNECTION_WINDOW, STREAM_WINDOW, Upstreams};
use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Version};
use pingora::apps::{HttpServerOptions, ServerApp};
use pingora::http::{RequestHeader, ResponseHeader};
use pingora::protocols::Stream;
use pingora::protocols::http::v2::server::default_h2_options;
use pingora::proxy::{FailToProxy, HttpProxy, ProxyHttp, Session, http_proxy};
use pingora::server::ShutdownWatch;
use pingora::server::configuration::ServerConf;
use pingora::upstreams::peer::HttpPeer;
use pingora::{Error, ErrorSource, ErrorType};
use postern_wire::metadata::{HOP_PREFIX, INTERNAL_PREFIX};
use postern_wire::token::TokenKey;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Streams that one downstream connection may have open: an agent's pool grows to hundreds.
const DOWNSTREAM_STREAMS: u32 = 1000;
/// What h2 allows for DATA frames below 256 bytes that nobody has read yet. Its default ends the connection of an
/// agent that sends a few thousand small messages in one go.
const SMALL_FRAMES: usize = 64 * 1024 * 1024;
const SEND_BUFFER: usize = 256 * 1024;

/// What all requests of the process share.
#[derive(Debug)]
pub struct Shared {
    pub upstreams: Upstreams,
    pub limits: Limits,
    pub metrics: Metrics,
    pub streams: Arc<Streams>,
}

/// The phases.
#[derive(Debug)]
pub struct EdgeProxy(Arc<Shared>);

/// pingora's proxy with the edge's phases in it. One per worker, so that upstream connections stay on one thread.
pub type Proxy = HttpProxy<EdgeProxy>;

/// What is known about one request so far.
pub struct Request {
    begin: Instant,
    decision: Option<Decision>,
    token: Option<TokenKey>,
    client: Option<SocketAddr>,
    upstream: Option<SocketAddr>,
    tried: Vec<SocketAddr>,
    grpc_status: Option<u16>,
    refused: Option<Reason>,
    guard: StreamGuard,
}

/// Builds the proxy of one worker. `idle`: a downstream connection without any stream is closed after this.
pub fn build(shared: Arc<Shared>, idle: Duration) -> Arc<Proxy> {
    let conf = ServerConf { threads: 1, work_stealing: false, ..ServerConf::default() };
    let mut proxy = http_proxy(&Arc::new(conf), EdgeProxy(shared));
    let mut h2 = default_h2_options();
    h2.max_concurrent_streams(DOWNSTREAM_STREAMS)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        .data_frame_budget(SMALL_FRAMES);
    proxy.h2_options = Some(h2);
    let mut options = HttpServerOptions::default();
    options.h2_idle_timeout = Some(idle);
    proxy.server_options = Some(options);
    Arc::new(proxy)
}

/// Serves all streams of one HTTP/2 connection until it closes; after `shutdown` it says GOAWAY and finishes.
///
/// Here agents' streams will part from pingora.
pub async fn serve(proxy: &Arc<Proxy>, transport: Stream, shutdown: &ShutdownWatch) {
    ServerApp::process_new(proxy, transport, shutdown).await;
}

impl EdgeProxy {
    /// Everything that can be said before a broker is asked.
    fn admit(&self, session: &Session, request: &mut Request, decision: Decision) -> Result<(), Reason> {
        let head = session.req_header();
        if decision.route == Route::Agents && head.version != Version::HTTP_2 {
            return Err(Reason::NeedsHttp2);
        }
        if self.0.upstreams.of(decision.route).is_empty() {
            return Err(Reason::NotServed);
        }
        request.token = Caller::of(&head.headers).key();
        let Some(token) = request.token else {
            // Who may do what without a token is for the broker and its cluster to say; agents may do nothing.
            return if decision.route == Route::Agents { Err(Reason::NoToken) } else { Ok(()) };
        };
        let connection = Connection::of(session.digest());
        if connection.is_none_or(|connection| connection.must_pay(decision.purpose, &token)) {
            self.0
                .limits
                .decide(&token, Instant::now())
                .map_err(|refusal| Reason::TooMany { retry_after: refusal.retry_after })?;
            if let Some(connection) = connection {
                connection.paid(decision.purpose, token);
            }
        }
        Ok(())
    }
}

impl Request {
    fn route(&self) -> Route {
        self.decision.map_or(Route::KubernetesApi, |decision| decision.route)
    }

    fn note_grpc_status(&mut self, headers: &HeaderMap) {
        if let Some(value) = headers.get("grpc-status") {
            self.grpc_status = value.to_str().ok().and_then(|text| text.parse().ok());
        }
    }
}

#[async_trait]
impl ProxyHttp for EdgeProxy {
    type CTX = Request;

    fn new_ctx(&self) -> Request {
        Request {
            begin: Instant::now(),
            decision: None,
            token: None,
            client: None,
            upstream: None,
            tried: Vec::new(),
            grpc_status: None,
            refused: None,
            guard: self.0.streams.open(),
        }
    }

    /// No modules: the edge neither compresses nor caches.
    fn init_downstream_modules(&self, _modules: &mut pingora::modules::http::HttpModules) {}

    async fn request_filter(&self, session: &mut Session, request: &mut Request) -> pingora::Result<bool> {
        // The 60 s default would cut an exec session that is silent, and a slow upload. Dead peers are found by TCP
        // keepalive and by the WebSocket's ping.
        session.set_read_timeout(None);
        request.client = Connection::of(session.digest()).map(|connection| connection.client);
        let head = session.req_header();
        let decision = decide::decide(head.version, head.uri.path(), &head.headers);
        request.decision = Some(decision);
        match self.admit(session, request, decision) {
            Ok(()) => {
                if decision.purpose != Purpose::Call {
                    request.guard.park();
                }
                Ok(false)
            }
            Err(reason) => {
                session.set_keepalive(None);
                reply::refuse(session, decision.route, &reason).await?;
                request.refused = Some(reason);
                Ok(true)
            }
        }
    }

    async fn upstream_peer(
        &self,
        session: &mut Session,
        request: &mut Request,
    ) -> pingora::Result<Box<HttpPeer>> {
        let decision = request.decision.ok_or_else(|| Error::new_in(ErrorType::InternalError))?;
        let group = self.0.upstreams.of(decision.route);
        let broker = match request.token {
            Some(token) => group.choose(&token, &request.tried),
            None => group
                .choose(&session.client_addr().and_then(|a| a.as_inet()).map(SocketAddr::ip), &request.tried),
        };
        let broker = broker.ok_or_else(|| Error::new_up(ErrorType::ConnectError))?;
        request.upstream = Some(broker.address);
        Ok(broker.peer(decision))
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
        if let Some(address) = request.upstream {
            group.mark_down(route, address);
            request.tried.push(address);
        }
        error.set_retry(group.choose(&request.token, &request.tried).is_some());
        error
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        let internal: Vec<HeaderName> =
            upstream.headers.keys().filter(|name| is_ours(name)).cloned().collect();
        for name in internal {
            upstream.remove_header(&name);
        }
        let Some(connection) = Connection::of(session.digest()) else { return Ok(()) };
        upstream.insert_header("x-forwarded-for", connection.client.ip().to_canonical().to_string())?;
        upstream.insert_header("x-forwarded-proto", if connection.tls { "https" } else { "http" })?;
        if let (Route::Agents, Some(host)) = (request.route(), &connection.tunnelled_for) {
            // Inside a WebSocket the authority is whatever a repaired URL became; pingora sends Host as :authority.
            upstream.insert_header(http::header::HOST, host)?;
        }
        Ok(())
    }

    async fn upstream_response_filter(
        &self,
        _session: &mut Session,
        response: &mut ResponseHeader,
        request: &mut Request,
    ) -> pingora::Result<()> {
        request.note_grpc_status(&response.headers);
        Ok(())
    }

    fn upstream_response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        _end: bool,
        request: &mut Request,
    ) -> pingora::Result<Option<Duration>> {
        // The first thing a broker sends down a tunnel is a request.
        if request.guard.is_parked()
            && request.decision.is_some_and(|decision| decision.purpose == Purpose::Tunnel)
            && body.as_ref().is_some_and(|bytes| !bytes.is_empty())
        {
            request.guard.wake();
        }
        Ok(None)
    }

    fn upstream_response_trailer_filter(
        &self,
        _session: &mut Session,
        trailers: &mut HeaderMap,
        request: &mut Request,
    ) -> pingora::Result<()> {
        request.note_grpc_status(trailers);
        Ok(())
    }

    async fn fail_to_proxy(
        &self,
        session: &mut Session,
        error: &Error,
        request: &mut Request,
    ) -> FailToProxy {
        let route = request.route();
        let begun = session.response_written().is_some();
        let reason = match reason(error, request, &self.0.upstreams) {
            Some(reason) => reason,
            // Nobody is there to read an answer.
            None => return FailToProxy { error_code: 0, can_reuse_downstream: false },
        };
        let answered = match (begun, route) {
            (false, _) => {
                session.set_keepalive(None);
                reply::refuse(session, route, &reason).await
            }
            (true, Route::Agents) => reply::cut(session, &reason).await,
            // The client sees a body that ends too early, which is the truth.
            (true, Route::KubernetesApi) => Ok(()),
        };
        if let Err(error) = answered {
            tracing::debug!(%error, "the answer to a failed request was not read");
        }
        if route == Route::Agents {
            request.grpc_status = Some(reason.code().into());
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
        let grpc_status = match &request.refused {
            Some(reason) if route == Route::Agents => Some(reason.code().into()),
            _ => request.grpc_status,
        };
        // A peer that leaves after the status was sent has seen the end.
        let finished = request.grpc_status.is_some() && request.refused.is_none();
        let error = error.filter(|_| !finished);
        let refused = request.refused.as_ref().map(Reason::name);
        let fault = match (error, &request.refused) {
            (Some(error), _) => match error.esource() {
                ErrorSource::Upstream => Fault::Upstream,
                ErrorSource::Downstream => Fault::Downstream,
                ErrorSource::Internal | ErrorSource::Unset => Fault::Internal,
            },
            (None, Some(_)) => Fault::Downstream,
            (None, None) => Fault::None,
        };
        let line = Line {
            client: request.client,
            route,
            method: match route {
                Route::Agents => head.uri.path(),
                Route::KubernetesApi => head.method.as_str(),
            },
            token: request.token,
            upstream: request.upstream,
            status,
            grpc_status,
            bytes_in: session.body_bytes_read(),
            bytes_out: session.body_bytes_sent(),
            duration: request.begin.elapsed(),
            fault,
            refused,
            error: error.map(what),
        };
        access_log::write(&line, request.guard.is_parked() && request.refused.is_none());
        self.0.metrics.request(route, status, grpc_status);
        if let Some(refused) = refused {
            self.0.metrics.refusal(refused);
        }
    }
}

/// Headers that only our own programs may set, and those that say who is in front of us.
fn is_ours(name: &HeaderName) -> bool {
    let name = name.as_str();
    name.starts_with(INTERNAL_PREFIX)
        || name.starts_with(HOP_PREFIX)
        || name.starts_with("x-forwarded-")
        || matches!(name, "forwarded" | "x-real-ip")
}

/// What to tell the caller; `None` when the caller is gone.
fn reason(error: &Error, request: &Request, upstreams: &Upstreams) -> Option<Reason> {
    match error.esource() {
        ErrorSource::Upstream if is_connect(error.etype()) => Some(Reason::Unreachable {
            upstream: format!("broker {}", upstreams.of(request.route()).addresses()),
            what: what(error),
        }),
        ErrorSource::Upstream => {
            let address = request.upstream.map_or_else(String::new, |address| address.to_string());
            Some(Reason::Broken { upstream: format!("broker {address}"), what: what(error) })
        }
        ErrorSource::Downstream => match error.etype() {
            ErrorType::InvalidHTTPHeader => Some(Reason::Malformed),
            _ => None,
        },
        ErrorSource::Internal | ErrorSource::Unset => Some(Reason::Internal),
    }
}

fn is_connect(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::ConnectTimedout
            | ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::SocketError
            | ErrorType::BindError
            | ErrorType::HandshakeError
    )
}

/// The kind of an error in words. pingora's own text may quote the request.
fn what(error: &Error) -> &'static str {
    match error.etype() {
        ErrorType::ConnectTimedout => "connect timed out",
        ErrorType::ConnectRefused => "connection refused",
        ErrorType::ConnectNoRoute => "no route to host",
        ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => "connect failed",
        ErrorType::HandshakeError => "HTTP/2 handshake failed",
        ErrorType::ReadError => "read failed",
        ErrorType::WriteError => "write failed",
        ErrorType::ConnectionClosed => "connection closed",
        ErrorType::H1Error => "HTTP/1.1 error",
        ErrorType::H2Error | ErrorType::InvalidH2 => "HTTP/2 error",
        ErrorType::H2Downgrade => "HTTP/2 refused",
        ErrorType::InvalidHTTPHeader => "invalid head",
        _ => "failed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_our_own_programs_are_not_believed_from_outside() {
        for name in
            ["x-postern-agent", "kas-hop-routing-agent-id", "x-forwarded-for", "forwarded", "x-real-ip"]
        {
            assert!(is_ours(&HeaderName::from_static(name)), "{name}");
        }
        for name in ["authorization", "x-gitlab-correlation-id", "impersonate-user", "via"] {
            assert!(!is_ours(&HeaderName::from_static(name)), "{name}");
        }
    }
}
