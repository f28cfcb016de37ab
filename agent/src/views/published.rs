//! What the broker knows of one view, and the messages that tell it the rest. Before it: `state.rs`, which computes
//! entries; after it: `keep.rs`, which sends messages in order. Of what was sent only a digest is kept.

use super::{
    plan::View,
    state::{State, Touched},
};
use postern_wire::proto::postern::agent::{ViewEntry, ViewUpdate};
use std::{
    collections::{BTreeSet, HashMap, hash_map::RandomState},
    hash::BuildHasher,
};
use tracing::{debug, warn};

/// Of a view.
const ENTRIES: usize = 5_000;
/// Of one entry.
const ENTRY: usize = 8 * 1024;
const KEY: usize = 512;
/// What an entry costs a broker beside its key and its JSON.
const OVERHEAD: usize = 192;
/// Of one message; gRPC's own limit is 4 MiB.
const MESSAGE: usize = 256 * 1024;
/// One message has no more entries than this, and no more keys that are gone.
const MANY: usize = 1_000;

/// One view, as the broker has it.
pub(crate) struct Published {
    view: View,
    /// Digest and cost of each entry.
    sent: HashMap<Box<str>, (u64, usize)>,
    bytes: usize,
    hasher: RandomState,
    /// The broker has nothing yet.
    whole: bool,
    /// Some entries had no room.
    left_out: bool,
    truncated: bool,
}

impl Published {
    pub(crate) fn new(view: View) -> Self {
        Self {
            view,
            sent: HashMap::new(),
            bytes: 0,
            hasher: RandomState::new(),
            whole: true,
            left_out: false,
            truncated: false,
        }
    }

    /// Another broker, or the same one anew, knows nothing.
    pub(crate) fn start_over(&mut self) {
        *self = Self::new(self.view);
    }

    pub(crate) fn view(&self) -> View {
        self.view
    }

    /// Messages after which the broker knows the view as it is; none if it does, or the view is not known here yet.
    pub(crate) fn flush(&mut self, state: &mut State) -> Vec<ViewUpdate> {
        if !state.awaits(self.view).is_empty() {
            return Vec::new();
        }
        let touched = state.untouch(self.view);
        if touched.is_none() && !self.whole {
            return Vec::new();
        }
        let keys = self.candidates(touched.unwrap_or_default(), state);
        let mut messages = Messages::new(self.view);
        // What goes makes room for what comes.
        let mut here = Vec::new();
        for key in keys {
            match state.entry(self.view, &key) {
                Some(entry) => here.push((key, entry.to_string())),
                None => {
                    if self.forget(&key) {
                        messages.gone(&key);
                    }
                }
            }
        }
        for (key, entry) in here {
            let digest = self.hasher.hash_one(&entry);
            let cost = key.len() + entry.len() + OVERHEAD;
            let before = self.sent.get(&key).copied();
            if before.is_some_and(|(known, _)| known == digest) {
                continue;
            }
            if self.has_room(&key, &entry, before.map(|(_, cost)| cost), cost) {
                self.bytes = self.bytes + cost - before.map_or(0, |(_, cost)| cost);
                messages.entry(&key, entry);
                self.sent.insert(key, (digest, cost));
            } else {
                self.left_out = true;
                if self.forget(&key) {
                    messages.gone(&key);
                }
            }
        }
        let truncated = self.left_out || state.lacks(self.view);
        let said = std::mem::replace(&mut self.truncated, truncated);
        let whole = std::mem::take(&mut self.whole);
        let (view, entries) = (self.view.name(), self.sent.len());
        if whole {
            debug!(view, entries, truncated, "a whole view is pushed");
        }
        if truncated && !said && self.view != View::Events {
            warn!(view, entries, "there is more in the cluster than the view may hold");
        }
        messages.finish(whole, truncated, truncated != said)
    }

    /// Keys of what may differ from what the broker knows.
    fn candidates(&mut self, touched: Touched, state: &State) -> BTreeSet<Box<str>> {
        // Enough has gone since for another look at what had no room.
        let room =
            self.left_out && self.sent.len() < ENTRIES * 9 / 10 && self.bytes < bytes(self.view) * 9 / 10;
        if !(self.whole || touched.all || room) {
            return touched.keys.into_iter().collect();
        }
        self.left_out = false;
        let mut keys = state.keys(self.view);
        keys.extend(self.sent.keys().cloned());
        keys
    }

    fn has_room(&self, key: &str, entry: &str, before: Option<usize>, cost: usize) -> bool {
        key.len() <= KEY
            && entry.len() <= ENTRY
            && (before.is_some() || self.sent.len() < ENTRIES)
            && self.bytes - before.unwrap_or(0) + cost <= bytes(self.view)
    }

    fn forget(&mut self, key: &str) -> bool {
        let known = self.sent.remove(key);
        self.bytes -= known.map_or(0, |(_, cost)| cost);
        known.is_some()
    }
}

/// A broker keeps 16 MiB for an agent: all views, and keys that have gone.
fn bytes(view: View) -> usize {
    const MIB: usize = 1 << 20;
    match view {
        View::Nodes | View::Workloads => 4 * MIB,
        View::Capacity => 3 * MIB,
        View::Events | View::Versions => MIB,
    }
}

/// The view is not kept.
pub(crate) fn ended(view: View) -> ViewUpdate {
    ViewUpdate { view: view.name().to_owned(), ended: true, ..ViewUpdate::default() }
}

/// Entries and keys, parted into messages of bounded size.
struct Messages {
    view: View,
    full: Vec<ViewUpdate>,
    last: ViewUpdate,
    bytes: usize,
}

impl Messages {
    fn new(view: View) -> Self {
        Self { view, full: Vec::new(), last: empty(view), bytes: 0 }
    }

    fn gone(&mut self, key: &str) {
        // Taken out before anything is put in, also within one message.
        self.room(key.len());
        self.last.gone.push(key.to_owned());
    }

    fn entry(&mut self, key: &str, entry: String) {
        self.room(key.len() + entry.len());
        self.last.entries.push(ViewEntry { key: key.to_owned(), value: entry.into_bytes().into() });
    }

    fn room(&mut self, size: usize) {
        let many = self.last.entries.len() >= MANY || self.last.gone.len() >= MANY;
        if many || self.bytes + size > MESSAGE {
            self.full.push(std::mem::replace(&mut self.last, empty(self.view)));
            self.bytes = 0;
        }
        self.bytes += size;
    }

    /// In the order in which they are to be sent.
    fn finish(self, whole: bool, truncated: bool, news: bool) -> Vec<ViewUpdate> {
        let Self { mut full, last, .. } = self;
        if whole || news || !last.entries.is_empty() || !last.gone.is_empty() {
            full.push(last);
        }
        let messages = full.len();
        for (index, message) in full.iter_mut().enumerate() {
            message.truncated = truncated;
            message.whole = whole && index == 0;
            message.more = whole && index + 1 < messages;
        }
        full
    }
}

fn empty(view: View) -> ViewUpdate {
    ViewUpdate { view: view.name().to_owned(), ..ViewUpdate::default() }
}
