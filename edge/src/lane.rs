//! The slow lane of a worker's thread: whoever has had more than a fair share of it goes on in a line, one at a time.
//!
//! `coalesce` sends connections here that read a lot or in crumbs, `tls` its handshakes. Between two of them the runtime
//! runs everything that is ready and looks at its sockets, so that a thousand floods cost everybody else what one
//! turn of one of them costs. While nobody else is in the line, waiting is one look at the sockets.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};

thread_local! {
    static LANE: Arc<Lane> = Arc::default();
}

/// A place in the line of the thread where it is first asked for. Whoever drops it leaves the line.
#[derive(Debug, Default)]
pub struct Place(Option<Arc<Ticket>>);

#[derive(Debug)]
struct Ticket {
    called: AtomicBool,
    waker: Mutex<Waker>,
}

#[derive(Debug, Default)]
struct Lane(Mutex<Line>);

/// As long as there are connections that wait, each of which has one place.
#[derive(Debug, Default)]
struct Line {
    waiting: VecDeque<Arc<Ticket>>,
    /// Somebody calls them up.
    attended: bool,
}

impl Place {
    /// Ready when it is this one's turn; asked again, it is a new turn.
    pub fn poll_turn(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.0 {
            Some(ticket) if ticket.called.load(Ordering::Acquire) => {
                self.0 = None;
                Poll::Ready(())
            }
            Some(ticket) => {
                ticket.waker().clone_from(cx.waker());
                // It may have been called meanwhile, by another thread in a test.
                if ticket.called.load(Ordering::Acquire) {
                    cx.waker().wake_by_ref();
                }
                Poll::Pending
            }
            None => {
                let ticket = Ticket { called: AtomicBool::new(false), waker: Mutex::new(cx.waker().clone()) };
                let ticket = Arc::new(ticket);
                self.0 = Some(ticket.clone());
                LANE.with(|lane| lane.enter(ticket));
                Poll::Pending
            }
        }
    }
}

impl Ticket {
    fn waker(&self) -> MutexGuard<'_, Waker> {
        self.waker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn call(&self) {
        self.called.store(true, Ordering::Release);
        self.waker().wake_by_ref();
    }
}

impl Lane {
    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(self: &Arc<Self>, ticket: Arc<Ticket>) {
        let mut line = self.line();
        line.waiting.push_back(ticket);
        if !std::mem::replace(&mut line.attended, true) {
            drop(line);
            tokio::spawn(Attendant(self.clone()).attend());
        }
    }

    /// The first who still waits; those who left are passed over.
    fn next(&self) -> Option<Arc<Ticket>> {
        let mut line = self.line();
        while let Some(ticket) = line.waiting.pop_front() {
            if Arc::strong_count(&ticket) > 1 {
                return Some(ticket);
            }
        }
        line.waiting = VecDeque::new();
        line.attended = false;
        None
    }
}

/// Lives as long as somebody waits.
struct Attendant(Arc<Lane>);

impl Attendant {
    async fn attend(self) {
        loop {
            // Comes back after everything that is ready has run, and the sockets were looked at.
            tokio::task::yield_now().await;
            match self.0.next() {
                Some(ticket) => ticket.call(),
                None => return,
            }
        }
    }
}

impl Drop for Attendant {
    /// With its runtime, perhaps, while others still wait.
    fn drop(&mut self) {
        self.0.line().attended = false;
    }
}

/// Polls `work` in turns of the slow lane only.
pub async fn in_turns<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    let mut place = Place::default();
    std::future::poll_fn(move |cx| {
        ready!(place.poll_turn(cx));
        work.as_mut().poll(cx)
    })
    .await
}

/// Polls `work` at once, and whenever it comes back in turns of the slow lane: for what honest clients do in one go.
pub async fn then_in_turns<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    let first = std::future::poll_fn(|cx| Poll::Ready(work.as_mut().poll(cx))).await;
    match first {
        Poll::Ready(done) => done,
        Poll::Pending => in_turns(work).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use tokio::task::{JoinSet, yield_now};

    fn length() -> usize {
        LANE.with(|lane| lane.line().waiting.len())
    }

    #[tokio::test]
    async fn those_in_the_line_take_turns_and_whoever_is_not_runs_between_any_two_of_them() {
        let seen: Arc<Mutex<String>> = Arc::default();
        let mut all = JoinSet::new();
        for name in ['a', 'b', 'c'] {
            let seen = seen.clone();
            all.spawn(async move {
                let mut place = Place::default();
                for _ in 0..20 {
                    poll_fn(|cx| place.poll_turn(cx)).await;
                    seen.lock().unwrap().push(name);
                }
            });
        }
        let light = seen.clone();
        all.spawn(async move {
            for _ in 0..200 {
                light.lock().unwrap().push('.');
                yield_now().await;
            }
        });
        all.join_all().await;
        let seen = seen.lock().unwrap().clone();
        let turns: Vec<char> = seen.chars().filter(|name| *name != '.').collect();
        assert_eq!(turns.len(), 60);
        assert!(turns.chunks(3).all(|three| *three == turns[..3]), "{seen}");
        assert!(!seen.contains("ab") && !seen.contains("bc") && !seen.contains("ca"), "{seen}");
    }

    #[tokio::test]
    async fn who_leaves_the_line_holds_up_nobody_and_nothing_is_kept_of_it() {
        let mut left = Vec::new();
        for _ in 0..100 {
            let mut place = Place::default();
            assert!(poll_fn(|cx| Poll::Ready(place.poll_turn(cx).is_pending())).await);
            left.push(place);
        }
        assert_eq!(length(), 100);
        drop(left);
        in_turns(async {}).await;
        yield_now().await;
        yield_now().await;
        assert_eq!(length(), 0);
        assert!(LANE.with(|lane| !lane.line().attended));
        in_turns(async {}).await;
    }
    #[tokio::test]
    async fn what_is_done_in_one_go_waits_for_nobody_and_what_is_not_takes_turns() {
        let mut held = Place::default();
        assert!(poll_fn(|cx| Poll::Ready(held.poll_turn(cx).is_pending())).await);
        let mut at_once = pin!(then_in_turns(async { 7 }));
        assert_eq!(poll_fn(|cx| Poll::Ready(at_once.as_mut().poll(cx))).await, Poll::Ready(7));
        assert_eq!(length(), 1);
        let later = then_in_turns(async {
            yield_now().await;
            length()
        });
        assert_eq!(later.await, 0, "it did not come behind the first");
        poll_fn(|cx| held.poll_turn(cx)).await;
    }
}
