//! The client against a stand-in GitLab over real sockets: what each side sees, and what each fault becomes.

mod faults;
mod modules;

use super::*;
use postern_wire::ids::{AgentId, ProjectId};
use serde_json::json;
use sha2::{Digest, Sha256};
use stand_ins::rails::{self, Agent, Endpoint, Job, Options, Project, Seen, User};
use std::{
    collections::BTreeSet,
    time::{Duration, UNIX_EPOCH},
};
use tokio_util::task::TaskTracker;

const TOKEN: &str = "glagent-SECRET-1";
const JOB: &str = "glcbt-SECRET-2";
const PROGRAM: Program = Program { name: "gitlab-kas", version: "v1.2.3", commit: "abc" };

/// A GitLab and its client.
struct Field {
    gitlab: rails::Rails,
    client: Arc<Rails>,
}

fn options() -> Options {
    let agent = |token: &str, id, name: &str, project| Agent {
        token: token.to_owned(),
        id,
        name: name.to_owned(),
        project,
    };
    let public = Project { public: true, ..Project::new(30, "group/public") };
    let user = User {
        id: 5,
        username: "ada".to_owned(),
        personal_access_token: "glpat-SECRET".to_owned(),
        scope: true,
        session_cookie: "cookie-SECRET".to_owned(),
        csrf_token: "csrf-SECRET".to_owned(),
        agents: vec![(1, json!({"user": {"projects": [{"id": 10, "roles": ["developer"]}], "groups": []}}))],
    };
    let job = Job {
        token: JOB.to_owned(),
        allowed_agents: json!({
            "allowed_agents": [
                {"id": 1, "config_project": {"id": 10}, "configuration": {"access_as": {"ci_job": {}}}},
                {"id": 2, "config_project": {"id": 20}},
            ],
            "job": {"id": 7}, "pipeline": {"id": 8}, "user": {"id": 5, "username": "ada"},
            "project": {"id": 10, "groups": [{"id": 3}]},
            "environment": {"slug": "production", "tier": "production"},
        }),
        feature_flags: Some("one=true, two=false".to_owned()),
    };
    Options {
        agents: vec![
            agent(TOKEN, 1, "prod", Project::new(10, "group/prod")),
            agent("glagent-SECRET-other", 2, "other", Project::new(20, "group/other")),
        ],
        projects: vec![public],
        jobs: vec![job],
        users: vec![user],
        ..Options::default()
    }
}

fn limits() -> Limits {
    Limits { head: Duration::from_secs(60), answer: 1 << 20, ..Limits::default() }
}

/// Nothing of this machine but the given CA is trusted, so that tests do not depend on its roots.
fn client(address: &str, secret: &str, ca_pem: &str, limits: Limits) -> Rails {
    let folder = tempfile::tempdir().unwrap();
    let secret_file = folder.path().join("secret");
    let ca_file = folder.path().join("ca.pem");
    std::fs::write(&secret_file, secret).unwrap();
    std::fs::write(&ca_file, ca_pem).unwrap();
    Rails::new(Config {
        address: address.parse().unwrap(),
        authentication_secret_file: secret_file,
        trust: ClientTrust::load(Some(ca_file)).unwrap(),
        program: PROGRAM,
        rate: Rate { per_second: 1e5, burst: 10_000 },
        limits,
    })
    .unwrap()
}

fn any_ca() -> String {
    postern_certs::dev::Ca::new().pem()
}

impl Field {
    async fn with(options: Options, limits: Limits) -> Self {
        let gitlab = rails::Rails::start(options).await.unwrap();
        let client = client(&gitlab.url(), &gitlab.secret_file(), &any_ca(), limits);
        Self { gitlab, client: Arc::new(client) }
    }

    async fn new() -> Self {
        Self::with(options(), limits()).await
    }

    fn last(&self) -> Seen {
        self.gitlab.requests().pop().expect("a request arrived")
    }
}

fn token() -> AgentToken {
    AgentToken::new(TOKEN).unwrap()
}

fn call() -> Call {
    let deadline = Some(Instant::now() + Duration::from_secs(60));
    Call { deadline, correlation_id: Some("c-1".to_owned()), renewal: false }
}

fn hash(secret: &str) -> String {
    hex::encode(Sha256::digest(secret))
}

#[tokio::test]
async fn an_agent_is_who_gitlab_says() {
    let field =
        Field::with(Options { relative_path: "/gitlab/here".to_owned(), ..options() }, limits()).await;
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let before = now();
    let info = field.client.agent_info(&token(), &call()).await.unwrap();
    assert_eq!((info.agent_id, info.agent_name.as_str()), (AgentId(1), "prod"));
    assert_eq!(info.project.project_id, ProjectId(10));
    assert_eq!(info.project.default_branch.as_deref(), Some("main"));
    assert_eq!(info.project.gitaly_repository.gl_project_path, "group/prod");
    assert_eq!(info.project.gitaly_info.features["gitaly-feature-stand-in"], "true");

    let seen = field.last();
    assert_eq!(seen.uri.path(), "/gitlab/here/api/v4/internal/kubernetes/agent_info");
    let header = |name: &str| seen.headers.get(name).map(String::as_str);
    assert_eq!(header("authorization"), Some(hash(&format!("Bearer {TOKEN}")).as_str()));
    assert_eq!(header("gitlab-agent-api-request"), Some(hash(TOKEN).as_str()));
    assert_eq!(header("user-agent"), Some("gitlab-kas/v1.2.3/abc"));
    assert_eq!(header("accept"), Some("application/json"));
    assert_eq!(header("content-type"), None);
    assert_eq!(header("x-request-id"), Some("c-1"));
    assert_eq!(header("x-gitlab-client-name"), Some("gitlab-kas"));
    let claims = seen.claims.expect("a good JWT");
    assert_eq!(
        (claims.iss.as_str(), claims.aud.as_slice()),
        ("gitlab-kas", ["gitlab".to_owned()].as_slice())
    );
    // Whole seconds or not.
    assert!(
        (before - 1.0..=now() + 1.0).contains(&claims.iat)
            && claims.exp > claims.iat
            && claims.nbf < claims.iat
    );
}

#[tokio::test]
async fn each_request_has_a_jwt_of_its_own() {
    let field = Field::new().await;
    for _ in 0..2 {
        field.client.agent_info(&token(), &call()).await.unwrap();
    }
    let times: Vec<f64> =
        field.gitlab.requests().iter().map(|seen| seen.claims.clone().unwrap().iat).collect();
    assert!(times[1] > times[0], "{times:?}");
}

#[tokio::test]
async fn a_query_of_the_address_goes_along() {
    let gitlab = rails::Rails::start(options()).await.unwrap();
    let address = format!("{}/?route=a", gitlab.url());
    let client = client(&address, &gitlab.secret_file(), &any_ca(), limits());
    client.verify_project_access(&token(), "group/public", &call()).await.unwrap();
    let seen = gitlab.requests().pop().unwrap();
    assert_eq!(seen.uri, "/api/v4/internal/kubernetes/verify_project_access?id=group%2Fpublic&route=a");
}

#[tokio::test]
async fn an_agent_reads_its_own_and_public_projects_only() {
    let field = Field::new().await;
    for (project, known) in
        [("group/prod", true), ("10", true), ("group/public", true), ("group/other", false), ("x", false)]
    {
        let info = field.client.project_info(&token(), project, &call()).await;
        let verified = field.client.verify_project_access(&token(), project, &call()).await;
        if known {
            assert!(info.is_ok() && verified.is_ok(), "{project}: {info:?} {verified:?}");
        } else {
            assert!(matches!(info.unwrap_err().fault, Fault::NotFound { .. }), "{project}");
            assert!(matches!(verified.unwrap_err().fault, Fault::NotFound { .. }), "{project}");
        }
    }
}

#[tokio::test]
async fn a_job_speaks_for_itself_without_a_jwt() {
    let field = Field::new().await;
    let allowed = field.client.allowed_agents(&JobToken::new(JOB).unwrap(), &call()).await.unwrap();
    assert_eq!(allowed.allowed_agents.iter().map(|agent| agent.id).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(allowed.allowed_agents[0].configuration.access_as, CiAccessAs::CiJob);
    assert_eq!(allowed.project.groups, [Id { id: 3 }]);
    assert_eq!(allowed.environment.unwrap().slug, "production");
    assert_eq!(allowed.feature_flags["two"], "false");
    let seen = field.last();
    assert_eq!(seen.token, Some(hash(JOB)));
    for absent in ["gitlab-kas-api-request", "authorization", "gitlab-agent-api-request"] {
        assert!(!seen.headers.contains_key(absent), "{absent}");
    }
    field.gitlab.revoke(JOB);
    let over = field.client.allowed_agents(&JobToken::new(JOB).unwrap(), &call()).await;
    assert!(matches!(over.unwrap_err().fault, Fault::Unauthorized { .. }));
}

#[tokio::test]
async fn a_user_is_known_by_cookie_or_token() {
    let field = Field::new().await;
    let ask = async |agent, access: ProxyAccess| {
        field.client.authorize_proxy_user(AgentId(agent), &access, &call()).await
    };
    let pat = |key: &str| ProxyAccess::PersonalAccessToken { key: key.to_owned() };
    let cookie = |csrf: &str| ProxyAccess::SessionCookie {
        key: "cookie-SECRET".to_owned(),
        csrf_token: csrf.to_owned(),
    };
    let user = ask(1, pat("glpat-SECRET")).await.unwrap();
    assert_eq!((user.user.id, user.user.username.as_str(), user.agent.config_project.id), (5, "ada", 10));
    let UserAccessAs::User(roles) = user.access_as else { panic!("{user:?}") };
    assert_eq!(roles.projects, [Roles { id: 10, roles: vec!["developer".to_owned()] }]);
    assert!(ask(1, cookie("csrf-SECRET")).await.is_ok());
    assert!(matches!(ask(1, cookie("wrong")).await.unwrap_err().fault, Fault::Unauthorized { .. }));
    assert!(matches!(ask(2, pat("glpat-SECRET")).await.unwrap_err().fault, Fault::Forbidden { .. }));
    assert!(matches!(ask(9, pat("glpat-SECRET")).await.unwrap_err().fault, Fault::NotFound { .. }));
    assert!(!format!("{:?}{:?}", pat("SECRET"), cookie("SECRET")).contains("SECRET"));
}

#[tokio::test]
async fn usage_configuration_and_events_are_reported() {
    let field = Field::new().await;
    let usage = Usage {
        counters: [("k8s_api_proxy_request_count".to_owned(), 3)].into(),
        unique: [("agents".to_owned(), BTreeSet::from([1]))].into(),
    };
    for form in [UsageForm::Flat, UsageForm::Structured] {
        field.client.usage_metrics(&usage, form, &call()).await.unwrap();
    }
    assert_eq!(field.gitlab.usage("k8s_api_proxy_request_count"), 6);
    assert_eq!(field.last().headers["content-type"], "application/json");
    assert!(!field.last().headers.contains_key("accept"));
    field.client.usage_metrics(&Usage::default(), UsageForm::Flat, &call()).await.unwrap();
    assert_eq!(field.gitlab.calls(Endpoint::UsageMetrics), 2, "nothing to say, nothing sent");

    let document = json!({"gitops": {"manifest_projects": []}});
    field.client.agent_configuration(AgentId(1), &document, &call()).await.unwrap();
    assert_eq!(field.gitlab.configuration(1), Some(document.clone()));
    let unknown = field.client.agent_configuration(AgentId(9), &document, &call()).await;
    assert!(matches!(unknown.unwrap_err().fault, Fault::NotFound { .. }));

    let events =
        AgentEvents { users_via_ci: [UserEvent { user_id: 5, project_id: 10 }].into(), ..Default::default() };
    field.client.agent_events(&events, &call()).await.unwrap();
    assert_eq!(field.gitlab.calls(Endpoint::AgentEvents), 1);
}

#[tokio::test]
async fn a_newer_gitlab_is_known_by_what_it_says_of_agents_jobs_and_users() {
    let old = || {
        let mut old = options();
        old.default_branch = false;
        old.jobs[0].feature_flags = None;
        old.jobs[0].allowed_agents["environment"] = json!({"slug": "production"});
        old
    };
    let form_after_job = async |options: Options| {
        let field = Field::with(options, limits()).await;
        field.client.agent_info(&token(), &call()).await.unwrap();
        field.client.allowed_agents(&JobToken::new(JOB).unwrap(), &call()).await.unwrap();
        field.client.usage_form()
    };
    assert_eq!(form_after_job(old()).await, UsageForm::Flat);
    let mut flags = old();
    flags.jobs[0].feature_flags = Some("one=true".to_owned());
    assert_eq!(form_after_job(flags).await, UsageForm::Structured);
    let mut tier = old();
    tier.jobs[0].allowed_agents["environment"] = json!({"slug": "production", "tier": "production"});
    assert_eq!(form_after_job(tier).await, UsageForm::Structured);

    let field = Field::with(old(), limits()).await;
    let access = ProxyAccess::PersonalAccessToken { key: "glpat-SECRET".to_owned() };
    field.client.authorize_proxy_user(AgentId(1), &access, &call()).await.unwrap();
    assert_eq!(field.client.usage_form(), UsageForm::Structured);
}

fn remembered(field: &Field) -> Remembered {
    let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
    Remembered::new(Arc::clone(&field.client), Periods::default(), &stop, &tasks)
}

#[tokio::test]
async fn a_hundred_streams_of_one_agent_ask_once_and_a_refusal_is_remembered() {
    let field = Field::new().await;
    let remembered = remembered(&field);
    let (agent, around) = (token(), call());
    let asks = (0..100).map(|_| remembered.agent(&agent, &around));
    for answer in futures::future::join_all(asks).await {
        assert_eq!(answer.unwrap().now().unwrap().agent_id, AgentId(1));
    }
    assert_eq!(field.gitlab.calls(Endpoint::AgentInfo), 1);
    let unknown = AgentToken::new("glagent-SECRET-unknown").unwrap();
    for _ in 0..2 {
        let error = remembered.agent(&unknown, &around).await.unwrap_err();
        assert_eq!(error.for_agent().code(), tonic::Code::Unauthenticated);
    }
    assert_eq!(field.gitlab.calls(Endpoint::AgentInfo), 2, "a definitive refusal is remembered");
    let job = JobToken::new(JOB).unwrap();
    for _ in 0..2 {
        remembered.job(&job, &around).await.unwrap();
        remembered.project_info(&agent, "group/public", &around).await.unwrap();
    }
    assert_eq!(field.gitlab.calls(Endpoint::AllowedAgents), 1);
    assert_eq!(field.gitlab.calls(Endpoint::ProjectInfo), 1);
}

#[test]
fn an_address_must_be_one_of_a_gitlab() {
    let ca = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(ca.path(), any_ca()).unwrap();
    let new = |address: &str| {
        Rails::new(Config {
            address: address.parse().unwrap(),
            authentication_secret_file: "/nonexistent/secret".into(),
            trust: ClientTrust::load(Some(ca.path().to_owned())).unwrap(),
            program: PROGRAM,
            rate: Rate::default(),
            limits: Limits::default(),
        })
    };
    for bad in ["ftp://h", "https://u:p@h", "unix:/x"] {
        assert!(matches!(new(bad).unwrap_err(), ConfigError::Address(_)), "{bad}");
    }
    assert!(matches!(new("https://[::1]/x").unwrap_err(), ConfigError::Secret(SecretError::Read { .. })));
}
