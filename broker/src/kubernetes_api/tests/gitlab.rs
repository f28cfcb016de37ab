//! Callers whom GitLab knows, or does not: a stand-in GitLab over real sockets, one agent, and the broker between them.

use super::*;
use crate::{
    gitlab::{self, Limits, Periods, Rails, Remembered, cache::Settings},
    rate::Rate,
    tunnel::stream::tests::pair_of,
};
use postern_certs::client::ClientTrust;
use postern_wire::{ids::ProjectId, proto::gitlab::agent::kubernetes_api::rpc::HeaderExtra};
use serde_json::{Value, json};
use stand_ins::rails::{self, Endpoint, Faults, Job, Options, Project, User};
use std::sync::{Mutex, PoisonError};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

const ORIGIN: &str = "https://gitlab.example.com";
const JOB: (&str, &str) = ("authorization", "Bearer ci:1:glcbt-SECRET");
const PAT: (&str, &str) = ("authorization", "Bearer pat:1:glpat-SECRET");
const COOKIE: (&str, &str) = ("cookie", "x=y; _gitlab_kas=cookie%2DSECRET");
const AGENT: (&str, &str) = ("gitlab-agent-id", "1");
const CSRF: (&str, &str) = ("x-csrf-token", "csrf-SECRET");
const LONG: Duration = Duration::from_secs(60);

/// Remembers what was counted.
#[derive(Debug, Default)]
struct Counter(Mutex<Vec<Authorised>>);

impl Counted for Counter {
    fn authorised(&self, request: &Authorised) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(*request);
    }
}

impl Counter {
    fn all(&self) -> Vec<Authorised> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What `allowed_agents` answers a job of this project.
fn allowed(project: i64, agent: i64, access_as: Value) -> Value {
    json!({
        "allowed_agents": [
            {"id": agent, "config_project": {"id": 10}, "configuration": {"access_as": access_as}}
        ],
        "job": {"id": 7}, "pipeline": {"id": 8}, "user": {"id": 5, "username": "ada"},
        "project": {"id": project, "groups": [{"id": 3}]},
    })
}

fn job(token: &str, allowed_agents: Value) -> Job {
    Job { token: token.to_owned(), allowed_agents, feature_flags: None }
}

fn options(access_as: Value) -> Options {
    let agent = rails::Agent {
        token: "glagent-SECRET".to_owned(),
        id: 1,
        name: "prod".to_owned(),
        project: Project::new(10, "group/prod"),
    };
    let user = |name: &str, scope, reaches: bool| User {
        id: 5,
        username: name.to_owned(),
        personal_access_token: if scope { "glpat-SECRET" } else { "glpat-SECRET-weak" }.to_owned(),
        scope,
        session_cookie: "cookie-SECRET".to_owned(),
        csrf_token: "csrf-SECRET".to_owned(),
        agents: reaches
            .then(|| (1, json!({"user": {"projects": [{"id": 10, "roles": ["developer"]}], "groups": []}})))
            .into_iter()
            .collect(),
    };
    Options {
        agents: vec![agent],
        jobs: vec![
            job("glcbt-SECRET", allowed(10, 1, access_as)),
            job("glcbt-SECRET-other", allowed(20, 2, json!({"ci_job": {}}))),
        ],
        users: vec![user("ada", true, true), user("bob", false, true)],
        ..Options::default()
    }
}

struct Field {
    gitlab: rails::Rails,
    send: client::SendRequest<Full<Bytes>>,
    agent: Agent,
    counter: Arc<Counter>,
    _stop: tokio_util::sync::DropGuard,
}

impl Field {
    async fn of(options: Options, version: Option<(u32, u32)>) -> Self {
        Self::under(Live::open(None).unwrap(), options, version, LONG).await
    }

    /// `head`: how long GitLab's answer may take.
    async fn under(policies: Live, options: Options, version: Option<(u32, u32)>, head: Duration) -> Self {
        let gitlab = rails::Rails::start(options).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (secret, ca) = (folder.path().join("secret"), folder.path().join("ca.pem"));
        std::fs::write(&secret, gitlab.secret_file()).unwrap();
        std::fs::write(&ca, postern_certs::dev::Ca::new().pem()).unwrap();
        let client = Rails::new(gitlab::Config {
            address: gitlab.url().parse().unwrap(),
            authentication_secret_file: secret,
            trust: ClientTrust::load(Some(ca)).unwrap(),
            program: crate::app::PROGRAM,
            rate: Rate { per_second: 1e5, burst: 10_000 },
            limits: Limits { head, call: head, ..Limits::default() },
        })
        .unwrap();
        let short = Settings { capacity: 100, ok: Duration::from_millis(1), error: Duration::from_millis(1) };
        let periods = Periods { callers: short, ..Periods::default() };
        let stop = CancellationToken::new();
        let remembered = Remembered::new(Arc::new(client), periods, &stop, &TaskTracker::new());
        let (tunnel, agent) = pair_of(version);
        let counter = Arc::new(Counter::default());
        let cors = Cors::only(&ORIGIN.parse().unwrap());
        let identities = Identities::GitLab(Arc::new(remembered));
        let counted: Arc<dyn Counted> = Arc::clone(&counter) as _;
        let send = serve(KubernetesApi { policies, ..api(identities, cors, counted, tunnel) }).await;
        Self { gitlab, send, agent, counter, _stop: stop.drop_guard() }
    }

    async fn new(access_as: Value) -> Self {
        Self::of(options(access_as), Some((16, 5))).await
    }

    fn ask(
        &mut self,
        target: &str,
        lines: &[(&'static str, &str)],
    ) -> impl Future<Output = Response<Incoming>> + use<> {
        let mut request = Request::get(target).header("host", "broker");
        for (name, value) in lines {
            request = request.header(*name, *value);
        }
        let answered = self.send.send_request(request.body(Full::default()).unwrap());
        async move {
            let limit = LONG;
            tokio::time::timeout(limit, answered).await.expect("an answer in time").unwrap()
        }
    }

    /// Asks, and answers as the cluster; what the agent was told, and what the caller was.
    async fn exchange(
        &mut self,
        target: &str,
        lines: &[(&'static str, &str)],
        headers: &[(&'static str, &'static str)],
    ) -> (http_request::Header, Response<Incoming>) {
        let answered = self.ask(target, lines);
        let agent = &mut self.agent;
        let (header, answered) = tokio::join!(
            async {
                let http_request::Message::Header(header) = agent.request().await else { panic!("a header") };
                agent.head(StatusCode::NO_CONTENT, headers).await;
                header
            },
            answered
        );
        (header, answered)
    }
}

async fn document(response: Response<Incoming>) -> (u16, Value) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(!text.contains("SECRET") && !text.contains("127.0.0.1"), "{text}");
    (status, serde_json::from_str(&text).unwrap())
}

fn identity(header: &http_request::Header) -> Option<HeaderExtra> {
    let extra = header.extra.as_ref()?;
    assert_eq!(extra.type_url, "type.googleapis.com/gitlab.agent.kubernetes_api.rpc.HeaderExtra");
    Some(HeaderExtra::decode(extra.value.as_slice()).unwrap())
}

#[tokio::test]
async fn a_job_comes_as_its_configuration_says() {
    for (access_as, username) in [
        (json!({}), None),
        (json!({"agent": {}}), None),
        (json!({"ci_job": {}}), Some("gitlab:ci_job:7")),
        (json!({"ci_user": {}}), Some("gitlab:user:ada")),
        (json!({"impersonate": {"username": "somebody"}}), Some("somebody")),
    ] {
        let mut field = Field::new(access_as).await;
        let (header, answered) = field.exchange("/k8s/version", &[JOB], &[]).await;
        assert_eq!(answered.status(), StatusCode::NO_CONTENT);
        let user = identity(&header).map(|extra| extra.imp_config.unwrap().username);
        assert_eq!(user.as_deref(), username);
        let (agent, config_project) = (AgentId(1), Some(ProjectId(10)));
        let counted = Authorised { kind: Kind::CiJob, user: Some(5), agent, config_project };
        assert_eq!(field.counter.all(), [counted]);
    }
}

#[tokio::test]
async fn a_user_comes_as_themselves_by_token_and_by_cookie() {
    let by_query = "/k8s/version?a=1&gitlab-agent-id=1&b=2&gitlab-csrf-token=csrf-SECRET";
    for (lines, target, kind) in [
        (vec![PAT], "/k8s/version", Kind::PersonalAccessToken),
        (vec![COOKIE, AGENT, CSRF, ("origin", ORIGIN)], "/k8s/version", Kind::SessionCookie),
        (vec![COOKIE], by_query, Kind::SessionCookie),
    ] {
        let mut field = Field::new(json!({})).await;
        let theirs = [("set-cookie", "_gitlab_kas=theirs"), ("access-control-allow-origin", "*")];
        let (header, answered) = field.exchange(target, &lines, &theirs).await;
        assert_eq!(answered.status(), StatusCode::NO_CONTENT, "{target}");
        let identity = identity(&header).unwrap().imp_config.unwrap();
        assert_eq!(identity.username, "gitlab:user:ada");
        assert_eq!(identity.groups, ["gitlab:user", "gitlab:project_role:10:developer"]);
        let request = header.request.unwrap();
        assert!(!format!("{request:?}").contains("SECRET"), "{request:?}");
        assert!(!request.query.contains_key("gitlab-agent-id"));
        assert_eq!(request.query.len(), if target == by_query { 2 } else { 0 });
        assert_eq!(field.counter.all()[0].kind, kind);
        let headers = answered.headers();
        let from_page = lines.iter().any(|(name, _)| *name == "origin");
        let granted = headers.get("access-control-allow-origin").and_then(|value| value.to_str().ok());
        assert_eq!(granted, from_page.then_some(ORIGIN));
        assert_eq!(headers.get("vary").is_some(), from_page);
        assert_eq!(headers.contains_key("set-cookie"), kind != Kind::SessionCookie);
    }
}

#[tokio::test]
async fn whom_gitlab_does_not_let_in_gets_a_status_and_no_tunnel() {
    let status = |code: u16| Faults { status: StatusCode::from_u16(code).ok(), ..Faults::default() };
    let html = Faults { content_type: Some("text/html".to_owned()), ..Faults::default() };
    let slow = Faults { delay: Some(Duration::from_secs(600)), ..Faults::default() };
    let gone = Faults { drop_connection: Some(rails::HangUp::BeforeAnswer), ..Faults::default() };
    let (none, robot) = (Faults::default(), json!({"robot": {}}));
    let plain = json!({});
    let other = ("authorization", "Bearer ci:2:glcbt-SECRET");
    let unknown = ("authorization", "Bearer ci:1:glcbt-SECRET-unknown");
    let weak = ("authorization", "Bearer pat:1:glpat-SECRET-weak");
    let elsewhere = ("authorization", "Bearer pat:9:glpat-SECRET");
    let named = ("authorization", "Bearer postern:1:SECRET");
    let table = [
        (vec![unknown], none.clone(), &plain, 401, "Unauthorized: CI job token"),
        (vec![other], none.clone(), &plain, 403, "Forbidden: agentId is not allowed"),
        (vec![JOB], none.clone(), &robot, 403, "access_as of this agent's configuration is \"robot\""),
        (vec![JOB], status(403), &plain, 403, "Forbidden: CI job token"),
        (vec![JOB], status(404), &plain, 404, "Not found: agents for CI job token"),
        (vec![JOB], status(500), &plain, 500, "Failed to get allowed agents for CI job token"),
        (vec![JOB], html.clone(), &plain, 500, "Failed to get allowed agents for CI job token"),
        (vec![JOB], slow, &plain, 500, "Failed to get allowed agents for CI job token"),
        (vec![JOB], gone, &plain, 500, "Failed to get allowed agents for CI job token"),
        (vec![weak], none.clone(), &plain, 401, "Unauthorized"),
        (vec![elsewhere], none.clone(), &plain, 401, "Unauthorized"),
        (vec![PAT], status(400), &plain, 401, "Unauthorized"),
        (vec![PAT], status(502), &plain, 500, "Failed to authorize user session"),
        (vec![PAT], html, &plain, 500, "Failed to authorize user session"),
        (vec![COOKIE, AGENT, ("x-csrf-token", "SECRET-bad")], none.clone(), &plain, 401, "Unauthorized"),
        (vec![COOKIE, AGENT], none.clone(), &plain, 401, "gitlab-csrf-token query parameter"),
        (vec![named], none.clone(), &plain, 401, "unknown token type"),
        (vec![], none, &plain, 401, "no valid credentials provided"),
    ];
    for (lines, faults, access_as, code, words) in table {
        let head = Duration::from_millis(if faults.delay.is_some() { 500 } else { 60_000 });
        let policies = Live::open(None).unwrap();
        let mut field = Field::under(policies, options(access_as.clone()), Some((16, 5)), head).await;
        for endpoint in [Endpoint::AllowedAgents, Endpoint::AuthorizeProxyUser] {
            field.gitlab.set_faults(endpoint, faults.clone());
        }
        let answered = field.ask("/k8s/version", &lines).await;
        let unauthorized = answered.headers().get("gitlab-unauthorized").is_some();
        let (status, document) = document(answered).await;
        assert_eq!(status, code, "{document}");
        assert_eq!(unauthorized, code == 401);
        assert_eq!(document["kind"], "Status");
        let message = document["message"].as_str().unwrap();
        assert!(message.starts_with("GitLab Agent Server: ") && message.contains(words), "{message}");
        assert!(field.counter.all().is_empty());
        assert!(futures::FutureExt::now_or_never(field.agent.hears()).is_none(), "the agent heard of it");
    }
}

#[tokio::test]
async fn jobs_of_different_projects_cannot_reach_each_others_agents() {
    let mut field = Field::new(json!({})).await;
    // Agent 1 is here; the other job's own agent is not.
    let own = ("authorization", "Bearer ci:2:glcbt-SECRET-other");
    let theirs = ("authorization", "Bearer ci:1:glcbt-SECRET-other");
    assert_eq!(field.ask("/k8s/version", &[own]).await.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(field.ask("/k8s/version", &[theirs]).await.status(), StatusCode::FORBIDDEN);
    let answered = field.exchange("/k8s/version", &[JOB], &[]).await.1;
    assert_eq!(answered.status(), StatusCode::NO_CONTENT);
}

#[tokio::test]
async fn an_agent_that_would_ignore_the_identity_gets_no_request() {
    for version in [None, Some((14, 2)), Some((13, 12))] {
        let mut field = Field::of(options(json!({"ci_job": {}})), version).await;
        let (status, document) = document(field.ask("/k8s/version", &[JOB]).await).await;
        assert_eq!(status, 501);
        let message = document["message"].as_str().unwrap();
        assert!(message.contains("14.3") && message.contains("upgrade agentk"), "{message}");

        let mut field = Field::of(options(json!({"agent": {}})), version).await;
        let (header, _) = field.exchange("/k8s/version", &[JOB], &[]).await;
        assert!(identity(&header).is_none());
    }
    let mut field = Field::of(options(json!({"ci_job": {}})), Some((14, 3))).await;
    assert!(identity(&field.exchange("/k8s/version", &[JOB], &[]).await.0).is_some());
}

#[tokio::test]
async fn a_caller_may_not_add_to_its_identity() {
    let root = ("impersonate-user", "root");
    let mut field = Field::new(json!({"ci_job": {}})).await;
    let (status, document) = document(field.ask("/k8s/version", &[JOB, root]).await).await;
    assert_eq!(status, 400);
    assert!(document["message"].as_str().unwrap().contains("impersonate-user"), "{document}");
    let mut field = Field::new(json!({"agent": {}})).await;
    let (header, _) = field.exchange("/k8s/version", &[JOB, root], &[]).await;
    assert_eq!(header.request.unwrap().header["Impersonate-User"].value, ["root"]);
}

#[tokio::test]
async fn a_foreign_page_is_refused_and_a_preflight_needs_no_credential() {
    let mut field = Field::new(json!({})).await;
    for origin in ["https://evil.example", "null"] {
        let answered = field.ask("/k8s/version", &[COOKIE, AGENT, CSRF, ("origin", origin)]).await;
        assert_eq!(answered.status(), StatusCode::FORBIDDEN);
        assert!(!answered.headers().contains_key("access-control-allow-origin"));
        assert!(answered.into_body().collect().await.unwrap().to_bytes().is_empty());
    }
    let preflight = Request::options("/anything")
        .header("host", "broker")
        .header("origin", ORIGIN)
        .header("access-control-request-headers", "gitlab-agent-id");
    let answered = field.send.send_request(preflight.body(Full::default()).unwrap()).await.unwrap();
    assert_eq!(answered.status(), StatusCode::OK);
    assert_eq!(answered.headers()["access-control-allow-origin"], ORIGIN);
    assert_eq!(answered.headers()["access-control-allow-headers"], "gitlab-agent-id");
    assert!(field.gitlab.requests().is_empty());
    // A page of GitLab can read why it was refused.
    let answered = field.ask("/k8s/version", &[("origin", ORIGIN), ("accept", "application/yaml")]).await;
    assert_eq!(answered.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answered.headers()["access-control-allow-origin"], ORIGIN);
    assert_eq!(answered.headers()["content-type"], "application/yaml");
    let body = answered.into_body().collect().await.unwrap().to_bytes();
    let status: Value = serde_yaml::from_slice(&body).unwrap();
    assert_eq!(status["reason"], "Unauthorized");
}

#[tokio::test]
async fn access_policies_know_a_caller_by_what_gitlab_says_of_it() {
    let hash = |credential: &str| TokenKey::of(credential.as_bytes()).to_hex()[..8].to_owned();
    let cookie = [COOKIE, AGENT, CSRF];
    for (lines, matched, rule, denied) in [
        (&[JOB][..], "{}", "access: [ci]", Some("job 7 of ada")),
        (&[JOB], "{}", "access: [pat, session, postern]", None),
        (&[JOB], "{}", "projectIds: [10]", Some("job 7 of ada")),
        (&[JOB], "{}", "projectIds: [11]", None),
        (&[JOB], "{}", "userIds: [5]", Some("job 7 of ada")),
        (&[PAT], "{}", "userIds: [5]", Some("ada")),
        (&[PAT], "{}", "userIds: [6]", None),
        (&[PAT], "{}", "projectIds: [10]", None),
        (&[PAT], "{}", "access: [pat]", Some("ada")),
        (&cookie, "{}", "access: [session]", Some("ada")),
        (&cookie, "{}", "access: [ci, pat]", None),
        (&[JOB], "{agentIds: [1], projectIds: [10]}", "access: [ci]", Some("job 7 of ada")),
        (&[JOB], "{projectIds: [11]}", "access: [ci]", None),
        (
            &[JOB],
            &format!("{{tokenHashes: ['{}']}}", hash("ci:1:glcbt-SECRET")),
            "access: [ci]",
            Some("job 7 of ada"),
        ),
        (&[JOB], &format!("{{tokenHashes: ['{}']}}", hash("glcbt-SECRET")), "access: [ci]", None),
        (
            &cookie,
            &format!("{{tokenHashes: ['{}']}}", hash("1 cookie-SECRET")),
            "access: [session]",
            Some("ada"),
        ),
    ] {
        let policies = crate::stage::PolicyFile::new(&format!(
            "apiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: some}}\nmatch: {matched}\nspec:\n  \
             kubernetesApi: {{rules: [{{effect: deny, {rule}}}], otherwise: allow}}\n"
        ));
        let mut field = Field::under(policies.live.clone(), options(json!({})), Some((16, 5)), LONG).await;
        match denied {
            None => {
                let answered = field.exchange("/k8s/version", lines, &[]).await.1;
                assert_eq!(answered.status(), StatusCode::NO_CONTENT, "{matched} {rule}");
            }
            Some(who) => {
                let (status, document) = document(field.ask("/k8s/version", lines).await).await;
                let message = document["message"].as_str().unwrap();
                let wanted = format!(
                    "Forbidden: AccessPolicy some does not let {who} get the path \"/version\" at agent 1"
                );
                assert!(status == 403 && message.contains(&wanted), "{matched} {rule}: {status} {message}");
            }
        }
    }
}

/// How a job loses what its watch runs with.
async fn watch_ends(lose: impl FnOnce(&rails::Rails)) {
    let mut field = Field::new(json!({"ci_job": {}})).await;
    let answered = field.ask("/k8s/watch", &[JOB]);
    let agent = &mut field.agent;
    let (answered, ()) = tokio::join!(answered, async {
        agent.request().await;
        agent.head(StatusCode::OK, &[]).await;
        agent.data("event").await;
    });
    let mut body = answered.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "event");
    lose(&field.gitlab);
    let ended = tokio::time::timeout(Duration::from_secs(30), body.collect()).await;
    assert!(ended.expect("cut in time").is_err(), "the watch must not look complete");
    let status = loop {
        match futures::StreamExt::next(&mut field.agent.receive).await.expect("a status") {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Cancelled);
}

#[tokio::test]
async fn a_caller_that_does_not_read_cannot_keep_the_cluster_busy() {
    let mut field = Field::new(json!({"ci_job": {}})).await;
    let answered = field.ask("/k8s/log", &[JOB]);
    let agent = &mut field.agent;
    let (_unread, ()) = tokio::join!(answered, async {
        agent.request().await;
        agent.head(StatusCode::OK, &[]).await;
    });
    let piece: &'static str = "x".repeat(32 * 1024).leak();
    // Until everything on the way to the caller is full.
    while tokio::time::timeout(Duration::from_millis(300), field.agent.data(piece)).await.is_ok() {}
    field.gitlab.revoke("glcbt-SECRET");
    let cancelled = async {
        loop {
            match futures::StreamExt::next(&mut field.agent.receive).await.expect("a status") {
                Ok(_) => {}
                Err(status) => break status,
            }
        }
    };
    let status = tokio::time::timeout(Duration::from_secs(30), cancelled).await.expect("cut in time");
    assert_eq!(status.code(), Code::Cancelled);
}

#[tokio::test]
async fn an_exec_session_ends_with_its_job() {
    let mut field = Field::new(json!({"ci_job": {}})).await;
    let request = Request::get("/k8s/exec")
        .header("host", "broker")
        .header(JOB.0, JOB.1)
        .header("connection", "upgrade")
        .header("upgrade", "SPDY/3.1");
    let answered = field.send.send_request(request.body(Full::default()).unwrap());
    let agent = &mut field.agent;
    let (answered, ()) = tokio::join!(answered, async {
        agent.request().await;
        agent.head(StatusCode::SWITCHING_PROTOCOLS, &[("upgrade", "SPDY/3.1")]).await;
        let trailer = http_response::Message::Trailer(http_response::Trailer {});
        agent.answer(HttpResponse { message: Some(trailer) }).await;
    });
    let answered = answered.unwrap();
    assert_eq!(answered.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut session = TokioIo::new(hyper::upgrade::on(answered).await.unwrap());
    field.gitlab.revoke("glcbt-SECRET");
    let mut rest = Vec::new();
    let ended = tokio::io::AsyncReadExt::read_to_end(&mut session, &mut rest);
    let ended = tokio::time::timeout(Duration::from_secs(30), ended).await.expect("cut in time");
    assert!(rest.is_empty(), "{ended:?}");
}

fn answers_now(gitlab: &rails::Rails, allowed: &Value) {
    let faults = Faults { body: Some(allowed.to_string()), ..Faults::default() };
    gitlab.set_faults(Endpoint::AllowedAgents, faults);
}

#[tokio::test]
async fn what_runs_ends_when_the_job_loses_its_right_to_it() {
    let before_the_head = async {
        let mut field = Field::new(json!({"ci_job": {}})).await;
        let answered = field.ask("/k8s/watch", &[JOB]);
        let (answered, ()) = tokio::join!(answered, async {
            field.agent.request().await;
            field.gitlab.revoke("glcbt-SECRET");
        });
        let (status, document) = document(answered).await;
        assert_eq!(status, 403);
        assert!(document["message"].as_str().unwrap().contains("may no longer reach"), "{document}");
    };
    tokio::join!(
        watch_ends(|gitlab| gitlab.revoke("glcbt-SECRET")),
        watch_ends(|gitlab| answers_now(gitlab, &allowed(10, 2, json!({"ci_job": {}})))),
        watch_ends(|gitlab| answers_now(gitlab, &allowed(10, 1, json!({"agent": {}})))),
        watch_ends(|gitlab| answers_now(gitlab, &allowed(11, 1, json!({"ci_job": {}})))),
        before_the_head,
    );
}

/// What was logged on this thread.
#[derive(Clone, Default)]
pub(super) struct Log(pub(super) Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn each_request_is_one_line_that_says_who_did_what_and_shows_no_secret() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    // With one alone, a place that another test's thread logs from first would be taken for silent for good.
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _logging = tracing::subscriber::set_default(subscriber);
    let query = "/k8s/api/v1/pods?private_token=SECRET&gitlab-agent-id=1&gitlab-csrf-token=csrf-SECRET";
    for (lines, target) in
        [(vec![JOB], "/k8s/api/v1/pods?private_token=SECRET"), (vec![PAT], query), (vec![COOKIE], query)]
    {
        let mut field = Field::new(json!({"ci_job": {}})).await;
        let (_, answered) = field.exchange(target, &lines, &[]).await;
        answered.into_body().collect().await.unwrap();
        assert!(field.agent.end().await.is_none());
    }
    let mut field = Field::new(json!({})).await;
    for lines in [
        vec![("authorization", "Bearer ci:2:glcbt-SECRET")],
        vec![("authorization", "Bearer ci:1:glcbt-SECRET-unknown")],
        vec![("authorization", "Bearer SECRET")],
        vec![COOKIE, AGENT, ("x-csrf-token", "SECRET")],
    ] {
        document(field.ask(query, &lines).await).await;
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(!text.contains("SECRET"), "{text}");
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let lines: Vec<_> = lines.filter(|line| line["target"] == "access").collect();
    assert_eq!(lines.len(), 7, "{text}");
    let shown = |line: &Value| {
        assert_eq!(line["method"], "GET");
        assert_eq!(line["path"], "/k8s/api/v1/pods");
        assert!(line["duration_ms"].is_u64() && line["trace_id"].is_string(), "{line}");
        let names = ["caller_kind", "caller", "user_id", "agent_id", "access_as", "decision", "status"];
        names.map(|name| line[name].clone())
    };
    let table = [
        json!(["ci", "job 7", 5, 1, "ci_job", "allowed", 204]),
        json!(["pat", "ada", 5, 1, "user", "allowed", 204]),
        json!(["cookie", "ada", 5, 1, "user", "allowed", 204]),
        json!(["ci", "job 7", 5, 2, null, "refused", 403]),
        json!(["ci", "", null, 1, null, "refused", 401]),
        json!(["", "", null, null, null, "refused", 401]),
        json!(["cookie", "", null, 1, null, "refused", 401]),
    ];
    for (line, wanted) in lines.iter().zip(table) {
        assert_eq!(Value::from(shown(line).to_vec()), wanted, "{line}");
    }
    assert_eq!((&lines[0]["job_id"], &lines[0]["project_id"]), (&json!(7), &json!(10)));
    assert!(lines[3]["why"].as_str().unwrap().contains("agentId is not allowed"));
}
