//! The connections for commands to one Redis server. The first is kept up from the first command on; more are opened
//! only while all that are open are busy, and close when they are not used for a while. Before it: [`super::Redis`] and
//! the cluster. After it: the dialler. It sends nothing by itself.

use super::{
    Config, RedisError,
    backoff::Backoff,
    dial::{Dialled, Dialler, Driver},
    server::Server,
};
use ::redis::aio::MultiplexedConnection;
use std::{
    sync::{Arc, Mutex, MutexGuard, Once, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// With more calls than this waiting for answers on each connection, another one is opened.
pub(super) const BUSY: usize = 64;
/// After a dial for one more connection failed, so long without another.
const NOT_AGAIN: Duration = Duration::from_secs(1);

/// All connections end with it.
pub(super) struct Pool {
    shared: Arc<Shared>,
    started: Once,
    _stop: DropGuard,
}

struct Shared {
    dialler: Arc<Dialler>,
    /// `None`: wherever the configuration says.
    server: Option<Server>,
    openings: Arc<watch::Sender<u64>>,
    /// Of the first connection.
    first: watch::Sender<State>,
    /// At least one.
    size: usize,
    idle_timeout: Duration,
    others: Mutex<Others>,
    stop: CancellationToken,
}

#[derive(Clone)]
enum State {
    /// For the first time, or after a connection broke.
    Dialling,
    Up(Up),
    /// Dialled again and again in the background.
    Away(RedisError),
}

#[derive(Default)]
struct Others {
    open: Vec<Up>,
    opening: bool,
    not_before: Option<Instant>,
}

#[derive(Clone)]
struct Up {
    commands: MultiplexedConnection,
    /// Where the connection leads; with sentinels, another place after each fail-over.
    server: Arc<str>,
    /// Whoever finds the connection useless says so.
    broken: CancellationToken,
    load: Arc<Mutex<Load>>,
}

struct Load {
    calls: usize,
    last: Instant,
}

/// A connection while a call uses it.
pub(super) struct Lease {
    pub(super) commands: MultiplexedConnection,
    pub(super) server: Arc<str>,
    pub(super) broken: CancellationToken,
    load: Arc<Mutex<Load>>,
}

impl Pool {
    /// Opens nothing yet.
    pub(super) fn new(
        config: &Config,
        dialler: Arc<Dialler>,
        server: Option<Server>,
        openings: Arc<watch::Sender<u64>>,
    ) -> Self {
        let stop = CancellationToken::new();
        let shared = Shared {
            dialler,
            server,
            openings,
            first: watch::Sender::new(State::Dialling),
            size: config.pool_size,
            idle_timeout: config.idle_timeout,
            others: Mutex::default(),
            stop: stop.clone(),
        };
        Self { shared: Arc::new(shared), started: Once::new(), _stop: stop.drop_guard() }
    }

    /// Whether commands are answered right now, as far as is known.
    pub(super) fn is_up(&self) -> bool {
        matches!(&*self.shared.first.borrow(), State::Up(up) if !up.broken.is_cancelled())
    }

    /// Whether it is known to be gone, and dialled again and again.
    pub(super) fn is_away(&self) -> bool {
        matches!(&*self.shared.first.borrow(), State::Away(_))
    }

    /// A connection that is there, or the one that is being opened.
    pub(super) async fn lease(&self, limit: Duration) -> Result<Lease, RedisError> {
        self.started.call_once(|| {
            let stop = self.shared.stop.clone();
            let keep = keep(Arc::clone(&self.shared));
            tokio::spawn(async move { stop.run_until_cancelled(keep).await });
        });
        let mut first = self.shared.first.subscribe();
        let settled = first.wait_for(|state| match state {
            State::Dialling => false,
            State::Up(up) => !up.broken.is_cancelled(),
            State::Away(_) => true,
        });
        let settled = timeout(limit, settled).await;
        match settled.as_ref().map(|state| state.as_deref()) {
            Ok(Ok(State::Up(first))) => Ok(choose(&self.shared, first)),
            Ok(Ok(State::Away(error))) => Err(error.clone()),
            _ => {
                let server = self.shared.server.as_ref().map(Server::to_string);
                Err(RedisError::Slow { server: server.unwrap_or_else(|| self.shared.dialler.name()), limit })
            }
        }
    }

    /// How many there are right now.
    #[cfg(test)]
    pub(super) fn open(&self) -> usize {
        usize::from(self.is_up()) + self.shared.others().open.len()
    }
}

impl Shared {
    fn others(&self) -> MutexGuard<'_, Others> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The first connection that is not busy, so that the last ones become idle; without one, that with the fewest calls.
fn choose(shared: &Arc<Shared>, first: &Up) -> Lease {
    if shared.size == 1 || first.calls() <= BUSY {
        return first.lease();
    }
    let mut others = shared.others();
    let good = others.open.iter().filter(|up| !up.broken.is_cancelled());
    let (mut best, mut open) = (first, 1);
    for up in good {
        open += 1;
        if up.calls() < best.calls() && best.calls() > BUSY {
            best = up;
        }
    }
    // Under the lock, or it could be closed in between.
    let lease = best.lease();
    let busy = best.calls() > BUSY + 1;
    if busy
        && open < shared.size
        && !others.opening
        && others.not_before.is_none_or(|at| at <= Instant::now())
    {
        others.opening = true;
        drop(others);
        let (stop, ends) = (shared.stop.clone(), first.broken.child_token());
        let another = another(Arc::clone(shared), ends);
        tokio::spawn(async move { stop.run_until_cancelled(another).await });
    }
    lease
}

impl Up {
    fn new(commands: MultiplexedConnection, server: &Server, broken: CancellationToken) -> Self {
        let load = Arc::new(Mutex::new(Load { calls: 0, last: Instant::now() }));
        Self { commands, server: server.to_string().into(), broken, load }
    }

    fn load(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn calls(&self) -> usize {
        self.load().calls
    }

    fn lease(&self) -> Lease {
        self.load().calls += 1;
        let Self { commands, server, broken, load } = self.clone();
        Lease { commands, server, broken, load }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut load = self.load.lock().unwrap_or_else(PoisonError::into_inner);
        load.calls -= 1;
        load.last = Instant::now();
    }
}

/// Keeps the first connection up.
async fn keep(shared: Arc<Shared>) {
    let mut backoff = Backoff::default();
    loop {
        match shared.dialler.dial(shared.server.as_ref()).await {
            Ok(Dialled { commands, driver, server }) => {
                tracing::info!(%server, "connected to redis");
                let (begin, broken) = (Instant::now(), CancellationToken::new());
                shared.first.send_replace(State::Up(Up::new(commands, &server, broken.clone())));
                shared.openings.send_modify(|openings| *openings += 1);
                // Until the server ends it, or a command finds it useless.
                broken.run_until_cancelled(driver).await;
                // What the others lead to may be no master any more.
                broken.cancel();
                tracing::info!(%server, "connection to redis lost");
                let at_once = backoff.lost(begin.elapsed());
                let lost = || State::Away(RedisError::Lost { server: server.to_string() });
                shared.first.send_replace(if at_once { State::Dialling } else { lost() });
            }
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), "no connection to redis");
                shared.first.send_replace(State::Away(error));
                backoff.failed();
            }
        }
        backoff.pause().await;
    }
}

/// Opens one more connection and closes it when it is broken, or not used any more.
async fn another(shared: Arc<Shared>, ends: CancellationToken) {
    let dialled = shared.dialler.dial(shared.server.as_ref()).await;
    let Some((up, driver)) = opened(&shared, dialled, ends) else { return };
    up.broken.run_until_cancelled(idle(&shared, &up, driver)).await;
    up.broken.cancel();
    shared.others().open.retain(|other| !Arc::ptr_eq(&other.load, &up.load));
}

fn opened(
    shared: &Shared,
    dialled: Result<Dialled, RedisError>,
    ends: CancellationToken,
) -> Option<(Up, Driver)> {
    let mut others = shared.others();
    others.opening = false;
    match dialled {
        Ok(Dialled { commands, driver, server }) => {
            let up = Up::new(commands, &server, ends);
            others.open.push(up.clone());
            tracing::debug!(%server, connections = others.open.len() + 1, "one more connection to redis");
            Some((up, driver))
        }
        Err(error) => {
            others.not_before = Some(Instant::now() + NOT_AGAIN);
            tracing::debug!(error = %crate::error::chain(&error), "no further connection to redis");
            None
        }
    }
}

/// Until it ends, or nobody used it for long. Then it is in no list any more.
async fn idle(shared: &Shared, up: &Up, mut driver: Driver) {
    loop {
        let close = up.load().last + shared.idle_timeout;
        tokio::select! {
            () = &mut driver => return,
            () = sleep_until(close) => {}
        }
        let mut others = shared.others();
        let mut load = up.load();
        if load.calls > 0 {
            load.last = Instant::now();
        } else if load.last + shared.idle_timeout <= Instant::now() {
            drop(load);
            others.open.retain(|other| !Arc::ptr_eq(&other.load, &up.load));
            return;
        }
    }
}
