//! One view of one agent: its entries and when each changed. Under [`super`], whose lock is held; nothing here waits.

use super::{Kind, Summary};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::{sync::watch, time::Instant};

/// Of an entry, beside its key and its JSON; in bytes.
const OVERHEAD: usize = 192;

#[derive(Debug)]
pub(super) struct View {
    pub(super) epoch: u64,
    /// Of the last change.
    pub(super) revision: u64,
    /// The stream that may change it.
    pub(super) owner: u64,
    pub(super) entries: BTreeMap<Arc<str>, Entry>,
    /// What changed when: each entry's last change, and entries that are gone.
    pub(super) log: BTreeMap<u64, Logged>,
    /// How many of those are gone.
    gone: usize,
    /// That an entry was gone then, or earlier, is forgotten.
    pub(super) forgotten: u64,
    pub(super) truncated: bool,
    pub(super) stale_since: Option<Instant>,
    pub(super) heard: Instant,
    /// Of the entries.
    bytes: usize,
    /// Of what is gone.
    gone_bytes: usize,
    /// Wakes followers; its end is that of the view.
    changed: watch::Sender<()>,
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) json: Arc<str>,
    revision: u64,
}

#[derive(Debug)]
pub(super) enum Logged {
    Changed(Arc<str>),
    Gone(Arc<str>),
}

/// What an entry costs.
pub(super) fn size(key: &str, json: &str) -> usize {
    key.len() + json.len() + OVERHEAD
}

impl View {
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            revision: 0,
            owner: 0,
            entries: BTreeMap::new(),
            log: BTreeMap::new(),
            gone: 0,
            forgotten: 0,
            truncated: false,
            stale_since: None,
            heard: Instant::now(),
            bytes: 0,
            gone_bytes: 0,
            changed: watch::Sender::new(()),
        }
    }

    /// What it takes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.gone_bytes
    }

    /// What its entries take: all that an agent can know of.
    pub(super) fn entries_bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn summary(&self, kind: Kind) -> Summary {
        Summary {
            kind,
            stale: self.stale_since.is_some(),
            truncated: self.truncated,
            entries: self.entries.len(),
            heard_ago: self.heard.elapsed(),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn wake(&self) {
        self.changed.send_replace(());
    }

    pub(super) fn put(&mut self, key: Arc<str>, json: Arc<str>) {
        match self.entries.get(&key) {
            Some(before) if before.json == json => return,
            Some(before) => {
                let (revision, size) = (before.revision, size(&key, &before.json));
                self.log.remove(&revision);
                self.bytes -= size;
            }
            None => {}
        }
        self.revision += 1;
        self.bytes += size(&key, &json);
        self.log.insert(self.revision, Logged::Changed(Arc::clone(&key)));
        self.entries.insert(key, Entry { json, revision: self.revision });
    }

    /// Removes it, and remembers so for as many as `kept` entries.
    pub(super) fn remove(&mut self, key: &str, kept: usize) {
        let Some((key, entry)) = self.entries.remove_entry(key) else { return };
        self.log.remove(&entry.revision);
        self.bytes -= size(&key, &entry.json);
        self.gone_bytes += size(&key, "");
        self.revision += 1;
        self.log.insert(self.revision, Logged::Gone(key));
        self.gone += 1;
        // The oldest half at once: looking for one of them costs as much.
        if self.gone > kept {
            let is_gone = |(revision, logged): (&u64, &Logged)| {
                if let Logged::Gone(key) = logged { Some((*revision, size(key, ""))) } else { None }
            };
            let oldest: Vec<_> = self.log.iter().filter_map(is_gone).take(self.gone - kept / 2).collect();
            for (revision, size) in oldest {
                self.log.remove(&revision);
                self.forgotten = revision;
                self.gone_bytes -= size;
                self.gone -= 1;
            }
        }
    }
}
