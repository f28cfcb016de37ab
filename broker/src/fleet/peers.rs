//! Stub.
use crate::fleet::{PeerUrl, remote::RemoteTunnel};
use postern_wire::{ids::AgentId, proto::gitlab::agent::prototool::Values};
use std::collections::HashMap;
#[derive(Debug)]
pub struct Peers;
#[derive(Debug)]
pub struct Knock;
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PeerError(String);
impl PeerError {
    #[cfg(test)]
    pub fn test(s: &str) -> Self {
        Self(s.to_owned())
    }
}
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    NoTunnel { busy: bool },
    Ready,
}
impl Peers {
    pub async fn knock(
        &self,
        _: &PeerUrl,
        _: AgentId,
        _: &'static str,
        _: &HashMap<String, Values>,
    ) -> Result<Knock, PeerError> {
        Ok(Knock)
    }
}
impl Knock {
    pub async fn answer(&mut self) -> Result<Answer, PeerError> {
        Ok(Answer::Ready)
    }
    pub fn accept(self) -> RemoteTunnel {
        RemoteTunnel
    }
}
