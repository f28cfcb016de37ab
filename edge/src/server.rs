//! The wiring page: opens every port, starts the threads, and drains them when it is asked to.
//!
//! From `main` with a checked [`Config`]. Everything that can fail does so before the first connection is accepted.

mod finish;

use crate::accept::{self, Worker};
use crate::config::Config;
use crate::decide::Route;
pub use crate::drain::{Asked, Handle};
use crate::drain::{Streams, UnderWay};
use crate::handover::{self, Giver, Offer};
use crate::life::{Roll, Terms, pace};
use crate::limits::Limits;
use crate::listen::socket::{Bound, Listener, SocketFile};
use crate::listen::{Place, Port, Rules};
use crate::observability::Admin;
use crate::observability::metrics::Metrics;
use crate::policy::{self, Policies};
use crate::proxy::{self, Shared};
use crate::relay::pool::Pool;
use crate::trace::Tracing;
use crate::upstream::Upstreams;
use anyhow::Context;
use arc_swap::Guard;
use finish::Open;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The admin listener's name in a handover and among systemd's sockets.
const ADMIN: &str = "admin";
/// A successor that reaches no broker must not take over.
const BROKERS: Duration = Duration::from_secs(20);

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

/// Runs until it is drained. Errors are about the start: a port that is taken, a certificate that cannot be read, a
/// policy that makes no sense. With `upgrade_from`, the edge that listens there hands over its ports, if there is one.
pub fn run(config: Config, upgrade_from: Option<&Path>) -> anyhow::Result<Ended> {
    postern_certs::install_provider();
    let control = runtime("control")?;
    // Before anything is announced, so that a signal right after is not the end.
    let mut signals = control.block_on(async { Signals::new() })?;

    let mut inherited = handover::systemd()?;
    let taken = match upgrade_from {
        None => None,
        Some(path) => handover::take(path)?,
    };
    let taken = taken.map(|(taken, sockets)| {
        inherited.extend(sockets);
        taken
    });
    let open = |listen| Port::open(listen, &mut inherited);
    let ports = config.listen.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
    let (admin_listener, _) =
        Bound::open(ADMIN, &Place::Ip { address: config.admin, v6_only: false }, &mut inherited)
            .with_context(|| format!("admin.listen {}", config.admin))?;
    for name in inherited.rest() {
        tracing::warn!(name, "closed an inherited socket that the configuration does not mention");
    }
    let offer = Offer::default();
    if config.handover.is_some() {
        ports.iter().try_for_each(|port| port.offer(&offer))?;
        admin_listener.offer(ADMIN.to_owned(), &offer).context("offer the admin listener to a successor")?;
    }

    let policies = Policies::load(config.policies.as_deref())?;
    let (tracing, keeper) = config.telemetry.otlp.as_ref().map(Tracing::new).transpose()?.unzip();
    let shared = Arc::new(Shared {
        upstreams: Arc::new(Upstreams::resolve(&config)?),
        limits: Limits::new(&config.limits, policies.set(), Instant::now()).context("limits.redis")?,
        metrics: Metrics::default(),
        streams: Streams::new(),
        connections: Arc::default(),
        tracing,
        policies: Arc::new(policies),
        handle: Handle::default(),
    });

    let stop = CancellationToken::new();
    let tasks = TaskTracker::new();
    let (shutdown, watch_shutdown) = watch::channel(false);
    let (go, watch_go) = watch::channel(false);
    let room = Arc::new(Semaphore::new(config.limits.connections));
    let set = Guard::into_inner(shared.policies.live().set());
    let terms = Terms::new(&config.connections, config.timeouts.idle, &config.drain, set);
    let mut rolls = Vec::new();
    for index in 0..config.workers {
        let name = format!("worker-{index}");
        let runtime = runtime(&name)?;
        let mut accepting = Vec::new();
        for port in &ports {
            let bound = port.bound.try_clone().context("share a listener between workers")?;
            accepting.push((bound, port.rules.clone()));
        }
        let roll = Roll::new(&terms);
        rolls.push(roll.clone());
        let worker = Worker {
            shared: shared.clone(),
            proxy: proxy::build(shared.clone()),
            pool: Pool::new(config.timeouts.connect),
            timeouts: config.timeouts.clone(),
            websocket_ping: config.websocket_ping,
            room: room.clone(),
            tasks: tasks.clone(),
            roll,
            shutdown: watch_shutdown.clone(),
        };
        let (stop, go) = (stop.clone(), watch_go.clone());
        spawn(name, move || runtime.block_on(work(Arc::new(worker), accepting, go, stop)))?;
    }

    let admin = Admin::new(shared.clone(), &config);
    let Bound::Tcp(admin_listener) = admin_listener else { unreachable!("an address was bound, not a file") };
    let admin_address = admin_listener.local_addr().context("admin.listen has no address")?;
    let admin_ends = CancellationToken::new();
    let serve_admin = {
        let (admin, ends) = (admin.clone(), admin_ends.clone());
        let runtime = runtime("admin")?;
        move || {
            runtime.block_on(async move {
                match tokio::net::TcpListener::from_std(admin_listener) {
                    Ok(listener) => tokio::select! {
                        () = admin.serve(listener) => {}
                        // The successor answers there now.
                        () = ends.cancelled() => {}
                    },
                    Err(error) => tracing::error!(%error, "the admin listener cannot be used"),
                }
            });
        }
    };

    control.block_on(async {
        let exporting = CancellationToken::new();
        let keeper = keeper.map(|keeper| tokio::spawn(keeper.run(exporting.clone())));
        let forever = CancellationToken::new();
        for port in &ports {
            if let Some(tls) = &port.rules.tls {
                tokio::spawn(tls.keep_fresh(forever.clone()));
            }
        }
        tokio::spawn({
            let (shared, stop) = (shared.clone(), forever.clone());
            async move { shared.policies.keep_fresh(&shared.limits, stop).await }
        });
        tokio::spawn({
            let (shared, rolls) = (shared.clone(), rolls.clone());
            async move { policy::keep_out(&shared.policies, &rolls, &shared.metrics).await }
        });
        tokio::spawn({
            let (shared, terms) = (shared.clone(), terms.clone());
            async move { terms.follow(shared.policies.live()).await }
        });
        tokio::spawn({
            let shared = shared.clone();
            async move { shared.upstreams.look_after().await }
        });
        tokio::spawn({
            let limits = shared.limits.clone();
            async move { limits.connect().await }
        });
        if taken.is_some() {
            reach_a_broker(&shared).await?;
        }
        // A send fails only when no worker is left.
        let _ = go.send(true);
        spawn("admin".to_owned(), serve_admin)?;
        for port in &ports {
            tracing::info!(address = %port.name, tls = port.rules.tls.is_some(), "listening");
        }
        tracing::info!(address = %admin_address, "admin listening");
        let files: Vec<_> = ports.into_iter().filter_map(|port| port.file).collect();
        let upgraded = taken.is_some();
        if let Some(taken) = taken {
            match taken.ready() {
                Ok(()) => tracing::info!("took over; the edge before drains"),
                // It ended by itself, perhaps. The sockets are here either way.
                Err(error) => tracing::warn!(%error, "the edge before may still accept connections"),
            }
        }
        if let Some(path) = &config.handover {
            give(path, upgraded, &offer, &shared.handle)?;
        }

        let mut signalled = false;
        let asked = tokio::select! {
            signal = signals.next() => {
                signalled = true;
                shared.handle.drain(Asked::Exit);
                tracing::info!(signal, grace_seconds = terms.drain().grace.as_secs(), "draining");
                Asked::Exit
            }
            asked = shared.handle.wait(Asked::Stay) => {
                tracing::info!(?asked, grace_seconds = terms.drain().grace.as_secs(), "draining");
                asked
            }
        };
        admin.drain();
        let drained = async {
            if asked == Asked::HandedOver {
                admin_ends.cancel();
            } else {
                tokio::time::sleep(config.drain.pre).await;
            }
            stop.cancel();
            if asked == Asked::HandedOver {
                // The successor serves them.
                files.into_iter().for_each(SocketFile::keep);
            } else {
                drop(files);
            }
            offer.withdraw();
            // A send fails only when no worker is left, and then there is nothing to tell.
            let _ = shutdown.send(true);
            let ended = Open { streams: shared.streams.clone(), rolls, tasks }.finish(&terms).await;
            if asked == Asked::Stay {
                tracing::info!("drained; the process stays until it is told to exit");
                shared.handle.wait(Asked::Exit).await;
            }
            match ended {
                // Whoever restarts processes that fail would have this one take the sockets back from its successor.
                Ended::Cut(left) if asked == Asked::HandedOver => {
                    tracing::warn!(streams = left.busy, "drain.grace ended before all streams did; they were cut");
                    Ended::Drained
                }
                ended => ended,
            }
        };
        let ended = tokio::select! {
            biased;
            () = second(&mut signals, signalled, &shared.handle) => Ended::Interrupted(shared.streams.under_way()),
            ended = drained => ended,
        };
        admin.finish().await;
        exporting.cancel();
        if let (Some(keeper), Ended::Drained | Ended::Cut(_)) = (keeper, &ended) {
            // It has a deadline of its own.
            let _ = keeper.await;
        }
        Ok(ended)
    })
}

/// Returns at the second signal. The first one asks for an end, also where a drain runs already: an orchestrator may
/// have asked for that by other means just before.
async fn second(signals: &mut Signals, signalled: bool, handle: &Handle) {
    if !signalled {
        signals.next().await;
        handle.drain(Asked::Exit);
    }
    signals.next().await;
}

/// Before the edge that runs is sent away.
async fn reach_a_broker(shared: &Shared) -> anyhow::Result<()> {
    let reached = async {
        while !shared.upstreams.of(Route::Agents).any_up() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(BROKERS, reached).await.with_context(|| {
        format!("no broker takes connections within {BROKERS:?}; the edge that runs goes on")
    })
}

/// Listens for a successor, on a thread of its own.
fn give(path: &Path, upgraded: bool, offer: &Offer, handle: &Handle) -> anyhow::Result<()> {
    let giver = Giver::bind(path, upgraded)?;
    let (offer, handle) = (offer.clone(), handle.clone());
    spawn("handover".to_owned(), move || {
        giver.give(&offer);
        handle.drain(Asked::HandedOver);
    })
}

/// One worker's life.
async fn work(
    worker: Arc<Worker>,
    listeners: Vec<(Bound, Arc<Rules>)>,
    mut go: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    // Whoever would say so is gone: so is the process.
    let _ = go.wait_for(|go| *go).await;
    for (bound, rules) in listeners {
        match Listener::of(bound) {
            Ok(listener) => {
                tokio::spawn(accept::run(worker.clone(), listener, rules, stop.clone()));
            }
            Err(error) => tracing::error!(%error, "a listener cannot be used"),
        }
    }
    // Streams go on; the process ends, not the thread.
    pace::pass_on(&worker.roll).await;
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
