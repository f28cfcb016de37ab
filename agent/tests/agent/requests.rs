use crate::{
    fake_api::BOTH_WAYS,
    fake_api::FakeApi,
    fake_broker::{FakeBroker, MAKE_REQUEST, Tunnel, Via, data, head, impersonating, trailer, upgrade_data},
    harness::{Running, Still, TOKEN, soon, start, try_start},
};
use postern_wire::proto::gitlab::agent::{
    grpctool::http_response,
    kubernetes_api::rpc::{ExtraKeyVal, ImpersonationConfig},
};
use tonic::{Code, Status};

struct Field {
    broker: FakeBroker,
    api: FakeApi,
    _agent: Running,
}

async fn field() -> Field {
    field_with(&[]).await
}

async fn field_with(flags: &[&str]) -> Field {
    let broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, flags).await;
    Field { broker, api, _agent: agent }
}

async fn hear_data(tunnel: &mut Tunnel) -> Vec<u8> {
    match tunnel.hear().await {
        Ok(http_response::Message::Data(data)) => data.data.to_vec(),
        Ok(http_response::Message::UpgradeData(data)) => data.data.to_vec(),
        other => panic!("{other:?} instead of data"),
    }
}

#[tokio::test]
async fn a_get_reaches_the_api_and_its_answer_comes_back() {
    let mut field = field().await;
    let headers = [
        ("Accept", "*/*"),
        ("User-Agent", "kubectl/v1.34"),
        ("Authorization", "Bearer header-secret"),
        ("Cookie", "header-secret"),
        ("Connection", "keep-alive"),
        ("Via", "1.1 edge"),
    ];
    let target = "/api/v1/name spaces/a%b?labelSelector=query-secret x";
    let mut tunnel = field.broker.tunnel().await;
    let answer = tunnel.ask(vec![head("GET", target, &headers, Some(0)), trailer()]).await.unwrap();
    assert_eq!((answer.head.status_code, answer.head.status.as_str()), (200, "200 OK"));
    assert_eq!(answer.header("Content-Type"), Some("application/json"));
    assert!(answer.header("Via").unwrap().starts_with("1.1 gitlab-agent/v"), "{:?}", answer.header("Via"));
    assert_eq!(answer.body, br#"{"path":"/api/v1/name%20spaces/a%25b","body":0}"#);

    let seen = field.api.head().await;
    assert_eq!(
        seen.uri.path_and_query().unwrap(),
        "/api/v1/name%20spaces/a%25b?labelSelector=query-secret+x"
    );
    assert_eq!(seen.headers["user-agent"], "kubectl/v1.34");
    assert_eq!(seen.headers["host"], field.api.url().trim_start_matches("http://"));
    let via: Vec<_> = seen.headers.get_all("via").iter().map(|value| value.to_str().unwrap()).collect();
    assert!(via[0] == "1.1 edge" && via[1].starts_with("gRPC/1.0 gitlab-agent/v"), "{via:?}");
    for absent in ["authorization", "cookie", "transfer-encoding", "content-length"] {
        assert!(!seen.headers.contains_key(absent), "{absent}");
    }
}

#[tokio::test]
async fn a_body_streams_both_ways_at_once() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call(MAKE_REQUEST).await;
    tunnel.say(head("POST", "/echo", &[], Some(-1))).await;
    for round in 0..20_u8 {
        let piece = vec![round; 1000];
        tunnel.say(data(&piece)).await;
        if round == 0 {
            assert_eq!(tunnel.hear_head().await.status_code, 200);
        }
        assert_eq!(hear_data(&mut tunnel).await, piece);
    }
    tunnel.say(trailer()).await;
    tunnel.close_send().await;
    assert!(tunnel.hear_all().await.unwrap().body.is_empty());
    assert_eq!(field.api.head().await.headers["transfer-encoding"], "chunked");
}

#[tokio::test]
async fn two_megabytes_come_back_as_they_went() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    let body: Vec<u8> = (0..2 * 1024 * 1024_u32).map(|at| (at % 251) as u8).collect();
    let mut messages = vec![head("PUT", "/echo", &[], Some(body.len() as i64))];
    messages.extend(body.chunks(32 * 1024).map(data));
    messages.push(trailer());
    tunnel.call(MAKE_REQUEST).await;
    let mut heard = Vec::new();
    let mut messages = messages.into_iter();
    // Sends and hears in turn: neither side may buffer two megabytes.
    while let Some(message) = messages.next() {
        tunnel.say(message).await;
        if messages.len() < 60 {
            match tunnel.hear().await {
                Ok(http_response::Message::Data(data)) => heard.extend_from_slice(&data.data),
                Ok(_) => {}
                Err(end) => panic!("{end:?}"),
            }
        }
    }
    tunnel.close_send().await;
    heard.extend(tunnel.hear_all().await.unwrap().body);
    assert!(heard == body, "{} bytes came back", heard.len());
    let seen = field.api.head().await;
    assert_eq!(seen.headers["content-length"], body.len().to_string().as_str());
    assert!(!seen.headers.contains_key("transfer-encoding"));
}

#[tokio::test]
async fn an_old_broker_does_not_say_whether_a_body_follows() {
    let mut field = field().await;
    // The body's first piece would be missed if it came a moment too late.
    let _still = Still::begin();
    let mut tunnel = field.broker.tunnel().await;
    tunnel.ask(vec![head("DELETE", "/x", &[], None), trailer()]).await.unwrap();
    assert!(!field.api.head().await.headers.contains_key("transfer-encoding"));
    let mut tunnel = field.broker.tunnel().await;
    let answer = tunnel.ask(vec![head("POST", "/x", &[], None), data(b"abc"), trailer()]).await.unwrap();
    assert_eq!(answer.body, br#"{"path":"/x","body":3}"#);
    assert_eq!(field.api.head().await.headers["transfer-encoding"], "chunked");
}

#[tokio::test]
async fn a_watch_ends_at_the_api_when_its_tunnel_ends() {
    for politely in [true, false] {
        let mut field = field().await;
        let mut watchers = field.api.watchers();
        let mut tunnel = field.broker.tunnel().await;
        tunnel.call(MAKE_REQUEST).await;
        tunnel.say(head("GET", "/watch", &[], Some(0))).await;
        tunnel.say(trailer()).await;
        assert_eq!(tunnel.hear_head().await.status_code, 200);
        assert_eq!(hear_data(&mut tunnel).await, b"{\"type\":\"ADDED\"}\n");
        assert_eq!(*watchers.borrow(), 1);
        match politely {
            true => tunnel.end(),
            false => tunnel.fail(Status::unavailable("the client went away")).await,
        }
        soon("the end of the watch", watchers.wait_for(|open| *open == 0)).await.unwrap();
    }
}

#[tokio::test]
async fn a_request_that_its_caller_abandons_does_not_look_whole() {
    let mut field = field().await;
    let mut read = field.api.pieces_read();
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call(MAKE_REQUEST).await;
    tunnel.say(head("POST", "/slow", &[], Some(-1))).await;
    tunnel.say(data(b"half of a manifest")).await;
    soon("the first piece", read.wait_for(|count| *count == 1)).await.unwrap();
    // The API reads no more: pieces wait in the tunnel, and the end of the tunnel must still be noticed.
    for _ in 0..4 {
        tunnel.say(data(&[b'x'; 32 * 1024])).await;
    }
    tunnel.fail(Status::cancelled("gone")).await;
    let mut next = field.broker.tunnel().await;
    assert!(next.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await.is_ok());
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_and_its_end() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call(MAKE_REQUEST).await;
    let headers = [
        ("Upgrade", "SPDY/3.1"),
        ("Connection", "Upgrade"),
        ("X-Stream-Protocol-Version", "v4.channel.k8s.io"),
    ];
    tunnel.say(head("POST", "/exec?command=query-secret", &headers, Some(0))).await;
    tunnel.say(trailer()).await;
    let switching = tunnel.hear_head().await;
    assert_eq!(switching.status_code, 101);
    assert_eq!(switching.header["Upgrade"].value, ["SPDY/3.1"]);
    assert!(matches!(tunnel.hear().await, Ok(http_response::Message::Trailer(_))));
    assert_eq!(hear_data(&mut tunnel).await, b"echo:");
    for _ in 0..50 {
        tunnel.say(upgrade_data(b"body-secret")).await;
        assert_eq!(hear_data(&mut tunnel).await, b"body-secret");
    }
    tunnel.close_send().await;
    assert_eq!(tunnel.hear_all().await.unwrap().body, b"bye");
    let seen = field.api.head().await;
    assert_eq!(seen.headers["connection"], "upgrade");
    assert_eq!(seen.headers["upgrade"], "SPDY/3.1");
    assert_eq!(seen.headers["x-stream-protocol-version"], "v4.channel.k8s.io");
}

#[tokio::test]
async fn a_caller_that_writes_before_it_reads_does_not_stop_itself() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call(MAKE_REQUEST).await;
    let headers = [("Upgrade", "SPDY/3.1"), ("Connection", "Upgrade")];
    tunnel.say(head("POST", "/both-ways", &headers, Some(0))).await;
    tunnel.say(trailer()).await;
    assert_eq!(tunnel.hear_head().await.status_code, 101);
    let piece = vec![b'c'; 32 * 1024];
    let writing = async {
        for _ in 0..BOTH_WAYS / piece.len() {
            tunnel.say(upgrade_data(&piece)).await;
        }
    };
    // Eight megabytes, with a line of the log for each frame.
    tokio::time::timeout(std::time::Duration::from_secs(120), writing).await.expect("all of it is taken");
    assert_eq!(tunnel.hear_all().await.unwrap().body.len(), BOTH_WAYS);
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_complete() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call(MAKE_REQUEST).await;
    tunnel.say(head("POST", "/early", &[], Some(-1))).await;
    tunnel.say(data(b"a")).await;
    assert_eq!(tunnel.hear_all().await.unwrap().head.status_code, 403);
}

#[tokio::test]
async fn redirects_of_the_api_are_the_callers_business() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    let answer = tunnel.ask(vec![head("GET", "/redirect", &[], Some(0)), trailer()]).await.unwrap();
    assert_eq!(answer.head.status_code, 302);
    assert_eq!(answer.header("Location"), Some("/elsewhere"));
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call("/gitlab.agent.unknown.rpc.Unknown/Do").await;
    let (code, message) = tunnel.hear_all().await.unwrap_err();
    assert_eq!(code, Code::Unimplemented as i32);
    assert!(message.contains("/gitlab.agent.unknown.rpc.Unknown/Do"), "{message}");
}

#[tokio::test]
async fn an_api_that_is_not_there_is_unavailable_with_the_cause() {
    let mut field = field_with(&["--server=http://127.0.0.1:1"]).await;
    let mut tunnel = field.broker.tunnel().await;
    let (code, message) =
        tunnel.ask(vec![head("GET", "/x?a=query-secret", &[], Some(0)), trailer()]).await.unwrap_err();
    assert_eq!(code, Code::Unavailable as i32);
    assert!(message.starts_with("gRPC -> HTTP: ") && message.contains("refused"), "{message}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_after_what_came() {
    let mut field = field().await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel.call(MAKE_REQUEST).await;
    tunnel.say(head("GET", "/cut", &[], Some(0))).await;
    tunnel.say(trailer()).await;
    tunnel.close_send().await;
    tunnel.hear_head().await;
    let (code, message) = tunnel.hear_all().await.unwrap_err();
    assert_eq!(code, Code::Unavailable as i32);
    assert!(message.starts_with("gRPC -> HTTP: "), "{message}");
}

#[tokio::test]
async fn messages_out_of_order_end_the_request() {
    let mut field = field().await;
    let table = [
        (vec![trailer()], Code::InvalidArgument),
        (vec![head("GET", "/x", &[], Some(0)), data(b"unexpected")], Code::Internal),
        (vec![head("POST", "/slow", &[], Some(-1)), upgrade_data(b"x")], Code::InvalidArgument),
        (vec![head("GET", "x", &[], Some(0))], Code::InvalidArgument),
        (vec![head("G ET", "/x", &[], Some(0))], Code::InvalidArgument),
    ];
    for (messages, wanted) in table {
        let mut tunnel = field.broker.tunnel().await;
        tunnel.call(MAKE_REQUEST).await;
        for message in messages {
            tunnel.say(message).await;
        }
        let (code, message) = tunnel.hear_all().await.unwrap_err();
        assert_eq!(code, wanted as i32, "{message}");
        tunnel.end();
    }
}

#[tokio::test]
async fn a_request_runs_as_whom_the_broker_names() {
    let mut field = field().await;
    let extra = |key: &str, val: &[&str]| ExtraKeyVal {
        key: key.to_owned(),
        val: val.iter().map(|val| (*val).to_owned()).collect(),
    };
    let extra = vec![extra("agent.gitlab.com/id", &["5"]), extra("scopes", &["a b", "c"])];
    let anna = ImpersonationConfig {
        username: "gitlab:user:anna".into(),
        groups: vec!["gitlab:user".into()],
        extra,
        ..Default::default()
    };
    let impersonating = |headers| impersonating(head("GET", "/x", headers, Some(0)), anna.clone());
    let mut tunnel = field.broker.tunnel().await;
    tunnel.ask(vec![impersonating(&[]), trailer()]).await.unwrap();
    let seen = field.api.head().await.headers;
    assert_eq!(seen["impersonate-user"], "gitlab:user:anna");
    assert_eq!(seen["impersonate-group"], "gitlab:user");
    assert_eq!(seen["impersonate-extra-agent.gitlab.com%2fid"], "5");
    assert_eq!(seen.get_all("impersonate-extra-scopes").iter().collect::<Vec<_>>(), ["a b", "c"]);

    let mut tunnel = field.broker.tunnel().await;
    let refused =
        tunnel.ask(vec![impersonating(&[("Impersonate-User", "root")]), trailer()]).await.unwrap_err();
    assert!(refused.1.contains("nested impersonation is not supported"), "{refused:?}");
}

#[tokio::test]
async fn flags_decide_who_the_agent_is_to_the_api() {
    let mut field =
        field_with(&["--token=api-token", "--as=bot", "--as-group=a", "--as-group=b", "--as-uid=7"]).await;
    let mut tunnel = field.broker.tunnel().await;
    tunnel
        .ask(vec![head("GET", "/x", &[("Authorization", "Bearer header-secret")], Some(0)), trailer()])
        .await
        .unwrap();
    let seen = field.api.head().await;
    assert_eq!(seen.headers["authorization"], "Bearer api-token");
    assert_eq!(seen.headers["impersonate-user"], "bot");
    assert_eq!(seen.headers.get_all("impersonate-group").iter().count(), 2);
    assert_eq!(seen.headers["impersonate-uid"], "7");
}

#[tokio::test]
async fn a_request_timeout_ends_the_request_and_says_so() {
    let mut field = field_with(&["--request-timeout=50ms"]).await;
    let mut tunnel = field.broker.tunnel().await;
    let asked = tunnel.ask(vec![head("GET", "/watch", &[], Some(0)), trailer()]).await;
    let (code, message) = asked.unwrap_err();
    assert_eq!(code, Code::DeadlineExceeded as i32, "{message}");
    assert!(message.contains("--request-timeout"), "{message}");
}

#[tokio::test]
async fn a_kubeconfig_brings_a_credential_plugin_and_a_base_path() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let mut api = FakeApi::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kubeconfig");
    let plugin = r#"{apiVersion: client.authentication.k8s.io/v1, command: sh, interactiveMode: Never, args: ["-c", "SCRIPT"]}"#;
    let write = |script: &str| {
        let plugin = plugin.replace("SCRIPT", script);
        let text = format!(
            "current-context: x\ncontexts: [{{name: x, context: {{cluster: c, user: u}}}}]\n\
             clusters: [{{name: c, cluster: {{server: \"{}/clusters/a\"}}}}]\nusers: [{{name: u, user: {{exec: {plugin}}}}}]\n",
            api.url()
        );
        std::fs::write(&file, text).unwrap();
    };
    let address = format!("grpc://{}", broker.at);
    let server = format!("--server={}/clusters/a", api.url());
    let flags = [format!("--kubeconfig={}", file.display()), server];
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    let env = [("AGENTK_TOKEN", TOKEN)];

    write("echo query-secret; echo body-secret >&2; exit 3");
    let failed = try_start(&address, &api, &flags, &env).await.err().unwrap();
    let text = postern_agent::error::chain(&*failed);
    assert!(text.contains("credential plugin") && text.contains('3') && !text.contains("secret"), "{text}");

    let credential = r#"{\\\"apiVersion\\\":\\\"client.authentication.k8s.io/v1\\\",\\\"kind\\\":\\\"ExecCredential\\\",\\\"status\\\":{\\\"token\\\":\\\"plugin-token\\\"}}"#;
    write(&format!("echo {credential}"));
    let _agent = try_start(&address, &api, &flags, &env).await.unwrap();
    let mut tunnel = broker.tunnel().await;
    tunnel.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await.unwrap();
    let seen = api.head().await;
    assert_eq!(seen.headers["authorization"], "Bearer plugin-token");
    assert_eq!(seen.uri.path(), "/clusters/a/x");
}
