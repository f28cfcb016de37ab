//! One reader of a view as it changes: pages from wherever the view is, as server-sent events. Before it: the API listener.
//! After it: a channel with room for one page, from which the reader's connection takes it.

use super::written::{ended, frame};
use crate::agent_reports::{
    known::{Known, Source},
    views::Kind,
};
use bytes::Bytes;
use postern_wire::ids::AgentId;
use std::time::Duration;
use tokio::{
    sync::mpsc,
    time::{sleep, timeout},
};

/// A line that says nothing, so that proxies and readers see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a reader may take for a page.
const STALL: Duration = Duration::from_secs(30);
/// Between two looks where a view is whose stream ended.
const LOOK: Duration = Duration::from_secs(1);

/// One reader of events.
pub(super) struct Watcher {
    pub(super) known: Known,
    pub(super) agent: AgentId,
    pub(super) kind: Kind,
    pub(super) source: Source,
    pub(super) stale: bool,
}

impl Watcher {
    /// Until the view is gone everywhere, or the reader stopped reading.
    pub(super) async fn run(mut self, frames: mpsc::Sender<Bytes>) {
        loop {
            let frame = tokio::select! {
                page = self.source.next() => match page {
                    Ok(Some(page)) => {
                        self.stale = page.stale;
                        frame(self.agent, self.kind, self.source.broker.as_ref(), &page)
                    }
                    // Gone from there, or there is lost.
                    Ok(None) | Err(_) => match self.known.find(self.agent, self.kind, true).await {
                        Ok(source) => {
                            self.source = source;
                            // A broker that is lost and not known to be so yet would be asked again and again.
                            sleep(LOOK).await;
                            continue;
                        }
                        Err(_) => {
                            let ended = ended(self.agent, self.kind);
                            let _ = timeout(STALL, frames.send(format!("event: ended\ndata: {ended}\n\n").into())).await;
                            return;
                        }
                    },
                },
                () = sleep(LOOK), if self.stale => {
                    if let Some(live) = self.known.find_live(self.agent, self.kind).await {
                        (self.source, self.stale) = (live, false);
                    }
                    continue;
                }
                () = sleep(KEEP_ALIVE) => Bytes::from_static(b": still here\n\n"),
            };
            // Nothing is lost by it: whoever comes back gets the whole.
            if !matches!(timeout(STALL, frames.send(frame)).await, Ok(Ok(()))) {
                tracing::debug!(agent_id = %self.agent, view = self.kind.name(), "a reader of a view took nothing and is let go");
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_reports::{
        board::Board,
        tests::whole,
        views::{Push, Views},
    };
    use tokio::time::Instant;

    const AGENT: AgentId = AgentId(7);

    async fn watcher() -> (Push, Watcher) {
        let views = Views::default();
        let mut push = views.begin(AGENT);
        push.apply(whole("nodes", &[("a", "{}")])).unwrap();
        let known = Known::new(Board::default(), views);
        let source = known.find(AGENT, Kind::Nodes, true).await.unwrap();
        (push, Watcher { known, agent: AGENT, kind: Kind::Nodes, source, stale: false })
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_nothing_is_let_go() {
        let (mut push, watcher) = watcher().await;
        let (frames, mut receiver) = mpsc::channel(1);
        let begin = Instant::now();
        let running = tokio::spawn(watcher.run(frames));
        for at in 0..10 {
            push.apply(whole("nodes", &[("a", &format!(r#"{{"at":{at}}}"#))])).unwrap();
            tokio::task::yield_now().await;
        }
        running.await.unwrap();
        assert!(begin.elapsed() <= KEEP_ALIVE + STALL, "{:?}", begin.elapsed());
        assert!(receiver.recv().await.is_some());
        assert_eq!(receiver.recv().await, None, "one page is all that was held for it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_quiet_stream_says_every_15_seconds_that_it_lives() {
        let (_push, watcher) = watcher().await;
        let (frames, mut receiver) = mpsc::channel(1);
        tokio::spawn(watcher.run(frames));
        assert!(receiver.recv().await.unwrap().starts_with(b"event: whole\nid: "));
        let begin = Instant::now();
        assert_eq!(receiver.recv().await.unwrap(), ": still here\n\n");
        assert_eq!(begin.elapsed(), KEEP_ALIVE);
    }
}
