//! Which cluster the demo's agent reaches: the stand-in API in this process, the user's own, or the real control plane of
//! the tests. After it: the agent gets a kubeconfig and neither it nor anyone before it can tell the difference.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::json;
use stand_ins::kube_api::{self, KubeApi, Options, Refused, Tls};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::place::{Place, WriteError};
use crate::tokens;

/// The first start builds a Go program of some size.
const BUILD_PATIENCE: Duration = Duration::from_secs(1_800);
const START_PATIENCE: Duration = Duration::from_secs(150);
const END_PATIENCE: Duration = Duration::from_secs(10);
const BUILD_SCRIPT: &str = "tests/control-plane/build.sh";

/// Why there is no cluster.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClusterError {
    #[error("--kubeconfig {}", path.display())]
    Kubeconfig {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    StandIn(#[from] kube_api::StartError),
    #[error("fill the stand-in API")]
    Furnish(#[from] Refused),
    #[error(transparent)]
    Write(#[from] WriteError),
    /// Neither the sources nor the program are there.
    #[error(
        "--cluster control-plane: {BUILD_SCRIPT} is not here or above; run the demo in the source tree, or name the built \
         program in POSTERN_CONTROL_PLANE"
    )]
    NoControlPlane,
    #[error("--cluster control-plane: cannot run {}", program.display())]
    Run {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("--cluster control-plane: {} {what}; what it said is above", program.display())]
    Failed { program: PathBuf, what: String },
}

/// A cluster in use. One that is ours ends when this is dropped, but only [`Cluster::end`] waits for it.
pub(super) struct Cluster {
    /// For people.
    pub(super) what: String,
    /// For the agent.
    pub(super) kubeconfig: PathBuf,
    ours: Ours,
}

enum Ours {
    Nothing,
    StandIn(KubeApi),
    ControlPlane(Child),
}

impl Cluster {
    /// Ends a cluster that is ours.
    pub(super) async fn end(self) {
        match self.ours {
            Ours::Nothing => {}
            Ours::StandIn(api) => drop(api),
            Ours::ControlPlane(mut child) => {
                drop(child.stdin.take());
                if timeout(END_PATIENCE, child.wait()).await.is_err() {
                    let _ = child.kill().await;
                }
            }
        }
    }
}

/// The user's own cluster: the current context of a kubeconfig.
pub(super) fn from_kubeconfig(path: &Path) -> Result<Cluster, ClusterError> {
    let failed = |source| ClusterError::Kubeconfig { path: path.to_owned(), source };
    let kubeconfig = path.canonicalize().map_err(failed)?;
    // Readable now rather than an error in the agent's log later.
    std::fs::File::open(&kubeconfig).map_err(failed)?;
    let what = format!("the current context of {}", kubeconfig.display());
    Ok(Cluster { what, kubeconfig, ours: Ours::Nothing })
}

/// The stand-in API, over TLS and with a token of its own, as a cluster would be.
pub(super) async fn stand_in(place: &Place) -> Result<Cluster, ClusterError> {
    let issued = place.ca.issue(&["localhost", "127.0.0.1"]);
    let tls =
        Tls { certificate_pem: issued.certificate_pem, key_pem: issued.key_pem, ca_pem: place.ca.pem() };
    let options = Options { tls: Some(tls), token: Some(tokens::new_token()), ..Options::default() };
    let api = KubeApi::start(options).await?;
    for (namespace, name, image) in
        [("default", "web-0", "nginx"), ("default", "web-1", "nginx"), ("kube-system", "dns-0", "coredns")]
    {
        let app = name.split('-').next().unwrap_or(name);
        api.create(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"namespace": namespace, "name": name, "labels": {"app": app}},
            "spec": {"containers": [{"name": app, "image": image}]},
        }))?;
    }
    let kubeconfig = place.write("cluster-kubeconfig", &api.kubeconfig())?;
    let what =
        format!("a small stand-in for the Kubernetes API in this process ({}); no container runs", api.url());
    Ok(Cluster { what, kubeconfig, ours: Ours::StandIn(api) })
}

/// A real kube-apiserver with etcd, built from the source tree on first use.
pub(super) async fn control_plane(place: &Place) -> Result<Cluster, ClusterError> {
    let program = match std::env::var_os("POSTERN_CONTROL_PLANE") {
        Some(program) => PathBuf::from(program),
        None => build().await?,
    };
    let run = |source| ClusterError::Run { program: program.clone(), source };
    let failed = |what: &str| ClusterError::Failed { program: program.clone(), what: what.to_owned() };
    let mut child = Command::new(&program)
        .arg("--dir")
        .arg(place.path("control-plane"))
        // It ends when our end of this pipe does, however we end.
        .arg("--exit-with-stdin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(run)?;
    let stdout = child.stdout.take().ok_or_else(|| failed("has no standard output"))?;
    let mut line = String::new();
    match timeout(START_PATIENCE, BufReader::new(stdout).read_line(&mut line)).await {
        Err(_) => return Err(failed("was not ready in time")),
        Ok(Err(source)) => return Err(run(source)),
        Ok(Ok(_)) => {}
    }
    let field =
        |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
    match (field("agentk=").or_else(|| field("kubeconfig=")), field("server=")) {
        (Some(kubeconfig), server) => {
            let what = format!("a real control plane for tests ({})", server.unwrap_or_default());
            Ok(Cluster { what, kubeconfig: kubeconfig.into(), ours: Ours::ControlPlane(child) })
        }
        (None, _) => Err(failed("ended before it was ready")),
    }
}

async fn build() -> Result<PathBuf, ClusterError> {
    let here = std::env::current_dir().map_err(|_| ClusterError::NoControlPlane)?;
    let script =
        here.ancestors().map(|directory| directory.join(BUILD_SCRIPT)).find(|script| script.is_file());
    let script = script.ok_or(ClusterError::NoControlPlane)?;
    let failed = |what: String| ClusterError::Failed { program: script.clone(), what };
    let built =
        Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).kill_on_drop(true).output();
    let output = match timeout(BUILD_PATIENCE, built).await {
        Err(_) => return Err(failed("took too long".to_owned())),
        Ok(Err(source)) => return Err(ClusterError::Run { program: script.clone(), source }),
        Ok(Ok(output)) => output,
    };
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().last() {
        Some(path) if output.status.success() => Ok(PathBuf::from(path)),
        _ => Err(failed(format!("ended with {}", output.status))),
    }
}
