//! Which services a tunnel reaches inside this process: a router by method name, no inner gRPC server.
//! Before it: `tunnel.rs`, which moves messages. After it: the service itself, which reads and writes them.

use crate::kubernetes_api::{self, KubernetesApi};
use bytes::Bytes;
use postern_wire::proto::gitlab::agent::reverse_tunnel::{
    info::{AgentDescriptor, Method, Service},
    rpc::{ConnectRequest, Message, connect_request::Msg},
};
use tokio::sync::mpsc;
use tonic::Status;

/// One call that came through a tunnel. It is cancelled by dropping it.
pub struct Call {
    /// Messages of the caller; closed once the caller has half-closed.
    pub requests: mpsc::Receiver<Bytes>,
    /// Where answers go.
    pub replies: Replies,
}

/// The way back to the caller: one message at a time, as fast as the tunnel takes them.
#[derive(Clone)]
pub struct Replies(mpsc::Sender<ConnectRequest>);

/// The tunnel is gone; nobody waits for an answer any more.
#[derive(Debug, thiserror::Error)]
#[error("the tunnel has ended")]
pub struct TunnelEnded;

impl From<TunnelEnded> for Status {
    fn from(ended: TunnelEnded) -> Self {
        Status::cancelled(ended.to_string())
    }
}

impl Replies {
    /// Answers into a tunnel's outgoing messages.
    pub fn new(tunnel: mpsc::Sender<ConnectRequest>) -> Self {
        Self(tunnel)
    }

    /// Sends one message of the answer.
    pub async fn send(&self, message: &impl prost::Message) -> Result<(), TunnelEnded> {
        let message = Message { data: message.encode_to_vec().into() };
        self.0.send(ConnectRequest { msg: Some(Msg::Message(message)) }).await.map_err(|_| TunnelEnded)
    }
}

/// Everything this agent can do for a caller.
pub struct Services {
    kubernetes_api: KubernetesApi,
}

impl Services {
    /// With access to this one cluster.
    pub fn new(kubernetes_api: KubernetesApi) -> Self {
        Self { kubernetes_api }
    }

    /// What the broker may ask for: kas chooses tunnels by exact service and method.
    pub fn descriptor(&self) -> AgentDescriptor {
        let method = Method { name: kubernetes_api::METHOD.to_owned() };
        AgentDescriptor {
            services: vec![Service { name: kubernetes_api::SERVICE.to_owned(), methods: vec![method] }],
        }
    }

    /// Runs one call. `method` is `/package.Service/Method`.
    pub async fn call(&self, method: &str, call: Call) -> Result<(), Status> {
        match method.strip_prefix('/').and_then(|name| name.split_once('/')) {
            Some((kubernetes_api::SERVICE, kubernetes_api::METHOD)) => {
                self.kubernetes_api.make_request(call).await
            }
            _ => {
                let method: String = method.chars().filter(|c| !c.is_control()).take(200).collect();
                Err(Status::unimplemented(format!("this agent does not serve {method}")))
            }
        }
    }
}
