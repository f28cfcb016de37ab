//! Documents that a broker pushes: what is put in force, what is refused as a whole, and what the broker hears of both.

use crate::{
    fake_api::FakeApi,
    fake_broker::{FakeBroker, Via},
    harness::{Running, count_logged, logged, soon, start},
};
use postern_wire::proto::{
    gitlab::agent::{
        agent_configuration::rpc::ConfigurationResponse,
        agentcfg::{AgentConfiguration, CiliumCf, KubernetesApiCf, ViewsCf},
    },
    postern::agent::{ConfigurationReport, report_request::About},
};
use std::{sync::atomic::Ordering, time::Duration};

/// Commits are unique to a test: all tests share one log.
fn push(broker: &FakeBroker, commit_id: &str, configuration: AgentConfiguration) {
    let configuration = Some(AgentConfiguration { agent_id: 7, ..configuration });
    let response = ConfigurationResponse { configuration, commit_id: commit_id.to_owned() };
    broker.state.configuration.send_replace(Some(response));
}

fn limit(max_concurrent_requests: u32) -> AgentConfiguration {
    let kubernetes_api = KubernetesApiCf { max_concurrent_requests, max_concurrent_requests_per_caller: 0 };
    AgentConfiguration { kubernetes_api: Some(kubernetes_api), ..Default::default() }
}

/// Two modules cannot follow it, a third could.
fn bad() -> AgentConfiguration {
    AgentConfiguration {
        cilium: Some(CiliumCf { hubble_relay_address: "no address".to_owned() }),
        views: Some(ViewsCf { namespaces: vec!["Not one".to_owned()], ..Default::default() }),
        ..limit(99)
    }
}

async fn agent_at(broker: &FakeBroker) -> Running {
    let api = FakeApi::start().await;
    start(&format!("grpc://{}", broker.at), &api, &[]).await
}

async fn in_force(agent: &Running, configuration: &AgentConfiguration) {
    let mut latest = agent.configuration.clone();
    let wanted = |latest: &Option<std::sync::Arc<AgentConfiguration>>| {
        latest.as_ref().is_some_and(|latest| latest.kubernetes_api == configuration.kubernetes_api)
    };
    soon("a configuration in force", latest.wait_for(wanted)).await.expect("the agent runs");
}

/// The reports of this commit, once there is one.
async fn reported(broker: &FakeBroker, commit_id: &str) -> Vec<ConfigurationReport> {
    let mut reports = broker.state.reports.subscribe();
    let about = |reports: &Vec<postern_wire::proto::postern::agent::ReportRequest>| -> Vec<_> {
        let about = reports.iter().filter_map(|report| match &report.about {
            Some(About::Configuration(report)) if report.commit_id == commit_id => Some(report.clone()),
            _ => None,
        });
        about.collect()
    };
    let found = soon(commit_id, reports.wait_for(|reports| !about(reports).is_empty())).await;
    about(&found.expect("the broker runs"))
}

#[tokio::test]
async fn a_bad_document_leaves_the_good_one_in_force_and_is_reported_once() {
    let broker = FakeBroker::start(Via::Grpc).await;
    push(&broker, "good-1", limit(5));
    let agent = agent_at(&broker).await;
    in_force(&agent, &limit(5)).await;
    logged(&["good-1", "\"module\":\"kubernetes_api\"", "max_concurrent_requests no limit -> 5"]).await;
    let report = reported(&broker, "good-1").await.remove(0);
    assert!(report.applied && report.problems.is_empty());

    push(&broker, "bad-1", bad());
    let report = reported(&broker, "bad-1").await.remove(0);
    assert!(!report.applied);
    let keys: Vec<_> = report.problems.iter().map(|problem| problem.r#where.as_str()).collect();
    assert_eq!(keys, ["cilium.hubble_relay_address", "views.namespaces[0]"]);
    logged(&["bad-1", "configuration refused as a whole", "the one before"]).await;
    // Nothing of it: neither what is wrong with it nor what would have been right.
    let now = agent.configuration.borrow().clone().expect("the good one");
    assert_eq!(*now, AgentConfiguration { agent_id: 7, ..limit(5) });
    let (_, metrics) = agent.probe("/metrics").await;
    assert!(metrics.contains("agentk_configurations_refused_total 1"), "{metrics}");

    push(&broker, "good-2", limit(6));
    in_force(&agent, &limit(6)).await;
    logged(&["good-2", "max_concurrent_requests 5 -> 6"]).await;
    assert!(reported(&broker, "good-2").await[0].applied);
    assert_eq!(reported(&broker, "bad-1").await.len(), 1);
    assert_eq!(count_logged(&["bad-1", "configuration refused"]), 1);
}

#[tokio::test]
async fn an_agent_whose_first_document_is_bad_has_none_until_a_good_one_comes() {
    let broker = FakeBroker::start(Via::Grpc).await;
    push(&broker, "bad-2", bad());
    let agent = agent_at(&broker).await;
    logged(&["bad-2", "configuration refused as a whole", "\"in_force\":\"none\""]).await;
    assert!(!reported(&broker, "bad-2").await[0].applied);
    assert!(agent.configuration.borrow().is_none());
    // Tunnels do not depend on it.
    agent.probes("/readiness", 200).await;
    push(&broker, "good-3", limit(3));
    in_force(&agent, &limit(3)).await;
}

#[tokio::test]
async fn another_connection_is_told_again_because_another_broker_may_be_behind_it() {
    let broker = FakeBroker::start(Via::Grpc).await;
    push(&broker, "again-1", limit(5));
    let _agent = agent_at(&broker).await;
    reported(&broker, "again-1").await;
    broker.state.goodbye.notify_waiters();
    let mut reports = broker.state.reports.subscribe();
    let twice = soon("another report", reports.wait_for(|reports| reports.len() == 2)).await.unwrap();
    assert_eq!(twice[0], twice[1]);
}

#[tokio::test]
async fn a_broker_that_takes_no_reports_is_asked_once_a_connection() {
    let broker = FakeBroker::start(Via::Grpc).await;
    broker.state.deaf.store(true, Ordering::Relaxed);
    push(&broker, "deaf-1", limit(1));
    let agent = agent_at(&broker).await;
    reported(&broker, "deaf-1").await;
    for round in 2..=4 {
        push(&broker, &format!("deaf-{round}"), limit(round));
        in_force(&agent, &limit(round)).await;
    }
    // Longer than a report is held back for.
    let mut reports = broker.state.reports.subscribe();
    let again = reports.wait_for(|reports| reports.len() > 1);
    assert!(tokio::time::timeout(Duration::from_millis(1_500), again).await.is_err());
    broker.state.deaf.store(false, Ordering::Relaxed);
    broker.state.goodbye.notify_waiters();
    assert!(reported(&broker, "deaf-4").await[0].applied);
    assert_eq!(broker.state.reports.borrow().len(), 2);
}
