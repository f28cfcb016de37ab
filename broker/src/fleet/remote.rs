//! A tunnel that another broker holds: asked for with a [`Knock`], let go of by dropping it, and once a request has
//! begun the two halves behind `tunnel::stream`'s. `peers` comes before it; at the other end is a `gateway` or a kas of
//! any generation. It never looks inside a message.

use super::{
    PeerUrl,
    peers::{Call, CallError, PeerError, Receiving, Sending},
};
use crate::tunnel::stream::{RequestHalf, ResponseHalf, TunnelError};
use bytes::Bytes;
use postern_wire::{
    order::GatewayOrder,
    proto::gitlab::agent::kas::{GatewayKasResponse, gateway_kas_response::Msg},
};
use prost::Message;
use std::sync::Arc;
use tonic::{Code, Status};

/// A broker that was asked for a tunnel. Dropping it tells the broker that its tunnel is not wanted.
#[derive(Debug)]
pub struct Knock {
    call: Call,
    order: GatewayOrder,
    broker: PeerUrl,
    version: Option<(u32, u32)>,
}

/// What the broker says of its tunnels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has none now and keeps looking. A kas of 14.1 never says so, it is silent.
    NoTunnel {
        /// The agent is connected there, and all its tunnels are in use. A kas does not say that.
        busy: bool,
    },
    /// It keeps one for this request.
    Ready,
}

impl Knock {
    pub(super) fn new(call: Call, broker: PeerUrl) -> Self {
        Self { call, order: GatewayOrder::new(), broker, version: None }
    }

    /// Who was asked.
    pub fn broker(&self) -> &PeerUrl {
        &self.broker
    }

    /// The broker's next answer: perhaps `NoTunnel`, later `Ready`, then nothing more. Cancel safe. How long a broker
    /// may look for a tunnel is the caller's to say.
    ///
    /// # Errors
    /// `Refused`, `Lost`, `Ended`, `Rules`; the knock is of no more use then.
    pub async fn answer(&mut self) -> Result<Answer, PeerError> {
        let broker = || self.broker.clone();
        let message = match self.call.receiving.message().await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(PeerError::Ended { broker: broker() }),
            Err(CallError::Status(status)) => return Err(PeerError::Refused { broker: broker(), status }),
            Err(CallError::Lost(source)) => {
                return Err(PeerError::Lost { broker: broker(), source: Arc::new(source) });
            }
            Err(CallError::Rules(what)) => {
                return Err(PeerError::Rules { broker: broker(), what: what.to_owned() });
            }
        };
        let rules = |what: String| PeerError::Rules { broker: broker(), what };
        let message = GatewayKasResponse::decode(message).map_err(|error| rules(error.to_string()))?;
        self.order.accept(&message).map_err(|error| rules(error.to_string()))?;
        match message.msg {
            Some(Msg::NoTunnel(none)) => Ok(Answer::NoTunnel { busy: none.busy }),
            Some(Msg::TunnelReady(ready)) => {
                self.version = read_version(&ready.agent_version);
                Ok(Answer::Ready)
            }
            _ => Err(rules("a message of a request that has not begun".to_owned())),
        }
    }

    /// The tunnel that the broker keeps, once it is `Ready`. Dropping it lets go of it as well.
    pub fn accept(self) -> RemoteTunnel {
        RemoteTunnel { knock: self }
    }
}

/// `16.5`, as a gateway of ours says it.
fn read_version(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// A tunnel of another broker that carries no request yet.
#[derive(Debug)]
pub struct RemoteTunnel {
    knock: Knock,
}

impl RemoteTunnel {
    /// Who holds it.
    pub fn broker(&self) -> &PeerUrl {
        &self.knock.broker
    }

    /// The agent's version as its broker says it; a kas says none.
    pub fn version(&self) -> Option<(u32, u32)> {
        self.knock.version
    }

    /// Whether the agent understands upgraded connections (15.1 and later). Of an agent at a kas nobody says so.
    pub fn carries_upgrades(&self) -> bool {
        self.knock.version.is_some_and(|version| version >= (15, 1))
    }

    /// Whether the agent heeds whom a request impersonates (14.3 and later).
    pub fn carries_impersonation(&self) -> bool {
        self.knock.version.is_some_and(|version| version >= (14, 3))
    }

    /// Opens the request, with the method and metadata of the knock.
    ///
    /// # Errors
    /// `BrokerLost`, or `Broker` with what the broker says.
    pub async fn open(self) -> Result<(RequestHalf, ResponseHalf), TunnelError> {
        let Knock { call: Call { sending, receiving }, order, broker, .. } = self.knock;
        let request = RemoteRequest { sending, broker: broker.clone() };
        let mut response = RemoteResponse { receiving, order, broker };
        // StartStreaming: zero bytes.
        match request.sending.message(&[]).await {
            Ok(()) => Ok((request.into(), response.into())),
            // What comes back says why.
            Err(_) => match response.next().await {
                Err(error) => Err(error),
                Ok(_) => Err(response.lost(None)),
            },
        }
    }
}

/// The direction towards the agent.
#[derive(Debug)]
pub struct RemoteRequest {
    sending: Sending,
    broker: PeerUrl,
}

impl RemoteRequest {
    /// Sends one message, once the broker has room for it.
    pub(crate) async fn send(&self, data: &[u8]) -> Result<(), TunnelError> {
        self.sending.message(data).await.map_err(|_| self.lost())
    }

    /// Says that no more messages come.
    pub(crate) async fn close(self) -> Result<(), TunnelError> {
        self.sending.close().await.map_err(|_| self.lost())
    }

    fn lost(&self) -> TunnelError {
        TunnelError::BrokerLost { broker: self.broker.clone(), source: None }
    }
}

/// The direction from the agent. Dropping it before the end cancels the request at the broker, and so at the agent.
#[derive(Debug)]
pub struct RemoteResponse {
    receiving: Receiving,
    order: GatewayOrder,
    broker: PeerUrl,
}

impl RemoteResponse {
    /// The next message; `None` once the agent has ended the request without an error.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, TunnelError> {
        loop {
            let message = match self.receiving.message().await {
                Ok(Some(message)) => message,
                Ok(None) if self.order.finish().is_ok() => return Ok(None),
                Ok(None) => return Err(self.lost(None)),
                Err(CallError::Status(status)) => return Err(self.ended(status)),
                Err(CallError::Lost(error)) => return Err(self.lost(Some(error))),
                Err(CallError::Rules(what)) => return Err(self.ended(Status::internal(what))),
            };
            let rules = |error: String| self.ended(Status::internal(error));
            let message = GatewayKasResponse::decode(message).map_err(|error| rules(error.to_string()))?;
            self.order.accept(&message).map_err(|error| self.ended(Status::internal(error.to_string())))?;
            match message.msg {
                Some(Msg::Message(message)) => return Ok(Some(message.data)),
                Some(Msg::Error(error)) => {
                    let status = error.status.unwrap_or_default();
                    return Err(TunnelError::Status(Status::new(Code::from(status.code), status.message)));
                }
                _ => {}
            }
        }
    }

    fn ended(&self, status: Status) -> TunnelError {
        TunnelError::Broker { broker: self.broker.clone(), status }
    }

    fn lost(&self, source: Option<h2::Error>) -> TunnelError {
        let source = source.map(|error| Box::new(error) as _);
        TunnelError::BrokerLost { broker: self.broker.clone(), source }
    }
}

#[cfg(test)]
mod tests;
