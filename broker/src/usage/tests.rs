//! What is counted, and that GitLab hears of it once.

use super::*;
use crate::{
    gitlab::{Call, Limits, Rails},
    stage::{TOKEN_A, agents, client},
};
use postern_wire::token::AgentToken;
use serde_json::{Value, json};
use stand_ins::rails::{self, Endpoint, Faults, Options};
use std::{sync::Arc, time::Duration};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PERIOD: Duration = Duration::from_millis(100);

fn some() -> Usage {
    let usage = Usage::default();
    usage.gitops_synced();
    usage.kubernetes_api_request(Some(Way::Ci), Some(5), AgentId(1), 10);
    usage.kubernetes_api_request(Some(Way::Ci), Some(5), AgentId(2), 20);
    usage.kubernetes_api_request(Some(Way::Pat), Some(6), AgentId(1), 10);
    usage.kubernetes_api_request(Some(Way::User), None, AgentId(3), 30);
    usage.kubernetes_api_request(None, None, AgentId(4), 40);
    usage.flux_push(7);
    usage.flux_push(7);
    usage.registered(RegisteredEvent { agent_id: 1, ..RegisteredEvent::default() });
    usage.registered(RegisteredEvent { agent_id: 1, ..RegisteredEvent::default() });
    usage
}

fn structured() -> Value {
    json!({
        "counters": {
            "gitops_sync": 1,
            "k8s_api_proxy_request": 5,
            "k8s_api_proxy_requests_via_ci_access": 2,
            "k8s_api_proxy_requests_via_user_access": 1,
            "k8s_api_proxy_requests_via_pat_access": 1,
            "flux_git_push_notifications_total": 2,
        },
        "unique_counters": {
            "k8s_api_proxy_requests_unique_users_via_ci_access": [5],
            "k8s_api_proxy_requests_unique_agents_via_ci_access": [1, 2],
            "k8s_api_proxy_requests_unique_agents_via_user_access": [3],
            "k8s_api_proxy_requests_unique_users_via_pat_access": [6],
            "k8s_api_proxy_requests_unique_agents_via_pat_access": [1],
            "flux_git_push_notified_unique_projects": [7],
        },
    })
}

/// A GitLab, and a report on its way to it.
struct Field {
    gitlab: rails::Rails,
    usage: Arc<Usage>,
    stop: CancellationToken,
    report: JoinHandle<()>,
}

impl Field {
    async fn start(newer: bool, period: Duration, usage: Usage) -> Self {
        postern_certs::install_provider();
        let options =
            Options { agents: agents(|project| project), default_branch: newer, ..Options::default() };
        let gitlab = rails::Rails::start(options).await.unwrap();
        let rails: Arc<Rails> = Arc::new(client(&gitlab, Limits::default()));
        rails.agent_info(&AgentToken::new(TOKEN_A).unwrap(), &Call::default()).await.unwrap();
        let (usage, stop) = (Arc::new(usage), CancellationToken::new());
        let report = tokio::spawn(report(Arc::clone(&usage), rails, period, stop.clone()));
        Self { gitlab, usage, stop, report }
    }

    /// Waits until so many reports came, and shows the last.
    async fn heard(&self, endpoint: Endpoint, times: u64) -> Value {
        let mut arrivals = self.gitlab.arrivals();
        let heard = async {
            while self.gitlab.calls(endpoint) < times {
                arrivals.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(60), heard).await.expect("GitLab is told");
        let mut seen = self.gitlab.requests();
        seen.retain(|seen| seen.endpoint == endpoint);
        seen.pop().unwrap().body.unwrap()
    }

    fn answers(&self, endpoint: Endpoint, status: Option<u16>) {
        let status = status.map(|status| http::StatusCode::from_u16(status).unwrap());
        self.gitlab.set_faults(endpoint, Faults { status, ..Faults::default() });
    }

    async fn stopped(self) -> rails::Rails {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(60), self.report).await.unwrap().unwrap();
        self.gitlab
    }
}

#[tokio::test]
async fn newer_gitlab_is_told_everything_and_once() {
    let field = Field::start(true, PERIOD, some()).await;
    assert_eq!(field.heard(Endpoint::UsageMetrics, 1).await, structured());
    let registered = &field.heard(Endpoint::AgentEvents, 1).await["events"];
    assert_eq!(
        registered["k8s_api_proxy_requests_unique_users_via_ci_access"],
        json!([{"user_id": 5, "project_id": 10}, {"user_id": 5, "project_id": 20}])
    );
    assert_eq!(registered["register_agent_at_kas"].as_array().unwrap().len(), 1);
    let gitlab = field.stopped().await;
    assert_eq!(gitlab.calls(Endpoint::UsageMetrics), 1, "there was nothing more to tell");
    assert_eq!(gitlab.calls(Endpoint::AgentEvents), 1);
}

#[tokio::test]
async fn older_gitlab_is_told_what_it_knows() {
    let field = Field::start(false, PERIOD, some()).await;
    let flat = json!({"gitops_sync_count": 1, "k8s_api_proxy_request_count": 5});
    assert_eq!(field.heard(Endpoint::UsageMetrics, 1).await, flat);
    let gitlab = field.stopped().await;
    assert_eq!((gitlab.calls(Endpoint::UsageMetrics), gitlab.calls(Endpoint::AgentEvents)), (1, 0));
}

#[tokio::test]
async fn a_form_that_gitlab_refuses_is_followed_by_the_other_once() {
    let field = Field::start(false, PERIOD, Usage::default()).await;
    field.answers(Endpoint::UsageMetrics, Some(400));
    field.usage.gitops_synced();
    field.heard(Endpoint::UsageMetrics, 2).await;
    let gitlab = field.stopped().await;
    let reports = gitlab.requests().into_iter().filter(|seen| seen.endpoint == Endpoint::UsageMetrics);
    let bodies: Vec<_> = reports.filter_map(|seen| seen.body).collect();
    assert_eq!(bodies, [json!({"gitops_sync_count": 1}), json!({"counters": {"gitops_sync": 1}})]);
}

#[tokio::test]
async fn what_gitlab_did_not_take_is_told_again_with_what_came_meanwhile() {
    for status in [401, 404, 429, 500, 503] {
        let field = Field::start(true, PERIOD, Usage::default()).await;
        field.answers(Endpoint::UsageMetrics, Some(status));
        field.usage.gitops_synced();
        field.heard(Endpoint::UsageMetrics, 1).await;
        field.usage.gitops_synced();
        let before = field.gitlab.calls(Endpoint::UsageMetrics);
        field.heard(Endpoint::UsageMetrics, before + 2).await;
        field.answers(Endpoint::UsageMetrics, None);
        let gitlab = field.stopped().await;
        assert_eq!(gitlab.usage("gitops_sync"), 2, "{status}");
    }
}

#[tokio::test]
async fn what_gitlab_will_never_take_is_told_once() {
    for status in [400, 403, 413] {
        let field = Field::start(true, PERIOD, some()).await;
        field.answers(Endpoint::UsageMetrics, Some(status));
        field.answers(Endpoint::AgentEvents, Some(status));
        field.heard(Endpoint::AgentEvents, 1).await;
        let gitlab = field.stopped().await;
        assert_eq!(gitlab.calls(Endpoint::UsageMetrics), 1, "{status}");
        assert_eq!(gitlab.calls(Endpoint::AgentEvents), 1, "{status}");
    }
}

#[tokio::test]
async fn the_end_is_told_and_does_not_wait_for_ever() {
    let long = Duration::from_secs(3_600);
    let gitlab = Field::start(true, long, some()).await.stopped().await;
    assert_eq!(gitlab.usage("k8s_api_proxy_request"), 5);

    let field = Field::start(true, long, some()).await;
    field.gitlab.set_faults(Endpoint::UsageMetrics, Faults { delay: Some(long), ..Faults::default() });
    // GitLab does not answer, and so time need not really pass.
    tokio::time::pause();
    let start = tokio::time::Instant::now();
    field.stopped().await;
    assert!(start.elapsed() < FLUSH * 4);
    tokio::time::resume();

    let field = Field::start(true, Duration::ZERO, some()).await;
    assert_eq!(field.stopped().await.calls(Endpoint::UsageMetrics), 0, "a period of zero turns it off");
}

#[test]
fn what_is_counted_during_a_report_survives_it() {
    let usage = some();
    let report = usage.now();
    usage.gitops_synced();
    usage.kubernetes_api_request(Some(Way::Ci), Some(9), AgentId(1), 10);
    usage.told(&report, UsageForm::Structured);
    usage.events_told(&report);
    let Report { counts: left, registered } = usage.now();
    assert_eq!((left.gitops_syncs, left.kubernetes_requests, left.flux_pushes), (1, 1, 0));
    assert_eq!(left.via[&Way::Ci].users, [9].into());
    assert_eq!(left.users[&Way::Ci], [UserEvent { user_id: 9, project_id: 10 }].into());
    assert_eq!(registered, Registered::default());
}

#[test]
fn sets_are_bounded_and_counters_go_on() {
    let usage = Usage::default();
    let more = i64::try_from(UNIQUE_MAX).unwrap() + 10;
    for id in 0..more {
        usage.kubernetes_api_request(Some(Way::User), Some(id), AgentId(id), id);
    }
    let now = usage.now().counts;
    let via = &now.via[&Way::User];
    assert_eq!(via.requests, u64::try_from(more).unwrap());
    assert_eq!((via.users.len(), via.agents.len()), (UNIQUE_MAX, UNIQUE_MAX));
    assert_eq!(now.users[&Way::User].len(), UNIQUE_MAX);
}

fn event(agent_id: i64, version: usize) -> RegisteredEvent {
    RegisteredEvent { agent_id, agent_version: format!("v{version}"), ..RegisteredEvent::default() }
}

#[test]
fn an_agent_that_registers_in_a_thousand_ways_leaves_room_for_others() {
    let usage = Usage::default();
    (0..UNIQUE_MAX).for_each(|version| usage.registered(event(1, version)));
    usage.registered(event(2, 0));
    let told = usage.now().events().registered;
    assert_eq!(told.len(), EVENTS_PER_AGENT + 1);
    assert_eq!(told.last(), Some(&event(2, 0)));
}

#[test]
fn registrations_are_bounded_and_told_in_no_time() {
    let usage = Usage::default();
    let before = crate::processor_time::of_this_thread();
    let more = i64::try_from(UNIQUE_MAX).unwrap() + 10;
    (0..more).for_each(|agent| usage.registered(event(agent, 0)));
    let report = usage.now();
    assert_eq!(report.events().registered.len(), UNIQUE_MAX);
    usage.registered(event(0, 1));
    usage.events_told(&report);
    assert_eq!(usage.now().registered, Registered::default());
    usage.registered(event(0, 2));
    assert_eq!(usage.now().events().registered, [event(0, 2)]);
    let took = crate::processor_time::of_this_thread() - before;
    assert!(took < Duration::from_secs(2), "it took {took:?}");
}

#[test]
fn requests_to_clusters_do_not_wait_for_registrations() {
    let usage = Usage::default();
    let _held = usage.registrations();
    usage.kubernetes_api_request(Some(Way::Ci), Some(5), AgentId(1), 10);
    usage.gitops_synced();
    assert!(usage.registered.try_lock().is_err());
}
