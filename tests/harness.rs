//! Boots edge, broker and agent as the processes they are, on port 0, and tells tests where they listen. Nothing here
//! knows what a test asserts. Everything is killed when it is dropped.

use postern_certs::dev::{Ca, Issued};
use postern_wire::token::TokenKey;
use serde_json::Value;
use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    time::{Instant, Interval, MissedTickBehavior, interval, timeout},
};

#[path = "harness/agents.rs"]
pub(crate) mod agents;
#[path = "harness/brokers.rs"]
pub(crate) mod brokers;
#[path = "harness/gitlab.rs"]
pub(crate) mod gitlab;
#[path = "harness/http.rs"]
pub(crate) mod http;
#[path = "harness/program.rs"]
pub(crate) mod program;
#[path = "harness/redis.rs"]
pub(crate) mod redis;
#[path = "harness/stalls.rs"]
pub(crate) mod stalls;

/// No single step of any test takes this long unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The agent of every field.
pub(crate) const AGENT: i64 = 7;

/// Where an agent in a container has the field's folder.
pub(crate) const INSIDE: &str = "/etc/agentk";

/// Where things are cached that `make test` installs.
pub(crate) fn cache() -> PathBuf {
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    base.unwrap_or_else(|| PathBuf::from(std::env::var_os("HOME").expect("HOME is set")).join(".cache"))
        .join("postern")
}

/// Waits until the condition holds, looking often; panics with the words after [`PATIENCE`].
pub(crate) async fn until<T>(what: &str, condition: impl AsyncFnMut() -> Option<T>) -> T {
    within(PATIENCE, what, condition).await
}

/// As [`until`], with a deadline of its own.
pub(crate) async fn within<T>(
    patience: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> T {
    let start = Instant::now();
    let mut ticks = ticks();
    loop {
        ticks.tick().await;
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < patience, "waited {patience:?} in vain: {what}");
    }
}

/// How often conditions are looked at. However long a look takes, there is a pause after it: stand-ins live on this thread.
fn ticks() -> Interval {
    let mut ticks = interval(Duration::from_millis(10));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// One of our binaries. `POSTERN_AGENTK` is another build of the agent, to be tested or measured instead.
pub(crate) fn binary(name: &str) -> PathBuf {
    if let ("agentk", Some(path)) = (name, std::env::var_os("POSTERN_AGENTK")) {
        return path.into();
    }
    // Test binaries are in target/debug/deps, the binaries one level up.
    let test = std::env::current_exe().expect("this test has a path");
    let path = test.ancestors().nth(2).expect("target folder").join(name);
    assert!(path.exists(), "{} is not built; run `make test`", path.display());
    path
}

/// A child process whose standard error is a file of JSON lines.
pub(crate) struct Process {
    pub(crate) name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts one of our binaries; `name` names its log.
    pub(crate) fn start(
        name: &str,
        binary: &str,
        folder: &Path,
        arguments: &[String],
        env: &[(&str, &str)],
    ) -> Self {
        Self::launch(name, Command::new(self::binary(binary)), folder, arguments, env)
    }

    /// Starts a command that already says which program, with these arguments behind its own.
    pub(crate) fn launch(
        name: &str,
        mut command: Command,
        folder: &Path,
        arguments: &[String],
        env: &[(&str, &str)],
    ) -> Self {
        // Not among the files that are watched for changes: at `trace` each line would be a change worth a line.
        let folder = folder.join("logs");
        fs::create_dir_all(&folder).expect("folder of logs");
        let mut number = 0;
        let log = loop {
            let log = folder.join(format!("{name}.{number}.log"));
            if !log.exists() {
                break log;
            }
            number += 1;
        };
        let file = fs::File::create(&log).expect("log file");
        for proxy in [
            "http_proxy",
            "https_proxy",
            "HTTP_PROXY",
            "HTTPS_PROXY",
            "all_proxy",
            "ALL_PROXY",
            "NO_PROXY",
            "no_proxy",
        ] {
            command.env_remove(proxy);
        }
        command
            .args(arguments)
            .env(
                "POSTERN_LOG",
                std::env::var("POSTERN_LOG").unwrap_or_else(|_| "debug,h2=info,hyper=info".into()),
            )
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .kill_on_drop(true);
        let child = command.spawn().unwrap_or_else(|error| panic!("{name} does not start: {error}"));
        Self { name: name.to_owned(), child, log }
    }

    /// All lines so far that are JSON objects.
    pub(crate) fn lines(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// Everything it has written so far.
    pub(crate) fn text(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The first line with this message for which `matches` holds, now or later.
    pub(crate) async fn logged(&mut self, message: &str, matches: impl Fn(&Value) -> bool) -> Value {
        let name = self.name.clone();
        let found = timeout(PATIENCE, async {
            let mut ticks = ticks();
            loop {
                ticks.tick().await;
                // Parsing all of a log at `trace` would keep this thread from everything else.
                let text = self.text();
                let mut candidates = text.lines().filter(|line| line.contains(message));
                let found = candidates.find_map(|line| {
                    let line: Value = serde_json::from_str(line).ok()?;
                    (line["message"] == message && matches(&line)).then_some(line)
                });
                if let Some(line) = found {
                    return Some(line);
                }
                if self.child.try_wait().expect("wait").is_some() {
                    return None;
                }
            }
        });
        match found.await {
            Ok(Some(line)) => line,
            _ => panic!("{name} never logged {message:?}:\n{}", self.text()),
        }
    }

    /// The address of a `listening` line.
    pub(crate) async fn address(&mut self, message: &str, matches: impl Fn(&Value) -> bool) -> SocketAddr {
        let line = self.logged(message, matches).await;
        line["address"].as_str().and_then(|text| text.parse().ok()).expect("an address")
    }

    /// SIGKILL, and waits until it is gone.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.expect("killed");
    }

    /// A signal by its name.
    pub(crate) async fn signal(&self, signal: &str) {
        let pid = self.child.id().expect("running").to_string();
        let sent = Command::new("kill").args([format!("-{signal}"), pid]).status().await.expect("kill runs");
        assert!(sent.success());
    }

    /// Its exit status, within [`PATIENCE`].
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        let ended = timeout(PATIENCE, self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{} does not end:\n{}", self.name, self.text())).expect("wait")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("running")
    }

    /// Open file descriptors.
    pub(crate) fn descriptors(&self) -> usize {
        fs::read_dir(format!("/proc/{}/fd", self.pid())).expect("proc").count()
    }

    /// Resident memory in KiB.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("proc");
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("VmRSS");
        line.split_whitespace().nth(1).and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// Whether it still runs.
    pub(crate) fn alive(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }
}

/// Which cluster is behind the agent.
pub(crate) enum Cluster {
    /// The stand-in.
    StandIn(Box<stand_ins::kube_api::KubeApi>),
    /// Whatever the kubeconfig file of the options names.
    Real,
}

/// Everything, running.
pub(crate) struct Field {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) ca: Ca,
    pub(crate) edge: Process,
    pub(crate) broker: Process,
    pub(crate) agent: Process,
    pub(crate) cluster: Cluster,
    pub(crate) addresses: Addresses,
    pub(crate) agent_token: String,
    pub(crate) caller_token: String,
    /// What the agent shows the stand-in.
    pub(crate) cluster_token: String,
    options: Options,
}

/// Where everything listens.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) edge_tls: SocketAddr,
    pub(crate) edge_plain: SocketAddr,
    pub(crate) edge_admin: SocketAddr,
    pub(crate) broker_agents: SocketAddr,
    pub(crate) broker_kubernetes: SocketAddr,
    pub(crate) broker_probes: SocketAddr,
    pub(crate) agent_probes: SocketAddr,
}

/// What a test may want otherwise than usual.
#[derive(Clone)]
pub(crate) struct Options {
    /// `wss`, `ws`, `grpc`, `grpcs` through the edge, or a whole URL.
    pub(crate) scheme: String,
    pub(crate) ca_cert_file: bool,
    pub(crate) agent_wait: &'static str,
    /// Added to edge.yaml.
    pub(crate) edge_extra: String,
    /// Instead of the stand-in.
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Wait until the agent is ready.
    pub(crate) ready: bool,
    /// More flags for the agent.
    pub(crate) agent_flags: Vec<String>,
    pub(crate) agent_env: Vec<(&'static str, String)>,
    /// Instead of the good one.
    pub(crate) agent_token: Option<String>,
    /// The configuration document of the agent.
    pub(crate) configuration: &'static str,
    /// `POSTERN_LOG` of all three, instead of the usual one.
    pub(crate) log: Option<&'static str>,
    /// The whole of kas.yaml, instead of one with the embedded provider; its first three addresses have port 0.
    pub(crate) kas: Option<String>,
    /// What callers say after `Bearer`, instead of a token of the embedded provider.
    pub(crate) credentials: Option<String>,
    /// The agent in a container: the command line that agentk's arguments go behind, which sees the folder of the field at
    /// [`INSIDE`].
    pub(crate) agent_command: Option<Vec<String>>,
}

impl Options {
    fn log_env(&self) -> Vec<(&'static str, &'static str)> {
        self.log.iter().map(|level| ("POSTERN_LOG", *level)).collect()
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            scheme: "wss".into(),
            ca_cert_file: true,
            agent_wait: "20s",
            edge_extra: String::new(),
            kubeconfig: None,
            ready: true,
            agent_flags: Vec::new(),
            agent_env: Vec::new(),
            agent_token: None,
            configuration: "observability: {logging: {level: debug}}\n",
            log: None,
            kas: None,
            credentials: None,
            agent_command: None,
        }
    }
}

pub(crate) fn random() -> String {
    (0..32).map(|_| char::from(rand::Rng::sample(&mut rand::rng(), rand::distr::Alphanumeric))).collect()
}

pub(crate) fn git(folder: &Path, arguments: &[&str]) {
    let output = std::process::Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git runs");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

impl Field {
    /// Everything with the usual options.
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// Everything, in the order of the dial.
    pub(crate) async fn with(options: Options) -> Self {
        postern_certs::install_provider();
        let folder = tempfile::tempdir().expect("folder");
        let here = folder.path().to_owned();
        let ca = Ca::new();
        fs::write(here.join("ca.crt"), ca.pem()).expect("CA written");
        let Issued { certificate_pem, key_pem } = ca.issue(&["localhost", "127.0.0.1"]);
        fs::write(here.join("tls.crt"), certificate_pem).expect("certificate written");
        fs::write(here.join("tls.key"), key_pem).expect("key written");
        let cluster_token = format!("cluster-{}", random());
        let (agent_token, caller_token) = (format!("glagent-{}", random()), format!("caller-{}", random()));
        fs::write(here.join("agent.token"), &agent_token).expect("token written");
        Self::write_identities(&here, &[&agent_token], &[], &caller_token);

        let repository = here.join("config");
        fs::create_dir_all(repository.join(".gitlab/agents/test")).expect("folder");
        git(&repository, &["init", "-q"]);
        fs::write(repository.join(".gitlab/agents/test/config.yaml"), options.configuration)
            .expect("written");
        git(&repository, &["add", "."]);
        git(&repository, &["commit", "-qm", "first"]);

        let kas = options.kas.clone().unwrap_or_else(|| {
            format!(
                "agent:\n  listen: {{address: '127.0.0.1:0', websocket: true}}\n  kubernetes_api:\n    \
                 listen: {{address: '127.0.0.1:0'}}\n    url_path_prefix: /k8s-proxy/\n    agent_wait: {}\n\
                 observability: {{listen: {{address: '127.0.0.1:0'}}}}\nembedded: {{identities_file: identities.yaml}}\n",
                options.agent_wait
            )
        });
        fs::write(here.join("kas.yaml"), kas).expect("written");
        let (mut broker, broker_agents, broker_kubernetes, broker_probes) =
            Self::start_broker(&here, &options).await;
        Self::pin_broker(&here, broker_agents, broker_kubernetes, broker_probes);
        let _ = &mut broker;

        fs::write(
            here.join("edge.yaml"),
            format!(
                "listen:\n- {{address: '127.0.0.1:0', tls: {{certificates: [{{certificate_file: tls.crt, key_file: tls.key}}]}}}}\n\
                 - {{address: '127.0.0.1:0'}}\nupstreams:\n  agents: {{addresses: ['{broker_agents}']}}\n  \
                 kubernetes_api: {{addresses: ['{broker_kubernetes}']}}\nadmin: {{listen: '127.0.0.1:0'}}\n{}",
                options.edge_extra
            ),
        )
        .expect("written");
        let (edge, edge_tls, edge_plain, edge_admin) = Self::start_edge(&here, &options).await;
        Self::pin_edge(&here, edge_tls, edge_plain, edge_admin);

        let cluster = match &options.kubeconfig {
            Some(_) => Cluster::Real,
            None => {
                let token = Some(cluster_token.clone());
                let options = stand_ins::kube_api::Options { token, ..Default::default() };
                let api = stand_ins::kube_api::KubeApi::start(options).await;
                let api = api.expect("stand-in starts");
                fs::write(here.join("cluster.kubeconfig"), api.kubeconfig()).expect("written");
                Cluster::StandIn(Box::new(api))
            }
        };
        let mut addresses = Addresses {
            edge_tls,
            edge_plain,
            edge_admin,
            broker_agents,
            broker_kubernetes,
            broker_probes,
            agent_probes: edge_admin,
        };
        let (agent, agent_probes) = Self::start_agent(&here, &options, addresses).await;
        addresses.agent_probes = agent_probes;
        let mut field = Self {
            folder,
            ca,
            edge,
            broker,
            agent,
            cluster,
            addresses,
            agent_token,
            caller_token,
            cluster_token,
            options,
        };
        if field.options.ready {
            field.ready().await;
        }
        field
    }

    /// Rewrites the identities file as a whole: tokens in force and revoked ones of the agent, the caller's.
    pub(crate) fn write_identities(here: &Path, agent: &[&str], revoked: &[&str], caller: &str) {
        let hashes = |tokens: &[&str]| {
            tokens.iter().map(|token| TokenKey::of(token.as_bytes()).to_hex()).collect::<Vec<_>>().join(", ")
        };
        let text = format!(
            "agents:\n- {{id: {AGENT}, name: test, project: {{id: 1, path: group/config}}, repository: config, \
             token_sha256: [{}], revoked_token_sha256: [{}]}}\n\
             - {{id: 8, name: other, token_sha256: []}}\n\
             callers:\n- {{name: tester, agents: [{AGENT}, 8], token_sha256: [{}]}}\n",
            hashes(agent),
            hashes(revoked),
            hashes(&[caller])
        );
        let fresh = here.join("identities.yaml.new");
        fs::write(&fresh, text).expect("written");
        fs::rename(fresh, here.join("identities.yaml")).expect("renamed");
    }

    async fn start_broker(here: &Path, options: &Options) -> (Process, SocketAddr, SocketAddr, SocketAddr) {
        let arguments = ["--configuration-file".into(), here.join("kas.yaml").display().to_string()];
        let mut broker = Process::start("broker", "kas", here, &arguments, &options.log_env());
        let agents = broker.address("listening", |line| line["listener"] == "agents").await;
        let kubernetes = broker.address("listening", |line| line["listener"] == "kubernetes_api").await;
        let probes = broker.address("listening", |line| line["listener"] == "observability").await;
        (broker, agents, kubernetes, probes)
    }

    /// From now on a restarted broker listens where the first one did.
    fn pin_broker(here: &Path, agents: SocketAddr, kubernetes: SocketAddr, probes: SocketAddr) {
        let text = fs::read_to_string(here.join("kas.yaml")).expect("read");
        let mut text = text;
        for address in [agents, kubernetes, probes] {
            text = text.replacen("127.0.0.1:0'", &format!("{address}'"), 1);
        }
        fs::write(here.join("kas.yaml"), text).expect("written");
    }

    async fn start_edge(here: &Path, options: &Options) -> (Process, SocketAddr, SocketAddr, SocketAddr) {
        let arguments = ["--config".into(), here.join("edge.yaml").display().to_string()];
        let mut edge = Process::start("edge", "postern-edge", here, &arguments, &options.log_env());
        let tls = edge.address("listening", |line| line["tls"] == true).await;
        let plain = edge.address("listening", |line| line["tls"] == false).await;
        let admin = edge.address("admin listening", |_| true).await;
        (edge, tls, plain, admin)
    }

    fn pin_edge(here: &Path, tls: SocketAddr, plain: SocketAddr, admin: SocketAddr) {
        let mut text = fs::read_to_string(here.join("edge.yaml")).expect("read");
        for address in [tls, plain, admin] {
            text = text.replacen("127.0.0.1:0'", &format!("{address}'"), 1);
        }
        fs::write(here.join("edge.yaml"), text).expect("written");
    }

    async fn start_agent(here: &Path, options: &Options, addresses: Addresses) -> (Process, SocketAddr) {
        let url = match options.scheme.as_str() {
            "wss" => format!("wss://localhost:{}/-/kubernetes-agent/", addresses.edge_tls.port()),
            "grpcs" => format!("grpcs://localhost:{}", addresses.edge_tls.port()),
            "ws" => format!("ws://127.0.0.1:{}/-/kubernetes-agent", addresses.edge_plain.port()),
            "grpc" => format!("grpc://{}", addresses.edge_plain),
            "grpc-straight" => format!("grpc://{}", addresses.broker_agents),
            "ws-straight" => format!("ws://{}", addresses.broker_agents),
            url => url.to_owned(),
        };
        let kubeconfig = options.kubeconfig.clone().unwrap_or_else(|| here.join("cluster.kubeconfig"));
        let mut arguments = vec![
            format!("--kas-address={url}"),
            format!("--token-file={}", Self::token_file(here, options).display()),
            format!("--kubeconfig={}", kubeconfig.display()),
            "--observability-listen-address=127.0.0.1:0".to_owned(),
        ];
        if options.ca_cert_file {
            arguments.push(format!("--ca-cert-file={}", here.join("ca.crt").display()));
        }
        arguments.extend(options.agent_flags.iter().cloned());
        let mut env = vec![("POD_NAMESPACE", "postern"), ("POD_NAME", "agent-0")];
        env.extend(options.log_env());
        env.extend(options.agent_env.iter().map(|(name, value)| (*name, value.as_str())));
        let mut agent = match &options.agent_command {
            None => Process::start("agent", "agentk", here, &arguments, &env),
            Some(line) => {
                let mut command = Command::new(&line[0]);
                command.args(&line[1..]);
                let outside = here.display().to_string();
                let inside = arguments.iter().map(|argument| argument.replace(&outside, INSIDE));
                Process::launch("agent", command, here, &inside.collect::<Vec<_>>(), &env)
            }
        };
        let probes = agent.address("observability listening", |_| true).await;
        (agent, probes)
    }

    /// The file of the field's own token, or one beside it for another token.
    fn token_file(here: &Path, options: &Options) -> PathBuf {
        let Some(token) = &options.agent_token else {
            return here.join("agent.token");
        };
        let file = here.join(format!("agent.{}.token", TokenKey::of(token.as_bytes())));
        // Another replica may be reading it.
        if fs::read_to_string(&file).ok().as_ref() != Some(token) {
            let fresh = file.with_extension("new");
            fs::write(&fresh, token).expect("token written");
            fs::rename(fresh, &file).expect("token in place");
        }
        file
    }

    /// Another agent of the same field, beside the first one; what it is told follows from `options` alone.
    pub(crate) async fn agent_beside(&self, options: &Options) -> (Process, SocketAddr) {
        Self::start_agent(self.folder.path(), options, self.addresses).await
    }

    /// Kills the agent and starts one that differs; `ready` in the options decides whether it is waited for.
    pub(crate) async fn replace_agent(&mut self, change: impl FnOnce(&mut Options)) {
        self.agent.kill().await;
        change(&mut self.options);
        self.restart_agent().await;
        if self.options.ready {
            self.ready().await;
        }
    }

    /// Waits until the agent says that it is ready; returns how long that took.
    pub(crate) async fn ready(&mut self) -> Duration {
        let start = Instant::now();
        let probes = self.addresses.agent_probes;
        let ready = timeout(
            PATIENCE,
            until("agent ready", async || {
                (http::probe(probes, "/readiness").await == Some(200)).then_some(())
            }),
        );
        if ready.await.is_err() {
            panic!(
                "the agent is not ready:\n{}\n--- edge\n{}\n--- broker\n{}",
                self.agent.text(),
                self.edge.text(),
                self.broker.text()
            );
        }
        start.elapsed()
    }

    /// Starts the broker again where it was.
    pub(crate) async fn restart_broker(&mut self) {
        self.broker = Self::start_broker(self.folder.path(), &self.options).await.0;
    }

    /// Starts the edge again where it was.
    pub(crate) async fn restart_edge(&mut self) {
        self.edge = Self::start_edge(self.folder.path(), &self.options).await.0;
    }

    /// Starts the agent again.
    pub(crate) async fn restart_agent(&mut self) {
        let (agent, probes) = Self::start_agent(self.folder.path(), &self.options, self.addresses).await;
        self.agent = agent;
        self.addresses.agent_probes = probes;
    }

    /// The stand-in.
    pub(crate) fn api(&self) -> &stand_ins::kube_api::KubeApi {
        match &self.cluster {
            Cluster::StandIn(api) => api,
            Cluster::Real => panic!("this field has a real cluster"),
        }
    }

    /// What a caller puts into `Authorization`.
    pub(crate) fn bearer(&self) -> String {
        format!("Bearer {}", self.credentials())
    }

    fn credentials(&self) -> String {
        let given = self.options.credentials.clone();
        given.unwrap_or_else(|| format!("postern:{AGENT}:{}", self.caller_token))
    }

    /// A kubeconfig for callers, through the edge.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        use base64::{Engine, prelude::BASE64_STANDARD};
        let file = self.folder.path().join("caller.kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\nclusters:\n- name: c\n  cluster: {{server: 'https://localhost:{}/k8s-proxy', \
             certificate-authority-data: {}}}\nusers:\n- name: u\n  user: {{token: '{}'}}\ncontexts:\n\
             - name: x\n  context: {{cluster: c, user: u}}\ncurrent-context: x\n",
            self.addresses.edge_tls.port(),
            BASE64_STANDARD.encode(self.ca.pem()),
            self.credentials()
        );
        fs::write(&file, text).expect("written");
        file
    }
}
