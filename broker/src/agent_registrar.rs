//! Serves `AgentRegistrar.Register`: a replica says who and what it is, at its start and every five minutes.

use crate::auth;
use postern_wire::proto::gitlab::agent::agent_registrar::rpc::{
    RegisterRequest, RegisterResponse, agent_registrar_server::AgentRegistrar,
};
use tonic::{Request, Response, Status, async_trait};

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct RegistrarService;

#[async_trait]
impl AgentRegistrar for RegistrarService {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let permit = auth::permit(&request)?;
        let RegisterRequest { agent_meta, pod_id } = request.into_inner();
        let meta = agent_meta.unwrap_or_default();
        tracing::debug!(
            agent_id = %permit.agent.id, pod_id, version = meta.version, pod = meta.pod_name,
            namespace = meta.pod_namespace, "replica registered"
        );
        Ok(Response::new(RegisterResponse {}))
    }
}
