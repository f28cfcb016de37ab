//! Serves `ReverseTunnel.Connect`: authenticates the agent, reads its descriptor, and keeps the tunnel idle in the
//! registry until a request takes it, the agent leaves, its token is withdrawn, or its time is up.

use crate::{
    auth::{self, AgentPermit},
    drain::{Departures, Goodbye},
    listeners::agents::peer_address,
    tunnel::{
        bounds::Bounds,
        registry::{Claim, Offer, Registry},
        stream::{Lease, ToAgent, Tunnel},
    },
};
use futures::StreamExt;
use postern_wire::{
    metadata::agent_version,
    order::ConnectRequestOrder,
    proto::gitlab::agent::reverse_tunnel::rpc::{
        ConnectRequest, connect_request, reverse_tunnel_server::ReverseTunnel,
    },
};
use rand::Rng;
use std::{sync::Arc, time::Duration};
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming, async_trait};

/// An agent sends its descriptor together with the call; one that does not is not an agent.
const DESCRIPTOR_WAIT: Duration = Duration::from_secs(20);
/// Up to twice this, an agent that had too many idle tunnels is asked to wait before it opens the one anew; agents of GitLab
/// do not wait.
const SURPLUS_PAUSE: Duration = Duration::from_secs(1);

/// The service.
#[derive(Clone, Debug)]
pub struct TunnelService {
    /// Where idle tunnels are kept.
    pub registry: Arc<Registry>,
    /// How long a tunnel may stay idle, and how many of an agent.
    pub bounds: Bounds,
    /// When idle tunnels are to end.
    pub departures: Departures,
    /// Every idle tunnel's task, so that a drain can wait for them.
    pub tasks: TaskTracker,
}

#[async_trait]
impl ReverseTunnel for TunnelService {
    type ConnectStream = ToAgent;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<ToAgent>, Status> {
        let permit = auth::permit(&request)?;
        let from = peer_address(&request);
        let user_agent = request.metadata().get("user-agent").and_then(|value| value.to_str().ok());
        let version = user_agent.and_then(agent_version);
        let presence = self.registry.present(permit.agent.id, from, true);
        let mut stream = request.into_inner();
        let message = tokio::time::timeout(DESCRIPTOR_WAIT, stream.message()).await;
        let order = descriptor(message, ConnectRequestOrder::new())?;
        let (tunnel, to_agent) = Tunnel::new(permit.agent.id, version, stream.boxed(), order, Some(presence));
        let tunnel = tunnel.held_by(permit.clone());
        let service = self.clone();
        self.tasks.spawn(async move { service.keep(permit, tunnel).await });
        Ok(Response::new(to_agent))
    }
}

fn descriptor(
    message: Result<Result<Option<ConnectRequest>, Status>, tokio::time::error::Elapsed>,
    mut order: ConnectRequestOrder,
) -> Result<ConnectRequestOrder, Status> {
    let message = message.map_err(|_| Status::deadline_exceeded("no descriptor within 20 s"))??;
    let message =
        message.ok_or_else(|| Status::invalid_argument("the stream ended before its descriptor"))?;
    let accepted = order.accept(&message);
    accepted.map_err(|error| Status::invalid_argument(error.to_string()))?;
    match message.msg {
        Some(connect_request::Msg::Descriptor(_)) => Ok(order),
        _ => Err(Status::invalid_argument("Invalid oneof value type: expecting a descriptor")),
    }
}

impl TunnelService {
    /// Holds the tunnel while it is idle.
    async fn keep(self, permit: AgentPermit, mut tunnel: Tunnel) {
        let mut bounded = self.bounds.begin(permit.agent.id, permit.who(), &self.registry);
        let withdrawn = permit.withdrawn();
        tokio::pin!(withdrawn);
        let stay = self.departures.stay(permit.agent.id);
        loop {
            let (_ticket, claimed) = match self.registry.offer(permit.agent.id) {
                Offer::Wanted(claim) => match lend(claim, tunnel).await {
                    Some(returned) => {
                        tunnel = returned;
                        continue;
                    }
                    None => return,
                },
                Offer::Idle(ticket, claimed) => (ticket, claimed),
            };
            tokio::select! {
                // A claim that raced with an end wins: the request is told by the tunnel itself.
                biased;
                claim = claimed => match claim {
                    Ok(claim) => match lend(claim, tunnel).await {
                        Some(returned) => tunnel = returned,
                        None => return,
                    },
                    // The registry let go of it.
                    Err(_) if self.registry.is_draining() => return tunnel.close(Ok(())),
                    Err(_) => {
                        let pause = SURPLUS_PAUSE.mul_f64(rand::rng().random_range(1.0..2.0));
                        return tunnel.close(Err(Goodbye { pause }.status()));
                    }
                },
                message = tunnel.idle() => {
                    return match message {
                        Some(Ok(_)) => tunnel.close(Err(Status::invalid_argument("message before any request"))),
                        Some(Err(_)) | None => tunnel.close(Ok(())),
                    };
                }
                () = bounded.too_old(&self.registry) => return tunnel.close(Ok(())),
                status = &mut withdrawn => {
                    self.registry.refused(permit.agent.id, status.message().to_owned());
                    tracing::warn!(agent_id = %permit.agent.id, token = %permit.key(), "tunnel ended: {}", status.message());
                    return tunnel.close(Err(status));
                }
                goodbye = stay.tunnel_over() => return tunnel.close(Err(goodbye.status())),
            }
        }
    }
}

/// Hands the tunnel to a request. It comes back if the request went away meanwhile, or left it unopened.
async fn lend(claim: Claim, tunnel: Tunnel) -> Option<Tunnel> {
    let (lease, returned) = Lease::of(tunnel);
    // A request that is gone drops the lease here and now, and it comes back like any other.
    drop(claim.send(lease));
    returned.await.ok()
}

#[cfg(test)]
mod tests;
