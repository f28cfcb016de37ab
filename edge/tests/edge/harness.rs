//! Starts the edge on ports of the system's choice, reads its log, stops it.

use postern_certs::dev::Ca;
use serde_json::Value;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::sync::watch;

/// Longer than anything here takes on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Part of every token used here; must never be logged.
pub(crate) const SECRET: &str = "s3cr3t";

pub(crate) fn token(name: &str) -> String {
    format!("Bearer {name}-{SECRET}")
}

/// What a test wants of the edge beyond the addresses of its upstreams.
#[derive(Default)]
pub(crate) struct Setup {
    pub(crate) agents: Vec<SocketAddr>,
    pub(crate) kubernetes_api: Vec<SocketAddr>,
    /// More top-level YAML.
    pub(crate) more: &'static str,
}

pub(crate) struct Edge {
    child: Child,
    pub(crate) directory: TempDir,
    pub(crate) ca: Ca,
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    pub(crate) admin: SocketAddr,
    /// All listeners in their order, as the log names them.
    pub(crate) ports: Vec<String>,
    lines: watch::Receiver<usize>,
    log: Arc<Mutex<Vec<String>>>,
}

impl Edge {
    pub(crate) async fn start(setup: Setup) -> Self {
        Self::start_in(TempDir::new().unwrap(), setup).await
    }

    /// The same, with what is in the directory already.
    pub(crate) async fn start_in(directory: TempDir, setup: Setup) -> Self {
        Self::write(directory, LISTEN, &setup.upstreams(), setup.more).launch().await
    }

    /// With listeners of the test's own. `ca.crt` and the pair `tls.crt`, `tls.key` lie beside the configuration.
    pub(crate) async fn listening(setup: Setup, listen: &str) -> Self {
        Self::write(TempDir::new().unwrap(), listen, &setup.upstreams(), setup.more).launch().await
    }

    /// With a section `upstreams` as written, indented by two, and with more environment.
    pub(crate) async fn start_with(upstreams: &str, more: &str, environment: &[(&str, &Path)]) -> Self {
        let mut start = Self::write(TempDir::new().unwrap(), LISTEN, upstreams, more);
        start.command.envs(environment.iter().copied());
        start.launch().await
    }

    /// Without a log below `info`, which would be most of the work of a test that sends much.
    #[allow(dead_code, reason = "for the attacks, which are a program of their own")]
    pub(crate) async fn start_quietly(setup: Setup) -> Self {
        let mut start = Self::write(TempDir::new().unwrap(), LISTEN, &setup.upstreams(), setup.more);
        start.command.env("POSTERN_LOG", "info,access=warn");
        start.launch().await
    }

    fn write(directory: TempDir, listen: &str, upstreams: &str, more: &str) -> Start {
        let ca = Ca::new();
        ca.issue(&["localhost", "127.0.0.1"]).write(directory.path()).unwrap();
        ca.write(directory.path()).unwrap();
        let file = directory.path().join("edge.yaml");
        let document =
            format!("listen:\n{listen}\nupstreams:\n  {upstreams}\nadmin: {{listen: 127.0.0.1:0}}\n{more}\n");
        std::fs::write(&file, document).unwrap();
        let mut command = Command::new(program());
        command.arg("--config").arg(&file);
        Start { command, directory, ca }
    }

    /// Starts a command that becomes the edge, and waits until it listens.
    pub(crate) async fn launch(mut command: Command, directory: TempDir, ca: Ca) -> Self {
        if command.as_std().get_envs().all(|(name, _)| name != "POSTERN_LOG") {
            command.env("POSTERN_LOG", "trace");
        }
        let mut child = command.stderr(Stdio::piped()).kill_on_drop(true).spawn().unwrap();
        let stderr = child.stderr.take().unwrap();
        let log: Arc<Mutex<Vec<String>>> = Arc::default();
        let (count, lines) = watch::channel(0);
        tokio::spawn({
            let log = log.clone();
            async move {
                let mut lines = BufReader::new(stderr).lines();
                while let Ok(Some(line)) = lines.next_line().await {
                    log.lock().unwrap().push(line);
                    count.send_modify(|count| *count += 1);
                }
            }
        });
        let any = SocketAddr::from(([0, 0, 0, 0], 0));
        let ports = Vec::new();
        let mut edge = Self { child, directory, ca, plain: any, tls: any, admin: any, ports, lines, log };
        let admin = edge.line(|line| line["message"] == "admin listening").await;
        edge.admin = admin["address"].as_str().unwrap().parse().unwrap();
        // Said last.
        let log: Vec<Value> =
            edge.log.lock().unwrap().iter().filter_map(|line| serde_json::from_str(line).ok()).collect();
        for line in log.iter().filter(|line| line["message"] == "listening") {
            let address = line["address"].as_str().unwrap().to_owned();
            let first = if line["tls"] == true { &mut edge.tls } else { &mut edge.plain };
            if *first == any {
                *first = address.parse().unwrap_or(any);
            }
            edge.ports.push(address);
        }
        edge
    }

    /// The edge in front of one broker.
    pub(crate) async fn before(agents: SocketAddr, kubernetes_api: SocketAddr) -> Self {
        Self::start(Setup { agents: vec![agents], kubernetes_api: vec![kubernetes_api], more: "" }).await
    }

    /// The first log line that fits, once it is there.
    pub(crate) async fn line(&self, fits: impl Fn(&Value) -> bool) -> Value {
        let mut lines = self.lines.clone();
        let found = tokio::time::timeout(DEADLINE, async {
            loop {
                let seen = *lines.borrow_and_update();
                for line in &self.log.lock().unwrap()[..seen] {
                    let line: Value =
                        serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
                    if fits(&line) {
                        return line;
                    }
                }
                lines.changed().await.expect("the edge ended without saying so");
            }
        });
        found.await.unwrap_or_else(|_| panic!("no such line in\n{}", self.log.lock().unwrap().join("\n")))
    }

    /// The access log line of a stream.
    pub(crate) async fn access(&self, fits: impl Fn(&Value) -> bool) -> Value {
        self.line(|line| line["target"] == "access" && fits(line)).await
    }

    /// Waits until the admin listener gives this status; returns the body that came with it.
    pub(crate) async fn probe(&self, path: &str, status: u16) -> String {
        until(&format!("{path} gives {status}"), async || {
            let (got, body) = get(self.admin, path).await;
            (got == status).then_some(body)
        })
        .await
    }

    /// Waits until no client is connected.
    pub(crate) async fn idle(&self) {
        until("no client is connected", async || {
            let metrics = get(self.admin, "/metrics").await.1;
            let open = |line: &&str| line.starts_with("postern_edge_connections{") && !line.ends_with(" 0");
            (!metrics.lines().any(|line| open(&line))).then_some(())
        })
        .await;
    }

    /// The process.
    #[allow(dead_code, reason = "for the attacks, which are a program of their own")]
    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("the edge runs")
    }

    /// File descriptors that the edge has open.
    pub(crate) fn descriptors(&self) -> usize {
        let id = self.child.id().expect("the edge runs");
        std::fs::read_dir(format!("/proc/{id}/fd")).unwrap().count()
    }

    /// KiB of memory that the edge has resident.
    #[allow(dead_code, reason = "for the attacks, which are a program of their own")]
    pub(crate) fn resident(&self) -> u64 {
        let id = self.child.id().expect("the edge runs");
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let id = self.child.id().expect("the edge runs").to_string();
        assert!(std::process::Command::new("kill").args(["-s", name, &id]).status().unwrap().success());
    }

    pub(crate) async fn ended(&mut self) -> ExitStatus {
        tokio::time::timeout(DEADLINE, self.child.wait()).await.expect("the edge does not end").unwrap()
    }

    /// Whether the process still runs, and never said what it must not.
    pub(crate) fn assert_alive(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "the edge ended");
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let log = self.log.lock().unwrap();
            let leak = log.iter().find(|line| line.contains(SECRET));
            assert!(leak.is_none(), "a token was logged: {leak:?}");
            let panic = log.iter().find(|line| line.contains("panicked"));
            assert!(panic.is_none(), "{panic:?}");
        }
    }
}

const LISTEN: &str = "- address: 127.0.0.1:0\n- address: 127.0.0.1:0\n  tls: {certificates: [{certificate_file: tls.crt, key_file: tls.key}]}";

/// An edge that is about to be.
struct Start {
    command: Command,
    directory: TempDir,
    ca: Ca,
}

impl Start {
    async fn launch(self) -> Edge {
        Edge::launch(self.command, self.directory, self.ca).await
    }
}

impl Setup {
    fn upstreams(&self) -> String {
        format!(
            "agents: {{addresses: {}}}\n  kubernetes_api: {{addresses: {}}}",
            list(&self.agents),
            list(&self.kubernetes_api)
        )
    }
}

/// `POSTERN_EDGE` names another build of it, for measurements.
fn program() -> OsString {
    std::env::var_os("POSTERN_EDGE").unwrap_or_else(|| env!("CARGO_BIN_EXE_postern-edge").into())
}

fn list(addresses: &[SocketAddr]) -> String {
    let quoted: Vec<String> = addresses.iter().map(|address| format!("'{address}'")).collect();
    format!("[{}]", quoted.join(", "))
}

/// One HTTP/1.1 exchange on a connection of its own: status and body.
pub(crate) async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    (status(head), body.to_owned())
}

/// Waits for what something else brings about, and looks at it every few milliseconds.
pub(crate) async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let found = tokio::time::timeout(DEADLINE, async {
        loop {
            pace.tick().await;
            if let Some(found) = look().await {
                return found;
            }
        }
    });
    found.await.unwrap_or_else(|_| panic!("never: {what}"))
}

/// Away from the turn of a minute, at which fleet-wide counts begin anew.
pub(crate) async fn within_a_minute() {
    let now = || std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() % 60;
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    while now() > 40 {
        pace.tick().await;
    }
}

/// Sends bytes and reads until the other side closes.
pub(crate) async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(DEADLINE, tcp.read_to_end(&mut answer))
        .await
        .expect("no end of the answer")
        .unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

pub(crate) fn status(head: &str) -> u16 {
    head.split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or_else(|| panic!("no status in {head:?}"))
}

/// Runs `--check` on a document: whether it was accepted, and what was said.
pub(crate) async fn check(directory: &Path, document: &str) -> (bool, String) {
    let file = directory.join("edge.yaml");
    std::fs::write(&file, document).unwrap();
    let run = Command::new(env!("CARGO_BIN_EXE_postern-edge"))
        .args(["--check", "--config"])
        .arg(&file)
        .output()
        .await
        .unwrap();
    (run.status.success(), String::from_utf8(run.stderr).unwrap())
}
