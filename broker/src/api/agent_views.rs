//! Views of agents' clusters: `GET /api/v1/agents/{id}/views` and `.../views/{view}` on the API listener, as a document or
//! as server-sent events. Before it: the check of the JWT. After it: [`Known`], this broker's memory or another one's. A
//! reader sees changes at its own pace; nothing is queued for it, and one that stopped reading is let go.

use super::{
    Answer, Beside,
    agents::{refusal, rfc3339, whole},
};
use crate::{
    agent_reports::{
        known::{Known, Source},
        views::{Kind, Page, Summary},
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
use std::{
    collections::BTreeMap,
    convert::Infallible,
    fmt::Write as _,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::body::Body;

/// Where they are.
const LIST: &str = "/api/v1/agents/{agent}/views";
const ONE: &str = "/api/v1/agents/{agent}/views/{view}";
/// Documents in the making, with up to 16 MB each.
const AT_A_TIME: usize = 4;
/// For all of a document that another broker has.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of a document; no broker keeps as much of an agent.
const DOCUMENT: usize = 32 << 20;
/// A line that says nothing, so that proxies and readers see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a reader may take for a page.
const STALL: Duration = Duration::from_secs(30);
/// Between two looks where a view is whose stream ended.
const LOOK: Duration = Duration::from_secs(1);
/// Readers of events at a time, each with a page of some 64 KiB.
pub const WATCHERS: usize = 256;

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

/// One reader of events.
struct Watcher {
    known: Known,
    agent: AgentId,
    kind: Kind,
    source: Source,
    stale: bool,
}

impl Watcher {
    /// Until the view is gone everywhere, or the reader stopped reading.
    async fn run(mut self, frames: mpsc::Sender<Bytes>) {
        loop {
            let frame = tokio::select! {
                page = self.source.next() => match page {
                    Ok(Some(page)) => {
                        self.stale = page.stale;
                        frame(self.agent, self.kind, self.source.broker.as_ref(), &page)
                    }
                    // Gone from there, or there is lost.
                    Ok(None) | Err(_) => match self.known.find(self.agent, self.kind, true).await {
                        Ok(source) => {
                            self.source = source;
                            // A broker that is lost and not known to be so yet would be asked again and again.
                            sleep(LOOK).await;
                            continue;
                        }
                        Err(_) => {
                            let ended = ended(self.agent, self.kind);
                            let _ = timeout(STALL, frames.send(format!("event: ended\ndata: {ended}\n\n").into())).await;
                            return;
                        }
                    },
                },
                () = sleep(LOOK), if self.stale => {
                    if let Some(live) = self.known.find_live(self.agent, self.kind).await {
                        (self.source, self.stale) = (live, false);
                    }
                    continue;
                }
                () = sleep(KEEP_ALIVE) => Bytes::from_static(b": still here\n\n"),
            };
            // Nothing is lost by it: whoever comes back gets the whole.
            if !matches!(timeout(STALL, frames.send(frame)).await, Ok(Ok(()))) {
                tracing::debug!(agent_id = %self.agent, view = self.kind.name(), "a reader of a view took nothing and is let go");
                return;
            }
        }
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

/// When that was, by this broker's clock.
pub(super) fn ago(ago: Duration) -> String {
    SystemTime::now().checked_sub(ago).map(rfc3339).unwrap_or_default()
}

fn text(text: &str) -> String {
    serde_json::to_string(text).expect("a text is JSON")
}

/// What a document and a page begin with.
fn begin(agent: AgentId, kind: Kind, broker: Option<&PeerUrl>, page: &Page) -> String {
    let broker = broker.map_or_else(|| "null".to_owned(), |broker| text(&broker.to_string()));
    format!(
        r#"{{"agent_id":{agent},"view":"{}","epoch":{},"revision":{},"stale":{},"truncated":{},"heard_at":"{}","broker":{broker}"#,
        kind.name(),
        page.epoch,
        page.revision,
        page.stale,
        page.truncated,
        ago(page.heard_ago),
    )
}

fn entries<'a>(into: &mut String, entries: impl Iterator<Item = (&'a str, &'a str)>) {
    into.push_str(r#","entries":{"#);
    for (at, (key, json)) in entries.enumerate() {
        let comma = if at > 0 { "," } else { "" };
        // Writing to a text does not fail.
        let _ = write!(into, "{comma}{}:{json}", text(key));
    }
    into.push('}');
}

/// A page on one line of JSON.
pub(crate) fn page(agent: AgentId, kind: Kind, broker: Option<&PeerUrl>, page: &Page) -> String {
    let mut json = begin(agent, kind, broker, page);
    let _ = write!(json, r#","whole":{},"more":{}"#, page.whole, page.more);
    let gone: Vec<_> = page.gone.iter().map(|key| text(key)).collect();
    let _ = write!(json, r#","gone":[{}]"#, gone.join(","));
    entries(&mut json, page.entries.iter().map(|(key, json)| (&**key, &**json)));
    json.push('}');
    json
}

/// Says that there is no such view any more.
pub(crate) fn ended(agent: AgentId, kind: Kind) -> String {
    format!(r#"{{"agent_id":{agent},"view":"{}","ended":true}}"#, kind.name())
}

fn frame(agent: AgentId, kind: Kind, broker: Option<&PeerUrl>, found: &Page) -> Bytes {
    let name = if found.whole { "whole" } else { "changed" };
    let (epoch, revision) = (found.epoch, found.revision);
    format!("event: {name}\nid: {epoch}-{revision}\ndata: {}\n\n", page(agent, kind, broker, found)).into()
}

/// All of a view as one document; `None` if it broke off, or is larger than any.
async fn collect(agent: AgentId, kind: Kind, mut source: Source) -> Option<String> {
    let (mut all, mut size) = (BTreeMap::<Arc<str>, Arc<str>>::new(), 0);
    loop {
        let page = source.next().await.ok()??;
        page.gone.iter().for_each(|key| drop(all.remove(key)));
        for (key, json) in &page.entries {
            size += key.len() + json.len();
            all.insert(Arc::clone(key), Arc::clone(json));
        }
        if size > DOCUMENT {
            return None;
        }
        if !page.more {
            let mut json = begin(agent, kind, source.broker.as_ref(), &page);
            entries(&mut json, all.iter().map(|(key, json)| (&**key, &**json)));
            json.push_str("}\n");
            return Some(json);
        }
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
