//! Whole configuration files of GitLab's kas, of both generations, as operators have them: the broker starts with each as
//! it is, and says what is wrong with each when something is.

use crate::harness::{PATIENCE, Process, binary, http, until};
use base64::{Engine, prelude::BASE64_STANDARD};
use postern_certs::dev::{Ca, Issued};
use std::{fs, path::Path, process::Stdio};
use tokio::{process::Command, time::timeout};

/// Every key that a kas of 14.1 knows.
const GENERATION_14: &str = r#"
gitlab:
  address: http://127.0.0.1:1/gitlab
  authentication_secret_file: FOLDER/secret
  ca_certificate_file: FOLDER/ca.crt
  api_rate_limit:
    refill_rate_per_second: 10.5
    bucket_size: 50
agent:
  listen:
    network: tcp
    address: 127.0.0.1:0
    websocket: true
    certificate_file: FOLDER/tls.crt
    key_file: FOLDER/tls.key
    connections_per_token_per_minute: 100
    max_connection_age: 1800s
  configuration:
    poll_period: 20s
    max_configuration_file_size: 131072
  gitops:
    poll_period: 20s
    project_info_cache_ttl: 300s
    project_info_cache_error_ttl: 60s
    max_manifest_file_size: 5242880
    max_total_manifest_file_size: 20971520
    max_number_of_paths: 100
    max_number_of_files: 1000
  info_cache_ttl: 300s
  info_cache_error_ttl: 60s
  redis_conn_info_ttl: 300s
  redis_conn_info_refresh: 240s
  redis_conn_info_gc: 600s
  kubernetes_api:
    listen:
      network: tcp
      address: 127.0.0.1:0
      certificate_file: FOLDER/tls.crt
      key_file: FOLDER/tls.key
    url_path_prefix: /k8s-proxy
    allowed_agent_cache_ttl: 60s
    allowed_agent_cache_error_ttl: 10s
observability:
  usage_reporting_period: 60s
  listen:
    network: tcp
    address: 127.0.0.1:0
  prometheus:
    url_path: /metrics
  tracing:
    connection_string: ""
  sentry:
    dsn: ""
    environment: production
  logging:
    level: info
  google_profiler:
    enabled: false
    project_id: p
    credentials_file: FOLDER/credentials
  liveness_probe:
    url_path: /liveness
  readiness_probe:
    url_path: /readiness
gitaly:
  global_api_rate_limit:
    refill_rate_per_second: 10.0
    bucket_size: 50
  per_server_api_rate_limit:
    refill_rate_per_second: 5.0
    bucket_size: 10
redis:
  server:
    address: 127.0.0.1:1
  pool_size: 5
  dial_timeout: 5s
  read_timeout: 1s
  write_timeout: 1s
  idle_timeout: 50s
  key_prefix: gitlab-kas
  username: kas
  password_file: FOLDER/password
  network: tcp
  tls:
    enabled: false
    certificate_file: ""
    key_file: ""
    ca_certificate_file: ""
api:
  listen:
    network: tcp
    address: 127.0.0.1:0
    authentication_secret_file: FOLDER/secret
    certificate_file: FOLDER/tls.crt
    key_file: FOLDER/tls.key
    max_connection_age: 1800s
private_api:
  listen:
    network: tcp
    address: 127.0.0.1:0
    authentication_secret_file: FOLDER/secret
    max_connection_age: 1800s
"#;

/// What the next generation added, in the sections it added it to; durations and integers in their other spellings.
const GENERATION_16: &str = r#"
# A kas of 16.5
gitlab:
  address: "http://127.0.0.1:1"
  external_url: "https://gitlab.example.com"
  authentication_secret_file: FOLDER/secret
agent:
  listen:
    network: "tcp"
    address: "127.0.0.1:0"
    websocket: true
    connections_per_token_per_minute: 40000
    max_connection_age: "7200s"
    listen_grace_period: "0.5s"
  configuration: {poll_period: "300s"}
  gitops: {}
  remote_development: {poll_period: "15s"}
  kubernetes_api:
    listen:
      address: "127.0.0.1:0"
      listen_grace_period: "0s"
      shutdown_grace_period: "2s"
    url_path_prefix: /-/kubernetes-agent/k8s-proxy/
observability:
  listen:
    address: "127.0.0.1:0"
    certificate_file: ""
    key_file: ""
  tracing:
    otlp_endpoint: ""
    otlp_token_secret_file: ""
    otlp_ca_certificate_file: ""
  logging:
    level: debug
    grpc_level: error
  google_profiler: {enabled: false, debug_logging: false}
redis:
  sentinel:
    master_name: kas
    addresses: ["127.0.0.1:1", "127.0.0.1:2"]
    sentinel_password_file: FOLDER/password
  network: tcp
  password_file: FOLDER/password
  database_index: 3
api:
  listen:
    address: "127.0.0.1:0"
    authentication_secret_file: FOLDER/secret
    listen_grace_period: "0s"
private_api:
  listen:
    address: "127.0.0.1:0"
    authentication_secret_file: FOLDER/secret
    ca_certificate_file: FOLDER/ca.crt
    listen_grace_period: "0s"
"#;

/// No more than a kas of 14.1 must be told; the addresses, so that two of them can run here.
const SHORTEST: &str = "gitlab: {address: 'https://gitlab.example.com', authentication_secret_file: FOLDER/secret}\n\
                        agent: {listen: {address: '127.0.0.1:0'}}\n\
                        observability: {listen: {address: '127.0.0.1:0'}}\n";

/// A folder with everything that the files name.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let ca = Ca::new();
    let Issued { certificate_pem, key_pem } = ca.issue(&["localhost", "127.0.0.1"]);
    let secret = BASE64_STANDARD.encode(rand::random::<[u8; 32]>());
    for (name, text) in [
        ("ca.crt", ca.pem()),
        ("tls.crt", certificate_pem),
        ("tls.key", key_pem),
        ("secret", format!("{secret}\n")),
        ("password", "redis-password".to_owned()),
        ("credentials", "{}".to_owned()),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    folder
}

fn write(folder: &Path, text: &str) -> String {
    let file = folder.join("kas.yaml");
    fs::write(&file, text.replace("FOLDER", &folder.display().to_string())).unwrap();
    file.display().to_string()
}

/// Whether `kas --check` is content, and what it says.
async fn check(folder: &Path, text: &str) -> (bool, String) {
    let file = write(folder, text);
    let mut command = Command::new(binary("kas"));
    command.args(["--configuration-file", &file, "--check"]).stdin(Stdio::null()).kill_on_drop(true);
    let output = timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn configuration_files_of_both_generations_start_the_broker_as_they_are() {
    for (text, listeners) in [
        (GENERATION_14, &["agents", "kubernetes_api", "observability", "api"][..]),
        (GENERATION_16, &["agents", "kubernetes_api", "observability", "api"]),
        (SHORTEST, &["agents", "observability"]),
    ] {
        let folder = folder();
        let (good, said) = check(folder.path(), text).await;
        assert!(good, "{text}\n{said}");
        let arguments = ["--configuration-file".to_owned(), write(folder.path(), text)];
        let mut broker = Process::start("broker", "kas", folder.path(), &arguments, &[]);
        for listener in listeners {
            broker.address("listening", |line| line["listener"] == *listener).await;
        }
        let probes = broker.address("listening", |line| line["listener"] == "observability").await;
        let alive = async || (http::probe(probes, "/liveness").await == Some(200)).then_some(());
        until("the broker is alive", alive).await;
        broker.signal("TERM").await;
        assert!(broker.ended().await.success(), "{}", broker.text());
        assert!(!broker.text().contains("redis-password"), "{}", broker.text());
    }
}

#[tokio::test]
async fn every_mistake_in_a_file_is_told_at_once_with_its_line_its_key_and_what_is_wanted() {
    let folder = folder();
    // What is there -> what a mistake makes of it, and the words that must be said about it beside its line.
    let mistakes: &[(&str, &str, &[&str])] = &[
        ("address: http://127.0.0.1:1/gitlab", "address: gitlab.example.com", &["gitlab.address", "http"]),
        ("refill_rate_per_second: 10.5", "refill_rate_per_second: -1", &["refill_rate_per_second", "-1"]),
        (
            "    network: tcp\n    address: 127.0.0.1:0\n    websocket: true",
            "    network: udp\n    address: 127.0.0.1:0\n    websocket: true",
            &["agent.listen.network", "udp", "unix"],
        ),
        (
            "max_connection_age: 1800s\n  configuration",
            "max_connection_age: 30m\n  configuration",
            &["max_connection_age", "30m"],
        ),
        (
            "max_configuration_file_size: 131072",
            "max_configuration_file_sice: 131072",
            &["max_configuration_file_sice"],
        ),
        ("  info_cache_error_ttl: 60s", "  info_cache_error_ttl: 0s", &["info_cache_error_ttl", "0s"]),
        (
            "  redis_conn_info_refresh: 240s",
            "  redis_conn_info_refresh: 400s",
            &["redis_conn_info_refresh", "redis_conn_info_ttl"],
        ),
        ("    level: info", "    level: loud", &["observability.logging.level", "loud", "debug"]),
        ("  pool_size: 5", "  pool_size: many", &["pool_size", "many"]),
    ];
    let mut text = GENERATION_14.to_owned();
    for (good, bad, _) in mistakes {
        assert_eq!(text.matches(good).count(), 1, "{good}");
        text = text.replace(good, bad);
    }
    let (good, said) = check(folder.path(), &text).await;
    assert!(!good, "{said}");
    println!("{said}");
    assert!(said.contains("kas.yaml"), "{said}");
    for (was, bad, words) in mistakes {
        // The line that differs is the one that is to be named.
        let differing = was.lines().zip(bad.lines()).position(|(was, bad)| was != bad).unwrap();
        let at = text.find(bad).unwrap();
        let line = text[..at].matches('\n').count() + 1 + differing;
        for word in *words {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
        let named = said.contains(&format!("line {line}")) || said.contains(&format!(":{line}:"));
        assert!(named, "line {line} ({bad:?}) is not named in: {said}");
    }
}
