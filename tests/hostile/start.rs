//! Bad configuration: exit code 1 and a line for each problem that names the file, the line and the key, or the flag.

use crate::harness::Process;
use std::{fs, path::Path};

/// Starts a program that must refuse to; returns its lines, of which the broker has one for each problem.
async fn refusal(binary: &str, folder: &Path, arguments: &[String], env: &[(&str, &str)]) -> String {
    let mut process = Process::start("refused", binary, folder, arguments, env);
    let status = process.ended().await;
    let text = process.text();
    assert_eq!(status.code(), Some(1), "{binary} {arguments:?}: {text}");
    // Lines of the log are JSON; what is for people is not.
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('{')).collect();
    assert!(lines.len() == 1 || binary == "kas" && !lines.is_empty(), "{binary} {arguments:?}: {text}");
    lines.join("\n")
}

/// Writes files, starts the program, expects all these words in its line.
async fn refuses(binary: &str, flag: &str, files: &[(&str, &str)], wanted: &[&str]) {
    let folder = tempfile::tempdir().expect("folder");
    for (name, text) in files {
        fs::write(folder.path().join(name), text).expect("written");
    }
    let first = folder.path().join(files[0].0).display().to_string();
    let line = refusal(binary, folder.path(), &[flag.to_owned(), first], &[]).await;
    for words in wanted {
        assert!(line.contains(words), "{words:?} is missing in: {line}");
    }
    println!("{line}");
}

#[tokio::test]
async fn an_edge_says_what_is_wrong_with_its_file() {
    let cases: &[(&str, &[&str])] = &[
        ("listen: [{address: '127.0.0.1:0'\nupstreams: {}\n", &["edge.yaml", "line 2"]),
        ("listen:\n- address: '127.0.0.1:0'\n  adress: x\n", &["edge.yaml", "line 3", "adress"]),
        ("listen: []\nupstreams: {}\nlimit: {}\n", &["edge.yaml", "line 3", "limit"]),
        ("limit: {}\n", &["edge.yaml", "line 1", "limit"]),
        ("limits:\n  burst: many\n", &["edge.yaml", "line 2", "burst"]),
        (
            "listen: [{address: nowhere}]\nupstreams: {agents: {addresses: ['grpc://h:1']}}\nworkers: 0\n",
            &["edge.yaml", "listen[0].address", "nowhere", "upstreams.agents.addresses[0]", "workers"],
        ),
        ("\u{0}\u{1}", &["edge.yaml"]),
        ("", &["edge.yaml", "listen", "upstreams.agents.addresses"]),
        (
            "listen: [{address: '127.0.0.1:0', tls: {certificates: [{certificate_file: no.crt, key_file: no.key}]}}]\n\
             upstreams: {agents: {addresses: ['127.0.0.1:1']}}\nadmin: {listen: '127.0.0.1:0'}\n",
            &["no.crt"],
        ),
    ];
    for (text, wanted) in cases {
        refuses("postern-edge", "--config", &[("edge.yaml", text)], wanted).await;
    }
}

#[tokio::test]
async fn a_broker_says_what_is_wrong_with_its_files() {
    const GOOD: &str = "agent: {listen: {address: '127.0.0.1:0'}}\nobservability: {listen: {address: '127.0.0.1:0'}}\n\
                        embedded: {identities_file: identities.yaml}\n";
    let kas: &[(&str, &[&str])] = &[
        ("agent: {listen: {address: x\nembedded: {}\n", &["kas.yaml:2:"]),
        ("agent:\n  listen:\n    adress: x\n", &["kas.yaml:3:5: agent.listen.adress", "`address`"]),
        ("agnet: {}\n", &["kas.yaml:1:1: agnet", "`agent`"]),
        (
            "agent: {listen: {address: nowhere}}\n",
            &["kas.yaml:1:27: agent.listen.address", "nowhere", "identities"],
        ),
        ("embedded: {identities_file: missing.yaml}\n", &["missing.yaml"]),
        ("- a list\n", &["kas.yaml:1:1: "]),
    ];
    for (text, wanted) in kas {
        refuses("kas", "--configuration-file", &[("kas.yaml", text)], wanted).await;
    }
    let identities: &[(&str, &[&str])] = &[
        ("agents: [{id: 1, name: a\n", &["identities.yaml", "line 2"]),
        ("agents:\n- {id: 1, nmae: a}\n", &["identities.yaml", "line 2", "nmae"]),
        ("agent: []\n", &["identities.yaml", "line 1", "agent"]),
        ("agents: []\ncaller: []\n", &["identities.yaml", "line 2", "caller"]),
        (
            "agents: [{id: 0, name: A, token_sha256: [zz]}]\ncallers: [{name: c, agents: [5], token_sha256: []}]\n",
            &["identities.yaml", "positive", "lower-case", "64 hexadecimal", "no agent 5"],
        ),
    ];
    for (text, wanted) in identities {
        refuses("kas", "--configuration-file", &[("kas.yaml", GOOD), ("identities.yaml", text)], wanted)
            .await;
    }
}

#[tokio::test]
async fn an_agent_says_which_flag_is_wrong() {
    let folder = tempfile::tempdir().expect("folder");
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).expect("written");
        path.display().to_string()
    };
    let (token, empty, junk) =
        (file("token", "glagent-x\n"), file("empty", "\n"), file("junk.pem", "junk\n"));
    let broken = file("broken.kubeconfig", "clusters:\n- name: [\n");
    let two_lines = file("two", "glagent-first\nglagent-second\n");
    let missing = folder.path().join("missing").display().to_string();
    let good = |with: &[String]| {
        let mut flags = vec![
            "--kas-address=grpc://127.0.0.1:1".to_owned(),
            format!("--token-file={token}"),
            "--server=http://127.0.0.1:1".to_owned(),
            "--observability-listen-address=127.0.0.1:0".to_owned(),
        ];
        flags.retain(|flag| with.iter().all(|new| flag.split('=').next() != new.split('=').next()));
        flags.extend(with.iter().cloned());
        flags
    };
    let cases: Vec<(Vec<String>, Vec<&str>)> = vec![
        (good(&["--kas-adress=x".into()]), vec!["--kas-adress"]),
        (good(&["--kas-address=https://h/".into()]), vec!["--kas-address", "https"]),
        (good(&["--kas-address=wss://".into()]), vec!["--kas-address"]),
        (vec![format!("--token-file={token}")], vec!["--kas-address", "required"]),
        (vec!["--kas-address=grpc://h:1".into()], vec!["--token-file", "AGENTK_TOKEN"]),
        (good(&[format!("--token-file={missing}")]), vec!["--token-file", &missing]),
        (good(&[format!("--token-file={empty}")]), vec!["--token-file", &empty]),
        (good(&[format!("--token-file={two_lines}")]), vec!["--token-file", &two_lines]),
        (good(&["--kas-address=wss://h/".into(), format!("--ca-cert-file={missing}")]), vec![&missing]),
        (good(&["--kas-address=wss://h/".into(), format!("--ca-cert-file={junk}")]), vec![&junk]),
        (good(&["--kas-header=nonsense".into()]), vec!["--kas-header", "Name: value"]),
        (good(&["--observability-listen-address=nowhere".into()]), vec!["--observability-listen-address"]),
        (good(&["--as-group=g".into()]), vec!["--as-group", "--as"]),
        (good(&["--request-timeout=soon".into()]), vec!["--request-timeout", "soon"]),
        (
            vec![
                "--kas-address=grpc://127.0.0.1:1".into(),
                format!("--token-file={token}"),
                format!("--kubeconfig={broken}"),
                "--observability-listen-address=127.0.0.1:0".into(),
            ],
            vec![&broken],
        ),
    ];
    for (flags, wanted) in cases {
        let line = refusal("agentk", folder.path(), &flags, &[("HOME", "/nonexistent")]).await;
        for words in wanted {
            assert!(line.contains(words), "{words:?} is missing in: {line}");
        }
        assert!(!line.contains("glagent-"), "a token is shown: {line}");
        println!("{line}");
    }
}
