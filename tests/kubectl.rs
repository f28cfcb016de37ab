//! Real kubectl through edge, broker and agent against the real control plane: what an operator does all day.
//!
//! Debian's kubectl speaks SPDY/3.1 for exec, attach, cp and port-forward; kube's client speaks WebSocket.

pub(crate) mod control_plane;

use crate::harness::{AGENT, Field, Options, cache, until};
use sha2::{Digest, Sha256};
use std::{
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    process::Command,
    time::{Instant, timeout},
};

/// For one kubectl command; 20 MB through debug builds on two busy cores take a while.
const COMMAND: Duration = Duration::from_secs(120);

/// A kubectl that goes through the tunnel, in a working directory of its own.
pub(crate) struct Kubectl {
    binary: PathBuf,
    kubeconfig: PathBuf,
    home: tempfile::TempDir,
}

impl Kubectl {
    pub(crate) fn new(field: &Field) -> Self {
        let binary = cache().join("kubectl/usr/bin/kubectl");
        assert!(binary.exists(), "{} is missing; run `make test`", binary.display());
        Self { binary, kubeconfig: field.kubeconfig(), home: tempfile::tempdir().unwrap() }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(arguments)
            .current_dir(self.home.path())
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn output(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let feed = tokio::spawn(async move {
            let _ = stdin.write_all(&input).await;
        });
        let output = timeout(COMMAND, child.wait_with_output()).await;
        feed.abort();
        output.unwrap_or_else(|_| panic!("kubectl {arguments:?} does not end")).unwrap()
    }

    /// Runs a command that must succeed; its standard output.
    pub(crate) async fn ok(&self, arguments: &[&str], input: &[u8]) -> String {
        let output = self.output(arguments, input).await;
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "kubectl {arguments:?}: {error}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }
}

fn pod(name: &str, script: &str) -> String {
    let script = serde_json::to_string(script).unwrap();
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\nspec:\n  \
         containers: [{{name: main, image: none, stdin: true, command: [sh, -c, {script}]}}]\n"
    )
}

async fn field() -> Field {
    let kubeconfig = Some(control_plane::kubeconfig());
    Field::with(Options { kubeconfig, ..Options::default() }).await
}

async fn running(kubectl: &Kubectl, name: &str, script: &str) {
    kubectl.ok(&["apply", "--server-side", "-f", "-"], pod(name, script).as_bytes()).await;
    kubectl.ok(&["wait", "--for=condition=Ready", &format!("pod/{name}"), "--timeout=60s"], b"").await;
}

fn sum(path: &Path) -> String {
    hex::encode(Sha256::digest(std::fs::read(path).unwrap()))
}

#[tokio::test]
async fn objects_are_applied_watched_for_over_two_minutes_and_deleted() {
    let field = field().await;
    let kubectl = Kubectl::new(&field);
    let mut watch =
        kubectl.command(&["get", "configmaps", "-w", "-n", "default", "-o", "name"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let start = Instant::now();
    let map = |number: u32| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: seen-{number}}}\ndata: {{k: '{number}'}}\n"
        )
    };
    // One object every ten seconds; the watch must tell of each, on one connection without a hidden time limit.
    let mut pace = tokio::time::interval(Duration::from_secs(10));
    let mut number = 0;
    while start.elapsed() < Duration::from_secs(125) {
        pace.tick().await;
        kubectl.ok(&["apply", "--server-side", "-n", "default", "-f", "-"], map(number).as_bytes()).await;
        let wanted = format!("configmap/seen-{number}");
        let seen = timeout(Duration::from_secs(30), async {
            while let Some(line) = lines.next_line().await.unwrap() {
                if line == wanted {
                    return true;
                }
            }
            false
        });
        assert!(seen.await.unwrap_or(false), "{wanted} never came after {:?}", start.elapsed());
        number += 1;
    }
    assert!(watch.try_wait().unwrap().is_none(), "the watch ended");
    let listed = kubectl.ok(&["get", "configmaps", "-n", "default", "-o", "name"], b"").await;
    assert_eq!(listed.lines().filter(|line| line.contains("seen-")).count(), number as usize);
    for number in 0..number {
        kubectl.ok(&["delete", "configmap", &format!("seen-{number}"), "-n", "default"], b"").await;
    }
    println!("watched {number} changes over {:?}", start.elapsed());
}

#[tokio::test]
async fn logs_exec_attach_cp_and_port_forward_work() {
    let field = field().await;
    let kubectl = Kubectl::new(&field);
    let script = "echo started; n=0; while true; do n=$((n+1)); echo line $n; sleep 0.2; done";
    running(&kubectl, "ticking", script).await;

    let mut follow = kubectl.command(&["logs", "-f", "ticking"]).spawn().unwrap();
    let mut lines = BufReader::new(follow.stdout.take().unwrap()).lines();
    for wanted in ["started", "line 1", "line 2", "line 3"] {
        let line = timeout(COMMAND, lines.next_line()).await.unwrap().unwrap().unwrap();
        assert_eq!(line, wanted);
    }
    drop(follow);

    let echoed =
        kubectl.output(&["exec", "-i", "ticking", "--", "sh", "-c", "cat; exit 7"], b"to and fro").await;
    assert_eq!(String::from_utf8_lossy(&echoed.stdout), "to and fro");
    assert_eq!(echoed.status.code(), Some(7));
    running(&kubectl, "listening", "while read line; do echo got $line; done").await;
    let mut attached = kubectl.command(&["attach", "-i", "listening"]).spawn().unwrap();
    let mut stdin = attached.stdin.take().unwrap();
    let mut lines = BufReader::new(attached.stdout.take().unwrap()).lines();
    stdin.write_all(b"hello\n").await.unwrap();
    let line = timeout(COMMAND, lines.next_line()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("got hello"));
    drop((attached, stdin));
    transfer(&kubectl, "ticking").await;
    forward(&kubectl, "ticking", 1).await;
    kubectl.ok(&["delete", "pod", "ticking", "listening", "--grace-period=0", "--force"], b"").await;
}

/// 20 MB into the pod and back.
async fn transfer(kubectl: &Kubectl, pod: &str) {
    let there = kubectl.file(&format!("{pod}.there"));
    let mut bytes = vec![0; 20_000_000];
    rand::RngCore::fill_bytes(&mut rand::rng(), &mut bytes);
    std::fs::write(&there, &bytes).unwrap();
    let name = format!("{pod}.there");
    kubectl.ok(&["cp", &name, &format!("{pod}:copied")], b"").await;
    let listed = kubectl.ok(&["exec", pod, "--", "sha256sum", "copied"], b"").await;
    assert!(listed.starts_with(&sum(&there)), "{listed}");
    let back = format!("{pod}.back");
    kubectl.ok(&["cp", &format!("{pod}:copied"), &back], b"").await;
    assert_eq!(sum(&there), sum(&kubectl.file(&back)));
}

/// Bytes through a forwarded port to an echoing server on this machine, `rounds` connections one after another.
async fn forward(kubectl: &Kubectl, pod: &str, rounds: usize) {
    let server = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = server.local_addr().unwrap().port();
    let echo = tokio::spawn(async move {
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let mut forward = kubectl.command(&["port-forward", pod, &format!(":{port}")]).spawn().unwrap();
    let mut lines = BufReader::new(forward.stdout.take().unwrap()).lines();
    let line = timeout(COMMAND, lines.next_line()).await.unwrap().unwrap().expect("port-forward says where");
    let local: u16 =
        line.split("127.0.0.1:").nth(1).and_then(|rest| rest.split(' ').next()).unwrap().parse().unwrap();
    for _ in 0..rounds {
        let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", local)).await.unwrap();
        let sent: Vec<u8> = (0..500_000u32).map(|byte| byte as u8).collect();
        let mut received = vec![0; sent.len()];
        let (mut read, mut write) = stream.split();
        let exchange = async {
            let (wrote, read) = tokio::join!(write.write_all(&sent), read.read_exact(&mut received));
            (wrote.unwrap(), read.unwrap())
        };
        timeout(COMMAND, exchange).await.expect("echoed in time");
        assert!(sent == received, "the echo differs");
    }
    echo.abort();
}

#[tokio::test]
async fn twenty_of_these_at_once() {
    let field = field().await;
    let kubectl = Kubectl::new(&field);
    running(&kubectl, "busy", "while read line; do echo $line; done; sleep 1000").await;
    let work = async |number: usize| match number % 5 {
        0 => {
            let echoed = kubectl.output(&["exec", "-i", "busy", "--", "sh", "-c", "cat; exit 3"], b"x").await;
            assert_eq!((echoed.stdout.as_slice(), echoed.status.code()), (b"x".as_slice(), Some(3)));
        }
        1 => {
            let (name, there) = (format!("file-{number}"), kubectl.file(&format!("file-{number}")));
            std::fs::write(&there, vec![number as u8; 2_000_000]).unwrap();
            kubectl.ok(&["cp", &name, &format!("busy:{name}")], b"").await;
            let back = format!("back-{number}");
            kubectl.ok(&["cp", &format!("busy:{name}"), &back], b"").await;
            assert_eq!(sum(&there), sum(&kubectl.file(&back)));
        }
        2 => forward(&kubectl, "busy", 2).await,
        3 => {
            let map = format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: twenty-{number}, namespace: default}}\n"
            );
            kubectl.ok(&["apply", "--server-side", "-f", "-"], map.as_bytes()).await;
            kubectl.ok(&["delete", "configmap", &format!("twenty-{number}"), "-n", "default"], b"").await;
        }
        _ => assert!(kubectl.ok(&["get", "pods", "-n", "default"], b"").await.contains("busy")),
    };
    let start = Instant::now();
    futures::future::join_all((0..20).map(work)).await;
    println!("twenty at once took {:?}", start.elapsed());
    kubectl.ok(&["delete", "pod", "busy", "--grace-period=0", "--force"], b"").await;
}

#[tokio::test]
async fn exec_and_attach_work_over_websocket_too() {
    use kube::api::{Api, AttachParams};
    let field = field().await;
    let kubectl = Kubectl::new(&field);
    running(&kubectl, "socket", "while read line; do echo got $line; done").await;
    let config = kube::config::Kubeconfig::read_from(field.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(config, &Default::default()).await.unwrap();
    let client = kube::Client::try_from(config).unwrap();
    let pods: Api<k8s_openapi::api::core::v1::Pod> = Api::namespaced(client, "default");

    let parameters = AttachParams::default().stdin(true).stdout(true).stderr(false);
    let mut process = pods.exec("socket", ["head", "-c", "300000"], &parameters).await.unwrap();
    let (mut stdin, mut stdout) = (process.stdin().unwrap(), process.stdout().unwrap());
    let sent = vec![b'w'; 300_000];
    let mut received = Vec::new();
    let exchange = async {
        let (wrote, read) = tokio::join!(stdin.write_all(&sent), stdout.read_to_end(&mut received));
        (wrote.unwrap(), read.unwrap())
    };
    timeout(COMMAND, exchange).await.expect("echoed in time");
    assert!(sent == received, "the echo differs: {} bytes", received.len());

    let mut attached = pods.attach("socket", &parameters).await.unwrap();
    attached.stdin().unwrap().write_all(b"hello\n").await.unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(attached.stdout().unwrap());
    timeout(COMMAND, output.read_line(&mut line)).await.expect("answered").unwrap();
    assert_eq!(line, "got hello\n");
    kubectl.ok(&["delete", "pod", "socket", "--grace-period=0", "--force"], b"").await;
}

#[tokio::test]
async fn kubectl_shows_why_an_agent_is_not_there() {
    let mut field = field().await;
    let kubectl = Kubectl::new(&field);
    let config = std::fs::read_to_string(&kubectl.kubeconfig).unwrap();
    field.agent.kill().await;
    std::fs::write(&kubectl.kubeconfig, config.replace(&format!("postern:{AGENT}:"), "postern:8:")).unwrap();
    let output = kubectl.output(&["get", "pods"], b"").await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(error.contains("agent 8 has never connected"), "{error}");
    until("probes still answer", async || {
        let probes = field.addresses.broker_probes;
        (crate::harness::http::probe(probes, "/readiness").await == Some(200)).then_some(())
    })
    .await;
}
