//! A busy run at `trace`, with every kind of secret on its way: none of them is in a log of any program.

use super::{FILE, Running, ci, received};
use crate::{
    admission::forms,
    harness::{
        AGENT, Options,
        gitlab::{GitLabField, Setup},
        http::{ask, get},
        until,
    },
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::json;
use stand_ins::{
    rails::{Endpoint, Faults},
    redis::{self, RedisServer},
};
use std::fs;

const GITLAB: &str = "https://gitlab.example.com";

// The stand-ins must not wait while a long log is searched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_secret_of_any_kind_is_in_a_log_of_a_busy_run_at_trace() {
    const REDIS: &str = "redis-password-abcdefghijklmnop";
    let redis = redis::Options { password: Some(REDIS.into()), tcp: true, ..redis::Options::default() };
    let redis = RedisServer::start(redis).await.unwrap();
    let password = redis.directory().join("password");
    fs::write(&password, REDIS).unwrap();
    let section =
        format!("{{server: {{address: '{}'}}, password_file: '{}'}}", redis.address(), password.display());
    let mut field = GitLabField::with(Setup {
        kas_extra: format!("redis: {section}\nevents: {{action_cable: {{redis: {section}}}}}\n"),
        field: Options { log: Some("trace"), configuration: "{}\n", agent_wait: "1s", ..Options::default() },
        external_url: Some(GITLAB),
        usage_reporting_period: "0.5s",
        ..Setup::default()
    })
    .await;
    let first = field.head(1);
    received(&mut field.agent, &first).await;
    let wrong = [
        "glcbt-wrong-abcdefghijklmnop",
        "glpat-wrong-abcdefghijklmnop",
        "glagent-wrong-abcdefghijklmnop",
        "cookie-wrong-abcdefghijklmnop",
    ];
    // Callers of every kind, let in and refused.
    let pat = format!("Bearer pat:{AGENT}:{}", field.tokens.pat);
    let mut watch = Running::open(&field, &field.bearer()).await;
    for (authorization, code) in [
        (field.bearer(), 200),
        (pat.clone(), 200),
        (ci(wrong[0]), 401),
        (format!("Bearer pat:{AGENT}:{}", wrong[1]), 401),
        (format!("Bearer ci:8:{}", field.tokens.job), 403),
        (format!("Bearer {}", field.tokens.job), 401),
        (format!("Bearer ci:seven:{}", field.tokens.job), 401),
        (format!("Bearer postern:{AGENT}:{}", field.tokens.pat), 401),
        (format!("Basic {}", BASE64_STANDARD.encode(format!("alice:{}", field.tokens.pat))), 401),
    ] {
        let answer = get(&field, "/version", &[("authorization", &authorization)]).await;
        assert_eq!(answer.status(), code);
    }
    let agent = AGENT.to_string();
    let cookie = format!("_gitlab_kas={}", field.tokens.cookie);
    let browser = [("gitlab-agent-id", agent.as_str()), ("origin", GITLAB)];
    let with = |name: &'static str, value: &str| -> Vec<(&'static str, String)> {
        let all = browser.iter().map(|(name, value)| (*name, (*value).to_owned()));
        all.chain([("cookie", cookie.clone()), (name, value.to_owned())]).collect()
    };
    for (headers, path) in [
        (with("x-csrf-token", &field.tokens.csrf), "/version".to_owned()),
        (with("x-csrf-token", wrong[3]), "/version".to_owned()),
        (
            vec![("origin", GITLAB.to_owned()), ("cookie", cookie.clone())],
            format!("/version?gitlab-agent-id={AGENT}&gitlab-csrf-token={}", field.tokens.csrf),
        ),
        (
            vec![("origin", "https://evil.example.com".to_owned()), ("cookie", cookie.clone())],
            format!("/version?gitlab-agent-id={AGENT}&gitlab-csrf-token={}", field.tokens.csrf),
        ),
    ] {
        let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        get(&field, &path, &headers).await;
        ask(&field, "OPTIONS", &path, &headers).await;
    }
    // Rails, in both directions, well and unwell; what it answers may be anything.
    let mut rails = field.grpcio().await;
    let tracker = "agent_tracker.rpc.AgentTracker/GetConnectedAgents";
    rails.rails(tracker, json!({"agent_id": "7"})).await;
    let expired = json!({"secret": field.tokens.from_rails, "claims": {"aud": "gitlab-kas", "exp": -1}});
    rails.rails_with(tracker, json!({"agent_id": "7"}), json!({"jwt": expired})).await;
    rails.rails_with(tracker, json!({"agent_id": "7"}), json!({"bearer": field.tokens.agent})).await;
    let gitaly = |token: &str| {
        json!({
            "repository": {"storage_name": "default", "relative_path": "@hashed/1.git"},
            "gitaly_info": {"address": field.gitaly.address(), "token": token},
        })
    };
    let list = "configuration_project.rpc.ConfigurationProject/ListAgentConfigFiles";
    rails.rails(list, gitaly(&field.tokens.gitaly)).await;
    rails.rails(list, gitaly("gitaly-wrong-abcdefghijklmnop")).await;
    let secrets_in_answers = format!(
        r#"{{"allowed_agents": "{}", "gitaly_info": {{"token": 7, "address": "{}"}}, "job": "{}"}}"#,
        field.tokens.job, field.tokens.gitaly, field.tokens.pat
    );
    for endpoint in [Endpoint::AllowedAgents, Endpoint::AuthorizeProxyUser, Endpoint::ProjectInfo] {
        let faults = Faults { body: Some(secrets_in_answers.clone()), ..Faults::default() };
        field.rails().set_faults(endpoint, faults);
    }
    get(&field, "/version", &[("authorization", &ci(&field.tokens.spare_jobs[0]))]).await;
    get(
        &field,
        "/version",
        &[("authorization", &format!("Bearer pat:{AGENT}:{}", field.tokens.spare_jobs[1]))],
    )
    .await;
    // Agents: manifests, modules, a wrong one, a revoked one, a new commit.
    let manifests = "gitops.rpc.Gitops/GetObjectsToSynchronize";
    let wanted = |project: &str| json!({"project_id": project, "paths": [{"glob": "**/*.yaml"}]});
    for (project, token) in [
        ("group/manifests", &field.tokens.other),
        ("group/manifests", &field.tokens.agent),
        ("x", &field.tokens.agent),
    ] {
        rails.agent(token, manifests, &[wanted(project)], json!({"deadline": 1.0})).await;
    }
    for endpoint in [Endpoint::AllowedAgents, Endpoint::AuthorizeProxyUser, Endpoint::ProjectInfo] {
        field.rails().set_faults(endpoint, Faults::default());
    }
    rails.agent(&field.tokens.agent, manifests, &[wanted("group/manifests")], json!({"deadline": 3.0})).await;
    let kind = "type.googleapis.com/gitlab.agent.gitlab_access.rpc.HeaderExtra";
    let smuggled = json!({"Private-Token": {"value": [field.tokens.pat]}, "Authorization": {"value": [pat]}});
    let request = json!({"method": "POST", "url_path": "/x", "header": smuggled});
    let requests = [
        json!({"header": {"request": request, "extra": {"@type": kind, "module_name": "stand_in_echo"}}}),
        json!({"trailer": {}}),
    ];
    rails
        .agent(&field.tokens.agent, "gitlab_access.rpc.GitlabAccess/MakeRequest", &requests, json!({}))
        .await;
    let mut stranger = field.agent_with(wrong[2]).await;
    let mut spare = field.agent_with(&field.tokens.spare_agents[0]).await;
    until("the stranger is refused", async || stranger.text().contains("token refused by ").then_some(()))
        .await;
    field.rails().revoke(&field.tokens.spare_agents[1]);
    let mut revoked = field.agent_with(&field.tokens.spare_agents[1]).await;
    until("the revoked one is refused", async || revoked.text().contains("token refused by ").then_some(()))
        .await;
    let commit = field.commit(1, &[(FILE, Some("# still without a level\n"))]);
    received(&mut field.agent, &commit).await;
    received(&mut spare, &commit).await;
    watch.goes_on().await;
    field.broker.kill().await;
    field.restart_broker().await;
    field.ready().await;
    // What is written at the end counts as well.
    let here = field.folder.path().to_owned();
    for process in [&mut stranger, &mut spare, &mut revoked] {
        process.signal("TERM").await;
        process.ended().await;
    }
    let inner = &mut field.field;
    for process in [&mut inner.agent, &mut inner.edge, &mut inner.broker] {
        process.signal("TERM").await;
        process.ended().await;
    }

    let tokens = &field.tokens;
    let to_rails = BASE64_STANDARD.encode(tokens.to_rails);
    let mut secrets: Vec<&str> = vec![
        &tokens.agent,
        &tokens.other,
        &tokens.job,
        &tokens.pat,
        &tokens.cookie,
        &tokens.csrf,
        &tokens.gitaly,
        &tokens.from_rails,
        &to_rails,
        &tokens.spare_agents[0],
        &tokens.spare_agents[1],
        &tokens.spare_jobs[0],
        &tokens.spare_jobs[1],
        "gitaly-wrong-abcdefghijklmnop",
        REDIS,
    ];
    secrets.extend(wrong);
    let forms: Vec<(usize, String)> = secrets
        .iter()
        .enumerate()
        .flat_map(|(number, secret)| forms(secret).into_iter().map(move |form| (number, form)))
        // The beginning of every JWT, and what proves to Gitaly that a token is known.
        .chain([(usize::MAX, "eyJ".to_owned()), (usize::MAX, "Bearer v2.".to_owned())])
        .collect();
    let (mut logs, mut bytes) = (0, 0);
    for entry in fs::read_dir(here.join("logs")).unwrap() {
        let path = entry.unwrap().path();
        let log = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        logs += 1;
        bytes += log.len();
        for (number, form) in &forms {
            let line = log.lines().find(|line| line.contains(form.as_str()));
            assert!(line.is_none(), "secret {number} is in {}: {}", path.display(), line.unwrap_or_default());
        }
    }
    println!("no secret in {logs} logs of {bytes} bytes");
    assert!(logs >= 7 && bytes > 100_000, "{logs} logs of {bytes} bytes are not those of a run at trace");
}
