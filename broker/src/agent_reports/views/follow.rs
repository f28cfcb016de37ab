//! What a view holds and then what changes in it, in pages, for one who reads at his own pace. Before it: a view. After it:
//! a reader, who holds nothing here but the number of the last change that he has seen.

use super::{
    Kind, Views,
    view::{Logged, View},
};
use postern_wire::ids::AgentId;
use std::{sync::Arc, time::Duration};
use tokio::sync::watch;

/// Bytes of a page, and one entry more.
pub const PAGE: usize = 64 << 10;

/// A part of what a view holds, or what changed in it since the page before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// What came before is void.
    pub whole: bool,
    /// There is more at once.
    pub more: bool,
    /// Keys and JSON objects.
    pub entries: Vec<(Arc<str>, Arc<str>)>,
    /// Keys; gone before what `entries` says.
    pub gone: Vec<Arc<str>>,
    /// The stream that it came over has ended.
    pub stale: bool,
    /// There is more in the cluster than the view holds.
    pub truncated: bool,
    /// Revisions of one epoch can be compared.
    pub epoch: u64,
    /// Up to which changes are told.
    pub revision: u64,
    /// Since anything was heard of the view.
    pub heard_ago: Duration,
}

/// Follows one view. Cancel safe.
#[derive(Debug)]
pub struct Follower {
    views: Views,
    agent: AgentId,
    kind: Kind,
    epoch: u64,
    /// Of the last change that was told.
    revision: u64,
    /// What went before this is of no interest.
    begin: u64,
    /// Whether it was stale and truncated, once anything was told.
    told: Option<(bool, bool)>,
    changed: watch::Receiver<()>,
}

/// There is no such view any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended;

impl Follower {
    pub(super) fn new(views: Views, (agent, kind): (AgentId, Kind), view: &View) -> Self {
        let changed = view.watch();
        let (epoch, begin) = (view.epoch, view.revision);
        Self { views, agent, kind, epoch, revision: 0, begin, told: None, changed }
    }

    /// The next page as soon as there is one; `None`: the view is gone.
    pub async fn next(&mut self) -> Option<Page> {
        loop {
            self.changed.mark_unchanged();
            if let Some(page) = self.take(PAGE).ok()? {
                return Some(page);
            }
            // An error means that the view is gone, which the look will find.
            let _ = self.changed.changed().await;
        }
    }

    /// The next page if there is one, of about so many bytes.
    ///
    /// # Errors
    /// The view is gone.
    pub fn take(&mut self, bytes: usize) -> Result<Option<Page>, Ended> {
        let state = self.views.lock();
        let views = state.agents.get(&self.agent).map(|agent| &agent.views);
        let view = views.and_then(|views| views.get(&self.kind)).filter(|view| view.epoch == self.epoch);
        let view = view.ok_or(Ended)?;
        // That an entry is gone may be forgotten by now.
        if self.told.is_some() && self.revision < view.forgotten && self.begin < view.forgotten {
            (self.revision, self.begin, self.told) = (0, view.revision, None);
        }
        let now = (view.stale_since.is_some(), view.truncated);
        if self.told == Some(now) && self.revision == view.revision {
            return Ok(None);
        }
        let mut page = Page {
            whole: self.told.is_none(),
            more: false,
            entries: Vec::new(),
            gone: Vec::new(),
            stale: now.0,
            truncated: now.1,
            epoch: self.epoch,
            revision: view.revision,
            heard_ago: view.heard.elapsed(),
        };
        let mut size = 0;
        for (revision, logged) in view.log.range(self.revision + 1..) {
            if size >= bytes {
                (page.more, page.revision) = (true, self.revision);
                break;
            }
            self.revision = *revision;
            match logged {
                Logged::Changed(key) => {
                    let json = view.entries.get(key).map(|entry| Arc::clone(&entry.json)).unwrap_or_default();
                    size += key.len() + json.len();
                    page.entries.push((Arc::clone(key), json));
                }
                Logged::Gone(_) if *revision <= self.begin => {}
                Logged::Gone(key) => {
                    size += key.len();
                    page.gone.push(Arc::clone(key));
                }
            }
        }
        if !page.more {
            self.revision = view.revision;
        }
        self.told = Some(now);
        Ok(Some(page))
    }
}
