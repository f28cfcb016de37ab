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

const AGENTS: &str = concat!(
    "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: large}\nmatch:\n  agentIds: [42]\n",
    "spec:\n  streamsPerToken: 5000\n---\n",
    "apiVersion: postern/v1\nkind: LimitPolicy\nmetadata: {name: trial}\nmode: report\nmatch:\n  tokenHashes: [ab]\n",
    "spec:\n  streamsPerToken: 7\n",
);

#[test]
fn explain_names_the_value_and_the_line_that_sets_it() {
    let policies = folder(&[("all.yaml", STREAMS), ("some.yaml", AGENTS)]);
    let directory = text_of(policies.path());
    let (out, err, code) = said(&policy(&["explain", directory]));
    assert!(code == Some(0) && err.is_empty(), "{err}");
    let line = |out: &str, field: &str| {
        let found = out.lines().find(|line| line.trim_start().starts_with(field));
        found.unwrap_or_else(|| panic!("no {field}: {out}")).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line(&out, "streamsPerToken "), format!("streamsPerToken 100 all, {directory}/all.yaml:5"));
    assert_eq!(line(&out, "streamsPerIp "), "streamsPerIp - the program's own configuration");
    assert!(out.contains(&format!("not large ({directory}/some.yaml:7)")), "{out}");

    let arguments = ["explain", directory, "--agent", "42", "--token-hash", "ab12", "--ip", "10.1.2.3"];
    let (out, err, _) = said(&policy(&arguments));
    assert_eq!(
        line(&out, "streamsPerToken "),
        format!("streamsPerToken 5000 large, {directory}/some.yaml:7")
    );
    assert!(err.contains("4 digits are given of the token's hash"), "{err}");

    let arguments = [
        "explain",
        directory,
        "--token-hash",
        "ab12",
        "--project",
        "7",
        "--agent-version",
        "v16.1.0",
        "--json",
    ];
    let document = json_of(&policy(&arguments));
    assert_eq!(document["subject"]["token_hash"].as_str(), Some(format!("ab12{}", "0".repeat(60)).as_str()));
    let values = document["values"].as_array().expect("it is a list");
    let streams =
        values.iter().find(|value| value["field"] == "streamsPerToken").expect("every field is listed");
    assert_eq!((&streams["value"], &streams["reported"]["value"]), (&json!("100"), &json!("7")));
    assert_eq!(streams["reported"]["rule"]["name"], "trial");

    let (_, err, code) = said(&policy(&["explain", directory, "--token-hash", "token"]));
    assert!(code == Some(2) && err.contains("hexadecimal"), "{err}");
    assert_eq!(said(&policy(&["explain", "/does/not/exist"])).2, Some(1));
}

#[test]
fn diff_says_what_would_change_and_exits_as_diff_does() {
    let before = folder(&[("all.yaml", STREAMS)]);
    // Another file and another line are the same policies.
    let same = folder(&[("other.yaml", &format!("# moved\n{STREAMS}"))]);
    let after = folder(&[("all.yaml", &STREAMS.replace("100", "200")), ("some.yaml", AGENTS)]);
    let [before, same, after] = [&before, &same, &after].map(|folder| text_of(folder.path()));
    let (out, err, code) = said(&policy(&["diff", before, same]));
    assert!(out.is_empty() && err.is_empty() && code == Some(0), "{out}{err}");

    let (out, err, code) = said(&policy(&["diff", before, after]));
    assert!(err.is_empty() && code == Some(1), "{err}");
    assert!(out.contains("~ LimitPolicy streamsPerToken for everybody: 100 -> 200"), "{out}");
    assert!(out.contains("+ LimitPolicy streamsPerToken for agentIds: [42]: 5000"), "{out}");

    let output = policy(&["diff", "--json", before, after]);
    let document = json_of(&output);
    assert_eq!((output.status.code(), &document["changed"]), (Some(1), &json!(true)));
    assert_eq!(document["changes"].as_array().map(Vec::len), Some(3));
    assert_eq!(json_of(&policy(&["diff", "--json", before, same]))["changes"], json!([]));

    let (out, err, code) = said(&policy(&["diff", "/does/not/exist", after]));
    assert!(out.is_empty() && err.contains("/does/not/exist") && code == Some(2), "{err}");
}

#[test]
fn simulate_says_who_would_have_been_refused() {
    let strict = STREAMS.replace("streamsPerToken: 100", "requestsPerToken: {perMinute: 1}");
    let policies = folder(&[("all.yaml", &strict)]);
    let line = |second: u32, token: &str| {
        let line = json!({
            "timestamp": format!("2026-01-02T03:04:{second:02}.000000Z"), "level": "INFO", "target": "access",
            "message": "stream finished", "client": "10.1.2.3:4000", "route": "agents",
            "method": "/gitlab.agent.agent_tracker.rpc.AgentTracker/ReportX", "token": token, "connection": 1,
            "bytes_in": 10, "duration_ms": 5,
        });
        format!("{line}\n")
    };
    let trace = policies.path().join("access.log");
    let lines =
        [line(1, "ab12cd34"), line(2, "ab12cd34"), line(3, "ff00ff00"), "not json\n".to_owned()].concat();
    std::fs::write(&trace, &lines).expect("the folder is ours");
    let directory = text_of(policies.path());
    let (out, err, code) = said(&policy(&["simulate", "--trace", text_of(&trace), directory]));
    assert!(code == Some(0) && err.is_empty(), "{err}");
    assert!(out.contains("1 would be refused") && out.contains("token ab12cd34: 1"), "{out}");

    let document = json_of(&policy(&["simulate", "--json", "--trace", text_of(&trace), directory]));
    let of = |key: &str| document[key].clone();
    assert_eq!((of("judged"), of("refused"), of("unreadable")), (json!(3), json!(1), json!(1)));
    assert_eq!((of("span_seconds"), &document["refusals"][0]["rule"]["name"]), (json!(2.0), &json!("all")));

    let (_, err, code) = said(&policy(&["simulate", "--trace", "/does/not/exist", directory]));
    assert!(code == Some(1) && err.contains("/does/not/exist") && err.contains("access lines"), "{err}");
    let (_, err, code) = said(&policy(&["simulate", "--trace", "/dev/null", directory]));
    assert!(code == Some(0) && err.contains("no access lines"), "{err}");
}

#[test]
fn schema_is_json_that_knows_every_kind() {
    let schema = json_of(&policy(&["schema"])).to_string();
    for kind in
        ["LimitPolicy", "PollingPolicy", "ConnectionPolicy", "AccessPolicy", "BackendPolicy", "TunnelPolicy"]
    {
        assert!(schema.contains(kind), "{kind}");
    }
    // Whoever reads it may stop in the middle.
    let command = concat!("'", env!("CARGO_BIN_EXE_postern"), "' policy schema | head -c 1");
    let cut = Command::new("sh").args(["-c", command]).output().expect("every system has a shell");
    assert_eq!(said(&cut), ("{".to_owned(), String::new(), Some(0)));
}
