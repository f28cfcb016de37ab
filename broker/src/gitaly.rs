//! The Gitaly client: the newest commit of a repository, a file at a commit, the manifests at a commit. Before it:
//! `repositories`, for whoever knows from Rails where a repository is. It never writes to Gitaly and keeps nothing on
//! disk.

mod address;
mod auth;
mod blob;
mod dial;
mod error;
mod glob;
mod manifests;
pub mod poller;
mod pool;
mod refs;
pub(crate) mod selection;
#[cfg(test)]
mod tests;

/// No call waits longer than this for its turn, whatever its deadline: so no more wait at all than fit into it.
const PATIENCE: Duration = Duration::from_secs(60);

pub use self::{
    auth::GitalyToken,
    error::{Fault, GitalyError},
    manifests::{Manifests, PIECE_MAX, Piece},
    selection::{Limits as ManifestLimits, ManifestPath},
};

use self::{
    blob::{Blob, Opened},
    pool::{Connection, Pool},
    refs::Advertisement,
};
use crate::rate::{Bucket, Rate, TooLong};
use crate::repositories::{CommitId, Reference};
use bytes::{Bytes, BytesMut};
use postern_certs::client::ClientTrust;
use postern_wire::{
    metadata::{CORRELATION_ID, is_reserved},
    proto::gitaly::{
        FindCommitRequest, GetTreeEntriesRequest, InfoRefsRequest, TreeEntry,
        commit_service_client::CommitServiceClient, smart_http_service_client::SmartHttpServiceClient,
        tree_entry::EntryType,
    },
};
use std::{collections::BTreeMap, fmt, future::Future, sync::Arc, time::Duration};
use tokio::time::{Instant, timeout_at};
use tonic::{
    Code, Request, Status,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
};

pub use postern_wire::proto::gitaly::Repository as GitalyRepository;

const FIND_COMMIT: &str = "FindCommit";
const INFO_REFS: &str = "InfoRefsUploadPack";
const GET_TREE_ENTRIES: &str = "GetTreeEntries";
/// What kas takes for the default branch where `HEAD` names none.
const HEADS: [&str; 2] = ["HEAD", "refs/heads/master"];
/// `ListAgentConfigFiles` answers a page in a browser; no project has more agents than this.
const AGENT_FILES_MAX: usize = 10_000;
const AGENTS: &str = ".gitlab/agents";

/// Where Rails says that a repository is, and how to ask there.
#[derive(Clone, Debug)]
pub struct Source {
    /// The server.
    pub server: Server,
    /// As Rails names it, passed on as it is.
    pub repository: GitalyRepository,
}

/// A Gitaly server as Rails describes it.
#[derive(Clone, Debug)]
pub struct Server {
    /// `tcp://host:port`, `tls://host:port`, `unix:/path` or `dns:///host:port`.
    pub address: String,
    /// Empty where the server asks for none.
    pub token: GitalyToken,
    /// Complete metadata keys (`gitaly-feature-...`) with their values, sent with every call.
    pub features: BTreeMap<String, String>,
}

/// How the client behaves; the default is what kas does.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the `user-agent` starts with: `gitlab-kas/<version>/<commit>`.
    pub user_agent: String,
    /// Calls to all servers together.
    pub global: Rate,
    /// Calls to one server with one token.
    pub per_server: Rate,
    /// For each step that a stream of manifests waits for: its turn, a listing, the next piece.
    pub step_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            user_agent: format!("gitlab-kas/v{}/unknown", env!("CARGO_PKG_VERSION")),
            global: Rate { per_second: 10.0, burst: 50 },
            per_server: Rate { per_second: 5.0, burst: 10 },
            step_timeout: Duration::from_secs(60),
        }
    }
}

/// A file of an agent in its configuration project.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentFile {
    /// From the repository's root.
    pub path: String,
    /// The agent that it configures.
    pub agent: String,
}

/// Connections to all Gitaly servers, and the limits that hold for them.
pub struct Gitaly {
    pool: Pool,
    global: Bucket,
    step_timeout: Duration,
}

impl Gitaly {
    /// Connects to nothing yet. `trust` is for `tls://` servers.
    pub fn new(options: Options, trust: Arc<ClientTrust>) -> Self {
        Self {
            pool: Pool::new(trust, options.user_agent, options.per_server),
            global: Bucket::new(options.global, PATIENCE),
            step_timeout: options.step_timeout,
        }
    }

    /// Calls are made so often from now on, to all servers together and to each; who waits for its turn is judged anew.
    pub fn set_rates(&self, global: Rate, per_server: Rate) {
        self.global.set(global);
        self.pool.set_rate(per_server);
    }

    /// The newest commit of the default branch: `HEAD`, else `refs/heads/master`.
    ///
    /// Asks for the one commit; only a server without that call has to advertise all its references.
    ///
    /// # Errors
    /// [`GitalyError::NoDefaultBranch`] for a repository without either, and whatever keeps a call from its answer.
    pub async fn head(&self, source: &Source, deadline: Instant) -> Result<CommitId, GitalyError> {
        self.head_of(source, &Reference::Default, deadline).await
    }

    /// [`Gitaly::head`] of any reference. A commit is its own head, if the repository has it.
    ///
    /// # Errors
    /// As [`Gitaly::head`]; [`GitalyError::NoSuchReference`] for what the repository does not have.
    pub async fn head_of(
        &self,
        source: &Source,
        reference: &Reference,
        deadline: Instant,
    ) -> Result<CommitId, GitalyError> {
        self.look(source, reference, (PATIENCE, deadline)).await
    }

    /// [`Gitaly::head_of`] for one who may as well look later: it waits for its turn no longer than `patience`.
    async fn look(
        &self,
        source: &Source,
        reference: &Reference,
        (patience, deadline): (Duration, Instant),
    ) -> Result<CommitId, GitalyError> {
        let connection = self.pool.connection(&source.server)?;
        if connection.may_find_commits() {
            match self.found_head(source, reference, &connection, (patience, deadline)).await {
                Err(GitalyError::Rpc { code: Code::Unimplemented, .. }) => {
                    tracing::info!(
                        server = source.server.address,
                        "cannot look up commits; reads references instead"
                    );
                    connection.cannot_find_commits();
                }
                answer => return answer,
            }
        }
        self.advertised_head(source, reference, &connection, (patience, deadline)).await
    }

    /// The bytes of a file at a commit; `None` if there is no such file.
    ///
    /// # Errors
    /// [`GitalyError::TooLarge`] past `limit` bytes, [`GitalyError::NotAFile`] for a directory, a submodule or a
    /// symbolic link, and whatever keeps a call from its answer.
    pub async fn read(
        &self,
        source: &Source,
        commit: &str,
        file: &str,
        limit: u64,
        deadline: Instant,
    ) -> Result<Option<Bytes>, GitalyError> {
        let mut blob = match self.open(source, commit, file, limit, deadline).await? {
            Opened::Missing => return Ok(None),
            Opened::TooLarge => {
                return Err(GitalyError::TooLarge { file: file.into(), commit: commit.into(), limit });
            }
            Opened::Blob(blob) if blob.is_link() => {
                return Err(GitalyError::NotAFile { file: file.into(), commit: commit.into() });
            }
            Opened::Blob(blob) => blob,
        };
        let mut content = BytesMut::new();
        while let Some(piece) = blob.piece(deadline).await? {
            content.extend_from_slice(&piece);
        }
        Ok(Some(content.freeze()))
    }

    /// The configuration files of all agents of a project at its newest commit; none where the folder is missing.
    ///
    /// # Errors
    /// Whatever keeps a call from its answer.
    pub async fn agent_files(
        &self,
        source: &Source,
        deadline: Instant,
    ) -> Result<Vec<AgentFile>, GitalyError> {
        let mut files = Vec::new();
        self.list(source, None, (AGENTS, true), deadline, |entry| {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            if let Some(agent) = agent_of(&path) {
                files.push(AgentFile { agent: agent.to_owned(), path });
            }
            if files.len() < AGENT_FILES_MAX {
                Ok(())
            } else {
                Err(GitalyError::TooManyFiles { limit: files.len() })
            }
        })
        .await?;
        Ok(files)
    }

    /// The manifests that `paths` select at a commit. All of the listing is done here and the first file is opened, so
    /// what an agent's owner got wrong is known before anything was sent, except for the sizes of later files.
    ///
    /// # Errors
    /// See [`GitalyError::fault`] for whose it is.
    pub async fn manifests(
        self: &Arc<Self>,
        source: &Source,
        commit: &CommitId,
        paths: &[ManifestPath],
        limits: ManifestLimits,
    ) -> Result<Manifests, GitalyError> {
        Manifests::select(Arc::clone(self), source.clone(), Arc::clone(commit), paths, limits).await
    }

    async fn found_head(
        &self,
        source: &Source,
        reference: &Reference,
        connection: &Connection,
        (patience, deadline): (Duration, Instant),
    ) -> Result<CommitId, GitalyError> {
        let named = reference.full_name();
        let revisions = named.as_deref().map_or(HEADS.to_vec(), |name| vec![name]);
        for revision in revisions {
            let call = Call { source, connection, rpc: FIND_COMMIT, deadline };
            self.turn(&call, patience).await?;
            let request = call.request(FindCommitRequest {
                repository: Some(source.repository.clone()),
                revision: Bytes::copy_from_slice(revision.as_bytes()),
                trailers: false,
            });
            let mut client = CommitServiceClient::new(connection.channel.clone());
            let answer = call.answer(client.find_commit(request)).await?.into_inner();
            let Some(commit) = answer.commit else { continue };
            if !refs::is_oid(commit.id.as_bytes()) {
                return Err(call.protocol("the commit's id is not one"));
            }
            return Ok(commit.id.into());
        }
        Err(no_such(source, reference))
    }

    async fn advertised_head(
        &self,
        source: &Source,
        reference: &Reference,
        connection: &Connection,
        (patience, deadline): (Duration, Instant),
    ) -> Result<CommitId, GitalyError> {
        let call = Call { source, connection, rpc: INFO_REFS, deadline };
        self.turn(&call, patience).await?;
        // Only the repository: with anything more Gitaly cannot answer from its cache.
        let request = call
            .request(InfoRefsRequest { repository: Some(source.repository.clone()), ..Default::default() });
        let mut client = SmartHttpServiceClient::new(connection.channel.clone());
        let mut stream = call.answer(client.info_refs_upload_pack(request)).await?.into_inner();
        let mut advertisement = Advertisement::of(reference.full_name());
        while let Some(message) = call.answer(stream.message()).await? {
            // Dropping the stream here spares the server the rest of its references.
            if let Some(head) = advertisement.feed(&message.data).map_err(|reason| call.protocol(reason))? {
                return Ok(head);
            }
        }
        let head = advertisement.finish().map_err(|reason| call.protocol(reason))?;
        head.ok_or_else(|| no_such(source, reference))
    }

    /// Hands every file of a directory to `visit`, as they come; at `HEAD` without a commit. A directory that does not
    /// exist has none, and neither has a `HEAD` that nobody pushed to.
    async fn list(
        &self,
        source: &Source,
        commit: Option<&str>,
        (directory, recursive): (&str, bool),
        deadline: Instant,
        mut visit: impl FnMut(TreeEntry) -> Result<(), GitalyError>,
    ) -> Result<(), GitalyError> {
        let connection = self.pool.connection(&source.server)?;
        let call = Call { source, connection: &connection, rpc: GET_TREE_ENTRIES, deadline };
        self.turn(&call, PATIENCE).await?;
        let request = call.request(GetTreeEntriesRequest {
            repository: Some(source.repository.clone()),
            revision: Bytes::copy_from_slice(commit.unwrap_or(HEADS[0]).as_bytes()),
            path: Bytes::copy_from_slice(directory.as_bytes()),
            recursive,
        });
        let mut client = CommitServiceClient::new(connection.channel.clone());
        let mut empty = true;
        let entries = async {
            let mut stream = call.answer(client.get_tree_entries(request)).await?.into_inner();
            while let Some(message) = call.answer(stream.message()).await? {
                empty &= message.entries.is_empty();
                for entry in message.entries {
                    if entry.r#type == i32::from(EntryType::Blob) {
                        visit(entry)?;
                    }
                }
            }
            Ok(())
        };
        match entries.await {
            // Of a path that is not there older servers list nothing, newer ones say the one, still newer ones of some
            // listings the other. All say the same of a commit or a repository that is not there.
            Err(GitalyError::Rpc { code: Code::InvalidArgument | Code::NotFound, message, .. }) => {
                tracing::debug!(directory, commit, message, "listed nothing");
            }
            Ok(()) if empty => {}
            other => return other,
        }
        self.confirm(source, commit, deadline).await
    }

    /// That the server has the commit, before what it says is missing there is believed to be: an agent removes from its
    /// cluster what is no longer in the repository. For `HEAD`, that the repository is there.
    async fn confirm(
        &self,
        source: &Source,
        commit: Option<&str>,
        deadline: Instant,
    ) -> Result<(), GitalyError> {
        let reference = commit.map_or(Reference::Default, |commit| Reference::Commit(commit.to_owned()));
        match (self.head_of(source, &reference, deadline).await, commit) {
            (Err(GitalyError::NoSuchReference { repository, .. }), Some(commit)) => {
                Err(GitalyError::NoSuchCommit {
                    address: source.server.address.clone(),
                    repository,
                    commit: commit.to_owned(),
                })
            }
            (Ok(_), _) | (Err(GitalyError::NoDefaultBranch { .. }), None) => Ok(()),
            (Err(error), _) => Err(error),
        }
    }

    async fn open(
        &self,
        source: &Source,
        commit: &str,
        file: &str,
        limit: u64,
        deadline: Instant,
    ) -> Result<Opened, GitalyError> {
        let connection = self.pool.connection(&source.server)?;
        let call = Call { source, connection: &connection, rpc: blob::TREE_ENTRY, deadline };
        self.turn(&call, PATIENCE).await?;
        let opened = Blob::open(&call, commit, file, limit).await?;
        if matches!(opened, Opened::Missing) {
            self.confirm(source, Some(commit), deadline).await?;
        }
        Ok(opened)
    }

    /// Waits until both limits let one more call through.
    async fn turn(&self, call: &Call<'_>, patience: Duration) -> Result<(), GitalyError> {
        for bucket in [&call.connection.bucket, &self.global] {
            let until = call.deadline.min(Instant::now() + patience);
            bucket.wait(Some(until)).await.map_err(|TooLong { wait }| {
                let server = &call.source.server.address;
                if patience < PATIENCE && call.connection.tells_of_skips() {
                    tracing::warn!(
                        server,
                        ?wait,
                        "too many repositories for the rate limit: new commits are noticed later; \
                         raise gitaly.per_server_api_rate_limit or global_api_rate_limit if this lasts"
                    );
                }
                GitalyError::Throttled { address: server.clone(), rpc: call.rpc, wait }
            })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Gitaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gitaly").finish_non_exhaustive()
    }
}

/// One call: where it goes and until when.
struct Call<'a> {
    source: &'a Source,
    connection: &'a Connection,
    rpc: &'static str,
    deadline: Instant,
}

impl Call<'_> {
    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        let server = &self.source.server;
        for (key, value) in &server.features {
            match (AsciiMetadataKey::from_bytes(key.as_bytes()), AsciiMetadataValue::try_from(value.as_str()))
            {
                (Ok(key), Ok(value)) if !is_reserved(key.as_str()) => drop(metadata.insert(key, value)),
                _ => tracing::debug!(feature = key, "not a legal metadata key or value; left out"),
            }
        }
        if let Some(authorization) = server.token.authorization() {
            metadata.insert("authorization", authorization);
        }
        let correlation_id = format!("{:032x}", rand::random::<u128>());
        tracing::debug!(server = server.address, rpc = self.rpc, correlation_id, "calling Gitaly");
        let correlation_id = AsciiMetadataValue::try_from(correlation_id).expect("hexadecimal is legal");
        metadata.insert(CORRELATION_ID, correlation_id);
        metadata.insert("x-gitlab-client-name", AsciiMetadataValue::from_static("gitlab-kas"));
        request
    }

    async fn answer<T>(&self, asked: impl Future<Output = Result<T, Status>>) -> Result<T, GitalyError> {
        match timeout_at(self.deadline, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(status)) => Err(self.failed(&status)),
            Err(_) => Err(self.timed_out()),
        }
    }

    fn failed(&self, status: &Status) -> GitalyError {
        if Instant::now() >= self.deadline {
            return self.timed_out();
        }
        error::of_status(&self.source.server.address, self.rpc, status)
    }

    fn timed_out(&self) -> GitalyError {
        GitalyError::TimedOut { address: self.source.server.address.clone(), rpc: self.rpc }
    }

    fn protocol(&self, reason: &'static str) -> GitalyError {
        GitalyError::Protocol { address: self.source.server.address.clone(), rpc: self.rpc, reason }
    }
}

fn no_such(source: &Source, reference: &Reference) -> GitalyError {
    let repository = source.name().to_owned();
    match reference.full_name() {
        None => GitalyError::NoDefaultBranch { repository },
        Some(reference) => GitalyError::NoSuchReference { repository, reference },
    }
}

impl Source {
    /// For people: the project's path, where Rails says it.
    pub fn name(&self) -> &str {
        match self.repository.gl_project_path.as_str() {
            "" => &self.repository.relative_path,
            path => path,
        }
    }
}

/// The agent whose configuration file this is.
fn agent_of(path: &str) -> Option<&str> {
    let agent = path.strip_prefix(AGENTS)?.strip_prefix('/')?.strip_suffix("/config.yaml")?;
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = agent.as_bytes();
    let ends = plain(*bytes.first()?) && plain(*bytes.last()?);
    (ends && bytes.iter().all(|&byte| plain(byte) || byte == b'-')).then_some(agent)
}
