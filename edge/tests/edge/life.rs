//! Life: drain, certificate reload, readiness, metrics, `--check`.

use crate::clients::{call, echo, grpc, h2, tcp, tls, websocket};
use crate::harness::{Edge, Setup, check, exchange, token, until};
use crate::upstreams::{Agents, KubernetesApi};
use bytes::Bytes;
use postern_certs::dev::Ca;

const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";

#[tokio::test]
async fn sigterm_lets_a_running_stream_finish_and_exits_0() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = Edge::before(agents.address, api.address).await;
    edge.probe("/readiness", 200).await;
    let client = h2(websocket(tls(&edge, &[]).await).await).await;
    let token = token("agent");
    let mut busy = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await;
    let _idle_tunnel = call(&client, grpc(TUNNEL, Some(&token))).await;

    edge.signal("TERM");
    assert_eq!(edge.probe("/readiness", 503).await, "draining\n");
    edge.probe("/liveness", 200).await;
    busy.send(b"still here").await;
    assert_eq!(busy.read(10).await, b"still here");
    edge.assert_alive();
    busy.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(busy.status().await.0, 0);
    // Nobody waits for the idle tunnel.
    assert_eq!(edge.ended().await.code(), Some(0));
}

#[tokio::test]
async fn an_idle_edge_exits_at_once() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = Edge::before(agents.address, api.address).await;
    let _idle = h2(tcp(edge.plain).await).await;
    edge.signal("TERM");
    // Who is waited for has a minute.
    assert_eq!(edge.ended().await.code(), Some(0));
}

#[tokio::test]
async fn what_does_not_finish_in_time_is_cut_and_counted() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = Edge::start(Setup {
        agents: vec![agents.address],
        kubernetes_api: vec![api.address],
        more: "drain: {grace: 200ms}",
    })
    .await;
    let client = h2(tcp(edge.plain).await).await;
    let _busy = call(&client, grpc("/stall", Some(&token("agent")))).await;
    let mut tunnel = call(&client, grpc(TUNNEL, Some(&token("agent")))).await;
    // The stand-in echoes, which from a tunnel's point of view is a request.
    tunnel.send(b"x").await;
    tunnel.read(1).await;
    edge.signal("TERM");
    assert_eq!(edge.ended().await.code(), Some(1));
    let line = edge.line(|line| line["level"] == "ERROR").await;
    assert_eq!(line["streams"], 2);
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = Edge::before(agents.address, api.address).await;
    let client = h2(tcp(edge.plain).await).await;
    let _busy = call(&client, grpc("/stall", Some(&token("agent")))).await;
    edge.signal("TERM");
    edge.line(|line| line["message"] == "draining").await;
    edge.signal("TERM");
    assert_eq!(edge.ended().await.code(), Some(1));
}

#[tokio::test]
async fn a_new_certificate_serves_new_connections_and_old_streams_go_on() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = Edge::before(agents.address, api.address).await;
    let token = token("agent");
    let client = h2(tls(&edge, &[b"h2"]).await).await;
    let mut before = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await;
    let old = tls(&edge, &[]).await.get_ref().1.peer_certificates().unwrap()[0].clone();

    edge.ca.issue(&["localhost"]).write(edge.directory.path()).unwrap();
    let renewed = until("the new certificate is served", async || {
        let now = tls(&edge, &[]).await.get_ref().1.peer_certificates().unwrap()[0].clone();
        (now != old).then_some(now)
    })
    .await;
    before.send(b"x").await;
    assert_eq!(before.read(1).await, b"x");

    // A pair that does not fit together leaves the last good one in force.
    std::fs::write(edge.directory.path().join("tls.key"), Ca::new().issue(&["localhost"]).key_pem).unwrap();
    edge.line(|line| line["level"] == "ERROR" && line.to_string().contains("tls.")).await;
    assert_eq!(tls(&edge, &[]).await.get_ref().1.peer_certificates().unwrap()[0], renewed);
    edge.assert_alive();
}

#[tokio::test]
async fn readiness_follows_the_broker() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    edge.probe("/readiness", 200).await;
    agents.kill();
    let why = edge.probe("/readiness", 503).await;
    assert!(why.contains(&agents.address.to_string()), "{why}");
    edge.probe("/liveness", 200).await;
    edge.probe("/nowhere", 404).await;
}

#[tokio::test]
async fn metrics_count_streams_and_never_name_a_token() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let client = h2(tcp(edge.plain).await).await;
    echo(&client, &token("agent")).await;
    let _busy = call(&client, grpc("/stall", Some(&token("agent")))).await;
    let _parked = call(&client, grpc(TUNNEL, Some(&token("agent")))).await;
    let metrics = edge.probe("/metrics", 200).await;
    for line in [
        "postern_edge_streams_busy 1",
        "postern_edge_streams_parked 1",
        "postern_edge_tracked_tokens 1",
        "postern_edge_connections{kind=\"http2\",tls=\"false\"} 1",
        "postern_edge_requests_total{route=\"agents\",class=\"grpc_ok\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
    assert!(!metrics.contains(crate::harness::SECRET));
}

#[tokio::test]
async fn after_a_storm_of_every_kind_all_descriptors_are_back() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let edge = Edge::before(agents.address, api.address).await;
    let token = token("agent");
    let round = async || {
        for _ in 0..20 {
            echo(&h2(tcp(edge.plain).await).await, &token).await;
            echo(&h2(tls(&edge, &[b"h2"]).await).await, &token).await;
            let tunnels = h2(websocket(tls(&edge, &[]).await).await).await;
            let mut open = call(&tunnels, grpc(TUNNEL, Some(&token))).await;
            open.send(b"x").await;
            exchange(edge.plain, b"GET /api HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").await;
            exchange(edge.plain, b"\x00junk\r\n\r\n").await;
            drop(tls(&edge, &[]).await);
            drop(tcp(edge.plain).await);
        }
    };
    // The first round opens what stays open: pooled connections to the broker.
    round().await;
    edge.idle().await;
    let before = edge.descriptors();
    round().await;
    edge.idle().await;
    // A loss would be one for each of the twenty; another pooled connection to the broker is none.
    until(&format!("there are about {before} descriptors again"), async || {
        (edge.descriptors() < before + 10).then_some(())
    })
    .await;
}

#[tokio::test]
async fn check_says_everything_that_is_wrong_and_starts_nothing() {
    let directory = tempfile::TempDir::new().unwrap();
    let good = "listen: [{address: '127.0.0.1:0'}]\nupstreams: {agents: {addresses: ['127.0.0.1:8150']}}\n";
    assert_eq!(check(directory.path(), good).await, (true, String::new()));
    let (ok, said) = check(directory.path(), "listen: [{address: here}]\ndrain: {grace: soon}").await;
    assert!(!ok);
    for part in ["edge.yaml", "listen[0].address", "upstreams.agents.addresses", "drain.grace"] {
        assert!(said.contains(part), "{part} is not in {said}");
    }
    let (ok, said) = check(directory.path(), &format!("{good}limit: 5\n")).await;
    assert!(!ok && said.contains("`limit`") && said.contains("line 3"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    let policies = directory.path().join("policies");
    std::fs::create_dir(&policies).unwrap();
    std::fs::write(policies.join("a.yaml"), "apiVersion: postern/v1\nkind: LimitPolicyy\n").unwrap();
    let (ok, said) = check(directory.path(), &format!("{good}policies: {{directory: policies}}\n")).await;
    assert!(!ok && said.contains("a.yaml:2:") && said.contains("LimitPolicyy"), "{said}");
}
