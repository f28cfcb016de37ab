//! gRPC streams of agents, frame by frame: choose a broker, open a stream there, copy both ways, account.
//!
//! From `http2`. Both directions flow independently, as far as each reader's window allows: a pod that writes while it
//! is written to must not stop itself. Never looks into a message. A stream is one future, written by hand: where a
//! connection to the broker is there, it is opened at once, and an idle tunnel is [`Relay`] and nothing more.

mod deadline;
mod exchange;
mod outward;
pub mod pool;

use crate::access_log::{self, Fault, Line};
use crate::admit::{self, Admission};
use crate::decide::{Decision, Purpose, Route};
use crate::http2::{Peer, Stream};
use crate::life::Why;
use crate::limits::{Call, Counting, Permit, Reported};
use crate::observability::connections::{Entry, StreamGuard};
use crate::proxy::Shared;
use crate::reply::{self, Reason};
use crate::trace::Ids;
use crate::upstream::{Load, Outcome};
use bytes::Bytes;
use deadline::Deadline;
use exchange::{Ended, Exchange};
use h2::Reason as Reset;
use h2::server::SendResponse;
use http::{HeaderMap, Method, Request};
use pool::{Now, Opened, Unopened};
use postern_wire::token::TokenKey;
use std::borrow::Cow;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

/// The half of a stream that answers the client.
type Respond = SendResponse<Bytes>;
/// What ends a gRPC response.
type Trailers = HeaderMap;

const OK: u8 = 0;
const DEADLINE_EXCEEDED: u8 = 4;

/// Takes up one stream; it goes on by itself until its log line.
pub fn begin(decision: Decision, stream: Stream) {
    let Stream { request, respond, peer } = stream;
    let (mut head, body) = request.into_parts();
    let shared = &peer.worker.shared;
    let ids = Ids::of(shared.tracing.as_ref(), decision.purpose, &head.headers);
    let admission = admit::admit(shared, Some(&peer.connection), decision, head.version, &head.headers, None);
    let Admission { token, verdict, counting, reported, body: most, .. } = admission;
    let verdict = if head.method == Method::CONNECT { Err(Reason::Malformed) } else { verdict };
    let mut relay = Relay {
        exchange: Exchange::new(
            body,
            respond,
            shared.streams.open_on(&peer.connection.seat),
            decision.purpose,
            most,
        ),
        opening: None,
        deadline: None,
        account: Account {
            begin: Instant::now(),
            method: method(head.uri.path()),
            more: More::of(behind(&peer, &head.headers), reported),
            token,
            ids,
        },
        _counted: peer.connection.entry.as_ref().map(Entry::stream),
        permit: Permit::free(),
        load: None,
        peer: peer.clone(),
        waiting: None,
    };
    match verdict {
        Err(reason) => {
            relay.finish(Ended::Refused(reason));
            return;
        }
        Ok(permit) => relay.permit = permit,
    }
    relay.deadline = Deadline::of(&head.headers);
    if decision.purpose != Purpose::Call {
        relay.exchange.guard.park();
    }
    relay.account.ids.apply(Route::Agents, &mut head.headers);
    match relay.open(outward::head(head, &peer), counting) {
        Ok(()) => drop(tokio::spawn(relay)),
        Err(ended) => relay.finish(ended),
    }
}

/// The client of a stream, where it is not the connection's.
fn behind(peer: &Peer, headers: &HeaderMap) -> Option<SocketAddr> {
    Some(peer.connection.origin(headers).client).filter(|client| *client != peer.connection.client)
}

/// The gRPC method for the log. A stranger chooses the path: a log takes no more of it than the longest name of an RPC.
/// Copied, because what HTTP/2 decoded stays in memory for as long as any part of it is held.
fn method(path: &str) -> Cow<'static, str> {
    match crate::decide::LASTING.iter().find(|lasting| **lasting == path) {
        Some(lasting) => Cow::Borrowed(lasting),
        None if path.len() <= 128 => Cow::Owned(path.to_owned()),
        None => Cow::Owned(path.chars().take(128).collect()),
    }
}

/// One stream from its head to its log line.
struct Relay {
    exchange: Exchange,
    /// Only while a connection to a broker is made.
    opening: Option<Opening>,
    deadline: Option<Deadline>,
    account: Account,
    /// Counts it on its connection.
    _counted: Option<StreamGuard>,
    /// Held until the stream is over.
    permit: Permit,
    load: Option<Load>,
    peer: Arc<Peer>,
    /// Its number among those that only wait on this connection.
    waiting: Option<u32>,
}

type Opening = Pin<Box<dyn Future<Output = Result<(Load, Opened), Ended>> + Send>>;

/// What the log line will need.
struct Account {
    begin: Instant,
    method: Cow<'static, str>,
    more: Option<Box<More>>,
    token: Option<TokenKey>,
    ids: Ids,
}

/// What few streams have.
#[derive(Default)]
struct More {
    /// Where it is not the connection's: a proxy carries the streams of many.
    client: Option<SocketAddr>,
    /// The broker that a client did not wait for.
    asked: Option<SocketAddr>,
    /// Policies of `mode: report` that would have refused it.
    reported: Vec<Reported>,
}

impl More {
    fn of(client: Option<SocketAddr>, reported: Vec<Reported>) -> Option<Box<Self>> {
        let any = client.is_some() || !reported.is_empty();
        any.then(|| Box::new(Self { client, reported, ..Self::default() }))
    }
}

impl Account {
    fn more(&mut self) -> &mut More {
        self.more.get_or_insert_default()
    }
}

impl Relay {
    /// Opens the stream at its broker, at once if a connection is there and Redis need not be asked.
    fn open(&mut self, mut head: Request<()>, counting: Option<Counting>) -> Result<(), Ended> {
        let worker = &self.peer.worker;
        let end = self.exchange.has_no_body();
        if counting.is_none()
            && let Some(broker) = worker.shared.upstreams.of(Route::Agents).choose(&self.account.token, &[])
            && let Some(load) = broker.enter()
        {
            match worker.pool.open_now(&broker, head, end) {
                Now::Opened(opened) => {
                    self.opened(load, opened);
                    return Ok(());
                }
                Now::Failed(error) => return Err(exchange::broken(&error)),
                Now::Wait(same) => {
                    self.account.more().asked = Some(broker.address);
                    head = same;
                }
            }
        }
        let (worker, token) = (worker.clone(), self.account.token);
        let (connection, purpose) = (self.peer.connection.clone(), self.exchange.purpose);
        let opening = async move {
            if let Some(counting) = counting {
                counting.await.map_err(Ended::Refused)?;
                if let Some(token) = token {
                    connection.paid(purpose, token);
                }
            }
            open(&worker.shared, &worker.pool, token, head, end).await
        };
        self.opening = Some(Box::pin(opening));
        Ok(())
    }

    fn opened(&mut self, load: Load, opened: Opened) {
        self.load = Some(load);
        self.exchange.forward(opened);
    }

    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Ended> {
        if let Some(deadline) = &mut self.deadline
            && deadline.poll(cx).is_ready()
        {
            return Poll::Ready(Ended::Late);
        }
        if let Some(opening) = &mut self.opening {
            if self.exchange.poll_left(cx).is_ready() {
                return Poll::Ready(Ended::Left);
            }
            let opened = ready!(opening.as_mut().poll(cx));
            self.opening = None;
            match opened {
                Ok((load, opened)) => self.opened(load, opened),
                Err(ended) => return Poll::Ready(ended),
            }
        }
        self.exchange.poll(cx)
    }

    /// The broker that has it, or was asked to take it.
    fn upstream(&self) -> Option<SocketAddr> {
        let asked = || self.account.more.as_ref()?.asked;
        self.load.as_ref().map(|load| load.address).or_else(asked)
    }

    fn client(&self) -> SocketAddr {
        let behind = self.account.more.as_ref().and_then(|more| more.client);
        behind.unwrap_or(self.peer.connection.client)
    }

    /// A policy of `mode: report` would not have let its body pass.
    fn suppose_body(&mut self, call: &Call<'_>) {
        let shared = &self.peer.worker.shared;
        if self.exchange.purpose == Purpose::Call
            && shared.limits.rule_bodies()
            && let Some(reported) = shared.limits.supposed_body(call, self.exchange.bytes_in() as u64)
        {
            shared.metrics.report(&reported);
            self.account.more().reported.push(reported);
        }
    }

    /// Whether it only waits, and its connection ends. Otherwise it is woken when that is so.
    fn is_sent_home(&mut self, cx: &Context<'_>) -> bool {
        if !self.exchange.guard.is_parked() {
            return false;
        }
        if self.waiting.is_none() {
            // A connection has a thousand streams at most.
            self.waiting = u32::try_from(self.peer.wait(cx.waker())).ok();
        }
        self.peer.sends_home()
    }

    /// Tells the client how it ended, where that is still to be said, and everybody who counts.
    fn finish(&mut self, ended: Ended) {
        let (upstream, client) = (self.upstream(), self.client());
        let call = Call { client: Some(client.ip()), token: self.account.token, ..Call::default() };
        self.suppose_body(&call);
        if let Some(number) = self.waiting.take() {
            self.peer.wait_no_more(number as usize);
        }
        if let Some(load) = &self.load {
            match ended {
                Ended::Answered | Ended::Reset(_) => load.note(Outcome::Answered),
                Ended::Broken(_) if self.exchange.tells_of_loss() => load.note(Outcome::Broken),
                _ => {}
            }
        }
        let exchange = &mut self.exchange;
        let address = || upstream.map(|address| address.to_string()).unwrap_or_default();
        let (fault, error) = match &ended {
            Ended::Answered => (Fault::None, None),
            Ended::SentHome => {
                end(exchange, reply::grpc_status(OK, ""));
                exchange.cancel();
                (Fault::None, self.peer.connection.seat.cut().map(Why::name))
            }
            Ended::Left => {
                abandon(exchange, &mut self.load, &self.peer);
                match self.peer.connection.seat.cut() {
                    // An idle tunnel is taken up elsewhere: nobody lost anything.
                    Some(why) if exchange.guard.is_parked() => (Fault::None, Some(why.name())),
                    Some(Why::Denied) => (Fault::Downstream, Some(Why::Denied.name())),
                    Some(why) => (Fault::Internal, Some(why.name())),
                    None => {
                        if exchange.is_call() && exchange.status == 0 {
                            self.peer.note_abandoned();
                        }
                        (Fault::Downstream, Some("client left"))
                    }
                }
            }
            Ended::Refused(reason) => {
                refuse(exchange, reason);
                abandon(exchange, &mut self.load, &self.peer);
                (fault(reason), None)
            }
            Ended::Reset(reason) => {
                exchange.reset(*reason);
                (Fault::Upstream, Some("reset"))
            }
            // gRPC clients take this for what it is and send the call once more by themselves, body and all; it then
            // goes to another broker. Those that do not see UNAVAILABLE.
            Ended::Unprocessed if exchange.status == 0 => {
                exchange.reset(Reset::REFUSED_STREAM);
                (Fault::Upstream, Some("connection closing"))
            }
            Ended::Unprocessed => {
                broken(exchange, address(), "connection closing");
                (Fault::Upstream, Some("connection closing"))
            }
            Ended::Broken(what) => {
                broken(exchange, address(), what);
                (Fault::Upstream, Some(*what))
            }
            Ended::Late => {
                let message = format!("broker {} has not finished within the call's deadline", address());
                end(exchange, reply::grpc_status(DEADLINE_EXCEEDED, &message));
                exchange.cancel();
                (Fault::Upstream, Some("deadline exceeded"))
            }
        };
        if matches!(ended, Ended::Answered) && exchange.grpc_status == Some(0) {
            self.peer.trust(self.account.token);
        }
        let refused = match &ended {
            Ended::Refused(reason) => Some(reason.name()),
            _ => None,
        };
        let connection = &self.peer.connection;
        let shared = &self.peer.worker.shared;
        let body_rule = match &ended {
            Ended::Refused(Reason::TooLarge { .. }) => shared.limits.body_rule(&call),
            _ => None,
        };
        let rule = match &ended {
            Ended::Refused(reason) => reason.rule().or(body_rule.as_deref()),
            _ => None,
        };
        let line = Line {
            connection: connection.entry.as_deref(),
            certificate: connection.certificate.as_deref(),
            ids: Some(&self.account.ids),
            client: Some(client),
            route: Route::Agents,
            method: &self.account.method,
            token: self.account.token,
            upstream,
            status: exchange.status,
            grpc_status: exchange.grpc_status,
            bytes_in: exchange.bytes_in(),
            bytes_out: exchange.bytes_out(),
            duration: self.account.begin.elapsed(),
            fault,
            refused,
            rule,
            reported: self.account.more.as_ref().map_or(&[], |more| &more.reported),
            error,
        };
        if upstream.is_some() && refused.is_none() {
            shared.limits.finished(client.ip(), self.account.token, exchange.status, exchange.grpc_status);
        }
        // Idle tunnels come and go by the thousand.
        access_log::finish(shared, &line, exchange.guard.is_parked() && fault == Fault::None);
    }
}

impl Future for Relay {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        let mut polled = this.poll_ended(cx);
        if polled.is_pending() && this.is_sent_home(cx) {
            polled = Poll::Ready(Ended::SentHome);
        }
        if this.exchange.was_served() {
            this.peer.trust(this.account.token);
        }
        let ended = ready!(polled);
        this.finish(ended);
        Poll::Ready(())
    }
}

/// Opens the stream at the first broker that takes it.
async fn open(
    shared: &Shared,
    pool: &pool::Pool,
    token: Option<TokenKey>,
    head: Request<()>,
    end: bool,
) -> Result<(Load, Opened), Ended> {
    let group = shared.upstreams.of(Route::Agents);
    let mut tried = Vec::new();
    let mut what = "no broker is known";
    loop {
        let Some(broker) = group.choose(&token, &tried) else {
            let upstream = format!("broker {}", group.addresses());
            return Err(Ended::Refused(if group.is_full() {
                Reason::Busy { upstream }
            } else {
                Reason::Unreachable { upstream, what }
            }));
        };
        let Some(load) = broker.enter() else { continue };
        if !tried.is_empty() {
            shared.metrics.retry(Route::Agents);
        }
        match pool.lease(&broker).await {
            Ok(lease) => {
                let opened = lease.open(head, end).map_err(|error| exchange::broken(&error))?;
                return Ok((load, opened));
            }
            Err(Unopened::Crowded(crowded)) => {
                what = crowded;
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
    }
}

/// Tells the broker, if one has the stream, that nobody waits for it; in its own time where that must be.
fn abandon(exchange: &mut Exchange, load: &mut Option<Load>, peer: &Arc<Peer>) {
    if let Some(abandoned) = exchange.abandon() {
        let held = (load.take(), peer.clone());
        tokio::spawn(async move {
            abandoned.settle().await;
            drop(held);
        });
    }
}

fn broken(exchange: &mut Exchange, address: String, what: &'static str) {
    refuse(exchange, &Reason::Broken { upstream: format!("broker {address}"), what });
}

/// Ends the stream with a status of ours, whether or not its response has begun.
fn refuse(exchange: &mut Exchange, reason: &Reason) {
    end(exchange, reply::trailers(reason));
}

fn end(exchange: &mut Exchange, status: Trailers) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_idle_tunnel_stays_small() {
        // Times tens of thousands; the task around it adds some 130 bytes.
        assert!(size_of::<Relay>() <= 504, "{}", size_of::<Relay>());
    }
}
