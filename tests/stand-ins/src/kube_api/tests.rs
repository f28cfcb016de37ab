//! The stand-in as its clients meet it: over a socket, with hyper's client. What `kubectl` needs beyond this is tried
//! by hand with the example `kube-api`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{KubeApi, Options, Tls};

const SOON: Duration = Duration::from_secs(10);
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

struct Client(SendRequest<Full<Bytes>>);

impl Client {
    async fn connect(address: SocketAddr) -> Client {
        let stream = TcpStream::connect(address).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        Client(sender)
    }

    async fn send(
        &mut self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Response<Incoming> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::new(Bytes::from(body.to_owned()))).unwrap();
        timeout(SOON, async {
            self.0.ready().await.unwrap();
            self.0.send_request(request).await.unwrap()
        })
        .await
        .unwrap()
    }

    async fn json(&mut self, method: Method, path: &str, body: Value) -> (StatusCode, Value) {
        let kind = [("content-type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        read(self.send(method, path, &kind, &body).await).await
    }

    async fn get(&mut self, path: &str) -> (StatusCode, Value) {
        self.json(Method::GET, path, Value::Null).await
    }
}

async fn read(response: Response<Incoming>) -> (StatusCode, Value) {
    let status = response.status();
    let body = timeout(SOON, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap())
}

/// Lines of a streamed body, one by one.
struct Lines(Incoming, Vec<u8>);

impl Lines {
    fn of(response: Response<Incoming>) -> Lines {
        assert_eq!(response.status(), 200);
        Lines(response.into_body(), Vec::new())
    }

    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.1.iter().position(|byte| *byte == b'\n') {
                return Some(String::from_utf8(self.1.drain(..=end).collect()).unwrap());
            }
            let frame = timeout(SOON, self.0.frame()).await.unwrap()?;
            self.1.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    async fn event(&mut self) -> (String, String) {
        let event: Value = serde_json::from_str(&self.next().await.unwrap()).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

async fn api() -> KubeApi {
    KubeApi::start(Options::default()).await.unwrap()
}

async fn until(what: impl Fn() -> bool) {
    timeout(SOON, async {
        while !what() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
}

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

#[tokio::test]
async fn discovery_names_every_kind_and_the_first_namespaces_exist() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let (_, core) = client.get("/api/v1").await;
    let (_, apps) = client.get("/apis/apps/v1").await;
    let names = |list: &Value| -> Vec<String> {
        list["resources"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
    };
    assert!(names(&core).contains(&"pods/log".to_owned()));
    assert!(names(&apps).contains(&"deployments".to_owned()));
    let (_, namespaces) = client.get("/api/v1/namespaces").await;
    assert_eq!(namespaces["items"].as_array().unwrap().len(), 3);
    for path in ["/version", "/api", "/apis", "/apis/apps", "/openapi/v2", "/openapi/v3"] {
        assert_eq!(client.get(path).await.0, 200, "{path}");
    }
}

#[tokio::test]
async fn an_object_is_created_read_replaced_and_deleted() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let path = format!("{CONFIG_MAPS}/a");
    let (status, mut object) = client.json(Method::POST, CONFIG_MAPS, config_map("a")).await;
    assert_eq!(status, 201);
    object["data"] = json!({"key": "value"});
    let (status, replaced) = client.json(Method::PUT, &path, object.clone()).await;
    assert_eq!((status, &replaced["data"]["key"]), (StatusCode::OK, &json!("value")));
    let (status, refused) = client.json(Method::PUT, &path, object).await;
    assert_eq!((status, &refused["reason"]), (StatusCode::CONFLICT, &json!("Conflict")));
    let (status, done) = client.json(Method::DELETE, &path, Value::Null).await;
    assert_eq!((status, &done["status"]), (StatusCode::OK, &json!("Success")));
    let (status, gone) = client.get(&path).await;
    assert_eq!((status, &gone["message"]), (StatusCode::NOT_FOUND, &json!("configmaps \"a\" not found")));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_with_a_status() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let post = Method::POST;
    let cases = [
        (post.clone(), CONFIG_MAPS, config_map("Not A Name"), 422),
        (
            post.clone(),
            CONFIG_MAPS,
            json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a"}}),
            400,
        ),
        (post.clone(), CONFIG_MAPS, json!({"kind": "ConfigMap"}), 400),
        (post.clone(), CONFIG_MAPS, json!("text"), 400),
        (post.clone(), "/api/v1/namespaces/nowhere/configmaps", config_map("a"), 404),
        (post.clone(), "/api/v1/configmaps", config_map("a"), 405),
        (Method::GET, "/api/v1/nodes", Value::Null, 404),
        (Method::GET, "/api/v1/pods?labelSelector=a+b", Value::Null, 400),
        (Method::DELETE, "/api/v1/pods", Value::Null, 405),
        (post, "/api/v1/namespaces/default/pods/a/exec", Value::Null, 501),
    ];
    for (method, path, body, code) in cases {
        let (status, document) = client.json(method, path, body).await;
        assert_eq!((status.as_u16(), &document["kind"]), (code, &json!("Status")), "{path}: {document}");
    }
}

#[tokio::test]
async fn patches_follow_their_content_type_and_apply_also_creates() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let path = format!("{CONFIG_MAPS}/a");
    let cases = [
        (
            "application/apply-patch+yaml",
            "kind: ConfigMap\napiVersion: v1\ndata: {a: '1'}",
            201,
            json!({"a": "1"}),
        ),
        ("application/apply-patch+yaml", "data: {b: '2'}", 200, json!({"a": "1", "b": "2"})),
        ("application/merge-patch+json", r#"{"data": {"a": null}}"#, 200, json!({"b": "2"})),
        (
            "application/strategic-merge-patch+json",
            r#"{"data": {"c": "3"}}"#,
            200,
            json!({"b": "2", "c": "3"}),
        ),
        ("application/json-patch+json", r#"[{"op": "remove", "path": "/data/b"}]"#, 200, json!({"c": "3"})),
    ];
    for (kind, patch, code, data) in cases {
        let response = client.send(Method::PATCH, &path, &[("content-type", kind)], patch).await;
        let (status, object) = read(response).await;
        assert_eq!((status.as_u16(), &object["data"]), (code, &data), "{kind}: {object}");
    }
    let response = client.send(Method::PATCH, &path, &[("content-type", "text/plain")], "{}").await;
    assert_eq!(response.status(), 415);
}

#[tokio::test]
async fn a_list_can_be_asked_for_as_a_table() {
    let api = api().await;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0"}, "spec": {"containers": [{"name": "web"}]},
    });
    api.create(pod).unwrap();
    let mut client = Client::connect(api.address()).await;
    let accept = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let (_, table) = read(client.send(Method::GET, "/api/v1/pods?limit=500", &accept, "").await).await;
    assert_eq!(table["kind"], "Table");
    let cells = table["rows"][0]["cells"].as_array().unwrap();
    assert_eq!(cells[..3], [json!("web-0"), json!("1/1"), json!("Running")]);
}

#[tokio::test]
async fn a_watch_sees_what_its_selector_matches_from_its_version_on() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    client.json(Method::POST, CONFIG_MAPS, config_map("before")).await;
    let (_, list) = client.get(CONFIG_MAPS).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut watcher = Client::connect(api.address()).await;
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={version}&labelSelector=seen");
    let mut events = Lines::of(watcher.send(Method::GET, &path, &[], "").await);

    client.json(Method::POST, CONFIG_MAPS, config_map("unseen")).await;
    let mut object = config_map("a");
    object["metadata"]["labels"] = json!({"seen": "yes"});
    client.json(Method::POST, CONFIG_MAPS, object.clone()).await;
    object["data"] = json!({"a": "b"});
    client.json(Method::PUT, &format!("{CONFIG_MAPS}/a"), object.clone()).await;
    object["metadata"]["labels"] = json!({});
    client.json(Method::PUT, &format!("{CONFIG_MAPS}/a"), object).await;
    for want in ["ADDED", "MODIFIED", "DELETED"] {
        assert_eq!(events.event().await, (want.to_owned(), "a".to_owned()));
    }
}

#[tokio::test]
async fn a_watch_without_a_version_begins_with_what_is_there_and_can_end_it_with_a_bookmark() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let path = "/api/v1/namespaces?watch=1&sendInitialEvents=true&allowWatchBookmarks=true";
    let mut events = Lines::of(client.send(Method::GET, path, &[], "").await);
    for name in ["default", "kube-public", "kube-system"] {
        assert_eq!(events.event().await, ("ADDED".to_owned(), name.to_owned()));
    }
    let bookmark: Value = serde_json::from_str(&events.next().await.unwrap()).unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
}

#[tokio::test]
async fn a_watch_ends_at_its_timeout_and_too_old_a_version_is_gone() {
    let api = KubeApi::start(Options { history: 2, ..Options::default() }).await.unwrap();
    let mut client = Client::connect(api.address()).await;
    let mut events =
        Lines::of(client.send(Method::GET, "/api/v1/pods?watch=1&timeoutSeconds=1", &[], "").await);
    assert_eq!(events.next().await, None);
    let mut client = Client::connect(api.address()).await;
    let path = "/api/v1/namespaces?watch=1&resourceVersion=1";
    let mut events = Lines::of(client.send(Method::GET, path, &[], "").await);
    let event: Value = serde_json::from_str(&events.next().await.unwrap()).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_watcher_that_does_not_read_is_ended_and_stops_nobody() {
    let api = KubeApi::start(Options { history: 8, ..Options::default() }).await.unwrap();
    let mut slow = Client::connect(api.address()).await;
    let mut unread = Lines::of(slow.send(Method::GET, &format!("{CONFIG_MAPS}?watch=1"), &[], "").await);
    let mut client = Client::connect(api.address()).await;
    let mut object = config_map("big");
    client.json(Method::POST, CONFIG_MAPS, object.clone()).await;
    // More than any socket buffers hold.
    for round in 0..100 {
        object["data"] = json!({"text": format!("{round}").repeat(500_000 / 2)});
        let (status, _) = client.json(Method::PUT, &format!("{CONFIG_MAPS}/big"), object.clone()).await;
        assert_eq!(status, 200);
    }
    let mut last = String::new();
    while let Some(line) = unread.next().await {
        last = line;
    }
    let event: Value = serde_json::from_str(&last).unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    drop((unread, slow));
    until(|| api.open_of("watch") == 0).await;
}

#[tokio::test]
async fn a_log_is_followed_until_the_pod_is_gone() {
    let options = Options { log_tick: Duration::from_millis(5), ..Options::default() };
    let api = KubeApi::start(options).await.unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "one"}, {"name": "two"}]},
    });
    api.create(pod).unwrap();
    let mut client = Client::connect(api.address()).await;
    let path = "/api/v1/namespaces/default/pods/p";
    let (status, _) = client.get(&format!("{path}/log")).await;
    assert_eq!(status, 400, "which of the two containers?");
    let mut follower = Client::connect(api.address()).await;
    let log = format!("{path}/log?container=two&follow=true&tailLines=1&timestamps=true");
    let mut lines = Lines::of(follower.send(Method::GET, &log, &[], "").await);
    for _ in 0..5 {
        assert!(lines.next().await.unwrap().contains(" of p/two"));
    }
    client.json(Method::DELETE, path, Value::Null).await;
    while lines.next().await.is_some() {}
}

#[tokio::test]
async fn a_request_without_the_token_is_refused_and_the_token_is_never_printed() {
    let api =
        KubeApi::start(Options { token: Some("s3cret".to_owned()), ..Options::default() }).await.unwrap();
    let mut client = Client::connect(api.address()).await;
    for headers in [&[][..], &[("authorization", "Bearer wrong")], &[("authorization", "Basic s3cret")]] {
        let (status, document) = read(client.send(Method::GET, "/api/v1/pods", headers, "").await).await;
        assert_eq!((status, &document["reason"]), (StatusCode::UNAUTHORIZED, &json!("Unauthorized")));
    }
    let right = [("authorization", "Bearer s3cret")];
    assert_eq!(client.send(Method::GET, "/api/v1/pods", &right, "").await.status(), 200);
    assert!(api.kubeconfig().contains("s3cret"));
    let seen = api.requests();
    assert_eq!(seen.len(), 4);
    assert!(!format!("{seen:?}").contains("s3cret"));
}

#[tokio::test]
async fn over_tls_it_shows_its_certificate_and_its_kubeconfig_names_the_ca() {
    let ca = postern_certs::dev::Ca::new();
    let issued = ca.issue(&["localhost", "127.0.0.1"]);
    let tls = Tls { certificate_pem: issued.certificate_pem, key_pem: issued.key_pem, ca_pem: ca.pem() };
    let api = KubeApi::start(Options { tls: Some(tls), ..Options::default() }).await.unwrap();
    assert!(api.kubeconfig().contains("certificate-authority-data"));

    use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(api.address()).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let stream = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    assert_eq!(Client(sender).get("/version").await.0, 200);
}

#[tokio::test]
async fn an_endless_stream_counts_as_open_until_its_client_leaves() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let mut lines = Lines::of(client.send(Method::GET, "/stream-forever?every=1", &[], "").await);
    assert_eq!(lines.next().await.unwrap(), "tick 0\n");
    assert_eq!((api.open_of("stream-forever"), api.open()), (1, 1));
    let mut other = Client::connect(api.address()).await;
    let (_, counters) = other.get("/debug/counters").await;
    assert_eq!(counters["open"]["stream-forever"], 1);
    drop((lines, client));
    until(|| api.open() == 0).await;
}

#[tokio::test]
async fn bodies_are_swallowed_with_a_checksum_and_streamed_in_full_length() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let response = client.send(Method::POST, "/sink", &[], "hello").await;
    let (_, swallowed) = read(response).await;
    assert_eq!(swallowed, json!({"length": 5, "fnv1a": "a430d84680aabd0b"}));
    let response = client.send(Method::GET, "/slow?bytes=100000&chunk=999&every=0", &[], "").await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes().len(), 100_000);
}

#[tokio::test]
async fn an_unread_body_is_given_up_after_the_time_asked_for() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let response = client.send(Method::POST, "/never-reads?seconds=0", &[], "unread").await;
    assert_eq!(response.status(), 408);
    until(|| api.open() == 0).await;
}

#[tokio::test]
async fn an_upgraded_connection_echoes_until_it_is_closed() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let headers = [("connection", "Upgrade"), ("upgrade", "postern-echo")];
    let response = client.send(Method::GET, "/echo", &headers, "").await;
    assert_eq!(
        (response.status(), &response.headers()["upgrade"]),
        (StatusCode::SWITCHING_PROTOCOLS, &"postern-echo".parse().unwrap())
    );
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"hello").await.unwrap();
    let mut answer = [0; 5];
    io.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"hello");
    assert_eq!(api.open_of("echo"), 1);
    io.shutdown().await.unwrap();
    assert_eq!(io.read(&mut answer).await.unwrap(), 0);
    until(|| api.open() == 0).await;
}

#[tokio::test]
async fn junk_bytes_and_oversize_bodies_harm_nobody() {
    let api = api().await;
    let mut junk = TcpStream::connect(api.address()).await.unwrap();
    junk.write_all(b"\x16\x03\x01\xff\xff junk\r\n\r\n").await.unwrap();
    let mut client = Client::connect(api.address()).await;
    let large = config_map("a").to_string() + &" ".repeat(4 << 20);
    let response =
        client.send(Method::POST, CONFIG_MAPS, &[("content-type", "application/json")], &large).await;
    assert_eq!(response.status(), 413);
    assert_eq!(Client::connect(api.address()).await.get("/readyz/").await.0, 404);
    assert_eq!(Client::connect(api.address()).await.get("/version").await.0, 200);
}

#[tokio::test]
async fn dropping_it_ends_its_connections() {
    let api = api().await;
    let mut client = Client::connect(api.address()).await;
    let response = client.send(Method::GET, "/api/v1/pods?watch=1", &[], "").await;
    drop(api);
    let ended = timeout(SOON, response.into_body().collect()).await.unwrap();
    assert!(ended.is_ok_and(|body| body.to_bytes().is_empty()) || client.0.is_closed());
}
