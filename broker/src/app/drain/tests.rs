//! The order of a drain, with guards in place of streams and requests; time stands still unless everybody waits.

use super::*;
use crate::drain::{Stay, tests::Peers};
use postern_wire::ids::AgentId;
use std::sync::{Mutex, atomic::Ordering};
use tokio::task::JoinHandle;

const AGENT: AgentId = AgentId(7);
const GRACE: Duration = Duration::from_secs(25);
const LISTEN_GRACE: Duration = Duration::from_secs(2);

/// What happened when, after the beginning.
#[derive(Clone, Default)]
struct Diary(Arc<Mutex<Vec<(&'static str, Duration)>>>);

impl Diary {
    fn note(&self, what: &'static str, begin: Instant) {
        self.0.lock().unwrap().push((what, begin.elapsed()));
    }

    fn order(&self) -> Vec<&'static str> {
        self.0.lock().unwrap().iter().map(|(what, _)| *what).collect()
    }

    fn at(&self, what: &str) -> Duration {
        let found = self.0.lock().unwrap().iter().find(|(name, _)| *name == what).copied();
        found.unwrap_or_else(|| panic!("{what} never happened: {:?}", self.0)).1
    }
}

struct Stage {
    begin: Instant,
    diary: Diary,
    departures: Departures,
    running: crate::drain::Running,
    drained: JoinHandle<Drained>,
}

fn stage(others: Option<Arc<dyn Others>>, prepare: impl FnOnce(&Drain, &Diary, Instant)) -> Stage {
    let (begin, diary) = (Instant::now(), Diary::default());
    let drain = Drain {
        readiness: Readiness::default(),
        registry: Arc::default(),
        departures: Departures::default(),
        others,
        stop: Stops::default(),
        tasks: Tasks::default(),
        listen_grace: LISTEN_GRACE,
        shutdown_grace: GRACE,
    };
    let Stops { accepting, moving, gateway, streams, background } = &drain.stop;
    let names = ["accepting", "moving", "gateway", "streams", "background"];
    for (name, token) in names.into_iter().zip([accepting, moving, gateway, streams, background]) {
        let (diary, token) = (diary.clone(), token.clone());
        tokio::spawn(async move {
            token.cancelled().await;
            diary.note(name, begin);
        });
    }
    prepare(&drain, &diary, begin);
    let (departures, running) = (drain.departures.clone(), drain.tasks.requests.clone());
    let drained = tokio::spawn(async move {
        let drained = drain.run().await;
        // For those who note what was fired last.
        sleep(Duration::from_millis(1)).await;
        drained
    });
    Stage { begin, diary, departures, running, drained }
}

/// An idle tunnel that notes its end.
fn tunnel(stay: Stay, diary: &Diary, begin: Instant, name: &'static str) {
    let diary = diary.clone();
    tokio::spawn(async move {
        stay.tunnel_over().await;
        diary.note(name, begin);
    });
}

#[tokio::test(start_paused = true)]
async fn an_idle_broker_is_gone_within_a_second_of_its_listen_grace() {
    let stage = stage(None, |_, _, _| {});
    assert_eq!(stage.drained.await.unwrap(), Drained::Clean);
    assert!(stage.begin.elapsed() < LISTEN_GRACE + Duration::from_secs(1), "{:?}", stage.begin.elapsed());
    assert_eq!(stage.diary.at("accepting").as_secs(), LISTEN_GRACE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn with_others_agents_move_while_requests_run() {
    let peers = Peers::new();
    let request = Arc::new(Mutex::new(None));
    let stage = stage(Some(Arc::clone(&peers) as _), |drain, diary, begin| {
        *request.lock().unwrap() = Some(drain.tasks.requests.enter());
        tunnel(drain.departures.stay(AGENT), diary, begin, "a tunnel goes");
        tunnel(drain.departures.stay(AGENT), diary, begin, "a tunnel goes");
    });
    tokio::time::sleep(LISTEN_GRACE + Duration::from_secs(1)).await;
    assert_eq!(stage.diary.order(), ["accepting", "moving", "a tunnel goes"]);
    // A tunnel that came meanwhile, from an agent that has not heard yet.
    tunnel(stage.departures.stay(AgentId(8)), &stage.diary, stage.begin, "a late one goes");
    peers.announce(AGENT);
    tokio::time::sleep(Duration::from_secs(10)).await;
    let expected = ["accepting", "moving", "a tunnel goes", "a late one goes", "a tunnel goes"];
    let mut order = stage.diary.order();
    order[3..].sort_unstable();
    let mut sorted = expected;
    sorted[3..].sort_unstable();
    assert_eq!(order, sorted, "the gateway stays open for the request");
    assert!(!peers.left.load(Ordering::Relaxed) && !stage.drained.is_finished());
    request.lock().unwrap().take();
    assert_eq!(stage.drained.await.unwrap(), Drained::Clean);
    assert_eq!(stage.diary.order()[5..], ["gateway", "streams", "background"]);
    assert!(peers.left.load(Ordering::Relaxed));
}

#[tokio::test(start_paused = true)]
async fn with_nobody_else_agents_stay_until_no_request_runs() {
    let request = Arc::new(Mutex::new(None));
    let stage = stage(None, |drain, diary, begin| {
        *request.lock().unwrap() = Some(drain.tasks.requests.enter());
        tunnel(drain.departures.stay(AGENT), diary, begin, "a tunnel goes");
    });
    tokio::time::sleep(LISTEN_GRACE + Duration::from_secs(20)).await;
    assert_eq!(stage.diary.order(), ["accepting"]);
    request.lock().unwrap().take();
    assert_eq!(stage.drained.await.unwrap(), Drained::Clean);
    assert_eq!(
        stage.diary.order(),
        ["accepting", "moving", "a tunnel goes", "gateway", "streams", "background"]
    );
}

#[tokio::test(start_paused = true)]
async fn what_still_runs_at_the_deadline_is_cut_and_counted() {
    for others in [None, Some(Peers::new() as Arc<dyn Others>)] {
        let stage = stage(others, |drain, diary, begin| {
            let (request, diary) = (drain.tasks.requests.enter(), diary.clone());
            tokio::spawn(async move {
                request.cut().cancelled().await;
                diary.note("cut", begin);
            });
            // One that does not even hear of it.
            let deaf = drain.tasks.requests.enter();
            tokio::spawn(async move {
                std::future::pending::<()>().await;
                drop(deaf);
            });
        });
        assert_eq!(stage.drained.await.unwrap(), Drained::Cut(2));
        let cut = stage.diary.at("cut");
        assert!(
            (LISTEN_GRACE + GRACE..LISTEN_GRACE + GRACE + Duration::from_millis(5)).contains(&cut),
            "{cut:?}"
        );
        assert!(stage.begin.elapsed() < LISTEN_GRACE + GRACE + Duration::from_secs(5));
        drop(stage.running);
    }
}

#[tokio::test(start_paused = true)]
async fn callers_that_are_still_being_told_are_waited_for() {
    let stage = stage(None, |drain, diary, begin| {
        let (accepting, diary) = (drain.stop.accepting.clone(), diary.clone());
        let requests = drain.tasks.requests.clone();
        drain.tasks.doors.spawn(async move {
            accepting.cancelled().await;
            sleep(Duration::from_millis(900)).await;
            let late = requests.enter();
            tokio::spawn(async move {
                sleep(Duration::from_secs(3)).await;
                diary.note("a late request ends", begin);
                drop(late);
            });
        });
    });
    assert_eq!(stage.drained.await.unwrap(), Drained::Clean);
    assert_eq!(stage.diary.order()[..2], ["accepting", "a late request ends"]);
}
