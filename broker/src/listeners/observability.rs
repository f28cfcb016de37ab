//! Probes, metrics and the policies in force over HTTP/1.1, without authentication: for the kubelet, the edge's health checks and
//! Prometheus. It lives through a drain and tells about it.

use crate::{
    config::ObservabilityConfig,
    fleet::directory::Directory,
    listeners::socket::Listener,
    observability::{Metrics, Readiness},
    tunnel::registry::Registry,
};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_policies::Live;
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The policies in force, unless one of the configured paths is the same.
const POLICIES_PATH: &str = "/policies";
const NEXT_HEAD: Duration = Duration::from_secs(60);
/// Larger heads are answered with 431.
const MAX_HEAD: usize = 16 * 1024;

/// What the probes and metrics tell about.
#[derive(Debug)]
pub struct Probes {
    /// Paths.
    pub config: ObservabilityConfig,
    /// Numbers.
    pub metrics: Arc<Metrics>,
    /// More numbers.
    pub registry: Arc<Registry>,
    /// Numbers of the fleet; absent: there are no other brokers.
    pub directory: Option<Arc<Directory>>,
    /// What is in force. Files that are bad make nobody unready: the last good ones are in force.
    pub policies: Live,
    /// Whether new work is wanted.
    pub readiness: Readiness,
}

/// Serves until `stop` fires.
pub async fn serve(
    listener: Arc<Listener>,
    probes: Arc<Probes>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    while let Some(accepted) = listener.accept(&stop).await {
        let (probes, stop) = (Arc::clone(&probes), stop.clone());
        tasks.spawn(async move {
            let service = service_fn(|request| {
                let response = probes.answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut builder = http1::Builder::new();
            builder.timer(TokioTimer::new()).header_read_timeout(NEXT_HEAD).max_buf_size(MAX_HEAD);
            let connection = builder.serve_connection(TokioIo::new(accepted), service);
            if let Some(Err(error)) = stop.run_until_cancelled(connection).await {
                tracing::debug!(%error, "connection ended");
            }
        });
    }
}

impl Probes {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n".into());
        }
        let path = request.uri().path();
        if path == self.config.liveness_path {
            text(StatusCode::OK, String::new())
        } else if path == self.config.readiness_path {
            match self.readiness.is_ready() {
                true => text(StatusCode::OK, String::new()),
                false => text(StatusCode::SERVICE_UNAVAILABLE, "not ready: starting or draining\n".into()),
            }
        } else if path == self.config.metrics_path {
            let fleet = self.directory.as_ref().map(|directory| directory.census());
            let mut response =
                match self.metrics.text(&self.registry, &self.policies.status(), fleet.as_ref()) {
                    Ok(metrics) => text(StatusCode::OK, metrics),
                    Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be encoded\n".into()),
                };
            let kind = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        } else if path == POLICIES_PATH {
            let mut response = text(StatusCode::OK, self.policies.status().page().to_string());
            let kind = HeaderValue::from_static("application/json");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        } else {
            text(StatusCode::NOT_FOUND, "served here: probes, metrics and /policies\n".into())
        }
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
