//! For how long an agent is held, under paused time; what it is told then, and what is remembered of it.

use super::*;
use crate::{
    agent_limit::{LimitPolicy, RedisLost},
    gitlab::{Fault, Reason},
    redis::{Config, Redis, Servers},
};
use http::StatusCode;
use postern_wire::ids::AgentId;
use std::sync::{
    Mutex,
    atomic::{AtomicU32, Ordering},
};
use tonic::Code;

fn fails(status: u16, reason: Option<&str>) -> RailsError {
    let (status, reason) = (StatusCode::from_u16(status).unwrap(), Reason(reason.map(str::to_owned)));
    let fault = match status {
        StatusCode::UNAUTHORIZED => Fault::Unauthorized { reason },
        StatusCode::FORBIDDEN => Fault::Forbidden { reason },
        StatusCode::NOT_FOUND => Fault::NotFound { reason },
        _ => Fault::Other { status, reason },
    };
    RailsError { call: "agent_info", host: "h".into(), fault }
}

fn token() -> TokenKey {
    TokenKey::of(b"SECRET")
}

#[tokio::test(start_paused = true)]
async fn trouble_is_waited_for_and_a_refusal_is_told_at_once() {
    let jwt = Some("401 KAS JWT authentication invalid");
    for (status, reason, wanted) in [
        (401, None, Err(Code::Unauthenticated)),
        (403, None, Err(Code::PermissionDenied)),
        (404, None, Err(Code::NotFound)),
        (401, jwt, Ok(())),
        (429, None, Ok(())),
        (302, None, Ok(())),
        (503, None, Ok(())),
    ] {
        let asked = AtomicU32::new(0);
        let answer = held(token(), || async {
            if asked.fetch_add(1, Ordering::Relaxed) < 3 { Err(fails(status, reason)) } else { Ok(()) }
        });
        assert_eq!(answer.await.map_err(|status| status.code()), wanted, "{status} {reason:?}");
        assert_eq!(asked.into_inner(), if wanted.is_ok() { 4 } else { 1 }, "{status} {reason:?}");
        let begin = Instant::now();
        let answer = held(token(), || async { Err::<(), _>(fails(status, reason)) }).await;
        let told = answer.unwrap_err();
        assert_eq!(told.code(), wanted.err().unwrap_or(Code::Unavailable), "{status} {reason:?}");
        assert!(begin.elapsed() <= PATIENCE, "{status} {reason:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_gitlab_that_never_answers_is_unavailable_before_the_server_cancels_the_call() {
    let begin = Instant::now();
    let told = held(token(), std::future::pending::<Result<(), RailsError>>).await.unwrap_err();
    assert_eq!((told.code(), told.message()), (Code::Unavailable, "unavailable"));
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
    let begin = Instant::now();
    let slow = || async {
        sleep(Duration::from_secs(14)).await;
        Err::<(), _>(fails(500, None))
    };
    assert_eq!(held(token(), slow).await.unwrap_err().code(), Code::Unavailable);
    assert!(begin.elapsed() < Duration::from_secs(25), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_known_agent_whose_call_the_limit_refuses_is_remembered_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let token = AgentToken::new("glagent-SECRET-limited".to_owned()).unwrap();
    let (file, hash) = (folder.path().join("identities.yaml"), token.key().to_hex());
    let agent =
        format!("{{id: 7, name: a, token_sha256: [{hash}], project: {{id: 10, path: a/a}}, repository: /}}");
    std::fs::write(&file, format!("agents: [{agent}]")).unwrap();
    let nowhere = Config::new(Servers::Unix(folder.path().join("no-redis")));
    let policy = LimitPolicy { per_minute: 100, redis_lost: RedisLost::Deny };
    let limit = AgentLimit::new(Redis::open(nowhere).unwrap(), "gitlab-kas", policy);
    let registry = Arc::new(Registry::default());
    let told = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&told);
    registry.tell_refusals(move |agent, why| sink.lock().unwrap().push((agent, why.to_owned())));
    let identities = Identities::File(IdentitySource::load(file).unwrap());
    let admission = Admission { identities, registry, limit: Some(limit) };

    let ask = async |token: &AgentToken| {
        let headers = HeaderMap::from_iter([(header::AUTHORIZATION, token.bearer())]);
        admission.agent(&headers).await.map(|permit| permit.agent.id)
    };
    let stranger = AgentToken::new("glagent-SECRET-stranger".to_owned()).unwrap();
    assert_eq!(ask(&stranger).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(told.lock().unwrap().is_empty(), "nobody knows whose it is");
    let mut calls = 0;
    // The first ones are in advance.
    let status = loop {
        match ask(&token).await {
            Ok(agent) => assert_eq!(agent, AgentId(7)),
            Err(status) => break status,
        }
        calls += 1;
        assert!(calls <= 100 && told.lock().unwrap().is_empty(), "{calls}");
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(*told.lock().unwrap(), [(AgentId(7), status.message().to_owned())]);
}
