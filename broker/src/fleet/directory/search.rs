//! One request's search for brokers that hold its agent. Before it: the router. After it: the agent's route, and Redis
//! where that knows nothing. While it waits in vain Redis is asked about once a second for all that wait.

use super::{Directory, LastSeen, census::count, route::Told, slots::Slot};
use crate::fleet::PeerUrl;
use rand::Rng;
use std::{fmt, pin::pin, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep_until};

/// Behind the news, which may get lost; a fifth more or less at random.
pub(super) const POLL: Duration = Duration::from_secs(1);

/// News of where the agent may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// This broker may hold a tunnel. Named again when it announces the agent anew.
    Peer(PeerUrl),
    /// Redis was asked, and no broker holds one now. Said once; a broker may still be named later.
    Nobody {
        /// Where it was last; nothing if nobody remembers.
        last: Option<LastSeen>,
    },
    /// Redis cannot be asked, or was only just connected and may be empty: any peer may hold one. Said once; a broker
    /// may still be named later.
    Unknown,
}

/// A search. Drop it when a tunnel is found: until then Redis may be asked now and then.
pub struct Search {
    directory: Arc<Directory>,
    slot: Arc<Slot>,
    told: Told,
    poll: Instant,
    /// Whether anything was said yet, or Redis was asked.
    is_fresh: bool,
}

impl Search {
    pub(super) fn new(directory: Arc<Directory>, slot: Arc<Slot>) -> Self {
        let poll = Instant::now() + poll(&directory);
        Self { directory, slot, told: Told::default(), poll, is_fresh: true }
    }

    /// The next news, which may never come. A call that is dropped loses nothing.
    pub async fn next(&mut self) -> Found {
        loop {
            let mut news = pin!(self.slot.news.notified());
            news.as_mut().enable();
            let view = self.directory.world.view();
            let is_due = view.now >= self.poll;
            if is_due {
                self.poll = view.now + poll(&self.directory);
            }
            let step = self.slot.route().step(&mut self.told, view, self.directory.habits.patience, is_due);
            if step.look {
                self.directory.look_up(&self.slot, None);
            }
            if let Some(found) = step.tell {
                if std::mem::replace(&mut self.is_fresh, false) && matches!(found, Found::Peer(_)) {
                    count(&self.directory.counters.hits);
                }
                return found;
            }
            self.is_fresh = false;
            let until = step.until.map_or(self.poll, |until| until.min(self.poll));
            tokio::select! {
                () = news => {}
                () = sleep_until(until) => {}
            }
        }
    }
}

fn poll(directory: &Directory) -> Duration {
    directory.habits.poll.mul_f64(rand::rng().random_range(0.8..1.2))
}

impl fmt::Debug for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Search").field("agent", &self.slot.agent).finish_non_exhaustive()
    }
}
