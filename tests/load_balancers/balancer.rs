//! Starts a load balancer from its file in `deploy/load-balancers`, with the addresses and paths of this test.

use crate::harness::{Process, cache, until};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};
use tokio::{net::TcpStream, process::Command};

#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    HaproxyTcp,
    HaproxyHttps,
    NginxStream,
    NginxHttp,
    EnvoyTcp,
    EnvoyHttps,
}

impl Kind {
    pub(super) fn ends_tls(self) -> bool {
        matches!(self, Self::HaproxyHttps | Self::NginxHttp | Self::EnvoyHttps)
    }
}

/// A running one; gone when dropped.
pub(super) struct Balancer {
    pub(super) process: Process,
    pub(super) address: SocketAddr,
}

/// The text of a file of `deploy/load-balancers` with these words replaced. Words that are not there fail: the test would
/// run something else than what is deployed.
pub(super) fn deployed(name: &str, replace: &[(&str, &str)]) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/load-balancers").join(name);
    let mut text =
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    for (from, to) in replace {
        assert!(text.contains(from), "{from:?} is not in {name}");
        text = text.replace(from, to);
    }
    text
}

impl Balancer {
    pub(super) async fn start(here: &Path, kind: Kind, edge: SocketAddr, admin: SocketAddr) -> Self {
        // Nobody can be asked which port the system chose for another program: the next one who asks gets another.
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let file = |name: &str| here.join(name).display().to_string();
        let both = |port: u16| [format!("10.0.1.11:{port}"), format!("10.0.1.12:{port}")];
        let port = if kind.ends_tls() { 8080 } else { 8443 };
        let [one, other] = both(port);
        let (edge, probes) = (edge.to_string(), admin.port().to_string());
        let (name, command, text) = match kind {
            Kind::HaproxyTcp | Kind::HaproxyHttps => {
                let pem =
                    ["tls.crt", "tls.key"].map(|name| std::fs::read_to_string(here.join(name)).unwrap());
                std::fs::write(here.join("postern.pem"), pem.concat()).unwrap();
                let name = if kind.ends_tls() { "haproxy/https.cfg" } else { "haproxy/tcp.cfg" };
                let (bind, check) = (format!("bind {address}"), format!("check port {probes}"));
                let mut replace = vec![
                    ("bind :443", bind.as_str()),
                    (&one, &edge),
                    (&other, &edge),
                    ("check port 8181", &check),
                    ("maxconn 50000", "maxconn 500"),
                ];
                let pem = file("postern.pem");
                if kind.ends_tls() {
                    replace.push(("/etc/haproxy/postern.pem", &pem));
                }
                let mut command = Command::new(program("/usr/sbin/haproxy"));
                command.args(["-db", "-f", &file("balancer.conf")]);
                (name, command, deployed(name, &replace))
            }
            Kind::NginxStream | Kind::NginxHttp => {
                let name = if kind.ends_tls() { "nginx/http.conf" } else { "nginx/stream.conf" };
                let listen = format!("listen {address}");
                let mut replace = vec![
                    ("listen 443", listen.as_str()),
                    (&one, &edge),
                    (&other, &edge),
                    ("worker_connections 50000", "worker_connections 500"),
                ];
                let (certificate, key) = (file("tls.crt"), file("tls.key"));
                if kind.ends_tls() {
                    replace.push(("/etc/nginx/postern.crt", &certificate));
                    replace.push(("/etc/nginx/postern.key", &key));
                }
                let mut command = Command::new(program("/usr/sbin/nginx"));
                // One process, which is gone as a whole when it is killed.
                let here = format!(
                    "daemon off; master_process off; pid {}; error_log stderr;",
                    file("balancer.pid")
                );
                command.args(["-c", &file("balancer.conf"), "-g", &here]);
                (name, command, deployed(name, &replace))
            }
            Kind::EnvoyTcp | Kind::EnvoyHttps => {
                let name = if kind.ends_tls() { "envoy/https.yaml" } else { "envoy/tcp.yaml" };
                let place = |address: &str, port: u16| format!("{{address: {address}, port_value: {port}}}");
                let (edge_ip, edge_port) = edge.split_once(':').expect("an IPv4 address");
                let there = place(edge_ip, edge_port.parse().unwrap());
                let here = place("127.0.0.1", address.port());
                let probes = format!("health_check_config: {{port_value: {probes}}}");
                let (everywhere, one, other) =
                    (place("0.0.0.0", 443), place("10.0.1.11", port), place("10.0.1.12", port));
                let mut replace = vec![
                    (everywhere.as_str(), here.as_str()),
                    (&one, &there),
                    (&other, &there),
                    ("health_check_config: {port_value: 8181}", &probes),
                ];
                let (certificate, key) = (file("tls.crt"), file("tls.key"));
                if kind.ends_tls() {
                    replace.push(("/etc/envoy/postern.crt", &certificate));
                    replace.push(("/etc/envoy/postern.key", &key));
                }
                let mut command = Command::new(program(cache().join("envoy/bin/envoy")));
                command.args(["--concurrency", "1", "--use-dynamic-base-id", "-l", "warning"]);
                command.args(["-c", &file("balancer.yaml")]);
                (name, command, deployed(name, &replace))
            }
        };
        let written = if name.starts_with("envoy") { "balancer.yaml" } else { "balancer.conf" };
        std::fs::write(here.join(written), text).unwrap();
        let mut process = Process::launch("balancer", command, here, &[], &[]);
        until(&format!("{name} listens"), async || {
            assert!(process.alive(), "{name} ended:\n{}", process.text());
            TcpStream::connect(address).await.ok()
        })
        .await;
        Self { process, address }
    }
}

fn program(path: impl Into<PathBuf>) -> PathBuf {
    let path = path.into();
    assert!(path.exists(), "{} is missing; run `make test`, or tests/setup/peers.sh", path.display());
    path
}
