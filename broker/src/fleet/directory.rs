//! Stub.
use crate::fleet::PeerUrl;
use postern_wire::ids::AgentId;
use std::{sync::Arc, time::SystemTime};
#[derive(Debug)]
pub struct Directory;
impl Directory {
    pub fn own(&self) -> &PeerUrl {
        unreachable!()
    }
    pub fn search(self: &Arc<Self>, _: AgentId) -> Search {
        Search
    }
    pub fn forget(&self, _: AgentId, _: &PeerUrl) {}
    pub fn peers(&self) -> Vec<PeerUrl> {
        vec![]
    }
    pub async fn last_seen(&self, _: AgentId) -> Option<LastSeen> {
        None
    }
}
#[derive(Debug)]
pub struct Search;
impl Search {
    pub async fn next(&mut self) -> Found {
        std::future::pending().await
    }
}
#[derive(Debug)]
pub enum Found {
    Peer(PeerUrl),
    Nobody { last: Option<LastSeen> },
    Unknown,
}
#[derive(Debug, Clone)]
pub struct LastSeen {
    pub at: SystemTime,
    pub from: String,
    pub broker: String,
    pub refusal: Option<String>,
}
