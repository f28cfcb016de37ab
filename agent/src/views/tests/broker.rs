//! What a broker makes of the messages, and what it would refuse.

use crate::views::keep::Line;
use postern_wire::proto::postern::agent::ViewUpdate;
use prost::Message as _;
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

pub(super) type Entries = BTreeMap<String, Value>;

pub(super) struct Broker {
    pub(super) line: watch::Sender<Line>,
    updates: Option<mpsc::Receiver<ViewUpdate>>,
    /// What came over the line, which is nothing at its beginning.
    pub(super) views: BTreeMap<String, Entries>,
    pub(super) truncated: BTreeSet<String>,
    pub(super) ended: BTreeSet<String>,
    pub(super) messages: usize,
    /// A whole that is not complete.
    staged: Option<(String, Entries)>,
}

impl Broker {
    pub(super) fn new() -> Self {
        Self {
            line: watch::Sender::new(Line::Closed),
            updates: None,
            views: BTreeMap::new(),
            truncated: BTreeSet::new(),
            ended: BTreeSet::new(),
            messages: 0,
            staged: None,
        }
    }

    /// Another connection, to a broker that knows nothing.
    pub(super) fn connect(&mut self) {
        let (sender, updates) = mpsc::channel(1);
        self.updates = Some(updates);
        self.forget();
        self.line.send_replace(Line::Open(sender));
    }

    pub(super) fn disconnect(&mut self) {
        self.updates = None;
        self.forget();
        self.line.send_replace(Line::Closed);
    }

    fn forget(&mut self) {
        (self.staged, self.messages) = (None, 0);
        self.views.clear();
        self.truncated.clear();
        self.ended.clear();
    }

    pub(super) fn view(&self, view: &str) -> &Entries {
        self.views.get(view).unwrap_or_else(|| panic!("no {view}"))
    }

    pub(super) fn entry(&self, view: &str, key: &str) -> Option<&Value> {
        self.views.get(view)?.get(key)
    }

    /// Takes messages until it is so.
    pub(super) async fn until(&mut self, what: &str, so: impl Fn(&Self) -> bool) {
        let waiting = async {
            while !so(self) {
                let updates = self.updates.as_mut().expect("it is connected");
                let update =
                    updates.recv().await.unwrap_or_else(|| panic!("the line is closed before {what}"));
                self.take(update);
            }
        };
        let waited = timeout(Duration::from_secs(60), waiting).await;
        waited.unwrap_or_else(|_| panic!("{what}; there is {:?}", self.views));
    }

    /// Takes messages until none has come for so long.
    pub(super) async fn settle(&mut self, quiet: Duration) {
        while let Some(updates) = &mut self.updates {
            match timeout(quiet, updates.recv()).await {
                Ok(Some(update)) => self.take(update),
                Ok(None) | Err(_) => return,
            }
        }
    }

    pub(super) fn take(&mut self, update: ViewUpdate) {
        self.messages += 1;
        assert!(update.encoded_len() <= 300 * 1024, "a message is too large");
        let ViewUpdate { view, whole, more, entries, gone, ended, truncated } = update;
        if ended {
            self.staged.take_if(|(staged, _)| *staged == view);
            self.views.remove(&view);
            self.truncated.remove(&view);
            self.ended.insert(view);
            return;
        }
        let read = |value: &[u8]| -> Value {
            assert!(value.len() <= 8 * 1024);
            let value: Value = serde_json::from_slice(value).expect("entries are JSON");
            assert!(value.is_object());
            value
        };
        let entries = entries.into_iter().map(|entry| (entry.key, read(&entry.value)));
        if whole {
            // One that the agent gave up does not count.
            self.staged = Some((view.clone(), Entries::new()));
        }
        let into = match &mut self.staged {
            Some((staged, into)) => {
                assert_eq!(*staged, view, "another view within a whole one");
                assert!(gone.is_empty());
                into
            }
            None => {
                assert!(!more);
                self.views.get_mut(&view).unwrap_or_else(|| panic!("changes of {view} before the whole"))
            }
        };
        for key in gone {
            assert!(into.remove(&key).is_some(), "{key} is gone twice");
        }
        for (key, value) in entries {
            assert!(key.len() <= 512);
            assert_ne!(into.insert(key.clone(), value.clone()), Some(value), "{view} {key} comes twice");
        }
        assert!(into.len() <= 5_000, "{view} is too large");
        if truncated {
            self.truncated.insert(view.clone());
        } else {
            self.truncated.remove(&view);
        }
        if !more && let Some((view, entries)) = self.staged.take() {
            self.views.insert(view, entries);
        }
    }
}
