//! The arithmetic of shares against a counter that counts each call: random brokers, orders, failures and limits.

use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng};

/// What a command comes to: anything but the two others.
const GOOD: u32 = 2;
/// It is not sent, or nobody hears the answer.
const FAILS: u32 = 0;
/// It is sent and vanishes.
const VANISHES: u32 = 1;

/// A Redis, some brokers of one token, and the truth.
struct Fleet {
    redis: u64,
    brokers: Vec<Broker>,
    per_minute: u32,
    /// The largest advance of the limits there were.
    advance: u64,
    /// Of the last change of the limit.
    admitted_then: u64,
    admitted: u64,
    /// Calls admitted without Redis, and reports that may be lost.
    alone: u64,
    /// Leases that nobody knows of.
    stray: u64,
    changed: bool,
}

#[derive(Default)]
struct Broker {
    share: Share,
    asked: Option<Asked>,
}

enum Asked {
    Sent(Ask),
    Counted(Ask, u64),
}

impl Fleet {
    fn new(brokers: usize, per_minute: u32) -> Self {
        Self {
            redis: 0,
            brokers: (0..brokers).map(|_| Broker::default()).collect(),
            per_minute,
            advance: advance(per_minute),
            admitted_then: 0,
            admitted: 0,
            alone: 0,
            stray: 0,
            changed: false,
        }
    }

    /// What the documentation promises, at each moment.
    fn most(&self) -> u64 {
        let leeway = self.brokers.len() as u64 * self.advance;
        // After a change of the limit a broker that has not heard of what others admitted still has its advance.
        u64::from(self.per_minute).max(self.admitted_then) + leeway + self.alone
    }

    /// `false`: it was refused.
    fn call(&mut self, at: usize) -> bool {
        let broker = &mut self.brokers[at];
        match broker.share.take(self.per_minute, true) {
            Turn::Admitted => {
                self.admitted += 1;
                assert!(self.admitted <= self.most(), "{} of {}", self.admitted, self.most());
            }
            Turn::Refused => {
                self.check_refusal(at);
                return false;
            }
            Turn::Ask => {
                broker.share.waiting += 1;
                if broker.asked.is_none() {
                    broker.asked =
                        Some(Asked::Sent(broker.share.ask(self.per_minute, CancellationToken::new())));
                }
            }
        }
        true
    }

    /// Every other broker holds at most one advance of leases that are neither used nor waited for.
    fn check_refusal(&self, at: usize) {
        let others = self.brokers.len() as u64 - 1;
        let waiting: u64 = self.brokers.iter().map(|broker| broker.share.waiting).sum();
        let least = u64::from(self.per_minute).saturating_sub(others * self.advance + self.stray);
        assert!(
            self.changed || self.admitted + waiting >= least,
            "broker {at} refuses after {} and {waiting} that wait, of {least}",
            self.admitted
        );
    }

    /// The next thing that can happen to what this broker asked.
    fn advance(&mut self, at: usize, fate: u32) {
        let per_minute = self.per_minute;
        let broker = &mut self.brokers[at];
        match broker.asked.take() {
            None => return,
            Some(Asked::Sent(ask)) if fate == FAILS => broker.share.failed(ask, false),
            Some(Asked::Sent(ask)) if fate == VANISHES => {
                self.alone += ask.report;
                broker.share.failed(ask, true);
            }
            Some(Asked::Sent(ask)) => {
                self.redis += ask.sum();
                broker.asked = Some(Asked::Counted(ask, self.redis));
                return;
            }
            Some(Asked::Counted(ask, _)) if fate < GOOD => {
                self.stray += ask.batch;
                broker.share.failed(ask, true);
            }
            Some(Asked::Counted(ask, count)) => broker.share.answered(ask, count, per_minute),
        }
        let waiting = std::mem::take(&mut broker.share.waiting);
        for done in 0..waiting {
            let share = &mut self.brokers[at].share;
            // The others still wait.
            share.waiting += if done == 0 { waiting - 1 } else { 0 };
            if fate < GOOD {
                if share.take_alone(per_minute) {
                    (self.alone, self.admitted) = (self.alone + 1, self.admitted + 1);
                }
            } else {
                self.call(at);
            }
            let share = &mut self.brokers[at].share;
            share.waiting -= u64::from(done + 1 < waiting);
        }
    }
}

#[test]
fn no_schedule_admits_more_or_refuses_earlier_than_documented() {
    let seed: u64 =
        std::env::var("SEED").ok().and_then(|text| text.parse().ok()).unwrap_or_else(rand::random);
    println!("SEED={seed}");
    let mut random = StdRng::seed_from_u64(seed);
    for _ in 0..3_000 {
        let per_minute = [1, 2, 5, 40, 100, 250, 1_000, 3_000][random.random_range(0..8)];
        let brokers = random.random_range(1..=6);
        let mut fleet = Fleet::new(brokers, per_minute);
        let (fails, changes) = (random.random_bool(0.3), random.random_bool(0.3));
        // Some brokers are called often, some hardly.
        let weights: Vec<u32> = (0..brokers).map(|_| random.random_range(1..=100)).collect();
        for _ in 0..random.random_range(1..=3 * per_minute + 100) {
            let at = loop {
                let at = random.random_range(0..brokers);
                if random.random_ratio(weights[at], 100) {
                    break at;
                }
            };
            match random.random_range(0..4) {
                0 => fleet.advance(at, if fails { random.random_range(0..20) } else { 1 }),
                1 if changes && random.random_ratio(1, 100) => {
                    fleet.per_minute = random.random_range(1..=2 * per_minute);
                    fleet.advance = fleet.advance.max(advance(fleet.per_minute));
                    (fleet.admitted_then, fleet.changed) = (fleet.admitted, true);
                }
                _ => {
                    fleet.call(at);
                }
            }
        }
        // Everybody calls until there is nothing left, and all answers come.
        for at in 0..brokers {
            while fleet.brokers[at].asked.is_some() || fleet.call(at) {
                fleet.advance(at, GOOD);
            }
        }
        let least = u64::from(fleet.per_minute).saturating_sub(fleet.stray);
        assert!(fleet.changed || fleet.admitted >= least, "{} of {least}", fleet.admitted);
        assert!(fleet.admitted <= fleet.most());
    }
}

#[test]
fn a_busy_token_needs_a_command_for_many_calls_and_near_the_limit_for_few() {
    let (mut fleet, mut commands, mut calls) = (Fleet::new(1, 40_000), 0, Vec::new());
    while fleet.call(0) {
        if fleet.brokers[0].asked.is_some() {
            commands += 1;
            calls.push(fleet.admitted);
            fleet.advance(0, GOOD);
            fleet.advance(0, GOOD);
        }
    }
    assert_eq!(fleet.admitted, 40_000);
    println!("{commands} commands for 40000 calls");
    assert!(commands <= 150, "{commands}");
    assert_eq!(calls[..3], [400, 800, 1_200]);
    assert!(calls.windows(2).last().unwrap()[1] - calls.windows(2).last().unwrap()[0] <= 1);
}

#[test]
fn a_redis_that_forgets_is_told_again_and_grants_no_second_minute() {
    let mut fleet = Fleet::new(1, 1_000);
    for _ in 0..700 {
        fleet.call(0);
        fleet.advance(0, GOOD);
        fleet.advance(0, GOOD);
    }
    fleet.redis = 0;
    while fleet.call(0) {
        fleet.advance(0, GOOD);
        fleet.advance(0, GOOD);
    }
    assert!((1_000..=1_010).contains(&fleet.admitted), "{}", fleet.admitted);
}

#[test]
fn a_limit_that_changes_is_judged_by_what_was_counted() {
    let mut fleet = Fleet::new(1, 1_000);
    let mut until_refused = |per_minute: u32| {
        fleet.per_minute = per_minute;
        while fleet.call(0) {
            fleet.advance(0, GOOD);
            fleet.advance(0, GOOD);
        }
        fleet.admitted
    };
    assert_eq!(until_refused(100), 100);
    assert_eq!(until_refused(50), 100);
    let more = until_refused(200);
    assert!((198..=200).contains(&more), "{more}");
}

#[test]
fn while_redis_is_away_a_broker_counts_to_the_limit_and_tells_it_afterwards() {
    let mut share = Share::default();
    let admitted =
        (0..200).filter(|_| share.take(100, true) == Turn::Admitted || share.take_alone(100)).count();
    assert_eq!(admitted, 100);
    assert!(share.is_used_up(100, true) && !share.is_used_up(100, false));
    let ask = share.ask(100, CancellationToken::new());
    assert_eq!((ask.report, ask.batch), (100, 1));
    share.failed(ask, false);
    let ask = share.ask(100, CancellationToken::new());
    share.answered(ask, 101, 100);
    assert_eq!(share.take(100, true), Turn::Refused);
    assert!(share.is_used_up(100, false));
}
