use crate::{
    fake_api::FakeApi,
    fake_broker::{FakeBroker, Via, head, trailer},
    harness::{TOKEN, count_logged, logged, soon, start, start_in},
};
use postern_certs::{CertFiles, dev::Ca, server::ServerIdentity};
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

pub(crate) struct Pki {
    _directory: TempDir,
    pub(crate) ca: String,
    pub(crate) files: CertFiles,
}

fn pki(issue: impl Fn(&Ca) -> postern_certs::dev::Issued) -> Pki {
    let directory = tempfile::tempdir().expect("a directory");
    let ca = Ca::new();
    let path: PathBuf = ca.write(directory.path()).expect("written");
    let files = issue(&ca).write(directory.path()).expect("written");
    Pki { ca: format!("--ca-cert-file={}", path.display()), files, _directory: directory }
}

pub(crate) fn localhost() -> Pki {
    pki(|ca| ca.issue(&["localhost", "127.0.0.1"]))
}

pub(crate) fn port(at: &str) -> &str {
    at.rsplit(':').next().expect("host:port")
}

/// A server that answers every connection with these bytes, after reading a head.
pub(crate) async fn answers(answer: impl Fn(&str) -> String + Send + 'static) -> String {
    answers_over(None, answer).await
}

async fn answers_over(tls: Option<CertFiles>, answer: impl Fn(&str) -> String + Send + 'static) -> String {
    postern_certs::install_provider();
    let tls = tls.map(|files| {
        let identity = ServerIdentity::load(vec![files]).expect("a good certificate");
        TlsAcceptor::from(identity.config(&[b"http/1.1"]))
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let at = listener.local_addr().expect("bound").to_string();
    let answer = answer(&at);
    tokio::spawn(async move {
        loop {
            let (io, _) = listener.accept().await.expect("the listener lives");
            let (answer, tls) = (answer.clone(), tls.clone());
            tokio::spawn(async move {
                match tls {
                    None => answer_one(io, &answer).await,
                    Some(tls) => {
                        if let Ok(io) = tls.accept(io).await {
                            answer_one(io, &answer).await;
                        }
                    }
                }
            });
        }
    });
    at
}

async fn answer_one(mut io: impl AsyncRead + AsyncWrite + Unpin, answer: &str) {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        match io.read_u8().await {
            Ok(byte) => read.push(byte),
            Err(_) => return,
        }
    }
    let _ = io.write_all(answer.as_bytes()).await;
    let _ = io.shutdown().await;
    let _ = io.read(&mut [0; 64]).await;
}

#[tokio::test]
async fn all_four_schemes_carry_a_request() {
    let pki = localhost();
    let table = [
        ("grpc", Via::Grpc),
        ("grpcs", Via::Grpcs(pki.files.clone())),
        ("ws", Via::Ws),
        ("wss", Via::Wss(pki.files.clone())),
    ];
    for (scheme, via) in table {
        let mut broker = FakeBroker::start(via).await;
        let api = FakeApi::start().await;
        let flags = [pki.ca.as_str(), "--kas-header=Cookie: header-secret", "--kas-header=X-Extra: one"];
        let address = format!("{scheme}://localhost:{}/-/kubernetes-agent/", port(&broker.at));
        let agent = start(&address, &api, &flags).await;
        let mut tunnel = broker.tunnel().await;
        assert_eq!(tunnel.token, TOKEN, "{scheme}");
        assert!(tunnel.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await.is_ok(), "{scheme}");
        agent.probes("/readiness", 200).await;

        let metadata = broker.state.metadata.lock().unwrap().first().cloned().unwrap();
        let user_agent = metadata["user-agent"].to_str().unwrap().to_owned();
        assert!(user_agent.starts_with("gitlab-agent/v"), "{user_agent}");
        // With an upgrade, headers go there; without one, they are metadata.
        let upgraded = scheme.starts_with("ws");
        assert_eq!(metadata.contains_key("x-extra"), !upgraded, "{scheme}");
        let upgrade = broker.state.upgrades.lock().unwrap().first().cloned().unwrap_or_default();
        assert_eq!(upgrade.get("x-extra").is_some(), upgraded, "{scheme}");
        assert!(!upgrade.contains_key("authorization"), "{scheme}");
        logged(&["connected to the broker", port(&broker.at), &format!("\"scheme\":\"{scheme}\"")]).await;
    }
}

#[tokio::test]
async fn an_unknown_ca_is_named_with_the_flag_that_helps() {
    let pki = localhost();
    for (scheme, via) in [("wss", Via::Wss(pki.files.clone())), ("grpcs", Via::Grpcs(pki.files.clone()))] {
        let broker = FakeBroker::start(via).await;
        let api = FakeApi::start().await;
        let _agent = start(&format!("{scheme}://localhost:{}", port(&broker.at)), &api, &[]).await;
        let line = logged(&["dial failed", &format!("localhost:{}", port(&broker.at))]).await;
        assert!(line.contains("--ca-cert-file"), "{line}");
    }
}

#[tokio::test]
async fn an_expired_certificate_and_a_wrong_name_are_told_apart() {
    let expired = pki(|ca| ca.issue_expired(&["localhost"]));
    let broker = FakeBroker::start(Via::Wss(expired.files.clone())).await;
    let api = FakeApi::start().await;
    let _agent = start(&format!("wss://localhost:{}", port(&broker.at)), &api, &[&expired.ca]).await;
    logged(&["dial failed", &format!("localhost:{}", port(&broker.at)), "expired"]).await;

    let other = pki(|ca| ca.issue(&["kas.example.com"]));
    let mut broker = FakeBroker::start(Via::Wss(other.files.clone())).await;
    let address = format!("wss://localhost:{}", port(&broker.at));
    let _refused = start(&address, &api, &[&other.ca]).await;
    logged(&["dial failed", &format!("localhost:{}", port(&broker.at)), "kas.example.com"]).await;
    let _named = start(&address, &api, &[&other.ca, "--kas-tls-server-name=kas.example.com"]).await;
    broker.tunnel().await;
    let mut broker = FakeBroker::start(Via::Wss(other.files.clone())).await;
    let address = format!("wss://localhost:{}", port(&broker.at));
    let _trusting = start(&address, &api, &["--kas-insecure-skip-tls-verify"]).await;
    broker.tunnel().await;
}

#[tokio::test]
async fn one_redirect_is_followed_and_named() {
    let mut broker = FakeBroker::start(Via::Ws).await;
    let location = format!("http://{}/-/kubernetes-agent/", broker.at);
    let at = answers(move |_| {
        format!("HTTP/1.1 301 Moved Permanently\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n")
    })
    .await;
    let api = FakeApi::start().await;
    let _agent = start(&format!("ws://{at}/-/kubernetes-agent"), &api, &[]).await;
    broker.tunnel().await;
    logged(&["redirected", port(&at), &format!("ws://{}/-/kubernetes-agent/", broker.at)]).await;
}

#[tokio::test]
async fn a_redirect_that_goes_on_or_out_of_tls_is_refused() {
    let at = answers(|at| {
        format!("HTTP/1.1 302 Found\r\nLocation: http://{at}/login\r\nContent-Length: 0\r\n\r\n")
    })
    .await;
    let api = FakeApi::start().await;
    let _agent = start(&format!("ws://{at}/"), &api, &[]).await;
    logged(&["dial failed", port(&at), "redirects again"]).await;

    let pki = localhost();
    let out = |_: &str| {
        "HTTP/1.1 301 Moved\r\nLocation: http://plain.example/\r\nContent-Length: 0\r\n\r\n".to_owned()
    };
    let at = answers_over(Some(pki.files.clone()), out).await;
    let _agent = start(&format!("wss://{at}/"), &api, &[&pki.ca]).await;
    logged(&["dial failed", port(&at), "redirects to ws://plain.example/", "not encrypted"]).await;
}

#[tokio::test]
async fn what_is_not_a_broker_is_told_by_what_it_says() {
    let api = FakeApi::start().await;
    let page = answers(|_| "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope".to_owned()).await;
    let _agent = start(&format!("ws://{page}/"), &api, &[]).await;
    logged(&["dial failed", port(&page), "HTTP 404", "path of --kas-address"]).await;

    // The HTTP/2 preface ends its first line as a head ends.
    let web = answers(|_| "HTTP/1.1 400 Bad Request\r\n\r\n".to_owned()).await;
    let _agent = start(&format!("grpc://{web}"), &api, &[]).await;
    logged(&["dial failed", port(&web), "speaks HTTP/1.1"]).await;

    let pki = localhost();
    let tls = FakeBroker::start(Via::Grpcs(pki.files.clone())).await;
    let _agent = start(&format!("grpc://{}", tls.at), &api, &[]).await;
    logged(&["dial failed", port(&tls.at), "grpcs://"]).await;

    let plain = FakeBroker::start(Via::Grpc).await;
    let _agent = start(&format!("grpcs://{}", plain.at), &api, &[]).await;
    logged(&["dial failed", &plain.at, "does not speak TLS"]).await;

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let _agent = start(&format!("wss://{nobody}"), &api, &[]).await;
    logged(&["dial failed", &nobody, "refused"]).await;
    let _agent = start("wss://no-such-host.invalid", &api, &[]).await;
    logged(&["dial failed", "cannot resolve no-such-host.invalid"]).await;
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_its_status() {
    let proxy = answers(|_| "HTTP/1.1 403 Forbidden by policy\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
    let api = FakeApi::start().await;
    let url = format!("http://me:header-secret@{proxy}");
    let env = [("AGENTK_TOKEN", TOKEN), ("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "127.0.0.1")];
    let _agent = start_in("wss://kas.proxied.example", &api, &[], &env).await;
    let line = logged(&["dial failed", "CONNECT kas.proxied.example:443", "403 Forbidden by policy"]).await;
    assert!(line.contains(&format!("http://{proxy}")), "{line}");
}

#[tokio::test]
async fn a_proxy_that_agrees_leads_to_the_broker() {
    let mut broker = FakeBroker::start(Via::Ws).await;
    let to = broker.at.clone();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = format!("http://{}", listener.local_addr().unwrap());
    let asked = tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(io.read_u8().await.unwrap());
        }
        io.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        let mut far = tokio::net::TcpStream::connect(to).await.unwrap();
        tokio::spawn(async move { tokio::io::copy_bidirectional(&mut io, &mut far).await });
        String::from_utf8(head).unwrap()
    });
    let api = FakeApi::start().await;
    let env = [("AGENTK_TOKEN", TOKEN), ("HTTP_PROXY", proxy.as_str())];
    let _agent = start_in("ws://kas.proxied.example:8150/", &api, &[], &env).await;
    broker.tunnel().await;
    assert!(
        soon("CONNECT", asked).await.unwrap().starts_with("CONNECT kas.proxied.example:8150 HTTP/1.1\r\n")
    );
    assert_eq!(count_logged(&["header-secret"]), 0);
}
