//! One agent's route as a story: news and answers come in, time passes, searches ask.

use super::*;
use std::time::SystemTime;

const TTL: Duration = Duration::from_secs(300);

struct Story {
    route: Route,
    start: Instant,
    number: u64,
    epoch: u64,
    is_listening: bool,
    is_young: bool,
}

impl Story {
    fn new() -> Self {
        Self {
            route: Route::default(),
            start: Instant::now(),
            number: 0,
            epoch: 1,
            is_listening: true,
            is_young: false,
        }
    }

    /// After so many milliseconds.
    fn view(&self, at: u64) -> View {
        let Self { epoch, is_listening, is_young, .. } = *self;
        View { now: self.start + Duration::from_millis(at), epoch, is_listening, is_young }
    }

    /// What a search is told at once, and whether Redis is to be asked behind it.
    fn all(&mut self, told: &mut Told, at: u64) -> (Vec<Found>, bool) {
        let (mut all, mut look) = (Vec::new(), false);
        loop {
            let step = self.route.step(told, self.view(at), PATIENCE, false);
            look |= step.look;
            match step.tell {
                Some(found) => all.push(found),
                None => return (all, look),
            }
        }
    }

    fn begun(&mut self) -> Begun {
        self.number += 1;
        Begun { number: self.number, epoch: self.epoch }
    }

    /// Redis lists these, each for so many milliseconds more.
    fn answered(&mut self, begun: Begun, at: u64, listed: &[(u16, u64)]) {
        let now = self.view(at).now;
        let listed = listed.iter().map(|(port, left)| (peer(*port), now + Duration::from_millis(*left)));
        let number = &mut self.number;
        self.route.answered(listed.collect(), None, begun, (TTL, now), || {
            *number += 1;
            *number
        });
    }

    fn came(&mut self, port: u16, at: u64) {
        self.number += 1;
        self.route.came(peer(port), self.number, (TTL, self.view(at).now));
    }

    fn left(&mut self, port: u16, at: u64) {
        self.number += 1;
        self.route.left(peer(port), self.number, self.view(at).now);
    }

    fn forget(&mut self, port: u16, at: u64) {
        self.route.forget(&peer(port), self.view(at).now);
    }

    fn fails(&mut self, at: u64) {
        let now = self.view(at).now;
        let number = &mut self.number;
        self.route.failed(now, || {
            *number += 1;
            *number
        });
    }
}

fn peer(port: u16) -> PeerUrl {
    PeerUrl::Tcp { host: "broker".into(), port, tls: false }
}

fn at(port: u16) -> Found {
    Found::Peer(peer(port))
}

const NOBODY: Found = Found::Nobody { last: None };

#[tokio::test]
async fn redis_is_asked_once_and_then_the_cache_knows_until_the_entry_ends() {
    let mut story = Story::new();
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, 0), (vec![], true));
    assert_eq!(story.all(&mut Told::default(), 0), (vec![], false), "it is being asked");
    let begun = story.begun();
    story.answered(begun, 1, &[(1, 100_000)]);
    assert_eq!(story.all(&mut told, 1), (vec![at(1)], false));
    for then in [2, 900, 99_000] {
        assert_eq!(story.all(&mut Told::default(), then), (vec![at(1)], false));
    }
    assert_eq!(story.all(&mut Told::default(), 100_002), (vec![], true));
}

#[tokio::test]
async fn an_empty_answer_is_nobody_once_and_good_for_a_moment() {
    let mut story = Story::new();
    let mut told = Told::default();
    story.all(&mut told, 0);
    let begun = story.begun();
    let last = LastSeen {
        at: SystemTime::UNIX_EPOCH,
        from: "192.0.2.1".into(),
        broker: "grpc://broker:1".into(),
        refusal: None,
    };
    let now = story.start;
    story.route.answered(vec![], Some(last.clone()), begun, (TTL, now), || 9);
    assert_eq!(story.all(&mut told, 1), (vec![Found::Nobody { last: Some(last.clone()) }], false));
    assert_eq!(story.all(&mut told, 2), (vec![], false));
    assert_eq!(story.all(&mut Told::default(), 500), (vec![Found::Nobody { last: Some(last) }], false));
    assert_eq!(story.all(&mut Told::default(), 900), (vec![], true), "asked again");
    story.number = 10;
    story.came(1, 950);
    assert_eq!(story.all(&mut told, 950), (vec![at(1)], false));
}

#[tokio::test]
async fn what_was_heard_while_redis_was_asked_is_newer_than_its_answer() {
    let mut story = Story::new();
    let mut told = Told::default();
    story.all(&mut told, 0);
    let begun = story.begun();
    story.came(1, 1);
    story.came(2, 1);
    story.left(2, 2);
    story.left(3, 2);
    story.answered(begun, 3, &[(2, 1000), (3, 1000), (4, 1000)]);
    let (mut found, _) = story.all(&mut told, 3);
    assert_eq!(found.remove(0), at(1), "where it came to lately");
    assert_eq!(found, [at(4)]);
}

#[tokio::test]
async fn after_a_gap_cached_routes_are_used_at_once_and_redis_is_asked_behind_them() {
    let mut story = Story::new();
    let begun = story.begun();
    story.answered(begun, 0, &[(1, 300_000)]);
    assert_eq!(story.all(&mut Told::default(), 900), (vec![at(1)], false));
    (story.epoch, story.is_listening) = (2, false);
    assert_eq!(story.all(&mut Told::default(), 920), (vec![at(1)], true));
    assert_eq!(story.all(&mut Told::default(), 920), (vec![at(1)], false), "by one of them");
    let begun = story.begun();
    story.answered(begun, 921, &[(2, 200_000)]);
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, 1500), (vec![at(2)], false), "the other is remembered only");
    assert_eq!(story.all(&mut Told::default(), 1800), (vec![at(2)], true), "nothing is heard");
    let begun = story.begun();
    story.answered(begun, 1801, &[]);
    assert_eq!(story.all(&mut Told::default(), 1801).0.len(), 3, "both as remembered, then nobody");
}

#[tokio::test]
async fn while_redis_is_away_what_is_remembered_is_named_before_unknown_and_unknown_once() {
    let mut story = Story::new();
    story.came(1, 0);
    story.came(2, 0);
    story.left(2, 1);
    let expired = 310_000;
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, expired), (vec![], true), "too old to be remembered");
    story.fails(expired + 1);
    assert_eq!(story.all(&mut told, expired + 1), (vec![Found::Unknown], false));
    assert_eq!(story.all(&mut told, expired + 300), (vec![], true), "tried again");
    story.fails(expired + 301);

    let mut story = Story::new();
    let begun = story.begun();
    story.answered(begun, 0, &[(1, 1000), (2, 1000)]);
    story.left(2, 1);
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, 2000), (vec![], true));
    story.fails(2001);
    assert_eq!(story.all(&mut told, 2001), (vec![at(1), Found::Unknown], false));
    assert_eq!(
        story.all(&mut Told::default(), 2002),
        (vec![at(1), Found::Unknown], false),
        "without waiting"
    );
    story.all(&mut told, 3000);
    let begun = story.begun();
    story.answered(begun, 3001, &[]);
    assert_eq!(story.all(&mut told, 3001), (vec![NOBODY], false), "redis is back");
}

#[tokio::test]
async fn a_slow_redis_is_not_waited_for_longer_than_a_tenth_of_a_second() {
    let mut story = Story::new();
    let mut told = Told::default();
    let step = story.route.step(&mut told, story.view(0), PATIENCE, false);
    assert!(step.look && step.tell.is_none());
    assert_eq!(step.until, Some(story.start + PATIENCE));
    assert_eq!(story.all(&mut told, 100), (vec![Found::Unknown], false));
    let begun = story.begun();
    story.answered(begun, 400, &[(1, 1000)]);
    assert_eq!(story.all(&mut told, 400), (vec![at(1)], false));
}

#[tokio::test]
async fn a_redis_that_was_only_just_connected_may_be_empty() {
    let mut story = Story::new();
    story.came(1, 0);
    (story.epoch, story.is_young) = (2, true);
    story.all(&mut Told::default(), 1);
    let begun = story.begun();
    story.answered(begun, 2, &[]);
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, 2), (vec![at(1), Found::Unknown], false));
    story.is_young = false;
    assert_eq!(story.all(&mut told, 900), (vec![], true));
    story.answered(begun, 901, &[]);
    assert_eq!(story.all(&mut told, 901), (vec![NOBODY], false));
}

#[tokio::test]
async fn a_broker_that_is_given_up_is_named_last_until_it_is_announced_or_rested() {
    let mut story = Story::new();
    let begun = story.begun();
    story.answered(begun, 0, &[(1, 300_000), (2, 300_000)]);
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, 1).0.len(), 2);
    story.forget(1, 2);
    assert_eq!(story.all(&mut told, 3), (vec![], false));
    assert_eq!(story.all(&mut Told::default(), 3), (vec![at(2)], false));
    story.forget(2, 4);
    // A request of another caller has nothing better.
    let (found, look) = story.all(&mut Told::default(), 5);
    assert_eq!((found.len(), look), (3, false));
    assert_eq!(story.all(&mut told, 700), (vec![NOBODY], false));
    story.came(1, 701);
    assert_eq!(story.all(&mut told, 701), (vec![at(1)], false));
    story.left(1, 702);
    assert!(story.all(&mut told, 1200).1);
    let begun = story.begun();
    story.answered(begun, 1201, &[(2, 300_000)]);
    assert_eq!(story.all(&mut told, 1201), (vec![at(2)], false), "redis still has it");
    story.forget(2, 1202);
    assert!(story.all(&mut told, 2500).1);
    story.answered(begun, 2501, &[(2, 300_000)]);
    assert_eq!(story.all(&mut told, 2501), (vec![], false), "twice as long");
}

#[tokio::test]
async fn it_holds_a_bounded_number_of_brokers() {
    let mut story = Story::new();
    let begun = story.begun();
    let many: Vec<_> = (1..=1000).map(|port| (port, 1000)).collect();
    story.answered(begun, 0, &many);
    for port in 1001..2000 {
        story.came(port, 1);
    }
    assert_eq!(story.route.known.len(), BROKERS_MAX);
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, 2).0.len(), BROKERS_MAX);
    for port in 2000..3000 {
        story.came(port, 3);
        story.all(&mut told, 3);
    }
    assert!(told.peers.len() <= BROKERS_MAX);
}

#[tokio::test]
async fn an_announcement_is_used_at_once_and_redis_is_asked_for_the_others_behind_it() {
    let mut story = Story::new();
    story.came(1, 0);
    assert_eq!(story.all(&mut Told::default(), 1), (vec![at(1)], true));
    let begun = story.begun();
    story.answered(begun, 2, &[(1, 300_000), (2, 10_000)]);
    let mut told = Told::default();
    assert_eq!(story.all(&mut told, 9000), (vec![at(1), at(2)], false));
    assert_eq!(story.all(&mut told, 10_003), (vec![], true), "one may have been refreshed");
}

#[tokio::test]
async fn when_the_last_broker_says_that_it_left_redis_is_asked_where_the_agent_was() {
    let mut story = Story::new();
    let mut told = Told::default();
    story.all(&mut told, 0);
    let begun = story.begun();
    story.left(1, 1);
    story.answered(begun, 2, &[(1, 1000)]);
    assert_eq!(story.all(&mut told, 3), (vec![], true), "the answer was too old");
    let begun = story.begun();
    story.answered(begun, 4, &[(1, 1000), (2, 1000)]);
    assert_eq!(story.all(&mut told, 5).0.len(), 2);
    story.left(1, 6);
    assert_eq!(story.all(&mut told, 6), (vec![], false));
    story.left(2, 7);
    assert_eq!(story.all(&mut told, 7), (vec![], true));
}

#[tokio::test]
async fn an_agent_is_elsewhere_where_it_came_to_since_then_or_where_a_broker_lives() {
    let mut story = Story::new();
    let begun = story.begun();
    story.answered(begun, 0, &[(1, 300_000)]);
    story.came(2, 10);
    let is_elsewhere = |story: &Story, since: Option<u64>, alive: &[u16]| {
        let since = since.map(|at| story.view(at).now);
        let is_alive = |broker: &PeerUrl| alive.iter().any(|port| *broker == peer(*port));
        story.route.is_elsewhere(story.view(20).now, since, is_alive)
    };
    for (since, alive, wanted) in [
        (None, [].as_slice(), false),
        (Some(11), &[], false),
        (Some(11), &[3], false),
        (Some(10), &[], true),
        (None, &[1], true),
        (Some(11), &[2], true),
    ] {
        assert_eq!(is_elsewhere(&story, since, alive), wanted, "{since:?} {alive:?}");
    }
    story.forget(1, 12);
    assert!(!is_elsewhere(&story, None, &[1]), "it was given up");
    story.left(2, 13);
    assert!(!is_elsewhere(&story, Some(10), &[1, 2]));
}
