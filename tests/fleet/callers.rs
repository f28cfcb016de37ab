//! Those who ask, on a host of their own: one request to one agent through one entrance, a steady load of them, and the
//! question of when an agent is reachable again. Whatever must never happen to any request is noted here; what may fail
//! in which test is the test's business.

use super::hosts::Host;
use crate::harness::{PATIENCE, http::full};
use http_body_util::BodyExt;
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{
    net::TcpStream,
    sync::{Semaphore, watch},
    task::{JoinHandle, JoinSet},
    time::{Instant, MissedTickBehavior, interval, timeout},
};

/// A dead port refuses faster than is good for the others on this machine.
const PACE: Duration = Duration::from_millis(20);
/// Requests of one load that run at once, at the most.
const AT_ONCE: usize = 500;
/// Of a load, as they are printed.
const FAILURES_SHOWN: usize = 20;

/// Where a request goes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Entrance {
    Edge,
    Broker(usize),
}

impl fmt::Display for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Edge => f.write_str("the edge"),
            Self::Broker(number) => write!(f, "broker {number}"),
        }
    }
}

/// What a request for this agent has in its query, so that a cluster's record tells whom it was meant for.
pub(crate) fn asked_for(agent: i64) -> String {
    format!("asked={agent}")
}

/// All callers; each may reach every agent.
pub(crate) struct Callers {
    host: Host,
    edge: SocketAddr,
    brokers: Vec<SocketAddr>,
    tokens: Vec<String>,
    deadline: Duration,
    asked: AtomicUsize,
    wrongs: Mutex<Vec<String>>,
}

impl Callers {
    /// They ask from this host, with these tokens in turn; whatever they ask is over after `deadline`.
    pub(crate) fn new(
        host: Host,
        edge: SocketAddr,
        brokers: Vec<SocketAddr>,
        tokens: Vec<String>,
        deadline: Duration,
    ) -> Self {
        Self { host, edge, brokers, tokens, deadline, asked: AtomicUsize::new(0), wrongs: Mutex::default() }
    }

    /// What must never happen and did.
    pub(crate) fn wrongs(&self) -> Vec<String> {
        self.wrongs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many requests there were.
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Asks an agent's cluster whose it is, on a new connection. The error is what came instead of the answer.
    pub(crate) async fn ask(&self, entrance: Entrance, agent: i64) -> Result<(), String> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let asking = self.host.inside(self.fetch(entrance, agent, &self.tokens[number % self.tokens.len()]));
        let wrong = match timeout(self.deadline, asking).await {
            Err(_) => format!("no end within {:?}", self.deadline),
            Ok(Err(error)) => return Err(error),
            Ok(Ok(whose)) if whose == agent.to_string() => return Ok(()),
            Ok(Ok(whose)) => format!("an answer of agent {whose}'s"),
        };
        let wrong = format!("request {number} for agent {agent} through {entrance}: {wrong}");
        self.wrongs.lock().unwrap_or_else(PoisonError::into_inner).push(wrong.clone());
        Err(wrong)
    }

    /// Whose the cluster says it is.
    async fn fetch(&self, entrance: Entrance, agent: i64, token: &str) -> Result<String, String> {
        let address = match entrance {
            Entrance::Edge => self.edge,
            Entrance::Broker(number) => self.brokers[number],
        };
        let broken = |what: &'static str| move |error| format!("{what}: {error}");
        let stream = TcpStream::connect(address).await.map_err(broken("connect"))?;
        let (mut send, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
        let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
        let path = format!("/k8s-proxy/api/v1/namespaces/default/configmaps/whose?{}", asked_for(agent));
        let request = Request::get(path)
            .header("host", "fleet")
            .header("authorization", format!("Bearer postern:{agent}:{token}"))
            .body(full(""))
            .expect("a request");
        let response = send.send_request(request).await.map_err(|error| format!("no answer: {error}"))?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| format!("{status}, cut: {error}"))?;
        let body = body.to_bytes();
        if status != 200 {
            return Err(format!("{status}: {}", String::from_utf8_lossy(&body).trim_end()));
        }
        let answer: Value = serde_json::from_slice(&body).map_err(|error| format!("not JSON: {error}"))?;
        answer["data"]["agent"].as_str().map(str::to_owned).ok_or_else(|| format!("not an answer: {answer}"))
    }

    /// Asks each of them through each entrance, a few at a time; the failures.
    pub(crate) async fn ask_all(self: &Arc<Self>, pairs: &[(Entrance, i64)]) -> Report {
        let few = Arc::new(Semaphore::new(20));
        let mut asking = JoinSet::new();
        for &(entrance, agent) in pairs {
            let (callers, few) = (self.clone(), few.clone());
            asking.spawn(async move {
                let _permit = few.acquire_owned().await.expect("never closed");
                callers.note(entrance, agent).await
            });
        }
        let mut report = Report::default();
        while let Some(done) = asking.join_next().await {
            report.all.push(done.expect("a request does not panic"));
        }
        report
    }

    /// Asks these pairs one after the other, every so often, whatever comes of it, until told to stop.
    pub(crate) fn load(self: &Arc<Self>, pairs: Vec<(Entrance, i64)>, every: Duration) -> Load {
        assert!(!pairs.is_empty(), "nobody to ask");
        let (callers, (stop, stopped)) = (self.clone(), watch::channel(false));
        let (count, begun) = watch::channel(0);
        let task = tokio::spawn(async move {
            let (mut ticks, mut asking) = (interval(every), JoinSet::new());
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut report = Report::default();
            for &(entrance, agent) in pairs.iter().cycle() {
                ticks.tick().await;
                if *stopped.borrow() {
                    break;
                }
                while let Some(done) = asking.try_join_next() {
                    report.all.push(done.expect("a request does not panic"));
                }
                if asking.len() < AT_ONCE {
                    let callers = callers.clone();
                    asking.spawn(async move { callers.note(entrance, agent).await });
                    count.send_modify(|count| *count += 1);
                }
            }
            while let Some(done) = asking.join_next().await {
                report.all.push(done.expect("a request does not panic"));
            }
            report
        });
        Load { stop, begun, task }
    }

    async fn note(&self, entrance: Entrance, agent: i64) -> Asked {
        let at = Instant::now();
        let failure = self.ask(entrance, agent).await.err();
        Asked { at, took: at.elapsed(), entrance, agent, failure }
    }

    /// When each of these agents first answers, asked through these entrances in turn, one request at a time for each;
    /// those that never do are left out.
    pub(crate) async fn first_answers(
        self: &Arc<Self>,
        agents: &[i64],
        entrances: &[Entrance],
        patience: Duration,
    ) -> BTreeMap<i64, Instant> {
        let mut asking = JoinSet::new();
        for &agent in agents {
            let (callers, entrances) = (self.clone(), entrances.to_vec());
            asking.spawn(timeout(patience, async move {
                let mut pace = interval(PACE);
                pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
                for &entrance in entrances.iter().cycle().skip(agent as usize % entrances.len()) {
                    pace.tick().await;
                    if callers.ask(entrance, agent).await.is_ok() {
                        break;
                    }
                }
                (agent, Instant::now())
            }));
        }
        let mut answers = BTreeMap::new();
        while let Some(done) = asking.join_next().await {
            answers.extend(done.expect("a request does not panic").ok());
        }
        answers
    }
}

/// One request that is over.
struct Asked {
    at: Instant,
    took: Duration,
    entrance: Entrance,
    agent: i64,
    failure: Option<String>,
}

/// Requests that go on until [`Load::end`].
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    /// How many requests have begun.
    begun: watch::Receiver<usize>,
    task: JoinHandle<Report>,
}

impl Load {
    /// Waits until this many more requests have begun.
    pub(crate) async fn goes_on(&mut self, more: usize) {
        let goal = *self.begun.borrow() + more;
        let begun = timeout(2 * PATIENCE, self.begun.wait_for(|begun| *begun >= goal)).await;
        begun.expect("a load goes on").expect("a load ends when it is told to");
    }

    /// No more requests; waits for those that run.
    pub(crate) async fn end(self) -> Report {
        self.stop.send_replace(true);
        self.task.await.expect("a load does not panic")
    }
}

/// What came of many requests.
#[derive(Default)]
pub(crate) struct Report {
    all: Vec<Asked>,
}

impl Report {
    /// Prints how long they took, and the failures; panics if there was one.
    #[track_caller]
    pub(crate) fn none_failed(&self, what: &str) {
        let took: Vec<_> = self.all.iter().map(|asked| asked.took).collect();
        let mut failures: Vec<_> = self.all.iter().filter(|asked| asked.failure.is_some()).collect();
        println!("{what}: {} failed; they took {}", failures.len(), Spread::of(&took));
        failures.sort_by_key(|asked| asked.at);
        let start = self.all.iter().map(|asked| asked.at).min();
        for Asked { at, took, entrance, agent, failure } in failures.iter().take(FAILURES_SHOWN) {
            let (at, failure) = (start.map(|start| *at - start), failure.as_deref());
            let (at, failure) = (at.unwrap_or_default(), failure.unwrap_or_default());
            println!("  at {at:.3?}, for {took:.3?}, agent {agent} through {entrance}: {failure}");
        }
        if failures.len() > FAILURES_SHOWN {
            println!("  and so on");
        }
        let failed = failures.len();
        assert!(failed == 0, "{what}: {failed} of {} requests failed, see above", self.all.len());
    }
}

/// How durations are spread.
pub(crate) struct Spread {
    sorted: Vec<Duration>,
}

impl Spread {
    pub(crate) fn of(durations: &[Duration]) -> Self {
        let mut sorted = durations.to_vec();
        sorted.sort_unstable();
        Self { sorted }
    }

    pub(crate) fn max(&self) -> Duration {
        self.sorted.last().copied().unwrap_or_default()
    }

    fn at(&self, percent: usize) -> Duration {
        let index = (self.sorted.len() * percent).div_ceil(100).saturating_sub(1);
        self.sorted.get(index).copied().unwrap_or_default()
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (min, p50, p90, max) = (self.at(0), self.at(50), self.at(90), self.max());
        write!(f, "min {min:.3?}, p50 {p50:.3?}, p90 {p90:.3?}, max {max:.3?} (of {})", self.sorted.len())
    }
}
