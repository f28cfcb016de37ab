//! Lists the configuration files of a project's agents for `ListAgentConfigFiles`: asked for with each view of a page, so
//! one question at a time goes to Gitaly for a repository, and its answer is good for a few seconds.

use crate::{
    gitaly::{Gitaly, GitalyError, GitalyRepository, GitalyToken, Server, Source},
    gitlab::cache::{Cache, Lasting, Remember, Settings},
};
use postern_wire::proto::gitlab::agent::{
    configuration_project::rpc::{AgentConfigFile, ListAgentConfigFilesRequest},
    entity::GitalyInfo,
    modserver,
};
use prost::Message;
use sha2::{Digest, Sha256};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tonic::Status;

/// So long a new file may be missing on the page; somebody who looks again sees it.
const KEEP: Duration = Duration::from_secs(5);
/// Listings kept, of at most 10,000 names each.
const REPOSITORIES_MAX: usize = 64;
/// For callers that set no deadline; Rails sets 2 to 5 s, and a question that nobody waits for any more is dropped.
const PATIENCE: Duration = Duration::from_secs(20);

/// Address, token and repository, hashed: what one may not list is not answered from memory either.
type Key = [u8; 32];

/// The listings, and the memory of them.
pub(super) struct ConfigurationFiles {
    gitaly: Arc<Gitaly>,
    recent: Cache<Key, Arc<Vec<AgentConfigFile>>, Failed>,
}

#[derive(Clone, Debug)]
struct Failed(Arc<GitalyError>);

impl Remember for Failed {
    fn lasting(&self) -> Lasting {
        Lasting::Transient
    }
}

impl ConfigurationFiles {
    pub(super) fn new(gitaly: Arc<Gitaly>) -> Self {
        let settings = Settings { capacity: REPOSITORIES_MAX, ok: KEEP, error: KEEP };
        Self { gitaly, recent: Cache::new(settings) }
    }

    /// At `HEAD`, which is the default branch that newer Rails may name.
    pub(super) async fn list(
        &self,
        request: ListAgentConfigFilesRequest,
    ) -> Result<Vec<AgentConfigFile>, Status> {
        let ListAgentConfigFilesRequest { repository, gitaly_info, default_branch: _ } = request;
        let repository = repository.ok_or_else(|| Status::invalid_argument("repository is required"))?;
        let info = gitaly_info.ok_or_else(|| Status::invalid_argument("gitaly_info is required"))?;
        let key = key(&repository, &info);
        let ask = || {
            let (gitaly, source) = (Arc::clone(&self.gitaly), source(repository, info));
            async move {
                let listed = gitaly.agent_files(&source, Instant::now() + PATIENCE).await;
                let listed = listed.map_err(|error| {
                    let project = source.repository.gl_project_path;
                    tracing::warn!(project, %error, "configuration files of agents not listed");
                    Failed(Arc::new(error))
                })?;
                let file = |file: crate::gitaly::AgentFile| AgentConfigFile {
                    name: file.path,
                    agent_name: file.agent,
                };
                Ok(Arc::new(listed.into_iter().map(file).collect()))
            }
        };
        match self.recent.get(key, ask).await {
            Ok(files) => Ok(Arc::unwrap_or_clone(files)),
            // Rails handed out where to ask, so it may know what went wrong there.
            Err(Failed(error)) => Err(Status::unavailable(format!("Unavailable: {error}"))),
        }
    }
}

fn key(repository: &modserver::Repository, info: &GitalyInfo) -> Key {
    let mut hash = Sha256::new();
    for text in [info.address.as_bytes(), info.token.as_bytes(), &repository.encode_to_vec()] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

fn source(repository: modserver::Repository, info: GitalyInfo) -> Source {
    Source {
        server: Server {
            address: info.address,
            token: GitalyToken::new(info.token),
            features: info.features.into_iter().collect(),
        },
        repository: GitalyRepository {
            storage_name: repository.storage_name,
            relative_path: repository.relative_path,
            git_object_directory: repository.git_object_directory,
            git_alternate_object_directories: repository.git_alternate_object_directories,
            gl_repository: repository.gl_repository,
            gl_project_path: repository.gl_project_path,
        },
    }
}
