//! `postern policy ...` as an operator and a pipeline run it: the built program, files, its output and its exit code.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Output};
use std::thread;

use serde_json::{Value, json};

fn policy(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_postern"));
    command.arg("policy").args(arguments).output().expect("cargo built it")
}

fn said(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("it speaks UTF-8");
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

fn json_of(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {:?}", said(output)))
}

fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("there is room");
    for (name, text) in files {
        std::fs::write(folder.path().join(name), text).expect("the folder is ours");
    }
    folder
}

fn text_of(path: &Path) -> &str {
    path.to_str().expect("temporary folders have plain names")
}

const STREAMS: &str =
    "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: all}\nspec:\n  streamsPerToken: 100\n";

#[test]
fn check_says_what_is_good_and_every_problem_with_what_is_not() {
    let good = folder(&[("a.yaml", STREAMS), ("b.yml", "---\n# nothing\n")]);
    let (out, err, code) = said(&policy(&["check", text_of(good.path())]));
    assert!(
        out.contains("1 document is valid; fingerprint ") && err.is_empty() && code == Some(0),
        "{out}{err}"
    );
    let document = json_of(&policy(&["check", "--json", text_of(good.path())]));
    assert_eq!(
        (&document["valid"], &document["documents"], &document["problems"]),
        (&json!(true), &json!(1), &json!([]))
    );
    assert_eq!(document["fingerprint"].as_str().map(str::len), Some(12));

    let bad =
        folder(&[("a.yaml", &STREAMS.replace("streamsPerToken", "streamPerToken")), ("b.yaml", "kind: [\n")]);
    let (out, err, code) = said(&policy(&["check", text_of(bad.path())]));
    assert!(out.is_empty() && code == Some(1), "{out}");
    assert!(
        err.contains("a.yaml:5:3: ") && err.contains("streamsPerToken") && err.contains("b.yaml:"),
        "{err}"
    );
    let output = policy(&["check", text_of(bad.path()), "--json"]);
    let document = json_of(&output);
    assert_eq!(
        (output.status.code(), &document["valid"], &document["more"]),
        (Some(1), &json!(false), &json!(0))
    );
    let problem = &document["problems"][0];
    assert!(problem["file"].as_str().is_some_and(|file| file.ends_with("a.yaml")), "{problem}");
    assert_eq!((&problem["line"], &problem["column"]), (&json!(5), &json!(3)));
    for key in ["path", "found", "wanted"] {
        assert!(problem[key].is_string(), "{problem}");
    }

    let (_, err, code) = said(&policy(&["check", "/does/not/exist"]));
    assert!(err.contains("/does/not/exist") && code == Some(1), "{err}");
}

/// A process that says these pages, one for each question, and the last one for ever.
fn process(pages: Vec<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let url = format!("http://{}", listener.local_addr().expect("it is bound"));
    thread::spawn(move || {
        let mut pages = pages.into_iter().peekable();
        let mut last = String::new();
        while let Ok((mut io, _)) = listener.accept() {
            let read = BufReader::new(io.try_clone().expect("a socket can be cloned"));
            let head: Vec<String> =
                read.lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            assert_eq!(head[0], "GET /policies HTTP/1.1");
            last = pages.next().unwrap_or(last);
            let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n";
            let _ = io.write_all(format!("{head}{last}").as_bytes());
        }
    });
    url
}

fn page(generation: u64, fingerprint: &str, problems: &[&str]) -> String {
    let bad_for = (!problems.is_empty()).then_some(61.0);
    json!({
        "directory": "/etc/postern/policies", "generation": generation, "fingerprint": fingerprint, "age_seconds": 2.0,
        "problems": problems, "bad_for_seconds": bad_for,
    })
    .to_string()
}

#[test]
fn watch_waits_until_every_process_has_the_same_policies() {
    let first = process(vec![page(4, "bbbbbbbbbbbb", &[])]);
    let second = process(vec![page(1, "aaaaaaaaaaaa", &[]), page(2, "bbbbbbbbbbbb", &[])]);
    let (out, err, code) = said(&policy(&["watch", &first, &second]));
    assert!(code == Some(0) && err.is_empty(), "{out}{err}");
    assert!(
        out.contains(
            "aaaaaaaaaaaa  2s   other policies\n1 of 2 have bbbbbbbbbbbb in force without a problem\n"
        ),
        "{out}"
    );
    assert!(out.ends_with("all 2 have bbbbbbbbbbbb in force\n"), "{out}");
}

#[test]
fn watch_waits_for_the_policies_of_a_directory() {
    let wanted = folder(&[("a.yaml", STREAMS)]);
    let checked = json_of(&policy(&["check", "--json", text_of(wanted.path())]));
    let fingerprint = checked["fingerprint"].as_str().expect("they are valid");
    let process = process(vec![page(4, "bbbbbbbbbbbb", &[]), page(5, fingerprint, &[])]);
    let output = policy(&["watch", "--json", &process, "--expect", text_of(wanted.path())]);
    let (out, err, code) = said(&output);
    assert!(code == Some(0) && err.is_empty(), "{out}{err}");
    let looks: Vec<Value> =
        out.lines().map(|line| serde_json::from_str(line).expect("each look is a line")).collect();
    let agreed: Vec<_> = looks.iter().map(|look| look["agreed"].as_bool()).collect();
    assert_eq!(agreed, [Some(false), Some(true)]);
    assert_eq!(looks[1]["fingerprint"], fingerprint);
    assert_eq!(looks[1]["processes"][0]["generation"], 5);
}

#[test]
fn a_single_look_says_who_lacks_what() {
    let free = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    let gone = format!("http://{}", free.local_addr().expect("it is bound"));
    drop(free);
    let bad = process(vec![page(3, "bbbbbbbbbbbb", &["/p/a.yaml:3:1: spec: it sets nothing; something"])]);
    let (out, _, code) = said(&policy(&["watch", "--once", &bad, &gone]));
    assert_eq!(code, Some(1), "{out}");
    assert!(out.contains("1 problem with its files, for 61s") && out.contains("/p/a.yaml:3:1"), "{out}");
    assert!(
        out.contains("cannot connect; does the process run") && out.contains("0 of 2 have bbbbbbbbbbbb"),
        "{out}"
    );

    let (_, err, code) = said(&policy(&["watch", "https://edge:9090"]));
    assert!(code == Some(2) && err.contains("http://HOST:PORT"), "{err}");
    let (_, err, code) = said(&policy(&["watch", "http://127.0.0.1:1", "--expect", "/does/not/exist"]));
    assert!(code == Some(1) && err.contains("/does/not/exist"), "{err}");
}
