//! The commands as an operator runs them: the built program, its output and its exit code. The demo needs the other
//! programs too and is tested with the whole system.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

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
