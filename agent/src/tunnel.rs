//! One reverse tunnel: a stream to the broker that waits for one request, carries it to a service of this process and
//! is gone. Before it: the pool, which decides how many there are. After it: `services.rs`.
//! A tunnel that ends while its request runs takes the request with it; nothing outlives the tunnel.

pub mod pool;

use crate::{
    broker::{Road, connection::Connection},
    error,
    observability::Metrics,
    pushback,
    services::{Call, Replies, Services},
};
use bytes::Bytes;
use futures::FutureExt;
use pool::{Change, Slot};
use postern_telemetry::RequestId;
use postern_wire::{
    metadata::CORRELATION_ID,
    order::{ConnectResponseOrder, OutOfOrder},
    proto::{
        gitlab::agent::reverse_tunnel::rpc::{
            self, ConnectRequest, ConnectResponse, Descriptor, connect_request, connect_response,
            reverse_tunnel_client::ReverseTunnelClient,
        },
        google,
    },
};
use std::{pin::pin, sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, codec::CompressionEncoding};
use tracing::{debug, info};

/// Go brokers send no header before the first message, so a tunnel counts as standing when it was not refused by then.
const STANDS_AFTER: Duration = Duration::from_millis(500);
/// An idle tunnel of a connection that is being left stays a little longer, for a request that is on its way.
const LINGER: Duration = Duration::from_secs(2);
/// And until another one stands, but no longer than this: the broker that takes over may not want this agent.
const STAY: Duration = Duration::from_secs(30);
/// How long the broker has to end a tunnel whose answer is complete.
const GOODBYE: Duration = Duration::from_secs(10);
/// A lost connection makes itself known to its streams first.
const CONNECTION_END: Duration = Duration::from_millis(200);

/// How a tunnel ended; the pool decides what follows.
#[derive(Debug)]
pub enum Ended {
    /// By the broker, politely, without having carried a request.
    Idle,
    /// Likewise, by one that is about to leave: the next one is to come after this time.
    Dismissed(Duration),
    /// It carried a request to its end, or to its cancellation.
    Served,
    /// A newer connection took over, or the pool asked it to go.
    Left,
    /// The connection broke or the token was refused: others know already and make the next tunnel wait.
    Interrupted,
    /// The broker, or something before it, failed this stream.
    Failed(Status),
}

/// What tunnels need.
pub struct Tunnels {
    /// Where they start.
    pub road: Road,
    /// Where they lead.
    pub services: Services,
    /// What is counted.
    pub metrics: Metrics,
}

/// Opens a tunnel and stays until it ends.
pub async fn run(tunnels: Arc<Tunnels>, slot: Slot) -> Ended {
    let connection = tokio::select! {
        connection = tunnels.road.connection() => connection,
        () = slot.leave.cancelled() => return Ended::Left,
    };
    let (outgoing, messages) = mpsc::channel(2);
    let descriptor = Descriptor { agent_descriptor: Some(tunnels.services.descriptor()) };
    let first = ConnectRequest { msg: Some(connect_request::Msg::Descriptor(descriptor)) };
    outgoing.try_send(first).expect("the channel is empty");

    let waiting = wait(&tunnels.road, &connection, messages, &slot);
    let (mut incoming, first) = match attended(waiting, &connection, &slot).await {
        Ok(Some(waited)) => waited,
        Ok(None) => return Ended::Left,
        Err(status) => return failure(status, &tunnels.road, &connection).await,
    };
    let Some(first) = first else {
        return pushback::after(&mut incoming).await.map_or(Ended::Idle, Ended::Dismissed);
    };
    let mut order = ConnectResponseOrder::new();
    let info = match order.accept(&first).map(|()| first.msg) {
        Ok(Some(connect_response::Msg::RequestInfo(info))) => info,
        Ok(_) => return Ended::Failed(Status::internal("the broker's first message is not a request")),
        Err(error) => return Ended::Failed(Status::internal(format!("from the broker: {error}"))),
    };
    slot.tell(Change::Busy).await;
    tunnels.metrics.requests.inc();
    let began = Instant::now();
    let status = carry(&tunnels.services, &info.method_name, &mut incoming, order, outgoing).await;
    let (code, duration) = (status.as_ref().map_or_else(Status::code, |()| Code::Ok), began.elapsed());
    if code != Code::Ok {
        tunnels.metrics.failed_requests.inc();
    }
    // Another maker's broker may send anything.
    let correlation_id = info.meta.get(CORRELATION_ID).and_then(|values| values.value.first());
    let correlation_id = correlation_id.and_then(|id| RequestId::checked(id.as_bytes()));
    let correlation_id = correlation_id.as_ref().map(tracing::field::display);
    info!(target: "access", correlation_id, method = %info.method_name, status = ?code, duration_ms = duration.as_millis() as u64, "request");
    if let Err(status) = status {
        debug!(error = %error::status(&status), "request failed");
    }
    Ended::Served
}

type Waited = (Streaming<ConnectResponse>, Option<ConnectResponse>);

/// Opens the stream and waits for its first message, which may take half an hour.
async fn wait(
    road: &Road,
    connection: &Connection,
    messages: mpsc::Receiver<ConnectRequest>,
    slot: &Slot,
) -> Result<Waited, Status> {
    let mut client =
        ReverseTunnelClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
    let mut incoming = client.connect(ReceiverStream::new(messages)).await?.into_inner();
    road.admitted();
    slot.tell(Change::Standing).await;
    let first = incoming.message().await?;
    Ok((incoming, first))
}

/// Lets an idle tunnel be called off: by the pool at once, by a newer connection after a moment (`None`).
async fn attended(
    waiting: impl Future<Output = Result<Waited, Status>>,
    connection: &Connection,
    slot: &Slot,
) -> Result<Option<Waited>, Status> {
    let mut waiting = pin!(waiting);
    let stands_at = Instant::now() + STANDS_AFTER;
    let mut stands = false;
    let mut leaving = pin!(async {
        connection.retired().cancelled().await;
        slot.tell(Change::Leaving).await;
        sleep(LINGER).await;
        let _ = timeout(STAY, slot.replaced()).await;
    });
    loop {
        tokio::select! {
            biased;
            waited = &mut waiting => return waited.map(Some),
            () = slot.leave.cancelled() => return Ok(None),
            () = &mut leaving => return Ok(None),
            () = sleep_until(stands_at), if !stands => {
                stands = true;
                slot.tell(Change::Standing).await;
            }
        }
    }
}

async fn failure(status: Status, road: &Road, connection: &Connection) -> Ended {
    if connection.ends_within(CONNECTION_END, &status).await || road.refused(connection, &status) {
        return Ended::Interrupted;
    }
    match status.code() {
        // kas 13.11 and 14.0 end idle tunnels this way.
        Code::Cancelled | Code::DeadlineExceeded => Ended::Idle,
        _ => Ended::Failed(status),
    }
}

/// Carries one request: the broker's messages to the service, its answers back, then the closing ceremony.
async fn carry(
    services: &Services,
    method: &str,
    incoming: &mut Streaming<ConnectResponse>,
    order: ConnectResponseOrder,
    outgoing: mpsc::Sender<ConnectRequest>,
) -> Result<(), Status> {
    let say = async |msg| outgoing.send(ConnectRequest { msg: Some(msg) }).await.map_err(|_| cancelled());
    say(connect_request::Msg::Header(rpc::Header::default())).await?;
    let (feed, requests) = mpsc::channel(1);
    let call = services.call(method, Call { requests, replies: Replies::new(outgoing.clone()) });
    let result = tokio::select! {
        biased;
        result = call => result,
        // Either tells that the caller is gone: what it asked for is dropped with `call`.
        end = receive(incoming, order, feed) => return Err(end),
        () = outgoing.closed() => return Err(cancelled()),
    };
    say(connect_request::Msg::Trailer(rpc::Trailer::default())).await?;
    if let Err(status) = &result {
        let status = google::rpc::Status {
            code: status.code() as i32,
            message: status.message().to_owned(),
            details: Vec::new(),
        };
        say(connect_request::Msg::Error(rpc::Error { status: Some(status) })).await?;
    }
    // Half-close; the broker answers by ending the stream. What it still sends of the request is let go.
    drop(outgoing);
    let goodbye = async { while let Ok(Some(_)) = incoming.message().await {} };
    if timeout(GOODBYE, goodbye).await.is_err() {
        debug!("the broker did not end a finished tunnel");
    }
    result
}

/// Carries the request whose first message came, for one who has opened a tunnel without a pool.
pub(crate) async fn answer(
    services: &Services,
    first: ConnectResponse,
    incoming: &mut Streaming<ConnectResponse>,
    outgoing: mpsc::Sender<ConnectRequest>,
) -> Result<(), Status> {
    let mut order = ConnectResponseOrder::new();
    order.accept(&first).map_err(|error| out_of_order(&error))?;
    match first.msg {
        Some(connect_response::Msg::RequestInfo(info)) => {
            carry(services, &info.method_name, incoming, order, outgoing).await
        }
        _ => Err(Status::internal("the broker's first message is not a request")),
    }
}

/// Moves the caller's messages until the tunnel ends, which is always too early: the service is still at work.
async fn receive(
    incoming: &mut Streaming<ConnectResponse>,
    mut order: ConnectResponseOrder,
    feed: mpsc::Sender<Bytes>,
) -> Status {
    let mut feed = Some(feed);
    loop {
        let message = match incoming.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return cancelled(),
            Err(status) => return status,
        };
        if let Err(error) = order.accept(&message) {
            return out_of_order(&error);
        }
        match message.msg {
            // A service that has stopped reading lets the rest pass by.
            Some(connect_response::Msg::Message(message)) => {
                if let Some(feed) = &feed {
                    let _ = feed.send(message.data).await;
                }
            }
            _ => feed = None,
        }
    }
}

fn cancelled() -> Status {
    Status::cancelled("the broker ended the tunnel")
}

fn out_of_order(error: &OutOfOrder) -> Status {
    Status::invalid_argument(format!("from the broker: {error}"))
}

/// A tunnel as the pool opens it; boxed, since the pool holds hundreds.
pub fn opener(tunnels: Arc<Tunnels>) -> impl Fn(Slot) -> futures::future::BoxFuture<'static, Ended> {
    move |slot| run(tunnels.clone(), slot).boxed()
}
