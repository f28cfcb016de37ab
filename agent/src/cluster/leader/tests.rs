//! Candidates against one Lease in memory, in paused time: who leads when, and that two never do.

use super::*;
use http::StatusCode;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;
use std::{
    future::pending,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};
use tokio::{
    task::JoinHandle,
    time::{advance, sleep},
};

/// What the API server keeps.
#[derive(Clone, Default)]
struct Server(Arc<Mutex<Option<Value>>>);

/// One replica's way to it.
#[derive(Clone)]
struct Way {
    server: Server,
    trouble: Arc<Trouble>,
}

#[derive(Default)]
struct Trouble {
    /// Requests never arrive.
    cut: AtomicBool,
    /// Requests arrive, answers do not.
    deaf: AtomicBool,
    forbidden: AtomicBool,
    /// Milliseconds that requests take to the server, and answers back.
    slow: AtomicU64,
    requests: AtomicU64,
}

fn refused(code: u16) -> ClusterError {
    ClusterError::refused("x Lease", StatusCode::from_u16(code).unwrap(), b"{}", false)
}

impl Way {
    async fn exchange<T: Send>(
        &self,
        serve: impl FnOnce(&mut Option<Value>) -> Result<T, ClusterError> + Send,
    ) -> Result<T, ClusterError> {
        let Trouble { cut, deaf, forbidden, slow, requests } = &*self.trouble;
        requests.fetch_add(1, Ordering::Relaxed);
        let half = Duration::from_millis(slow.load(Ordering::Relaxed));
        sleep(half).await;
        if cut.load(Ordering::Relaxed) {
            return pending().await;
        }
        if forbidden.load(Ordering::Relaxed) {
            return Err(refused(403));
        }
        let answer = serve(&mut self.server.0.lock().unwrap());
        sleep(half).await;
        if deaf.load(Ordering::Relaxed) {
            return pending().await;
        }
        answer
    }
}

impl Lock for Way {
    async fn read(&self) -> Result<Option<Value>, ClusterError> {
        self.exchange(|lease| Ok(lease.clone())).await
    }

    async fn create(&self, mut new: Value) -> Result<Value, ClusterError> {
        let create = |lease: &mut Option<Value>| {
            if lease.is_some() {
                return Err(refused(409));
            }
            new["metadata"]["resourceVersion"] = json!("1");
            Ok(lease.insert(new).clone())
        };
        self.exchange(create).await
    }

    async fn replace(&self, mut new: Value) -> Result<Value, ClusterError> {
        let replace = |lease: &mut Option<Value>| {
            let Some(old) = lease else { return Err(refused(404)) };
            let version = &old["metadata"]["resourceVersion"];
            if new["metadata"]["resourceVersion"] != *version {
                return Err(refused(409));
            }
            let next = version.as_str().unwrap().parse::<u64>().unwrap() + 1;
            new["metadata"]["resourceVersion"] = json!(next.to_string());
            *old = new;
            Ok(old.clone())
        };
        self.exchange(replace).await
    }
}

impl Server {
    fn spec(&self) -> Value {
        self.0.lock().unwrap().as_ref().map(|lease| lease["spec"].clone()).unwrap_or_default()
    }

    fn replica(&self, identity: &str) -> Replica {
        let trouble = Arc::new(Trouble::default());
        let way = Way { server: self.clone(), trouble: trouble.clone() };
        let term = Term::default();
        let lease = "ns/agent-1-lock".to_owned();
        let leader = Leader::of(way, watch::Sender::new(false), term.clone(), lease, identity);
        let (leads, stop) = (leader.leads(), CancellationToken::new());
        Replica { leads, term, trouble, stop: stop.clone(), task: tokio::spawn(leader.run(stop)) }
    }
}

struct Replica {
    leads: watch::Receiver<bool>,
    term: Term,
    trouble: Arc<Trouble>,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Replica {
    fn leading(&self) -> bool {
        *self.leads.borrow()
    }

    /// How long it took until it led, or led no more.
    async fn until(&mut self, leading: bool) -> Duration {
        let began = Instant::now();
        let turn = self.leads.wait_for(|now| *now == leading);
        timeout(Duration::from_secs(120), turn).await.expect("in time").expect("the replica runs");
        began.elapsed()
    }

    async fn stopped(self) -> Duration {
        let began = Instant::now();
        self.stop.cancel();
        drop(self.leads);
        self.task.await.expect("no panic");
        began.elapsed()
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_leads_and_the_second_waits() {
    let server = Server::default();
    let mut one = server.replica("one");
    one.until(true).await;
    let two = server.replica("two");
    for _ in 0..300 {
        advance(Duration::from_secs(1)).await;
        sleep(Duration::from_millis(1)).await;
        assert!(one.leading() && !two.leading());
    }
    let spec = server.spec();
    assert_eq!((&spec["holderIdentity"], &spec["leaseTransitions"]), (&json!("one"), &json!(0)), "{spec}");
    assert_eq!(spec["leaseDurationSeconds"], 15);
    // Renewed by one request each time, every two seconds.
    let requests = one.trouble.requests.load(Ordering::Relaxed);
    assert!((140..=155).contains(&requests), "{requests} in 300 s");
}

#[tokio::test(start_paused = true)]
async fn who_stops_gives_the_lease_back_and_another_takes_over_at_once() {
    let server = Server::default();
    let mut one = server.replica("one");
    one.until(true).await;
    let mut two = server.replica("two");
    sleep(Duration::from_secs(20)).await;
    assert!(one.stopped().await < Duration::from_millis(100));
    assert_eq!(server.spec()["holderIdentity"], "");
    let took = two.until(true).await;
    assert!(took <= Duration::from_secs(3), "{took:?}");
    assert_eq!(server.spec()["leaseTransitions"], 1);
}

#[tokio::test(start_paused = true)]
async fn who_is_cut_off_stops_before_another_begins() {
    let server = Server::default();
    let mut one = server.replica("one");
    one.until(true).await;
    let mut two = server.replica("two");
    sleep(Duration::from_secs(30)).await;
    one.trouble.cut.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let lost = one.until(false).await;
    assert!((8..=10).contains(&lost.as_secs()), "{lost:?}");
    assert!(!two.leading());
    two.until(true).await;
    let gap = began.elapsed() - lost;
    assert!(gap >= Duration::from_secs(4), "only {gap:?} between them");
    // Back again, it finds that another leads.
    one.trouble.cut.store(false, Ordering::Relaxed);
    sleep(Duration::from_secs(60)).await;
    assert!(!one.leading() && two.leading());
}

#[tokio::test(start_paused = true)]
async fn who_hears_no_answers_does_not_lead_although_its_renewals_arrive() {
    let server = Server::default();
    let mut one = server.replica("one");
    one.until(true).await;
    one.trouble.deaf.store(true, Ordering::Relaxed);
    let lost = one.until(false).await;
    assert!(lost <= Duration::from_secs(10), "{lost:?}");
    one.trouble.deaf.store(false, Ordering::Relaxed);
    // The Lease is its own by the name in it, whatever version it is by now.
    one.until(true).await;
}

#[tokio::test(start_paused = true)]
async fn answers_slower_than_the_renewal_allows_do_not_make_a_leader() {
    let server = Server::default();
    let slow = server.replica("slow");
    slow.trouble.slow.store(6_000, Ordering::Relaxed);
    for _ in 0..100 {
        sleep(Duration::from_secs(1)).await;
        assert!(!slow.leading());
    }
}

#[tokio::test(start_paused = true)]
async fn times_in_the_lease_are_not_believed() {
    for stamp in ["1970-01-01T00:00:00.000000Z", "2999-01-01T00:00:00.000000Z"] {
        let server = Server::default();
        let lease = json!({
            "metadata": {"resourceVersion": "7"},
            "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 15, "renewTime": stamp, "leaseTransitions": 4},
        });
        *server.0.lock().unwrap() = Some(lease);
        let mut one = server.replica("one");
        let took = one.until(true).await;
        assert!((15..=18).contains(&took.as_secs()), "{stamp}: {took:?}");
        assert_eq!(server.spec()["leaseTransitions"], 5);
    }
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_needs_longer_is_given_longer() {
    let server = Server::default();
    let lease = json!({
        "metadata": {"resourceVersion": "7"},
        "spec": {"holderIdentity": "other", "leaseDurationSeconds": 60},
    });
    *server.0.lock().unwrap() = Some(lease);
    let took = server.replica("one").until(true).await;
    assert!((60..=63).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_the_right_to_leases_nobody_leads_and_few_ask() {
    let server = Server::default();
    let mut one = server.replica("one");
    one.trouble.forbidden.store(true, Ordering::Relaxed);
    sleep(Duration::from_secs(300)).await;
    assert!(!one.leading());
    let requests = one.trouble.requests.load(Ordering::Relaxed);
    assert!(requests <= 12, "{requests}");
    one.trouble.forbidden.store(false, Ordering::Relaxed);
    assert!(one.until(true).await <= Duration::from_secs(31));
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_somebody_deletes_or_edits_is_made_anew() {
    let server = Server::default();
    let mut one = server.replica("one");
    one.until(true).await;
    let two = server.replica("two");
    sleep(Duration::from_secs(5)).await;
    {
        let mut lease = server.0.lock().unwrap();
        let lease = lease.as_mut().unwrap();
        lease["metadata"]["labels"] = json!({"by": "hand"});
        lease["metadata"]["resourceVersion"] = json!("700");
    }
    for _ in 0..20 {
        sleep(Duration::from_secs(1)).await;
        assert!(one.leading() && !two.leading());
    }
    *server.0.lock().unwrap() = None;
    let either = async {
        while server.spec()["holderIdentity"].is_null() {
            sleep(Duration::from_millis(100)).await;
        }
    };
    timeout(Duration::from_secs(10), either).await.expect("somebody makes it");
    sleep(Duration::from_secs(30)).await;
    assert!(one.leading() ^ two.leading());
}

/// Looks ten times a second, while replicas are cut off, deaf, slow, stopped and replaced at random.
#[tokio::test(start_paused = true)]
async fn at_no_time_do_two_lead_whatever_the_network_does() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let server = Server::default();
        let mut replicas: Vec<Replica> = (0..3).map(|n| server.replica(&format!("replica-{n}"))).collect();
        let (mut led, mut born) = (0, replicas.len());
        for _ in 0..180 {
            let which = rng.random_range(0..replicas.len());
            let trouble = &replicas[which].trouble;
            match rng.random_range(0..8) {
                0 => trouble.cut.store(true, Ordering::Relaxed),
                1 => trouble.deaf.store(true, Ordering::Relaxed),
                2 => trouble.slow.store(rng.random_range(0..7_000), Ordering::Relaxed),
                3 => {
                    replicas.swap_remove(which).stopped().await;
                    replicas.push(server.replica(&format!("replica-{born}")));
                    born += 1;
                }
                _ => {
                    trouble.cut.store(false, Ordering::Relaxed);
                    trouble.deaf.store(false, Ordering::Relaxed);
                    trouble.slow.store(rng.random_range(0..50), Ordering::Relaxed);
                }
            }
            for _ in 0..rng.random_range(1..200) {
                sleep(Duration::from_millis(100)).await;
                let leading = replicas.iter().filter(|replica| replica.leading()).count();
                assert!(leading <= 1, "{leading} lead, seed {seed}");
                led += leading;
            }
        }
        assert!(led > 2_500, "somebody leads most of the time: {led}, seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_term_is_over_when_the_process_stood_still_though_nobody_has_been_told() {
    let server = Server::default();
    let mut replica = server.replica("one");
    let allows = |replica: &Replica| replica.term.allows(|| "apply it".to_owned()).is_ok();
    assert!(!allows(&replica));
    replica.until(true).await;
    assert!(allows(&replica));
    sleep(Duration::from_secs(60)).await;
    assert!(allows(&replica), "it is renewed");
    replica.trouble.cut.store(true, Ordering::Relaxed);
    advance(Duration::from_secs(20)).await;
    assert!(!allows(&replica));
    replica.trouble.cut.store(false, Ordering::Relaxed);
    replica.until(false).await;
    replica.until(true).await;
    assert!(allows(&replica), "it leads once more");
    replica.stopped().await;
}
