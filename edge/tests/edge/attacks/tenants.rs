//! Honest callers, and how long the edge lets them wait.

use crate::clients::{grpc, h2, tcp, tls, websocket};
use crate::harness::{Edge, token};
use bytes::Bytes;
use h2::client::SendRequest;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// By every road that agents take.
pub(crate) const TENANTS: usize = 8;
/// Between two calls of one tenant.
const PAUSE: Duration = Duration::from_millis(4);
/// Later is the same as never.
const DEADLINE: Duration = Duration::from_secs(10);

/// One call: whose, and how long it took if it went well.
pub(crate) type Taken = (usize, Option<Duration>);

/// Calls that go on in the background until this is dropped.
pub(crate) struct Tenants {
    taken: Arc<Mutex<Vec<Taken>>>,
    _calling: JoinSet<()>,
}

/// What the calls of a while took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waits {
    pub(crate) calls: usize,
    pub(crate) failed: usize,
    pub(crate) p99: Duration,
    pub(crate) max: Duration,
}

impl Tenants {
    /// Each with a connection and a token of its own.
    pub(crate) async fn begin(edge: &Edge) -> Self {
        let taken: Arc<Mutex<Vec<Taken>>> = Arc::default();
        let mut calling = JoinSet::new();
        for index in 0..TENANTS {
            let client = match index % 3 {
                0 => h2(tls(edge, &[b"h2"]).await).await,
                1 => h2(websocket(tls(edge, &[b"http/1.1"]).await).await).await,
                _ => h2(tcp(edge.plain).await).await,
            };
            let (taken, token) = (taken.clone(), name(index));
            calling.spawn(async move {
                loop {
                    let begin = Instant::now();
                    let called = tokio::time::timeout(DEADLINE, echo(&client, &token)).await;
                    let took = matches!(called, Ok(Some(()))).then(|| begin.elapsed());
                    taken.lock().unwrap().push((index, took));
                    tokio::time::sleep(PAUSE).await;
                }
            });
        }
        Self { taken, _calling: calling }
    }

    /// What was measured since the last time this was asked, call by call.
    pub(crate) fn take_all(&self) -> Vec<Taken> {
        std::mem::take(&mut *self.taken.lock().unwrap())
    }
}

impl Waits {
    /// Of these tenants only.
    pub(crate) fn of(taken: &[Taken], whose: &dyn Fn(usize) -> bool) -> Self {
        let all: Vec<_> = taken.iter().filter(|(tenant, _)| whose(*tenant)).map(|(_, took)| *took).collect();
        let mut waits: Vec<_> = all.iter().flatten().copied().collect();
        waits.sort_unstable();
        let at = |share: f64| {
            let index = (waits.len() as f64 * share) as usize;
            waits.get(index.min(waits.len().saturating_sub(1))).copied().unwrap_or_default()
        };
        Self { calls: all.len(), failed: all.len() - waits.len(), p99: at(0.99), max: at(1.0) }
    }
}

/// The token of one tenant.
pub(crate) fn name(tenant: usize) -> String {
    token(&format!("tenant-{tenant}"))
}

/// One unary call, as far as it comes: a call that fails is counted, and ends nothing.
async fn echo(client: &SendRequest<Bytes>, token: &str) -> Option<()> {
    let mut ready = client.clone().ready().await.ok()?;
    let (response, mut out) = ready.send_request(grpc("/echo.Echo/Echo", Some(token)), false).ok()?;
    out.send_data(Bytes::from_static(b"hello"), true).ok()?;
    let mut body = response.await.ok()?.into_body();
    let mut echoed = Vec::new();
    while let Some(data) = body.data().await {
        let data = data.ok()?;
        body.flow_control().release_capacity(data.len()).ok()?;
        echoed.extend_from_slice(&data);
    }
    let trailers = body.trailers().await.ok()??;
    (echoed == b"hello" && trailers.get("grpc-status")? == "0").then_some(())
}
