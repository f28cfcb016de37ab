//! Who is let in and what the others are told: agents' tokens, callers' tokens, limits, and which headers reach a
//! cluster. No token is ever in a log.

use crate::harness::{
    AGENT, Field, Options, PATIENCE, Process,
    http::{Client, full, get, probe, status},
    until,
};
use base64::{Engine, prelude::BASE64_STANDARD};
use http_body_util::BodyExt;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{fs, net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

async fn not_ready(probes: SocketAddr) {
    until("the agent is not ready", async || (probe(probes, "/readiness").await == Some(503)).then_some(()))
        .await;
}

/// The one line about the agent's token.
async fn token_refused(agent: &mut Process) -> Value {
    let about =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("token refused by "));
    let line =
        until("the agent says that its token is refused", async || agent.lines().into_iter().find(about))
            .await;
    assert_eq!(agent.lines().iter().filter(|line| about(line)).count(), 1, "{}", agent.text());
    assert!(agent.alive());
    line
}

/// As an orchestrator replaces a secret: in one step.
fn replace(file: &Path, text: &str) {
    let fresh = file.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, file).unwrap();
}

#[tokio::test]
async fn an_agent_with_a_wrong_or_revoked_token_says_so_in_one_line_and_lives() {
    let field = Field::start().await;
    let revoked = "glagent-revoked-0123456789";
    Field::write_identities(field.folder.path(), &[&field.agent_token], &[revoked], &field.caller_token);
    until("the broker has read it", async || {
        field.broker.text().contains("identities reloaded").then_some(())
    })
    .await;
    for scheme in ["wss", "grpc-straight"] {
        for (token, words) in [("glagent-wrong-0123456789", "not known"), (revoked, "revoked")] {
            let options = Options {
                scheme: scheme.into(),
                ready: false,
                agent_token: Some(token.into()),
                ..Options::default()
            };
            let (mut agent, probes) = field.agent_beside(&options).await;
            let line = token_refused(&mut agent).await;
            assert!(line["error"].as_str().unwrap().contains(words), "{line}");
            assert!(line["token_from"].as_str().unwrap().ends_with(".token"), "{line}");
            not_ready(probes).await;
            assert!(!agent.text().contains(token), "the token is in the log");
        }
    }
    // The good one beside them is none the worse for it.
    assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
}

#[tokio::test]
async fn a_running_agent_moves_to_a_new_token_loses_a_revoked_one_and_returns_with_the_next() {
    let mut field = Field::with(Options { agent_wait: "1s", ..Options::default() }).await;
    let here = field.folder.path().to_owned();
    let file = here.join("agent.token");
    let (first, second, third) = (field.agent_token.clone(), "glagent-second-01234", "glagent-third-012345");

    Field::write_identities(&here, &[&first, second], &[], &field.caller_token);
    replace(&file, &format!("{second}\n"));
    field.agent.logged("agent token changed", |_| true).await;
    field.agent.logged("connecting anew with the new token", |_| true).await;
    until("a second connection", async || {
        let connected = |line: &&Value| line["message"] == "connected to the broker";
        (field.agent.lines().iter().filter(connected).count() >= 2).then_some(())
    })
    .await;

    // The first one is of no further importance.
    Field::write_identities(&here, &[second], &[&first], &field.caller_token);
    until("the broker has read it", async || {
        (field.broker.text().matches("identities reloaded").count() >= 2).then_some(())
    })
    .await;
    field.ready().await;
    assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
    assert!(!field.agent.text().contains("token refused"), "{}", field.agent.text());

    // Revoked while tunnels stand and a watch runs.
    let mut watching = Client::new(&field).await;
    let mut watch = watching.send("GET", "/stream-forever", full("")).await;
    assert!(watch.frame().await.unwrap().is_ok());
    Field::write_identities(&here, &[], &[&first, second], &field.caller_token);
    let line = token_refused(&mut field.agent).await;
    assert!(line["error"].as_str().unwrap().contains("revoked"), "{line}");
    let ended =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("tunnel ended: "));
    let line = until("the broker says why", async || field.broker.lines().into_iter().find(ended)).await;
    assert!(line["message"].as_str().unwrap().contains("revoked"), "{line}");
    let cut = timeout(PATIENCE, async { while let Some(Ok(_)) = watch.frame().await {} });
    cut.await.expect("what ran through the agent's tunnels ends, too");
    drop(watching);
    not_ready(field.addresses.agent_probes).await;
    let (status, body) = Client::new(&field).await.get("/version").await;
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!((status, &body["kind"]), (503, &Value::from("Status")), "{body}");
    assert!(body["message"].as_str().unwrap().contains("not connected"), "{body}");
    // A new token needs no restart and no waiting.
    Field::write_identities(&here, &[third], &[&first, second], &field.caller_token);
    replace(&file, third);
    field.ready().await;
    assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
}

#[tokio::test]
async fn a_caller_that_may_not_is_told_why_in_a_status_and_the_cluster_hears_nothing() {
    let field = Field::with(Options { agent_wait: "1s", ..Options::default() }).await;
    let good = field.caller_token.clone();
    let before = field.api().requests().len();
    let path = "/api/v1/pods";
    for authorization in [
        None,
        Some(format!("Bearer postern:{AGENT}:caller-wrong")),
        Some(format!("Bearer postern:{AGENT}:")),
        Some(format!("Bearer postern:seven:{good}")),
        Some(format!("Bearer ci:{AGENT}:{good}")),
        Some(format!("Bearer {good}")),
        Some(format!("Basic {}", BASE64_STANDARD.encode(format!("postern:{good}")))),
        // An agent's token is no caller's.
        Some(format!("Bearer postern:{AGENT}:{}", field.agent_token)),
    ] {
        let headers: Vec<_> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
        let message = status(get(&field, path, &headers).await, 401, "Unauthorized").await;
        assert!(!message.contains(&good) && !message.contains(&field.agent_token), "{message}");
    }
    // One that it may not reach, whether there is such an agent or not.
    let elsewhere = format!("Bearer postern:9:{good}");
    let message = status(get(&field, path, &[("authorization", &elsewhere)]).await, 403, "Forbidden").await;
    assert!(message.contains("may not reach agent 9"), "{message}");
    let twice = [("authorization", field.bearer()), ("authorization", elsewhere)];
    let twice = twice.each_ref().map(|(name, value)| (*name, value.as_str()));
    status(get(&field, path, &twice).await, 401, "Unauthorized").await;
    assert_eq!(field.api().requests().len(), before, "{:?}", field.api().requests());

    // A caller whose token is withdrawn loses what runs, too.
    let mut client = Client::new(&field).await;
    let mut watch = client.send("GET", "/stream-forever", full("")).await;
    assert!(watch.frame().await.unwrap().is_ok());
    Field::write_identities(field.folder.path(), &[&field.agent_token], &[], "caller-another");
    let cut = timeout(PATIENCE, async { while let Some(Ok(_)) = watch.frame().await {} });
    cut.await.expect("the watch ends");
    status(get(&field, path, &[("authorization", &field.bearer())]).await, 401, "Unauthorized").await;
    until("the cluster sees the watch end", async || (field.api().open() == 0).then_some(())).await;
}

#[tokio::test]
async fn a_caller_over_its_limit_gets_a_429_status_and_nobody_else_does() {
    // With one a minute none comes back while twelve are asked.
    let limits = "limits: {requests_per_token_per_minute: 1, burst: 12}\n";
    let field =
        Field::with(Options { edge_extra: limits.into(), agent_wait: "1s", ..Options::default() }).await;
    for _ in 0..12 {
        assert_eq!(get(&field, "/version", &[("authorization", &field.bearer())]).await.status(), 200);
    }
    let response = get(&field, "/version", &[("authorization", &field.bearer())]).await;
    let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds), "{seconds}");
    let message = status(response, 429, "TooManyRequests").await;
    assert!(message.contains("too many requests with this token"), "{message}");
    // Another bearer has its own bucket, and the agent's tunnels are no new connections.
    let other = field.bearer().replace(&format!("postern:{AGENT}:"), "postern:8:");
    assert_eq!(get(&field, "/version", &[("authorization", &other)]).await.status(), 503);
    assert_eq!(probe(field.addresses.agent_probes, "/readiness").await, Some(200));
}

#[tokio::test]
async fn an_agent_over_its_limit_says_so_in_one_line_and_lives() {
    let limits = "limits: {requests_per_token_per_minute: 1, burst: 1}\n";
    let mut field =
        Field::with(Options { edge_extra: limits.into(), ready: false, ..Options::default() }).await;
    let about =
        |line: &Value| line["message"].as_str().is_some_and(|text| text.starts_with("token limited by "));
    let agent = &mut field.agent;
    let line =
        until("the agent says that it is limited", async || agent.lines().into_iter().find(about)).await;
    assert!(line["error"].as_str().unwrap().contains("rate limit exhausted"), "{line}");
    assert_eq!(agent.lines().iter().filter(|line| about(line)).count(), 1, "{}", agent.text());
    // Whether it is ready depends on which of its streams was let in: one tunnel pays for all.
    assert_eq!(probe(field.addresses.agent_probes, "/liveness").await, Some(200));
}

#[tokio::test]
async fn what_is_the_callers_business_with_the_broker_does_not_reach_the_cluster() {
    let field = Field::start().await;
    let bearer = field.bearer();
    let sent = [
        ("authorization", bearer.as_str()),
        ("cookie", "session=of-the-caller"),
        ("proxy-authorization", "Basic b2YtdGhlLWNhbGxlcg=="),
        ("x-postern-agent-id", "8"),
        ("x-postern-anything", "of-the-caller"),
        ("kas-hop-routing-agent-id", "8"),
        ("x-forwarded-for", "192.0.2.66"),
        ("forwarded", "for=192.0.2.66"),
        ("x-real-ip", "192.0.2.66"),
        ("connection", "x-of-this-hop"),
        ("x-of-this-hop", "of-the-caller"),
        ("x-kept", "yes"),
        ("accept", "application/json;as=Table;g=meta.k8s.io;v=v1, application/json"),
        ("user-agent", "kubectl/v1.30.0"),
    ];
    // A query travels as a map, so it arrives in the order of its names.
    assert_eq!(get(&field, "/api/v1/pods?limit=500&labelSelector=a%3Db", &sent).await.status(), 200);
    let seen = field.api().requests().pop().expect("it arrived");
    assert_eq!(seen.uri.path_and_query().unwrap(), "/api/v1/pods?labelSelector=a%3Db&limit=500");
    assert_eq!(
        seen.headers["authorization"],
        format!("Bearer {}", field.cluster_token),
        "not the agent's own"
    );
    for name in ["cookie", "proxy-authorization", "x-of-this-hop", "forwarded", "x-real-ip"] {
        assert!(!seen.headers.contains_key(name), "{name}: {seen:?}");
    }
    for (name, value) in &seen.headers {
        let internal = name.as_str().starts_with("x-postern-") || name.as_str().starts_with("kas-hop-");
        let value = String::from_utf8_lossy(value.as_bytes());
        assert!(!internal, "{name}: {value}");
        for secret in [field.caller_token.as_str(), &field.agent_token, "of-the-caller", "192.0.2.66"] {
            assert!(!value.contains(secret), "{name}: {value}");
        }
    }
    for (name, value) in sent.iter().rev().take(3) {
        assert_eq!(seen.headers[*name], *value);
    }
    assert!(seen.headers.contains_key("via"), "{seen:?}");
}

#[tokio::test]
async fn an_identity_that_the_agent_already_takes_on_cannot_be_exchanged_by_a_caller() {
    let mut field = Field::start().await;
    let impersonating = [("authorization", field.bearer()), ("impersonate-user", "someone".into())];
    let headers = impersonating.each_ref().map(|(name, value)| (*name, value.as_str()));
    // As kas: whom the agent may impersonate is for the cluster's own rules to say.
    assert_eq!(get(&field, "/version", &headers).await.status(), 200);
    assert_eq!(field.api().requests().pop().unwrap().headers["impersonate-user"], "someone");

    field.replace_agent(|options| options.agent_flags = vec!["--as=system:serviceaccount:a:b".into()]).await;
    assert_eq!(get(&field, "/version", &headers[..1]).await.status(), 200);
    assert_eq!(
        field.api().requests().pop().unwrap().headers["impersonate-user"],
        "system:serviceaccount:a:b"
    );
    let before = field.api().requests().len();
    let response = get(&field, "/version", &headers).await;
    assert!(response.status().as_u16() >= 400, "{response:?}");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(String::from_utf8_lossy(&body).contains("nested impersonation is not supported"), "{body:?}");
    assert_eq!(field.api().requests().len(), before);
}

/// Every form in which a token could slip into a log.
pub(crate) fn forms(secret: &str) -> Vec<String> {
    let mut forms = vec![secret.to_owned(), hex(secret.as_bytes()), format!("{:?}", secret.as_bytes())];
    forms[2] = forms[2].trim_matches(['[', ']']).to_owned();
    // In base64 the neighbours decide about the ends; what stays is the same for one of three beginnings.
    for before in 0..3 {
        let mut bytes = vec![b'x'; before];
        bytes.extend_from_slice(secret.as_bytes());
        let text = BASE64_STANDARD.encode(bytes);
        let inner = text.trim_end_matches('=');
        forms.push(inner[if before == 0 { 0 } else { 4 }..inner.len() - 3].to_owned());
    }
    forms
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn the_search_for_tokens_finds_them_in_base64_too() {
    let forms = forms("glagent-0123456789abcdef");
    for before in ["", "a", "ab", "abc", "Bearer postern:7:", "user:"] {
        for after in ["", "a", "\n"] {
            let text = BASE64_STANDARD.encode(format!("{before}glagent-0123456789abcdef{after}"));
            assert!(forms.iter().any(|form| text.contains(form)), "{before}..{after}");
        }
    }
}

#[tokio::test]
async fn no_token_is_in_any_log_at_any_level() {
    // An agent configuration without a level leaves the agent's log at trace, too.
    let options =
        Options { log: Some("trace"), configuration: "{}\n", agent_wait: "2s", ..Options::default() };
    let mut field = Field::with(options).await;
    let wrong = format!("wrong-{}", field.caller_token);
    let here = field.folder.path().to_owned();
    for scheme in ["wss", "grpcs", "ws", "grpc", "grpc-straight", "ws-straight"] {
        field.replace_agent(|options| options.scheme = scheme.into()).await;
        assert_eq!(Client::new(&field).await.get("/api/v1/pods").await.0, 200);
    }
    // An upgrade, in which the token passes as a header and bytes follow it.
    let mut client = Client::new(&field).await;
    let request =
        client.request("GET", "/echo").header("connection", "upgrade").header("upgrade", "postern-echo");
    let request = request.header("cookie", format!("token={}", field.caller_token)).body(full("")).unwrap();
    let response = client.raw(request).await.unwrap();
    assert_eq!(response.status(), 101);
    let mut io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    io.write_all(b"ping").await.unwrap();
    let mut echoed = [0; 4];
    io.read_exact(&mut echoed).await.unwrap();
    drop(io);
    // Refusals, of callers and of agents.
    let refused = format!("Bearer postern:{AGENT}:{wrong}");
    status(get(&field, "/version", &[("authorization", &refused)]).await, 401, "Unauthorized").await;
    let elsewhere = field.bearer().replace(&format!("postern:{AGENT}:"), "postern:9:");
    status(get(&field, "/version", &[("authorization", &elsewhere)]).await, 403, "Forbidden").await;
    let twice = [("authorization", field.bearer()), ("authorization", refused)];
    get(&field, "/version", &twice.each_ref().map(|(name, value)| (*name, value.as_str()))).await;
    let beside = Options {
        agent_token: Some("glagent-unknown-abcdefgh".into()),
        log: Some("trace"),
        ready: false,
        ..Options::default()
    };
    let (mut stranger, _) = field.agent_beside(&beside).await;
    token_refused(&mut stranger).await;
    // Reconnecting, with the same token and with another.
    field.broker.kill().await;
    field.restart_broker().await;
    field.ready().await;
    Field::write_identities(&here, &[&field.agent_token, "glagent-next-abcdefgh"], &[], &field.caller_token);
    replace(&here.join("agent.token"), "glagent-next-abcdefgh");
    field.agent.logged("connecting anew with the new token", |_| true).await;
    Field::write_identities(&here, &["glagent-next-abcdefgh"], &[&field.agent_token], &field.caller_token);
    field.ready().await;
    until("the agent serves", async || {
        (Client::new(&field).await.get("/version").await.0 == 200).then_some(())
    })
    .await;
    // What is written at the end counts as well.
    for process in [&mut field.agent, &mut stranger, &mut field.edge, &mut field.broker] {
        process.signal("TERM").await;
        process.ended().await;
    }

    let secrets = [
        &field.agent_token,
        &field.caller_token,
        &field.cluster_token,
        &wrong,
        "glagent-unknown-abcdefgh",
        "glagent-next-abcdefgh",
    ];
    let (mut logs, mut bytes) = (0, 0);
    for entry in fs::read_dir(here.join("logs")).unwrap() {
        let path = entry.unwrap().path();
        let log = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
        logs += 1;
        bytes += log.len();
        for secret in secrets {
            for form in forms(secret) {
                let line = log.lines().find(|line| line.contains(&form));
                assert!(line.is_none(), "{} has a token in it: {}", path.display(), line.unwrap_or_default());
            }
        }
    }
    println!("no token in {logs} logs of {bytes} bytes");
    assert!(logs >= 10 && bytes > 100_000, "{logs} logs of {bytes} bytes are not those of a run at trace");
}
