//! Views of agents' clusters: `GET /api/v1/agents/{id}/views` and `.../views/{view}` on the API listener, as a document or
//! as server-sent events. Before it: the check of the JWT. After it: [`Known`], this broker's memory or another one's. A
//! reader sees changes at its own pace; nothing is queued for it, and one that stopped reading is let go.

mod watch;
mod written;

pub(super) use written::ago;
pub(crate) use written::{ended, page};

use super::{
    Answer, Beside,
    agents::{refusal, whole},
};
use crate::{
    agent_reports::{
        known::Known,
        views::{Kind, Summary},
    },
    fleet::PeerUrl,
    observability::KnownMetrics,
};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use postern_wire::ids::AgentId;
use prometheus_client::metrics::gauge::Gauge;
use serde::Serialize;
use std::{convert::Infallible, str::FromStr, sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;
use watch::Watcher;
use written::collect;

/// Where they are.
const LIST: &str = "/api/v1/agents/{agent}/views";
const ONE: &str = "/api/v1/agents/{agent}/views/{view}";
/// Documents in the making, with up to 16 MB each.
const AT_A_TIME: usize = 4;
/// For all of a document that another broker has.
const PATIENCE: Duration = Duration::from_secs(10);
/// Readers of events at a time, each with a page of some 64 KiB.
pub(super) const WATCHERS: usize = 256;

/// What answers come from, and who reads.
#[derive(Clone)]
struct Serving {
    known: Known,
    documents: Arc<Semaphore>,
    watchers: Arc<Semaphore>,
    watching: Gauge,
    stop: CancellationToken,
}

/// The views, to be mounted behind a check of who asks. Streams end when `stop` fires.
pub(super) fn beside(
    known: Known,
    watchers: usize,
    metrics: &KnownMetrics,
    stop: CancellationToken,
) -> [Beside; 2] {
    let serving = Serving {
        known,
        documents: Arc::new(Semaphore::new(AT_A_TIME)),
        watchers: Arc::new(Semaphore::new(watchers)),
        watching: metrics.watchers.clone(),
        stop,
    };
    [LIST, ONE].map(|path| {
        let serving = serving.clone();
        let answer = move |request: http::Request<Body>| -> Answer {
            let serving = serving.clone();
            // A future that holds the request's body would have to share it.
            let (head, _) = request.into_parts();
            Box::pin(async move { serving.answer(&head.method, head.uri.path(), &head.headers).await })
        };
        Beside { path, answer: Arc::new(answer) }
    })
}

/// The agent that a path of the API names.
pub(super) fn agent_of(path: &str) -> Option<AgentId> {
    i64::from_str(path.split('/').nth(4)?).ok().map(AgentId)
}

impl Serving {
    async fn answer(self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        if method != Method::GET {
            let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "views can be read with GET only\n");
            refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
            return refusal;
        }
        let Some(agent) = agent_of(path) else {
            return refusal(StatusCode::BAD_REQUEST, "the id of an agent is a whole number\n");
        };
        let Some(name) = path.split('/').nth(6) else { return self.list(agent).await };
        let Some(kind) = Kind::of(name) else {
            let known = "there are the views nodes, workloads, events, versions and capacity\n";
            return refusal(StatusCode::NOT_FOUND, known);
        };
        let accepts =
            |value: &HeaderValue| value.to_str().is_ok_and(|text| text.contains("text/event-stream"));
        match headers.get_all(header::ACCEPT).iter().any(accepts) {
            true => self.watch(agent, kind).await,
            false => self.document(agent, kind).await,
        }
    }

    async fn list(self, agent: AgentId) -> Response<Body> {
        let Ok(seat) = Arc::clone(&self.documents).try_acquire_owned() else { return busy() };
        let answer = self.known.views(agent).await;
        let document = List {
            agent_id: agent.0,
            items: answer.found.iter().map(|(summary, broker)| listed(summary, broker.as_ref())).collect(),
            missing_brokers: answer.missing.iter().map(ToString::to_string).collect(),
        };
        let mut text = serde_json::to_vec(&document).expect("texts and numbers are JSON");
        text.push(b'\n');
        json(text, seat)
    }

    async fn document(self, agent: AgentId, kind: Kind) -> Response<Body> {
        let Ok(seat) = Arc::clone(&self.documents).try_acquire_owned() else { return busy() };
        let source = match self.known.find(agent, kind, false).await {
            Ok(source) => source,
            Err(missing) => return nowhere(agent, kind, &missing),
        };
        match timeout(PATIENCE, collect(agent, kind, source)).await {
            Ok(Some(text)) => json(text.into_bytes(), seat),
            Ok(None) | Err(_) => {
                let lost = "the broker that has this view did not send all of it; try again\n";
                refusal(StatusCode::SERVICE_UNAVAILABLE, lost)
            }
        }
    }

    async fn watch(self, agent: AgentId, kind: Kind) -> Response<Body> {
        let Ok(seat) = Arc::clone(&self.watchers).try_acquire_owned() else {
            let full = "too many read views as they change already; try again later\n";
            let mut refusal = refusal(StatusCode::SERVICE_UNAVAILABLE, full);
            refusal.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("30"));
            return refusal;
        };
        let source = match self.known.find(agent, kind, true).await {
            Ok(source) => source,
            Err(missing) => return nowhere(agent, kind, &missing),
        };
        let (frames, receiver) = mpsc::channel(1);
        let watcher = Watcher { known: self.known, agent, kind, source, stale: false };
        let stop = self.stop;
        let watching = Watching::begin(self.watching, seat);
        tokio::spawn(async move {
            let _watching = watching;
            let left = frames.clone();
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                // A reader that is gone is seen even while nothing happens.
                () = left.closed() => {}
                () = watcher.run(frames) => {}
            }
        });
        let frames = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
            let frame = receiver.recv().await?;
            Some((Ok::<_, Infallible>(frame), receiver))
        });
        let mut response = Response::new(Body::new(axum::body::Body::from_stream(frames)));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // nginx would collect it otherwise.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }
}

/// A reader, as long as it counts.
struct Watching {
    count: Gauge,
    _seat: OwnedSemaphorePermit,
}

impl Watching {
    fn begin(count: Gauge, seat: OwnedSemaphorePermit) -> Self {
        count.inc();
        Self { count, _seat: seat }
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.count.dec();
    }
}

#[derive(Serialize)]
struct List {
    agent_id: i64,
    items: Vec<Listed>,
    /// What these have is not listed.
    missing_brokers: Vec<String>,
}

#[derive(Serialize)]
struct Listed {
    view: &'static str,
    entries: usize,
    stale: bool,
    truncated: bool,
    heard_at: String,
    broker: Option<String>,
}

fn listed(summary: &Summary, broker: Option<&PeerUrl>) -> Listed {
    Listed {
        view: summary.kind.name(),
        entries: summary.entries,
        stale: summary.stale,
        truncated: summary.truncated,
        heard_at: ago(summary.heard_ago),
        broker: broker.map(ToString::to_string),
    }
}

pub(super) fn json(document: Vec<u8>, seat: OwnedSemaphorePermit) -> Response<Body> {
    let mut response = Response::new(whole(document, seat));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

pub(super) fn busy() -> Response<Body> {
    let busy = "too many documents are being made already; try again in a second\n";
    let mut refusal = refusal(StatusCode::SERVICE_UNAVAILABLE, busy);
    refusal.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    refusal
}

fn nowhere(agent: AgentId, kind: Kind, missing: &[PeerUrl]) -> Response<Body> {
    let name = kind.name();
    if missing.is_empty() {
        let words = format!(
            "agent {agent} keeps no view {name}: is it connected, and does its configuration say views: {{{name}: true}}?\n"
        );
        return refusal(StatusCode::NOT_FOUND, &words);
    }
    let missing: Vec<_> = missing.iter().map(ToString::to_string).collect();
    let words = format!(
        "no broker that answered has a view {name} of agent {agent}; these did not answer: {}; try again\n",
        missing.join(", ")
    );
    refusal(StatusCode::SERVICE_UNAVAILABLE, &words)
}
