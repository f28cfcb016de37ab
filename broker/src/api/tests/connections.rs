//! How one connects: HTTP/1.1 beside gRPC, TLS, and the end.

use super::*;

fn events() -> Beside {
    Beside {
        path: "/events",
        answer: Arc::new(|request| {
            Box::pin(async move {
                let seen = request.headers().contains_key("authorization");
                http::Response::new(Body::new(format!("{} {seen}\n", request.uri())))
            })
        }),
    }
}

#[tokio::test]
async fn another_module_is_served_beside_grpc_behind_the_same_check() {
    let field = Field::start(With { beside: Some(events()), ..With::default() }).await;
    let get = |path: &str, authorization: &str| {
        format!("GET {path} HTTP/1.1\r\nHost: kas\r\nConnection: close\r\n{authorization}\r\n")
    };
    let authorization = format!("Authorization: Bearer {}\r\n", good());
    let answer = field.http1(&get("/events?agent=1", &authorization)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/events?agent=1 false\n"), "{answer}");
    for (path, authorization, words) in [
        ("/events", "", "Request unauthenticated with bearer\n"),
        ("/events", "Authorization: Bearer a.b.c\r\n", "JWT validation failed\n"),
        ("/none-such", "", "Request unauthenticated with bearer\n"),
    ] {
        let answer = field.http1(&get(path, authorization)).await;
        assert!(answer.starts_with("HTTP/1.1 401") && answer.ends_with(words), "{answer}");
    }
    let answer = field.http1(&get("/none-such", &authorization)).await;
    assert!(answer.contains("grpc-status: 12"), "{answer}");
    // And gRPC as before.
    ServerInfoClient::new(field.channel()).get_server_info(call(GetServerInfoRequest {})).await.unwrap();
}

#[tokio::test]
async fn with_a_certificate_tls_offers_what_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let ca = postern_certs::dev::Ca::new();
    let tls = Some(ca.issue(&["localhost"]).write(folder.path()).unwrap());
    let file = ca.write(folder.path()).unwrap();
    postern_certs::install_provider();
    let trust = postern_certs::client::ClientTrust::load(Some(file)).unwrap();
    let field = Field::start(With { tls, beside: Some(events()), ..With::default() }).await;
    let dial = async |alpn: &[&[u8]]| {
        let tcp = TcpStream::connect(field.address).await.unwrap();
        let connector = tokio_rustls::TlsConnector::from(trust.config(alpn));
        connector.connect("localhost".try_into().unwrap(), tcp).await.unwrap()
    };
    let io = dial(&[b"h2", b"http/1.1"]).await;
    assert_eq!(io.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    let (mut sender, connection) = hyper::client::conn::http2::handshake(
        hyper_util::rt::TokioExecutor::new(),
        hyper_util::rt::TokioIo::new(io),
    )
    .await
    .unwrap();
    tokio::spawn(connection);
    let request =
        http::Request::post("https://localhost/gitlab.agent.server_info.rpc.ServerInfo/GetServerInfo")
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("authorization", format!("Bearer {}", good()))
            .body(http_body_util::Full::new(bytes::Bytes::from_static(&[0; 5])))
            .unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
    assert_eq!(body.trailers().unwrap()["grpc-status"], "0");
    let io = dial(&[b"http/1.1"]).await;
    let answer = said(io, "GET /events HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
}

#[tokio::test]
async fn it_ends_when_told_to_and_takes_leave_of_its_connections() {
    let field = Field::start(With::default()).await;
    let mut client = ServerInfoClient::new(field.channel());
    client.get_server_info(call(GetServerInfoRequest {})).await.unwrap();
    field.stop.cancel();
    field.tasks.close();
    timeout(SOON, field.tasks.wait()).await.unwrap();
    let status = client.get_server_info(call(GetServerInfoRequest {})).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}
