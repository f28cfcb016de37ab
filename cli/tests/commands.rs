//! The commands as an operator runs them: the built program, its output and its exit code. The demo needs the other
//! programs too and is tested with the whole system.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread;

fn postern(arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_postern"))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("cargo built it");
    // A program that does not read its input may be gone already.
    let _ = child.stdin.take().expect("it is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("it can be waited for")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("it speaks UTF-8")
}

#[test]
fn a_generated_token_can_be_hashed_with_and_without_its_newline() {
    let token = text(&postern(&["generate-token"], "").stdout);
    let hash = postern(&["hash-token"], &token);
    assert!(hash.status.success());
    assert_eq!(text(&hash.stdout).trim().len(), 64);
    assert_eq!(hash.stdout, postern(&["hash-token"], token.trim()).stdout);
}

#[test]
fn what_is_no_token_is_refused_without_showing_it() {
    for input in ["", "\n", "hush hush", "hush\nhush"] {
        let refused = postern(&["hash-token"], input);
        assert_eq!(refused.status.code(), Some(1), "{input:?}");
        let said = text(&refused.stderr);
        assert!(said.starts_with("postern: ") && !said.contains("hush"), "{said}");
    }
}

#[test]
fn a_policy_check_says_where_the_problem_is_and_exits_with_one() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("broken.yaml"), "kind: [\n").unwrap();
    let path = directory.path().to_str().unwrap();
    let checked = postern(&["policy", "check", path], "");
    assert_eq!(checked.status.code(), Some(1));
    assert!(text(&checked.stderr).contains("broken.yaml"));
}

#[test]
fn a_tied_program_runs_only_while_its_parent_lives() {
    let own = std::process::id().to_string();
    assert_eq!(postern(&["tied", &own, "sh", "-c", "exit 7"], "").status.code(), Some(7));
    // Process 1 is alive, but it is not the parent.
    let orphan = postern(&["tied", "1", "sh", "-c", "exit 7"], "");
    assert_eq!(orphan.status.code(), Some(1));
}

#[test]
fn a_kubeconfig_that_is_not_there_is_named() {
    let failed = postern(&["demo", "--once", "--kubeconfig", "/does/not/exist"], "");
    assert_eq!(failed.status.code(), Some(1));
    let said = text(&failed.stderr);
    assert!(said.contains("/does/not/exist") || said.contains("there is no kas"), "{said}");
}

/// `agents` against a broker that says this once: what the command said, and the head that it sent.
fn agents(folder: &Path, arguments: &[&str], answer: &'static str) -> (Output, Vec<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = url(&listener);
    let broker = thread::spawn(move || {
        let (mut io, _) = listener.accept().expect("the command dials");
        let read = BufReader::new(io.try_clone().expect("a socket can be cloned"));
        let head = read.lines().map(|line| line.expect("the command speaks UTF-8"));
        let head: Vec<String> = head.take_while(|line| !line.is_empty()).collect();
        io.write_all(answer.as_bytes()).expect("the command listens");
        head
    });
    let secret = secret_file(folder);
    let output = postern(&[&["agents", "--api", &url, "--secret-file", &secret], arguments].concat(), "");
    (output, broker.join().expect("nothing in it panics"))
}

fn url(listener: &TcpListener) -> String {
    format!("http://{}", listener.local_addr().expect("it is bound"))
}

fn secret_file(folder: &Path) -> String {
    let path = folder.join("secret");
    std::fs::write(&path, "aHVzaCBodXNo\n").expect("the folder is ours");
    path.into_os_string().into_string().expect("temporary folders have plain names")
}

const LIST: &str = concat!(
    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
    r#"{"items":[{"agent_id":7,"project_id":3,"name":"prod","version":"v17.1.2","commit":"abc","pod_namespace":"agents","#,
    r#""pod_name":"a-0","kind":"registered","connection_id":"1","connected_at":"2026-01-02T03:04:05Z","#,
    r#""address":"192.0.2.1:5000","broker":"grpc://kas-0:8155"}],"missing_brokers":["grpc://kas-1:8155"],"#,
    r#""truncated":false,"gone":[{"agent_id":9,"last_seen":null}]}"#,
    "\n"
);

#[test]
fn agents_are_listed_with_a_signed_question_and_those_that_are_gone_make_it_fail() {
    let folder = tempfile::tempdir().unwrap();
    let (output, head) = agents(folder.path(), &["--agent", "7", "--agent", "9"], LIST);
    assert_eq!(head[0], "GET /api/v1/agents?agent_id=7&agent_id=9&gone=true HTTP/1.1");
    let jwt = head.iter().find_map(|line| line.strip_prefix("authorization: Bearer ")).expect("it is signed");
    assert_eq!(jwt.split('.').count(), 3);
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stdout);
    assert!(said.starts_with("AGENT  NAME  PROJECT  VERSION"), "{said}");
    assert!(said.contains("7      prod  3        v17.1.2  agents/a-0  2026-01-02T03:04:05Z"), "{said}");
    assert!(said.contains("agent 9 is not connected, and no broker that answered remembers it"), "{said}");
    let remarks = text(&output.stderr);
    assert!(remarks.contains("grpc://kas-1:8155"), "{remarks}");
    for shown in [said, remarks] {
        assert!(!shown.contains("hush") && !shown.contains("eyJ"), "{shown}");
    }
}

#[test]
fn agents_in_json_are_what_the_broker_says() {
    let folder = tempfile::tempdir().unwrap();
    let (output, head) = agents(folder.path(), &["--json", "--project", "3"], LIST);
    assert_eq!(head[0], "GET /api/v1/agents?project_id=3 HTTP/1.1");
    assert_eq!(text(&output.stdout), LIST.split_once("\r\n\r\n").unwrap().1);
}

#[test]
fn agents_that_cannot_be_listed_say_what_to_look_at() {
    let folder = tempfile::tempdir().unwrap();
    let refusal = "HTTP/1.1 401 Unauthorized\r\nconnection: close\r\n\r\nJWT validation failed\n";
    let tls = "\u{15}\u{3}\u{3}\u{0}\u{2}\u{2}\u{a}";
    for (answer, words) in [(refusal, "(JWT validation failed)"), (tls, "say https://")] {
        let (output, _) = agents(folder.path(), &[], answer);
        assert_eq!(output.status.code(), Some(1));
        let said = text(&output.stderr);
        assert!(said.starts_with("postern: ") && said.contains(words), "{said}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = url(&listener);
    drop(listener);
    let secret = secret_file(folder.path());
    for (api, file, words) in [
        (url.as_str(), secret.as_str(), "cannot connect to 127.0.0.1"),
        ("grpc://kas:8150", secret.as_str(), "--api must be http://"),
        (url.as_str(), "/does/not/exist", "cannot read the secret file /does/not/exist"),
    ] {
        let output = postern(&["agents", "--api", api, "--secret-file", file], "");
        let said = text(&output.stderr);
        assert!(output.status.code() == Some(1) && said.contains(words), "{said}");
    }
}
