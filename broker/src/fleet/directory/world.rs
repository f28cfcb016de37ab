//! What all agents' routes depend on: whether the others are heard, whether Redis may have been emptied lately, and in
//! which order things were heard.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
};
use std::time::Duration;
use tokio::{sync::watch, time::Instant};

#[derive(Debug)]
pub(super) struct World {
    /// Another one whenever something may have been missed.
    epoch: AtomicU64,
    is_listening: AtomicBool,
    next: AtomicU64,
    openings: watch::Receiver<u64>,
    /// After each of them Redis may be empty for so long.
    young: Duration,
    /// How many there were, and when the last one was noticed: by the writer, which waits for them, or by a search that
    /// came before it.
    opened: Mutex<(u64, Option<Instant>)>,
}

/// All that at one moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) now: Instant,
    pub(super) epoch: u64,
    pub(super) is_listening: bool,
    /// Redis was only just connected.
    pub(super) is_young: bool,
}

impl World {
    pub(super) fn new(openings: watch::Receiver<u64>, young: Duration) -> Self {
        let is_listening = AtomicBool::new(false);
        Self { epoch: 1.into(), is_listening, next: 1.into(), openings, young, opened: Mutex::default() }
    }

    pub(super) fn view(&self) -> View {
        let now = Instant::now();
        let opened = self.notice(now);
        View {
            now,
            epoch: self.epoch.load(SeqCst),
            is_listening: self.is_listening.load(SeqCst),
            is_young: opened.is_none_or(|at| now < at + self.young),
        }
    }

    /// Looks whether Redis was connected again; when that was last noticed.
    pub(super) fn notice(&self, now: Instant) -> Option<Instant> {
        let count = *self.openings.borrow();
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if opened.0 != count {
            *opened = (count, Some(now));
        }
        opened.1
    }

    /// The others are heard again, or not any more: in between anything may have happened.
    pub(super) fn doubt(&self, is_listening: bool) {
        self.is_listening.store(is_listening, SeqCst);
        self.epoch.fetch_add(1, SeqCst);
    }

    /// Larger than all before.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn redis_is_young_since_it_was_connected_not_since_somebody_asked() {
        let openings = watch::Sender::new(0);
        let world = World::new(openings.subscribe(), Duration::from_secs(10));
        assert!(world.view().is_young, "never connected");
        openings.send_replace(1);
        world.notice(Instant::now());
        tokio::time::advance(Duration::from_secs(9)).await;
        assert!(world.view().is_young);
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!world.view().is_young);
        openings.send_replace(2);
        assert!(world.view().is_young, "a search came before the writer");
    }
}
