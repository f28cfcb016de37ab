//! Watches: a stream of events that follows the store's history from a version on. A watch holds nothing but its place
//! in the history and the few events being written, so a reader that stops reading costs nothing; when the history has
//! moved past it, it gets one `410 Gone` event and ends, and the client lists again.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::resources::Resource;
use super::selectors::Selector;
use super::status::Failure;
use super::store::{Change, Store};
use super::table::Form;

/// Changes taken from the history at once.
const BATCH: usize = 64;

/// What a client asked to watch.
#[derive(Debug)]
pub(super) struct Query {
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<String>,
    pub(super) selector: Selector,
    pub(super) form: Form,
    pub(super) start: Start,
    pub(super) bookmarks: bool,
    /// Ends the watch; `None`: only the client or the server's end does.
    pub(super) timeout: Option<Duration>,
}

/// Where a watch begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// All objects as they are, as events, and then their changes.
    State,
    /// As `State`, with a marked bookmark after the objects (`sendInitialEvents=true`).
    MarkedState,
    /// The changes after this version.
    After(u64),
}

struct Watch {
    store: Arc<Store>,
    query: Query,
    cursor: u64,
    lines: VecDeque<Bytes>,
    ended: bool,
    deadline: Option<Instant>,
    bookmark_every: Duration,
    next_bookmark: Instant,
    changed: tokio::sync::watch::Receiver<u64>,
    stop: CancellationToken,
}

/// The watch as lines of JSON.
pub(super) fn events(
    store: Arc<Store>,
    query: Query,
    bookmark_every: Duration,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let now = Instant::now();
    let mut watch = Watch {
        changed: store.subscribe(),
        cursor: 0,
        lines: VecDeque::new(),
        ended: false,
        deadline: query.timeout.map(|timeout| now + timeout),
        bookmark_every,
        next_bookmark: now + bookmark_every,
        stop,
        store,
        query,
    };
    watch.begin();
    stream::unfold(watch, |mut watch| async move {
        let line = watch.next().await?;
        Some((Ok(line), watch))
    })
}

impl Watch {
    fn begin(&mut self) {
        if let Start::After(version) = self.query.start {
            self.cursor = version;
            return;
        }
        let (objects, version) = self.store.list(self.query.resource, self.query.namespace.as_deref());
        self.cursor = version;
        for object in objects {
            if self.query.selector.matches(&object) {
                self.push("ADDED", &object);
            }
        }
        if self.query.start == Start::MarkedState {
            self.bookmark(json!({"k8s.io/initial-events-end": "true"}));
        }
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.lines.pop_front() {
                return Some(line);
            }
            if self.ended {
                return None;
            }
            self.changed.borrow_and_update();
            let taken =
                self.store.changes(self.query.resource, self.query.namespace.as_deref(), self.cursor, BATCH);
            match taken {
                Err(expired) => self.fail(&expired),
                Ok((changes, cursor)) => {
                    self.cursor = cursor;
                    for change in &changes {
                        self.push_change(change);
                    }
                    if self.lines.is_empty() && changes.len() < BATCH {
                        self.wait().await;
                    }
                }
            }
        }
    }

    async fn wait(&mut self) {
        let deadline = self.deadline;
        let timed_out = async move {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let mut bookmark_due = false;
        tokio::select! {
            changed = self.changed.changed() => self.ended = changed.is_err(),
            () = timed_out => self.ended = true,
            () = self.stop.cancelled() => self.ended = true,
            () = sleep_until(self.next_bookmark), if self.query.bookmarks => bookmark_due = true,
        }
        if bookmark_due {
            self.next_bookmark = Instant::now() + self.bookmark_every;
            self.bookmark(Value::Null);
        }
    }

    /// An object that begins or ceases to match the selector appears or disappears for this watch.
    fn push_change(&mut self, change: &Change) {
        let matches =
            |object: &Option<Arc<Value>>| object.as_ref().is_some_and(|o| self.query.selector.matches(o));
        match (matches(&change.before), matches(&change.after)) {
            (false, true) => self.push("ADDED", &change.last),
            (true, true) => self.push("MODIFIED", &change.last),
            (true, false) => self.push("DELETED", &change.last),
            (false, false) => {}
        }
    }

    fn push(&mut self, kind: &str, object: &Value) {
        let object = self.query.form.one(self.query.resource, object);
        self.line(&json!({"type": kind, "object": object}));
    }

    fn bookmark(&mut self, annotations: Value) {
        let mut object = json!({
            "kind": self.query.resource.kind,
            "apiVersion": self.query.resource.api_version(),
            "metadata": {"resourceVersion": self.cursor.to_string()},
        });
        if !annotations.is_null() {
            object["metadata"]["annotations"] = annotations;
        }
        if let Form::Table(_) = self.query.form {
            object = json!({
                "kind": "Table",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
                "columnDefinitions": [],
                "rows": [],
            });
        }
        self.line(&json!({"type": "BOOKMARK", "object": object}));
    }

    fn fail(&mut self, failure: &Failure) {
        self.line(&json!({"type": "ERROR", "object": failure.status()}));
        self.ended = true;
    }

    fn line(&mut self, event: &Value) {
        self.lines.push_back(Bytes::from(format!("{event}\n")));
    }
}
