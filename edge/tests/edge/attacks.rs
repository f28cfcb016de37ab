//! Strangers who mean harm, one way at a time, beside honest callers: the edge's memory stays within what its limits
//! admit, and nobody else's call fails. How long the others wait is printed here and judged by `make bench-attacks`.

// With their paths, since test and benchmark of the same name take this file from elsewhere.
#[path = "attacks/ground.rs"]
pub(crate) mod ground;
#[path = "attacks/kinds.rs"]
pub(crate) mod kinds;
#[path = "attacks/tenants.rs"]
pub(crate) mod tenants;

use crate::harness::{Edge, Setup, until};
use crate::upstreams::{Agents, KubernetesApi};
use ground::{From, Ground};
use kinds::Attack;
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use std::collections::HashSet;
use std::time::{Duration, Instant};
use tenants::{Tenants, Waits};

/// Whatever else the machine does.
const STRANGERS_COME: Duration = Duration::from_secs(30);

/// What one attack did.
pub(crate) struct Outcome {
    pub(crate) name: &'static str,
    pub(crate) quiet: Waits,
    pub(crate) under: Waits,
    /// KiB resident, before and at most.
    pub(crate) before: u64,
    pub(crate) peak: u64,
    pub(crate) connections: u64,
    pub(crate) bytes: u64,
}

/// The edge with its brokers, and its tenants.
pub(crate) struct Field {
    pub(crate) edge: Edge,
    tenants: Tenants,
    brokers: [Agents; 2],
    _api: KubernetesApi,
}

impl Field {
    /// With agents at either broker. Which one an agent has depends on the brokers' ports; now and then all have the same.
    pub(crate) async fn begin(more: &'static str) -> Self {
        loop {
            let field = Self::drawn(more).await;
            let agents = || field.brokers.each_ref().map(|broker| tokens(broker).len());
            until("all agents have called", async || {
                (agents().iter().sum::<usize>() >= tenants::TENANTS).then_some(())
            })
            .await;
            if agents().iter().all(|agents| *agents > 0) {
                return field;
            }
        }
    }

    async fn drawn(more: &'static str) -> Self {
        let brokers = [Agents::start().await, Agents::start().await];
        let api = KubernetesApi::start().await;
        let agents = brokers.iter().map(|broker| broker.address).collect();
        let edge = Edge::start_quietly(Setup { agents, kubernetes_api: vec![api.address], more }).await;
        edge.probe("/readiness", 200).await;
        let tenants = Tenants::begin(&edge).await;
        Self { edge, tenants, brokers, _api: api }
    }

    /// Gives the edge a processor of its own, and everybody else the others, if there is more than one: else a busy edge
    /// would delay its callers by taking their processor, and that is not what is measured. Whether it was done.
    pub(crate) fn keep_apart(&self) -> bool {
        let all = sched_getaffinity(None).unwrap();
        let mut processors = (0..CpuSet::MAX_CPU).filter(|processor| all.is_set(*processor));
        let (mut edge, mut others) = (CpuSet::new(), CpuSet::new());
        let Some(first) = processors.next() else { return false };
        edge.set(first);
        processors.for_each(|processor| others.set(processor));
        if others.count() == 0 {
            return false;
        }
        for (process, set) in [(self.edge.id(), edge), (std::process::id(), others)] {
            for thread in std::fs::read_dir(format!("/proc/{process}/task")).unwrap() {
                let id = thread.unwrap().file_name().to_str().unwrap().parse().unwrap();
                // A thread may have ended meanwhile.
                let _ = sched_setaffinity(Pid::from_raw(id), &set);
            }
        }
        true
    }

    /// Measures the tenants of one broker while the other one answers nothing any more, and those of that one as well.
    pub(crate) async fn lose_a_broker(&self, each: Duration) -> [Outcome; 2] {
        let before = self.edge.resident();
        let [lost, _] = &self.brokers;
        lost.seen.lock().unwrap().clear();
        self.tenants.take_all();
        tokio::time::sleep(each).await;
        let quiet = self.tenants.take_all();
        let tokens = tokens(lost);
        let theirs = |tenant: usize| tokens.contains(&tenants::name(tenant));
        lost.hang();
        tokio::time::sleep(each).await;
        let under = self.tenants.take_all();
        let peak = self.edge.resident();
        let outcome = |name, of: &dyn Fn(usize) -> bool| Outcome {
            name,
            quiet: Waits::of(&quiet, of),
            under: Waits::of(&under, of),
            before,
            peak: peak.max(before),
            connections: 0,
            bytes: 0,
        };
        [
            outcome("a dead broker, agents of others", &|tenant| !theirs(tenant)),
            outcome("a dead broker, its own agents", &theirs),
        ]
    }

    /// Measures the tenants for `each`, alone and beside the attack, so many times in turn: what else the machine does
    /// meanwhile shall concern both alike.
    pub(crate) async fn suffer(
        &self,
        attack: &'static Attack,
        from: From,
        each: Duration,
        times: usize,
    ) -> Outcome {
        let before = self.edge.resident();
        let ground = Ground::new(self.edge.plain, self.edge.tls, &self.edge.ca.pem(), from);
        let (mut quiet, mut under, mut peak) = (Vec::new(), Vec::new(), before);
        for _ in 0..times {
            // What the last attack left behind is not the quiet.
            tokio::time::sleep(each / 8).await;
            self.tenants.take_all();
            tokio::time::sleep(each).await;
            quiet.extend(self.tenants.take_all());
            let strangers = strangers(attack, ground.clone());
            let mut every = tokio::time::interval(Duration::from_millis(50));
            let attacked = || {
                let (connections, bytes) = ground.counts();
                connections > 0 && (bytes > 0 || attack.name.contains("nothing"))
            };
            let watched = async {
                let begin = Instant::now();
                // On a busy machine the strangers' turn may come later.
                while begin.elapsed() < each || !attacked() && begin.elapsed() < STRANGERS_COME {
                    every.tick().await;
                    peak = peak.max(self.edge.resident());
                }
            };
            watched.await;
            under.extend(self.tenants.take_all());
            drop(strangers);
        }
        let (quiet, under) = (Waits::of(&quiet, &|_| true), Waits::of(&under, &|_| true));
        let (connections, bytes) = ground.counts();
        Outcome { name: attack.name, quiet, under, before, peak, connections, bytes }
    }
}

/// Of the agents that have called this broker.
fn tokens(broker: &Agents) -> HashSet<String> {
    let seen = broker.seen.lock().unwrap();
    let token = |request: &http::Request<()>| {
        request.headers().get("authorization")?.to_str().ok().map(str::to_owned)
    };
    seen.iter().filter_map(token).collect()
}

/// A thread of the strangers' own, the least important one of the machine: what is measured is the edge, not who gets
/// the processor on a small machine. They end when this is dropped.
fn strangers(attack: &'static Attack, ground: Ground) -> tokio::sync::oneshot::Sender<()> {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let lowered = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 19);
        lowered.expect("a thread may lower its own priority");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            tokio::select! {
                () = attack.run(ground) => {}
                _ = ended => {}
            }
        });
    });
    end
}

impl Outcome {
    pub(crate) const HEAD: &'static str = "attack                                | conns made |  MB sent | KiB before |   growth | p99 quiet |  p99 under | ratio |  max under | failed";

    pub(crate) fn ratio(&self) -> f64 {
        self.under.p99.as_secs_f64() / self.quiet.p99.as_secs_f64()
    }

    pub(crate) fn growth(&self) -> u64 {
        self.peak - self.before
    }

    pub(crate) fn row(&self) -> String {
        let millis = |time: Duration| format!("{:.2} ms", time.as_secs_f64() * 1000.0);
        format!(
            "{:37} | {:10} | {:8.1} | {:10} | {:8} | {:>9} | {:>10} | {:5.2} | {:>10} | {} of {}",
            self.name,
            self.connections,
            self.bytes as f64 / 1e6,
            self.before,
            self.growth(),
            millis(self.quiet.p99),
            millis(self.under.p99),
            self.ratio(),
            millis(self.under.max),
            self.under.failed,
            self.under.calls
        )
    }
}

/// Deadlines that a short test sees pass.
pub(crate) const SHORT: &str = "timeouts: {head: 1s, handshake: 1s}\nworkers: 1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_stranger_takes_memory_or_fails_the_calls_of_others() {
    let field = Field::begin(SHORT).await;
    println!("{}", Outcome::HEAD);
    for (attack, last) in kinds::ATTACKS.iter().zip(1..) {
        let outcome = field.suffer(attack, From::One(last), Duration::from_millis(1500), 1).await;
        println!("{}", outcome.row());
        let name = outcome.name;
        assert!(
            outcome.connections > 0 && outcome.bytes > 0 || name.contains("nothing"),
            "{name}: no attack"
        );
        assert!(outcome.under.calls > 0, "{name}: nobody was served");
        assert_eq!(outcome.under.failed, 0, "{name}: calls of others failed");
        assert!(outcome.growth() <= attack.memory, "{name}: took {} KiB", outcome.growth());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_hangs_costs_the_agents_of_others_nothing() {
    let field = Field::begin("workers: 1").await;
    println!("{}", Outcome::HEAD);
    let [others, own] = field.lose_a_broker(Duration::from_secs(2)).await;
    println!("{}\n{}", others.row(), own.row());
    assert!(others.under.calls > 0 && own.quiet.calls > 0, "all agents are at one broker");
    assert_eq!(others.under.failed, 0, "calls of others failed");
}
