//! Whatever GitLab or the way to it does wrong has a name, ends in time, and shows no secret.

use super::*;
use crate::error::chain;
use stand_ins::rails::{Faults, Feature, Tls};

/// Asks who the agent is while the endpoint is faulty.
async fn under(field: &Field, faults: Faults) -> RailsError {
    field.gitlab.set_faults(Endpoint::AgentInfo, faults);
    let error = field.client.agent_info(&token(), &call()).await.unwrap_err();
    assert!(!format!("{error:?} {}", chain(&error)).contains("SECRET"), "{error:?}");
    error
}

#[tokio::test]
async fn each_status_is_a_fault_with_gitlabs_reason() {
    let field = Field::new().await;
    for (code, text) in [
        (401, "401 Unauthorized: stand-in"),
        (403, "403 Forbidden: stand-in"),
        (404, "404 Not Found: stand-in"),
        (429, "429 Too Many Requests: stand-in"),
        (500, "500 Internal Server Error: stand-in"),
        (503, "503 Service Unavailable: stand-in"),
    ] {
        let faults = Faults { status: StatusCode::from_u16(code).ok(), ..Faults::default() };
        let line = chain(&under(&field, faults).await);
        assert!(line.starts_with("asking GitLab at 127.0.0.1:") && line.ends_with(text), "{line}");
    }
    field.gitlab.set_faults(Endpoint::AgentInfo, Faults::default());
    field.client.agent_info(&token(), &call()).await.expect("well again");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let field = Field::new().await;
    let elsewhere = format!("{}/api/v4/internal/kubernetes/project_info", field.gitlab.url());
    let error = under(&field, Faults { redirect: Some(elsewhere), ..Faults::default() }).await;
    assert!(matches!(error.fault, Fault::Other { status: StatusCode::FOUND, .. }), "{error:?}");
    assert_eq!(field.gitlab.requests().len(), 1);
}

#[tokio::test]
async fn an_answer_that_makes_no_sense_is_malformed_and_not_quoted() {
    let field = Field::new().await;
    let body = |text: &str| Faults { body: Some(text.to_owned()), ..Faults::default() };
    for faults in [
        Faults { content_type: Some("text/html".to_owned()), ..Faults::default() },
        Faults { truncated: Some(rails::Truncated::Document), ..Faults::default() },
        Faults { status: Some(StatusCode::NO_CONTENT), ..Faults::default() },
        body("<html>"),
        body("{}"),
        body(r#"{"agent_id": "SECRET"}"#),
        body(r#"{"agent_id": 1, "project_id": 2, "agent_name": "../SECRET"}"#),
    ] {
        let error = under(&field, faults).await;
        assert!(matches!(error.fault, Fault::Malformed(_)), "{error:?}");
    }
    let charset =
        Faults { content_type: Some("Application/JSON; charset=utf-8".to_owned()), ..Faults::default() };
    field.gitlab.set_faults(Endpoint::AgentInfo, charset);
    field.client.agent_info(&token(), &call()).await.unwrap();
}

#[tokio::test]
async fn an_endless_answer_is_not_read() {
    let field = Field::new().await;
    let error = under(&field, Faults { huge: Some(64 << 20), ..Faults::default() }).await;
    assert!(matches!(error.fault, Fault::TooLarge(limit) if limit == 1 << 20), "{error:?}");
}

#[tokio::test]
async fn a_broken_connection_is_a_transport_fault() {
    let field = Field::new().await;
    for faults in [
        Faults { drop_connection: Some(rails::HangUp::BeforeAnswer), ..Faults::default() },
        Faults { truncated: Some(rails::Truncated::Connection), ..Faults::default() },
    ] {
        let error = under(&field, faults).await;
        assert!(matches!(error.fault, Fault::Transport { .. }), "{error:?}");
    }
    let Field { gitlab, client } = field;
    drop(gitlab);
    let refused = async {
        // The listener ends a moment after the stand-in.
        loop {
            let error = client.agent_info(&token(), &call()).await.unwrap_err();
            if chain(&error).contains("is gitlab.address right?") {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(60), refused).await.unwrap();
    assert_eq!(error.for_agent().code(), tonic::Code::Unavailable);
}

#[tokio::test]
async fn silence_ends_with_the_time_for_the_head_and_with_the_callers_deadline() {
    let quick = Limits { head: Duration::from_millis(100), ..limits() };
    let field = Field::with(options(), quick).await;
    let late = Faults { delay: Some(Duration::from_secs(60)), ..Faults::default() };
    let error = under(&field, late.clone()).await;
    assert!(matches!(error.fault, Fault::Silent(_)), "{error:?}");
    let field = Field::new().await;
    field.gitlab.set_faults(Endpoint::AgentInfo, late);
    let soon = Call { deadline: Some(Instant::now() + Duration::from_millis(100)), ..Call::default() };
    let error = field.client.agent_info(&token(), &soon).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Deadline), "{error:?}");
}

#[tokio::test]
async fn a_caller_with_little_time_does_not_stop_the_question_for_the_others() {
    let field = Field::new().await;
    let delay = Some(Duration::from_millis(300));
    field.gitlab.set_faults(Endpoint::AgentInfo, Faults { delay, ..Faults::default() });
    let remembered = remembered(&field);
    let hurried = Call { deadline: Some(Instant::now() + Duration::from_millis(50)), ..Call::default() };
    let (agent, patient) = (token(), call());
    let (hurried, patient) =
        tokio::join!(remembered.agent(&agent, &hurried), remembered.agent(&agent, &patient));
    assert!(matches!(hurried.unwrap_err().fault, Fault::Deadline));
    assert_eq!(patient.unwrap().now().unwrap().agent_id, AgentId(1));
    assert_eq!(field.gitlab.calls(Endpoint::AgentInfo), 1);
}

#[tokio::test]
async fn a_gitlab_in_trouble_is_not_stormed() {
    let field = Field::new().await;
    let down = Faults { status: Some(StatusCode::BAD_GATEWAY), ..Faults::default() };
    field.gitlab.set_faults(Endpoint::AgentInfo, down);
    let remembered = remembered(&field);
    let begin = Instant::now();
    for _ in 0..200 {
        remembered.agent(&token(), &call()).await.unwrap_err();
    }
    let allowed = 1 + begin.elapsed().as_millis() / 1_800;
    assert!(u128::from(field.gitlab.calls(Endpoint::AgentInfo)) <= allowed);
}

#[tokio::test]
async fn a_wrong_secret_or_clock_or_flag_is_named() {
    let gitlab = rails::Rails::start(Options { secret: [9; 32], ..options() }).await.unwrap();
    let secret = rails::Rails::start(options()).await.unwrap().secret_file();
    let wrong = client(&gitlab.url(), &secret, &any_ca(), limits());
    let line = chain(&wrong.agent_info(&token(), &call()).await.unwrap_err());
    assert!(line.contains("gitlab.authentication_secret_file"), "{line}");

    for clock_ahead in [60.0, -60.0] {
        let field = Field::with(Options { clock_ahead, ..options() }, limits()).await;
        let line = chain(&field.client.agent_info(&token(), &call()).await.unwrap_err());
        assert!(line.contains("clocks"), "{line}");
    }

    let field = Field::new().await;
    field.gitlab.set_feature(Feature::Off);
    let error = field.client.agent_info(&token(), &call()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::NotFound { .. }), "{error:?}");
    let unknown = AgentToken::new("glagent-SECRET-unknown").unwrap();
    field.gitlab.set_feature(Feature::On);
    let error = field.client.agent_info(&unknown, &call()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::Unauthorized { .. }), "{error:?}");
}

#[tokio::test]
async fn tls_needs_the_ca_that_was_named() {
    let ca = postern_certs::dev::Ca::new();
    let issued = ca.issue(&["127.0.0.1"]);
    let tls = Tls { certificate_pem: issued.certificate_pem, key_pem: issued.key_pem };
    let gitlab = rails::Rails::start(Options { tls: Some(tls), ..options() }).await.unwrap();
    let trusting = client(&gitlab.url(), &gitlab.secret_file(), &ca.pem(), limits());
    assert_eq!(trusting.agent_info(&token(), &call()).await.unwrap().agent_id, AgentId(1));
    let doubting = client(&gitlab.url(), &gitlab.secret_file(), &any_ca(), limits());
    let line = chain(&doubting.agent_info(&token(), &call()).await.unwrap_err());
    assert!(line.contains("gitlab.ca_certificate_file") && !line.contains("--ca-cert-file"), "{line}");
}

#[tokio::test]
async fn the_rate_is_kept_and_a_caller_without_time_is_told_at_once() {
    let gitlab = rails::Rails::start(options()).await.unwrap();
    let mut client = client(&gitlab.url(), &gitlab.secret_file(), &any_ca(), limits());
    client.rate = Bucket::new(Rate { per_second: 0.01, burst: 2 }, Duration::from_secs(1_000));
    for _ in 0..2 {
        client.agent_info(&token(), &call()).await.unwrap();
    }
    let begin = Instant::now();
    let error = client.agent_info(&token(), &call()).await.unwrap_err();
    assert!(matches!(error.fault, Fault::RateLimited(_)), "{error:?}");
    // Its turn would come in a hundred seconds.
    assert!(begin.elapsed() < Duration::from_secs(60));
    assert_eq!(gitlab.calls(Endpoint::AgentInfo), 2);
}

#[tokio::test]
async fn a_jwt_that_grew_old_on_its_way_is_signed_once_more() {
    // Always too old for this GitLab; whether it may be for its way, the client tells by its own clock.
    let gitlab = rails::Rails::start(Options { clock_ahead: 60.0, ..options() }).await.unwrap();
    let mut client = client(&gitlab.url(), &gitlab.secret_file(), &any_ca(), limits());
    client.jwt_dated = Duration::from_secs(600);
    client.agent_info(&token(), &call()).await.unwrap_err();
    assert_eq!(gitlab.calls(Endpoint::AgentInfo), 1, "it was fast enough");
    client.jwt_dated = Duration::ZERO;
    let error = client.agent_info(&token(), &call()).await.unwrap_err();
    assert_eq!(gitlab.calls(Endpoint::AgentInfo), 3, "once more, and no more than that");
    assert_eq!(error.for_agent().code(), tonic::Code::Unavailable);
    let usage = Usage { counters: [("a".to_owned(), 1)].into(), ..Usage::default() };
    client.usage_metrics(&usage, UsageForm::Flat, &call()).await.unwrap_err();
    let bodies: Vec<_> = gitlab.requests().into_iter().filter_map(|seen| seen.body).collect();
    assert_eq!(bodies, [json!({"a": 1}), json!({"a": 1})], "with the same content");
}
