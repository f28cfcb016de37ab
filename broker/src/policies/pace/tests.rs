//! Periods that change while waits are under way, on paused time.

use super::*;
use tokio::time::{advance, sleep, timeout};

fn seconds(seconds: u64) -> Pace {
    Pace { period: Duration::from_secs(seconds), jitter_percent: 20 }
}

fn agent(id: u64) -> Who {
    Who { agent_id: Some(id), project_id: Some(10), token_hash: [7; 32], version: None }
}

/// Periods by agent, 0 for everybody else.
#[derive(Clone)]
struct Field {
    paces: Arc<Mutex<HashMap<u64, Pace>>>,
    changes: watch::Sender<u64>,
}

impl Field {
    fn new(pace: Pace) -> Self {
        Self { paces: Arc::new(Mutex::new(HashMap::from([(0, pace)]))), changes: watch::Sender::new(1) }
    }

    fn pacing(&self) -> Pacing {
        let paces = Arc::clone(&self.paces);
        let judge = move |_, who: &Subject<'_>| {
            let paces = paces.lock().unwrap();
            let own = who.agent_id.and_then(|id| paces.get(&id));
            own.copied().unwrap_or_else(|| paces[&0])
        };
        Pacing::by(judge, self.changes.subscribe())
    }

    fn becomes(&self, agent: u64, pace: Pace) {
        self.paces.lock().unwrap().insert(agent, pace);
        self.changes.send_modify(|generation| *generation += 1);
    }

    /// The times of all looks of a loop, from now on.
    fn looks(&self, followers: &Arc<Followers>) -> Arc<Mutex<Vec<Instant>>> {
        let looks = Arc::new(Mutex::new(Vec::new()));
        let (mut rhythm, seen) = (followers.rhythm(), Arc::clone(&looks));
        tokio::spawn(async move {
            loop {
                seen.lock().unwrap().push(Instant::now());
                let mut wait = rhythm.wait();
                rhythm.over(&mut wait).await;
            }
        });
        looks
    }
}

fn since(looks: &Mutex<Vec<Instant>>, begin: Instant) -> Vec<Duration> {
    looks.lock().unwrap().iter().filter(|at| **at > begin).map(|at| *at - begin).collect()
}

#[tokio::test(start_paused = true)]
async fn waits_obey_another_period_at_once_shorter_or_longer() {
    let field = Field::new(seconds(20));
    let followers = Followers::new(field.pacing(), Followed::Configuration);
    let _agent = followers.enter(Followed::Configuration, agent(1));
    let looks = field.looks(&followers);
    sleep(Duration::from_secs(45)).await;
    let begin = Instant::now();
    field.becomes(0, seconds(1));
    sleep(Duration::from_secs(10)).await;
    let quick = since(&looks, begin);
    assert!(quick[0] <= Duration::from_secs(1), "{quick:?}");
    assert!((9..=14).contains(&quick.len()), "{quick:?}");
    let begin = Instant::now();
    field.becomes(0, seconds(300));
    sleep(Duration::from_secs(200)).await;
    assert!(since(&looks, begin).is_empty(), "it is put off at once");
    sleep(Duration::from_secs(101)).await;
    assert_eq!(since(&looks, begin).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_waits_that_are_over_do_not_end_in_one_moment() {
    let field = Field::new(seconds(3_600));
    let all: Vec<_> = (0..1_000)
        .map(|_| {
            let followers = Followers::new(field.pacing(), Followed::Configuration);
            (field.looks(&followers), followers)
        })
        .collect();
    sleep(Duration::from_secs(600)).await;
    let begin = Instant::now();
    field.becomes(0, seconds(1));
    sleep(Duration::from_millis(550)).await;
    let mut firsts: Vec<_> = all.iter().map(|(looks, _)| since(looks, begin)[0]).collect();
    firsts.sort_unstable();
    assert!(firsts[999] <= Duration::from_millis(501), "{:?}", firsts[999]);
    for tenth in 0..10 {
        let here = firsts.iter().filter(|at| at.as_millis() / 50 == tenth).count();
        assert!((50..=200).contains(&here), "{here} of 1000 in the part {tenth}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_shortest_period_of_those_present_holds() {
    let field = Field::new(seconds(60));
    field.becomes(2, Pace { jitter_percent: 0, ..seconds(5) });
    let followers = Followers::new(field.pacing(), Followed::Manifests);
    let _slow = followers.enter(Followed::Manifests, agent(1));
    let looks = field.looks(&followers);
    sleep(Duration::from_secs(20)).await;
    assert_eq!(looks.lock().unwrap().len(), 1);
    let quick = followers.enter(Followed::Manifests, agent(2));
    assert_eq!(followers.pace(), Pace { jitter_percent: 0, ..seconds(5) });
    let begin = Instant::now();
    sleep(Duration::from_secs(30)).await;
    assert!((5..=7).contains(&since(&looks, begin).len()));
    drop(quick);
    assert_eq!(followers.pace(), seconds(60));
    let begin = Instant::now();
    sleep(Duration::from_secs(40)).await;
    assert!(since(&looks, begin).is_empty());
    let (one, two) =
        (followers.enter(Followed::Manifests, agent(2)), followers.enter(Followed::Manifests, agent(2)));
    drop(one);
    assert_eq!(followers.pace().period, Duration::from_secs(5), "another one is still there");
    drop(two);
    field.becomes(1, seconds(7));
    advance(Duration::from_millis(1)).await;
    sleep(Duration::from_secs(1)).await;
    assert_eq!(followers.pace(), seconds(7));
}

#[tokio::test(start_paused = true)]
async fn a_change_that_is_not_about_this_period_moves_no_wait() {
    let field = Field::new(seconds(20));
    let followers = Followers::new(field.pacing(), Followed::Configuration);
    let looks = field.looks(&followers);
    for _ in 0..19 {
        sleep(Duration::from_secs(1)).await;
        field.becomes(9, seconds(1));
    }
    sleep(Duration::from_millis(1_100)).await;
    assert!(looks.lock().unwrap().len() >= 2);
}

#[tokio::test(start_paused = true)]
async fn edits_in_a_row_do_not_put_off_a_look_that_is_due() {
    let field = Field::new(seconds(3_600));
    let followers = Followers::new(field.pacing(), Followed::Configuration);
    let _agent = followers.enter(Followed::Configuration, agent(1));
    let looks = field.looks(&followers);
    sleep(Duration::from_secs(600)).await;
    let begin = Instant::now();
    for period in 1..=40 {
        field.becomes(0, seconds(period));
        sleep(Duration::from_millis(50)).await;
    }
    assert!(since(&looks, begin)[0] <= Duration::from_millis(600));
}

#[tokio::test(start_paused = true)]
async fn a_single_period_follows_its_own_agents_policy() {
    let field = Field::new(seconds(3_600));
    let (pacing, who) = (field.pacing(), agent(1));
    let mut period = std::pin::pin!(pacing.period(Followed::Manifests, &who));
    assert!(timeout(Duration::from_secs(60), &mut period).await.is_err());
    field.becomes(1, seconds(1));
    timeout(Duration::from_millis(501), &mut period).await.unwrap();
}
