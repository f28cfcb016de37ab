use crate::{
    fake_api::FakeApi,
    fake_broker::{FakeBroker, MAKE_REQUEST, Via, head, trailer},
    harness::{Still, TOKEN, count_logged, leaks, logged, soon, start, start_in},
};
use postern_wire::proto::gitlab::agent::{
    agent_configuration::rpc::ConfigurationResponse, agentcfg::AgentConfiguration,
};
use std::{sync::atomic::Ordering, time::Duration};
use tonic::Code;

fn port(at: &str) -> &str {
    at.rsplit(':').next().expect("host:port")
}

fn configuration(commit_id: &str, agent_id: i64) -> Option<ConfigurationResponse> {
    let configuration = AgentConfiguration { agent_id, ..Default::default() };
    Some(ConfigurationResponse { configuration: Some(configuration), commit_id: commit_id.to_owned() })
}

#[tokio::test]
async fn a_broker_that_was_killed_is_found_again_by_the_same_agent() {
    let mut broker = FakeBroker::start(Via::Ws).await;
    let api = FakeApi::start().await;
    let agent = start(&format!("ws://{}", broker.at), &api, &[]).await;
    let mut tunnel = broker.tunnel().await;
    agent.probes("/readiness", 200).await;
    let mut watchers = api.watchers();
    tunnel.call(MAKE_REQUEST).await;
    tunnel.say(head("GET", "/watch", &[], Some(0))).await;
    tunnel.say(trailer()).await;
    tunnel.hear_head().await;

    broker.kill();
    soon("the end of the watch", watchers.wait_for(|open| *open == 0)).await.unwrap();
    let why = agent.probes("/readiness", 503).await;
    assert!(why.contains("not connected"), "{why}");
    assert_eq!(agent.probe("/liveness").await.0, 200);
    logged(&["connection lost"]).await;

    let at = broker.at.clone();
    drop(broker);
    let mut again = FakeBroker::start_at(&at, Via::Ws, Default::default()).await;
    let mut tunnel = again.tunnel().await;
    assert!(tunnel.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await.is_ok());
    agent.probes("/readiness", 200).await;
}

#[tokio::test]
async fn a_broker_that_says_goodbye_keeps_what_runs_while_the_agent_moves_on() {
    let mut broker = FakeBroker::start(Via::Ws).await;
    let api = FakeApi::start().await;
    let agent = start(&format!("ws://{}", broker.at), &api, &[]).await;
    let (mut busy, mut idle) = (broker.tunnel().await, broker.tunnel().await);
    busy.call(MAKE_REQUEST).await;
    busy.say(head("POST", "/echo", &[], Some(-1))).await;
    assert_eq!(busy.hear_head().await.status_code, 200);

    let opened = broker.state.connects.load(Ordering::Relaxed);
    broker.state.goodbye.notify_waiters();
    let upgrades = || broker.state.upgrades.lock().unwrap().len();
    soon("another connection", async {
        while upgrades() < 2 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    // The idle tunnel follows, once the new connection stands, after a moment for a request on its way.
    assert!(soon("the end of the idle tunnel", idle.next()).await.is_none());
    assert!(broker.state.connects.load(Ordering::Relaxed) > opened);
    busy.say(trailer()).await;
    busy.close_send().await;
    assert!(busy.hear_all().await.is_ok());
    agent.probes("/readiness", 200).await;
}

#[tokio::test]
async fn an_agent_that_is_asked_to_move_is_ready_all_the_time() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    let (mut one, mut two) = (broker.tunnel().await, broker.tunnel().await);
    agent.probes("/readiness", 200).await;
    // Old ones go after a moment, which is not over before the request has come.
    let _still = Still::almost();
    broker.state.goodbye.notify_waiters();
    let asking = async {
        loop {
            let (status, why) = agent.probe("/readiness").await;
            assert_eq!(status, 200, "{why}");
            tokio::task::yield_now().await;
        }
    };
    let moving = async {
        // New ones stand before the old ones go, and a request that still comes to an old one is served.
        let _new = (broker.tunnel().await, broker.tunnel().await);
        assert!(one.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await.is_ok());
        assert!(soon("the end of the idle tunnel", two.next()).await.is_none());
    };
    tokio::select! {
        () = asking => {}
        () = moving => {}
    }
}

#[tokio::test]
async fn tunnels_that_a_leaving_broker_ends_are_opened_again_when_it_said() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    let (mut goes, mut stays) = (broker.tunnel().await, broker.tunnel().await);
    agent.probes("/readiness", 200).await;
    let goodbye = |pause: u64| {
        let mut goodbye = tonic::Status::ok("");
        goodbye.metadata_mut().insert(postern_wire::metadata::RETRY_PUSHBACK, pause.into());
        goodbye
    };
    let still = Still::begin();
    // One that was ended as soon as it was there would not be opened again at once, whatever is said.
    tokio::time::advance(Duration::from_secs(2)).await;
    goes.fail(goodbye(0)).await;
    goes = broker.tunnel().await;
    drop(still);
    let began = tokio::time::Instant::now();
    goes.fail(goodbye(700)).await;
    broker.tunnel().await;
    let after = began.elapsed();
    assert!((Duration::from_millis(560)..Duration::from_secs(15)).contains(&after), "{after:?}, not 700 ms");
    assert!(stays.ask(vec![head("GET", "/x", &[], Some(0)), trailer()]).await.is_ok());
    agent.probes("/readiness", 200).await;
}

#[tokio::test]
async fn a_refused_token_is_one_line_with_advice_and_not_a_storm() {
    let broker = FakeBroker::start(Via::Grpc).await;
    *broker.state.token.lock().unwrap() = Some("another".to_owned());
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    let name = format!("token refused by grpc://{}", broker.at);
    let line = logged(&[&name, "Unauthenticated: unauthenticated", "AGENTK_TOKEN"]).await;
    assert!(line.contains("does not know the token"), "{line}");
    let why = agent.probes("/readiness", 503).await;
    assert!(why.contains("refuses or limits"), "{why}");
    assert_eq!(count_logged(&[&name]), 1);
    assert!(broker.state.connects.load(Ordering::Relaxed) <= 2);
}

#[tokio::test]
async fn a_new_token_in_the_file_is_used_for_a_new_connection() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
    let flag = format!("--token-file={}", file.display());
    let agent = start_in(&format!("grpc://{}", broker.at), &api, &[&flag], &[]).await;
    let mut tunnel = broker.tunnel().await;
    assert_eq!(tunnel.token, TOKEN);
    // A request that runs over the old connection is not disturbed.
    tunnel.call(MAKE_REQUEST).await;
    tunnel.say(head("GET", "/watch", &[], Some(0))).await;
    tunnel.say(trailer()).await;
    tunnel.hear_head().await;

    *broker.state.token.lock().unwrap() = Some("glagent-second-token".to_owned());
    std::fs::write(&file, "glagent-second-token\n").unwrap();
    let renewed = soon("a tunnel with the new token", async {
        loop {
            let tunnel = broker.tunnel().await;
            if tunnel.token == "glagent-second-token" {
                return tunnel;
            }
        }
    });
    drop(renewed.await);
    assert_eq!(*api.watchers().borrow(), 1);
    agent.probes("/readiness", 200).await;
}

#[tokio::test]
async fn a_refused_token_is_replaced_without_waiting() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    *broker.state.token.lock().unwrap() = Some("glagent-second-token".to_owned());
    let api = FakeApi::start().await;
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    std::fs::write(&file, TOKEN).unwrap();
    let flag = format!("--token-file={}", file.display());
    let _agent = start_in(&format!("grpc://{}", broker.at), &api, &[&flag], &[]).await;
    logged(&[&format!("token refused by grpc://{}", broker.at), &file.display().to_string()]).await;
    std::fs::write(&file, "glagent-second-token").unwrap();
    assert_eq!(broker.tunnel().await.token, "glagent-second-token");
}

#[tokio::test]
async fn configurations_are_received_and_followed() {
    let broker = FakeBroker::start(Via::Grpc).await;
    broker.state.configuration.send_replace(configuration("c0ffee01", 7));
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    let mut latest = agent.configuration.clone();
    let first = soon("a configuration", latest.wait_for(Option::is_some)).await.unwrap().clone().unwrap();
    assert_eq!(first.agent_id, 7);
    logged(&["configuration received", "c0ffee01"]).await;
    broker.state.configuration.send_replace(configuration("c0ffee02", 7));
    logged(&["configuration received", "c0ffee02"]).await;
    broker.state.configuration.send_replace(configuration("c0ffee03", 8));
    logged(&["configuration of another agent ignored", "\"other\":8"]).await;
    assert_eq!(latest.borrow().as_ref().unwrap().agent_id, 7);

    let asked = broker.state.asked.borrow()[0].clone();
    assert!(asked.skip_register && asked.commit_id.is_empty());
    assert!(asked.agent_meta.unwrap().version.starts_with("v16"));
    let registered = broker.state.registered.borrow();
    assert!(registered[0].pod_id >= 0 && registered[0].agent_meta.is_some());
}

#[tokio::test]
async fn an_old_broker_gets_ten_idle_tunnels_and_lists_the_agent_itself() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    broker.state.old.store(true, Ordering::Relaxed);
    let api = FakeApi::start().await;
    let _agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    let mut tunnels = Vec::new();
    for _ in 0..10 {
        tunnels.push(broker.tunnel().await);
    }
    let mut asked = broker.state.asked.subscribe();
    let asked =
        soon("a configuration stream", asked.wait_for(|asked| !asked.is_empty())).await.unwrap()[0].clone();
    assert!(!asked.skip_register);
}

#[tokio::test]
async fn more_requests_than_idle_tunnels_make_the_pool_grow() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    let mut busy = Vec::new();
    for _ in 0..60 {
        let mut tunnel = broker.tunnel().await;
        tunnel.call(MAKE_REQUEST).await;
        tunnel.say(head("GET", "/watch", &[], Some(0))).await;
        tunnel.say(trailer()).await;
        busy.push(tunnel);
    }
    let mut watchers = api.watchers();
    soon("sixty watches", watchers.wait_for(|open| *open == 60)).await.unwrap();
    let (_, metrics) = agent.probe("/metrics").await;
    assert!(metrics.contains("agentk_tunnels{state=\"busy\"} 60"), "{metrics}");
    assert!(metrics.contains("gitlab_build_info{"), "{metrics}");
    drop(busy);
    soon("no watches", watchers.wait_for(|open| *open == 0)).await.unwrap();
}

#[tokio::test]
async fn a_broker_that_ends_tunnels_at_once_is_not_stormed() {
    let broker = FakeBroker::start(Via::Grpc).await;
    broker.state.hasty.store(true, Ordering::Relaxed);
    let api = FakeApi::start().await;
    let _agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    // The third delay begins after half a second at the earliest.
    for _ in 0..3 {
        logged(&["tunnel failed", "ends idle tunnels at once"]).await;
    }
    assert!(broker.state.connects.load(Ordering::Relaxed) <= 8);
}

#[tokio::test]
async fn draining_finishes_what_runs_and_takes_nothing_new() {
    let mut broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let mut agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    let mut busy = broker.tunnel().await;
    let mut idle = broker.tunnel().await;
    busy.call(MAKE_REQUEST).await;
    busy.say(head("POST", "/echo", &[], Some(-1))).await;
    assert_eq!(busy.hear_head().await.status_code, 200);

    agent.stop();
    let why = agent.probes("/readiness", 503).await;
    assert!(why.contains("draining"), "{why}");
    assert!(soon("the end of an idle tunnel", idle.next()).await.is_none());
    busy.say(trailer()).await;
    busy.close_send().await;
    assert!(busy.hear_all().await.is_ok());
    busy.end();
    agent.ended().await.unwrap();
}

#[tokio::test]
async fn the_listener_answers_probes_and_nothing_else() {
    let broker = FakeBroker::start(Via::Grpc).await;
    let api = FakeApi::start().await;
    let agent = start(&format!("grpc://{}", broker.at), &api, &[]).await;
    logged(&["observability listening", &agent.observability]).await;
    agent.probes("/readiness", 200).await;
    assert_eq!(agent.probe("/liveness").await, (200, String::new()));
    assert_eq!(agent.probe("/debug/pprof/").await.0, 404);
    assert!(port(&agent.observability).parse::<u16>().is_ok());
}

#[tokio::test]
async fn no_secret_is_in_any_line_at_any_level() {
    let mut broker = FakeBroker::start(Via::Ws).await;
    let api = FakeApi::start().await;
    let _agent = start(&format!("ws://{}", broker.at), &api, &["--kas-header=Cookie: header-secret"]).await;
    let headers = [("Authorization", "Bearer header-secret"), ("Cookie", "header-secret")];
    let mut tunnel = broker.tunnel().await;
    let path = "/x?token=query-secret";
    let messages =
        vec![head("POST", path, &headers, Some(11)), crate::fake_broker::data(b"body-secret"), trailer()];
    assert!(tunnel.ask(messages).await.is_ok());
    let mut tunnel = broker.tunnel().await;
    tunnel.call("/unknown.Service/Method").await;
    assert_eq!(tunnel.hear_all().await.unwrap_err().0, Code::Unimplemented as i32);
    let leaks = leaks();
    assert!(leaks.is_empty(), "{} lines, the first: {}", leaks.len(), leaks[0]);
}
