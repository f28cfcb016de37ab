//! A Redis cluster: each call goes to the master that serves its key's slot. Before it: [`super::Redis`]. After it: one
//! pool for each master, opened with the first call to it. Which master serves what is learnt from the nodes, again
//! whenever one of them sends a call elsewhere or is gone; nothing is asked while nothing fails.

mod asking;
mod slots;

pub(super) use self::asking::Asking;
#[cfg(test)]
pub(super) use self::slots::slot;
use self::slots::{Slots, key, slot as slot_of};
use super::{
    Config, RedisError,
    call::{Call, said},
    dial::{Dialled, Dialler, driven},
    pool::Pool,
    server::Server,
};
use ::redis::{Pipeline, ServerErrorKind, Value};
use futures::future::{join_all, select_ok};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};

/// The first try among them.
const TRIES: u32 = 6;
/// Before another try where the cluster asks for patience; longer each time.
const PAUSE: Duration = Duration::from_millis(50);
/// The slots are learnt at most so often.
const LEARN_EVERY: Duration = Duration::from_millis(200);

pub(super) struct Cluster {
    config: Config,
    dialler: Arc<Dialler>,
    seeds: Vec<Server>,
    openings: Arc<watch::Sender<u64>>,
    known: Mutex<Known>,
    /// When they were learnt, or why not. Whoever holds it learns.
    learning: tokio::sync::Mutex<Option<(Instant, Result<(), RedisError>)>>,
    /// All that are known, whatever they serve, for subscriptions.
    nodes: watch::Sender<Vec<Server>>,
}

#[derive(Default)]
struct Known {
    slots: Option<Slots>,
    pools: HashMap<Server, Arc<Pool>>,
}

/// Where a call goes.
#[derive(Clone)]
enum To {
    /// To the master of its slot, or to any.
    Master,
    /// To the one that another node named.
    This(Server),
    /// To the one that the slot is moving to.
    Asking(Server),
}

/// What a failure says about another try.
enum Advice {
    Try(To),
    /// Perhaps another node serves the slot.
    Learn,
    /// Soon.
    Wait,
    GiveUp,
}

impl Cluster {
    pub(super) fn new(
        config: &Config,
        dialler: Arc<Dialler>,
        seeds: Vec<Server>,
        openings: Arc<watch::Sender<u64>>,
    ) -> Self {
        Self {
            config: config.clone(),
            dialler,
            nodes: watch::Sender::new(seeds.clone()),
            seeds,
            openings,
            known: Mutex::default(),
            learning: tokio::sync::Mutex::default(),
        }
    }

    /// Whether any node answers, and none of those that are in use is away.
    pub(super) fn is_up(&self) -> bool {
        let known = self.known();
        known.pools.values().any(|pool| pool.is_up()) && !known.pools.values().any(|pool| pool.is_away())
    }

    pub(super) fn nodes(&self) -> watch::Receiver<Vec<Server>> {
        self.nodes.subscribe()
    }

    /// A pipeline that meets a slot as it moves may be run in part twice, unless it is atomic.
    pub(super) async fn call(
        &self,
        dial: Duration,
        limit: Duration,
        call: Call<'_>,
    ) -> Result<Value, RedisError> {
        self.call_until(Instant::now() + dial + limit, dial, limit, call).await
    }

    async fn call_until(
        &self,
        end: Instant,
        dial: Duration,
        limit: Duration,
        call: Call<'_>,
    ) -> Result<Value, RedisError> {
        let slot = key(call).map(slot_of);
        let mut to = To::Master;
        for tried in 1.. {
            let error = match self.attempt(end, dial, limit, slot, &to, call).await {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            if tried == TRIES || Instant::now() >= end {
                return Err(error);
            }
            let before = slot.and_then(|slot| self.master(slot));
            match advice(&error) {
                Advice::Try(next) => {
                    if let To::This(_) = next {
                        self.learn_until(end).await;
                    }
                    to = next;
                }
                Advice::Learn => {
                    self.learn_until(end).await;
                    // Any other node will do for a call without a key.
                    if slot.is_some_and(|slot| self.master(slot) == before) {
                        return Err(error);
                    }
                    to = To::Master;
                }
                Advice::Wait => {
                    let _ = timeout_at(end, sleep(PAUSE * tried)).await;
                    self.learn_until(end).await;
                    to = To::Master;
                }
                Advice::GiveUp => return Err(error),
            }
        }
        unreachable!("the loop has no end of its own")
    }

    async fn attempt(
        &self,
        end: Instant,
        dial: Duration,
        limit: Duration,
        slot: Option<u16>,
        to: &To,
        call: Call<'_>,
    ) -> Result<Value, RedisError> {
        let pool = match to {
            To::Master => self.serving(end, slot).await?,
            To::This(server) | To::Asking(server) => self.pool(&mut self.known(), server),
        };
        let left = end.saturating_duration_since(Instant::now());
        let lease = pool.lease(dial.min(left)).await?;
        let until = end.min(Instant::now() + limit);
        match to {
            To::Asking(_) => call.asking_on(&lease, until, limit).await,
            _ => call.on(&lease, until, limit).await,
        }
    }

    /// One round trip to each node, all at the same time; then those are tried again that met a slot as it moved.
    pub(super) async fn batch(
        &self,
        dial: Duration,
        limit: Duration,
        each: &[Pipeline],
    ) -> Vec<Result<Value, RedisError>> {
        let end = Instant::now() + dial + limit;
        if let Err(error) = self.learnt(end).await {
            return vec![Err(error); each.len()];
        }
        let mut groups: HashMap<Option<Server>, Vec<usize>> = HashMap::new();
        for (at, pipeline) in each.iter().enumerate() {
            let master = key(Call::Pipeline(pipeline)).and_then(|key| self.master(slot_of(key)));
            groups.entry(master).or_default().push(at);
        }
        let groups = groups.into_iter().map(|(master, members)| async move {
            let Some(master) = master else {
                // Those without a key, or without a master.
                let each = members.iter().map(|at| self.call(dial, limit, Call::Pipeline(&each[*at])));
                let answers = join_all(each).await;
                return members.into_iter().zip(answers).collect::<Vec<_>>();
            };
            let pool = self.pool(&mut self.known(), &master);
            let answers = match pool.lease(dial).await {
                Ok(lease) => {
                    let until = Instant::now() + limit;
                    let on = |at: &usize| Call::Pipeline(&each[*at]).on(&lease, until, limit);
                    join_all(members.iter().map(on)).await
                }
                Err(error) => vec![Err(error); members.len()],
            };
            members.into_iter().zip(answers).collect()
        });
        let mut answers: Vec<_> = join_all(groups).await.into_iter().flatten().collect();
        let again = answers.iter_mut().map(|(at, answer)| async move {
            let Err(error) = answer else { return };
            if !matches!(advice(error), Advice::GiveUp) && Instant::now() < end {
                *answer = self.call_until(end, dial, limit, Call::Pipeline(&each[*at])).await;
            }
        });
        join_all(again).await;
        answers.sort_unstable_by_key(|(at, _)| *at);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn master(&self, slot: u16) -> Option<Server> {
        self.known().slots.as_ref()?.master(slot).cloned()
    }

    fn pool(&self, known: &mut Known, server: &Server) -> Arc<Pool> {
        let open = || {
            let (dialler, openings) = (Arc::clone(&self.dialler), Arc::clone(&self.openings));
            Arc::new(Pool::new(&self.config, dialler, Some(server.clone()), openings))
        };
        Arc::clone(known.pools.entry(server.clone()).or_insert_with(open))
    }

    /// The master of the slot; without one, whichever is connected already.
    async fn serving(&self, end: Instant, slot: Option<u16>) -> Result<Arc<Pool>, RedisError> {
        self.learnt(end).await?;
        let mut known = self.known();
        let slots = known.slots.as_ref();
        let server = match slot {
            Some(slot) => {
                let master = slots.and_then(|slots| slots.master(slot));
                master.cloned().ok_or(RedisError::NotServed { slot })?
            }
            None => {
                if let Some(pool) = known.pools.values().find(|pool| pool.is_up()) {
                    return Ok(Arc::clone(pool));
                }
                let masters = slots.map(|slots| slots.masters.as_slice()).unwrap_or_default();
                // One that is known to be away is the last choice.
                let away = |server: &&Server| known.pools.get(server).is_some_and(|pool| pool.is_away());
                let server = masters.iter().find(|server| !away(server)).or(masters.first());
                server.cloned().ok_or_else(|| self.unknown(None))?
            }
        };
        Ok(self.pool(&mut known, &server))
    }

    /// Once, before anything is served.
    async fn learnt(&self, end: Instant) -> Result<(), RedisError> {
        if self.known().slots.is_some() {
            return Ok(());
        }
        timeout_at(end, self.learn()).await.unwrap_or_else(|_| Err(self.unknown(None)))
    }

    async fn learn_until(&self, end: Instant) {
        if let Ok(Err(error)) = timeout_at(end, self.learn()).await {
            tracing::debug!(error = %crate::error::chain(&error), "what the redis cluster serves where is not learnt");
        }
    }

    /// From whichever node answers first: those that are connected, else all that were ever known.
    async fn learn(&self) -> Result<(), RedisError> {
        let mut learning = self.learning.lock().await;
        if let Some((at, last)) = &*learning
            && at.elapsed() < LEARN_EVERY
        {
            return last.clone();
        }
        let (connected, nodes) = {
            let known = self.known();
            let up = known.pools.iter().filter(|(_, pool)| pool.is_up());
            let connected: Vec<_> = up.map(|(server, pool)| (server.clone(), Arc::clone(pool))).collect();
            (connected, self.nodes.borrow().clone())
        };
        let question = slots_command();
        let answer = self.config.write_timeout + self.config.read_timeout;
        let asked = connected.iter().map(|(server, pool)| {
            Box::pin(async {
                let lease = pool.lease(answer).await?;
                let said = Call::Command(&question).on(&lease, Instant::now() + answer, answer).await?;
                Slots::learnt(&said, server).ok_or_else(|| self.unknown(None))
            })
        });
        let asked: Vec<_> = asked.collect();
        let from_connected = if asked.is_empty() { None } else { select_ok(asked).await.ok() };
        let learnt = match from_connected {
            Some((slots, _)) => Ok(slots),
            None => {
                let asked: Vec<_> = nodes.iter().map(|server| Box::pin(self.ask(server))).collect();
                let failed = |error| self.unknown(Some(Box::new(error)));
                select_ok(asked).await.map(|(slots, _)| slots).map_err(failed)
            }
        };
        let result = learnt.map(|slots| self.set(slots));
        *learning = Some((Instant::now(), result.clone()));
        result
    }

    fn set(&self, slots: Slots) {
        let mut nodes = slots.masters.clone();
        nodes.extend(self.seeds.iter().filter(|seed| !slots.masters.contains(seed)).cloned());
        self.nodes.send_replace(nodes);
        let mut known = self.known();
        known.pools.retain(|server, _| slots.masters.contains(server));
        tracing::debug!(masters = slots.masters.len(), "learnt what the redis cluster serves where");
        known.slots = Some(slots);
    }

    /// On a connection for this alone.
    async fn ask(&self, server: &Server) -> Result<Slots, RedisError> {
        let Dialled { mut commands, mut driver, .. } = self.dialler.dial(Some(server)).await?;
        let failed = |source| RedisError::Failed { server: server.to_string(), source };
        let question = slots_command();
        let answer = driven(&mut driver, question.query_async::<Value>(&mut commands));
        let (end, limit) = (Instant::now() + self.dialler.patience, self.dialler.patience);
        let slow = |_| RedisError::Slow { server: server.to_string(), limit };
        let answer = timeout_at(end, answer).await.map_err(slow)?.map_err(failed)?;
        Slots::learnt(&answer, server).ok_or_else(|| self.unknown(None))
    }

    fn unknown(&self, source: Option<Box<RedisError>>) -> RedisError {
        RedisError::NoSlots { server: self.dialler.name(), source }
    }
}

fn slots_command() -> ::redis::Cmd {
    let mut command = ::redis::cmd("CLUSTER");
    command.arg("SLOTS");
    command
}

fn advice(error: &RedisError) -> Advice {
    let (server, source) = match error {
        RedisError::Failed { server, source } => (server, source),
        // Nothing was sent.
        RedisError::Connect { .. }
        | RedisError::Slow { .. }
        | RedisError::Lost { .. }
        | RedisError::Tls { .. }
        | RedisError::Refused { .. } => return Advice::Learn,
        RedisError::NotServed { .. } => return Advice::Wait,
        _ => return Advice::GiveUp,
    };
    for (_, error) in source.clone().into_server_errors().iter().flat_map(|errors| errors.iter()) {
        let place = || {
            let (_, address) = error.details()?.trim().split_once(' ')?;
            let (host, port) = address.rsplit_once(':')?;
            let asked = Server::parse(server, "the node").ok()?;
            Server::beside(&asked, host, port.parse().ok()?)
        };
        match error.kind() {
            Some(ServerErrorKind::Moved) => {
                return place().map_or(Advice::GiveUp, |server| Advice::Try(To::This(server)));
            }
            Some(ServerErrorKind::Ask) => {
                return place().map_or(Advice::GiveUp, |server| Advice::Try(To::Asking(server)));
            }
            _ => {}
        }
    }
    if said(source, |kind| matches!(kind, ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown)) {
        Advice::Wait
    } else if said(source, |kind| matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown)) {
        Advice::Learn
    } else {
        Advice::GiveUp
    }
}
