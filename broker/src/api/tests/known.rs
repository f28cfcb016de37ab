//! What agents told, as operators and Rails read it.

use super::*;
use crate::agent_reports::{
    board::Board,
    tests::{Fleet as Brokers, peer, whole},
    views::{Push, Views},
};
use postern_wire::proto::postern::agent::ViewUpdate;

fn alone() -> (Views, With) {
    let views = Views::default();
    let known = Known::new(Board::default(), views.clone());
    (views, With { known, ..With::default() })
}

fn request(path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.0\r\nHost: kas\r\nAuthorization: Bearer {}\r\n{more}\r\n", good())
}

async fn get(field: &Field, path: &str) -> (String, String) {
    let answer = field.http1(&request(path, "")).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

async fn document(field: &Field, path: &str) -> Value {
    let (head, body) = get(field, path).await;
    assert!(
        head.starts_with("HTTP/1.0 200") && head.contains("content-type: application/json"),
        "{head} {body}"
    );
    serde_json::from_str(&body).unwrap()
}

fn push(views: &Views, agent: i64, update: ViewUpdate) -> Push {
    let mut push = views.begin(AgentId(agent));
    push.apply(update).unwrap();
    push
}

/// A reader of events.
struct Reader(TcpStream, String);

impl Reader {
    async fn of(field: &Field, path: &str) -> Self {
        let mut io = TcpStream::connect(field.address).await.unwrap();
        io.write_all(request(path, "Accept: text/event-stream\r\n").as_bytes()).await.unwrap();
        let mut reader = Self(io, String::new());
        let head = reader.until("\r\n\r\n").await;
        assert!(head.contains("200 OK") && head.contains("content-type: text/event-stream"), "{head}");
        reader
    }

    async fn until(&mut self, end: &str) -> String {
        loop {
            if let Some(at) = self.1.find(end) {
                let rest = self.1.split_off(at + end.len());
                return std::mem::replace(&mut self.1, rest);
            }
            let mut buffer = [0; 4096];
            let read = timeout(SOON, self.0.read(&mut buffer)).await.expect("it comes soon").unwrap();
            assert_ne!(read, 0, "the connection ended after {:?}", self.1);
            self.1.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
    }

    async fn event(&mut self) -> (String, Value) {
        let text = self.until("\n\n").await;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        (field("event: ").to_owned(), serde_json::from_str(field("data: ")).expect("data is JSON"))
    }
}

#[tokio::test]
async fn a_view_is_one_document_and_the_list_says_which_there_are() {
    let (views, with) = alone();
    let field = Field::start(with).await;
    let stream = push(&views, 7, whole("nodes", &[("b\"", r#"{"ready": true}"#), ("a", "{}")]));
    let mut found = document(&field, "/api/v1/agents/7/views/nodes").await;
    for key in ["epoch", "revision", "heard_at"] {
        assert!(!found[key].take().is_null(), "{key}");
    }
    let wanted = json!({
        "agent_id": 7, "view": "nodes", "epoch": null, "revision": null, "stale": false, "truncated": false,
        "heard_at": null, "broker": null, "entries": {"a": {}, "b\"": {"ready": true}},
    });
    assert_eq!(found, wanted);
    let mut found = document(&field, "/api/v1/agents/7/views").await;
    found["items"][0]["heard_at"].take();
    let item = json!({
        "view": "nodes", "entries": 2, "stale": false, "truncated": false, "heard_at": null, "broker": null,
    });
    assert_eq!(found, json!({"agent_id": 7, "items": [item], "missing_brokers": []}));
    drop(stream);
    assert_eq!(document(&field, "/api/v1/agents/7/views/nodes").await["stale"], true);

    for (path, status, words) in [
        ("/api/v1/agents/8/views/nodes", "404", "does its configuration say views: {nodes: true}?"),
        ("/api/v1/agents/7/views/pods", "404", "there are the views nodes,"),
        ("/api/v1/agents/x/views/nodes", "400", "whole number"),
        ("/api/v1/agents/x/gitops", "400", "whole number"),
    ] {
        let (head, body) = get(&field, path).await;
        assert!(head.starts_with(&format!("HTTP/1.0 {status}")) && body.contains(words), "{head} {body}");
    }
    let answer = field.http1("GET /api/v1/agents/7/views/nodes HTTP/1.0\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.0 401"), "{answer}");
    let post = format!("POST /api/v1/agents/7/views HTTP/1.0\r\nAuthorization: Bearer {}\r\n\r\n", good());
    let answer = field.http1(&post).await;
    assert!(answer.starts_with("HTTP/1.0 405") && answer.contains("allow: GET"), "{answer}");
}

#[tokio::test]
async fn a_reader_of_events_sees_the_whole_what_changes_and_the_end() {
    let (views, with) = alone();
    let field = Field::start(with).await;
    let mut stream = push(&views, 7, whole("nodes", &[("a", "{}")]));
    let mut reader = Reader::of(&field, "/api/v1/agents/7/views/nodes").await;
    let (event, data) = reader.event().await;
    assert_eq!((event.as_str(), &data["entries"]), ("whole", &json!({"a": {}})));
    assert_eq!((&data["more"], &data["stale"]), (&false.into(), &false.into()));
    stream
        .apply(ViewUpdate { whole: false, gone: vec!["a".to_owned()], ..whole("nodes", &[("b", "{}")]) })
        .unwrap();
    let (event, changed) = reader.event().await;
    assert_eq!(
        (event.as_str(), &changed["gone"], &changed["entries"]),
        ("changed", &json!(["a"]), &json!({"b": {}}))
    );
    assert_eq!(changed["epoch"], data["epoch"]);
    assert!(changed["revision"].as_u64() > data["revision"].as_u64());
    stream.apply(ViewUpdate { ended: true, ..whole("nodes", &[]) }).unwrap();
    let (event, data) = reader.event().await;
    assert_eq!((event.as_str(), data), ("ended", json!({"agent_id": 7, "view": "nodes", "ended": true})));
    let mut rest = String::new();
    timeout(SOON, reader.0.read_to_string(&mut rest)).await.expect("the stream ends").unwrap();
}

#[tokio::test]
async fn readers_end_when_the_broker_does() {
    let (views, with) = alone();
    let field = Field::start(with).await;
    let _stream = push(&views, 7, whole("nodes", &[]));
    let mut reader = Reader::of(&field, "/api/v1/agents/7/views/nodes").await;
    reader.event().await;
    field.stop.cancel();
    let mut rest = String::new();
    timeout(SOON, reader.0.read_to_string(&mut rest)).await.expect("the stream ends").unwrap();
    field.tasks.close();
    timeout(SOON, field.tasks.wait()).await.expect("and nothing is left of it");
}

#[tokio::test]
async fn a_reader_stays_with_an_agent_that_moves_to_another_broker() {
    let brokers = Brokers::start(3, 1).await;
    let _stop = brokers.stop.clone().drop_guard();
    let field = Field::start(With { known: brokers.known[0].clone(), ..With::default() }).await;
    let stream = push(&brokers.views[1], 7, whole("nodes", &[("a", "{}")]));
    let found = document(&field, "/api/v1/agents/7/views/nodes").await;
    assert_eq!((&found["broker"], &found["entries"]), (&json!(peer(1).to_string()), &json!({"a": {}})));
    let mut reader = Reader::of(&field, "/api/v1/agents/7/views/nodes").await;
    assert_eq!(reader.event().await.1["broker"], json!(peer(1).to_string()));
    let _there = push(&brokers.views[2], 7, whole("nodes", &[("a", "{}"), ("b", "{}")]));
    drop(stream);
    assert_eq!(reader.event().await.1["stale"], true);
    let (event, data) = reader.event().await;
    assert_eq!((event.as_str(), &data["broker"]), ("whole", &json!(peer(2).to_string())));
    assert_eq!((&data["stale"], data["entries"].as_object().unwrap().len()), (&false.into(), 2));
    let (head, body) = get(&field, "/api/v1/agents/8/views/nodes").await;
    assert!(head.starts_with("HTTP/1.0 503") && body.contains(&peer(3).to_string()), "{head} {body}");
}

#[tokio::test]
async fn what_became_of_manifests_is_one_document() {
    let brokers = Brokers::start(2, 1).await;
    let _stop = brokers.stop.clone().drop_guard();
    let field = Field::start(With { known: brokers.known[0].clone(), ..With::default() }).await;
    let empty = document(&field, "/api/v1/agents/7/gitops").await;
    let missing = json!([peer(2).to_string()]);
    assert_eq!(
        empty,
        json!({"agent_id": 7, "configuration": null, "projects": [], "missing_brokers": missing})
    );
    crate::agent_reports::tests::reported(&brokers.boards[1], AgentId(7));
    let found = document(&field, "/api/v1/agents/7/gitops").await;
    assert_eq!(found["configuration"]["commit_id"], "c1");
    assert_eq!(
        (&found["projects"][0]["project"], &found["projects"][0]["state"]),
        (&json!("group/p"), &json!("degraded"))
    );
    assert_eq!(found["projects"][0]["broker"], json!(peer(1).to_string()));
    assert!(found["projects"][0]["reported_at"].as_str().unwrap().ends_with('Z'));
}
