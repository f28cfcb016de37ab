//! Counts what is under way, so that the process can end as soon as nothing is; and lets others ask for a drain.
//!
//! Every stream holds a [`StreamGuard`] from its head to its log line. A stream that only waits (an idle tunnel, a
//! subscription) is parked: its agent takes it up elsewhere without loss, so a drain does not wait for it.

use crate::life::Seat;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{Notify, watch};

/// How many streams are open, by whether somebody waits for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnderWay {
    pub busy: usize,
    pub parked: usize,
}

/// The count of one process.
#[derive(Debug, Default)]
pub struct Streams {
    busy: AtomicUsize,
    parked: AtomicUsize,
    /// The last busy stream is gone.
    idle: Notify,
}

/// One open stream.
#[derive(Debug)]
pub struct StreamGuard {
    streams: Arc<Streams>,
    seat: Option<Arc<Seat>>,
    parked: bool,
}

impl Streams {
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts a stream as busy until the guard is parked or dropped.
    pub fn open(self: &Arc<Self>) -> StreamGuard {
        self.busy.fetch_add(1, Ordering::SeqCst);
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
        UnderWay { busy: self.busy.load(Ordering::SeqCst), parked: self.parked.load(Ordering::SeqCst) }
    }

    /// Returns when no stream is busy.
    pub async fn idle(&self) {
        loop {
            // Registered before the look, so that the last stream's end between the two is not missed.
            let idle = self.idle.notified();
            tokio::pin!(idle);
            idle.as_mut().enable();
            if self.busy.load(Ordering::SeqCst) == 0 {
                return;
            }
            idle.await;
        }
    }

    fn no_longer_busy(&self) {
        if self.busy.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.idle.notify_waiters();
        }
    }
}

impl StreamGuard {
    /// From now on nobody waits for this stream.
    pub fn park(&mut self) {
        if !std::mem::replace(&mut self.parked, true) {
            self.streams.parked.fetch_add(1, Ordering::SeqCst);
            self.streams.no_longer_busy();
            if let Some(seat) = &self.seat {
                seat.park();
            }
        }
    }

    /// The stream carries a request now.
    pub fn wake(&mut self) {
        if std::mem::replace(&mut self.parked, false) {
            self.streams.busy.fetch_add(1, Ordering::SeqCst);
            self.streams.parked.fetch_sub(1, Ordering::SeqCst);
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
        if self.parked {
            self.streams.parked.fetch_sub(1, Ordering::SeqCst);
        } else {
            self.streams.no_longer_busy();
        }
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
        assert_eq!(streams.under_way(), UnderWay::default());
    }

    #[tokio::test]
    async fn a_drain_may_only_become_more() {
        let handle = Handle::default();
        assert!(handle.drain(Asked::Stay) && !handle.drain(Asked::Stay));
        assert_eq!(handle.wait(Asked::Stay).await, Asked::Stay);
        assert!(handle.drain(Asked::Exit) && !handle.drain(Asked::Stay));
        assert_eq!((handle.wait(Asked::Stay).await, handle.asked()), (Asked::Exit, Asked::Exit));
    }
}
