//! How long one stream or idle tunnel of an agent lives, also where that changes while it is open.
//!
//! Between `policies.rs`, which knows the age, and the services that keep streams. It ends nothing itself.

use super::{Age, Policies, Who};
use postern_policies::Subject;
use rand::Rng;
use std::{fmt, sync::Arc, time::Duration};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

/// Idle tunnels and configuration streams end after this share of the connection age, as kas' do.
pub const STREAM_SHARE: f64 = 0.3;

type Judge = dyn Fn(&Subject<'_>) -> Age + Send + Sync;

/// Who says how long agents' streams live, and when that changes.
#[derive(Clone)]
pub struct Ages {
    judge: Arc<Judge>,
    changes: watch::Receiver<u64>,
}

impl fmt::Debug for Ages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ages").finish_non_exhaustive()
    }
}

impl Ages {
    /// A share of the age of connections that the policies in force say.
    pub fn of(policies: &Policies) -> Self {
        let changes = policies.live().changes();
        let policies = policies.clone();
        let judge = move |who: &Subject<'_>| {
            let age = policies.max_age(who);
            Age { most: age.most.map(|most| most.mul_f64(STREAM_SHARE)), ..age }
        };
        Self::by(judge, changes)
    }

    /// The same for everybody, for ever.
    pub fn steady(most: Duration) -> Self {
        let age = Age { most: Some(most), jitter_percent: None };
        Self::by(move |_| age, watch::Sender::new(0).subscribe())
    }

    /// Whatever `judge` says of someone, asked again at each change.
    pub fn by(
        judge: impl Fn(&Subject<'_>) -> Age + Send + Sync + 'static,
        changes: watch::Receiver<u64>,
    ) -> Self {
        Self { judge: Arc::new(judge), changes }
    }

    /// The life of a stream of someone's that begins now.
    pub fn begin(&self, who: Who) -> Lifetime {
        let mut changes = self.changes.clone();
        changes.mark_unchanged();
        let age = (self.judge)(&who.subject());
        let mut life = Lifetime {
            judge: Arc::clone(&self.judge),
            changes,
            who,
            opened: Instant::now(),
            random: rand::rng().random_range(0.0..=1.0),
            age,
            until: None,
        };
        life.until = life.end();
        life
    }
}

/// The life of one stream.
pub struct Lifetime {
    judge: Arc<Judge>,
    changes: watch::Receiver<u64>,
    who: Who,
    opened: Instant,
    /// 0 to 1: how much of the jitter is taken.
    random: f64,
    age: Age,
    /// `None`: for ever.
    until: Option<Instant>,
}

impl fmt::Debug for Lifetime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lifetime").field("age", &self.age).field("until", &self.until).finish_non_exhaustive()
    }
}

impl Lifetime {
    fn end(&self) -> Option<Instant> {
        let part = match self.age.jitter_percent {
            // Streams that were opened together do not end together.
            None => 0.95 + 0.1 * self.random,
            Some(percent) => 1.0 - self.random * f64::from(percent.min(100)) / 100.0,
        };
        self.opened.checked_add(self.age.most?.mul_f64(part))
    }

    /// Ends when the stream's time is up. Dropped and called again, it goes on.
    pub async fn over(&mut self) {
        loop {
            let until = self.until;
            let up = async {
                match until {
                    Some(until) => sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = up => return,
                Ok(()) = self.changes.changed() => self.judge(),
            }
        }
    }

    /// Those that are too old by now end over as much time as the new age is long: as often as its own streams will.
    fn judge(&mut self) {
        let age = (self.judge)(&self.who.subject());
        if age == self.age {
            return;
        }
        self.age = age;
        let now = Instant::now();
        self.until = match self.end() {
            Some(end) if end <= now => {
                let soon = age.most.unwrap_or_default().mul_f64(rand::rng().random_range(0.0..=1.0));
                Some(self.until.map_or(now + soon, |until| until.max(now).min(now + soon)))
            }
            end => end,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn someone() -> Who {
        Who { agent_id: Some(1), project_id: Some(10), token_hash: [7; 32], version: None }
    }

    struct Field {
        age: Arc<Mutex<Age>>,
        changes: watch::Sender<u64>,
        ages: Ages,
    }

    fn field(most: u64) -> Field {
        let age = Arc::new(Mutex::new(of(most, None)));
        let changes = watch::Sender::new(1);
        let now = Arc::clone(&age);
        let ages = Ages::by(move |_| *now.lock().unwrap(), changes.subscribe());
        Field { age, changes, ages }
    }

    fn of(most: u64, jitter_percent: Option<u8>) -> Age {
        Age { most: Some(Duration::from_secs(most)).filter(|most| !most.is_zero()), jitter_percent }
    }

    impl Field {
        fn becomes(&self, age: Age) {
            *self.age.lock().unwrap() = age;
            self.changes.send_modify(|generation| *generation += 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_lives_as_long_as_the_age_says_with_its_jitter() {
        for (jitter, least, most) in [(None, 950, 1_050), (Some(0), 1_000, 1_000), (Some(50), 500, 1_000)] {
            let field = field(1);
            field.becomes(of(1_000, jitter));
            let begin = Instant::now();
            field.ages.begin(someone()).over().await;
            let took = begin.elapsed().as_secs();
            assert!((least..=most).contains(&took), "{jitter:?}: {took}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn open_streams_obey_another_age_and_those_that_are_too_old_end_spread_over_it() {
        let field = field(10_000);
        let begin = Instant::now();
        let lives: Vec<_> = (0..200).map(|_| field.ages.begin(someone())).collect();
        tokio::time::advance(Duration::from_secs(1_000)).await;
        let changed = Instant::now();
        let ends = lives.into_iter().map(|mut life| async move {
            life.over().await;
            Instant::now()
        });
        let ends = tokio::spawn(futures::future::join_all(ends));
        tokio::task::yield_now().await;
        field.becomes(of(100, Some(10)));
        // Another change that is not about ages puts nothing off.
        tokio::time::sleep(Duration::from_secs(50)).await;
        field.becomes(of(100, Some(10)));
        let ends = ends.await.unwrap();
        assert!(ends.iter().all(|end| *end - changed <= Duration::from_secs(101)));
        let early = ends.iter().filter(|end| **end - changed <= Duration::from_secs(50)).count();
        assert!((60..=140).contains(&early), "{early} of 200 in the first half");
        assert!(begin.elapsed() < Duration::from_secs(1_200));
    }

    #[tokio::test(start_paused = true)]
    async fn a_longer_age_holds_for_open_streams_and_none_at_all_is_for_ever() {
        let field = field(100);
        let begin = Instant::now();
        let mut life = field.ages.begin(someone());
        field.becomes(of(0, None));
        assert!(tokio::time::timeout(Duration::from_secs(1_000_000), life.over()).await.is_err());
        field.becomes(of(2_000_000, Some(0)));
        life.over().await;
        assert_eq!(begin.elapsed().as_secs(), 2_000_000);
    }
}
