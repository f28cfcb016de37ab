//! Under paused time: for how long an agent is held, and what it is told then.

use super::*;
use crate::gitlab::{Fault, Reason};
use http::StatusCode;
use std::sync::atomic::{AtomicU32, Ordering};
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
