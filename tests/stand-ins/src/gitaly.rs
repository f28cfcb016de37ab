//! A small Gitaly server in this process: real git repositories on disk, read through the `git` program and served as
//! Gitaly 14.1, 16.7 or a later one serves them, over TCP, TLS or a Unix socket. It checks the token's HMAC, counts calls and can be
//! told to misbehave. Gone when the `Gitaly` is dropped; it writes to no repository.

mod auth;
mod git;
mod listen;
mod services;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use postern_wire::proto::gitaly::commit_service_server::CommitServiceServer;
use postern_wire::proto::gitaly::smart_http_service_server::SmartHttpServiceServer;
use tokio::sync::Semaphore;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::metadata::MetadataMap;
use tonic::{Request, Status};

pub use crate::kube_api::Tls;

/// Programs run at the same time.
const GIT_MAX: usize = 8;

/// How the stand-in is to behave.
pub struct Options {
    /// The folder that `relative_path` starts from.
    pub repositories: PathBuf,
    /// The only storage there is.
    pub storage: String,
    /// The token whose HMAC every call must carry; `None`: anyone may ask.
    pub token: Option<String>,
    /// `None`: no TLS. Not together with `socket`.
    pub tls: Option<Tls>,
    /// Listens there instead of on a free TCP port.
    pub socket: Option<PathBuf>,
    /// Which Gitaly it takes after.
    pub generation: Generation,
}

impl Options {
    /// TCP, no token, storage `default`, newer generation.
    pub fn new(repositories: impl Into<PathBuf>) -> Options {
        Options {
            repositories: repositories.into(),
            storage: "default".to_owned(),
            token: None,
            tls: None,
            socket: None,
            generation: Generation::V16_7,
        }
    }
}

/// Where they differ: the listing of a path that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Answers with nothing.
    V14_1,
    /// Answers with `InvalidArgument`.
    V16_7,
    /// Answers with `NotFound` where all levels are listed, else with `InvalidArgument`.
    V16Later,
}

/// The calls that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rpc {
    InfoRefsUploadPack,
    FindCommit,
    TreeEntry,
    GetTreeEntries,
}

impl Rpc {
    /// All of them.
    pub const ALL: [Rpc; 4] = [Rpc::InfoRefsUploadPack, Rpc::FindCommit, Rpc::TreeEntry, Rpc::GetTreeEntries];
}

/// What can be wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// As while a server restarts.
    Unavailable,
    /// As if the call did not exist.
    Unimplemented,
    /// Answers rightly, but late.
    Delay(Duration),
}

/// A running stand-in.
pub struct Gitaly {
    address: String,
    state: Arc<State>,
    _stop: DropGuard,
}

struct State {
    options: Options,
    git: Semaphore,
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    faults: HashMap<Rpc, Fault>,
    calls: HashMap<Rpc, u64>,
    metadata: BTreeMap<String, String>,
}

impl Gitaly {
    /// Listens on loopback on a free port, or on `socket`.
    ///
    /// # Errors
    /// The listener's, and PEM that holds no certificate or key.
    pub async fn start(options: Options) -> io::Result<Gitaly> {
        let stop = CancellationToken::new();
        let (address, connections) = listen::listen(&options, stop.clone()).await?;
        let state = Arc::new(State { options, git: Semaphore::new(GIT_MAX), book: Mutex::default() });
        let server = tonic::transport::Server::builder()
            .add_service(CommitServiceServer::from_arc(Arc::clone(&state)))
            .add_service(SmartHttpServiceServer::from_arc(Arc::clone(&state)));
        let serving = server.serve_with_incoming(connections);
        let stopped = stop.clone();
        tokio::spawn(async move {
            // Not gracefully: a stand-in that is dropped is a server that is gone.
            if let Some(Err(error)) = stopped.run_until_cancelled(serving).await {
                tracing::warn!(%error, "stand-in for Gitaly stopped");
            }
        });
        Ok(Gitaly { address, state, _stop: stop.drop_guard() })
    }

    /// As Rails would hand it out: `tcp://...`, `tls://...` or `unix:...`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// From now on, until [`Gitaly::mend`].
    pub fn break_call(&self, rpc: Rpc, fault: Fault) {
        self.state.book().faults.insert(rpc, fault);
    }

    /// Like [`Gitaly::break_call`] for all calls.
    pub fn break_all(&self, fault: Fault) {
        self.state.book().faults = Rpc::ALL.into_iter().map(|rpc| (rpc, fault)).collect();
    }

    /// All calls are answered rightly again.
    pub fn mend(&self) {
        self.state.book().faults.clear();
    }

    /// How many calls came, those that were refused included.
    pub fn calls(&self, rpc: Rpc) -> u64 {
        self.state.book().calls.get(&rpc).copied().unwrap_or_default()
    }

    /// What the last call carried, without its authorization.
    pub fn last_metadata(&self) -> BTreeMap<String, String> {
        self.state.book().metadata.clone()
    }
}

impl State {
    fn book(&self) -> std::sync::MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the call, checks its token and does what the knobs say.
    async fn admit<T>(&self, rpc: Rpc, request: Request<T>) -> Result<T, Status> {
        let fault = {
            let mut book = self.book();
            *book.calls.entry(rpc).or_default() += 1;
            book.metadata = plain(request.metadata());
            book.faults.get(&rpc).copied()
        };
        if let Some(token) = &self.options.token {
            auth::verify(token, request.metadata())?;
        }
        match fault {
            Some(Fault::Unavailable) => return Err(Status::unavailable("told to be unavailable")),
            Some(Fault::Unimplemented) => {
                return Err(Status::unimplemented(format!("unknown method {rpc:?}")));
            }
            Some(Fault::Delay(delay)) => tokio::time::sleep(delay).await,
            None => {}
        }
        Ok(request.into_inner())
    }
}

fn plain(metadata: &MetadataMap) -> BTreeMap<String, String> {
    let headers = metadata.clone().into_headers();
    let told = headers.iter().filter(|(name, _)| *name != http::header::AUTHORIZATION);
    told.map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()))
        .collect()
}
