//! The wiring page: binds every port, starts the threads, and drains them on a signal.
//!
//! From `main` with a checked [`Config`]. Everything that can fail does so before the first connection is accepted.

use crate::accept::{self, Worker};
use crate::config::Config;
use crate::drain::{Streams, UnderWay};
use crate::limits::Limits;
use crate::listen::socket::{Bound, Listener};
use crate::listen::{Place, Port, Rules};
use crate::observability::Admin;
use crate::observability::metrics::Metrics;
use crate::proxy::{self, Shared};
use crate::relay::pool::Pool;
use crate::upstream::Upstreams;
use anyhow::Context;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long connections without work may take to say goodbye.
const GOODBYE: Duration = Duration::from_millis(500);

/// How the process ended.
#[derive(Debug, PartialEq)]
pub enum Ended {
    /// Everything finished in time.
    Drained,
    /// The grace period ended first.
    Cut(UnderWay),
    /// A second signal came.
    Interrupted(UnderWay),
}

/// Runs until a signal. Errors are about the start: a port that is taken, a certificate that cannot be read.
pub fn run(config: Config) -> anyhow::Result<Ended> {
    postern_certs::install_provider();
    let control = runtime("control")?;
    // Before anything is announced, so that a signal right after is not the end.
    let mut signals = control.block_on(async { Signals::new() })?;

    let ports = config.listen.iter().map(Port::bind).collect::<anyhow::Result<Vec<_>>>()?;
    let (admin_listener, _) = Bound::bind(&Place::Ip { address: config.admin, v6_only: false })
        .with_context(|| format!("admin.listen {}", config.admin))?;
    let shared = Arc::new(Shared {
        upstreams: Arc::new(Upstreams::resolve(&config)?),
        limits: Limits::new(&config.limits, Instant::now()).context("limits.redis")?,
        metrics: Metrics::default(),
        streams: Streams::new(),
    });

    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (shutdown, watch_shutdown) = watch::channel(false);
    let room = Arc::new(Semaphore::new(config.limits.connections));
    for index in 0..config.workers {
        let name = format!("worker-{index}");
        let runtime = runtime(&name)?;
        let mut accepting = Vec::new();
        for port in &ports {
            let bound = port.bound.try_clone().context("share a listener between workers")?;
            accepting.push((bound, port.rules.clone()));
        }
        let worker = Worker {
            shared: shared.clone(),
            proxy: proxy::build(shared.clone()),
            pool: Pool::new(config.timeouts.connect),
            timeouts: config.timeouts.clone(),
            websocket_ping: config.websocket_ping,
            room: room.clone(),
            tasks: tasks.clone(),
            shutdown: watch_shutdown.clone(),
        };
        let stop = stop.clone();
        spawn(name, move || runtime.block_on(work(Arc::new(worker), accepting, stop)))?;
    }

    let admin = Admin::new(shared.clone());
    let Bound::Tcp(admin_listener) = admin_listener else { unreachable!("an address was bound, not a file") };
    let admin_address = admin_listener.local_addr().context("admin.listen has no address")?;
    spawn("admin".to_owned(), {
        let admin = admin.clone();
        let runtime = runtime("admin")?;
        move || {
            runtime.block_on(async move {
                match tokio::net::TcpListener::from_std(admin_listener) {
                    Ok(listener) => admin.serve(listener).await,
                    Err(error) => tracing::error!(%error, "the admin listener cannot be used"),
                }
            });
        }
    })?;

    for port in &ports {
        tracing::info!(address = %port.name, tls = port.rules.tls.is_some(), "listening");
    }
    tracing::info!(address = %admin_address, "admin listening");

    let ended = control.block_on(async {
        let certificates = CancellationToken::new();
        for port in &ports {
            if let Some(tls) = &port.rules.tls {
                tokio::spawn(tls.keep_fresh(certificates.clone()));
            }
        }
        tokio::spawn({
            let shared = shared.clone();
            async move { shared.upstreams.look_after().await }
        });
        tokio::spawn({
            let limits = shared.limits.clone();
            async move { limits.connect().await }
        });
        let files: Vec<_> = ports.into_iter().filter_map(|port| port.file).collect();
        let signal = signals.next().await;
        tracing::info!(signal, grace_seconds = config.drain.grace.as_secs(), "draining");
        admin.drain();
        let drained = async {
            tokio::time::sleep(config.drain.pre).await;
            stop.cancel();
            drop(files);
            // A send fails only when no worker is left, and then there is nothing to tell.
            let _ = shutdown.send(true);
            let deadline = tokio::time::Instant::now() + config.drain.grace;
            tasks.close();
            loop {
                if tokio::time::timeout_at(deadline, shared.streams.idle()).await.is_err() {
                    return Ended::Cut(shared.streams.under_way());
                }
                // Idle tunnels stay until the process ends; their agents dial again at once. What was sent before the
                // client had read GOAWAY arrives meanwhile, and is served as well.
                let _ = tokio::time::timeout(GOODBYE, tasks.wait()).await;
                if shared.streams.under_way().busy == 0 {
                    return Ended::Drained;
                }
            }
        };
        tokio::select! {
            biased;
            _ = signals.next() => Ended::Interrupted(shared.streams.under_way()),
            ended = drained => ended,
        }
    });
    Ok(ended)
}

/// One worker's life.
async fn work(worker: Arc<Worker>, listeners: Vec<(Bound, Arc<Rules>)>, stop: CancellationToken) {
    for (bound, rules) in listeners {
        match Listener::of(bound) {
            Ok(listener) => {
                tokio::spawn(accept::run(worker.clone(), listener, rules, stop.clone()));
            }
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
    }
    // Streams go on; the process ends, not the thread.
    std::future::pending::<()>().await;
}

/// One thread, nothing stolen: a batch of streams is written in one go.
fn runtime(name: &str) -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .with_context(|| format!("start {name}"))
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> anyhow::Result<()> {
    std::thread::Builder::new().name(name.clone()).spawn(body).with_context(|| format!("start {name}"))?;
    Ok(())
}

/// SIGTERM and SIGINT, which mean the same: finish, then end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> anyhow::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate()).context("handle SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("handle SIGINT")?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
