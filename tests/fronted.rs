//! A gRPC server that knows nothing of Postern behind the edge, which is replaced under its callers' hands: grpcio on both
//! sides, as its makers ship it.

use crate::harness::{Process, program::Program, until};
use postern_certs::dev::Ca;
use serde_json::{Value, json};
use std::{net::SocketAddr, path::Path};

const CLIENTS: usize = 4;
const RESTARTS: usize = 3;

async fn edge(here: &Path, number: usize) -> (Process, SocketAddr) {
    let mut arguments = vec!["--config".to_owned(), here.join("edge.yaml").display().to_string()];
    if number > 0 {
        arguments.extend(["--upgrade-from".to_owned(), here.join("edge.sock").display().to_string()]);
    }
    let mut edge = Process::start(&format!("edge-{number}"), "postern-edge", here, &arguments, &[]);
    let address = edge.address("listening", |line| line["tls"] == true).await;
    (edge, address)
}

#[tokio::test]
async fn a_grpcio_server_behind_the_edge_keeps_working_while_the_edge_is_restarted() {
    let folder = tempfile::tempdir().unwrap();
    let here = folder.path();
    let ca = Ca::new();
    ca.write(here).unwrap();
    ca.issue(&["localhost"]).write(here).unwrap();
    let mut server = Program::python("grpcio_echo.py", &["serve"]);
    let port: u16 = server.line().await.parse().unwrap();
    let text = format!(
        "listen: [{{address: '127.0.0.1:0', tls: {{certificates: [{{certificate_file: tls.crt, key_file: tls.key}}]}}}}]\n\
         upstreams: {{agents: {{addresses: ['127.0.0.1:{port}']}}}}\nadmin: {{listen: '127.0.0.1:0'}}\n\
         handover: {{socket: edge.sock}}\n"
    );
    std::fs::write(here.join("edge.yaml"), text).unwrap();

    let (mut now, address) = edge(here, 0).await;
    let ca_file = here.join("ca.crt").display().to_string();
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let target = format!("localhost:{}", address.port());
        let token = format!("caller-{number}");
        let mut client = Program::python("grpcio_echo.py", &["call", &target, &token, &ca_file]);
        assert_eq!(client.line().await, "{}", "the first call");
        clients.push(client);
    }
    for number in 1..=RESTARTS {
        let (next, same) = edge(here, number).await;
        assert_eq!(same, address);
        let mut before = std::mem::replace(&mut now, next);
        until("the edge before has ended", async || (!before.alive()).then_some(())).await;
        // Everybody is served by the new one before that is replaced in its turn.
        until("all clients call the new edge", async || {
            let lines = now.lines();
            let calls = |number: usize| {
                let token =
                    postern_wire::token::TokenKey::of(format!("caller-{number}").as_bytes()).to_string();
                lines.iter().any(|line| line["target"] == "access" && line["token"] == *token)
            };
            (0..CLIENTS).all(calls).then_some(())
        })
        .await;
    }
    for (number, mut client) in clients.into_iter().enumerate() {
        let said: Value = client.tell(json!("stop")).await;
        println!("client {number}: {said}");
        assert!(said["calls"].as_u64().unwrap() > 20, "{said}");
        assert_eq!(said["failed"], 0, "{said}");
        assert!(said["retried"].as_u64().unwrap() <= 1, "{said}");
    }
}
