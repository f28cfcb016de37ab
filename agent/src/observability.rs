//! Probes and metrics for whoever runs the agent, on a listener of their own. Readiness means that requests can come:
//! connected, a tunnel standing, not draining. Nothing here knows a token.

pub mod logging;

use crate::{broker::Road, tunnel::pool::Counts};
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use postern_certs::{CertFiles, server::ServerIdentity};
use postern_wire::metadata::Program;
use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::Registry,
};
use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

/// A prober sends its request at once.
const REQUEST_HEAD: Duration = Duration::from_secs(5);
/// Larger heads are answered with 431.
const MAX_HEAD: usize = 16 * 1024;
/// A whole exchange, so that a stranger who reads slowly goes away again.
const EXCHANGE: Duration = Duration::from_secs(30);
/// Strangers can reach this listener; more than this at a time wait in the kernel.
const AT_A_TIME: usize = 64;
/// Accepting fails when file descriptors run out; that passes.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Where to listen.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What to bind.
    pub listen: Listen,
    /// `--observability-cert-file` and `--observability-key-file`.
    pub tls: Option<CertFiles>,
}

/// A listening address, as `--observability-listen-network` and `-address` mean it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// TCP: the addresses to try in turn. All interfaces are tried as IPv6 first, which takes IPv4 along.
    Tcp(Vec<SocketAddr>),
    /// A Unix socket.
    Unix(PathBuf),
}

/// Why there is no listener.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is taken or not ours.
    #[error(
        "cannot listen on {address} for probes and metrics; choose another with --observability-listen-address"
    )]
    Bind {
        /// As configured.
        address: String,
        #[source]
        source: io::Error,
    },
    /// Its certificate cannot be used.
    #[error("certificate of the observability listener")]
    Certificate(#[from] postern_certs::CertError),
}

/// What is counted and measured.
#[derive(Clone, Default)]
pub struct Metrics {
    /// 1 while there is a connection that streams can be opened on.
    pub connected: Gauge,
    /// Connections made.
    pub connections: Counter,
    /// Dials that failed.
    pub dial_failures: Counter,
    /// Requests that came through tunnels.
    pub requests: Counter,
    /// Those that did not end with OK.
    pub failed_requests: Counter,
    /// Requests to the Kubernetes API that are open.
    pub api_open: Gauge,
    /// Those that were refused, by the limit that was met: `all` or `caller`.
    pub api_refused: Family<[(&'static str, &'static str); 1], Counter>,
    /// Configurations that were refused: the last good one stayed.
    pub configurations_refused: Counter,
    /// Manifest projects that are followed.
    pub gitops_projects: Gauge,
    /// Commits of manifests that were received whole.
    pub gitops_commits: Counter,
    /// Streams of manifests that failed; a lost connection is not one of them.
    pub gitops_failures: Counter,
    /// What was done about objects of manifests, by result: `applied`, `unchanged`, `corrected`, `pruned`, `kept`,
    /// `failed`.
    pub gitops_objects: Family<[(&'static str, &'static str); 1], Counter>,
    /// Projects whose manifests this replica applies, by state: `synchronizing`, `synchronized`, `degraded`, `failed`.
    pub gitops_states: Family<[(&'static str, &'static str); 1], Gauge>,
    /// How long the cluster took to apply one object.
    pub gitops_apply_seconds: Seconds,
    /// How long it took from a commit until everything in it was ready.
    pub gitops_synchronization_seconds: Seconds,
    /// 1 while this replica does what only one replica does.
    pub leading: Gauge,
    /// Requests that the agent makes to its cluster of its own accord, by verb.
    pub cluster_calls: Family<[(&'static str, &'static str); 1], Counter>,
    /// Events about objects: `written`, `counted` up, `failed` or `dropped`.
    pub cluster_events: Family<[(&'static str, &'static str); 1], Counter>,
    /// Whether flows are followed.
    pub alert_relay_connected: Gauge,
    /// Dropped flows that the Hubble relay told of.
    pub alert_flows: Counter,
    /// Network policies that ask for alerts.
    pub alert_policies: Gauge,
    alerts: Family<[(&'static str, &'static str); 1], Counter>,
    tunnels: Family<[(&'static str, &'static str); 1], Gauge>,
}

/// A histogram of durations between 10 ms and an hour.
#[derive(Clone)]
pub struct Seconds(Histogram);

impl Default for Seconds {
    fn default() -> Self {
        Self(Histogram::new([
            0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0,
        ]))
    }
}

impl Seconds {
    /// One more.
    pub fn observe(&self, took: Duration) {
        self.0.observe(took.as_secs_f64());
    }
}

impl Metrics {
    /// Takes over the pool's numbers.
    pub fn tunnels(&self, counts: Counts) {
        let set = |state, value: usize| {
            self.tunnels.get_or_create(&[("state", state)]).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set("opening", counts.idle - counts.standing);
        set("idle", counts.standing);
        set("busy", counts.busy);
    }

    /// Counts an alert by what became of it.
    pub fn alert(&self, result: &'static str) {
        self.alerts.get_or_create(&[("result", result)]).inc();
    }

    /// Everything, in a registry to be read from.
    pub fn registry(&self, program: &Program) -> Registry {
        let mut registry = Registry::default();
        let build = Info::new(vec![("version", program.version), ("commit", program.commit)]);
        registry.register("gitlab_build", "Version of this program", build);
        let out = &mut registry;
        out.register(
            "agentk_broker_connected",
            "Whether there is a connection to the broker",
            self.connected.clone(),
        );
        out.register("agentk_broker_connections", "Connections made to the broker", self.connections.clone());
        out.register(
            "agentk_broker_dial_failures",
            "Dials to the broker that failed",
            self.dial_failures.clone(),
        );
        out.register("agentk_tunnels", "Tunnels to the broker by state", self.tunnels.clone());
        out.register("agentk_requests", "Requests that came through tunnels", self.requests.clone());
        out.register(
            "agentk_failed_requests",
            "Requests that did not end with OK",
            self.failed_requests.clone(),
        );
        out.register(
            "agentk_kubernetes_api_open",
            "Requests to the Kubernetes API that are open, watches and upgraded connections among them",
            self.api_open.clone(),
        );
        out.register(
            "agentk_kubernetes_api_refused",
            "Requests that were answered with 429, by limit",
            self.api_refused.clone(),
        );
        out.register(
            "agentk_configurations_refused",
            "Configurations that were not applied because something in them is wrong",
            self.configurations_refused.clone(),
        );
        out.register(
            "agentk_gitops_projects",
            "Manifest projects that are received",
            self.gitops_projects.clone(),
        );
        out.register(
            "agentk_gitops_commits",
            "Commits of manifests received whole",
            self.gitops_commits.clone(),
        );
        out.register(
            "agentk_gitops_failures",
            "Streams of manifests that failed",
            self.gitops_failures.clone(),
        );
        out.register(
            "agentk_gitops_objects",
            "What was done about objects of manifests, by result",
            self.gitops_objects.clone(),
        );
        out.register(
            "agentk_gitops_states",
            "Projects whose manifests this replica applies, by state",
            self.gitops_states.clone(),
        );
        out.register(
            "agentk_gitops_apply_seconds",
            "How long the cluster took to apply one object",
            self.gitops_apply_seconds.0.clone(),
        );
        out.register(
            "agentk_gitops_synchronization_seconds",
            "How long it took from a commit until all its objects were ready",
            self.gitops_synchronization_seconds.0.clone(),
        );
        out.register(
            "agentk_leading",
            "Whether this replica does what only one replica does",
            self.leading.clone(),
        );
        out.register(
            "agentk_cluster_calls",
            "Requests of the agent's own to the Kubernetes API by verb",
            self.cluster_calls.clone(),
        );
        out.register(
            "agentk_cluster_events",
            "Events about objects by what became of them",
            self.cluster_events.clone(),
        );
        out.register(
            "agentk_alert_relay_connected",
            "Whether flows of the Hubble relay are followed",
            self.alert_relay_connected.clone(),
        );
        out.register(
            "agentk_alert_flows",
            "Dropped flows that the Hubble relay told of",
            self.alert_flows.clone(),
        );
        out.register(
            "agentk_alert_policies",
            "Network policies that ask for alerts",
            self.alert_policies.clone(),
        );
        out.register("agentk_alerts", "Alerts by what became of them", self.alerts.clone());
        registry
    }
}

/// Whether requests can come, and if not, why.
#[derive(Clone)]
pub struct Readiness {
    /// The way to the broker.
    pub road: Road,
    /// The pool's state.
    pub counts: watch::Receiver<Counts>,
    /// Cancelled when the process is about to end.
    pub draining: CancellationToken,
}

impl Readiness {
    /// `Err` says in one line what is missing.
    pub fn check(&self) -> Result<(), &'static str> {
        let counts = *self.counts.borrow();
        if self.draining.is_cancelled() {
            Err("draining: no new requests are taken")
        } else if !self.road.is_connected() {
            Err("not connected to the broker")
        } else if counts.standing == 0 && self.road.is_held_back() {
            // Requests that run go on, but none can follow them.
            Err("the broker refuses or limits the agent's token")
        } else if counts.standing + counts.busy + counts.leaving == 0 {
            Err("connected to the broker, but no tunnel is standing")
        } else {
            Ok(())
        }
    }
}

/// A bound listener, not served yet.
pub struct Observability {
    socket: Socket,
    /// The address as bound: a port of 0 has become a real one.
    pub address: String,
    identity: Option<Arc<ServerIdentity>>,
}

enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Observability {
    /// Binds, and says at which address.
    pub async fn bind(settings: &Settings) -> Result<Self, ListenError> {
        let identity = settings.tls.clone().map(|files| ServerIdentity::load(vec![files])).transpose()?;
        let (socket, address) = match &settings.listen {
            Listen::Tcp(addresses) => {
                let name = addresses.first().map(ToString::to_string).unwrap_or_default();
                let failed = |source| ListenError::Bind { address: name.clone(), source };
                let listener = TcpListener::bind(addresses.as_slice()).await.map_err(failed)?;
                let address = listener.local_addr().map_err(failed)?.to_string();
                (Socket::Tcp(listener), address)
            }
            Listen::Unix(path) => {
                let address = path.display().to_string();
                let failed = |source| ListenError::Bind { address: address.clone(), source };
                (Socket::Unix(UnixListener::bind(path).map_err(failed)?), address)
            }
        };
        info!(address = %address, tls = identity.is_some(), "observability listening");
        Ok(Self { socket, address, identity })
    }

    /// Serves until `stop`.
    pub async fn serve(self, registry: Registry, readiness: Readiness, stop: CancellationToken) {
        let pages = Arc::new(Pages { registry, readiness });
        let permits = Arc::new(Semaphore::new(AT_A_TIME));
        let tls = self.identity.as_ref().map(|identity| TlsAcceptor::from(identity.config(&[b"http/1.1"])));
        if let Some(identity) = &self.identity {
            tokio::spawn(identity.keep_fresh(stop.clone()));
        }
        loop {
            let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
            let accepted = tokio::select! {
                accepted = self.socket.accept() => accepted,
                () = stop.cancelled() => return,
            };
            match accepted {
                Ok(io) => {
                    let (pages, tls) = (pages.clone(), tls.clone());
                    tokio::spawn(async move {
                        if tokio::time::timeout(EXCHANGE, exchange(io, tls, pages)).await.is_err() {
                            debug!("a prober was too slow");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    warn!(error = %error, "cannot accept on the observability listener");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                }
            }
        }
    }
}

trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Socket {
    async fn accept(&self) -> io::Result<Box<dyn Io>> {
        Ok(match self {
            Self::Tcp(listener) => Box::new(listener.accept().await?.0),
            Self::Unix(listener) => Box::new(listener.accept().await?.0),
        })
    }
}

async fn exchange(io: Box<dyn Io>, tls: Option<TlsAcceptor>, pages: Arc<Pages>) {
    let io: Box<dyn Io> = match tls {
        None => io,
        Some(tls) => match tls.accept(io).await {
            Ok(stream) => Box::new(stream),
            Err(error) => return debug!(error = %error, "a prober failed at TLS"),
        },
    };
    let answer = |request| {
        let response = pages.answer(&request);
        async move { Ok::<_, Infallible>(response) }
    };
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_HEAD)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(io), hyper::service::service_fn(answer));
    if let Err(error) = served.await {
        debug!(error = %error, "a prober's request failed");
    }
}

struct Pages {
    registry: Registry,
    readiness: Readiness,
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return page(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/liveness" => page(StatusCode::OK, ""),
            "/readiness" => match self.readiness.check() {
                Ok(()) => page(StatusCode::OK, ""),
                Err(why) => page(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
            },
            "/metrics" => {
                let mut out = String::new();
                match text::encode(&mut out, &self.registry) {
                    Ok(()) => {
                        let mut response = page(StatusCode::OK, &out);
                        let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
                        response
                    }
                    Err(_) => page(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
                }
            }
            _ => page(StatusCode::NOT_FOUND, "here are /liveness, /readiness and /metrics\n"),
        }
    }
}

fn page(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(header::SERVER, HeaderValue::from_static("observability"));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
