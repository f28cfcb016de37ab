//! Module requests: streamed both ways at once, at the pace of the slower side, and as the agent.

use super::*;
use std::io;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;

fn echo(body: RequestBody) -> ModuleRequest {
    let mut headers = HeaderMap::new();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    headers.insert(header::USER_AGENT, HeaderValue::from_static("agent's own"));
    headers.insert(KAS_JWT, HeaderValue::from_static("forged"));
    headers.insert(AGENT_TOKEN, HeaderValue::from_static("glagent-of-another"));
    headers.insert("job-token", HeaderValue::from_static("of-another"));
    ModuleRequest {
        module: "stand_in_echo".to_owned(),
        method: Method::PUT,
        target: "/some/path?a=b".to_owned(),
        headers,
        body,
    }
}

#[tokio::test]
async fn pieces_come_back_while_others_are_still_to_be_sent() {
    let field = Field::new().await;
    let (pieces, taken) = mpsc::channel::<Result<Bytes, io::Error>>(1);
    pieces.send(Ok(Bytes::from_static(b"one"))).await.unwrap();
    let request = echo(streamed(ReceiverStream::new(taken)));
    let mut answer = field.client.module_request(&token(), request, &call()).await.unwrap();
    assert_eq!(answer.status, StatusCode::OK);
    assert_eq!(answer.body.next().await.unwrap().unwrap(), "one");
    pieces.send(Ok(Bytes::from_static(b"two"))).await.unwrap();
    assert_eq!(answer.body.next().await.unwrap().unwrap(), "two");
    drop(pieces);
    assert!(answer.body.next().await.is_none());

    let seen = field.last();
    assert_eq!(seen.uri, "/api/v4/internal/kubernetes/modules/stand_in_echo/some/path?a=b");
    assert_eq!(seen.method, Method::PUT);
    assert_eq!(seen.token, Some(hash(TOKEN)), "it is this agent, whatever it says");
    assert!(seen.claims.is_some(), "the JWT is ours");
    assert_eq!(seen.headers["user-agent"], "gitlab-kas/v1.2.3/abc");
    assert_eq!(seen.headers["content-type"], "text/plain");
    assert!(!seen.headers.contains_key("job-token") && !seen.headers.contains_key("accept"));
    assert_eq!(answer.headers["echo-content-type"], "text/plain");
    assert!(!answer.headers.contains_key("transfer-encoding"));
}

#[tokio::test]
async fn nothing_is_taken_that_the_other_side_has_no_room_for() {
    let field = Field::new().await;
    let (count, mut taken) = watch::channel(0);
    let endless = futures::stream::repeat_with(move || {
        count.send_modify(|count| *count += 1);
        Ok::<_, io::Error>(Bytes::from_static(&[b'x'; 64 << 10]))
    });
    let mut answer = field.client.module_request(&token(), echo(streamed(endless)), &call()).await.unwrap();
    // Nobody reads the echo: soon nothing moves.
    while tokio::time::timeout(Duration::from_millis(500), taken.changed()).await.is_ok() {
        let before = *taken.borrow_and_update();
        // Sockets have buffers, of several MiB each.
        assert!(before < 4096, "{before} pieces of 64 KiB were taken");
    }
    let resumes = async {
        while !taken.has_changed().unwrap() {
            answer.body.next().await.unwrap().unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(60), resumes)
        .await
        .expect("more is taken once the echo is read");
}

#[tokio::test]
async fn every_status_is_an_answer_and_a_body_that_breaks_off_is_none() {
    let field = Field::new().await;
    let alert = |body: &'static str| ModuleRequest {
        module: "cilium_alert".to_owned(),
        method: Method::POST,
        target: "/".to_owned(),
        headers: HeaderMap::new(),
        body: streamed(futures::stream::iter([Ok::<_, io::Error>(Bytes::from_static(body.as_bytes()))])),
    };
    for (body, status) in [(r#"{"alert": {}}"#, 200), ("{}", 400)] {
        let answer = field.client.module_request(&token(), alert(body), &call()).await.unwrap();
        assert_eq!(answer.status.as_u16(), status);
    }
    let unknown = AgentToken::new("glagent-SECRET-unknown").unwrap();
    let mut answer = field.client.module_request(&unknown, alert("{}"), &call()).await.unwrap();
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    assert_eq!(answer.body.next().await.unwrap().unwrap(), r#"{"message":"401 Unauthorized"}"#);
    assert!(answer.body.next().await.is_none());

    let arrived = field.gitlab.requests().len();
    let climbing = ModuleRequest { target: "/../../agent_info".to_owned(), ..alert("") };
    let error = field.client.module_request(&token(), climbing, &call()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Illegal(_)), "{error:?}");
    assert_eq!(field.gitlab.requests().len(), arrived);

    let broken =
        futures::stream::iter([Ok(Bytes::from_static(b"{")), Err(io::Error::other("the agent left"))]);
    let broken = ModuleRequest { body: streamed(broken), ..alert("") };
    let error = field.client.module_request(&token(), broken, &call()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Transport { .. }), "{error:?}");
}
