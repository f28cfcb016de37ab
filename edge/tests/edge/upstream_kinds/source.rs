//! Brokers that are found: by a name that they share, and as the EndpointSlices of a Service.

use super::{listener, told};
use crate::clients::{call, echo, grpc, h2, tcp};
use crate::harness::{Edge, SECRET, token};
use crate::upstreams::{Agents, read_head};
use bytes::Bytes;
use std::net::SocketAddr;
use std::path::Path;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

#[tokio::test]
async fn brokers_are_found_by_the_name_that_they_share() {
    let broker = Agents::start().await;
    let port = broker.address.port();
    let upstreams = format!("agents: {{dns: {{name: localhost, port: {port}, every: 1s}}}}");
    let edge = Edge::start_with(&upstreams, "", &[]).await;
    edge.probe("/readiness", 200).await;
    echo(&h2(tcp(edge.plain).await).await, &token("agent")).await;
}

#[tokio::test]
async fn a_name_that_does_not_resolve_yet_stops_nobody_and_is_told_to_callers() {
    let upstreams = "agents: {dns: {name: brokers.invalid, port: 8150, every: 1s}}";
    let edge = Edge::start_with(upstreams, "", &[]).await;
    edge.line(|line| line["level"] == "WARN" && line["name"] == "brokers.invalid").await;
    let client = h2(tcp(edge.plain).await).await;
    let (code, message) = call(&client, grpc("/echo.Echo/Echo", Some(&token("agent")))).await.status().await;
    assert_eq!(code, 14);
    assert!(message.contains("brokers.invalid:8150"), "{message}");
}

/// As much of a Kubernetes API as lists and watches the EndpointSlices of one Service.
struct Cluster {
    address: SocketAddr,
    slices: watch::Sender<Vec<serde_json::Value>>,
}

impl Cluster {
    async fn start(slices: Vec<serde_json::Value>) -> Self {
        let (listener, address) = listener().await;
        let (slices, state) = watch::channel(slices);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                tokio::spawn(Self::serve(tcp, state.clone()));
            }
        });
        Self { address, slices }
    }

    async fn serve(mut tcp: TcpStream, mut state: watch::Receiver<Vec<serde_json::Value>>) -> Option<()> {
        loop {
            let (head, _) = read_head(&mut tcp).await?;
            let path = "GET /apis/discovery.k8s.io/v1/namespaces/postern/endpointslices?";
            assert!(head.starts_with(path), "{head}");
            assert!(head.contains("labelSelector=kubernetes.io%2Fservice-name%3Dbroker"), "{head}");
            if !head.contains("watch=true") {
                let items = state.borrow_and_update().clone();
                let list = serde_json::json!({
                    "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSliceList",
                    "metadata": {"resourceVersion": "1"}, "items": items,
                })
                .to_string();
                let answer = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{list}",
                    list.len()
                );
                tcp.write_all(answer.as_bytes()).await.ok()?;
                continue;
            }
            tcp.write_all(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n",
            )
            .await
            .ok()?;
            // What came between the list and this.
            state.mark_changed();
            loop {
                state.changed().await.ok()?;
                let slices = state.borrow_and_update().clone();
                for slice in slices {
                    let event = format!("{}\n", serde_json::json!({"type": "MODIFIED", "object": slice}));
                    let chunk = format!("{:x}\r\n{event}\r\n", event.len());
                    tcp.write_all(chunk.as_bytes()).await.ok()?;
                }
            }
        }
    }

    fn kubeconfig(&self, directory: &Path) -> std::path::PathBuf {
        let file = directory.join("kubeconfig");
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\n\
             clusters: [{{name: c, cluster: {{server: 'http://{}'}}}}]\n\
             users: [{{name: u, user: {{token: '{SECRET}'}}}}]\n\
             contexts: [{{name: c, context: {{cluster: c, user: u}}}}]\n",
            self.address
        );
        std::fs::write(&file, text).unwrap();
        file
    }
}

fn slice(version: u32, endpoints: &[(SocketAddr, bool)]) -> serde_json::Value {
    let port = endpoints[0].0.port();
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|(address, terminating)| {
            serde_json::json!({
                "addresses": [address.ip().to_string()],
                "conditions": {"ready": !terminating, "serving": true, "terminating": terminating},
            })
        })
        .collect();
    serde_json::json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "broker-x", "namespace": "postern", "resourceVersion": version.to_string()},
        "ports": [{"name": "agents", "port": port}],
        "endpoints": endpoints,
    })
}

#[tokio::test]
async fn brokers_of_a_service_are_followed_and_those_that_go_finish_what_they_have() {
    let one = Agents::start().await;
    let two = Agents::at(SocketAddr::new([127, 0, 0, 2].into(), one.address.port())).await;
    let cluster = Cluster::start(vec![slice(1, &[(one.address, false)])]).await;
    let directory = TempDir::new().unwrap();
    let kubeconfig = cluster.kubeconfig(directory.path());
    let upstreams = "agents: {kubernetes: {namespace: postern, service: broker, port: agents}}";
    let edge = Edge::start_with(upstreams, "", &[("KUBECONFIG", kubeconfig.as_path())]).await;
    edge.probe("/readiness", 200).await;
    let client = h2(tcp(edge.plain).await).await;
    let token = token("agent");
    let mut old = call(&client, grpc("/echo.Echo/Echo", Some(&token))).await;
    assert_eq!(one.seen.lock().unwrap().len(), 1);

    // It terminates, another one has come.
    cluster.slices.send_replace(vec![slice(2, &[(one.address, true), (two.address, false)])]);
    told(&edge, "broker is about to leave", one.address).await;
    told(&edge, "broker is reachable", two.address).await;
    echo(&client, &token).await;
    assert_eq!(two.seen.lock().unwrap().len(), 1);

    cluster.slices.send_replace(vec![slice(3, &[(two.address, false)])]);
    told(&edge, "broker is gone from discovery", one.address).await;
    echo(&client, &token).await;
    assert_eq!((one.seen.lock().unwrap().len(), two.seen.lock().unwrap().len()), (1, 2));
    old.send(b"still here").await;
    assert_eq!(old.read(10).await, b"still here");
    old.out.send_data(Bytes::new(), true).unwrap();
    assert_eq!(old.status().await.0, 0);
    // Nothing is left of it once its last stream is over.
    edge.line(|line| line["message"] == "closed: nobody has any use for the broker").await;
}
