//! Handover: listening sockets from the edge before and from systemd.

use crate::clients::{call, echo, grpc, h2, tcp, tls};
use crate::harness::{Edge, Setup, token, until};
use crate::upstreams::{Agents, KubernetesApi};
use bytes::Bytes;
use postern_certs::dev::Ca;
use rustix::io::{FdFlags, fcntl_setfd};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinSet;

const SOCKET: &str = "handover: {socket: edge.sock}";

async fn started(agents: &Agents, api: &KubernetesApi) -> Edge {
    Edge::start(Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more: SOCKET }).await
}

/// An edge with the same configuration, that takes over.
fn successor(edge: &Edge, config: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern-edge"));
    command.arg("--config").arg(edge.directory.path().join(config));
    command.arg("--upgrade-from").arg(edge.directory.path().join("edge.sock"));
    command
}

/// Dials without a pause, each time with a stream of its own. Counts; any failure is a panic.
fn dialling(address: SocketAddr, done: &Arc<AtomicUsize>, stop: &Arc<AtomicBool>) -> JoinSet<()> {
    let mut clients = JoinSet::new();
    for index in 0..3 {
        let (done, stop) = (done.clone(), stop.clone());
        clients.spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                echo(&h2(tcp(address).await).await, &token(&format!("dialler-{index}"))).await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    clients
}

async fn reaches(done: &AtomicUsize, count: usize) {
    until("so many are served", async || (done.load(Ordering::Relaxed) >= count).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_over_and_nobody_who_dials_is_refused() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut first = started(&agents, &api).await;
    let client = h2(tls(&first, &[b"h2"]).await).await;
    let mut busy = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await;
    let (done, stop) = (Arc::default(), Arc::default());
    let mut clients = dialling(first.plain, &done, &stop);
    reaches(&done, 20).await;

    let mut second = Edge::launch(successor(&first, "edge.yaml"), TempDir::new().unwrap(), Ca::new()).await;
    assert_eq!((second.plain, second.tls, second.admin), (first.plain, first.tls, first.admin));
    second.line(|line| line["message"].as_str().is_some_and(|text| text.starts_with("took over"))).await;
    first.line(|line| line["message"] == "draining" && line["asked"] == "HandedOver").await;
    // The one before finishes what it had.
    busy.send(b"still here").await;
    assert_eq!(busy.read(10).await, b"still here");
    first.assert_alive();
    second.probe("/readiness", 200).await;
    busy.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(busy.status().await.0, 0);
    assert_eq!(first.ended().await.code(), Some(0));
    reaches(&done, done.load(Ordering::Relaxed) + 20).await;

    // And a third one: the socket moved along.
    let third = Edge::launch(successor(&first, "edge.yaml"), TempDir::new().unwrap(), Ca::new()).await;
    assert_eq!(second.ended().await.code(), Some(0));
    reaches(&done, done.load(Ordering::Relaxed) + 20).await;
    stop.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.expect("a connection was refused or broke");
    }
    println!("{} connections during two handovers, none refused", done.load(Ordering::Relaxed));
    drop(third);
}

#[tokio::test]
async fn a_successor_that_cannot_start_changes_nothing() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let mut edge = started(&agents, &api).await;
    let text = std::fs::read_to_string(edge.directory.path().join("edge.yaml")).unwrap();
    let bad = format!("{text}policies: {{directory: nowhere}}\n");
    std::fs::write(edge.directory.path().join("bad.yaml"), bad).unwrap();
    let failed = successor(&edge, "bad.yaml").output().await.unwrap();
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8(failed.stderr).unwrap();
    assert!(said.contains("nowhere"), "{said}");
    edge.line(|line| line["message"] == "no handover; this edge goes on").await;
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
    // One that does not ask is told that there is another.
    let mut rival = Command::new(env!("CARGO_BIN_EXE_postern-edge"));
    let rival = rival.arg("--config").arg(edge.directory.path().join("edge.yaml")).output().await.unwrap();
    let said = String::from_utf8(rival.stderr).unwrap();
    assert!(!rival.status.success() && said.contains("--upgrade-from"), "{said}");
    edge.assert_alive();
}

#[tokio::test]
async fn sockets_from_systemd_are_served() {
    let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
    let directory = TempDir::new().unwrap();
    let ca = Ca::new();
    ca.issue(&["localhost"]).write(directory.path()).unwrap();
    let bound = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    let [plain, tls, admin] = bound.each_ref().map(|listener| listener.local_addr().unwrap());
    // The admin listener is found by its name, the others by their addresses.
    std::fs::write(
        directory.path().join("edge.yaml"),
        format!(
            "listen:\n- address: {plain}\n- address: {tls}\n  tls: {{certificates: [{{certificate_file: tls.crt, key_file: tls.key}}]}}\n\
             upstreams:\n  agents: {{addresses: ['{}']}}\n  kubernetes_api: {{addresses: ['{}']}}\nadmin: {{listen: 127.0.0.1:1}}\n",
            agents.address, api.address
        ),
    )
    .unwrap();
    for listener in &bound {
        fcntl_setfd(listener, FdFlags::empty()).unwrap();
    }
    let [one, two, three] = bound.each_ref().map(|listener| listener.as_raw_fd());
    // Moved aside first, to numbers that bash knows to be free: they may have each other's.
    let script = format!(
        "exec {{a}}<&{one} {{b}}<&{two} {{c}}<&{three}; exec 3<&$a 4<&$b 5<&$c; \
         LISTEN_PID=$$ LISTEN_FDS=3 LISTEN_FDNAMES=edge.socket:edge.socket:admin exec \"$0\" --config \"$1\""
    );
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(script)
        .arg(env!("CARGO_BIN_EXE_postern-edge"))
        .arg(directory.path().join("edge.yaml"));
    let mut edge = Edge::launch(command, directory, ca).await;
    drop(bound);
    assert_eq!((edge.plain, edge.tls, edge.admin), (plain, tls, admin));
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
    edge.probe("/readiness", 200).await;
    edge.signal("TERM");
    assert_eq!(edge.ended().await.code(), Some(0));
}
