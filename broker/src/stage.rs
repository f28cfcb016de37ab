//! For tests of services that agents call: a stand-in GitLab, admission, and a real gRPC connection to the service. For
//! tests of what policies change: a directory with a policy file to edit.

use crate::{
    auth::{Admission, Identities},
    gitlab::{self, Limits, Periods, Rails, Remembered},
    rate::Rate,
    tunnel::registry::Registry,
};
use postern_certs::client::ClientTrust;
use postern_policies::Live;
use postern_wire::metadata::Program;
use stand_ins::rails::{self, Agent, Project};
use std::{net::Ipv4Addr, sync::Arc, time::Duration};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};
use tonic::{
    Request,
    service::Routes,
    transport::{Channel, Server},
};

pub(crate) const TOKEN_A: &str = "glagent-SECRET-a";
pub(crate) const TOKEN_B: &str = "glagent-SECRET-b";

pub(crate) struct Stage {
    pub(crate) gitlab: rails::Rails,
    pub(crate) rails: Arc<Remembered>,
    pub(crate) admission: Admission,
    pub(crate) stop: CancellationToken,
    pub(crate) tasks: TaskTracker,
    _stop: DropGuard,
}

/// Two agents with a private project each: 10 `group/a` and 20 `group/b`.
pub(crate) fn agents(place: impl Fn(Project) -> Project) -> Vec<Agent> {
    let agent = |token: &str, id: i64, name: &str| Agent {
        token: token.to_owned(),
        id,
        name: name.to_owned(),
        project: place(Project::new(id * 10, &format!("group/{name}"))),
    };
    vec![agent(TOKEN_A, 1, "a"), agent(TOKEN_B, 2, "b")]
}

pub(crate) fn client(gitlab: &rails::Rails, limits: Limits) -> Rails {
    let folder = tempfile::tempdir().unwrap();
    let secret_file = folder.path().join("secret");
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&secret_file, gitlab.secret_file()).unwrap();
    std::fs::write(&ca_file, postern_certs::dev::Ca::new().pem()).unwrap();
    Rails::new(gitlab::Config {
        address: gitlab.url().parse().unwrap(),
        authentication_secret_file: secret_file,
        trust: ClientTrust::load(Some(ca_file)).unwrap(),
        program: Program { name: "gitlab-kas", version: "v1.2.3", commit: "abc" },
        rate: Rate { per_second: 1e5, burst: 10_000 },
        limits,
    })
    .unwrap()
}

impl Stage {
    pub(crate) async fn start(options: rails::Options, periods: Periods) -> Self {
        postern_certs::install_provider();
        let gitlab = rails::Rails::start(options).await.unwrap();
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let rails = Arc::new(client(&gitlab, Limits::default()));
        let rails = Arc::new(Remembered::new(rails, periods, &stop, &tasks));
        let admission = Admission {
            identities: Identities::GitLab(Arc::clone(&rails)),
            registry: Arc::new(Registry::default()),
            limit: None,
        };
        let guard = stop.clone().drop_guard();
        Self { gitlab, rails, admission, stop, tasks, _stop: guard }
    }
}

/// Serves on a free port and connects to it.
pub(crate) async fn serve(routes: Routes, stop: &CancellationToken) -> Channel {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = Server::builder().add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(stop.clone().run_until_cancelled_owned(serving));
    // What a Go agent has; hyper's own is 2 MiB.
    let endpoint = Channel::from_shared(format!("http://{address}")).unwrap();
    endpoint.initial_stream_window_size(65_535).connect().await.unwrap()
}

/// A call of the agent that has this token.
pub(crate) fn call_as<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request
}

/// Time stands still until this is dropped, even while everybody waits: a slow machine cuts nothing short. After that it
/// is paused as ever, and passes while everybody waits.
pub(crate) struct Frozen {
    _held: std::sync::mpsc::Sender<()>,
}

pub(crate) fn freeze() -> Frozen {
    tokio::time::pause();
    let (held, ends) = std::sync::mpsc::channel();
    // While a task like this one runs, paused time is not advanced.
    tokio::task::spawn_blocking(move || ends.recv());
    Frozen { _held: held }
}

/// Policies in force, and the one file that they are in.
pub(crate) struct PolicyFile {
    pub(crate) live: Live,
    folder: tempfile::TempDir,
    _stop: DropGuard,
}

impl PolicyFile {
    pub(crate) fn new(text: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("policies.yaml"), text).unwrap();
        let live = Live::open(Some(folder.path())).unwrap_or_else(|problems| panic!("{problems}"));
        let stop = CancellationToken::new();
        let (keeper, guard) = (live.clone(), stop.clone().drop_guard());
        tokio::spawn(async move { keeper.keep_fresh(stop).await });
        Self { live, folder, _stop: guard }
    }

    /// Replaces the file as editors do, and returns when the change is in force.
    pub(crate) async fn edit(&self, text: &str) {
        let mut changes = self.live.changes();
        changes.borrow_and_update();
        let written = self.folder.path().join(".policies.yaml.new");
        std::fs::write(&written, text).unwrap();
        std::fs::rename(&written, self.folder.path().join("policies.yaml")).unwrap();
        let changed = tokio::time::timeout(Duration::from_secs(60), changes.changed()).await;
        assert!(changed.is_ok(), "not in force: {:?}", self.live.status().problems);
    }
}
