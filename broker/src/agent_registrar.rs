//! Serves `AgentRegistrar.Register`: a replica says who and what it is, at its start and every five minutes. Before it:
//! admission. After it: the tracker, which lists who is connected, and what GitLab is told of agents.

use crate::{
    agent_tracker::{Tracker, Who},
    auth,
    gitlab::RegisteredEvent,
    listeners::agents::peer_address,
    usage::Usage,
};
use postern_wire::proto::gitlab::agent::agent_registrar::rpc::{
    RegisterRequest, RegisterResponse, agent_registrar_server::AgentRegistrar,
};
use std::sync::Arc;
use tonic::{Request, Response, Status, async_trait};

/// The service.
#[derive(Clone)]
pub struct RegistrarService {
    /// Lists the replica for a while.
    pub tracker: Tracker,
    /// Tells GitLab of it.
    pub usage: Arc<Usage>,
}

#[async_trait]
impl AgentRegistrar for RegistrarService {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let permit = auth::permit(&request)?;
        let address = peer_address(&request);
        let RegisterRequest { agent_meta, pod_id } = request.into_inner();
        let meta = agent_meta.unwrap_or_default();
        tracing::debug!(
            agent_id = %permit.agent.id, pod_id, version = meta.version, pod = meta.pod_name,
            namespace = meta.pod_namespace, "replica registered"
        );
        let kubernetes = meta.kubernetes_version.clone().unwrap_or_default();
        self.usage.registered(RegisteredEvent {
            project_id: permit.agent.project_id.0,
            agent_version: short(&meta.version),
            // `linux/amd64`
            architecture: short(kubernetes.platform.split('/').next_back().unwrap_or_default()),
            agent_id: permit.agent.id.0,
            kubernetes_version: short(&kubernetes.git_version),
            ..RegisteredEvent::default()
        });
        self.tracker.registered(Who::of(&permit.agent, address), meta, pod_id);
        Ok(Response::new(RegisterResponse {}))
    }
}

/// An agent may write anything; versions are short.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}
