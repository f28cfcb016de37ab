//! The admin listener: `/liveness`, `/readiness`, `/metrics`.
//!
//! On a thread and runtime of its own, so that it answers while the data plane is busy and all through a drain. It
//! never touches a connection of the data plane.

pub mod metrics;

use crate::decide::Route;
use crate::proxy::Shared;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Probes and scrapers need a handful.
const CONNECTIONS: usize = 64;
const HEAD: Duration = Duration::from_secs(5);
/// Larger heads are answered with 431.
const MAX_HEAD: usize = 16 * 1024;

/// What the admin listener can say.
pub struct Admin {
    shared: Arc<Shared>,
    registry: Registry,
    draining: AtomicBool,
}

impl Admin {
    pub fn new(shared: Arc<Shared>) -> Arc<Self> {
        let mut registry = Registry::default();
        shared.metrics.register(&mut registry);
        registry.register_collector(Box::new(Now(shared.clone())));
        Arc::new(Self { shared, registry, draining: AtomicBool::new(false) })
    }

    /// From now on not ready.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Serves until the process ends.
    pub async fn serve(self: Arc<Self>, listener: TcpListener) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = room.clone().acquire_owned().await else { return };
            let tcp = match listener.accept().await {
                Ok((tcp, _)) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "accept on the admin listener failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let admin = self.clone();
            tokio::spawn(async move {
                let service = service_fn(move |request| {
                    let response = admin.answer(&request);
                    async move { Ok::<_, Infallible>(response) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEAD)
                    .max_buf_size(MAX_HEAD)
                    .serve_connection(TokioIo::new(tcp), service)
                    .await;
                if let Err(error) = served {
                    tracing::debug!(%error, "admin connection ended");
                }
                drop(permit);
            });
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/liveness" => text(StatusCode::OK, "alive\n"),
            "/readiness" => match self.not_ready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            "/metrics" => self.metrics(),
            _ => text(StatusCode::NOT_FOUND, "there is /liveness, /readiness and /metrics\n"),
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

    fn metrics(&self) -> Response<Full<Bytes>> {
        let mut body = String::new();
        match prometheus_client::encoding::text::encode(&mut body, &self.registry) {
            Ok(()) => {
                let mut response = text(StatusCode::OK, body);
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    http::HeaderValue::from_static(
                        "application/openmetrics-text; version=1.0.0; charset=utf-8",
                    ),
                );
                response
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("encode metrics: {error}\n")),
        }
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Gauges that are read when somebody asks.
#[derive(Debug)]
struct Now(Arc<Shared>);

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
        let policies = &self.0.policies;
        gauge(
            "postern_edge_policy_generation",
            "Policy changes put in force; 1: the start",
            policies.generation() as i64,
        )?;
        gauge("postern_edge_policy_age_seconds", "Since the last of them", policies.age().as_secs() as i64)?;
        gauge("postern_edge_policy_problems", "Why the files are not in force", policies.problems() as i64)?;
        let up = self.0.upstreams.all().filter(|(_, broker)| broker.is_up()).count();
        gauge("postern_edge_upstreams_up", "Broker listeners that take connections", up as i64)?;
        gauge("postern_edge_upstreams", "Broker listeners configured", self.0.upstreams.all().count() as i64)
    }
}
