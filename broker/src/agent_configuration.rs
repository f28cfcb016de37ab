//! Serves `AgentConfiguration.GetConfiguration`: the document an agent runs by, sent when the agent asks and again
//! whenever a commit changes it. It reads from `repositories.rs`; what an agent does with it is the agent's.

mod document;
mod documents;
pub mod report;

use crate::{
    agent_tracker::{Connection, Tracker, Who},
    auth::{self, AgentPermit},
    drain::{Departures, Stay},
    events::{Event, EventKind, Events},
    gitaly::poller,
    listeners::agents::peer_address,
    per_agent::{PerAgent, Slot},
    policies::{Ages, Lifetime},
    repositories::{CommitId, Head, ReadError, Repositories, Repository},
    tunnel::registry::{PresenceGuard, Registry},
};
use bytes::Bytes;
use document::Parsed;
pub use documents::Documents;
use futures::{Stream, stream};
use postern_wire::proto::gitlab::agent::{
    agent_configuration::rpc::{
        ConfigurationRequest, ConfigurationResponse, agent_configuration_server::AgentConfiguration,
    },
    agentcfg,
};
use report::Reports;
use std::{pin::Pin, sync::Arc};
use tonic::{Request, Response, Status, async_trait};

/// Stands for the commit of an agent that has no repository: its configuration is empty and never changes.
const NO_REPOSITORY: &str = "none";

/// Streams that one agent may have open: one a replica.
pub const STREAMS_PER_AGENT: usize = 1_000;

/// The service.
#[derive(Clone)]
pub struct ConfigurationService {
    /// Where documents are.
    pub repositories: Arc<Repositories>,
    /// Counts the stream as a sign of life.
    pub registry: Arc<Registry>,
    /// Lists agents that do not register, and those whose registration another broker has.
    pub tracker: Tracker,
    /// Hears of what was sent and refused.
    pub events: Arc<Events>,
    /// Tells GitLab what each agent has; absent without GitLab.
    pub reports: Option<Arc<Reports>>,
    /// Where agents find GitLab's pages; empty without GitLab.
    pub external_url: String,
    /// What files say.
    pub documents: Arc<Documents>,
    /// How many streams each agent has.
    pub streams: PerAgent,
    /// When to read again what could not be read.
    pub retry: poller::Periods,
    /// Larger documents are refused, in bytes.
    pub max_file_size: u32,
    /// How long one stream lives; agents then open the next one.
    pub ages: Ages,
    /// When streams are to end.
    pub departures: Departures,
}

type Responses = Pin<Box<dyn Stream<Item = Result<ConfigurationResponse, Status>> + Send>>;

#[async_trait]
impl AgentConfiguration for ConfigurationService {
    type GetConfigurationStream = Responses;

    async fn get_configuration(
        &self,
        request: Request<ConfigurationRequest>,
    ) -> Result<Response<Responses>, Status> {
        let permit = auth::permit(&request)?;
        let Some(slot) = self.streams.try_enter(permit.agent.id) else {
            return Err(Status::resource_exhausted(format!(
                "this agent has {STREAMS_PER_AGENT} configuration streams open already"
            )));
        };
        let address = peer_address(&request);
        let presence = self.registry.present(permit.agent.id, address.clone(), false);
        let request = request.into_inner();
        let meta = request.agent_meta.unwrap_or_default();
        tracing::info!(
            agent_id = %permit.agent.id, version = meta.version, pod = meta.pod_name, namespace = meta.pod_namespace,
            "agent asks for its configuration"
        );
        let agent = &permit.agent;
        let who = Who::of(agent, address);
        // Also of those that register: perhaps at a broker that is gone since, or at another one than this.
        let connection = match request.skip_register {
            true => self.tracker.configured(who, meta),
            false => Some(self.tracker.connected(who, meta)),
        };
        let life = self.ages.begin(permit.who());
        let feed = Feed {
            stay: Arc::new(self.departures.stay(agent.id)),
            service: self.clone(),
            permit,
            last: Some(request.commit_id).filter(|commit| !commit.is_empty()),
            repository: None,
            over: false,
            _presence: presence,
            _connection: connection,
            _slot: slot,
        };
        let responses = stream::unfold((feed, life), |(mut feed, mut life)| async move {
            let next = feed.next(&mut life).await?;
            feed.over = next.is_err();
            Some((next, (feed, life)))
        });
        Ok(Response::new(Box::pin(responses)))
    }
}

/// One agent's stream.
struct Feed {
    stay: Arc<Stay>,
    service: ConfigurationService,
    permit: AgentPermit,
    /// The commit the agent has processed.
    last: Option<String>,
    repository: Option<(Repository, Head)>,
    over: bool,
    _presence: PresenceGuard,
    _connection: Option<Connection>,
    _slot: Slot,
}

impl Feed {
    /// The next document, an error that ends the stream, or its proper end.
    async fn next(&mut self, life: &mut Lifetime) -> Option<Result<ConfigurationResponse, Status>> {
        if self.over {
            return None;
        }
        let stay = Arc::clone(&self.stay);
        let (withdrawn, altered) = (self.permit.withdrawn(), self.permit.altered());
        tokio::select! {
            biased;
            status = withdrawn => Some(Err(status)),
            // Another repository or name: the agent asks anew at once and is told the new one's.
            () = altered => None,
            () = life.over() => None,
            goodbye = stay.stream_over() => Some(Err(goodbye.status())),
            next = self.changed() => Some(next),
        }
    }

    async fn changed(&mut self) -> Result<ConfigurationResponse, Status> {
        let agent = Arc::clone(&self.permit.agent);
        let (repository, head) = match &mut self.repository {
            Some(known) => known,
            none => match self.service.repositories.follow(&agent.repository, self.permit.who()).await {
                Some(repository) => {
                    let head = repository.head();
                    none.insert((repository, head))
                }
                None => {
                    if self.last.as_deref() == Some(NO_REPOSITORY) {
                        std::future::pending::<()>().await;
                    }
                    self.last = Some(NO_REPOSITORY.to_owned());
                    return Ok(self.response(&Parsed::default(), NO_REPOSITORY));
                }
            },
        };
        let mut failures = 0;
        loop {
            // No commit is not the agent's fault and perhaps mended soon: the stream stays, the follower's log says why.
            if let Some(commit) = head.now()
                && self.last.as_deref() != Some(&*commit)
            {
                let file = format!(".gitlab/agents/{}/config.yaml", agent.name);
                let limit = u64::from(self.service.max_file_size);
                let read = repository.read(&commit, &file, limit).await;
                match understand(&self.service.documents, &file, &commit, read).await {
                    Ok(parsed) => {
                        self.last = Some(commit.to_string());
                        return Ok(self.response(&parsed, &commit));
                    }
                    Err(Unusable::Refused(error)) => {
                        tracing::warn!(agent_id = %agent.id, commit_id = %commit, error, "configuration refused");
                        let (commit_id, status) = (commit.to_string(), format!("Config: {error}"));
                        self.happened(EventKind::ConfigurationRefused { commit_id, error });
                        return Err(Status::failed_precondition(status));
                    }
                    // Nor is a server that is away: nothing an agent could do brings it back.
                    Err(Unusable::Unread(error)) => {
                        let pause = poller::again(self.service.retry, failures, error.is_away());
                        // Once, not at every attempt.
                        if failures == 0 {
                            tracing::warn!(agent_id = %agent.id, %error, retry_in = ?pause, "configuration cannot be read yet");
                        }
                        failures = failures.saturating_add(1);
                        tokio::time::sleep(pause).await;
                        continue;
                    }
                }
            }
            if !head.changed().await {
                return Err(Status::unavailable("unavailable: the repository is no longer followed"));
            }
        }
    }

    fn happened(&self, kind: EventKind) {
        let agent = &self.permit.agent;
        self.service.events.publish(Event::now(kind, agent.id, agent.project_id));
    }

    fn response(&self, parsed: &Parsed, commit: &str) -> ConfigurationResponse {
        let agent = &self.permit.agent;
        if let Some(reports) = &self.service.reports {
            reports.report(agent.id, &parsed.document);
        }
        self.happened(EventKind::ConfigurationSent { commit_id: commit.to_owned() });
        let file = parsed.file.clone();
        tracing::info!(agent_id = %agent.id, commit_id = commit, "configuration sent");
        let configuration = agentcfg::AgentConfiguration {
            gitops: file.gitops,
            observability: file.observability,
            cilium: file.cilium,
            agent_id: agent.id.0,
            project_id: agent.project_id.0,
            ci_access: file.ci_access,
            container_scanning: file.container_scanning,
            project_path: agent.project_path.clone(),
            remote_development: file.remote_development,
            flux: file.flux,
            gitlab_external_url: self.service.external_url.clone(),
            kubernetes_api: file.kubernetes_api,
            views: file.views,
        };
        ConfigurationResponse { configuration: Some(configuration), commit_id: commit.to_owned() }
    }
}

/// Why an agent gets no configuration.
enum Unusable {
    /// Whoever wrote the file has to mend it.
    Refused(String),
    /// It may work a moment later.
    Unread(ReadError),
}

async fn understand(
    documents: &Documents,
    file: &str,
    commit: &CommitId,
    read: Result<Option<Bytes>, ReadError>,
) -> Result<Parsed, Unusable> {
    match read {
        // An agent without a file is an agent with an empty configuration.
        Ok(None) => Ok(Parsed::default()),
        Ok(Some(content)) => match &*documents.understand(commit, file, content).await {
            Ok(parsed) => Ok(parsed.clone()),
            Err(problems) => Err(Unusable::Refused(format!("{file} at {commit}: {problems}"))),
        },
        Err(error) if error.is_users() => Err(Unusable::Refused(error.to_string())),
        Err(error) => Err(Unusable::Unread(error)),
    }
}

#[cfg(test)]
mod tests;
