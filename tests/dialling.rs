//! The four schemes of an agent's dial, TLS, redirects and proxies: what connects, and what the one line says where
//! nothing does.

mod obstacles;

use crate::harness::{
    Field, Options, PATIENCE, Process,
    http::{Client, full, probe},
    until,
};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use obstacles::Obstacle;
use postern_certs::dev::Ca;
use tokio::{net::TcpStream, time::timeout};

/// Starts a second agent that cannot connect, and gives the cause that its log names.
async fn refusal(field: &Field, change: impl FnOnce(&mut Options)) -> String {
    let mut options = Options { ready: false, ..Options::default() };
    // The same whatever CAs this machine trusts.
    let system = field.folder.path().join("system.crt");
    std::fs::write(&system, Ca::new().pem()).unwrap();
    options.agent_env.push(("SSL_CERT_FILE", system.display().to_string()));
    change(&mut options);
    let (mut agent, probes) = field.agent_beside(&options).await;
    let line = agent.logged("dial failed", |_| true).await;
    let cause = line["error"].as_str().expect("a cause").to_owned();
    println!("{}: {cause}", options.scheme);
    assert!(!cause.contains('\n'), "{cause}");
    for line in agent.lines() {
        let complaint = line["level"] == "WARN" || line["level"] == "ERROR";
        assert!(!complaint || line["message"] == "dial failed", "more than one line: {line}");
    }
    assert_eq!(probe(probes, "/liveness").await, Some(200));
    assert_eq!(probe(probes, "/readiness").await, Some(503));
    assert!(agent.alive());
    cause
}

fn assert_says(cause: &str, words: &[&str]) {
    for word in words {
        assert!(cause.contains(word), "{word:?} is missing in: {cause}");
    }
}

#[tokio::test]
async fn every_scheme_reaches_the_broker_with_and_without_a_trailing_slash() {
    let mut field = Field::with(Options { ready: false, ..Options::default() }).await;
    let tls = format!("localhost:{}", field.addresses.edge_tls.port());
    let (plain, straight) = (field.addresses.edge_plain, field.addresses.broker_agents);
    let addresses = [
        format!("wss://{tls}"),
        format!("wss://{tls}/"),
        format!("wss://{tls}/-/kubernetes-agent"),
        format!("wss://{tls}/-/kubernetes-agent/"),
        format!("grpcs://{tls}"),
        format!("grpcs://{tls}/"),
        format!("ws://{plain}"),
        format!("ws://{plain}/-/kubernetes-agent/"),
        format!("grpc://{plain}"),
        format!("grpc://{plain}/"),
        format!("ws://{straight}"),
        format!("ws://{straight}/-/kubernetes-agent/"),
        format!("grpc://{straight}"),
    ];
    for address in addresses {
        field
            .replace_agent(|options| {
                options.scheme = address.clone();
                options.ready = true;
            })
            .await;
        let mut client = Client::new(&field).await;
        let (status, body) = client.get("/version").await;
        assert_eq!(status, 200, "{address}: {}", String::from_utf8_lossy(&body));
        field.agent.logged("request", |_| true).await;
    }
}

#[tokio::test]
async fn a_broker_with_a_certificate_of_its_own_is_reached_without_an_edge() {
    let field = Field::with(Options { ready: false, ..Options::default() }).await;
    let file = field.folder.path().join("kas-tls.yaml");
    let config = "agent:\n  listen: {address: '127.0.0.1:0', websocket: true, certificate_file: tls.crt, key_file: tls.key}\n  \
                  kubernetes_api: {listen: {address: '127.0.0.1:0'}, url_path_prefix: /k8s-proxy/}\n\
                  observability: {listen: {address: '127.0.0.1:0'}}\nembedded: {identities_file: identities.yaml}\n";
    std::fs::write(&file, config).unwrap();
    let flags = ["--configuration-file".to_owned(), file.display().to_string()];
    let mut broker = Process::start("broker-tls", "kas", field.folder.path(), &flags, &[]);
    let agents = broker.address("listening", |line| line["listener"] == "agents").await.port();
    let callers = broker.address("listening", |line| line["listener"] == "kubernetes_api").await;
    for scheme in [format!("grpcs://localhost:{agents}"), format!("wss://localhost:{agents}/")] {
        let (mut agent, probes) = field.agent_beside(&Options { scheme, ..Options::default() }).await;
        until("the agent is ready", async || (probe(probes, "/readiness").await == Some(200)).then_some(()))
            .await;
        let stream = TcpStream::connect(callers).await.unwrap();
        let (mut send, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/k8s-proxy/version").header("host", "localhost");
        let request = request.header("authorization", field.bearer()).body(full("")).unwrap();
        let response = timeout(PATIENCE, send.send_request(request)).await.unwrap().unwrap();
        assert_eq!(response.status(), 200, "{}", broker.text());
        agent.kill().await;
    }
}

#[tokio::test]
async fn an_unknown_ca_an_expired_certificate_and_a_wrong_name_are_told_apart() {
    let field = Field::with(Options { ready: false, ..Options::default() }).await;
    for scheme in ["wss", "grpcs"] {
        let cause = refusal(&field, |options| {
            options.scheme = scheme.into();
            options.ca_cert_file = false;
        })
        .await;
        assert_says(&cause, &["unknown CA", "--ca-cert-file", "localhost"]);
    }
    let expired = field.ca.issue_expired(&["localhost"]);
    let expired = Obstacle::web_server(&expired, |_| String::new()).await;
    let cause =
        refusal(&field, |options| options.scheme = format!("wss://localhost:{}/", expired.address.port()))
            .await;
    assert_says(&cause, &["certificate has expired 1 day ago", "localhost"]);

    let other = field.ca.issue(&["kas.example.com"]);
    let other = Obstacle::web_server(&other, |_| String::new()).await;
    let cause =
        refusal(&field, |options| options.scheme = format!("wss://localhost:{}/", other.address.port()))
            .await;
    assert_says(&cause, &["not for localhost", "kas.example.com"]);
    assert!(expired.asked().is_empty() && other.asked().is_empty(), "an unverified server was asked");
}

#[tokio::test]
async fn a_ca_file_that_is_replaced_lets_the_agent_in_without_a_restart() {
    let mut field = Field::with(Options { ready: false, ..Options::default() }).await;
    let file = field.folder.path().join("late.crt");
    std::fs::write(&file, Ca::new().pem()).unwrap();
    field
        .replace_agent(|options| {
            options.ca_cert_file = false;
            options.agent_flags = vec![format!("--ca-cert-file={}", file.display())];
        })
        .await;
    let line = field.agent.logged("dial failed", |_| true).await;
    assert_says(
        line["error"].as_str().unwrap(),
        &["unknown CA", "neither one in the file given with --ca-cert-file"],
    );
    let fresh = file.with_extension("new");
    std::fs::write(&fresh, field.ca.pem()).unwrap();
    std::fs::rename(fresh, file).unwrap();
    field.ready().await;
    assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
}

fn moved_to(location: &str) -> String {
    format!(
        "HTTP/1.1 301 Moved Permanently\r\nlocation: {location}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    )
}

#[tokio::test]
async fn one_redirect_is_followed_and_a_second_one_or_one_out_of_tls_is_refused() {
    let mut field = Field::with(Options { ready: false, ..Options::default() }).await;
    let issued = field.ca.issue(&["localhost"]);
    let edge = field.addresses.edge_tls.port();
    for location in [
        format!("wss://localhost:{edge}/-/kubernetes-agent/"),
        format!("https://localhost:{edge}/-/kubernetes-agent/"),
    ] {
        let server = Obstacle::web_server(&issued, |_| moved_to(&location)).await;
        field
            .replace_agent(|options| {
                options.scheme = format!("wss://localhost:{}/-/kubernetes-agent", server.address.port());
                options.ready = true;
            })
            .await;
        let line = field.agent.logged("redirected; give the final address to --kas-address", |_| true).await;
        assert_eq!(line["to"], format!("wss://localhost:{edge}/-/kubernetes-agent/"));
        assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
        assert_eq!(server.asked().len(), 1, "{:?}", server.asked());
        assert!(!server.asked()[0].contains(&field.agent_token), "the token went to whoever redirects");
    }

    let loops =
        Obstacle::web_server(&issued, |port| moved_to(&format!("https://localhost:{port}/again"))).await;
    let cause =
        refusal(&field, |options| options.scheme = format!("wss://localhost:{}/", loops.address.port()))
            .await;
    assert_says(&cause, &["redirects again (HTTP 301)", "/again", "--kas-address"]);

    let plain = field.addresses.edge_plain;
    let server = Obstacle::web_server(&issued, |_| moved_to(&format!("http://{plain}/"))).await;
    let cause =
        refusal(&field, |options| options.scheme = format!("wss://localhost:{}/", server.address.port()))
            .await;
    assert_says(&cause, &["redirects to", "not encrypted; refused"]);
}

/// This machine by an address that, unlike `localhost`, may stand behind a proxy.
const THIS_MACHINE: &str = "0.0.0.0";

#[tokio::test]
async fn a_proxy_is_used_unless_no_proxy_names_the_broker() {
    let mut field = Field::with(Options { ready: false, ..Options::default() }).await;
    let proxy = Obstacle::proxy(None).await;
    let (tls, plain) = (field.addresses.edge_tls.port(), field.addresses.edge_plain.port());
    let through = format!("http://me:pass-word@{}", proxy.address);
    let table = [
        (format!("wss://{THIS_MACHINE}:{tls}/"), "HTTPS_PROXY", None),
        (format!("grpcs://{THIS_MACHINE}:{tls}"), "https_proxy", None),
        (format!("ws://{THIS_MACHINE}:{plain}/"), "HTTP_PROXY", None),
        (format!("wss://{THIS_MACHINE}:{tls}/"), "HTTPS_PROXY", Some("NO_PROXY")),
        (format!("wss://{THIS_MACHINE}:{tls}/"), "HTTPS_PROXY", Some("no_proxy")),
    ];
    for (address, variable, exception) in table {
        let before = proxy.asked().len();
        field
            .replace_agent(|options| {
                options.scheme = address.clone();
                options.ready = true;
                options.agent_flags = vec!["--kas-tls-server-name=localhost".into()];
                options.agent_env = vec![(variable, through.clone())];
                options.agent_env.extend(exception.map(|name| (name, format!("example.com,{THIS_MACHINE}"))));
            })
            .await;
        assert_eq!(Client::new(&field).await.get("/version").await.0, 200);
        let asked = proxy.asked().split_off(before);
        if exception.is_some() {
            assert!(asked.is_empty(), "{asked:?}");
            continue;
        }
        assert_eq!(asked.len(), 1, "{address}: {asked:?}");
        let port = if address.starts_with("ws:") { plain } else { tls };
        assert_says(
            &asked[0],
            &[&format!("CONNECT {THIS_MACHINE}:{port} HTTP/1.1"), "Basic bWU6cGFzcy13b3Jk"],
        );
        assert!(!field.agent.text().contains("pass-word"), "the proxy's password is in the log");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_with_its_status() {
    let field = Field::with(Options { ready: false, ..Options::default() }).await;
    let port = field.addresses.edge_tls.port();
    for (line, advice) in [
        ("HTTP/1.1 403 Forbidden", "NO_PROXY"),
        ("HTTP/1.1 407 Proxy Authentication Required", "user name and password"),
        ("HTTP/1.1 502 Bad Gateway", ""),
    ] {
        let proxy = Obstacle::proxy(Some(line)).await;
        let cause = refusal(&field, |options| {
            options.scheme = format!("wss://{THIS_MACHINE}:{port}/");
            options.agent_env.push(("HTTPS_PROXY", format!("http://{}", proxy.address)));
        })
        .await;
        let status = line.strip_prefix("HTTP/1.1 ").unwrap();
        assert_says(&cause, &[&proxy.address.to_string(), "refused CONNECT", status, advice]);
    }
    // A proxy that is not there.
    let cause = refusal(&field, |options| {
        options.scheme = format!("wss://{THIS_MACHINE}:{port}/");
        options.agent_env.push(("HTTPS_PROXY", "http://127.0.0.1:1".into()));
    })
    .await;
    assert_says(&cause, &["cannot connect to 127.0.0.1:1"]);
}

#[tokio::test]
async fn a_scheme_that_does_not_fit_the_port_is_told_so() {
    let field = Field::with(Options { ready: false, ..Options::default() }).await;
    let (tls, plain) = (field.addresses.edge_tls.port(), field.addresses.edge_plain.port());
    let straight = field.addresses.broker_agents.port();
    let web = field.ca.issue(&["localhost"]);
    let web = Obstacle::web_server(&web, |_| {
        "HTTP/1.1 404 Not Found\r\ncontent-length: 13\r\n\r\nno such page\n".to_owned()
    })
    .await;
    let table: [(String, &[&str]); 7] = [
        (format!("ws://localhost:{tls}/"), &["TLS", "wss://"]),
        (format!("grpc://localhost:{tls}"), &["TLS", "grpcs://"]),
        (format!("wss://localhost:{plain}/"), &["does not speak TLS on this port", "ws://"]),
        (format!("grpcs://localhost:{plain}"), &["does not speak TLS on this port", "grpc://"]),
        (format!("wss://localhost:{straight}/"), &["does not speak TLS on this port"]),
        (format!("wss://localhost:{}/", web.address.port()), &["404", "no such page", "--kas-address"]),
        ("wss://localhost:1/".into(), &["cannot connect to localhost:1"]),
    ];
    for (address, words) in table {
        let cause = refusal(&field, |options| options.scheme = address.clone()).await;
        assert_says(&cause, words);
    }
}
