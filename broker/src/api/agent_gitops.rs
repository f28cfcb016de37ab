//! What became of an agent's configuration and of the manifests of its projects: `GET /api/v1/agents/{id}/gitops` on the
//! API listener. Before it: the check of the JWT. After it: [`Known`]. One document, of what the agent said last.

use super::{
    Answer, Beside,
    agent_views::{agent_of, ago, busy, json},
    agents::refusal,
};
use crate::{
    agent_reports::{board::Last, known::Known},
    fleet::PeerUrl,
};
use http::{HeaderValue, Method, Response, StatusCode, header};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::body::Body;

/// Where it is.
const PATH: &str = "/api/v1/agents/{agent}/gitops";
/// Documents in the making, with up to 4 MB each.
const AT_A_TIME: usize = 4;

/// The reports, to be mounted behind a check of who asks.
pub(super) fn beside(known: Known) -> Beside {
    let seats = Arc::new(Semaphore::new(AT_A_TIME));
    let answer = move |request: http::Request<Body>| -> Answer {
        let (known, seats) = (known.clone(), Arc::clone(&seats));
        let (head, _) = request.into_parts();
        Box::pin(async move { answer(known, seats, &head.method, head.uri.path()).await })
    };
    Beside { path: PATH, answer: Arc::new(answer) }
}

async fn answer(known: Known, seats: Arc<Semaphore>, method: &Method, path: &str) -> Response<Body> {
    if method != Method::GET {
        let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "reports can be read with GET only\n");
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return refusal;
    }
    let Some(agent) = agent_of(path) else {
        return refusal(StatusCode::BAD_REQUEST, "the id of an agent is a whole number\n");
    };
    let Ok(seat) = seats.try_acquire_owned() else { return busy() };
    let reports = known.reports(agent).await;
    let (mut configuration, mut projects) = ("null".to_owned(), Vec::new());
    for (last, broker) in &reports.found {
        let report = reported(last, broker.as_ref());
        if last.project.is_empty() { configuration = report } else { projects.push(report) }
    }
    let missing: Vec<_> = reports.missing.iter().map(ToString::to_string).collect();
    let missing = serde_json::to_string(&missing).expect("texts are JSON");
    let document = format!(
        "{{\"agent_id\":{agent},\"configuration\":{configuration},\"projects\":[{}],\"missing_brokers\":{missing}}}\n",
        projects.join(",")
    );
    json(document.into_bytes(), seat)
}

/// The report, an object, with when it came and to whom.
fn reported(last: &Last, broker: Option<&PeerUrl>) -> String {
    let broker = serde_json::to_string(&broker.map(ToString::to_string)).expect("a text is JSON");
    let open = last.json.strip_suffix('}').unwrap_or("{\"unreadable\":true");
    format!(r#"{open},"reported_at":"{}","broker":{broker}}}"#, ago(last.heard_ago))
}
