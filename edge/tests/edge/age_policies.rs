//! Policies about connections that change while connections are open: who leaves, who stays, and how fast.

use crate::ages::Tap;
use crate::clients::{Call, call, echo, grpc, h2, tcp, tls, websocket};
use crate::frames::{PREFACE, SETTINGS, frame};
use crate::harness::{DEADLINE, Edge, Setup, get, token, until};
use crate::upstreams::{Agents, KubernetesApi};
use bytes::Bytes;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;

const TUNNEL: &str = "/gitlab.agent.reverse_tunnel.rpc.ReverseTunnel/Connect";
const ECHO: &str = "/echo.Echo/Echo";

/// An edge with one policy file, which may be written anew.
struct Ruled {
    edge: Edge,
    file: PathBuf,
}

impl Ruled {
    async fn start(agents: &Agents, api: &KubernetesApi, more: &'static str, spec: &str) -> Self {
        let directory = tempfile::TempDir::new().unwrap();
        std::fs::create_dir(directory.path().join("policies")).unwrap();
        let file = directory.path().join("policies/connections.yaml");
        std::fs::write(&file, policy(spec)).unwrap();
        let setup = Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
        Self { edge: Edge::start_in(directory, setup).await, file }
    }

    /// As editors do it; returns when the change is in force, which is the first one's `generation` plus one.
    async fn say(&self, spec: &str, generation: u64) {
        let new = self.file.with_extension("new");
        std::fs::write(&new, policy(spec)).unwrap();
        std::fs::rename(new, &self.file).unwrap();
        self.edge.line(|line| line["generation"] == generation).await;
    }

    /// How many connections were told that they are old.
    async fn told(&self) -> usize {
        let metrics = get(self.edge.admin, "/metrics").await.1;
        let line = metrics.lines().find(|line| line.contains("departures_total{reason=\"age\"}"));
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    }
}

fn policy(spec: &str) -> String {
    format!("apiVersion: postern/v1\nkind: ConnectionPolicy\nmetadata: {{name: ours}}\nspec: {spec}\n")
}

async fn again(stream: &mut Call) {
    stream.send(b"still here").await;
    assert_eq!(stream.read(10).await, b"still here");
}

#[tokio::test]
async fn an_age_that_is_shortened_sends_idle_tunnels_away_and_lets_a_busy_stream_have_its_grace() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let more = "policies: {directory: policies}";
    let ruled = Ruled::start(&agents, &api, more, "{maxAge: 2h, jitterPercent: 0, grace: 1h}").await;
    let idle = h2(websocket(tls(&ruled.edge, &[]).await).await).await;
    let tunnel = call(&idle, grpc(TUNNEL, Some(&token("agent")))).await;
    let client = h2(websocket(tcp(ruled.edge.plain).await).await).await;
    let mut busy = call(&client, grpc(ECHO, Some(&token("busy")))).await;
    let plain = h2(tcp(ruled.edge.plain).await).await;
    let mut cut = call(&plain, grpc("/stall", Some(&token("stalled")))).await;
    again(&mut busy).await;

    let begin = Instant::now();
    ruled.say("{maxAge: 1s, jitterPercent: 0, grace: 10s}", 2).await;
    until("all were told", async || (ruled.told().await == 3).then_some(())).await;
    // The idle one ends as it should: with OK, after which its agent dials again.
    assert_eq!(tunnel.status().await.0, 0);
    // The busy one was told as well. It goes on, and ends by itself.
    again(&mut busy).await;
    busy.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(busy.status().await.0, 0);
    // One that does not end is cut when its grace is over, not before.
    let ended = tokio::time::timeout(DEADLINE, cut.response.body_mut().data()).await.expect("never cut");
    assert!(ended.is_none_or(|data| data.is_err()));
    assert!(begin.elapsed() >= Duration::from_secs(10), "cut before its grace was over");
    // Whoever dials again is welcome.
    echo(&h2(tcp(ruled.edge.plain).await).await, &token("agent")).await;
}

#[tokio::test]
async fn connections_that_are_all_too_old_leave_one_after_the_other_and_a_longer_age_keeps_the_rest() {
    const COUNT: usize = 60;
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let more = "policies: {directory: policies}\nworkers: 2";
    let slowly = "drain: {connectionsPerSecond: 10}";
    let spec = |age: &str| format!("{{maxAge: {age}, jitterPercent: 0, {slowly}}}");
    let ruled = Ruled::start(&agents, &api, more, &spec("2h")).await;
    let mut clients = Vec::new();
    let mut streams = Vec::new();
    for index in 0..COUNT {
        let client = h2(tcp(ruled.edge.plain).await).await;
        streams.push(call(&client, grpc(ECHO, Some(&token(&format!("agent-{index}"))))).await);
        clients.push(client);
    }
    until("all are a second old", async || {
        let connections = get(ruled.edge.admin, "/connections").await.1;
        let young = connections.contains("\"age_seconds\": 0") || connections.contains("\"age_seconds\":0");
        (connections.matches("\"age_seconds\"").count() == COUNT && !young).then_some(())
    })
    .await;
    let begin = Instant::now();
    ruled.say(&spec("1s"), 2).await;
    until("a third has left", async || {
        let told = ruled.told().await;
        let at = begin.elapsed();
        assert!(told <= 3 + (at.as_secs_f64() * 10.0) as usize, "{told} after {at:?}");
        (told >= COUNT / 3).then_some(())
    })
    .await;
    ruled.say(&spec("1h"), 3).await;
    let (told, kept) = (ruled.told().await, Instant::now());
    until("another second is over", async || {
        assert!(ruled.told().await <= told + 1, "they leave though they are young by now");
        (kept.elapsed() > Duration::from_secs(1)).then_some(())
    })
    .await;
    // No stream noticed any of this.
    for stream in &mut streams {
        again(stream).await;
    }
}

#[tokio::test]
async fn a_drain_has_the_grace_that_a_policy_gives_it_by_then() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let more = "drain: {grace: 1h}\npolicies: {directory: policies}";
    let mut ruled = Ruled::start(&agents, &api, more, "{maxAge: 2h}").await;
    let client = h2(tcp(ruled.edge.plain).await).await;
    let _busy = call(&client, grpc("/stall", Some(&token("agent")))).await;
    ruled.edge.signal("TERM");
    ruled.edge.line(|line| line["message"] == "telling connections to leave").await;
    let begin = Instant::now();
    ruled.say("{drain: {grace: 1s}}", 2).await;
    assert_eq!(ruled.edge.ended().await.code(), Some(1));
    assert!(begin.elapsed() >= Duration::from_secs(4), "without notice: {:?}", begin.elapsed());
}

#[tokio::test]
async fn connections_that_are_open_are_pinged_as_often_as_a_policy_says_from_then_on() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let more = "policies: {directory: policies}";
    let ruled = Ruled::start(&agents, &api, more, "{ping: 0s}").await;
    let read: [Arc<Mutex<Vec<u8>>>; 2] = Default::default();
    let mut plain = Tap { io: tcp(ruled.edge.plain).await, read: read[0].clone() };
    plain.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await.unwrap();
    tokio::spawn(async move { tokio::io::copy(&mut plain, &mut tokio::io::sink()).await });
    let tunnelled = Tap { io: tcp(ruled.edge.plain).await, read: read[1].clone() };
    let client = h2(websocket(tunnelled).await).await;
    echo(&client, &token("agent")).await;
    // A frame of 8 bytes on stream 0, and an empty ping of a WebSocket.
    let pings = [&[0, 0, 8, 6, 0, 0, 0, 0, 0][..], &[0x89, 0]];
    let count = |which: usize| {
        let (read, ping) = (read[which].lock().unwrap(), pings[which]);
        read.windows(ping.len()).filter(|part| *part == ping).count()
    };
    assert_eq!([count(0), count(1)], [0, 0]);
    ruled.say("{ping: 1s}", 2).await;
    // The first one answers no ping, but is nobody's agent: it is asked once and stays.
    until("both are pinged", async || (count(0) >= 1 && count(1) >= 3).then_some(())).await;
    ruled.say("{ping: 0s}", 3).await;
    // What came until now is read once this is answered.
    echo(&client, &token("agent")).await;
    let (before, begin) = (count(1), Instant::now());
    until("two seconds are over", async || (begin.elapsed() > Duration::from_secs(2)).then_some(())).await;
    assert!(count(1) <= before + 1, "pinged though no policy wants it any more");
    echo(&client, &token("agent")).await;
}
