//! A field whose broker asks GitLab: stand-ins of Rails and Gitaly in this process, git repositories on disk, and a
//! kas.yaml that names them. What there is, who may reach what and with which token is in [`World`].

use super::{AGENT, Field, Options, PATIENCE, Process, git, program::Program, random};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use stand_ins::{
    gitaly::{self, Gitaly},
    rails::{self, Agent, Job, Project, Rails, User},
};
use std::{
    fs,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::{Path, PathBuf},
};

/// The second agent: private, of another group, and not connected unless a test connects it.
pub(crate) const OTHER: i64 = 8;
/// Ids of agents and jobs that nobody has asked about yet, for what happens to newcomers.
pub(crate) const SPARES: usize = 24;

/// The configuration project of [`AGENT`], that of [`OTHER`], and a public one with manifests.
pub(crate) const PROJECTS: [(i64, &str); 3] =
    [(1, "group/config"), (2, "secret/config"), (3, "group/manifests")];

/// Every secret of a field. All of them are long and random, so that a search for them finds nothing else.
pub(crate) struct Tokens {
    pub(crate) agent: String,
    pub(crate) other: String,
    /// Of a job that reaches [`AGENT`] as itself: `access_as: {ci_job: {}}`.
    pub(crate) job: String,
    /// Of Alice, who reaches [`AGENT`] as a user.
    pub(crate) pat: String,
    pub(crate) cookie: String,
    pub(crate) csrf: String,
    pub(crate) gitaly: String,
    pub(crate) spare_agents: Vec<String>,
    pub(crate) spare_jobs: Vec<String>,
    /// Shared with Rails, in its two directions; base64.
    pub(crate) to_rails: [u8; 32],
    pub(crate) from_rails: String,
}

impl Tokens {
    fn new() -> Self {
        let of = |prefix: &str| format!("{prefix}-{}", random());
        let spares = |prefix: &str| (0..SPARES).map(|_| of(prefix)).collect();
        Self {
            agent: of("glagent"),
            other: of("glagent"),
            job: of("glcbt"),
            pat: of("glpat"),
            cookie: of("cookie"),
            csrf: of("csrf"),
            gitaly: of("gitaly"),
            spare_agents: spares("glagent"),
            spare_jobs: spares("glcbt"),
            to_rails: rand::random(),
            from_rails: BASE64_STANDARD.encode(rand::random::<[u8; 32]>()),
        }
    }
}

/// The document that Rails answers about a job which may reach these agents, each of its project, in these ways.
pub(crate) fn job(agents: &[(i64, i64, Value)]) -> Value {
    let agents = agents.iter().map(|(id, project, access_as)| {
        let configuration = json!({"default_namespace": "team", "access_as": access_as});
        json!({"id": id, "config_project": {"id": project}, "configuration": configuration})
    });
    json!({
        "allowed_agents": agents.collect::<Vec<_>>(),
        "job": {"id": 900},
        "pipeline": {"id": 800},
        "project": {"id": 500, "groups": [{"id": 60}, {"id": 61}]},
        "user": {"id": 42, "username": "alice", "roles_in_project": ["reporter", "developer"]},
        "environment": {"slug": "prod-1", "tier": "production"},
    })
}

/// What a test may want otherwise than usual.
pub(crate) struct Setup {
    /// Of the field itself.
    pub(crate) field: Options,
    pub(crate) poll_period: &'static str,
    pub(crate) info_cache_ttl: &'static str,
    pub(crate) allowed_agent_cache_ttl: &'static str,
    pub(crate) usage_reporting_period: &'static str,
    pub(crate) external_url: Option<&'static str>,
    /// Added to kas.yaml at its end.
    pub(crate) kas_extra: String,
    /// Changes what Rails knows.
    pub(crate) rails: Box<dyn Fn(&mut rails::Options) + Send + Sync>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            field: Options::default(),
            poll_period: "1s",
            info_cache_ttl: "300s",
            allowed_agent_cache_ttl: "60s",
            usage_reporting_period: "60s",
            external_url: None,
            kas_extra: String::new(),
            rails: Box::new(|_| {}),
        }
    }
}

/// A field, GitLab beside it.
pub(crate) struct GitLabField {
    pub(crate) field: Field,
    pub(crate) rails: Option<Rails>,
    pub(crate) gitaly: Gitaly,
    pub(crate) tokens: Tokens,
    /// Where Rails calls the broker.
    pub(crate) api: SocketAddr,
    repositories: tempfile::TempDir,
    change: Box<dyn Fn(&mut rails::Options) + Send + Sync>,
}

impl Deref for GitLabField {
    type Target = Field;

    fn deref(&self) -> &Field {
        &self.field
    }
}

impl DerefMut for GitLabField {
    fn deref_mut(&mut self) -> &mut Field {
        &mut self.field
    }
}

/// What Rails knows.
fn rails_options(tokens: &Tokens, gitaly: &str) -> rails::Options {
    let projects = PROJECTS.map(|(id, path)| {
        let gitaly_token = tokens.gitaly.clone();
        Project { gitaly_address: gitaly.to_owned(), gitaly_token, ..Project::new(id, path) }
    });
    let [own, secret, manifests] = projects;
    let agent = |id: i64, name: &str, token: &str, project: &Project| Agent {
        token: token.to_owned(),
        id,
        name: name.to_owned(),
        project: project.clone(),
    };
    let mut agents =
        vec![agent(AGENT, "test", &tokens.agent, &own), agent(OTHER, "other", &tokens.other, &secret)];
    for (id, token) in (100..).zip(&tokens.spare_agents) {
        agents.push(agent(id, &format!("spare-{id}"), token, &own));
    }
    let as_job = [(AGENT, 1, json!({"ci_job": {}}))];
    let job =
        |token: &String| Job { token: token.clone(), allowed_agents: job(&as_job), feature_flags: None };
    let roles = json!({"user": {
        "projects": [{"id": 500, "roles": ["reporter", "developer"]}],
        "groups": [{"id": 60, "roles": ["developer"]}],
    }});
    rails::Options {
        secret: tokens.to_rails,
        agents,
        projects: vec![Project { public: true, ..manifests }],
        jobs: std::iter::once(&tokens.job).chain(&tokens.spare_jobs).map(job).collect(),
        users: vec![User {
            id: 42,
            username: "alice".into(),
            personal_access_token: tokens.pat.clone(),
            scope: true,
            session_cookie: tokens.cookie.clone(),
            csrf_token: tokens.csrf.clone(),
            agents: vec![(AGENT, roles)],
        }],
        ..rails::Options::default()
    }
}

/// A repository with one commit, where the stand-in of Gitaly looks for it.
fn prepare(repositories: &Path, project: i64, files: &[(&str, &str)]) {
    let folder = folder(repositories, project);
    fs::create_dir_all(&folder).expect("folder");
    git(&folder, &["init", "-q"]);
    commit(&folder, &files.iter().map(|(file, text)| (*file, Some(*text))).collect::<Vec<_>>());
}

fn folder(repositories: &Path, project: i64) -> PathBuf {
    repositories.join(format!("@hashed/{project}.git"))
}

/// Writes or removes files and commits them, or commits nothing; returns the commit's id.
fn commit(folder: &Path, files: &[(&str, Option<&str>)]) -> String {
    for (file, text) in files {
        let file = folder.join(file);
        fs::create_dir_all(file.parent().expect("a folder")).expect("folder");
        match text {
            Some(text) => fs::write(file, text).expect("written"),
            None => fs::remove_file(file).expect("removed"),
        }
    }
    git(folder, &["add", "-A"]);
    git(folder, &["commit", "-qm", "next", "--allow-empty"]);
    head(folder)
}

fn head(folder: &Path) -> String {
    let output = std::process::Command::new("git").args(["rev-parse", "HEAD"]).current_dir(folder).output();
    String::from_utf8(output.expect("git runs").stdout).expect("hexadecimal").trim().to_owned()
}

impl GitLabField {
    /// Everything with the usual setup.
    pub(crate) async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    /// Stand-ins first, then everything that asks them.
    pub(crate) async fn with(setup: Setup) -> Self {
        let Setup { field: mut options, external_url, kas_extra, rails: change, .. } = setup;
        let tokens = Tokens::new();
        let repositories = tempfile::tempdir().expect("folder");
        let here = repositories.path();
        prepare(here, 1, &[(".gitlab/agents/test/config.yaml", options.configuration)]);
        prepare(here, 2, &[(".gitlab/agents/other/config.yaml", "gitops: {}\n"), ("secret.yaml", "a: b\n")]);
        prepare(here, 3, &[("manifests/map.yaml", "kind: ConfigMap\n"), (".hidden/x.yaml", "x: y\n")]);
        let gitaly_options =
            gitaly::Options { token: Some(tokens.gitaly.clone()), ..gitaly::Options::new(here) };
        let gitaly = Gitaly::start(gitaly_options).await.expect("stand-in starts");
        let mut rails_options = rails_options(&tokens, gitaly.address());
        change(&mut rails_options);
        let rails = Rails::start(rails_options).await.expect("stand-in starts");

        let secrets = here.join("secrets");
        fs::create_dir_all(&secrets).expect("folder");
        fs::write(secrets.join("to-rails"), rails.secret_file()).expect("written");
        fs::write(secrets.join("from-rails"), &tokens.from_rails).expect("written");
        let external = external_url.map(|url| format!("  external_url: '{url}'\n")).unwrap_or_default();
        options.kas = Some(format!(
            "gitlab:\n  address: '{}'\n{external}  authentication_secret_file: '{secrets}/to-rails'\n  \
             api_rate_limit: {{refill_rate_per_second: 2000, bucket_size: 2000}}\n\
             gitaly:\n  global_api_rate_limit: {{refill_rate_per_second: 2000, bucket_size: 2000}}\n  \
             per_server_api_rate_limit: {{refill_rate_per_second: 2000, bucket_size: 2000}}\n\
             agent:\n  listen: {{address: '127.0.0.1:0', websocket: true}}\n  kubernetes_api:\n    \
             listen: {{address: '127.0.0.1:0'}}\n    url_path_prefix: /k8s-proxy/\n    agent_wait: {}\n    \
             allowed_agent_cache_ttl: {}\n    allowed_agent_cache_error_ttl: 1s\n  \
             configuration: {{poll_period: {poll}}}\n  gitops: {{poll_period: {poll}}}\n  \
             info_cache_ttl: {}\n  info_cache_error_ttl: 1s\n\
             observability: {{listen: {{address: '127.0.0.1:0'}}, usage_reporting_period: {}}}\n\
             api: {{listen: {{address: '127.0.0.1:0', authentication_secret_file: '{secrets}/from-rails'}}}}\n\
             {kas_extra}",
            rails.url(),
            options.agent_wait,
            setup.allowed_agent_cache_ttl,
            setup.info_cache_ttl,
            setup.usage_reporting_period,
            poll = setup.poll_period,
            secrets = secrets.display(),
        ));
        options.agent_token.get_or_insert_with(|| tokens.agent.clone());
        options.credentials.get_or_insert_with(|| format!("ci:{AGENT}:{}", tokens.job));
        let mut field = Field::with(options).await;
        let api = field.broker.address("listening", |line| line["listener"] == "api").await;
        let kas = field.folder.path().join("kas.yaml");
        let text = fs::read_to_string(&kas).expect("read");
        fs::write(kas, text.replacen("127.0.0.1:0'", &format!("{api}'"), 1)).expect("written");
        Self { field, rails: Some(rails), gitaly, tokens, api, repositories, change }
    }

    /// Rails, while it is not gone.
    pub(crate) fn rails(&self) -> &Rails {
        self.rails.as_ref().expect("it is there")
    }

    /// Nobody listens any more where Rails was; returns where that is.
    pub(crate) fn stop_rails(&mut self) -> SocketAddr {
        self.rails.take().expect("it is there").address()
    }

    /// A Rails that remembers nothing, where the other one was.
    pub(crate) async fn restart_rails(&mut self, address: SocketAddr) {
        let mut options = rails_options(&self.tokens, self.gitaly.address());
        (self.change)(&mut options);
        options.address = Some(address);
        self.rails = Some(Rails::start(options).await.expect("stand-in starts"));
    }

    /// Commits files, or their absence, to a project; returns the commit's id.
    pub(crate) fn commit(&self, project: i64, files: &[(&str, Option<&str>)]) -> String {
        commit(&folder(self.repositories.path(), project), files)
    }

    /// The newest commit of a project.
    pub(crate) fn head(&self, project: i64) -> String {
        head(&folder(self.repositories.path(), project))
    }

    /// Another pod of the agent.
    pub(crate) async fn replica(&self) -> Process {
        self.agent_with(&self.tokens.agent).await
    }

    /// An agent beside the first one, with this token; nobody waits for it to be ready.
    pub(crate) async fn agent_with(&self, token: &str) -> Process {
        let options = Options { agent_token: Some(token.to_owned()), ..self.field.options.clone() };
        self.field.agent_beside(&options).await.0
    }

    /// A client with stubs of its own.
    pub(crate) async fn grpcio(&self) -> Grpcio {
        let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/proto");
        let mut program = Program::python("grpcio_rails.py", &[&protos.display().to_string()]);
        program.answer().await;
        let secret = self.tokens.from_rails.clone();
        Grpcio { program, api: self.api, agents: self.addresses.broker_agents, secret }
    }
}

/// Rails, or an agent, as grpcio plays it.
pub(crate) struct Grpcio {
    program: Program,
    api: SocketAddr,
    agents: SocketAddr,
    secret: String,
}

impl Grpcio {
    /// As Rails signs it: an audience, integers, a minute.
    pub(crate) fn claims() -> Value {
        json!({"iss": "gitlab.example.com", "aud": "gitlab-kas", "iat": 0, "nbf": -5, "exp": 60})
    }

    /// A JWT of Rails with these claims.
    pub(crate) async fn sign(&mut self, claims: Value) -> String {
        let command = json!({"sign": {"secret": self.secret, "claims": claims}});
        self.program.tell(command).await["jwt"].as_str().expect("a JWT").to_owned()
    }

    /// A call of Rails; how it ended and what was answered.
    pub(crate) async fn rails(&mut self, method: &str, request: Value) -> Value {
        let jwt = json!({"secret": self.secret, "claims": Self::claims()});
        self.rails_with(method, request, json!({"jwt": jwt})).await
    }

    /// As [`Grpcio::rails`], with credentials of one's own.
    pub(crate) async fn rails_with(&mut self, method: &str, request: Value, with: Value) -> Value {
        self.call(self.api, method, &[request], with).await
    }

    /// A call of an agent, straight to the broker.
    pub(crate) async fn agent(
        &mut self,
        token: &str,
        method: &str,
        requests: &[Value],
        with: Value,
    ) -> Value {
        let mut with = with;
        with["bearer"] = token.into();
        self.call(self.agents, method, requests, with).await
    }

    /// Opens a stream of an agent and reads its first message; the stream then stays until this is dropped.
    pub(crate) async fn agent_stays(&mut self, token: &str, method: &str, request: Value) {
        let with = json!({"first": 1, "keep": true, "deadline": 600});
        let answer = self.agent(token, method, &[request], with).await;
        assert_eq!(answer["answers"].as_array().map(Vec::len), Some(1), "{answer}");
    }

    async fn call(&mut self, target: SocketAddr, method: &str, requests: &[Value], with: Value) -> Value {
        let method = format!("gitlab.agent.{method}");
        let mut command = json!({"target": target.to_string(), "method": method, "requests": requests});
        for (key, value) in with.as_object().expect("an object") {
            command[key] = value.clone();
        }
        tokio::time::timeout(2 * PATIENCE, self.program.tell(command)).await.expect("an answer in time")
    }
}
