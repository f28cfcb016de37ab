//! The wiring page: binds every port, starts the threads, and drains them on a signal.
//!
//! From `main` with a checked [`Config`]. Everything that can fail does so before the first connection is accepted.

use crate::accept::{self, Worker};
use crate::config::{Config, Listen};
use crate::drain::{Streams, UnderWay};
use crate::limits::Limits;
use crate::observability::Admin;
use crate::observability::metrics::Metrics;
use crate::proxy::{self, Shared};
use crate::relay::pool::Pool;
use crate::tls::Terminator;
use crate::upstream::Upstreams;
use anyhow::Context;
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// A storm of agents that all come back at once must not overflow it.
const BACKLOG: i32 = 4096;
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

/// One bound port.
struct Port {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<Terminator>,
}

/// Runs until a signal. Errors are about the start: a port that is taken, a certificate that cannot be read.
pub fn run(config: Config) -> anyhow::Result<Ended> {
    postern_certs::install_provider();
    let control = runtime("control")?;
    // Before anything is announced, so that a signal right after is not the end.
    let mut signals = control.block_on(async { Signals::new() })?;

    let ports = config.listen.iter().map(Port::bind).collect::<anyhow::Result<Vec<_>>>()?;
    let admin_listener = bind(config.admin).with_context(|| format!("admin.listen {}", config.admin))?;
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
            let listener = port.listener.try_clone().context("share a listener between workers")?;
            accepting.push((listener, port.tls.clone()));
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
        tracing::info!(address = %port.address, tls = port.tls.is_some(), "listening");
    }
    tracing::info!(address = %admin_address, "admin listening");

    let ended = control.block_on(async {
        let certificates = CancellationToken::new();
        for port in &ports {
            if let Some(tls) = &port.tls {
                tokio::spawn(tls.identity().keep_fresh(certificates.clone()));
            }
        }
        tokio::spawn({
            let shared = shared.clone();
            let limit = config.timeouts.connect;
            async move { shared.upstreams.clone().probe(limit).await }
        });
        tokio::spawn({
            let limits = shared.limits.clone();
            async move { limits.connect().await }
        });
        drop(ports);
        let signal = signals.next().await;
        tracing::info!(signal, grace_seconds = config.drain.grace.as_secs(), "draining");
        admin.drain();
        let drained = async {
            tokio::time::sleep(config.drain.pre).await;
            stop.cancel();
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
async fn work(
    worker: Arc<Worker>,
    listeners: Vec<(TcpListener, Option<Terminator>)>,
    stop: CancellationToken,
) {
    for (listener, tls) in listeners {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => {
                tokio::spawn(accept::run(worker.clone(), listener, tls, stop.clone()));
            }
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
    }
    // Streams go on; the process ends, not the thread.
    std::future::pending::<()>().await;
}

impl Port {
    fn bind(listen: &Listen) -> anyhow::Result<Self> {
        let tls = if listen.certificates.is_empty() {
            None
        } else {
            Some(
                Terminator::load(&listen.certificates)
                    .with_context(|| format!("listen {}", listen.address))?,
            )
        };
        let listener = bind(listen.address).with_context(|| format!("listen {}", listen.address))?;
        // The real one: port 0 asks the system to choose.
        let address = listener.local_addr().with_context(|| format!("listen {}", listen.address))?;
        Ok(Self { listener, address, tls })
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart must not wait for the connections of the one before.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
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
