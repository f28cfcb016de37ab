//! gRPC streams of agents, frame by frame: choose a broker, open a stream there, copy both ways, account.
//!
//! From `http2`. Both directions flow independently, as far as each reader's window allows: a pod that writes while it
//! is written to must not stop itself. Never looks into a message.

mod exchange;
pub mod pool;

use crate::access_log::{self, Fault, Line};
use crate::admit::{self, Admission};
use crate::decide::{Decision, Purpose, Route};
use crate::http2::Stream;
use crate::proxy::Shared;
use crate::reply::{self, Reason};
use crate::transport::Connection;
use crate::upstream::Outcome;
use bytes::Bytes;
use exchange::{Ended, Exchange};
use h2::server::SendResponse;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, Request, Uri, Version, header, request};
use pool::{Lease, Pool, Unopened};
use postern_wire::token::TokenKey;
use std::net::SocketAddr;
use std::time::Instant;

/// Serves one stream from its head to its log line.
pub async fn serve(shared: &Shared, pool: &Pool, decision: Decision, stream: Stream) {
    let begin = Instant::now();
    let Stream { request, respond, connection, .. } = stream;
    let (head, body) = request.into_parts();
    let client = connection.origin(&head.headers).client;
    // A stranger chooses the path: a log takes no more of it than the longest name of an RPC.
    let method: String = head.uri.path().chars().take(128).collect();
    let Admission { token, mut verdict, counting } = admit::admit(
        &shared.upstreams,
        &shared.limits,
        Some(&connection),
        decision,
        head.version,
        &head.headers,
        None,
    );
    if let Some(counting) = counting {
        verdict = counting.await.and(verdict);
    }
    let mut exchange =
        Exchange::new(body, respond, shared.streams.open_on(&connection.seat), decision.purpose);
    let mut upstream = None;
    let ended = match verdict {
        Err(reason) => Ended::Refused(reason),
        Ok(_permit) => {
            if decision.purpose != Purpose::Call {
                exchange.guard.park();
            }
            let head = outward(head, &connection);
            forward(shared, pool, token, head, &mut exchange, &mut upstream).await
        }
    };
    let (fault, error) = match &ended {
        Ended::Answered => (Fault::None, None),
        Ended::Left => (Fault::Downstream, Some("client left")),
        Ended::Refused(reason) => {
            refuse(&mut exchange, reason);
            (fault(reason), None)
        }
        Ended::Reset(reason) => {
            exchange.reset(*reason);
            (Fault::Upstream, Some("reset"))
        }
        Ended::Broken(what) => {
            let address = upstream.map(|address: SocketAddr| address.to_string()).unwrap_or_default();
            refuse(&mut exchange, &Reason::Broken { upstream: format!("broker {address}"), what });
            (Fault::Upstream, Some(*what))
        }
    };
    let refused = match &ended {
        Ended::Refused(reason) => Some(reason.name()),
        _ => None,
    };
    let line = Line {
        client: Some(client),
        route: Route::Agents,
        method: &method,
        token,
        upstream,
        status: exchange.status,
        grpc_status: exchange.grpc_status,
        bytes_in: exchange.bytes_in(),
        bytes_out: exchange.bytes_out(),
        duration: begin.elapsed(),
        fault,
        refused,
        error,
    };
    if upstream.is_some() && refused.is_none() {
        shared.limits.finished(client.ip(), token, exchange.status, exchange.grpc_status);
    }
    // Idle tunnels come and go by the thousand.
    access_log::write(&line, exchange.guard.is_parked() && fault == Fault::None);
    shared.metrics.request(Route::Agents, exchange.status, exchange.grpc_status);
    if let Some(refused) = refused {
        shared.metrics.refusal(refused);
    }
}

/// Opens the stream at the first broker that takes it, and lets it run.
async fn forward(
    shared: &Shared,
    pool: &Pool,
    token: Option<TokenKey>,
    head: Request<()>,
    exchange: &mut Exchange,
    upstream: &mut Option<SocketAddr>,
) -> Ended {
    let group = shared.upstreams.of(Route::Agents);
    let mut tried = Vec::new();
    let mut what = "no broker is known";
    let (load, lease) = loop {
        let Some(broker) = group.choose(&token, &tried) else {
            if group.is_full() {
                return Ended::Refused(Reason::Busy { upstream: format!("broker {}", group.addresses()) });
            }
            return Ended::Refused(Reason::Unreachable {
                upstream: format!("broker {}", group.addresses()),
                what,
            });
        };
        let Some(load) = broker.enter() else { continue };
        *upstream = Some(broker.address);
        let opened = tokio::select! {
            biased;
            () = exchange.client_left() => return Ended::Left,
            opened = pool.open(&broker) => opened,
        };
        match opened {
            Ok(lease) => break (load, lease),
            Err(Unopened::Crowded) => {
                what = "too many streams wait for a connection";
                tried.push(broker.address);
            }
            Err(Unopened::Failed(failed)) => {
                // Nothing was sent yet, so any request may be tried elsewhere.
                what = failed;
                broker.mark_down();
                broker.note(Outcome::Unreached);
                tried.push(broker.address);
            }
        }
    };
    let Lease { mut send, held: _held } = lease;
    let ended = match send.send_request(head, exchange.has_no_body()) {
        Ok((response, body)) => exchange.run(response, body).await,
        Err(error) => exchange::broken(&error),
    };
    match ended {
        Ended::Answered | Ended::Reset(_) => load.note(Outcome::Answered),
        Ended::Broken(_) => load.note(Outcome::Broken),
        Ended::Left | Ended::Refused(_) => {}
    }
    ended
}

/// The head as the broker shall see it.
fn outward(head: request::Parts, connection: &Connection) -> Request<()> {
    let origin = connection.origin(&head.headers).into_owned();
    let mut headers = head.headers;
    let host = headers.remove(header::HOST);
    let ours: Vec<_> = headers.keys().filter(|name| admit::is_ours(name)).cloned().collect();
    for name in ours {
        headers.remove(name);
    }
    headers.extend(
        admit::forwarded(&origin).map(|(name, value)| (Some(http::HeaderName::from_static(name)), value)),
    );
    // Inside a WebSocket the authority is whatever a repaired URL became.
    let authority = match &connection.tunnelled_for {
        Some(host) => host.parse().ok(),
        None => head.uri.authority().cloned().or_else(|| Authority::try_from(host?.as_bytes()).ok()),
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority.unwrap_or_else(|| Authority::from_static("postern")));
    uri.path_and_query =
        Some(head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/")));
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = Uri::from_parts(uri).expect("scheme, authority and path make a URI");
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    request
}

/// Ends the stream with a status of ours, whether or not its response has begun.
fn refuse(exchange: &mut Exchange, reason: &Reason) {
    let status = reply::trailers(reason);
    exchange.note_grpc_status(&status);
    if let Err(error) = exchange.end_with(status) {
        tracing::debug!(%error, "the answer to a failed request was not read");
    }
}

fn fault(reason: &Reason) -> Fault {
    match reason {
        Reason::Unreachable { .. } | Reason::Busy { .. } | Reason::Silent { .. } | Reason::Broken { .. } => {
            Fault::Upstream
        }
        Reason::Internal => Fault::Internal,
        _ => Fault::Downstream,
    }
}

/// The half of a stream that answers the client.
type Respond = SendResponse<Bytes>;
/// What ends a gRPC response.
type Trailers = HeaderMap;
