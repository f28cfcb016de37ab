//! The calls of GitLab Rails, one small service each. Before them: the check of Rails' JWT. They keep nothing but the
//! short memory of listings in [`super::configuration_files`].

use super::configuration_files::ConfigurationFiles;
use crate::{
    fleet::roster::{Gathered, PATIENCE, Roster},
    gitaly::Gitaly,
};
use postern_wire::{
    ids::{AgentId, ProjectId},
    metadata::Program,
    proto::gitlab::agent::{
        agent_tracker::{
            ConnectedAgentInfo,
            rpc::{
                GetConnectedAgentsByAgentIDsRequest, GetConnectedAgentsByAgentIDsResponse,
                GetConnectedAgentsByProjectIDsRequest, GetConnectedAgentsByProjectIDsResponse,
                GetConnectedAgentsRequest, GetConnectedAgentsResponse, agent_tracker_server::AgentTracker,
                get_connected_agents_request::Request as Wanted,
            },
        },
        configuration_project::rpc::{
            ListAgentConfigFilesRequest, ListAgentConfigFilesResponse,
            configuration_project_server::ConfigurationProject,
        },
        event::GitPushEvent,
        notifications::rpc::{
            GitPushEventRequest, GitPushEventResponse, notifications_server::Notifications,
        },
        server_info::{
            ServerInfo as Info,
            rpc::{GetServerInfoRequest, GetServerInfoResponse, server_info_server::ServerInfo},
        },
    },
};
use std::{sync::Arc, time::Duration};
use tonic::{Request, Response, Status, async_trait, metadata::MetadataMap};

/// Told the full path of a project that was pushed to.
pub type OnPush = Arc<dyn Fn(GitPushEvent) + Send + Sync>;

/// `AgentTracker`: who is connected, to whichever broker.
pub(super) struct AgentTrackerService {
    pub(super) roster: Roster,
}

#[async_trait]
impl AgentTracker for AgentTrackerService {
    async fn get_connected_agents(
        &self,
        request: Request<GetConnectedAgentsRequest>,
    ) -> Result<Response<GetConnectedAgentsResponse>, Status> {
        let patience = patience(request.metadata());
        let gathered = match request.into_inner().request {
            Some(Wanted::ProjectId(id)) => self.roster.by_projects([ProjectId(id)].into(), patience).await,
            Some(Wanted::AgentId(id)) => self.roster.by_agents([AgentId(id)].into(), patience).await,
            None => return Err(Status::invalid_argument("one of project_id and agent_id is required")),
        };
        Ok(Response::new(GetConnectedAgentsResponse { agents: infos(gathered) }))
    }

    async fn get_connected_agents_by_agent_i_ds(
        &self,
        request: Request<GetConnectedAgentsByAgentIDsRequest>,
    ) -> Result<Response<GetConnectedAgentsByAgentIDsResponse>, Status> {
        let patience = patience(request.metadata());
        let ids = request.into_inner().agent_ids.into_iter().map(AgentId).collect();
        let agents = infos(self.roster.by_agents(ids, patience).await);
        Ok(Response::new(GetConnectedAgentsByAgentIDsResponse { agents }))
    }

    async fn get_connected_agents_by_project_i_ds(
        &self,
        request: Request<GetConnectedAgentsByProjectIDsRequest>,
    ) -> Result<Response<GetConnectedAgentsByProjectIDsResponse>, Status> {
        let patience = patience(request.metadata());
        let ids = request.into_inner().project_ids.into_iter().map(ProjectId).collect();
        let agents = infos(self.roster.by_projects(ids, patience).await);
        Ok(Response::new(GetConnectedAgentsByProjectIDsResponse { agents }))
    }

    async fn get_connected_agentks_by_agent_i_ds(
        &self,
        request: Request<GetConnectedAgentsByAgentIDsRequest>,
    ) -> Result<Response<GetConnectedAgentsByAgentIDsResponse>, Status> {
        self.get_connected_agents_by_agent_i_ds(request).await
    }
}

/// Rails is told nothing of brokers: it has no place for them.
fn infos(gathered: Gathered) -> Vec<ConnectedAgentInfo> {
    gathered.entries.into_iter().map(|entry| Arc::unwrap_or_clone(entry.connected.info)).collect()
}

/// How long other brokers may take: a caller that gives up sooner than usual gets what is known by then.
fn patience(metadata: &MetadataMap) -> Duration {
    let limit = metadata.get("grpc-timeout").and_then(|text| grpc_timeout(text.to_str().ok()?));
    limit.map_or(PATIENCE, |limit| PATIENCE.min(limit * 2 / 3))
}

/// At most eight digits and a unit.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 {
        return None;
    }
    let number: u32 = digits.parse().ok()?;
    let unit = match unit {
        "H" => Duration::from_secs(3600),
        "M" => Duration::from_secs(60),
        "S" => Duration::from_secs(1),
        "m" => Duration::from_millis(1),
        "u" => Duration::from_micros(1),
        "n" => Duration::from_nanos(1),
        _ => return None,
    };
    Some(unit * number)
}

/// `ConfigurationProject`: which agents a project configures.
pub(super) struct ConfigurationProjectService {
    files: Option<ConfigurationFiles>,
}

impl ConfigurationProjectService {
    pub(super) fn new(gitaly: Option<Arc<Gitaly>>) -> Self {
        Self { files: gitaly.map(ConfigurationFiles::new) }
    }
}

#[async_trait]
impl ConfigurationProject for ConfigurationProjectService {
    async fn list_agent_config_files(
        &self,
        request: Request<ListAgentConfigFilesRequest>,
    ) -> Result<Response<ListAgentConfigFilesResponse>, Status> {
        let files = self.files.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this kas has no GitLab to list configuration files of: its configuration has no section gitlab",
            )
        })?;
        let config_files = files.list(request.into_inner()).await?;
        Ok(Response::new(ListAgentConfigFilesResponse { config_files }))
    }
}

/// `Notifications`: something was pushed.
pub(super) struct NotificationsService {
    pub(super) on_push: OnPush,
}

#[async_trait]
impl Notifications for NotificationsService {
    async fn git_push_event(
        &self,
        request: Request<GitPushEventRequest>,
    ) -> Result<Response<GitPushEventResponse>, Status> {
        let event = request.into_inner().event.unwrap_or_default();
        let project = event.project.as_ref();
        let project = project.ok_or_else(|| Status::invalid_argument("event.project is required"))?;
        if project.id <= 0 {
            return Err(Status::invalid_argument("event.project.id must be greater than 0"));
        }
        if project.full_path.is_empty() {
            return Err(Status::invalid_argument("event.project.full_path is required"));
        }
        tracing::debug!(project_id = project.id, project = project.full_path, "pushed to");
        (self.on_push)(event);
        Ok(Response::new(GitPushEventResponse {}))
    }
}

/// `ServerInfo`: which version this is.
pub(super) struct ServerInfoService {
    pub(super) program: Program,
}

#[async_trait]
impl ServerInfo for ServerInfoService {
    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let Program { version, commit, .. } = self.program;
        // Rails links the commit to its own host where there is one, and compares versions without the `v`.
        let git_ref = if commit == "unknown" { "" } else { commit };
        let info = Info { version: version.trim_start_matches('v').to_owned(), git_ref: git_ref.to_owned() };
        Ok(Response::new(GetServerInfoResponse { current_server_info: Some(info) }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_brokers_get_two_thirds_of_what_time_the_caller_has_but_no_more_than_usual() {
        for (said, wanted) in [
            (None, PATIENCE),
            (Some("2S"), PATIENCE),
            (Some("1999998u"), PATIENCE),
            (Some("600m"), Duration::from_millis(400)),
            (Some("300000000n"), PATIENCE),
            (Some("30000000n"), Duration::from_millis(20)),
            (Some("99999999H"), PATIENCE),
            (Some("0S"), Duration::ZERO),
            (Some("S"), PATIENCE),
            (Some("2"), PATIENCE),
            (Some("-2S"), PATIENCE),
        ] {
            let mut metadata = MetadataMap::new();
            if let Some(said) = said {
                metadata.insert("grpc-timeout", said.parse().unwrap());
            }
            assert_eq!(patience(&metadata), wanted, "{said:?}");
        }
    }
}
