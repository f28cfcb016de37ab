//! What GitLab said a moment ago: one question per key at a time, an answer kept for a while, a definitive refusal for
//! another while, trouble for seconds. Before it: anyone who needs to know who a token is. After it: the client. Keys are
//! hashes, never secrets. Asked by several, a question goes on as long as one of them waits; left by all, it is dropped.

use futures::{
    FutureExt,
    future::{BoxFuture, Shared, WeakShared},
};
use rand::Rng;
use std::{
    collections::{BTreeMap, HashMap},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Trouble is not remembered for longer: GitLab is asked again within seconds after it is back.
const TRANSIENT: Duration = Duration::from_secs(2);
/// Times to keep are shortened by up to this share, so that what was asked at once does not expire at once.
const JITTER: f64 = 0.1;

/// How a failure is to be remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// It will be the same next time: kept as long as errors are.
    Definitive,
    /// It may be over soon: kept for a few seconds at the most.
    Transient,
    /// It is about one caller: not kept.
    Never,
}

/// A failure that knows how it is to be remembered.
pub trait Remember {
    /// How this one is.
    fn lasting(&self) -> Lasting;
}

/// How much is kept and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Answers kept at the most, and questions under way at the most.
    pub capacity: usize,
    /// How long a success is kept; zero: not at all.
    pub ok: Duration,
    /// How long a definitive failure is kept; others never longer than that either.
    pub error: Duration,
}

type Asking<V, E> = BoxFuture<'static, Result<V, E>>;

/// Answers by key. Clones share one memory.
pub struct Cache<K, V, E> {
    memory: Arc<Memory<K, V, E>>,
}

impl<K, V, E> Clone for Cache<K, V, E> {
    fn clone(&self) -> Self {
        Self { memory: Arc::clone(&self.memory) }
    }
}

struct Memory<K, V, E> {
    settings: Settings,
    state: Mutex<State<K, V, E>>,
}

struct State<K, V, E> {
    kept: HashMap<K, Kept<V, E>>,
    /// By the time of expiry; the number makes equal times differ.
    expiry: BTreeMap<(Instant, u64), K>,
    asking: HashMap<K, (u64, WeakShared<Asking<V, E>>)>,
    next: u64,
}

struct Kept<V, E> {
    until: (Instant, u64),
    answered: Instant,
    result: Result<V, E>,
}

impl<K, V, E> Cache<K, V, E>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
    E: Clone + Remember + Send + Sync + 'static,
{
    /// An empty one.
    pub fn new(settings: Settings) -> Self {
        let state = State { kept: HashMap::new(), expiry: BTreeMap::new(), asking: HashMap::new(), next: 0 };
        Self { memory: Arc::new(Memory { settings, state: Mutex::new(state) }) }
    }

    /// What is known, or what `ask` finds out. If somebody asks for the same key already, `ask` is not called and this
    /// waits for that answer. What `ask` makes must depend on nothing of this caller but the key: it may outlive it.
    pub async fn get<F>(&self, key: K, ask: impl FnOnce() -> F) -> Result<V, E>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        self.get_dated(key, ask).await.0
    }

    /// As [`Cache::get`], and when that was answered.
    pub async fn get_dated<F>(&self, key: K, ask: impl FnOnce() -> F) -> (Result<V, E>, Instant)
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        self.follow(self.plan(key, ask, false)).await
    }

    /// What `ask` finds out now, whatever is known; it is then known to all. If somebody asks already, that is joined.
    pub async fn renew<F>(&self, key: K, ask: impl FnOnce() -> F) -> Result<V, E>
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        self.follow(self.plan(key, ask, true)).await.0
    }

    async fn follow<F>(&self, plan: Plan<V, E, impl FnOnce() -> F>) -> (Result<V, E>, Instant)
    where
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let result = match plan {
            Plan::Known(result, answered) => return (result, answered),
            Plan::Join(asking) => asking.await,
            Plan::Alone(ask) => ask().await,
        };
        (result, Instant::now())
    }

    /// Forgets the answer, and does not keep one that is under way.
    pub fn forget(&self, key: &K) {
        let mut state = self.memory.lock();
        state.asking.remove(key);
        state.remove(key);
    }

    /// How many answers are kept.
    pub fn len(&self) -> usize {
        self.memory.lock().kept.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn plan<F, A>(&self, key: K, ask: A, anew: bool) -> Plan<V, E, A>
    where
        A: FnOnce() -> F,
        F: Future<Output = Result<V, E>> + Send + 'static,
    {
        let mut state = self.memory.lock();
        if let Some(kept) = state.kept.get(&key)
            && !anew
            && kept.until.0 > Instant::now()
        {
            return Plan::Known(kept.result.clone(), kept.answered);
        }
        if let Some(asking) = state.asking.get(&key).and_then(|(_, asking)| asking.upgrade()) {
            return Plan::Join(asking);
        }
        if state.asking.len() >= self.memory.settings.capacity {
            return Plan::Alone(ask);
        }
        let id = state.number();
        let guard = Asked { memory: Arc::clone(&self.memory), key: key.clone(), id };
        let answer = ask();
        let asking = async move {
            let result = answer.await;
            guard.keep(&result);
            result
        };
        let asking = asking.boxed().shared();
        let weak = asking.downgrade().expect("a future that was not polled is not complete");
        state.asking.insert(key, (id, weak));
        Plan::Join(asking)
    }
}

enum Plan<V, E, A> {
    /// And when it was answered.
    Known(Result<V, E>, Instant),
    Join(Shared<Asking<V, E>>),
    /// So many questions are under way that this one is not shared, and its answer not kept.
    Alone(A),
}

impl<K, V, E> Memory<K, V, E> {
    fn lock(&self) -> MutexGuard<'_, State<K, V, E>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash, V, E> State<K, V, E> {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    fn remove(&mut self, key: &K) {
        if let Some(kept) = self.kept.remove(key) {
            self.expiry.remove(&kept.until);
        }
    }

    /// Makes room for one more: what expired goes first, then what expires next.
    fn make_room(&mut self, capacity: usize) {
        let now = Instant::now();
        while let Some(first) = self.expiry.first_entry() {
            if first.key().0 > now && self.kept.len() < capacity {
                return;
            }
            let key = first.remove();
            self.kept.remove(&key);
        }
    }
}

/// A question under way; when it is gone, answered or given up by all, the next caller asks anew.
struct Asked<K: Eq + Hash, V, E> {
    memory: Arc<Memory<K, V, E>>,
    key: K,
    id: u64,
}

impl<K, V, E> Asked<K, V, E>
where
    K: Clone + Eq + Hash,
    V: Clone,
    E: Clone + Remember,
{
    fn keep(&self, result: &Result<V, E>) {
        let settings = &self.memory.settings;
        let time = match result {
            Ok(_) => settings.ok,
            Err(error) => match error.lasting() {
                Lasting::Definitive => settings.error,
                Lasting::Transient => settings.error.min(TRANSIENT),
                Lasting::Never => return,
            },
        };
        if time.is_zero() || settings.capacity == 0 {
            return;
        }
        let time = time.mul_f64(1.0 - rand::rng().random_range(0.0..JITTER));
        let mut state = self.memory.lock();
        // It was forgotten meanwhile: whoever did that knows better.
        if state.asking.get(&self.key).is_none_or(|(id, _)| *id != self.id) {
            return;
        }
        state.remove(&self.key);
        state.make_room(settings.capacity);
        let answered = Instant::now();
        let until = (answered + time, state.number());
        state.expiry.insert(until, self.key.clone());
        state.kept.insert(self.key.clone(), Kept { until, answered, result: result.clone() });
    }
}

impl<K: Eq + Hash, V, E> Drop for Asked<K, V, E> {
    fn drop(&mut self) {
        let mut state = self.memory.lock();
        if state.asking.get(&self.key).is_some_and(|(id, _)| *id == self.id) {
            state.asking.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests;
