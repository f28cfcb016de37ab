use crate::{
    fake_api::FakeApi,
    fake_broker::{FakeBroker, Via, head, trailer},
    harness::{TOKEN, soon, start},
    transports::{answers, localhost, port},
};
use clap::Parser;
use postern_agent::{
    check::{self, Report, State, Step},
    config::{Config, Flags},
};
use postern_wire::proto::gitlab::agent::{
    agent_configuration::rpc::ConfigurationResponse,
    agentcfg::{AgentConfiguration, ViewsCf},
};
use std::{process::Stdio, sync::atomic::Ordering, time::Duration};
use tokio::{net::TcpListener, process::Command};

const ENV: &[(&str, &str)] = &[("AGENTK_TOKEN", TOKEN), ("POD_NAMESPACE", "postern")];
/// Long enough for all that answers.
const PATIENT: Duration = Duration::from_secs(10);
/// For what never will.
const SHORT: Duration = Duration::from_millis(300);

async fn check_in(
    address: &str,
    server: &str,
    more: &[&str],
    env: &[(&str, &str)],
    limit: Duration,
) -> Report {
    let (address, server) = (format!("--kas-address={address}"), format!("--server={server}"));
    let line = [&["agentk", address.as_str(), server.as_str()], more].concat();
    let flags = Flags::try_parse_from(line).expect("flags parse");
    let get = |name: &str| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let config = Config::from_flags(flags, get).expect("flags make sense");
    let report = soon("a report", check::run(config, limit)).await.expect("the check starts");
    let told = format!("{report}{}", report.json());
    assert!(!told.contains(TOKEN) && !told.contains("header-secret"), "{told}");
    report
}

async fn check(address: &str, api: &FakeApi, more: &[&str]) -> Report {
    check_in(address, api.url(), more, ENV, PATIENT).await
}

/// The one step that failed, which all the others waited for in vain.
fn failed<'a>(report: &'a Report, name: &str) -> &'a Step {
    let at = report.steps.iter().position(|step| step.name == name).expect("a step of this name");
    let step = &report.steps[at];
    assert_eq!(step.state, State::Failed, "{report}");
    assert_eq!(usize::from(report.exit_code()), 10 + at, "{report}");
    assert!(report.steps[at + 1..].iter().all(|step| step.state == State::Skipped), "{report}");
    assert!(!report.ok() && report.json()["ok"] == false);
    step
}

fn fix(step: &Step) -> &str {
    step.fix.as_deref().unwrap_or_default()
}

#[tokio::test]
async fn all_is_well_by_every_scheme_and_nothing_is_left_behind() {
    let pki = localhost();
    let table = [
        ("grpc", "h2c", Via::Grpc),
        ("grpcs", "alpn", Via::Grpcs(pki.files.clone())),
        ("ws", "upgrade", Via::Ws),
        ("wss", "upgrade", Via::Wss(pki.files.clone())),
    ];
    for (scheme, speaks, via) in table {
        let broker = FakeBroker::start(via).await;
        let configuration = AgentConfiguration { agent_id: 42, ..AgentConfiguration::default() };
        let response =
            ConfigurationResponse { configuration: Some(configuration), commit_id: "c0ffee".to_owned() };
        broker.state.configuration.send_replace(Some(response));
        *broker.state.token.lock().unwrap() = Some(TOKEN.to_owned());
        let api = FakeApi::start().await;
        let address = format!("{scheme}://localhost:{}/-/kubernetes-agent/", port(&broker.at));
        let report = check(&address, &api, &[&pki.ca]).await;

        assert_eq!((report.ok(), report.exit_code()), (true, 0), "{report}");
        let names: Vec<_> = report.steps.iter().map(|step| step.name).collect();
        assert_eq!(names, ["dns", "tcp", "proxy", "tls", speaks, "token", "tunnel", "kubernetes"]);
        let needless = |step: &Step| match step.name {
            "proxy" => true,
            "tls" => !scheme.ends_with('s') || scheme == "ws",
            _ => false,
        };
        for step in &report.steps {
            let expected = if needless(step) { State::Skipped } else { State::Ok };
            assert_eq!(step.state, expected, "{}: {report}", step.name);
        }
        assert!(report.steps[5].finding.contains("agent 42"), "{report}");
        assert!(report.steps[5].finding.contains("c0ffee"), "{report}");
        let cluster = &report.steps[7].finding;
        assert!(
            cluster.starts_with("Kubernetes v1.34.1 as system:serviceaccount:postern:agentk"),
            "{report}"
        );
        assert!(report.to_string().ends_with("all well\n"), "{report}");

        let asked = broker.state.asked.borrow().clone();
        assert!(asked.len() == 1 && asked[0].skip_register, "{asked:?}");
        assert!(broker.state.registered.borrow().is_empty());
        assert_eq!(broker.state.connects.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn a_name_a_port_and_a_certificate_fail_each_at_its_step() {
    let api = FakeApi::start().await;
    let report = check("wss://no-such-host.invalid", &api, &[]).await;
    let step = failed(&report, "dns");
    assert!(step.finding.contains("cannot resolve no-such-host.invalid"), "{report}");
    assert!(fix(step).contains("--kas-address"), "{report}");

    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let report = check(&format!("wss://{nobody}"), &api, &[]).await;
    let step = failed(&report, "tcp");
    assert!(step.finding.contains(&format!("cannot connect to {nobody}")), "{report}");
    assert!(fix(step).contains("HTTPS_PROXY"), "{report}");

    let pki = localhost();
    let broker = FakeBroker::start(Via::Wss(pki.files.clone())).await;
    let report = check(&format!("wss://localhost:{}", port(&broker.at)), &api, &[]).await;
    let step = failed(&report, "tls");
    assert!(step.finding.contains("unknown CA"), "{report}");
    assert!(fix(step).contains("--ca-cert-file"), "{report}");
}

#[tokio::test]
async fn who_takes_connections_and_says_nothing_is_given_up_at_the_step_that_waits() {
    let api = FakeApi::start().await;
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = silent.local_addr().unwrap().to_string();
    let proxy = format!("http://me:header-secret@{at}");
    let proxied = [ENV, &[("HTTPS_PROXY", proxy.as_str())]].concat();
    let table = [
        (format!("wss://{at}"), ENV, "tls", "TLS port"),
        (format!("ws://{at}"), ENV, "upgrade", "broker's port"),
        (format!("grpc://{at}"), ENV, "h2c", "broker's port"),
        ("wss://kas.proxied.example".to_owned(), proxied.as_slice(), "proxy", "is it a proxy"),
    ];
    for (address, env, name, says) in table {
        let report = check_in(&address, api.url(), &[], env, SHORT).await;
        let step = failed(&report, name);
        assert!(step.finding.contains("within 300ms"), "{report}");
        assert!(fix(step).contains(says), "{report}");
        assert!(step.took >= SHORT, "{report}");
    }
}

#[tokio::test]
async fn a_proxy_that_refuses_is_named_without_its_password() {
    let proxy = answers(|_| "HTTP/1.1 407 Who are you\r\nContent-Length: 0\r\n\r\n".to_owned()).await;
    let url = format!("http://me:header-secret@{proxy}");
    let env = [ENV, &[("HTTPS_PROXY", url.as_str())]].concat();
    let api = FakeApi::start().await;
    let report = check_in("wss://kas.proxied.example", api.url(), &[], &env, PATIENT).await;
    let step = failed(&report, "proxy");
    assert!(step.finding.contains("refused CONNECT kas.proxied.example:443: 407 Who are you"), "{report}");
    assert!(fix(step).contains("HTTPS_PROXY"), "{report}");
    assert_eq!(report.steps[1].state, State::Ok, "{report}");
}

#[tokio::test]
async fn a_server_that_is_no_broker_is_told_by_what_it_says() {
    let api = FakeApi::start().await;
    let page = answers(|_| "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\nnope".to_owned()).await;
    let report = check(&format!("ws://{page}/"), &api, &[]).await;
    let step = failed(&report, "upgrade");
    assert!(step.finding.contains("HTTP 404 (nope)"), "{report}");
    assert!(fix(step).contains("path of --kas-address"), "{report}");

    let web = answers(|_| "HTTP/1.1 400 Bad Request\r\n\r\n".to_owned()).await;
    let report = check(&format!("grpc://{web}"), &api, &[]).await;
    assert!(failed(&report, "h2c").finding.contains("speaks HTTP/1.1"), "{report}");

    let pki = localhost();
    let websockets = FakeBroker::start(Via::Wss(pki.files.clone())).await;
    let report = check(&format!("grpcs://localhost:{}", port(&websockets.at)), &api, &[&pki.ca]).await;
    assert!(fix(failed(&report, "alpn")).contains("wss://"), "{report}");

    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = grpc.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        let (io, _) = grpc.accept().await.expect("the listener lives");
        let nothing =
            hyper_util::service::TowerToHyperService::new(tonic::service::Routes::default().prepare());
        let executor = hyper_util::rt::TokioExecutor::new();
        let serving = hyper::server::conn::http2::Builder::new(executor);
        let _ = serving.serve_connection(hyper_util::rt::TokioIo::new(io), nothing).await;
    });
    let report = check(&format!("grpc://{at}"), &api, &[]).await;
    assert!(fix(failed(&report, "token")).contains("no broker"), "{report}");
}

#[tokio::test]
async fn a_refused_token_is_named_by_its_place_and_never_by_itself() {
    let broker = FakeBroker::start(Via::Ws).await;
    *broker.state.token.lock().unwrap() = Some("another".to_owned());
    let api = FakeApi::start().await;
    let report = check(&format!("ws://{}", broker.at), &api, &[]).await;
    let step = failed(&report, "token");
    assert!(step.finding.contains("Unauthenticated"), "{report}");
    assert!(fix(step).contains("does not know the token"), "{report}");
    assert!(fix(step).contains("AGENTK_TOKEN"), "{report}");
    assert_eq!(broker.state.connects.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_detour_is_a_warning() {
    let broker = FakeBroker::start(Via::Ws).await;
    let location = format!("http://{}/", broker.at);
    let moved =
        move |_: &str| format!("HTTP/1.1 301 Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n");
    let at = answers(moved).await;
    let api = FakeApi::start().await;
    let report = check(&format!("ws://{at}/"), &api, &[]).await;
    assert_eq!(report.steps[4].state, State::Warning, "{report}");
    assert!(fix(&report.steps[4]).contains("--kas-address"), "{report}");
    assert!(report.ok(), "{report}");
}

#[tokio::test]
async fn a_cluster_that_is_not_there_or_not_kubernetes_is_the_last_step() {
    let broker = FakeBroker::start(Via::Grpc).await;
    let address = format!("grpc://{}", broker.at);
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let report = check_in(&address, &format!("http://{nobody}"), &[], ENV, PATIENT).await;
    assert!(fix(failed(&report, "kubernetes")).contains("--server"), "{report}");
    assert_eq!(report.exit_code(), 17);

    let web = answers(|_| "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_owned()).await;
    let report = check_in(&address, &format!("http://{web}"), &[], ENV, PATIENT).await;
    assert!(fix(failed(&report, "kubernetes")).contains("is it a Kubernetes API"), "{report}");
}

#[tokio::test]
async fn missing_rights_are_a_warning_with_the_rule_to_add() {
    let broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    for resource in ["nodes", "leases", "users"] {
        api.deny(resource);
    }
    let address = format!("grpc://{}", broker.at);
    let views = ViewsCf { nodes: true, ..ViewsCf::default() };
    let configuration = AgentConfiguration { views: Some(views), ..AgentConfiguration::default() };
    let response = ConfigurationResponse { configuration: Some(configuration), ..Default::default() };
    broker.state.configuration.send_replace(Some(response));
    let report = check(&address, &api, &[]).await;
    let step = &report.steps[7];
    assert_eq!((step.state, report.exit_code()), (State::Warning, 0), "{report}");
    assert!(step.finding.contains("views lacks list nodes, watch nodes; leases lacks"), "{report}");
    assert!(step.finding.contains("calls as others (access_as) are not allowed"), "{report}");
    let rules = "# views: rules of a ClusterRole\n- apiGroups: [\"\"]\n  resources: [nodes]\n  verbs: [list, watch]\n\
                 # leases: rules of a Role in namespace postern\n- apiGroups: [coordination.k8s.io]\n  \
                 resources: [leases]\n  verbs: [get, create, update]";
    assert!(fix(step).ends_with(rules), "{report}");

    // Views are not asked for any more, and so nothing is missing for them.
    let response =
        ConfigurationResponse { configuration: Some(AgentConfiguration::default()), ..Default::default() };
    broker.state.configuration.send_replace(Some(response));
    let report = check(&address, &api, &[]).await;
    assert_eq!(report.steps[7].state, State::Ok, "{report}");
}

#[tokio::test]
async fn a_callers_request_that_meets_the_check_is_answered() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let address = format!("grpc://{}", broker.at);
    let calling = async {
        let mut tunnel = broker.tunnel().await;
        tunnel.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await
    };
    let (report, answer) = tokio::join!(check(&address, &api, &[]), calling);
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(report.steps[6].state, State::Ok, "{report}");
    assert!(report.steps[6].finding.contains("caller"), "{report}");
}

#[tokio::test]
async fn an_agent_that_runs_does_not_notice() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let address = format!("grpc://{}", broker.at);
    let agent = start(&address, &api, &[]).await;
    let mut tunnel = broker.tunnel().await;
    agent.probes("/readiness", 200).await;
    let report = check(&address, &api, &[]).await;
    assert!(report.ok(), "{report}");
    assert_eq!(agent.probe("/readiness").await.0, 200);
    assert_eq!(broker.state.registered.borrow().len(), 1);
    assert!(tunnel.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await.is_ok());
}

#[tokio::test]
async fn the_program_prints_one_object_and_ends_with_the_step() {
    let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let run = async |line: &[&str]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_agentk"));
        program.args(line).env_clear().env("AGENTK_TOKEN", TOKEN).stdin(Stdio::null()).kill_on_drop(true);
        soon("the end of the program", program.output()).await.expect("it starts")
    };
    let address = format!("--kas-address=ws://{nobody}");
    let ended = run(&["check", "--json", &address, "--server=http://127.0.0.1:1"]).await;
    assert_eq!(ended.status.code(), Some(11));
    assert!(ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
    let report: serde_json::Value = serde_json::from_slice(&ended.stdout).expect("one JSON object");
    assert_eq!(report["ok"], false);
    assert_eq!(report["steps"].as_array().map(Vec::len), Some(8));
    assert_eq!(report["steps"][1]["state"], "failed");
    assert!(!String::from_utf8_lossy(&ended.stdout).contains(TOKEN));

    let table = run(&["check", &address]).await;
    assert_eq!(table.status.code(), Some(11));
    assert!(String::from_utf8_lossy(&table.stdout).contains("tcp         failed"));
    assert_eq!(run(&["check"]).await.status.code(), Some(1));
    assert_eq!(run(&[address.as_str(), "check"]).await.status.code(), Some(1));
    let help = run(&["check", "--help"]).await;
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.starts_with("Say step by step") && help.contains("--json"), "{help}");
    let help = String::from_utf8_lossy(&run(&["--help"]).await.stdout).into_owned();
    assert!(help.starts_with("Serves the Kubernetes API") && help.contains("check"), "{help}");
}
