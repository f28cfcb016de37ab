//! CI jobs, users with a personal access token and browsers with a session cookie: what they reach, as whom the cluster
//! sees them, and what they are refused. All of it through the edge.

use super::ci;
use crate::{
    harness::{
        AGENT, Options,
        gitlab::{GitLabField, Setup, job},
        http::{ask, get, status},
    },
    kubectl::Kubectl,
};
use http::HeaderMap;
use serde_json::{Value, json};
use stand_ins::{
    kube_api::Seen,
    rails::{Endpoint, Job},
};
use std::collections::BTreeSet;

const GITLAB: &str = "https://gitlab.example.com";

/// Whom a request impersonates: user, groups, uid, extra keys and values, as the cluster reads them.
#[derive(Debug, PartialEq)]
struct Impersonated {
    user: Option<String>,
    uid: Option<String>,
    groups: BTreeSet<String>,
    extra: BTreeSet<(String, String)>,
}

impl Impersonated {
    fn nobody() -> Self {
        Self { user: None, uid: None, groups: BTreeSet::new(), extra: BTreeSet::new() }
    }

    fn of(headers: &HeaderMap) -> Self {
        let mut found = Self::nobody();
        for (name, value) in headers {
            let Some(rest) = name.as_str().strip_prefix("impersonate-") else { continue };
            let value = value.to_str().unwrap().to_owned();
            match rest {
                "user" => assert_eq!(found.user.replace(value), None, "twice"),
                "uid" => assert_eq!(found.uid.replace(value), None, "twice"),
                "group" => assert!(found.groups.insert(value), "twice"),
                extra => {
                    let key = extra.strip_prefix("extra-").unwrap().replace("%2f", "/");
                    assert!(found.extra.insert((key, value)), "twice");
                }
            }
        }
        found
    }

    fn new(user: &str, groups: &[&str], extra: &[(&str, &str)]) -> Self {
        let extra = extra.iter().map(|(key, value)| (format!("agent.gitlab.com/{key}"), (*value).to_owned()));
        Self {
            user: Some(user.to_owned()),
            uid: None,
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            extra: extra.collect(),
        }
    }
}

/// The newest request of a path at the cluster.
fn seen(field: &GitLabField, path: &str) -> Seen {
    let mut requests = field.api().requests().into_iter().rev();
    requests.find(|request| request.uri.path() == path).unwrap_or_else(|| panic!("{path} was not asked for"))
}

/// Nothing that proves who a caller is reaches the cluster.
fn carries_no_secret(field: &GitLabField, request: &Seen) {
    let tokens = &field.tokens;
    let secrets = [&tokens.job, &tokens.pat, &tokens.cookie, &tokens.csrf, &tokens.agent];
    for (name, value) in &request.headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        let found = secrets.iter().any(|secret| value.contains(secret.as_str()));
        assert!(!found, "{name} has a secret in it");
    }
    let uri = request.uri.to_string();
    assert!(!secrets.iter().any(|secret| uri.contains(secret.as_str())), "the URI has a secret in it");
    assert!(!uri.contains("gitlab-"), "{uri}");
    for name in ["gitlab-agent-id", "x-csrf-token", "cookie"] {
        assert!(!request.headers.contains_key(name), "{name}: {request:?}");
    }
}

fn as_ci_job() -> Impersonated {
    Impersonated::new(
        "gitlab:ci_job:900",
        &[
            "gitlab:ci_job",
            "gitlab:group:60",
            "gitlab:group:61",
            "gitlab:group_env_tier:60:production",
            "gitlab:group_env_tier:61:production",
            "gitlab:project:500",
            "gitlab:project_env:500:prod-1",
            "gitlab:project_env_tier:500:production",
        ],
        &[
            ("id", "7"),
            ("config_project_id", "1"),
            ("project_id", "500"),
            ("ci_pipeline_id", "800"),
            ("ci_job_id", "900"),
            ("username", "alice"),
            ("environment_slug", "prod-1"),
            ("environment_tier", "production"),
        ],
    )
}

fn as_user(access_type: &str) -> Impersonated {
    Impersonated::new(
        "gitlab:user:alice",
        &[
            "gitlab:user",
            "gitlab:project_role:500:reporter",
            "gitlab:project_role:500:developer",
            "gitlab:group_role:60:developer",
        ],
        &[("id", "7"), ("username", "alice"), ("access_type", access_type), ("config_project_id", "1")],
    )
}

#[tokio::test]
async fn kubectl_of_a_ci_job_works_and_the_cluster_sees_the_job() {
    let field = GitLabField::start().await;
    let pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": "default", "name": "web-0"},
        "spec": {"containers": [{"name": "web", "image": "none"}]},
    });
    field.api().create(pod).unwrap();
    let kubectl = Kubectl::new(&field);
    let said = kubectl.ok(&["get", "pods", "-o", "name"], b"").await;
    assert_eq!(said.trim(), "pod/web-0");
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: made}\ndata: {k: v}\n";
    kubectl.ok(&["apply", "--server-side", "-f", "-"], map.as_bytes()).await;
    assert_eq!(kubectl.ok(&["get", "configmap", "made", "-o", "jsonpath={.data.k}"], b"").await, "v");
    kubectl.ok(&["delete", "configmap", "made"], b"").await;

    let request = seen(&field, "/api/v1/namespaces/default/pods");
    assert_eq!(Impersonated::of(&request.headers), as_ci_job());
    carries_no_secret(&field, &request);
    // Every request of all these commands was one of the job, and Rails was asked about it once.
    for request in field.api().requests().iter().filter(|request| request.uri.path().starts_with("/api")) {
        assert_eq!(request.headers["impersonate-user"], "gitlab:ci_job:900", "{request:?}");
    }
    assert_eq!(field.rails().calls(Endpoint::AllowedAgents), 1);
}

#[tokio::test]
async fn a_job_comes_as_its_configuration_says_and_as_nobody_else() {
    let ways = [
        ("of-agent", json!({"agent": {}})),
        ("of-nothing", json!({})),
        ("of-job", json!({"ci_job": {}})),
        ("of-user", json!({"ci_user": {}})),
        (
            "of-somebody",
            json!({"impersonate": {
                "username": "somebody",
                "groups": ["one", "two"],
                "uid": "4711",
                "extra": [{"key": "example.com/a", "val": ["x", "y"]}, {"key": "b", "val": ["z"]}],
            }}),
        ),
        ("of-unknown", json!({"robot": {}})),
    ];
    let token = |way: &str| format!("glcbt-{way}-0123456789");
    let jobs = ways.clone();
    let field = GitLabField::with(Setup {
        rails: Box::new(move |options| {
            options.jobs.extend(jobs.iter().map(|(way, access_as)| Job {
                token: format!("glcbt-{way}-0123456789"),
                allowed_agents: job(&[(AGENT, 1, access_as.clone())]),
                feature_flags: None,
            }));
        }),
        ..Setup::default()
    })
    .await;
    let somebody = Impersonated {
        user: Some("somebody".into()),
        uid: Some("4711".into()),
        groups: ["one".to_owned(), "two".to_owned()].into(),
        extra: [("example.com/a", "x"), ("example.com/a", "y"), ("b", "z")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
    };
    for (way, expected) in [
        ("of-agent", Impersonated::nobody()),
        ("of-nothing", Impersonated::nobody()),
        ("of-job", as_ci_job()),
        ("of-somebody", somebody),
    ] {
        let answer = get(&field, "/version", &[("authorization", &ci(&token(way)))]).await;
        assert_eq!(answer.status(), 200, "{way}: {answer:?}");
        let request = seen(&field, "/version");
        assert_eq!(Impersonated::of(&request.headers), expected, "{way}");
        assert!(!format!("{:?}", request.headers).contains(&token(way)), "{way}");
    }
    let answer = get(&field, "/version", &[("authorization", &ci(&token("of-user")))]).await;
    assert_eq!(answer.status(), 200);
    let as_job_user = Impersonated::of(&seen(&field, "/version").headers);
    assert_eq!(as_job_user.user.as_deref(), Some("gitlab:user:alice"), "{as_job_user:?}");
    assert!(as_job_user.groups.contains("gitlab:user"), "{as_job_user:?}");

    // What is not understood is refused, and what is decided already cannot be said again by the client.
    let before = field.api().requests().len();
    let refused = get(&field, "/version", &[("authorization", &ci(&token("of-unknown")))]).await;
    status(refused, 403, "Forbidden").await;
    for name in ["impersonate-user", "impersonate-group", "impersonate-uid", "impersonate-extra-scopes"] {
        for way in ["of-job", "of-user", "of-somebody"] {
            let headers = [("authorization", ci(&token(way))), (name, "system:admin".to_owned())];
            let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
            status(get(&field, "/version", &headers).await, 400, "BadRequest").await;
        }
    }
    assert_eq!(field.api().requests().len(), before, "the cluster heard of it");
    // The agent itself may be told whom to be; the cluster's own rules say whether it may.
    let headers = [("authorization", ci(&token("of-agent"))), ("impersonate-user", "someone".to_owned())];
    let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
    assert_eq!(get(&field, "/version", &headers).await.status(), 200);
    assert_eq!(seen(&field, "/version").headers["impersonate-user"], "someone");
}

#[tokio::test]
async fn a_user_with_a_personal_access_token_comes_as_that_user() {
    let field = GitLabField::with(Setup {
        field: Options { agent_wait: "1s", ..Options::default() },
        ..Setup::default()
    })
    .await;
    let pat = format!("Bearer pat:{AGENT}:{}", field.tokens.pat);
    assert_eq!(get(&field, "/version", &[("authorization", &pat)]).await.status(), 200);
    let request = seen(&field, "/version");
    assert_eq!(Impersonated::of(&request.headers), as_user("personal_access_token"));
    carries_no_secret(&field, &request);

    let before = field.api().requests().len();
    let headers = [("authorization", pat.as_str()), ("impersonate-user", "root")];
    status(get(&field, "/version", &headers).await, 400, "BadRequest").await;
    for wrong in [
        format!("Bearer pat:{AGENT}:glpat-wrong-0123456789"),
        // Alice may not reach the other agent; it exists, and one that does not gets the same answer.
        format!("Bearer pat:8:{}", field.tokens.pat),
        format!("Bearer pat:4711:{}", field.tokens.pat),
        // A job's token is no user's, nor an agent's.
        format!("Bearer pat:{AGENT}:{}", field.tokens.job),
        format!("Bearer pat:{AGENT}:{}", field.tokens.agent),
        format!("Bearer pat:{AGENT}:"),
        format!("Bearer postern:{AGENT}:{}", field.tokens.pat),
        format!("Bearer {}", field.tokens.pat),
    ] {
        let message =
            status(get(&field, "/version", &[("authorization", &wrong)]).await, 401, "Unauthorized").await;
        assert!(!message.contains(&field.tokens.pat), "{message}");
    }
    assert_eq!(field.api().requests().len(), before, "the cluster heard of it");
}

#[tokio::test]
async fn a_browser_with_a_session_cookie_comes_as_its_user_from_gitlabs_own_pages_only() {
    let field = GitLabField::with(Setup { external_url: Some(GITLAB), ..Setup::default() }).await;
    let cookie = format!("other=1; _gitlab_kas={}; more=2", field.tokens.cookie);
    let agent = AGENT.to_string();
    let usual = [
        ("cookie", cookie.as_str()),
        ("gitlab-agent-id", agent.as_str()),
        ("x-csrf-token", field.tokens.csrf.as_str()),
        ("origin", GITLAB),
    ];

    // The browser asks first; nobody has to say who they are for that.
    let preflight = [
        ("origin", GITLAB),
        ("access-control-request-method", "GET"),
        ("access-control-request-headers", "gitlab-agent-id,x-csrf-token"),
    ];
    let before = field.api().requests().len();
    let answer = ask(&field, "OPTIONS", "/version", &preflight).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let header = |name: &str| answer.headers().get(name).map(|value| value.to_str().unwrap());
    assert_eq!(header("access-control-allow-origin"), Some(GITLAB));
    assert_eq!(header("access-control-allow-credentials"), Some("true"));
    assert_eq!(header("access-control-allow-headers"), Some("gitlab-agent-id,x-csrf-token"));
    assert!(header("access-control-allow-methods").is_some_and(|methods| methods.contains("DELETE")));
    assert_eq!(header("access-control-max-age"), Some("86400"));
    assert_eq!(field.api().requests().len(), before, "the cluster was not asked");

    let answer = get(&field, "/version", &usual).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    assert_eq!(answer.headers()["access-control-allow-origin"], GITLAB);
    assert!(answer.headers()["vary"].to_str().unwrap().contains("Origin"), "{answer:?}");
    let request = seen(&field, "/version");
    assert_eq!(Impersonated::of(&request.headers), as_user("session_cookie"));
    carries_no_secret(&field, &request);

    // As a WebSocket of a page can say it, which can set no headers.
    let query = format!("/version?gitlab-agent-id={AGENT}&pretty=1&gitlab-csrf-token={}", field.tokens.csrf);
    let answer = get(&field, &query, &[("cookie", &cookie), ("origin", GITLAB)]).await;
    assert_eq!(answer.status(), 200, "{answer:?}");
    let request = seen(&field, "/version");
    assert_eq!(request.uri.query(), Some("pretty=1"));
    carries_no_secret(&field, &request);

    let before = field.api().requests().len();
    for origin in [
        "https://evil.example.com",
        "https://gitlab.example.com.evil.com",
        "null",
        "http://gitlab.example.com",
    ] {
        for method in ["GET", "OPTIONS", "POST"] {
            let mut foreign = usual;
            foreign[3].1 = origin;
            let answer = ask(&field, method, "/version", &foreign).await;
            assert_eq!(answer.status(), 403, "{method} {origin}: {answer:?}");
            assert!(!answer.headers().contains_key("access-control-allow-origin"), "{origin}");
        }
    }
    for (name, value) in [
        ("x-csrf-token", "wrong"),
        ("cookie", "_gitlab_kas=wrong"),
        ("cookie", "other=1"),
        ("gitlab-agent-id", "8"),
        ("gitlab-agent-id", "seven"),
    ] {
        let headers = usual.map(|(usual, was)| (usual, if usual == name { value } else { was }));
        let answer = get(&field, "/version", &headers).await;
        assert_eq!(answer.headers()["access-control-allow-origin"], GITLAB, "a page may read why");
        status(answer, 401, "Unauthorized").await;
    }
    for missing in ["x-csrf-token", "gitlab-agent-id"] {
        let headers: Vec<_> = usual.into_iter().filter(|(name, _)| *name != missing).collect();
        let answer = get(&field, "/version", &headers).await;
        assert_eq!(answer.status(), 401, "without {missing}: {answer:?}");
    }
    assert_eq!(field.api().requests().len(), before, "the cluster heard of it");
    let asked = field.rails().requests();
    let asked: Vec<&Value> = asked.iter().filter_map(|seen| seen.body.as_ref()).collect();
    assert!(asked.iter().any(|body| body["access_type"] == "session_cookie"), "{asked:?}");
}

#[tokio::test]
async fn each_request_leaves_one_line_that_says_who_what_and_how_it_went() {
    let mut field = GitLabField::start().await;
    let wrong = "glcbt-wrong-0123456789";
    assert_eq!(
        get(&field, "/api/v1/pods?limit=5", &[("authorization", &field.bearer())]).await.status(),
        200
    );
    assert_eq!(get(&field, "/api/v1/nodes", &[("authorization", &ci(wrong))]).await.status(), 401);
    let line = field
        .broker
        .logged("request", |line| line["path"].as_str().is_some_and(|path| path.ends_with("/pods")));
    let line = line.await;
    for (key, value) in [
        ("status", json!(200)),
        ("agent_id", json!(AGENT)),
        ("job_id", json!(900)),
        ("project_id", json!(500)),
        ("user", json!("alice")),
        ("method", json!("GET")),
        ("decision", json!("allowed")),
        ("access_as", json!("ci_job")),
    ] {
        assert_eq!(line[key], value, "{key} of {line}");
    }
    assert!(line["duration_ms"].is_u64(), "{line}");
    assert!(!line.to_string().contains("limit=5"), "a query can hold a secret: {line}");
    let line = field
        .broker
        .logged("request", |line| line["path"].as_str().is_some_and(|path| path.ends_with("/nodes")));
    let line = line.await;
    assert_eq!((&line["status"], &line["decision"]), (&json!(401), &json!("refused")), "{line}");
    let pods = |line: &&Value| {
        line["message"] == "request" && line["path"].as_str().is_some_and(|path| path.ends_with("/pods"))
    };
    assert_eq!(field.broker.lines().iter().filter(pods).count(), 1);
}
