//! The handshake's table of answers, row by row, then both halves against each other.

use http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

use super::{DialError, Handshake, SUBPROTOCOL, accept, accept_key, dial, offers_tunnel};
use crate::{
    sniff::{Head, Limits, Opening, sniff},
    ws::WsStream,
};

const GOOD: &[(&str, &str)] = &[
    ("Host", "kas.example.com"),
    ("Connection", "keep-alive, Upgrade"),
    ("Upgrade", "websocket"),
    ("Sec-WebSocket-Version", "13"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Protocol", "chat, ws-tunnel"),
    ("Sec-WebSocket-Extensions", "permessage-deflate; client_no_context_takeover"),
];

/// The good request with one header replaced, added, or (without a value) left out.
async fn head(line: &str, changed: &str, value: Option<&str>) -> Head {
    let mut request = format!("{line}\r\n");
    for (name, good) in GOOD.iter().filter(|(name, _)| *name != changed) {
        request.push_str(&format!("{name}: {good}\r\n"));
    }
    if let Some(value) = value {
        request.push_str(&format!("{changed}: {value}\r\n"));
    }
    request.push_str("\r\n");
    match sniff(&mut request.as_bytes(), Limits::default()).await {
        Ok(Opening::Http1 { head, .. }) => head,
        other => panic!("{other:?}"),
    }
}

const GET: &str = "GET /any/path?x=y HTTP/1.1";

#[tokio::test]
async fn a_good_request_is_taken_on_any_path_and_compression_declined() {
    let head = head(GET, "", None).await;
    assert!(offers_tunnel(&head));
    let mut extra = HeaderMap::new();
    extra.insert(header::SERVER, HeaderValue::from_static("gitlab-kas/v1/abc"));
    let response = String::from_utf8(accept(&head, &extra).unwrap().response).unwrap();
    assert_eq!(
        response,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: ws-tunnel\r\n\
         server: gitlab-kas/v1/abc\r\n\r\n"
    );
}

#[tokio::test]
async fn each_broken_request_gets_the_answer_of_the_table() {
    for (line, name, value, status, header) in [
        ("GET / HTTP/1.0", "", None, 426, "\r\nUpgrade: websocket\r\n"),
        (GET, "Connection", Some("close"), 426, "\r\nConnection: Upgrade, close\r\n"),
        (GET, "Upgrade", Some("h2c"), 426, "\r\nUpgrade: websocket\r\n"),
        ("POST / HTTP/1.1", "", None, 405, "\r\nAllow: GET\r\n"),
        (GET, "Sec-WebSocket-Version", Some("8"), 400, "\r\nSec-WebSocket-Version: 13\r\n"),
        (GET, "Sec-WebSocket-Key", None, 400, "\r\nConnection: close\r\n"),
        (GET, "Sec-WebSocket-Key", Some(""), 400, "\r\nConnection: close\r\n"),
        (GET, "Origin", Some("https://evil.example.com"), 403, "\r\nConnection: close\r\n"),
        (GET, "Origin", Some("null"), 403, "\r\nConnection: close\r\n"),
    ] {
        let refused = accept(&head(line, name, value).await, &HeaderMap::new()).unwrap_err();
        assert_eq!(refused.status.as_u16(), status, "{name}: {refused}");
        let response = String::from_utf8(refused.response()).unwrap();
        assert!(response.starts_with(&format!("HTTP/1.1 {status} ")), "{response}");
        assert!(response.contains(header), "{response}");
        assert!(response.ends_with(&format!("\r\n\r\n{}\n", refused.reason)), "{response}");
    }
    let own_page = head(GET, "Origin", Some("https://KAS.example.com")).await;
    assert!(accept(&own_page, &HeaderMap::new()).is_ok());
}

#[tokio::test]
async fn without_the_subprotocol_the_refusal_comes_as_a_close_inside_the_websocket() {
    for value in [None, Some("v5.channel.k8s.io")] {
        let head = head(GET, "Sec-WebSocket-Protocol", value).await;
        assert!(!offers_tunnel(&head));
        let refused = accept(&head, &HeaderMap::new()).unwrap_err();
        assert_eq!(refused.status, StatusCode::SWITCHING_PROTOCOLS);
        let response = refused.response();
        let end = crate::sniff::head_end(&response, 0).unwrap();
        assert!(!String::from_utf8_lossy(&response[..end]).contains("Protocol:"));
        assert_eq!(&response[end..end + 4], [0x88, 43, 0x03, 0xea]);
        assert_eq!(&response[end + 4..], b"Expecting \"ws-tunnel\" subprotocol, got \"\"");
    }
}

fn handshake(headers: &HeaderMap) -> Handshake<'_> {
    Handshake {
        host: "kas.example.com:8150",
        path_and_query: "/-/kubernetes-agent/",
        user_agent: "gitlab-agent/v1/abc",
        headers,
    }
}

/// Dials a server that answers `answer`, in which `{accept}` stands for the proof, and then hangs up.
async fn dialled(answer: &str) -> Result<WsStream<tokio::io::DuplexStream>, DialError> {
    let (io, mut server) = duplex(64 * 1024);
    let serve = async move {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(server.read_u8().await.unwrap());
        }
        let request = String::from_utf8(request).unwrap();
        let key = request.split("Sec-WebSocket-Key: ").nth(1).unwrap().lines().next().unwrap();
        let answer = answer.replace("{accept}", &accept_key(key.as_bytes()));
        server.write_all(answer.as_bytes()).await.unwrap();
    };
    let headers = HeaderMap::new();
    tokio::join!(dial(io, handshake(&headers)), serve).0
}

const SWITCHED: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nUPGRADE: WebSocket\r\n";

#[tokio::test]
async fn dialler_and_listener_meet_and_nothing_behind_the_heads_is_lost() {
    let (io, mut server) = duplex(1024);
    let mut headers = HeaderMap::new();
    headers.insert("x-from", HeaderValue::from_static("flag"));
    let serve = async {
        let Ok(Opening::Http1 { head, mut read }) = sniff(&mut server, Limits::default()).await else {
            panic!("not a request");
        };
        assert_eq!(head.target, "/-/kubernetes-agent/");
        assert_eq!(head.host(), Some("kas.example.com:8150"));
        assert_eq!(head.headers["user-agent"], "gitlab-agent/v1/abc");
        assert_eq!(head.headers["x-from"], "flag");
        assert!(!head.headers.contains_key("sec-websocket-extensions"));
        let mut response = accept(&head, &HeaderMap::new()).unwrap().response;
        response.extend_from_slice(b"\x82\x02hi");
        server.write_all(&response).await.unwrap();
        let mut listener = WsStream::listener(server, read.split_off(head.size()), None);
        assert_eq!(listener.read_u8().await.unwrap(), b'!');
    };
    let ask = async {
        let mut dialler = dial(io, handshake(&headers)).await.unwrap();
        let mut hi = [0; 2];
        dialler.read_exact(&mut hi).await.unwrap();
        dialler.write_all(b"!").await.unwrap();
        dialler.flush().await.unwrap();
    };
    tokio::join!(ask, serve);
}

#[tokio::test]
async fn an_answer_without_subprotocol_or_behind_an_interim_one_is_taken() {
    let answer =
        format!("HTTP/1.1 103 Early Hints\r\n\r\n{SWITCHED}Sec-WebSocket-Accept: {{accept}}\r\n\r\n");
    dialled(&answer).await.unwrap();
    let answer = format!(
        "{SWITCHED}Sec-WebSocket-Accept: {{accept}}\r\nSec-WebSocket-Protocol: {}\r\n\r\n",
        SUBPROTOCOL.to_uppercase()
    );
    dialled(&answer).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn every_other_answer_is_one_clear_line() {
    let long = format!("HTTP/1.1 200 OK\r\nX: {}", "x".repeat(20_000));
    for (answer, line) in [
        (
            "HTTP/1.1 301 Moved\r\nLocation: https://new.example.com/x\r\n\r\n".to_owned(),
            "the server redirects (301) to https://new.example.com/x",
        ),
        (
            "HTTP/1.1 404 Not Found\r\nContent-Length: 11\r\n\r\nno \nsuch\tone".to_owned(),
            "the server answered 404 Not Found instead of opening a WebSocket: \"no such on\"",
        ),
        (
            "HTTP/1.1 503 Service Unavailable\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbusy\r\n0\r\n\r\n"
                .to_owned(),
            "the server answered 503 Service Unavailable instead of opening a WebSocket: \"busy\"",
        ),
        (
            "HTTP/1.1 403 Forbidden\r\n\r\n".to_owned(),
            "the server answered 403 Forbidden instead of opening a WebSocket",
        ),
        (
            "\x15\x03\x03\0\x02\x02\x28".to_owned(),
            "the server does not speak HTTP/1.1: it speaks TLS; use wss://",
        ),
        (
            "\0\0\x12\x04\0\0\0\0\0".to_owned(),
            "the server does not speak HTTP/1.1: it speaks HTTP/2 only; use grpc:// or grpcs://",
        ),
        (
            "SSH-2.0-OpenSSH\r\n".to_owned(),
            "the server does not speak HTTP/1.1: its answer begins with \"SSH-2.0-OpenSSH\\r\"",
        ),
        (
            format!("{SWITCHED}Sec-WebSocket-Accept: c3RhbGU=\r\n\r\n"),
            "the server's Sec-WebSocket-Accept does not match the key that was sent; is a cache in between?",
        ),
        (
            format!("{SWITCHED}Sec-WebSocket-Accept: {{accept}}\r\nSec-WebSocket-Protocol: chat\r\n\r\n"),
            "the server chose subprotocol \"chat\" instead of \"ws-tunnel\"",
        ),
        (
            format!(
                "{SWITCHED}Sec-WebSocket-Accept: {{accept}}\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
            ),
            "the server turned on the extension \"permessage-deflate\", which was not offered",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n".to_owned(),
            "the server switched protocols, but its Upgrade header does not say to WebSocket",
        ),
        (
            "HTTP/1.1 101 Swi".to_owned(),
            "the server closed the connection after 16 bytes of its answer to the WebSocket request",
        ),
        (long, "the head of the server's answer is longer than 16384 bytes"),
    ] {
        let error = dialled(&answer).await.expect_err(line);
        assert_eq!(error.to_string(), line);
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_whose_body_never_ends_is_told_soon() {
    let (io, mut server) = duplex(64 * 1024);
    server.write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n<html>").await.unwrap();
    let error = dial(io, handshake(&HeaderMap::new())).await.expect_err("502");
    assert!(matches!(error, DialError::Refused { reason, .. } if reason == "<html>"));
}

#[tokio::test]
async fn what_would_break_the_request_is_refused_before_it_is_sent() {
    let (none, mut taken) = (HeaderMap::new(), HeaderMap::new());
    taken.insert(header::SEC_WEBSOCKET_KEY, HeaderValue::from_static("mine"));
    let good = handshake(&none);
    for bad in [
        Handshake { path_and_query: "/a b", ..good },
        Handshake { path_and_query: "relative", ..good },
        Handshake { host: "", ..good },
        Handshake { host: "a\r\nb", ..good },
        Handshake { user_agent: "a\nb", ..good },
        Handshake { headers: &taken, ..good },
    ] {
        let (io, _server) = duplex(64);
        assert!(matches!(dial(io, bad).await, Err(DialError::BadRequest { .. })), "{bad:?}");
    }
}
