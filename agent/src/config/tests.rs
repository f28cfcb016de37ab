use super::*;
use clap::Parser;
use kube::config::KubeconfigError;

const ENV: &[(&str, &str)] = &[("AGENTK_TOKEN", "secret"), ("POD_NAMESPACE", "ns"), ("POD_NAME", "pod")];

fn parse(line: &[&str], env: &[(&str, &str)]) -> Result<Config, Problems> {
    let flags = Flags::try_parse_from([&["agentk"], line].concat()).unwrap();
    Config::from_flags(flags, |name| {
        env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    })
}

fn meant(line: &[&str]) -> Config {
    parse(&[&["--kas-address=wss://kas"], line].concat(), ENV).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_flag_of_both_generations_is_accepted() {
    let line = [
        "--ca-cert-file=/ca",
        "--kas-header=A: 1",
        "--kas-header",
        "B: 2",
        "--kas-tls-server-name=kas.example.com",
        "--kas-insecure-skip-tls-verify",
        "--observability-listen-network=tcp4",
        "--observability-listen-address=127.0.0.1:0",
        "--observability-cert-file=/c",
        "--observability-key-file=/k",
        "--kubeconfig=/kc",
        "--context=c",
        "--cluster=l",
        "--user=u",
        "-n",
        "ns",
        "-s",
        "https://api:6443",
        "--username=me",
        "--password=p",
        "--as=bot",
        "--as-group=a",
        "--as-group=b",
        "--as-uid=1",
        "--certificate-authority=/a",
        "--client-certificate=/x",
        "--client-key=/y",
        "--insecure-skip-tls-verify=false",
        "--tls-server-name=api.example.com",
        "--request-timeout=1m30s",
        "--cache-dir=/tmp/cache",
    ];
    let config = meant(&line);
    assert_eq!(config.broker.headers.len(), 2);
    assert!(config.broker.insecure_skip_tls_verify);
    assert_eq!(config.observability.listen, Listen::Tcp(vec!["127.0.0.1:0".parse().unwrap()]));
    assert_eq!(config.kubernetes.request_timeout, Some(Duration::from_secs(90)));
    assert_eq!(config.kubernetes.overrides.impersonate_groups, ["a", "b"]);
    assert_eq!(config.kubernetes.overrides.insecure_skip_tls_verify, Some(false));
    assert_eq!(config.kubernetes.overrides.server.unwrap(), "https://api:6443/");
    assert_eq!((config.pod.namespace.as_str(), config.pod.name.as_str()), ("ns", "pod"));
}

#[test]
fn the_last_of_several_values_counts_as_with_the_agent_it_replaces() {
    let config = meant(&["--context=a", "--context=b"]);
    assert_eq!(config.kubernetes.context.as_deref(), Some("b"));
}

#[test]
fn all_problems_are_reported_at_once_and_none_shows_a_secret() {
    let line = [
        "--kas-address=https://kas",
        "--kas-header=Cookie secret",
        "--kas-header=Host: x",
        "--kas-header=Grpc-Timeout: x",
        "--observability-listen-address=nonsense",
        "--observability-cert-file=/c",
        "--server=ftp://x",
        "--client-key=/y",
        "--password=secret",
        "--as-group=a",
        "--request-timeout=soon",
    ];
    let env = [("AGENTK_TOKEN", "secret\u{7f}")];
    let problems = parse(&line, &env).err().unwrap().to_string();
    let flags = [
        "--kas-address: unsupported scheme",
        "--token-file: AGENTK_TOKEN",
        "--kas-header: must look like",
        "--kas-header: Host is set by the agent",
        "--kas-header: Grpc-Timeout",
        "--observability-listen-address: ",
        "--observability-cert-file: goes together",
        "--server: ",
        "--client-certificate: goes together",
        "--password: goes together",
        "--as-group, --as-uid: need --as",
        "--request-timeout: \"soon\"",
    ];
    for flag in flags {
        assert!(problems.contains(flag), "{flag} is not in {problems}");
    }
    assert!(!problems.contains("secret"), "{problems}");
    assert_eq!(problems.lines().count(), 1);
}

#[test]
fn a_token_comes_from_one_place() {
    let problem = |line: &[&str], env: &[(&str, &str)]| {
        parse(&[&["--kas-address=wss://kas"], line].concat(), env).err().unwrap().to_string()
    };
    assert!(problem(&["--token-file=/x"], ENV).contains("exclude each other"));
    assert!(problem(&[], &[]).contains("--token-file: is required"));
    assert!(problem(&["--token-file=/no/such/file"], &[]).contains("/no/such/file"));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, "\n").unwrap();
    let flag = format!("--token-file={}", file.display());
    assert!(problem(&[&flag], &[]).contains("does not hold an agent token: the agent token is empty"));
    std::fs::write(&file, "secret\n").unwrap();
    assert!(parse(&["--kas-address=wss://kas", &flag], &[]).is_ok());
}

#[test]
fn listening_addresses_are_meant_as_go_means_them() {
    let addresses = |network: &str, address: &str| match listen(network, address) {
        Ok(Listen::Tcp(found)) => found.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        Ok(Listen::Unix(path)) => path.display().to_string(),
        Err(problem) => problem,
    };
    assert_eq!(addresses("tcp", ":8080"), "[::]:8080 0.0.0.0:8080");
    assert_eq!(addresses("tcp4", ":8080"), "0.0.0.0:8080");
    assert_eq!(addresses("tcp6", ":0"), "[::]:0");
    assert_eq!(addresses("tcp", "127.0.0.1:0"), "127.0.0.1:0");
    assert_eq!(addresses("unix", "/run/agentk"), "/run/agentk");
    assert!(addresses("tcp6", "127.0.0.1:80").contains("is not a tcp6 address"));
    assert!(addresses("udp", ":80").contains("is not tcp"));
    assert!(addresses("tcp", ":http").contains("no port"));
}

#[test]
fn durations_are_seconds_or_gos() {
    let table = [
        ("0", Some(None)),
        ("0s", Some(None)),
        ("30", Some(Some(30.0))),
        ("1m30s", Some(Some(90.0))),
        ("1.5h", Some(Some(5400.0))),
        ("250ms", Some(Some(0.25))),
        ("", None),
        ("-1s", None),
        ("1", Some(Some(1.0))),
        ("1x", None),
        ("s", None),
    ];
    for (text, wanted) in table {
        let got = duration(text).ok().map(|limit| limit.map(|limit| limit.as_secs_f64()));
        assert_eq!(got, wanted, "{text:?}");
    }
}

#[test]
fn the_version_line_is_the_one_that_scripts_know() {
    let line = version();
    assert!(
        line.starts_with("agentk version v") && line.contains(", commit: ") && line.contains(", built: "),
        "{line}"
    );
    assert!(Flags::try_parse_from(["agentk", "--version"]).unwrap().version);
}

#[test]
fn a_kubeconfig_that_does_not_parse_does_not_spill_its_lines() {
    // What this guards against: parsers that quote the file in their message.
    let broken = kube::config::Kubeconfig::from_yaml("users:\n- name: x\n  user: {token: secret\n");
    assert!(matches!(broken, Err(KubeconfigError::Parse(_))));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kubeconfig");
    std::fs::write(&file, "users:\n- name: x\n  user: {token: secret\n").unwrap();
    let config = meant(&[&format!("--kubeconfig={}", file.display())]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let problem = runtime.block_on(kubernetes_api::Access::load(config.kubernetes)).err().unwrap();
    let text = error::chain(&problem);
    assert!(text.starts_with("kubeconfig: ") && !text.contains("secret"), "{text}");
}
