//! One request through one tunnel: `RequestInfo` opens it, messages go both ways, and it is gone. Before it, the
//! registry hands the tunnel over; after it, `kubernetes_api.rs` knows what the messages mean. It never looks
//! inside a message, and never ends a stream in a way that leaves the agent's slot hanging.

use crate::{
    auth::AgentPermit,
    fleet::{
        PeerUrl,
        remote::{RemoteRequest, RemoteResponse},
    },
    tunnel::registry::PresenceGuard,
};
use bytes::Bytes;
use futures::{
    FutureExt, Stream, StreamExt,
    future::{BoxFuture, Fuse},
    stream::BoxStream,
};
use postern_wire::{
    ids::AgentId,
    order::{ConnectRequestOrder, OutOfOrder},
    proto::gitlab::agent::{
        prototool::Values,
        reverse_tunnel::rpc::{self, ConnectRequest, ConnectResponse, connect_request, connect_response},
    },
};
use std::{
    collections::HashMap,
    pin::Pin,
    task::{Context, Poll},
};
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

/// Why a request through a tunnel failed.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The agent answered with a gRPC error: it reached its end of the tunnel, and failed behind it.
    #[error("the agent could not serve the request: {} ({:?})", .0.message(), .0.code())]
    Status(Status),
    /// The connection to the agent broke while the request was under way.
    #[error("the connection to the agent was lost while the request was under way")]
    Lost(#[source] Option<Box<Status>>),
    /// The agent broke the rules of the tunnel.
    #[error("the agent sent messages out of order")]
    Order(#[from] OutOfOrder),
    /// The agent's token was revoked or replaced in the identities while the request was under way.
    #[error("the agent may no longer serve the request: {}", .0.message())]
    Withdrawn(Status),
    /// The tunnel is another broker's, and that one could not go on.
    #[error("the broker that holds the agent's tunnel ended the request: {} ({:?})", .status.message(), .status.code())]
    Broker {
        /// Which one.
        broker: PeerUrl,
        /// Its words.
        status: Status,
    },
    /// The tunnel is another broker's, and that one is gone.
    #[error(
        "the connection to the broker that holds the agent's tunnel was lost while the request was under way"
    )]
    BrokerLost {
        /// Which one.
        broker: PeerUrl,
        /// What the transport says.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
}

impl TunnelError {
    /// Which other broker it is about.
    pub fn broker(&self) -> Option<&PeerUrl> {
        match self {
            Self::Broker { broker, .. } | Self::BrokerLost { broker, .. } => Some(broker),
            _ => None,
        }
    }
}

/// A tunnel that carries no request yet.
pub struct Tunnel {
    agent: AgentId,
    version: Option<(u32, u32)>,
    to_agent: mpsc::Sender<ConnectResponse>,
    from_agent: BoxStream<'static, Result<ConnectRequest, Status>>,
    order: ConnectRequestOrder,
    end: EndGuard,
    presence: Option<PresenceGuard>,
    permit: Option<AgentPermit>,
}

impl std::fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tunnel").field("agent", &self.agent).finish_non_exhaustive()
    }
}

/// A tunnel in the hands of a request. Opening the request uses it up; dropped before that, it goes back to where it
/// came from and serves the next one.
#[derive(Debug)]
pub struct Lease {
    /// Absent only while it is being dropped.
    tunnel: Option<Tunnel>,
    home: Option<oneshot::Sender<Tunnel>>,
}

impl Lease {
    /// The lease, and where the tunnel comes back; the receiver fails once a request was opened.
    pub fn of(tunnel: Tunnel) -> (Self, oneshot::Receiver<Tunnel>) {
        let (home, returned) = oneshot::channel();
        (Self { tunnel: Some(tunnel), home: Some(home) }, returned)
    }

    /// Uses it up, to open a request or to end it.
    pub fn take(mut self) -> Tunnel {
        self.home = None;
        self.tunnel.take().expect("it is there until the lease is dropped")
    }
}

impl std::ops::Deref for Lease {
    type Target = Tunnel;
    fn deref(&self) -> &Tunnel {
        self.tunnel.as_ref().expect("it is there until the lease is dropped")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let (Some(home), Some(tunnel)) = (self.home.take(), self.tunnel.take())
            && let Err(homeless) = home.send(tunnel)
        {
            homeless.close(Ok(()));
        }
    }
}

/// Messages to the agent under way: one waits for the flow-control window, one is being made.
const IN_FLIGHT: usize = 1;

impl Tunnel {
    /// A tunnel over what the agent sends, with the descriptor already read, and the stream to answer it with.
    pub fn new(
        agent: AgentId,
        version: Option<(u32, u32)>,
        from_agent: BoxStream<'static, Result<ConnectRequest, Status>>,
        order: ConnectRequestOrder,
        presence: Option<PresenceGuard>,
    ) -> (Self, ToAgent) {
        let (to_agent, messages) = mpsc::channel(IN_FLIGHT);
        let (end, ended) = oneshot::channel();
        let end = EndGuard(Some(end));
        let tunnel = Self { agent, version, to_agent, from_agent, order, end, presence, permit: None };
        (tunnel, ToAgent { messages, ended: Some(ended), over: false })
    }

    /// Makes a request through this tunnel end when the agent's token is no longer good.
    pub fn held_by(self, permit: AgentPermit) -> Self {
        Self { permit: Some(permit), ..self }
    }

    /// Whose it is.
    pub fn agent(&self) -> AgentId {
        self.agent
    }

    /// What the agent calls itself: major and minor version.
    pub fn version(&self) -> Option<(u32, u32)> {
        self.version
    }

    /// Whether the agent understands upgraded connections (15.1 and later).
    pub fn carries_upgrades(&self) -> bool {
        self.version.is_some_and(|version| version >= (15, 1))
    }

    /// Whether the agent heeds whom a request impersonates (14.3 and later); older ones would use their own rights.
    pub fn carries_impersonation(&self) -> bool {
        self.version.is_some_and(|version| version >= (14, 3))
    }

    /// The next message of the agent while no request runs: any at all is a mistake, and the end is the end.
    pub async fn idle(&mut self) -> Option<Result<ConnectRequest, Status>> {
        self.from_agent.next().await
    }

    /// Ends an idle tunnel. `Ok` makes the agent open the next one at once.
    pub fn close(mut self, why: Result<(), Status>) {
        self.end.finish(why);
    }

    /// Returns when the agent's token is no longer good.
    pub fn withdrawn(&self) -> BoxFuture<'static, Status> {
        match &self.permit {
            Some(permit) => permit.withdrawn().boxed(),
            None => futures::future::pending().boxed(),
        }
    }

    /// Opens the request.
    pub async fn open(
        self,
        method: &str,
        meta: HashMap<String, Values>,
    ) -> Result<(RequestHalf, ResponseHalf), TunnelError> {
        let info = rpc::RequestInfo { method_name: method.to_owned(), meta };
        let withdrawn = self.withdrawn();
        let response = FromAgent {
            messages: self.from_agent,
            order: self.order,
            end: self.end,
            withdrawn: withdrawn.fuse(),
            _presence: self.presence,
        };
        put(&self.to_agent, connect_response::Msg::RequestInfo(info)).await?;
        let to_agent = RequestHalf(Towards::Agent(self.to_agent));
        Ok((to_agent, ResponseHalf(Back::Agent(Box::new(response)))))
    }
}

async fn put(
    to_agent: &mpsc::Sender<ConnectResponse>,
    msg: connect_response::Msg,
) -> Result<(), TunnelError> {
    let sent = to_agent.send(ConnectResponse { msg: Some(msg) }).await;
    sent.map_err(|_| TunnelError::Lost(None))
}

/// The direction towards the agent, over a tunnel of this process or another broker's.
#[derive(Debug)]
pub struct RequestHalf(Towards);

#[derive(Debug)]
enum Towards {
    Agent(mpsc::Sender<ConnectResponse>),
    Broker(RemoteRequest),
}

impl RequestHalf {
    /// Sends one message, once the agent has room for it.
    pub async fn send(&self, data: Bytes) -> Result<(), TunnelError> {
        match &self.0 {
            Towards::Agent(to_agent) => {
                put(to_agent, connect_response::Msg::Message(rpc::Message { data })).await
            }
            Towards::Broker(request) => request.send(&data).await,
        }
    }

    /// Says that no more messages come.
    pub async fn close(self) -> Result<(), TunnelError> {
        match self.0 {
            Towards::Agent(to_agent) => {
                put(&to_agent, connect_response::Msg::CloseSend(rpc::CloseSend {})).await
            }
            Towards::Broker(request) => request.close().await,
        }
    }
}

impl From<RemoteRequest> for RequestHalf {
    fn from(request: RemoteRequest) -> Self {
        Self(Towards::Broker(request))
    }
}

/// The direction from the agent. Dropping it before the end cancels the request at the agent.
pub struct ResponseHalf(Back);

enum Back {
    Agent(Box<FromAgent>),
    Broker(Box<RemoteResponse>),
}

impl std::fmt::Debug for ResponseHalf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ResponseHalf").finish_non_exhaustive()
    }
}

impl From<RemoteResponse> for ResponseHalf {
    fn from(response: RemoteResponse) -> Self {
        Self(Back::Broker(Box::new(response)))
    }
}

impl ResponseHalf {
    /// The next message; `None` once the agent has ended the request without an error.
    pub async fn next(&mut self) -> Result<Option<Bytes>, TunnelError> {
        match &mut self.0 {
            Back::Agent(response) => response.next().await,
            Back::Broker(response) => response.next().await,
        }
    }
}

struct FromAgent {
    messages: BoxStream<'static, Result<ConnectRequest, Status>>,
    order: ConnectRequestOrder,
    end: EndGuard,
    withdrawn: Fuse<BoxFuture<'static, Status>>,
    _presence: Option<PresenceGuard>,
}

impl FromAgent {
    async fn next(&mut self) -> Result<Option<Bytes>, TunnelError> {
        loop {
            let next = tokio::select! {
                // First, so that an agent that never stops sending cannot outlast its token.
                biased;
                status = &mut self.withdrawn => {
                    self.end.finish(Err(status.clone()));
                    return Err(TunnelError::Withdrawn(status));
                }
                next = self.messages.next() => next,
            };
            let message = match next {
                Some(Ok(message)) => message,
                Some(Err(status)) => return Err(TunnelError::Lost(Some(Box::new(status)))),
                None => {
                    if self.order.finish().is_err() {
                        return Err(TunnelError::Lost(None));
                    }
                    self.end.finish(Ok(()));
                    return Ok(None);
                }
            };
            self.order.accept(&message)?;
            match message.msg {
                Some(connect_request::Msg::Message(message)) => return Ok(Some(message.data)),
                Some(connect_request::Msg::Error(error)) => {
                    let status = error.status.unwrap_or_default();
                    self.end.finish(Ok(()));
                    return Err(TunnelError::Status(Status::new(Code::from(status.code), status.message)));
                }
                _ => {}
            }
        }
    }
}

/// Ends the agent's stream: with OK when finished properly, with CANCELLED when dropped.
#[derive(Debug)]
struct EndGuard(Option<oneshot::Sender<Result<(), Status>>>);

impl EndGuard {
    fn finish(&mut self, why: Result<(), Status>) {
        if let Some(end) = self.0.take() {
            let _ = end.send(why);
        }
    }
}

impl Drop for EndGuard {
    fn drop(&mut self) {
        self.finish(Err(Status::cancelled("Incoming stream closed")));
    }
}

/// What the agent's `Connect` call receives: queued messages, then the status that ended the tunnel.
#[derive(Debug)]
pub struct ToAgent {
    messages: mpsc::Receiver<ConnectResponse>,
    ended: Option<oneshot::Receiver<Result<(), Status>>>,
    over: bool,
}

impl Stream for ToAgent {
    type Item = Result<ConnectResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Some(ended) = &mut self.ended
            && let Poll::Ready(end) = Pin::new(ended).poll(cx)
        {
            self.ended = None;
            // What was queued before a proper end is still delivered; a cancelled request wants none of it.
            self.messages.close();
            if let Ok(Err(status)) = end {
                self.over = true;
                return Poll::Ready(Some(Err(status)));
            }
        }
        match self.messages.poll_recv(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            // The request is complete; the stream lives until the answer is, too.
            Poll::Ready(None) if self.ended.is_some() => Poll::Pending,
            Poll::Ready(None) => {
                self.over = true;
                Poll::Ready(None)
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
