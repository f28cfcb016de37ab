//! One request of another broker, from the question for a tunnel to the end of the answer. Under `gateway`, which
//! checked who asks. A tunnel that was found and is not wanted any more serves the next request.

use crate::{
    drain::{Running, SHUTTING_DOWN},
    error::chain,
    outgoing::{Outgoing, Sender, outgoing},
    tunnel::{
        registry::{FindError, Registry},
        stream::{Lease, RequestHalf, ResponseHalf, TunnelError},
    },
};
use bytes::Bytes;
use futures::future::{Ready, ready};
use postern_wire::{
    ids::AgentId,
    metadata::{ROUTING_AGENT_ID, may_reach_agent},
    proto::{
        gitlab::agent::{
            kas::{
                GatewayKasResponse,
                gateway_kas_response::{self as gateway, Msg},
            },
            prototool::Values,
        },
        google::rpc,
    },
};
use std::{collections::HashMap, future::pending, sync::Arc, time::Duration};
use tokio::time::timeout;
use tonic::{
    Request, Response, Status, Streaming,
    metadata::{KeyAndValueRef, MetadataMap},
    server::StreamingService,
};

pub(super) const METHOD: &str = "/gitlab.agent.kubernetes_api.rpc.KubernetesApi/MakeRequest";
/// From "there is a tunnel" to "then begin". A router that chose another says so at once.
const START_WAIT: Duration = Duration::from_secs(20);
/// A caller may read as slowly as it likes; one that is gone resets the stream.
const PATIENCE: Duration = Duration::MAX;

#[derive(Clone, Debug)]
pub(super) struct MakeRequest {
    pub(super) registry: Arc<Registry>,
    pub(super) running: Running,
}

impl StreamingService<Bytes> for MakeRequest {
    type Response = GatewayKasResponse;
    type ResponseStream = Outgoing<GatewayKasResponse>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let metadata = request.metadata();
        let agent = match routed_to(metadata) {
            Ok(agent) => agent,
            Err(status) => return ready(Err(status)),
        };
        let meta = for_agent(metadata);
        let (requests, incoming) = (self.clone(), request.into_inner());
        ready(Ok(Response::new(outgoing(PATIENCE, move |to_router| async move {
            requests.serve(agent, meta, incoming, to_router).await
        }))))
    }
}

/// Whom the caller wants to reach.
fn routed_to(metadata: &MetadataMap) -> Result<AgentId, Status> {
    let values: Vec<_> = metadata.get_all(ROUTING_AGENT_ID).iter().collect();
    let [value] = values.as_slice() else {
        let message = format!("Expecting a single {ROUTING_AGENT_ID}, got {}", values.len());
        return Err(Status::invalid_argument(message));
    };
    let id = value.to_str().ok().and_then(|value| value.parse().ok());
    id.map(AgentId).ok_or_else(|| Status::invalid_argument(format!("Invalid {ROUTING_AGENT_ID}")))
}

/// The caller's metadata without what is between brokers. The call to the agent is a gRPC call as well.
fn for_agent(metadata: &MetadataMap) -> HashMap<String, Values> {
    let content_type = Values { value: vec!["application/grpc".to_owned()] };
    let mut meta = HashMap::from([("content-type".to_owned(), content_type)]);
    for entry in metadata.iter() {
        let (key, value) = match entry {
            KeyAndValueRef::Ascii(key, value) => (key.as_str(), value.to_str().ok().map(str::to_owned)),
            KeyAndValueRef::Binary(key, value) => {
                let bytes = value.to_bytes().ok();
                (key.as_str(), bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok()))
            }
        };
        if let Some(value) = value.filter(|_| may_reach_agent(key)) {
            meta.entry(key.to_owned()).or_default().value.push(value);
        }
    }
    meta
}

type ToRouter = Sender<GatewayKasResponse>;

fn say(msg: Msg) -> GatewayKasResponse {
    GatewayKasResponse { msg: Some(msg) }
}

impl MakeRequest {
    async fn serve(
        self,
        agent: AgentId,
        meta: HashMap<String, Values>,
        mut incoming: Streaming<Bytes>,
        to_router: ToRouter,
    ) -> Result<(), Status> {
        let Some(tunnel) = self.find(agent, &mut incoming, &to_router).await? else { return Ok(()) };
        let under_way = self.running.enter();
        let version = tunnel.version().map(|(major, minor)| format!("{major}.{minor}"));
        let ready = gateway::TunnelReady { agent_version: version.unwrap_or_default() };
        to_router.send(say(Msg::TunnelReady(ready))).await?;
        match timeout(START_WAIT, incoming.message()).await {
            Ok(Ok(Some(start))) if start.is_empty() => {}
            Ok(Ok(Some(_))) => {
                let message = "the first message is not StartStreaming, which has no bytes";
                return Err(Status::invalid_argument(message));
            }
            // Another broker was faster.
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(status),
            Err(_) => {
                let message = format!("no StartStreaming within {START_WAIT:?}; the tunnel is free again");
                return Err(Status::deadline_exceeded(message));
            }
        }
        let withdrawn = tunnel.withdrawn();
        let (to_agent, from_agent) =
            tunnel.take().open(METHOD, meta).await.map_err(|error| failed(&error))?;
        tokio::select! {
            ended = answer(from_agent, &to_router) => ended,
            left = forward(incoming, to_agent) => Err(left),
            // Also while the caller does not read: the answer looks only when it is.
            status = withdrawn => Err(failed(&TunnelError::Withdrawn(status))),
            () = under_way.cut().cancelled() => Err(Status::unavailable(SHUTTING_DOWN)),
        }
    }

    /// A tunnel now or later; `None` if the caller does not want it any more.
    async fn find(
        &self,
        agent: AgentId,
        incoming: &mut Streaming<Bytes>,
        to_router: &ToRouter,
    ) -> Result<Option<Lease>, Status> {
        if let Some(tunnel) = self.registry.take(agent).await {
            return Ok(Some(tunnel));
        }
        let none = gateway::NoTunnel { busy: self.registry.holds(agent) };
        to_router.send(say(Msg::NoTunnel(none))).await?;
        tokio::select! {
            biased;
            early = incoming.message() => match early? {
                None => Ok(None),
                Some(_) => Err(Status::invalid_argument("a message before there is a tunnel")),
            },
            found = self.registry.wait(agent) => match found {
                Ok(tunnel) => Ok(Some(tunnel)),
                Err(FindError::Draining) => Err(Status::unavailable(SHUTTING_DOWN)),
                Err(error) => Err(Status::resource_exhausted(error.to_string())),
            },
        }
    }
}

/// The caller's messages to the agent. Returns only if the caller leaves; what else ends it the answer tells.
async fn forward(mut incoming: Streaming<Bytes>, to_agent: RequestHalf) -> Status {
    loop {
        match incoming.message().await {
            Ok(Some(data)) => {
                if to_agent.send(data).await.is_err() {
                    break;
                }
            }
            Ok(None) => {
                let _ = to_agent.close().await;
                break;
            }
            Err(status) => return status,
        }
    }
    pending().await
}

/// The agent's messages to the caller.
async fn answer(mut from_agent: ResponseHalf, to_router: &ToRouter) -> Result<(), Status> {
    let mut begun = false;
    loop {
        let next = from_agent.next().await;
        if let Err(error) = &next
            && !matches!(error, TunnelError::Status(_))
        {
            return Err(failed(error));
        }
        // The agent's own metadata is of no use to anybody; the head and the trailer stand for the order.
        if !std::mem::replace(&mut begun, true) {
            to_router.send(say(Msg::Header(gateway::Header::default()))).await?;
        }
        match next {
            Ok(Some(data)) => to_router.send(say(Msg::Message(gateway::Message { data }))).await?,
            Ok(None) => return to_router.send(say(Msg::Trailer(gateway::Trailer::default()))).await,
            Err(error) => {
                to_router.send(say(Msg::Trailer(gateway::Trailer::default()))).await?;
                let TunnelError::Status(status) = error else { return Err(failed(&error)) };
                let status = rpc::Status {
                    code: status.code().into(),
                    message: status.message().to_owned(),
                    details: Vec::new(),
                };
                return to_router.send(say(Msg::Error(gateway::Error { status: Some(status) }))).await;
            }
        }
    }
}

/// What went wrong on this side, as the stream's status.
fn failed(error: &TunnelError) -> Status {
    match error {
        TunnelError::Order(_) => Status::internal(chain(error)),
        TunnelError::Withdrawn(_) => Status::permission_denied(chain(error)),
        _ => Status::unavailable(chain(error)),
    }
}
