//! How often a name may call in a minute, counted in Redis for a whole fleet. Each process takes calls out of an advance or
//! a lease, so most cost no command, and many calls share one. [`Leases::begin`] looks at this process' memory only, for
//! names that nobody has found good yet; [`Leases::admit`] counts for all. Names are hashes: what they are of goes nowhere.
//! The bounds of the error are in docs/limits.md.

mod ledger;
mod outage;
mod share;
mod table;

use crate::{Redis, error::chain};
use arc_swap::ArcSwap;
use ledger::Ledger;
use outage::Outage;
use share::{Share, Turn};
use std::{
    fmt,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use table::Table;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

/// Longer than this no call waits to be counted, where nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// A hash.
pub type Id = [u8; 32];

/// Whose call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Name {
    /// What is counted under it in this process.
    pub id: Id,
    /// What Redis counts under.
    pub shared: Id,
}

impl Name {
    /// One hash for both.
    pub fn of(id: Id) -> Self {
        Self { id, shared: id }
    }
}

/// What is allowed. It may change at any time: what was counted stays counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitPolicy {
    /// Calls with one name in a calendar minute (UTC), over all processes that share a Redis and a key space.
    pub per_minute: u32,
    /// What becomes of calls that Redis cannot count.
    pub redis_lost: RedisLost,
}

/// What is allowed to one name, where not all have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// As it is at this call.
    pub policy: LimitPolicy,
    /// Changes whenever the policy of any name may have changed.
    pub generation: u64,
}

/// What becomes of calls that Redis cannot count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedisLost {
    /// Each process counts alone, up to the same limit.
    Local,
    /// They are refused.
    Deny,
    /// They are admitted.
    Allow,
}

/// Why a call is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// The name has used up its minute.
    Exhausted,
    /// Redis is away, and the policy admits nobody without it.
    Away,
}

/// How many names are remembered. Beyond these, calls are counted one by one in Redis, so that nobody has a fresh advance
/// for having been forgotten. A name takes about 150 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Names that were found good.
    pub good: usize,
    /// Names with calls under way, or that were not found good.
    pub strangers: usize,
    /// Locks that they are spread over.
    pub shards: usize,
}

/// Tells the time of the day.
pub type Clock = Box<dyn Fn() -> SystemTime + Send + Sync>;

/// The counts of one kind of name.
pub struct Leases {
    ledger: Ledger,
    policy: ArcSwap<LimitPolicy>,
    tables: Box<[Mutex<Table>]>,
    outage: Outage,
    clock: Clock,
    patience: Duration,
}

/// What a call does next.
enum Step {
    Admitted,
    Refused(Denied),
    /// The answer to a command that is under way decides.
    Wait(CancellationToken),
    /// There is no room to count this name here.
    OneByOne,
}

/// A call among those that wait for an answer; leaves them when it is dropped.
struct Waiting<'a> {
    leases: &'a Leases,
    name: Name,
    /// The minute whose answer it waits for.
    minute: Option<u64>,
}

impl Leases {
    /// `space` is what the keys begin with; `whose` calls they are, for the log (`"agents'"`).
    pub fn new(
        redis: Arc<Redis>,
        space: String,
        whose: &'static str,
        policy: LimitPolicy,
        room: Room,
    ) -> Arc<Self> {
        Self::with_times(redis, space, whose, policy, room, (Box::new(SystemTime::now), PATIENCE))
    }

    /// With another clock than the system's and another patience than [`PATIENCE`].
    pub fn with_times(
        redis: Arc<Redis>,
        space: String,
        whose: &'static str,
        policy: LimitPolicy,
        room: Room,
        (clock, patience): (Clock, Duration),
    ) -> Arc<Self> {
        let shards = room.shards.max(1);
        let table =
            |_| Mutex::new(Table::with_room(room.good.div_ceil(shards), room.strangers.div_ceil(shards)));
        Arc::new(Self {
            ledger: Ledger { redis, space },
            policy: ArcSwap::from_pointee(policy),
            tables: (0..shards).map(table).collect(),
            outage: Outage::of(whose),
            clock,
            patience,
        })
    }

    /// What is in force.
    pub fn policy(&self) -> LimitPolicy {
        **self.policy.load()
    }

    /// Puts another policy in force, for this minute too: no count begins anew, and a name that is beyond the new limit is
    /// refused at once.
    pub fn set_policy(&self, policy: LimitPolicy) {
        self.policy.store(Arc::new(policy));
    }

    /// Whether calls are decided without Redis right now.
    pub fn is_lost(&self) -> bool {
        self.outage.is_lost()
    }

    /// Good names and strangers that are remembered in this minute.
    pub fn sizes(&self) -> (usize, usize) {
        let sizes = self.tables.iter().map(|table| self.turned(table).sizes());
        sizes.fold((0, 0), |sum, size| (sum.0 + size.0, sum.1 + size.1))
    }

    /// How long the current minute still takes.
    pub fn left_of_minute(&self) -> Duration {
        let since = (self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64 % 60_000;
        Duration::from_millis(60_000 - since)
    }

    /// Before anybody is asked about the name: counts the call in this process. It waits for nothing and sends nothing.
    /// `false`: the name has used up this minute, or so many calls with it are under way or were not found good, in this
    /// process alone.
    pub fn begin(self: &Arc<Self>, name: Name) -> bool {
        self.begin_by(name, self.policy(), None)
    }

    /// [`Leases::begin`] where names have policies of their own: `allowed` is what is known before the name was found good.
    /// Once [`Leases::admit_as`] was told more in this minute or the one before, and in this generation, that holds.
    pub fn begin_as(self: &Arc<Self>, name: Name, allowed: Allowed) -> bool {
        self.begin_by(name, allowed.policy, Some(allowed.generation))
    }

    fn begin_by(self: &Arc<Self>, name: Name, policy: LimitPolicy, generation: Option<u64>) -> bool {
        let mut table = self.table(&name);
        let last = generation.and_then(|now| Some((now, table.last_allowed(&name.id)?)));
        let policy = match last {
            Some((now, last)) if last.generation == now => last.policy,
            // Other policies than those it was judged by: it is judged again once it was found good.
            Some((_, last)) => {
                return table.begin_unjudged(&name.id, policy.per_minute.max(last.policy.per_minute));
            }
            None => policy,
        };
        let LimitPolicy { per_minute, redis_lost } = policy;
        let alone = redis_lost == RedisLost::Local && self.outage.is_lost();
        if table.begin(&name.id, per_minute, alone) {
            return true;
        }
        let minute = table.minute();
        // Of a good name only, and without waiting: somebody must find out that Redis is back.
        if let Some(share) = table.share_of(minute, &name.id)
            && alone
        {
            self.try_redis(name, minute, share, policy);
        }
        false
    }

    /// The name of a call that began was found good.
    pub fn proven(&self, name: Name) {
        self.table(&name).proven(&name.id);
    }

    /// What can be said without waiting. `None`: Redis decides, ask [`Leases::admit`].
    pub fn admit_now(&self, name: Name) -> Option<Result<(), Denied>> {
        self.admit_now_by(name, self.policy())
    }

    /// [`Leases::admit_now`] where names have policies of their own; [`Leases::admit_by`] goes on.
    pub fn admit_now_by(&self, name: Name, policy: LimitPolicy) -> Option<Result<(), Denied>> {
        let LimitPolicy { per_minute, redis_lost } = policy;
        let free = !(self.outage.is_lost() && redis_lost == RedisLost::Deny);
        match self.table(&name).share(&name.id)?.take(per_minute, free) {
            Turn::Admitted => Some(Ok(())),
            Turn::Refused => Some(Err(Denied::Exhausted)),
            Turn::Ask => None,
        }
    }

    /// Counts a call that was admitted already, and tells Redis with the next ones. Where there is no room for the name it is
    /// not counted.
    pub fn count(&self, name: Name) {
        self.count_by(name, self.policy());
    }

    /// [`Leases::count`] where names have policies of their own.
    pub fn count_by(&self, name: Name, LimitPolicy { per_minute, .. }: LimitPolicy) {
        if let Some(share) = self.table(&name).share(&name.id)
            && share.take(per_minute, true) != Turn::Admitted
        {
            share.take_freely();
        }
    }

    /// After the name was found good: counts the call for the fleet. Most calls take no command, the others share one; none
    /// waits longer than [`PATIENCE`].
    ///
    /// # Errors
    /// Why it is not admitted.
    pub async fn admit(self: &Arc<Self>, name: Name) -> Result<(), Denied> {
        self.admit_by(name, self.policy()).await
    }

    /// [`Leases::admit`] where names have policies of their own. What was counted stays counted, whatever the policy is at
    /// the next call.
    ///
    /// # Errors
    /// Why it is not admitted.
    pub async fn admit_as(self: &Arc<Self>, name: Name, allowed: Allowed) -> Result<(), Denied> {
        self.table(&name).judged(&name.id, allowed);
        self.admit_by(name, allowed.policy).await
    }

    /// [`Leases::admit_as`] for who never asks [`Leases::begin_as`].
    ///
    /// # Errors
    /// Why it is not admitted.
    pub async fn admit_by(self: &Arc<Self>, name: Name, policy: LimitPolicy) -> Result<(), Denied> {
        let deadline = Instant::now() + self.patience;
        let mut waiting = Waiting { leases: self, name, minute: None };
        loop {
            let flight = match self.step(&mut waiting, policy, deadline) {
                Step::Admitted => return Ok(()),
                Step::Refused(denied) => return Err(denied),
                Step::OneByOne => return self.one(name, policy).await,
                Step::Wait(flight) => flight,
            };
            tokio::select! {
                () = flight.cancelled() => {}
                () = self.outage.lost() => {}
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn step(self: &Arc<Self>, waiting: &mut Waiting<'_>, policy: LimitPolicy, deadline: Instant) -> Step {
        let LimitPolicy { per_minute, redis_lost } = policy;
        let name = waiting.name;
        let mut table = self.table(&name);
        let minute = table.minute();
        let waited = waiting.minute.take() == Some(minute);
        let Some(share) = table.share(&name.id) else { return Step::OneByOne };
        if waited {
            share.waiting = share.waiting.saturating_sub(1);
        }
        let lost = self.outage.is_lost();
        match share.take(per_minute, !(lost && redis_lost == RedisLost::Deny)) {
            Turn::Admitted => Step::Admitted,
            Turn::Refused => Step::Refused(Denied::Exhausted),
            Turn::Ask if lost || Instant::now() >= deadline => {
                if lost {
                    self.try_redis(name, minute, share, policy);
                }
                self.outage.uncounted();
                match redis_lost {
                    RedisLost::Local if share.take_alone(per_minute) => Step::Admitted,
                    RedisLost::Local => Step::Refused(Denied::Exhausted),
                    RedisLost::Allow => {
                        share.take_freely();
                        Step::Admitted
                    }
                    RedisLost::Deny => Step::Refused(Denied::Away),
                }
            }
            Turn::Ask => {
                share.waiting += 1;
                waiting.minute = Some(minute);
                let flight = share.flight();
                Step::Wait(flight.unwrap_or_else(|| self.lease(name, minute, share, policy)))
            }
        }
    }

    /// Where Redis is lost: asks it now and then, for nobody waits for the answer.
    fn try_redis(self: &Arc<Self>, name: Name, minute: u64, share: &mut Share, policy: LimitPolicy) {
        if share.flight().is_none() && self.outage.may_try() {
            self.lease(name, minute, share, policy);
        }
    }

    /// Asks Redis in a task of its own, which ends within some two seconds: a caller that leaves must not take an answer
    /// with it that others wait for.
    fn lease(
        self: &Arc<Self>,
        name: Name,
        minute: u64,
        share: &mut Share,
        LimitPolicy { per_minute, redis_lost }: LimitPolicy,
    ) -> CancellationToken {
        let done = CancellationToken::new();
        let ask = share.ask(per_minute, done.clone());
        let this = Arc::clone(self);
        let landing = done.clone().drop_guard();
        tokio::spawn(async move {
            // Dropped last, whatever happens: the share knows the answer when those who wait go on.
            let _landing = landing;
            let mut answer = pin!(this.ledger.add(this.patience, &name.shared, minute, ask.sum()));
            let mut slow = pin!(sleep(this.patience));
            let answer = tokio::select! {
                answer = &mut answer => answer,
                () = &mut slow => {
                    this.outage.failed(&format!("no answer within {:?}", this.patience), redis_lost);
                    answer.await
                }
            };
            match answer {
                Ok(count) => {
                    if let Some(share) = this.table(&name).share_of(minute, &name.id) {
                        share.answered(ask, count, per_minute);
                    }
                    this.outage.over();
                }
                Err(error) => {
                    if let Some(share) = this.table(&name).share_of(minute, &name.id) {
                        share.failed(ask, ledger::may_have_counted(&error));
                    }
                    this.outage.failed(&chain(&error), redis_lost);
                }
            }
        });
        done
    }

    /// A name for which the table has no room: each call is a command, as exact as Redis.
    async fn one(
        &self,
        name: Name,
        LimitPolicy { per_minute, redis_lost }: LimitPolicy,
    ) -> Result<(), Denied> {
        if !self.outage.is_lost() || self.outage.may_try() {
            let minute = self.table(&name).minute();
            // Opening a connection and the answer may each take so long.
            match self.ledger.add(self.patience / 2, &name.shared, minute, 1).await {
                Ok(count) => {
                    self.outage.over();
                    let admitted = count <= u64::from(per_minute);
                    return if admitted { Ok(()) } else { Err(Denied::Exhausted) };
                }
                Err(error) => self.outage.failed(&chain(&error), redis_lost),
            }
        }
        self.outage.uncounted();
        if redis_lost == RedisLost::Deny { Err(Denied::Away) } else { Ok(()) }
    }

    fn table(&self, name: &Name) -> MutexGuard<'_, Table> {
        self.turned(&self.tables[usize::from(name.id[0]) % self.tables.len()])
    }

    /// As of now.
    fn turned<'a>(&self, table: &'a Mutex<Table>) -> MutexGuard<'a, Table> {
        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
        table.turn((self.clock)().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() / 60);
        table
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        let Some(minute) = self.minute else { return };
        if let Some(share) = self.leases.table(&self.name).share_of(minute, &self.name.id) {
            share.waiting = share.waiting.saturating_sub(1);
        }
    }
}

impl fmt::Debug for Leases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leases").field("policy", &self.policy()).finish_non_exhaustive()
    }
}
