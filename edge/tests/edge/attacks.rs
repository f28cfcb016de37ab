//! Strangers who mean harm, one way at a time, beside honest callers: the edge's memory stays within what its limits
//! admit, and nobody else's call fails. How long the others wait is printed here and judged by `make bench-attacks`.

pub(crate) mod ground;
pub(crate) mod kinds;
pub(crate) mod tenants;

use crate::harness::{Edge, Setup};
use crate::upstreams::{Agents, KubernetesApi};
use ground::Ground;
use kinds::{ATTACKS, Attack};
use std::time::Duration;
use tenants::{Tenants, Waits};

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
    _brokers: (Agents, KubernetesApi),
}

impl Field {
    pub(crate) async fn begin(more: &'static str) -> Self {
        let (agents, api) = (Agents::start().await, KubernetesApi::start().await);
        let setup = Setup { agents: vec![agents.address], kubernetes_api: vec![api.address], more };
        let edge = Edge::start_quietly(setup).await;
        let tenants = Tenants::begin(&edge).await;
        Self { edge, tenants, _brokers: (agents, api) }
    }

    /// Measures the tenants for `each`, once alone and once beside the attack.
    pub(crate) async fn suffer(&self, attack: &'static Attack, each: Duration) -> Outcome {
        let before = self.edge.resident();
        self.tenants.take();
        tokio::time::sleep(each).await;
        let quiet = self.tenants.take();
        let ground = Ground::new(self.edge.plain, self.edge.tls, &self.edge.ca.pem());
        let strangers = strangers(attack, ground.clone());
        let mut peak = before;
        let mut every = tokio::time::interval(Duration::from_millis(50));
        let watched = async {
            loop {
                every.tick().await;
                peak = peak.max(self.edge.resident());
            }
        };
        let _ = tokio::time::timeout(each, watched).await;
        let under = self.tenants.take();
        drop(strangers);
        let (connections, bytes) = ground.counts();
        Outcome { name: attack.name, quiet, under, before, peak, connections, bytes }
    }
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
    for attack in ATTACKS {
        let outcome = field.suffer(attack, Duration::from_millis(1500)).await;
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
