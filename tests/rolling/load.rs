//! Callers: short requests at a steady pace on kept connections, and streams that never end by themselves.

use super::field::Fleet;
use crate::harness::{PATIENCE, http::full, until};
use http_body_util::BodyExt;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{Instant, interval, timeout},
};

/// Requests a second, all connections together.
const RATE: f64 = 200.0;
const CONNECTIONS: usize = 10;

/// One short request.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) at: Instant,
    pub(super) took: Duration,
    /// The status of a whole answer, or what went wrong.
    pub(super) outcome: Result<u16, String>,
    /// The body of an answer that is not 200.
    pub(super) said: String,
}

pub(super) struct Answers {
    pub(super) asked: Vec<Asked>,
}

impl Answers {
    pub(super) fn by_outcome(&self) -> BTreeMap<Result<u16, String>, usize> {
        let mut counts = BTreeMap::new();
        for ask in &self.asked {
            *counts.entry(ask.outcome.clone()).or_default() += 1;
        }
        counts
    }

    pub(super) fn slowest(&self) -> Duration {
        self.asked.iter().map(|ask| ask.took).max().unwrap_or_default()
    }
}

/// Short requests until it is stopped.
pub(super) struct Load {
    stop: watch::Sender<bool>,
    answered: Arc<AtomicUsize>,
    lanes: JoinSet<Vec<Asked>>,
}

impl Load {
    pub(super) fn start(fleet: &Fleet) -> Self {
        let (stop, answered, mut lanes) = (watch::Sender::new(false), Arc::default(), JoinSet::new());
        for number in 0..CONNECTIONS {
            let bearers = (0..fleet.agents.len()).map(|agent| fleet.bearer(number, agent)).collect();
            lanes.spawn(lane(number, fleet.edge_plain, bearers, stop.subscribe(), Arc::clone(&answered)));
        }
        Self { stop, answered, lanes }
    }

    /// Waits for so many more answers with 200.
    pub(super) async fn answered(&self, more: usize) {
        let goal = self.answered.load(Ordering::Relaxed) + more;
        until("requests are answered", async || {
            (self.answered.load(Ordering::Relaxed) >= goal).then_some(())
        })
        .await;
    }

    pub(super) async fn stop(self) -> Answers {
        self.stop.send_replace(true);
        let lanes = timeout(PATIENCE, self.lanes.join_all()).await.expect("no request hangs");
        Answers { asked: lanes.into_iter().flatten().collect() }
    }
}

async fn connect(edge: SocketAddr) -> Result<http1::SendRequest<crate::harness::http::Body>, String> {
    let stream = TcpStream::connect(edge).await.map_err(|error| error.to_string())?;
    let _ = stream.set_nodelay(true);
    let (send, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    Ok(send)
}

/// One connection's requests, one after the other: what may be repeated and what may not, to each agent in turn.
async fn lane(
    number: usize,
    edge: SocketAddr,
    bearers: Vec<String>,
    stop: watch::Receiver<bool>,
    answered: Arc<AtomicUsize>,
) -> Vec<Asked> {
    let mut asked = Vec::new();
    let mut pace = interval(Duration::from_secs_f64(CONNECTIONS as f64 / RATE));
    let mut kept = None;
    while !*stop.borrow() {
        pace.tick().await;
        let count = asked.len();
        let bearer = &bearers[(number + count) % bearers.len()];
        let (method, path, body) = match count % 2 {
            0 => ("GET", "/version", ""),
            _ => ("POST", "/sink", "a few bytes"),
        };
        let request = Request::builder()
            .method(method)
            .uri(format!("/k8s-proxy{path}"))
            .header("host", "localhost")
            .header("authorization", bearer)
            .body(full(body))
            .expect("a request");
        let (at, mut said) = (Instant::now(), String::new());
        let asking = async {
            let mut send = match kept.take() {
                Some(send) => send,
                None => connect(edge).await?,
            };
            send.ready().await.map_err(|error| format!("ready: {error}"))?;
            let response = send.send_request(request).await.map_err(|error| format!("head: {error}"))?;
            let status = response.status().as_u16();
            let close = response.headers().get("connection").is_some_and(|value| value == "close");
            let body = response.into_body().collect().await.map_err(|error| format!("body: {error}"))?;
            if status != 200 {
                said = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            }
            if !close {
                kept = Some(send);
            }
            Ok(status)
        };
        let outcome = timeout(PATIENCE, asking).await.unwrap_or_else(|_| Err("no answer".to_owned()));
        if outcome == Ok(200) {
            answered.fetch_add(1, Ordering::Relaxed);
        }
        asked.push(Asked { at, took: at.elapsed(), outcome, said });
    }
    asked
}

/// Streams that go on until they are cut.
pub(super) struct Streams(JoinSet<Instant>);

impl Streams {
    /// As many as that, of different callers and agents; all have begun.
    pub(super) async fn start(fleet: &Fleet, count: usize) -> Self {
        let mut streams = JoinSet::new();
        for number in 0..count {
            let mut send = connect(fleet.edge_plain).await.expect("the edge accepts");
            let request = Request::get("/k8s-proxy/stream-forever?every=100")
                .header("host", "localhost")
                .header("authorization", fleet.bearer(number, number))
                .body(full(""))
                .expect("a request");
            let response = send.send_request(request).await.expect("an answer");
            assert_eq!(response.status(), 200);
            let mut body = response.into_body();
            assert!(body.frame().await.expect("a piece").is_ok());
            streams.spawn(async move {
                let _held = send;
                // Cut, not ended: whoever reads must see that it is not whole.
                loop {
                    match body.frame().await {
                        Some(Ok(_)) => {}
                        Some(Err(_)) => return Instant::now(),
                        None => panic!("a stream came to a proper end"),
                    }
                }
            });
        }
        Self(streams)
    }

    /// When each of them ended.
    pub(super) async fn ended(self) -> Vec<Instant> {
        timeout(PATIENCE, self.0.join_all()).await.expect("all streams end")
    }
}
