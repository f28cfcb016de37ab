//! Counts what is under way, so that the process can end as soon as nothing is.
//!
//! Every stream holds a [`StreamGuard`] from its head to its log line. A stream that only waits (an idle tunnel, a
//! subscription) is parked: its agent takes it up elsewhere without loss, so a drain does not wait for it.

use std::sync::Arc;
use tokio::sync::watch;

/// How many streams are open, by whether somebody waits for them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct UnderWay {
    pub busy: usize,
    pub parked: usize,
}

/// The count of one process.
#[derive(Debug)]
pub struct Streams(watch::Sender<UnderWay>);

/// One open stream.
#[derive(Debug)]
pub struct StreamGuard {
    streams: Arc<Streams>,
    parked: bool,
}

impl Streams {
    pub fn new() -> Arc<Self> {
        Arc::new(Self(watch::Sender::new(UnderWay::default())))
    }

    /// Counts a stream as busy until the guard is parked or dropped.
    pub fn open(self: &Arc<Self>) -> StreamGuard {
        self.0.send_modify(|now| now.busy += 1);
        StreamGuard { streams: self.clone(), parked: false }
    }

    pub fn under_way(&self) -> UnderWay {
        *self.0.borrow()
    }

    /// Returns when no stream is busy.
    pub async fn idle(&self) {
        // Cannot fail: the sender lives as long as `self`.
        let _ = self.0.subscribe().wait_for(|now| now.busy == 0).await;
    }

    /// Returns when no stream is open at all.
    pub async fn empty(&self) {
        let _ = self.0.subscribe().wait_for(|now| *now == UnderWay::default()).await;
    }
}

impl StreamGuard {
    /// From now on nobody waits for this stream.
    pub fn park(&mut self) {
        if !std::mem::replace(&mut self.parked, true) {
            self.streams.0.send_modify(|now| {
                now.busy -= 1;
                now.parked += 1;
            });
        }
    }

    /// The stream carries a request now.
    pub fn wake(&mut self) {
        if std::mem::replace(&mut self.parked, false) {
            self.streams.0.send_modify(|now| {
                now.parked -= 1;
                now.busy += 1;
            });
        }
    }

    pub fn is_parked(&self) -> bool {
        self.parked
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.streams.0.send_modify(|now| if self.parked { now.parked -= 1 } else { now.busy -= 1 });
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
