//! The admin listener: probes, numbers, and what the edge is doing, as [`pages`] says it.
//!
//! On a thread and runtime of its own, so that it answers while the data plane is busy and all through a drain. It
//! never touches a connection of the data plane. Whoever reaches it reads addresses and configuration, so it must not
//! be public; what changes anything is asked from this host only.

pub mod connections;
mod flow;
pub mod metrics;
mod pages;

use crate::config::Config;
use crate::decide::Route;
use crate::proxy::Shared;
use bytes::Bytes;
use http::Response;
use http_body_util::Full;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::Value;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Probes and scrapers need a handful. When one more comes, the oldest goes.
const CONNECTIONS: usize = 64;
/// A head, and the pause before the next one on the same connection: scrapers come every 15 to 60 s.
const HEAD: Duration = Duration::from_secs(75);
/// Larger heads are answered with 431.
const MAX_HEAD: usize = 16 * 1024;
/// Who does not take his answer must not keep the process.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// What the admin listener can say.
pub struct Admin {
    shared: Arc<Shared>,
    registry: Registry,
    config: Value,
    began: Instant,
    draining: AtomicBool,
    conversations: TaskTracker,
    leaving: CancellationToken,
}

impl Admin {
    pub fn new(shared: Arc<Shared>, config: &Config) -> Arc<Self> {
        let mut registry = Registry::default();
        shared.metrics.register(&mut registry);
        registry.register_collector(Box::new(Now(shared.clone())));
        Arc::new(Self {
            shared,
            registry,
            config: pages::config(config),
            began: Instant::now(),
            draining: AtomicBool::new(false),
            conversations: TaskTracker::new(),
            leaving: CancellationToken::new(),
        })
    }

    /// From now on not ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Waits, not for long, until everybody has the answer that he asked for: who asks for the end is told, too.
    pub async fn finish(&self) {
        self.leaving.cancel();
        self.conversations.close();
        let _ = tokio::time::timeout(LAST_ANSWERS, self.conversations.wait()).await;
    }

    /// Serves until the process ends.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let mut open: VecDeque<AbortHandle> = VecDeque::new();
        loop {
            let (tcp, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept on the admin listener failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            open.retain(|connection| !connection.is_finished());
            if open.len() >= CONNECTIONS
                && let Some(oldest) = open.pop_front()
            {
                // A probe must get its answer, whoever sits on connections and says nothing.
                oldest.abort();
            }
            let local = peer.ip().to_canonical().is_loopback();
            open.push_back(self.conversations.spawn(self.clone().converse(tcp, local)).abort_handle());
        }
    }

    async fn converse(self: Arc<Self>, tcp: TcpStream, local: bool) {
        let service = service_fn(|request| {
            let response: Response<Full<Bytes>> = self.answer(&request, local);
            async move { Ok::<_, Infallible>(response) }
        });
        let mut serving = pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD)
                .max_buf_size(MAX_HEAD)
                .serve_connection(TokioIo::new(tcp), service)
        );
        let served = tokio::select! {
            served = serving.as_mut() => served,
            () = self.leaving.cancelled() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "admin connection ended");
        }
    }

    /// The listeners are bound before the admin listener is, so they need no flag.
    fn not_ready(&self) -> Option<String> {
        if self.draining.load(Ordering::Relaxed) {
            return Some("draining\n".to_owned());
        }
        let agents = self.shared.upstreams.of(Route::Agents);
        (!agents.any_up())
            .then(|| format!("no broker takes connections on its agent listener: {}\n", agents.addresses()))
    }
}

/// Numbers that are read when somebody asks.
#[derive(Debug)]
struct Now(Arc<Shared>);

/// As many as there are brokers.
#[derive(Debug, EncodeLabelSet)]
struct Upstream {
    route: &'static str,
    upstream: String,
}

/// One at a time.
#[derive(Debug, EncodeLabelSet)]
struct Version {
    fingerprint: String,
}

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let under_way = self.0.streams.under_way();
        let mut gauge = |name: &str, help: &str, value: i64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)
        };
        gauge("postern_edge_streams_busy", "Open streams that somebody waits for", under_way.busy as i64)?;
        gauge("postern_edge_streams_parked", "Idle tunnels and subscriptions", under_way.parked as i64)?;
        gauge("postern_edge_tracked_tokens", "Tokens with a bucket", self.0.limits.tracked() as i64)?;
        let policies = self.0.policies.status();
        gauge(
            "postern_edge_policy_generation",
            "Policy changes put in force; 1: the start",
            policies.generation as i64,
        )?;
        gauge("postern_edge_policy_age_seconds", "Since the last of them", policies.age.as_secs() as i64)?;
        let problems = policies.problems.len() + policies.more_problems;
        gauge("postern_edge_policy_problems", "Why the files are not in force", problems as i64)?;
        let up = self.0.upstreams.all().filter(|(_, broker)| broker.is_up()).count();
        gauge("postern_edge_upstreams_up", "Broker listeners that take connections", up as i64)?;
        gauge(
            "postern_edge_upstreams",
            "Broker listeners configured",
            self.0.upstreams.all().count() as i64,
        )?;
        let help = "The policies in force; the same wherever the same files are";
        let mut info =
            encoder.encode_descriptor("postern_edge_policy_info", help, None, MetricType::Gauge)?;
        info.encode_family(&Version { fingerprint: policies.fingerprint })?.encode_gauge(&1i64)?;
        let help = "Whether this listener of a broker takes connections";
        let mut up = encoder.encode_descriptor("postern_edge_upstream_up", help, None, MetricType::Gauge)?;
        for (route, broker) in self.0.upstreams.all() {
            let labels = Upstream { route: route.name(), upstream: broker.address.to_string() };
            up.encode_family(&labels)?.encode_gauge(&i64::from(broker.is_up()))?;
        }
        let help = "How often this listener of a broker was spared because requests failed there";
        let name = "postern_edge_upstream_ejections";
        let mut ejections = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (route, broker) in self.0.upstreams.all() {
            let labels = Upstream { route: route.name(), upstream: broker.address.to_string() };
            ejections
                .encode_family(&labels)?
                .encode_counter::<NoLabelSet, u64, u64>(&broker.ejections(), None)?;
        }
        self.0.metrics.flow.encode(&mut encoder)?;
        let Some(tracing) = &self.0.tracing else { return Ok(()) };
        let tally = tracing.exporter.tally();
        for (name, help, value) in [
            ("postern_edge_spans_sent", "Spans that the collector took", tally.sent),
            ("postern_edge_spans_dropped", "Spans for which the queue had no room", tally.dropped),
            ("postern_edge_spans_failed", "Spans that the collector did not take", tally.failed),
        ] {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        Ok(())
    }
}
