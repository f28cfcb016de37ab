//! Rails and Gitaly unwell: what runs goes on, what is new is told the truth or waits, nothing storms, and seconds after
//! they are well again everything is as before.

use super::{FILE, Running, ci, received, status_of};
use crate::harness::{
    gitlab::{GitLabField, Setup},
    http::get,
    until, within,
};
use http::StatusCode;
use http_body_util::BodyExt;
use postern_wire::{
    proto::gitlab::agent::agent_configuration::rpc::{
        ConfigurationRequest, agent_configuration_client::AgentConfigurationClient,
    },
    token::AgentToken,
};
use serde_json::Value;
use stand_ins::{
    gitaly::{Fault, Rpc},
    rails::{Endpoint, Faults, Feature, HangUp},
};
use std::time::Duration;
use tokio::{
    task::{JoinHandle, JoinSet},
    time::Instant,
};
use tonic::{Code, Request, Status, metadata::MetadataValue, transport::Endpoint as Target};

const EVERYTHING: [Endpoint; 9] = [
    Endpoint::AgentInfo,
    Endpoint::ProjectInfo,
    Endpoint::VerifyProjectAccess,
    Endpoint::AllowedAgents,
    Endpoint::AuthorizeProxyUser,
    Endpoint::UsageMetrics,
    Endpoint::AgentConfiguration,
    Endpoint::AgentEvents,
    Endpoint::Module,
];
/// After Rails is well: its last failure is remembered for a second or two, and agents ask every two. The rest is for a
/// machine that is slow or stands still.
const SECONDS: Duration = Duration::from_secs(30);

fn set(field: &GitLabField, faults: &Faults) {
    for endpoint in EVERYTHING {
        field.rails().set_faults(endpoint, faults.clone());
    }
}

fn calls(field: &GitLabField) -> u64 {
    EVERYTHING.iter().map(|endpoint| field.rails().calls(*endpoint)).sum()
}

/// An agent that nobody has asked about yet asks for its configuration; resolves with it or with what it is told.
fn newcomer(field: &GitLabField, token: &str) -> JoinHandle<Result<String, Status>> {
    let address = field.addresses.broker_agents;
    let bearer = AgentToken::new(token).unwrap().bearer();
    tokio::spawn(async move {
        let channel = Target::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        let mut request = Request::new(ConfigurationRequest::default());
        let bearer = MetadataValue::try_from(bearer.as_bytes()).unwrap();
        request.metadata_mut().insert("authorization", bearer);
        let mut stream =
            AgentConfigurationClient::new(channel).get_configuration(request).await?.into_inner();
        Ok(stream.message().await?.expect("a configuration").commit_id)
    })
}

/// Status and message of a request by a job that nobody has asked about yet.
async fn new_request(field: &GitLabField, token: &str) -> (u16, String) {
    let answer = get(field, "/version", &[("authorization", &ci(token))]).await;
    let code = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    let document: Value = serde_json::from_slice(&body).unwrap_or_else(|_| panic!("no JSON: {body:?}"));
    if code != 200 {
        assert_eq!(document["kind"], "Status", "{document}");
    }
    (code, document["message"].as_str().unwrap_or_default().to_owned())
}

async fn is_served_again(field: &GitLabField, token: &str) {
    let start = Instant::now();
    within(SECONDS, "new requests are served again", async || {
        (status_of(field, &ci(token)).await == 200).then_some(())
    })
    .await;
    println!("new requests were served again after {:?}", start.elapsed());
}

#[tokio::test]
async fn while_rails_is_unwell_what_runs_goes_on_and_what_is_new_is_told_so() {
    let mut field = GitLabField::start().await;
    let known = field.bearer();
    let mut watch = Running::open(&field, &known).await;
    let status = |code: u16| Faults { status: StatusCode::from_u16(code).ok(), ..Faults::default() };
    let html = Faults {
        content_type: Some("text/html; charset=utf-8".into()),
        body: Some("<html><body>Please wait</body></html>".into()),
        ..Faults::default()
    };
    let hang_up = Faults { drop_connection: Some(HangUp::BeforeAnswer), ..Faults::default() };
    let cut = Faults { truncated: Some(stand_ins::rails::Truncated::Connection), ..Faults::default() };
    let elsewhere = Faults { redirect: Some("https://sign-in.example.com/".into()), ..Faults::default() };
    // What is wrong, what a new job is told, and what a new agent is told; `None`: it waits.
    let kinds = [
        ("hangs up", hang_up, 500, None),
        ("answers HTML", html, 500, None),
        ("answers 502", status(502), 500, None),
        ("cuts its answers short", cut, 500, None),
        ("answers 429", status(429), 500, None),
        ("redirects", elsewhere, 500, None),
        ("answers 404, for its feature is off", status(404), 404, Some(Code::NotFound)),
    ];
    let spares: Vec<_> = field.tokens.spare_jobs.iter().zip(&field.tokens.spare_agents).collect();
    let spares: Vec<_> = spares.into_iter().map(|(job, agent)| (job.clone(), agent.clone())).collect();
    let commit = field.head(1);
    for ((what, faults, expected, told), (job, agent)) in kinds.into_iter().zip(&spares) {
        println!("Rails {what}");
        set(&field, &faults);
        let (code, message) = new_request(&field, job).await;
        assert_eq!(code, expected, "Rails {what}: {message}");
        assert!(
            !message.contains(&field.rails().address().to_string()),
            "where Rails is, is not for all: {message}"
        );
        let mut newcomer = newcomer(&field, agent);
        match told {
            Some(code) => {
                let refused = (&mut newcomer).await.unwrap().expect_err("it is refused");
                assert_eq!(refused.code(), code, "Rails {what}: {refused:?}");
            }
            None => {
                let asked = field.rails().calls(Endpoint::AgentInfo);
                let again = async || (field.rails().calls(Endpoint::AgentInfo) > asked).then_some(());
                until("Rails is asked again for the agent that waits", again).await;
                assert!(!newcomer.is_finished(), "Rails {what}");
            }
        }
        watch.goes_on().await;
        assert_eq!(status_of(&field, &known).await, 200, "a job that is known, Rails {what}");
        set(&field, &Faults::default());
        is_served_again(&field, job).await;
        if told.is_none() {
            let got = tokio::time::timeout(SECONDS, newcomer).await.expect("in time").unwrap();
            assert_eq!(got.expect("it was worth waiting"), commit, "Rails {what}");
        }
    }
    watch.goes_on().await;
    assert!(field.agent.alive() && field.broker.alive());
    assert!(!field.agent.text().contains("token refused"), "{}", field.agent.text());
}

#[tokio::test]
async fn a_token_that_rails_refuses_is_refused_alone() {
    let field = GitLabField::start().await;
    let mut watch = Running::open(&field, &field.bearer()).await;
    let (gone, fine) = (field.tokens.spare_jobs[0].clone(), field.tokens.spare_jobs[1].clone());
    field.rails().revoke(&gone);
    field.rails().revoke(&field.tokens.spare_agents[0]);
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(new_request(&field, &gone).await.0, 401);
        assert_eq!(new_request(&field, &fine).await.0, 200);
    }
    let lasted = start.elapsed();
    let refused = newcomer(&field, &field.tokens.spare_agents[0]).await.unwrap().expect_err("it is refused");
    assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    newcomer(&field, &field.tokens.spare_agents[1]).await.unwrap().expect("it is served");
    // A refusal is remembered for nine tenths of a second at least: requests within that time are one question, or two.
    let (asked, bound) = (field.rails().calls(Endpoint::AllowedAgents), 7.0 + lasted.as_secs_f64() / 0.9);
    assert!((asked as f64) < bound, "{asked} calls, {bound} at the most");
    watch.goes_on().await;
}

#[tokio::test]
async fn the_whole_feature_switched_off_ends_nothing_that_runs() {
    let mut field = GitLabField::with(Setup { info_cache_ttl: "2s", ..Setup::default() }).await;
    let mut watch = Running::open(&field, &field.bearer()).await;
    field.rails().set_feature(Feature::Off);
    let asked = field.rails().calls(Endpoint::AgentInfo);
    // Every five seconds or so Rails is asked whether the agent is still one.
    within(SECONDS, "Rails is asked about the agent", async || {
        (field.rails().calls(Endpoint::AgentInfo) > asked).then_some(())
    })
    .await;
    watch.goes_on().await;
    let refused = newcomer(&field, &field.tokens.spare_agents[0]).await.unwrap().expect_err("it is refused");
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    field.rails().set_feature(Feature::On);
    let token = field.tokens.spare_agents[0].clone();
    within(SECONDS, "the agent is served", async || newcomer(&field, &token).await.unwrap().ok()).await;
    watch.goes_on().await;
    assert!(!field.agent.text().contains("token refused"), "{}", field.agent.text());
    assert!(field.agent.alive());
}

/// How long Rails is away. `POSTERN_OUTAGE_SECONDS=60` for the whole minute.
fn outage() -> Duration {
    let given = std::env::var("POSTERN_OUTAGE_SECONDS").ok().and_then(|seconds| seconds.parse().ok());
    Duration::from_secs(given.unwrap_or(6))
}

#[tokio::test]
async fn an_outage_of_rails_is_survived_without_a_storm() {
    let mut field =
        GitLabField::with(Setup { info_cache_ttl: "2s", allowed_agent_cache_ttl: "2s", ..Setup::default() })
            .await;
    let known = field.bearer();
    let mut watch = Running::open(&field, &known).await;
    let hang_up = Faults { drop_connection: Some(HangUp::BeforeAnswer), ..Faults::default() };
    set(&field, &hang_up);
    let (before, start) = (calls(&field), Instant::now());
    const JOBS: usize = 4;
    const AGENTS: usize = 4;
    let (jobs, agents) =
        (field.tokens.spare_jobs[..JOBS].to_vec(), field.tokens.spare_agents[..AGENTS].to_vec());
    // Agents that come while it lasts come again and again.
    let mut newcomers = JoinSet::new();
    for token in agents {
        let address = field.addresses.broker_agents;
        newcomers.spawn(async move {
            loop {
                let bearer = AgentToken::new(token.clone()).unwrap().bearer();
                let channel =
                    Target::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
                let mut request = Request::new(ConfigurationRequest::default());
                let bearer = MetadataValue::try_from(bearer.as_bytes()).unwrap();
                request.metadata_mut().insert("authorization", bearer);
                let asked = AgentConfigurationClient::new(channel).get_configuration(request).await;
                if let Ok(stream) = asked {
                    return stream.into_inner().message().await.is_ok();
                }
            }
        });
    }
    let mut requests = 0_u64;
    while start.elapsed() < outage() {
        for token in &jobs {
            assert_eq!(new_request(&field, token).await.0, 500);
            requests += 1;
        }
        watch.goes_on().await;
    }
    let (lasted, asked) = (start.elapsed(), calls(&field) - before);
    println!("{requests} requests in {lasted:?} asked Rails {asked} times");
    // A failure is remembered for nine tenths of a second at least; an agent's question waits a second before the next.
    let each = lasted.as_secs_f64() / 0.9 + 2.0;
    let bound = each * (JOBS + AGENTS + 2) as f64;
    assert!((asked as f64) < bound, "{asked} calls, {bound} at the most");
    set(&field, &Faults::default());
    for token in &jobs {
        is_served_again(&field, token).await;
    }
    let all_in = within(SECONDS, "the new agents are in", async || {
        while let Some(Ok(true)) = newcomers.try_join_next() {}
        newcomers.is_empty().then_some(())
    });
    all_in.await;

    // And once more with nobody there at all.
    let address = field.stop_rails();
    let token = field.tokens.spare_jobs[JOBS].clone();
    assert_eq!(new_request(&field, &token).await.0, 500);
    assert_eq!(status_of(&field, &field.bearer()).await, 200, "held by what runs");
    watch.goes_on().await;
    field.restart_rails(address).await;
    is_served_again(&field, &token).await;
    watch.goes_on().await;
    assert!(!field.agent.text().contains("token refused"), "{}", field.agent.text());
    assert!(field.agent.alive());
}

#[tokio::test]
async fn a_slow_rails_holds_up_those_who_are_new_and_nobody_else() {
    let field = GitLabField::start().await;
    let known = field.bearer();
    let mut watch = Running::open(&field, &known).await;
    set(&field, &Faults { delay: Some(Duration::from_secs(30)), ..Faults::default() });
    let start = Instant::now();
    let agent = newcomer(&field, &field.tokens.spare_agents[0]);
    let (code, quick) = {
        let token = field.tokens.spare_jobs[0].clone();
        let waiting = new_request(&field, &token);
        let meanwhile = async {
            let mut slowest = Duration::ZERO;
            for _ in 0..20 {
                let began = Instant::now();
                assert_eq!(status_of(&field, &known).await, 200);
                slowest = slowest.max(began.elapsed());
                watch.goes_on().await;
            }
            slowest
        };
        let ((code, _), quick) = tokio::join!(waiting, meanwhile);
        (code, quick)
    };
    println!(
        "a new request was answered {code} after {:?}; the slowest of the known took {quick:?}",
        start.elapsed()
    );
    assert_eq!(code, 500);
    assert!(start.elapsed() < Duration::from_secs(28), "{:?}", start.elapsed());
    assert!(quick < start.elapsed() / 2, "{quick:?}");
    let refused = agent.await.unwrap().expect_err("nobody waits for ever");
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    set(&field, &Faults::default());
    is_served_again(&field, &field.tokens.spare_jobs[0]).await;
    watch.goes_on().await;
}

#[tokio::test]
async fn gitaly_down_or_slow_ends_nothing_and_the_next_commit_comes_through() {
    let mut field = GitLabField::start().await;
    let first = field.head(1);
    received(&mut field.agent, &first).await;
    let mut watch = Running::open(&field, &field.bearer()).await;
    field.gitaly.break_all(Fault::Unavailable);
    let looks = |field: &GitLabField| Rpc::ALL.iter().map(|rpc| field.gitaly.calls(*rpc)).sum::<u64>();
    let before = looks(&field);
    let commit = field.commit(1, &[(FILE, Some("observability: {logging: {level: info}}\n"))]);
    until("Gitaly was asked in vain", async || (looks(&field) > before).then_some(())).await;
    // Known commits are served from memory, to those who are here; who is new waits.
    let token = field.tokens.spare_agents[0].clone();
    let mut waits = newcomer(&field, &token);
    watch.goes_on().await;
    assert_eq!(status_of(&field, &field.bearer()).await, 200);
    assert!(looks(&field) - before < 20, "{} calls", looks(&field) - before);
    field.gitaly.mend();
    let start = Instant::now();
    received(&mut field.agent, &commit).await;
    println!("a commit from while Gitaly was down was received {:?} after it was up", start.elapsed());
    let got = match tokio::time::timeout(Duration::from_secs(5), &mut waits).await {
        Ok(Ok(Ok(got))) => got,
        // It was told to come again, and does.
        _ => newcomer(&field, &token).await.unwrap().expect("it is served"),
    };
    assert!(got == commit || got == first, "{got}");

    field.gitaly.break_all(Fault::Delay(Duration::from_secs(2)));
    let commit = field.commit(1, &[(FILE, Some("observability: {logging: {level: debug}}\n"))]);
    watch.goes_on().await;
    received(&mut field.agent, &commit).await;
    watch.goes_on().await;
    assert!(!field.agent.text().contains("no configuration"), "{}", field.agent.text());
}
