//! Serves `Gitops.GetObjectsToSynchronize`: an agent asks for the manifests of a project and gets them when there is a
//! commit it has not processed. Before it: admission, which says who the agent is; `gitops/projects.rs`, which says
//! what it may read. After it: `repositories.rs`. It parses no manifest; what an agent applies is the agent's.
//!
//! Bounds: [`STREAMS_PER_AGENT`] waiting streams an agent; [`READERS_PER_AGENT`] of them read at a time, [`READERS`] of
//! all agents. A reader holds the names of the selected files, one message of [`PIECE_MAX`](crate::gitaly::PIECE_MAX)
//! bytes and what gRPC has on its way; from a local repository one file. An agent that takes no message for [`STALL`]
//! is let go.
//!
//! A withdrawn token ends the stream within the period in which GitLab is asked about it (`agent.info_cache_ttl`); a
//! lost project is no longer read within `agent.gitops.project_info_cache_ttl` and one poll period, both while GitLab
//! answers. The stream then waits for the project to come back, and for one that is not there yet.

mod projects;

pub use projects::Projects;

use crate::{
    auth::{self, AgentPermit},
    drain::Departures,
    error::chain,
    events::{Event, EventKind, Events},
    gitaly::{
        GitalyError, ManifestLimits, ManifestPath,
        poller::{self, Periods},
    },
    outgoing::{Outgoing, Sender, outgoing},
    per_agent::{PerAgent, Slot},
    policies::{Ages, Followed, Lifetime, Pacing},
    repositories::{BadReference, CommitId, Head, Manifests, ReadError, Reference, Repository},
    usage::Usage,
};
use postern_wire::{
    ids::{AgentId, ProjectId},
    proto::gitlab::agent::{
        agentcfg::{git_ref_cf, path_cf},
        gitops::rpc::{
            ObjectsToSynchronizeRequest, ObjectsToSynchronizeResponse,
            gitops_server::Gitops,
            objects_to_synchronize_response::{Header, Message, Object, Trailer},
        },
    },
};
use projects::{Project, Refused};
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::sleep,
};
use tonic::{Request, Response, Status, async_trait};

/// Streams that one agent may have open.
pub const STREAMS_PER_AGENT: usize = 100;
/// Of them, those that read at a time.
pub const READERS_PER_AGENT: usize = 2;
/// Streams of all agents that read at a time.
pub const READERS: usize = 64;
/// How long an agent may take for one message.
pub const STALL: Duration = Duration::from_secs(60);
/// Of a project's path, in bytes; it is part of what is remembered.
const PROJECT_MAX: usize = 1_024;
/// Of a project that GitLab does not know, or not for this agent.
const MISSING: &str = "project not found: it does not exist, or this agent may not read it; correct its id in \
    gitops.manifest_projects of the agent's configuration, or its visibility";

/// The service.
#[derive(Clone)]
pub struct GitopsService {
    /// Which projects there are and where.
    pub projects: Projects,
    /// What one request may select.
    pub limits: ManifestLimits,
    /// How often to look whether the agent may still read the project.
    pub pacing: Pacing,
    /// When to try again what failed.
    pub periods: Periods,
    /// How long a stream waits; agents then open the next one.
    pub ages: Ages,
    /// When streams that wait are to end.
    pub departures: Departures,
    /// One of them for all agents.
    pub room: Room,
    /// Counts each synchronization.
    pub usage: Arc<Usage>,
    /// Hears of what was sent and refused.
    pub events: Arc<Events>,
}

impl fmt::Debug for GitopsService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GitopsService").field("projects", &self.projects).finish_non_exhaustive()
    }
}

/// Who may wait and who may read. Clones share it.
#[derive(Clone, Debug)]
pub struct Room {
    streams: PerAgent,
    each: PerAgent,
    all: Arc<Semaphore>,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            streams: PerAgent::new(STREAMS_PER_AGENT),
            each: PerAgent::new(READERS_PER_AGENT),
            all: Arc::new(Semaphore::new(READERS)),
        }
    }
}

/// May read.
struct Reader {
    _own: Slot,
    _all: OwnedSemaphorePermit,
}

impl Room {
    /// An agent waits for itself first, so that its own queue takes nothing from others.
    async fn reader(&self, agent: AgentId) -> Reader {
        let own = self.each.enter(agent).await;
        let all = Arc::clone(&self.all).acquire_owned().await.expect("this semaphore is never closed");
        Reader { _own: own, _all: all }
    }
}

/// What an agent asks for.
struct Wanted {
    /// Empty: the project of its configuration.
    project: String,
    reference: Reference,
    paths: Vec<ManifestPath>,
    /// The commit it has.
    last: String,
}

impl Wanted {
    fn of(request: ObjectsToSynchronizeRequest, limits: ManifestLimits) -> Result<Self, Status> {
        let invalid = |error: BadReference| Status::invalid_argument(format!("ref: {error}"));
        if request.project_id.len() > PROJECT_MAX {
            return Err(Status::invalid_argument(format!("project_id: longer than {PROJECT_MAX} bytes")));
        }
        let count = request.paths.len();
        if count > limits.paths {
            let error = GitalyError::TooManyPaths { count, limit: limits.paths };
            return Err(Status::invalid_argument(error.to_string()));
        }
        if count == 0 {
            return Err(Status::invalid_argument("paths: at least one is needed"));
        }
        let path = |path: path_cf::Path| match path {
            path_cf::Path::Glob(glob) => ManifestPath::Glob(glob),
            path_cf::Path::File(file) => ManifestPath::File(file),
        };
        let paths: Option<Vec<_>> = request.paths.into_iter().map(|cf| cf.path.map(path)).collect();
        let reference = match request.r#ref.and_then(|reference| reference.r#ref) {
            None => Reference::Default,
            Some(git_ref_cf::Ref::Branch(name)) => Reference::branch(&name).map_err(invalid)?,
            Some(git_ref_cf::Ref::Tag(name)) => Reference::tag(&name).map_err(invalid)?,
            Some(git_ref_cf::Ref::Commit(id)) => Reference::commit(&id).map_err(invalid)?,
        };
        Ok(Self {
            project: request.project_id,
            reference,
            paths: paths.ok_or_else(|| Status::invalid_argument("paths: neither a glob nor a file"))?,
            last: request.commit_id,
        })
    }
}

#[async_trait]
impl Gitops for GitopsService {
    type GetObjectsToSynchronizeStream = Outgoing<ObjectsToSynchronizeResponse>;

    async fn get_objects_to_synchronize(
        &self,
        request: Request<ObjectsToSynchronizeRequest>,
    ) -> Result<Response<Self::GetObjectsToSynchronizeStream>, Status> {
        let permit = auth::permit(&request)?;
        let wanted = Wanted::of(request.into_inner(), self.limits)?;
        let Some(slot) = self.room.streams.try_enter(permit.agent.id) else {
            return Err(Status::resource_exhausted(format!(
                "GitOps: this agent has {STREAMS_PER_AGENT} streams open already"
            )));
        };
        let life = self.ages.begin(permit.who());
        let stream = Stream { service: self.clone(), permit, wanted, _slot: slot };
        Ok(Response::new(outgoing(STALL, |sender| stream.run(life, sender))))
    }
}

/// One agent's stream.
struct Stream {
    service: GitopsService,
    permit: AgentPermit,
    wanted: Wanted,
    _slot: Slot,
}

/// A commit that the agent does not have.
struct Found {
    project: ProjectId,
    commit: CommitId,
    manifests: Manifests,
    _reader: Reader,
}

impl Stream {
    async fn run(
        self,
        mut life: Lifetime,
        sender: Sender<ObjectsToSynchronizeResponse>,
    ) -> Result<(), Status> {
        let withdrawn = self.permit.withdrawn();
        let stay = self.service.departures.stay(self.permit.agent.id);
        let served = async {
            let found = tokio::select! {
                biased;
                () = life.over() => return Ok(()),
                goodbye = stay.stream_over() => return Err(goodbye.status()),
                // Another configuration project: the agent asks anew at once.
                () = self.permit.altered() => return Ok(()),
                found = self.wait() => found?,
            };
            // It waits no more, and a drain lets it finish.
            drop(stay);
            self.send(found, &sender).await
        };
        tokio::select! {
            biased;
            status = withdrawn => Err(status),
            served = served => served,
        }
    }

    /// Waits for a commit that the agent does not have, looking again and again whether it may read the project.
    async fn wait(&self) -> Result<Found, Status> {
        let mut followed: Option<(Project, Repository, Head)> = None;
        let mut failures = 0;
        let mut missing = false;
        loop {
            match self.service.projects.of(&self.permit, &self.wanted.project).await {
                Ok(project) if followed.as_ref().is_some_and(|(known, ..)| *known == project) => {}
                Ok(project) => {
                    missing = false;
                    let repository = {
                        let (projects, reference) = (&self.service.projects, &self.wanted.reference);
                        projects.follow(&project, reference, self.permit.who()).await
                    };
                    let repository = repository.ok_or_else(|| {
                        Status::failed_precondition("GitOps: the project has no repository here")
                    })?;
                    let head = repository.head();
                    followed = Some((project, repository, head));
                }
                Err(Refused::For(status)) => {
                    tracing::info!(
                        agent_id = %self.permit.agent.id, project = self.wanted.project, code = ?status.code(),
                        "agent may not read this project"
                    );
                    return Err(status);
                }
                Err(Refused::Missing(error)) => {
                    followed = None;
                    if !missing {
                        missing = true;
                        failures = 0;
                        let manifest_project = self.project();
                        self.happened(EventKind::GitopsRefused {
                            manifest_project,
                            error: MISSING.to_owned(),
                        });
                    }
                    self.pause(&mut failures, &format!("{}; {MISSING}", chain(&error)), false).await;
                    continue;
                }
                // GitLab being away withdraws nothing.
                Err(Refused::Later(_)) if followed.is_some() => {}
                Err(Refused::Later(error)) => {
                    self.pause(&mut failures, &chain(&error), true).await;
                    continue;
                }
            }
            let (project, repository, head) = followed.as_mut().expect("it was entered above");
            // No commit is not the agent's fault and perhaps mended soon: the follower's log says why.
            if let Some(commit) = head.now()
                && *commit != *self.wanted.last
            {
                match self.select(project.id, repository, &commit).await {
                    Ok(found) => return Ok(found),
                    Err(error) if error.is_users() => return Err(self.refused(&commit, &error)),
                    Err(error) => {
                        self.pause(&mut failures, &chain(&error), error.is_away()).await;
                        continue;
                    }
                }
            }
            failures = 0;
            let who = self.permit.who();
            tokio::select! {
                going = head.changed() => if !going {
                    return Err(Status::unavailable("unavailable: the repository is no longer followed"));
                },
                () = self.service.pacing.period(Followed::Manifests, &who) => {}
            }
        }
    }

    async fn select(
        &self,
        project: ProjectId,
        repository: &Repository,
        commit: &CommitId,
    ) -> Result<Found, ReadError> {
        let reader = self.service.room.reader(self.permit.agent.id).await;
        let manifests = repository.manifests(commit, &self.wanted.paths, self.service.limits).await?;
        Ok(Found { project, commit: Arc::clone(commit), manifests, _reader: reader })
    }

    /// After something that may be well a moment later.
    async fn pause(&self, failures: &mut u32, error: &str, away: bool) {
        let pause = poller::again(self.service.periods, *failures, away);
        let (agent_id, project) = (self.permit.agent.id, &self.wanted.project);
        // Once, not at every attempt.
        if *failures == 0 {
            tracing::warn!(%agent_id, project, error, retry_in = ?pause, "cannot get manifests");
        } else {
            tracing::debug!(%agent_id, project, error, retry_in = ?pause, "still cannot get manifests");
        }
        *failures = failures.saturating_add(1);
        sleep(pause).await;
    }

    async fn send(
        &self,
        mut found: Found,
        sender: &Sender<ObjectsToSynchronizeResponse>,
    ) -> Result<(), Status> {
        let (agent_id, project_id, commit_id) =
            (self.permit.agent.id, found.project, Arc::clone(&found.commit));
        let header = Header { commit_id: commit_id.to_string(), project_id: project_id.0 };
        sender.send(response(Message::Header(header))).await?;
        let mut bytes = 0;
        loop {
            let room = sender.room().await?;
            match found.manifests.next().await {
                Ok(Some(piece)) => {
                    bytes += piece.data.len();
                    let object = Object { source: piece.source.as_ref().to_owned(), data: piece.data };
                    room.send(response(Message::Object(object)));
                }
                Ok(None) => {
                    room.send(response(Message::Trailer(Trailer {})));
                    break;
                }
                Err(error) if error.is_users() => return Err(self.refused(&commit_id, &error)),
                Err(error) => {
                    tracing::warn!(%agent_id, %project_id, %commit_id, error = %chain(&error), "manifests broke off");
                    return Err(Status::unavailable("GitOps: failed to get objects to synchronize"));
                }
            }
        }
        tracing::info!(%agent_id, %project_id, %commit_id, bytes, "manifests sent");
        self.service.usage.gitops_synced();
        let commit_id = commit_id.to_string();
        self.happened(EventKind::GitopsManifestsSent { manifest_project: self.project(), commit_id });
        Ok(())
    }

    fn happened(&self, kind: EventKind) {
        let agent = &self.permit.agent;
        self.service.events.publish(Event::now(kind, agent.id, agent.project_id));
    }

    /// As people know it.
    fn project(&self) -> String {
        match self.wanted.project.as_str() {
            "" => self.permit.agent.project_path.clone(),
            named => named.to_owned(),
        }
    }

    /// For the owner of the agent's configuration to mend.
    fn refused(&self, commit_id: &CommitId, error: &ReadError) -> Status {
        let (agent_id, project) = (self.permit.agent.id, &self.wanted.project);
        tracing::info!(%agent_id, project, %commit_id, %error, "manifests refused");
        let kind = EventKind::GitopsRefused { manifest_project: self.project(), error: error.to_string() };
        self.happened(kind);
        Status::failed_precondition(format!("GitOps: failed to get objects to synchronize: {error}"))
    }
}

fn response(message: Message) -> ObjectsToSynchronizeResponse {
    ObjectsToSynchronizeResponse { message: Some(message) }
}

#[cfg(test)]
mod tests;
