//! What one agent must not get of another: manifests, configuration, module requests in its name, its tunnel.

use super::{FILE, ci, received};
use crate::harness::{
    AGENT, Options,
    gitlab::{GitLabField, OTHER, Setup, job},
    http::{get, status},
};
use base64::{Engine, prelude::BASE64_STANDARD};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use stand_ins::rails::{Endpoint, Job};

const SYNCHRONIZE: &str = "gitops.rpc.Gitops/GetObjectsToSynchronize";
const MAKE_REQUEST: &str = "gitlab_access.rpc.GitlabAccess/MakeRequest";
const GET_CONFIGURATION: &str = "agent_configuration.rpc.AgentConfiguration/GetConfiguration";

/// The sources of the objects that were sent, one after the other.
fn sources(answer: &Value) -> Vec<&str> {
    let answers = answer["answers"].as_array().unwrap();
    answers.iter().filter_map(|message| message["object"]["source"].as_str()).collect()
}

#[tokio::test]
async fn an_agent_gets_manifests_of_its_own_and_public_projects_and_of_no_other() {
    let field = GitLabField::start().await;
    let mut agent = field.grpcio().await;
    let wanted = |project: &str| json!({"project_id": project, "paths": [{"glob": "**/*.{yaml,yml,json}"}]});
    for (token, project, files) in [
        (&field.tokens.agent, "group/manifests", &["manifests/map.yaml"][..]),
        (&field.tokens.other, "group/manifests", &["manifests/map.yaml"]),
        (&field.tokens.other, "secret/config", &["secret.yaml"]),
    ] {
        let answer = agent.agent(token, SYNCHRONIZE, &[wanted(project)], json!({})).await;
        assert_eq!(answer["code"], "OK", "{project}: {answer}");
        assert_eq!(sources(&answer), files, "{project}: {answer}");
        assert!(answer["answers"][0]["header"]["commit_id"].is_string(), "{answer}");
        assert!(answer["answers"].as_array().unwrap().last().unwrap()["trailer"].is_object(), "{answer}");
    }
    for project in ["secret/config", "2", "secret/config/", "Secret/Config", "group/../secret/config"] {
        // Some of these are answered, others are left without an answer while the broker asks again.
        let short = json!({"deadline": 2.0, "first": 1});
        let answer = agent.agent(&field.tokens.agent, SYNCHRONIZE, &[wanted(project)], short).await;
        assert_eq!(answer["answers"], json!([]), "{project}: {answer}");
        assert_ne!(answer["code"], "OK", "{project}: {answer}");
    }
    // Whatever they ask for, no path leads out of the project, nor into what is hidden in it.
    for glob in ["../../2.git/secret.yaml", "/../2.git/*", ".hidden/*", "manifests/../../2.git/**"] {
        let wanted = json!({"project_id": "group/manifests", "paths": [{"glob": glob}]});
        let short = json!({"deadline": 2.0});
        let answer = agent.agent(&field.tokens.agent, SYNCHRONIZE, &[wanted], short).await;
        assert_eq!(sources(&answer), Vec::<&str>::new(), "{glob}: {answer}");
    }
}

#[tokio::test]
async fn an_agent_gets_its_own_configuration_and_no_word_of_another() {
    let mut field = GitLabField::start().await;
    let (own, secret) = (field.head(1), field.head(2));
    received(&mut field.agent, &own).await;
    let mut agent = field.grpcio().await;
    let first = json!({"first": 1});
    // Nothing that an agent says about itself counts; only its token does.
    let meta = json!({"agent_meta": {"pod_name": "other", "pod_namespace": "secret"}});
    for (token, id, project, commit) in
        [(&field.tokens.agent, AGENT, 1, &own), (&field.tokens.other, OTHER, 2, &secret)]
    {
        let metadata = json!([["kas-hop-routing-agent-id", OTHER.to_string()], ["x-postern-agent-id", "8"]]);
        let mut with = first.clone();
        with["metadata"] = metadata;
        let answer = agent.agent(token, GET_CONFIGURATION, std::slice::from_ref(&meta), with).await;
        let answer = &answer["answers"][0];
        assert_eq!(answer["commit_id"], **commit, "{answer}");
        assert_eq!(answer["configuration"]["agent_id"], id.to_string(), "{answer}");
        assert_eq!(answer["configuration"]["project_id"], project.to_string(), "{answer}");
    }
    // A commit of the other one's reaches the other one only.
    let next = field.commit(2, &[(".gitlab/agents/other/config.yaml", Some("observability: {}\n"))]);
    let mut other = field.agent_with(&field.tokens.other).await;
    received(&mut other, &next).await;
    let commit = field.commit(1, &[(FILE, Some("observability: {logging: {level: info}}\n"))]);
    received(&mut field.agent, &commit).await;
    assert!(!field.agent.text().contains(&next), "{}", field.agent.text());
    assert!(!other.text().contains(&commit), "{}", other.text());
}

/// A request to a module of GitLab as an agent makes it.
fn module_request(module: &str, path: &str, headers: &Value, body: &str) -> [Value; 3] {
    let kind = "type.googleapis.com/gitlab.agent.gitlab_access.rpc.HeaderExtra";
    let request = json!({
        "method": "POST",
        "url_path": path,
        "header": headers,
        "query": {"q": {"value": ["a b", "c"]}},
    });
    [
        json!({"header": {"request": request, "extra": {"@type": kind, "module_name": module}}}),
        json!({"data": {"data": BASE64_STANDARD.encode(body)}}),
        json!({"trailer": {}}),
    ]
}

#[tokio::test]
async fn what_an_agent_asks_of_gitlab_is_asked_with_its_own_token_and_of_modules_only() {
    let field = GitLabField::start().await;
    let mut agent = field.grpcio().await;
    let stolen = json!({
        "Authorization": {"value": [format!("Bearer {}", field.tokens.other)]},
        "authorization": {"value": [format!("Bearer {}", field.tokens.other)]},
        "Gitlab-Agent-Api-Request": {"value": [field.tokens.other]},
        "Gitlab-Agentk-Api-Request": {"value": [field.tokens.other]},
        "gitlab-agent-api-request": {"value": [field.tokens.other]},
        "Gitlab-Kas-Api-Request": {"value": ["e30.e30.e30"]},
        "Job-Token": {"value": [field.tokens.job]},
        "Private-Token": {"value": [field.tokens.pat]},
        "Host": {"value": ["evil.example.com"]},
        "Content-Type": {"value": ["text/plain"]},
        "Private_Token": {"value": [field.tokens.pat]},
        "X-Of-The-Agent": {"value": ["1"]},
        "Accept-Language": {"value": ["de"]},
    });
    let requests = module_request("stand_in_echo", "/some/path", &stolen, "hello");
    let answer = agent.agent(&field.tokens.agent, MAKE_REQUEST, &requests, json!({})).await;
    assert_eq!(answer["code"], "OK", "{answer}");
    let head = &answer["answers"][0]["header"]["response"];
    assert_eq!(head["status_code"], 200, "{answer}");
    let echoed: String =
        answer["answers"].as_array().unwrap().iter().filter_map(|m| m["data"]["data"].as_str()).collect();
    assert_eq!(BASE64_STANDARD.decode(echoed).unwrap(), b"hello");

    let own = hex::encode(Sha256::digest(&field.tokens.agent));
    let seen =
        field.rails().requests().into_iter().rev().find(|seen| seen.endpoint == Endpoint::Module).unwrap();
    assert_eq!(seen.uri.path(), "/api/v4/internal/kubernetes/modules/stand_in_echo/some/path");
    assert_eq!(seen.uri.query(), Some("q=a+b&q=c"));
    assert_eq!(seen.token.as_deref(), Some(own.as_str()), "asked with another's token");
    assert!(seen.claims.is_some(), "asked with a JWT that is not ours");
    assert_eq!(seen.headers["accept-language"], "de");
    let bearer = hex::encode(Sha256::digest(format!("Bearer {}", field.tokens.agent)));
    assert_eq!(seen.headers["authorization"], bearer);
    for name in ["job-token", "private-token", "private_token", "gitlab-agentk-api-request", "x-of-the-agent"]
    {
        assert!(!seen.headers.contains_key(name), "{name} passed: {seen:?}");
    }

    // Nothing but modules can be reached this way, however the path is written.
    let before = field.rails().requests().len();
    for (module, path) in [
        ("stand_in_echo", "/../../agent_info"),
        ("stand_in_echo", "/..%2f..%2fagent_info"),
        ("stand_in_echo", "/%2e%2e/%2e%2e/agent_info"),
        ("stand_in_echo", "/./x"),
        ("../agent_info", "/"),
        ("..", "/agent_info"),
        (".", "/agent_info"),
        ("a/../../agent_info", "/"),
        ("stand_in_echo", "/x?id=2"),
        ("stand_in_echo", "/x#y"),
        ("stand_in_echo", "@evil.example.com/"),
        ("", "/agent_info"),
        ("stand_in_echo", "/x\r\nX-Injected: 1"),
    ] {
        let marked = json!({"Accept-Language": {"value": ["de"]}});
        let requests = module_request(module, path, &marked, "");
        agent.agent(&field.tokens.agent, MAKE_REQUEST, &requests, json!({"deadline": 5.0})).await;
        for seen in field
            .rails()
            .requests()
            .iter()
            .skip(before)
            .filter(|seen| seen.headers.contains_key("accept-language"))
        {
            let reached = seen.uri.path();
            let rest = reached.strip_prefix("/api/v4/internal/kubernetes/modules/");
            let rest = rest.unwrap_or_else(|| panic!("{module:?} {path:?} reached {reached}"));
            // As a server in front may decode it.
            let decoded = rest.to_lowercase().replace("%2e", ".");
            let climbs = decoded.split('/').any(|segment| segment == "..");
            assert!(!climbs, "{module:?} {path:?} may climb as {reached}");
            assert!(!seen.headers.contains_key("x-injected"), "{seen:?}");
        }
    }
    let probed = field.rails().requests();
    let probed =
        probed.iter().skip(before).filter(|seen| seen.headers.contains_key("accept-language")).count();
    assert!(probed > 0, "what is harmless about them is let through");
    // An unknown token asks nothing in nobody's name.
    let requests = module_request("stand_in_echo", "/x", &json!({}), "");
    let answer = agent.agent("glagent-unknown-0123456789", MAKE_REQUEST, &requests, json!({})).await;
    assert_ne!(answer["code"], "OK", "{answer}");
}

#[tokio::test]
async fn a_job_for_one_agent_cannot_reach_another_and_no_tunnel_is_taken_for_anothers() {
    let field = GitLabField::with(Setup {
        field: Options { agent_wait: "1s", ..Options::default() },
        rails: Box::new(|options| {
            options.jobs.push(Job {
                token: "glcbt-of-the-other-0123456789".into(),
                allowed_agents: job(&[(OTHER, 2, json!({"agent": {}}))]),
                feature_flags: None,
            });
        }),
        ..Setup::default()
    })
    .await;
    let before = field.api().requests().len();
    // Whether the other one exists or not.
    for id in [OTHER, 4711] {
        let authorization = format!("Bearer ci:{id}:{}", field.tokens.job);
        let answer = get(&field, "/version", &[("authorization", &authorization)]).await;
        status(answer, 403, "Forbidden").await;
    }
    let answer = get(&field, "/version", &[("authorization", &ci("glcbt-of-the-other-0123456789"))]).await;
    status(answer, 403, "Forbidden").await;
    // The other one is not connected, though this one is.
    let authorization = format!("Bearer ci:{OTHER}:glcbt-of-the-other-0123456789");
    let answer = get(&field, "/version", &[("authorization", &authorization)]).await;
    let message = status(answer, 503, "ServiceUnavailable").await;
    assert!(message.contains(&format!("agent {OTHER}")), "{message}");
    // A header of our own programs does not change whom a request is for.
    let own = field.bearer();
    for header in ["kas-hop-routing-agent-id", "x-postern-agent-id", "gitlab-agent-id"] {
        let headers = [("authorization", own.as_str()), (header, "8")];
        let code = get(&field, "/version", &headers).await.status().as_u16();
        assert!(code == 200 || code == 401, "{header}: {code}");
    }
    assert!(field.api().requests().len() <= before + 3);
}
