//! Counts what is under way, so that the process can end as soon as nothing is.
//!
//! Every stream holds a [`StreamGuard`] from its head to its log line. A stream that only waits (an idle tunnel, a
//! subscription) is parked: its agent takes it up elsewhere without loss, so a drain does not wait for it.

use crate::life::Seat;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{Notify, watch};

/// How many streams are open, by whether somebody waits for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnderWay {
    pub busy: usize,
    pub parked: usize,
}

/// A busy stream in the word that counts both; a parked one is 1.
const BUSY: u64 = 1 << 32;

/// The count of one process. Every stream changes it two to four times, on every worker: one word, no lock.
#[derive(Debug, Default)]
pub struct Streams {
    word: AtomicU64,
    /// Told whenever the last busy stream, or the last stream, is gone.
    fewer: Notify,
}

/// One open stream.
#[derive(Debug)]
pub struct StreamGuard {
    streams: Arc<Streams>,
    /// Its connection's count.
    seat: Option<Arc<Seat>>,
    parked: bool,
}

impl UnderWay {
    fn of(word: u64) -> Self {
        Self { busy: (word / BUSY) as usize, parked: (word % BUSY) as usize }
    }
}

impl Streams {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts a stream as busy until the guard is parked or dropped.
    pub fn open(self: &Arc<Self>) -> StreamGuard {
        self.word.fetch_add(BUSY, Ordering::AcqRel);
        StreamGuard { streams: self.clone(), seat: None, parked: false }
    }

    /// The same, and counts it in its connection as well.
    pub fn open_on(self: &Arc<Self>, seat: &Arc<Seat>) -> StreamGuard {
        seat.open();
        let mut guard = self.open();
        guard.seat = Some(seat.clone());
        guard
    }

    pub fn under_way(&self) -> UnderWay {
        UnderWay::of(self.word.load(Ordering::Acquire))
    }

    /// Returns when no stream is busy.
    pub async fn idle(&self) {
        self.until(|now| now.busy == 0).await;
    }

    /// Returns when no stream is open at all.
    pub async fn empty(&self) {
        self.until(|now| now == UnderWay::default()).await;
    }

    async fn until(&self, reached: impl Fn(UnderWay) -> bool) {
        loop {
            let fewer = self.fewer.notified();
            tokio::pin!(fewer);
            // From here on nothing is missed.
            fewer.as_mut().enable();
            if reached(self.under_way()) {
                return;
            }
            fewer.await;
        }
    }

    fn subtract(&self, part: u64) {
        let now = UnderWay::of(self.word.fetch_sub(part, Ordering::AcqRel) - part);
        if now.busy == 0 && (part >= BUSY - 1 || now.parked == 0) {
            self.fewer.notify_waiters();
        }
    }
}

impl StreamGuard {
    /// From now on nobody waits for this stream.
    pub fn park(&mut self) {
        if !std::mem::replace(&mut self.parked, true) {
            self.streams.subtract(BUSY - 1);
            if let Some(seat) = &self.seat {
                seat.park();
            }
        }
    }

    /// The stream carries a request now.
    pub fn wake(&mut self) {
        if std::mem::replace(&mut self.parked, false) {
            self.streams.word.fetch_add(BUSY - 1, Ordering::AcqRel);
            if let Some(seat) = &self.seat {
                seat.wake();
            }
        }
    }

    pub fn is_parked(&self) -> bool {
        self.parked
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.streams.subtract(if self.parked { 1 } else { BUSY });
        if let Some(seat) = &self.seat {
            seat.close(self.parked);
        }
    }
}

/// How a drain was asked for. What ends more comes later in the order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asked {
    /// Not at all.
    Nothing,
    /// The process stays, without listeners and at last without connections; for `POST /drain?exit=false`.
    Stay,
    /// Then the process ends, as on a signal; for `POST /drain`.
    Exit,
    /// A successor has the listening sockets: nobody needs time to notice.
    HandedOver,
}

/// Starts a drain from within the process; `server` carries it out. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle(Arc<watch::Sender<Asked>>);

impl Default for Handle {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(Asked::Nothing)))
    }
}

impl Handle {
    /// Asks for a drain; `false` if one as far-reaching was asked for already. Returns at once.
    pub fn drain(&self, how: Asked) -> bool {
        self.0.send_if_modified(|asked| {
            let more = how > *asked;
            if more {
                *asked = how;
            }
            more
        })
    }

    /// How a drain was asked for; a signal counts as [`Asked::Exit`].
    pub fn asked(&self) -> Asked {
        *self.0.borrow()
    }

    /// Returns when a drain of at least this reach is asked for.
    pub async fn wait(&self, least: Asked) -> Asked {
        match self.0.subscribe().wait_for(|asked| *asked >= least).await {
            Ok(asked) => *asked,
            // Cannot be: the sender lives as long as `self`.
            Err(_) => Asked::Exit,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_waits_for_work_but_not_for_parked_streams() {
        let streams = Streams::new();
        let mut tunnel = streams.open();
        tunnel.park();
        tunnel.park();
        streams.idle().await;
        tunnel.wake();
        assert_eq!(streams.under_way(), UnderWay { busy: 1, parked: 0 });
        let waiting = tokio::spawn({
            let streams = streams.clone();
            async move { streams.idle().await }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(tunnel);
        waiting.await.unwrap();
        streams.empty().await;
    }
}
