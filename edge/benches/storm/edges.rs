//! The edges of the storm, what they read from disk, and their successors.

use crate::agents::connector;
use postern_certs::dev::Ca;
use rustls::pki_types::ServerName;
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The files that all edges read.
pub(crate) struct Ground {
    directory: TempDir,
    ca: Ca,
    origin: SocketAddr,
    told: u64,
}

impl Ground {
    pub(crate) fn new(origin: SocketAddr, told: u64) -> Self {
        let directory = TempDir::new().unwrap();
        let ca = Ca::new();
        ca.write(directory.path()).unwrap();
        ca.issue(&["localhost"]).write(directory.path()).unwrap();
        std::fs::write(directory.path().join("ca.pem"), ca.pem()).unwrap();
        let ground = Self { directory, ca, origin, told };
        std::fs::create_dir(ground.policies()).unwrap();
        ground.write_policy(40_000);
        ground
    }

    pub(crate) fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    fn policies(&self) -> PathBuf {
        self.directory.path().join("policies")
    }

    fn write_policy(&self, per_minute: u32) {
        let text = format!(
            "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {{name: storm}}\nspec: {{match: {{}}, requestsPerToken: {{perMinute: {per_minute}}}}}\n"
        );
        std::fs::write(self.policies().join("storm.yaml"), text).unwrap();
    }

    /// Replaces certificate and key; returns how long it took until every edge shows the new one.
    pub(crate) fn new_certificate(&self, edges: &[Edge]) -> Duration {
        let before = self.shown(&edges[0]);
        self.ca.issue(&["localhost"]).write(self.directory.path()).unwrap();
        let begin = Instant::now();
        for edge in edges {
            while self.shown(edge) == before {
                assert!(begin.elapsed() < Duration::from_secs(10), "the new certificate is not shown");
            }
        }
        begin.elapsed()
    }

    /// The certificate that a new connection gets to see.
    fn shown(&self, edge: &Edge) -> Vec<u8> {
        let config = connector(self.ca.pem().as_bytes()).config().clone();
        let name = ServerName::try_from("localhost").unwrap();
        let mut client = rustls::ClientConnection::new(config, name).unwrap();
        let mut tcp = TcpStream::connect(edge.address).unwrap();
        while client.is_handshaking() {
            client.complete_io(&mut tcp).unwrap();
        }
        client.peer_certificates().unwrap()[0].to_vec()
    }

    /// Replaces the policy; returns how long it took until every edge says that another one is in force.
    pub(crate) fn new_policy(&self, edges: &[Edge]) -> Duration {
        let before: Vec<Value> = edges.iter().map(Edge::generation).collect();
        self.write_policy(39_000);
        let begin = Instant::now();
        for (edge, before) in edges.iter().zip(before) {
            while edge.generation() == before {
                assert!(begin.elapsed() < Duration::from_secs(10), "the new policy is not in force");
            }
        }
        begin.elapsed()
    }
}

/// One edge process.
pub(crate) struct Edge {
    child: Child,
    index: usize,
    pub(crate) address: SocketAddr,
    admin: SocketAddr,
}

impl Edge {
    pub(crate) fn start(ground: &Ground, index: usize) -> Self {
        let directory = ground.directory.path();
        let file = directory.join(format!("edge-{index}.yaml"));
        std::fs::write(
            &file,
            format!(
                "listen: [{{address: '127.0.0.1:0', tls: {{certificates: [{{certificate_file: tls.crt, key_file: tls.key}}]}}}}]\n\
                 upstreams: {{agents: {{addresses: ['{}']}}}}\n\
                 limits: {{connections: 19000}}\n\
                 drain: {{connections_per_second: {}, grace: 120s}}\n\
                 policies: {{directory: policies}}\n\
                 handover: {{socket: handover-{index}.sock}}\n\
                 admin: {{listen: '127.0.0.1:0'}}\nworkers: 1\n",
                ground.origin, ground.told
            ),
        )
        .unwrap();
        Self::spawn(ground, index, &[])
    }

    /// Another process that takes the listening socket over from this one.
    pub(crate) fn successor(&self, ground: &Ground) -> Self {
        let socket = ground.directory.path().join(format!("handover-{}.sock", self.index));
        Self::spawn(ground, self.index, &["--upgrade-from".into(), socket])
    }

    fn spawn(ground: &Ground, index: usize, more: &[PathBuf]) -> Self {
        let program = std::env::var_os("POSTERN_EDGE").expect("POSTERN_EDGE names the program");
        let mut child = Command::new(program)
            .arg("--config")
            .arg(ground.directory.path().join(format!("edge-{index}.yaml")))
            .args(more)
            .env("POSTERN_LOG", "info,access=warn")
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (mut address, mut admin) = (None, None);
        while address.is_none() || admin.is_none() {
            let line = lines.next().expect("the edge ended").unwrap();
            let Ok(line) = serde_json::from_str::<Value>(&line) else { panic!("{line}") };
            let said = || line["address"].as_str().unwrap().parse().ok();
            match line["message"].as_str() {
                Some("listening") => address = said(),
                Some("admin listening") => admin = said(),
                _ => {}
            }
        }
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if line.contains("\"ERROR\"") || line.contains("panicked") {
                    println!("edge {index} said: {line}");
                }
            }
        });
        Self { child, index, address: address.unwrap(), admin: admin.unwrap() }
    }

    pub(crate) fn name(&self) -> usize {
        self.index
    }

    /// KiB resident.
    pub(crate) fn resident(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    fn generation(&self) -> Value {
        let mut tcp = TcpStream::connect(self.admin).unwrap();
        tcp.write_all(b"GET /policies HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str::<Value>(body).unwrap()["generation"].clone()
    }

    /// Waits until the process that was succeeded has ended.
    pub(crate) fn ended(mut self) {
        let begin = Instant::now();
        while self.child.try_wait().unwrap().is_none() {
            assert!(begin.elapsed() < Duration::from_secs(180), "the old edge does not end");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
