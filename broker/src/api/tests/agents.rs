//! `GET /api/v1/agents` as an operator sees it, and what Rails sees of a fleet.

use super::*;
use crate::{
    agent_tracker::Wanted as Of,
    fleet::{
        PeerUrl,
        roster::{Answer, LIST_MAX},
    },
};
use postern_wire::proto::postern::fleet::ConnectedRequest;

/// Another broker that answers, and one that never does.
struct Two(Tracker, Option<LastSeen>);

impl Fleet for Two {
    fn own(&self) -> PeerUrl {
        "grpc://kas-0:8155".parse().unwrap()
    }

    fn peers(&self) -> Vec<PeerUrl> {
        ["grpc://kas-1:8155", "grpc://kas-2:8155"].map(|url| url.parse().unwrap()).into()
    }

    fn last_seen(&self, _: AgentId) -> BoxFuture<'_, Option<LastSeen>> {
        Box::pin(async { self.1.clone() })
    }

    fn ask(&self, peer: &PeerUrl, _: ConnectedRequest) -> BoxFuture<'static, Result<Answer, Status>> {
        let (connected, truncated) = self.0.list(&Of::All, LIST_MAX);
        let silent = peer.to_string().contains("kas-2");
        Box::pin(async move {
            if silent {
                std::future::pending::<()>().await;
            }
            Ok(Answer { connected, truncated })
        })
    }
}

async fn get(field: &Field, query: &str) -> (String, String) {
    let text = format!(
        "GET /api/v1/agents{query} HTTP/1.0\r\nHost: kas\r\nAuthorization: Bearer {}\r\n\r\n",
        good()
    );
    let answer = field.http1(&text).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn list(field: &Field, query: &str) -> Value {
    let (head, body) = get(field, query).await;
    assert!(head.starts_with("HTTP/1.0 200") && head.contains("content-type: application/json"), "{head}");
    serde_json::from_str(&body).unwrap()
}

fn meta() -> AgentMeta {
    AgentMeta {
        version: "v17.1.2".to_owned(),
        commit_id: "abc1234".to_owned(),
        pod_namespace: "gitlab-agent".to_owned(),
        pod_name: "agent-0".to_owned(),
        ..AgentMeta::default()
    }
}

#[tokio::test]
async fn a_broker_alone_lists_its_own_and_remembers_who_is_gone() {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_767_323_045_678);
    let refusal = Some("the token is revoked".to_owned());
    let seen = LastSeen { at, from: "192.0.2.9".to_owned(), broker: String::new(), refusal };
    let field = Field::start(With { remembers: Some(seen), ..With::default() }).await;
    field.tracker.registered(who(7, 3), meta(), 9_007_199_254_740_993);
    field.tracker.registered(who(8, 4), AgentMeta::default(), 1);
    let mut found = list(&field, "?agent_id=7").await;
    let since = found["items"][0]["connected_at"].take();
    assert!(since.as_str().unwrap().ends_with('Z'), "{since}");
    let item = json!({
        "agent_id": 7, "project_id": 3, "name": "prod", "version": "v17.1.2", "commit": "abc1234",
        "pod_namespace": "gitlab-agent", "pod_name": "agent-0", "kind": "registered",
        "connection_id": "9007199254740993", "connected_at": null, "address": "192.0.2.1:5000", "broker": null,
    });
    assert_eq!(found, json!({"items": [item], "missing_brokers": [], "truncated": false}));
    assert_eq!(list(&field, "").await["items"].as_array().unwrap().len(), 2);
    assert_eq!(list(&field, "?project_id=4").await["items"][0]["agent_id"], 8);

    let seen = json!({
        "at": "2026-01-02T03:04:05.678Z", "from": "192.0.2.9", "broker": "", "refusal": "the token is revoked",
    });
    let found = list(&field, "?agent_id=9").await;
    assert_eq!(found, json!({"items": [], "missing_brokers": [], "truncated": false, "last_seen": seen}));
    let found = list(&field, "?agent_id=7&agent_id=9&gone=true").await;
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    assert_eq!(found["gone"], json!([{"agent_id": 9, "last_seen": seen}]));
    assert!(found.get("last_seen").is_none());
}

#[tokio::test]
async fn whoever_asks_one_broker_hears_of_all_and_of_those_that_are_silent() {
    let other = Tracker::default();
    other.registered(who(8, 4), meta(), 1);
    let field = Field::start(With { fleet: Some(Arc::new(Two(other, None))), ..With::default() }).await;
    field.tracker.registered(who(7, 3), meta(), 2);
    let found = list(&field, "").await;
    let brokers: Vec<_> = found["items"].as_array().unwrap().iter().map(|item| &item["broker"]).collect();
    assert_eq!(brokers, ["grpc://kas-0:8155", "grpc://kas-1:8155"]);
    assert_eq!(found["missing_brokers"], json!(["grpc://kas-2:8155"]));
    let found = list(&field, "?agent_id=99").await;
    assert_eq!(found["last_seen"], Value::Null, "nobody remembers it");
    assert!(found.as_object().unwrap().contains_key("last_seen"));

    // Rails gets the same, without the brokers, before it gives up.
    let mut request = call(GetConnectedAgentsByAgentIDsRequest { agent_ids: vec![7, 8] });
    request.set_timeout(Duration::from_secs(60));
    let mut client = AgentTrackerClient::new(field.channel());
    let agents = client.get_connected_agents_by_agent_i_ds(request).await.unwrap().into_inner().agents;
    assert_eq!(agents.iter().map(|info| info.agent_id).collect::<Vec<_>>(), [7, 8]);
}

#[tokio::test]
async fn what_cannot_be_answered_says_why_and_strangers_are_told_nothing() {
    let field = Field::start(With::default()).await;
    let (head, body) = get(&field, "?agent_id=seven").await;
    assert!(
        head.starts_with("HTTP/1.0 400") && body == "agent_id and project_id are whole numbers\n",
        "{body}"
    );
    let post = format!(
        "POST /api/v1/agents HTTP/1.0\r\nAuthorization: Bearer {}\r\nContent-Length: 0\r\n\r\n",
        good()
    );
    let answer = field.http1(&post).await;
    assert!(answer.starts_with("HTTP/1.0 405") && answer.contains("allow: GET"), "{answer}");
    let answer = field.http1("GET /api/v1/agents HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 401"), "{answer}");
}
