//! Rails and the broker: what Rails may ask with which JWT, through a client that shares no code with us, and what it is
//! told of usage.

use super::{FILE, ci, idle_tunnels, status_of};
use crate::harness::{
    AGENT,
    gitlab::{GitLabField, Grpcio, OTHER, Setup},
    until,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http::StatusCode;
use serde_json::{Value, json};
use stand_ins::rails::{Endpoint, Faults};

const GET_CONNECTED_AGENTS: &str = "agent_tracker.rpc.AgentTracker/GetConnectedAgents";
const LIST_FILES: &str = "configuration_project.rpc.ConfigurationProject/ListAgentConfigFiles";
const GET_SERVER_INFO: &str = "server_info.rpc.ServerInfo/GetServerInfo";
const GET_CONFIGURATION: &str = "agent_configuration.rpc.AgentConfiguration/GetConfiguration";
const GIT_PUSH: &str = "notifications.rpc.Notifications/GitPushEvent";

#[tokio::test]
async fn rails_lists_connected_agents_by_project_by_id_and_by_several_ids() {
    let field = GitLabField::start().await;
    idle_tunnels(&field, |count| count > 0).await;
    let mut rails = field.grpcio().await;
    let by_agents = "agent_tracker.rpc.AgentTracker/GetConnectedAgentsByAgentIDs";
    let by_agents_newest = "agent_tracker.rpc.AgentTracker/GetConnectedAgentksByAgentIDs";
    let by_projects = "agent_tracker.rpc.AgentTracker/GetConnectedAgentsByProjectIDs";
    for (method, request) in [
        (GET_CONNECTED_AGENTS, json!({"agent_id": AGENT.to_string()})),
        (GET_CONNECTED_AGENTS, json!({"project_id": "1"})),
        (by_agents, json!({"agent_ids": [AGENT.to_string(), "8"]})),
        (by_agents_newest, json!({"agent_ids": [AGENT.to_string(), "8"]})),
        (by_projects, json!({"project_ids": ["2", "1"]})),
    ] {
        let answer = rails.rails(method, request.clone()).await;
        assert_eq!(answer["code"], "OK", "{request}: {answer}");
        let agents =
            answer["answers"][0]["agents"].as_array().unwrap_or_else(|| panic!("{request}: {answer}"));
        // One pod: however many streams it has, however it registered.
        assert_eq!(agents.len(), 1, "{request}: {answer}");
        let agent = &agents[0];
        assert_eq!((&agent["agent_id"], &agent["project_id"]), (&json!("7"), &json!("1")), "{answer}");
        let meta = &agent["agent_meta"];
        assert_eq!(
            (&meta["pod_name"], &meta["pod_namespace"]),
            (&json!("agent-0"), &json!("postern")),
            "{answer}"
        );
        assert!(meta["version"].as_str().is_some_and(|version| version.starts_with('v')), "{answer}");
        assert!(agent["connected_at"].is_string() && agent["connection_id"].is_string(), "{answer}");
    }
    for request in [json!({"agent_id": "8"}), json!({"project_id": "2"}), json!({"project_id": "4711"})] {
        let answer = rails.rails(GET_CONNECTED_AGENTS, request.clone()).await;
        assert_eq!(
            (&answer["code"], &answer["answers"]),
            (&json!("OK"), &json!([{}])),
            "{request}: {answer}"
        );
    }
    let answer = rails.rails(GET_CONNECTED_AGENTS, json!({})).await;
    assert_eq!(answer["code"], "INVALID_ARGUMENT", "{answer}");
    // A second pod is a second entry.
    let _second = field.replica().await;
    listed(&mut rails, AGENT, 2).await;
    // An agent of 14.1 does not register: it is there for as long as it asks for its configuration.
    let mut old = field.grpcio().await;
    let meta = json!({"agent_meta": {"version": "v14.1.1", "pod_name": "old"}});
    old.agent_stays(&field.tokens.other, GET_CONFIGURATION, meta).await;
    listed(&mut rails, OTHER, 1).await;
    drop(old);
    listed(&mut rails, OTHER, 0).await;
}

async fn listed(rails: &mut Grpcio, agent: i64, wanted: usize) {
    until("so many pods are listed", async || {
        let request = json!({"agent_id": agent.to_string()});
        let answer = rails.rails(GET_CONNECTED_AGENTS, request).await;
        let count = answer["answers"][0]["agents"].as_array().map_or(0, Vec::len);
        (count == wanted).then_some(())
    })
    .await;
}

#[tokio::test]
async fn rails_lists_configuration_files_and_learns_what_it_talks_to() {
    let field = GitLabField::start().await;
    let mut rails = field.grpcio().await;
    field.commit(
        1,
        &[
            (".gitlab/agents/second-one/config.yaml", Some("{}\n")),
            (".gitlab/agents/Not_A_Name/config.yaml", Some("{}\n")),
            (".gitlab/agents/third/config.yml", Some("{}\n")),
            (".gitlab/agents/fourth/deeper/config.yaml", Some("{}\n")),
        ],
    );
    let request = |project: i64, token: &str| {
        json!({
            "repository": {
                "storage_name": "default",
                "relative_path": format!("@hashed/{project}.git"),
                "gl_repository": format!("project-{project}"),
                "gl_project_path": "group/config",
            },
            "gitaly_info": {"address": field.gitaly.address(), "token": token},
        })
    };
    let answer = rails.rails(LIST_FILES, request(1, &field.tokens.gitaly)).await;
    assert_eq!(answer["code"], "OK", "{answer}");
    let second = ".gitlab/agents/second-one/config.yaml";
    let files = json!([{"name": second, "agent_name": "second-one"}, {"name": FILE, "agent_name": "test"}]);
    assert_eq!(answer["answers"][0]["config_files"], files, "{answer}");
    // A project without agents has none; that is no error.
    let answer = rails.rails(LIST_FILES, request(3, &field.tokens.gitaly)).await;
    assert_eq!((&answer["code"], &answer["answers"]), (&json!("OK"), &json!([{}])), "{answer}");
    for (project, token) in [(1, "gitaly-wrong-0123456789"), (99, &field.tokens.gitaly)] {
        let answer = rails.rails(LIST_FILES, request(project, token)).await;
        assert_eq!(answer["code"], "UNAVAILABLE", "{answer}");
        assert!(!answer.to_string().contains(token), "{answer}");
    }
    let answer = rails.rails(LIST_FILES, json!({})).await;
    assert_eq!(answer["code"], "INVALID_ARGUMENT", "{answer}");

    let answer = rails.rails(GET_SERVER_INFO, json!({})).await;
    assert_eq!(answer["code"], "OK", "{answer}");
    let info = &answer["answers"][0]["current_server_info"];
    assert!(info["version"].as_str().is_some_and(|version| !version.is_empty()), "{answer}");
}

#[tokio::test]
async fn only_a_good_jwt_of_rails_lets_a_call_in() {
    let field = GitLabField::start().await;
    let mut rails = field.grpcio().await;
    let secret = field.tokens.from_rails.clone();
    let claims = |changes: Value| {
        let mut claims = Grpcio::claims();
        for (key, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => claims.as_object_mut().unwrap().remove(key),
                value => claims.as_object_mut().unwrap().insert(key.clone(), value.clone()),
            };
        }
        claims
    };
    let jwt = |claims: Value| json!({"jwt": {"secret": secret, "claims": claims}});
    let calls = [
        (GET_CONNECTED_AGENTS, json!({"agent_id": "7"})),
        (GET_CONNECTED_AGENTS, json!({"project_id": "1"})),
        (GET_SERVER_INFO, json!({})),
        (GIT_PUSH, json!({"event": {"project": {"id": "1", "full_path": "group/config"}}})),
    ];
    let good = [
        jwt(Grpcio::claims()),
        jwt(claims(json!({"aud": ["other", "gitlab-kas"]}))),
        jwt(claims(json!({"iss": "whoever"}))),
        // As 14.1 wrote numbers.
        jwt(claims(json!({"iat": 0.25, "nbf": -5.25, "exp": 4.75}))),
        jwt(claims(json!({"jti": "a", "unknown": {"x": [1]}}))),
        json!({"jwt": {"secret": secret, "claims": Grpcio::claims(), "algorithm": "HS512"}}),
    ];
    let wrong = BASE64_STANDARD.encode([7; 32]);
    let to_rails = BASE64_STANDARD.encode(field.tokens.to_rails);
    let bad = [
        ("expired", jwt(claims(json!({"exp": -1})))),
        ("not yet good", jwt(claims(json!({"nbf": 60})))),
        ("for another audience", jwt(claims(json!({"aud": "gitlab"})))),
        ("for other audiences", jwt(claims(json!({"aud": ["gitlab", "kas"]})))),
        ("for no audience", jwt(claims(json!({"aud": null})))),
        ("of another key", json!({"jwt": {"secret": wrong, "claims": Grpcio::claims()}})),
        ("of the other direction", json!({"jwt": {"secret": to_rails, "claims": Grpcio::claims()}})),
        ("not signed", json!({"jwt": {"secret": secret, "claims": Grpcio::claims(), "algorithm": "none"}})),
        ("no JWT", json!({"bearer": "glagent-0123456789"})),
        ("an agent's token", json!({"bearer": field.tokens.agent})),
        ("half a JWT", json!({"bearer": "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30"})),
        ("empty", json!({"bearer": ""})),
        ("missing", json!({})),
        ("of another scheme", json!({"metadata": [["authorization", "Basic eDp5"]]})),
    ];
    for (method, request) in &calls {
        for with in &good {
            let answer = rails.rails_with(method, request.clone(), with.clone()).await;
            assert_eq!(answer["code"], "OK", "{method} {with}: {answer}");
        }
        for (what, with) in &bad {
            let answer = rails.rails_with(method, request.clone(), with.clone()).await;
            assert_eq!(answer["code"], "UNAUTHENTICATED", "{method}, {what}: {answer}");
            assert_eq!(answer["answers"], json!([]), "{what}: {answer}");
            assert!(!answer["details"].as_str().unwrap().contains("eyJ"), "a JWT is shown: {answer}");
        }
    }
    // Each listener serves its own only.
    let own =
        rails.agent(&field.tokens.agent, GET_CONNECTED_AGENTS, &[json!({"agent_id": "7"})], json!({})).await;
    assert_eq!(own["code"], "UNIMPLEMENTED", "{own}");
    let request = json!({"agent_meta": {"pod_name": "p"}, "pod_id": "1"});
    let answer = rails.rails("agent_registrar.rpc.AgentRegistrar/Register", request).await;
    assert_eq!(answer["code"], "UNIMPLEMENTED", "{answer}");
}

/// What Rails has counted, in whichever form it was told.
fn counted(field: &GitLabField) -> [i64; 3] {
    let rails = field.rails();
    [
        rails.usage("k8s_api_proxy_request") + rails.usage("k8s_api_proxy_request_count"),
        rails.usage("k8s_api_proxy_requests_via_ci_access"),
        rails.usage("k8s_api_proxy_requests_via_pat_access"),
    ]
}

async fn counts(field: &GitLabField, wanted: [i64; 3]) {
    until("Rails has counted", async || (counted(field) == wanted).then_some(())).await;
}

#[tokio::test]
async fn usage_reaches_rails_once_and_what_it_did_not_take_comes_again() {
    let field = GitLabField::with(Setup { usage_reporting_period: "0.3s", ..Setup::default() }).await;
    let pat = format!("Bearer pat:{AGENT}:{}", field.tokens.pat);
    let before = counted(&field);
    assert_eq!(before, [0, 0, 0], "nobody has asked for anything");
    for (authorization, times) in [(field.bearer(), 3), (pat.clone(), 2)] {
        for _ in 0..times {
            assert_eq!(status_of(&field, &authorization).await, 200);
        }
    }
    // One that was not let in does not count.
    assert_eq!(status_of(&field, &ci("glcbt-wrong-0123456789")).await, 401);
    counts(&field, [5, 3, 2]).await;
    let told = field.rails().requests().into_iter().filter(|seen| seen.endpoint == Endpoint::UsageMetrics);
    let unique: Vec<Value> = told.filter_map(|seen| seen.body?.get("unique_counters").cloned()).collect();
    let users = "k8s_api_proxy_requests_unique_users_via_ci_access";
    assert!(unique.iter().any(|sets| sets[users] == json!([42])), "{unique:?}");

    let down = Faults { status: Some(StatusCode::BAD_GATEWAY), ..Faults::default() };
    field.rails().set_faults(Endpoint::UsageMetrics, down);
    let calls = field.rails().calls(Endpoint::UsageMetrics);
    assert_eq!(status_of(&field, &field.bearer()).await, 200);
    until("Rails has refused it", async || {
        (field.rails().calls(Endpoint::UsageMetrics) > calls).then_some(())
    })
    .await;
    assert_eq!(status_of(&field, &pat).await, 200);
    field.rails().set_faults(Endpoint::UsageMetrics, Faults::default());
    counts(&field, [7, 4, 3]).await;
}

#[tokio::test]
async fn usage_that_was_not_reported_yet_is_reported_at_the_end() {
    let mut field = GitLabField::with(Setup { usage_reporting_period: "3600s", ..Setup::default() }).await;
    for _ in 0..3 {
        assert_eq!(status_of(&field, &field.bearer()).await, 200);
    }
    assert_eq!(counted(&field), [0, 0, 0]);
    field.broker.signal("TERM").await;
    assert!(field.broker.ended().await.success(), "{}", field.broker.text());
    assert_eq!(counted(&field), [3, 3, 0]);
    assert_eq!(field.rails().calls(Endpoint::UsageMetrics), 1);
}
