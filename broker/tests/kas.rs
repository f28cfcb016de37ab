//! The program itself: its flags, its exit codes, its orderly end. What it serves is tested in `tests/`.

#![expect(clippy::unwrap_used, reason = "a test may fail right where it stands")]

use std::{
    io::{BufRead, BufReader},
    process::{Command, Output, Stdio},
};

fn kas(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kas")).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_version_is_printed_as_kas_prints_it() {
    let said = kas(&["--version"]);
    assert!(said.status.success());
    assert!(text(&said.stdout).starts_with("kas version v"), "{}", text(&said.stdout));
}

#[test]
fn check_names_what_is_wrong_and_starts_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kas.yaml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        kas(&["--check", "--configuration-file", file.to_str().unwrap()])
    };
    std::fs::write(folder.path().join("ids.yaml"), "agents: []\n").unwrap();
    let good = check("embedded: {identities_file: ids.yaml}\nobservability: {logging: {grpc_level: info}}\n");
    assert!(good.status.success(), "{}", text(&good.stderr));
    assert!(text(&good.stdout).contains("observability.logging.grpc_level is accepted and not in force yet"));
    for (written, wanted) in [
        ("embedded: {identities_file: ids.yaml}\nagent: {lisen: {}}\n", "kas.yaml:2:9: agent.lisen: "),
        ("embedded: {identities_file: ids.yaml}\nagent: {listen: {address: nowhere}}\n", "nowhere"),
        ("embedded: {identities_file: missing.yaml}\n", "missing.yaml"),
        ("embedded: {identities_file: ids.yaml}\npolicies: {directory: nowhere}\n", "policies.directory"),
        ("embedded: {identities_file: ids.yaml}\npolicies: {}\n", "kas.yaml:2:1: policies.directory: "),
    ] {
        let bad = check(written);
        assert_eq!(bad.status.code(), Some(1));
        let error = text(&bad.stderr);
        assert!(error.starts_with("Program aborted: ") && error.contains(wanted), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
    }
}

#[test]
fn sigterm_ends_an_idle_broker_with_status_0() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kas.yaml");
    std::fs::write(folder.path().join("ids.yaml"), "agents: []\n").unwrap();
    let config = "embedded: {identities_file: ids.yaml}\nagent: {listen: {address: '127.0.0.1:0'}}\n\
                  observability: {listen: {address: '127.0.0.1:0'}}\n";
    std::fs::write(&file, config).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_kas"))
        .args(["--configuration-file", file.to_str().unwrap()])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"message\":\"ready\"")), "it never was ready");
    let sent = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(sent.success());
    let rest: Vec<_> = lines.map_while(Result::ok).collect();
    assert!(child.wait().unwrap().success(), "{rest:?}");
    assert!(rest.iter().any(|line| line.contains("\"message\":\"drained\"")), "{rest:?}");
}
