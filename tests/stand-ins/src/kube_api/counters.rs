//! How many requests of each kind are open, and which came last: what tests of cancellation and back pressure look at.
//! A request counts as open from its head until its answer's body is done or dropped, so a leak shows as a number that
//! does not go back to zero.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, Method, Uri};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body, Frame, SizeHint};
use serde_json::{Value, json};

/// How many requests are remembered.
const REMEMBERED: usize = 512;

pub(super) type ResponseBody = UnsyncBoxBody<Bytes, io::Error>;

/// A request as it arrived. `Authorization` is kept but marked sensitive, so that printing this does not print it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub uri: Uri,
    pub headers: HeaderMap,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// By kind: open now, ever opened. The kinds are names in this crate, so the map is bounded.
    kinds: BTreeMap<&'static str, (u64, u64)>,
    seen: VecDeque<Seen>,
}

/// One open request; counted until this is dropped.
#[derive(Debug)]
pub(super) struct OpenGuard {
    counters: Arc<Counters>,
    kind: &'static str,
}

impl Counters {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(self: &Arc<Self>, kind: &'static str) -> OpenGuard {
        let mut inner = self.lock();
        let (open, total) = inner.kinds.entry(kind).or_default();
        *open += 1;
        *total += 1;
        OpenGuard { counters: self.clone(), kind }
    }

    pub(super) fn remember(&self, mut seen: Seen) {
        if let Some(value) = seen.headers.get_mut(http::header::AUTHORIZATION) {
            value.set_sensitive(true);
        }
        let mut inner = self.lock();
        if inner.seen.len() == REMEMBERED {
            inner.seen.pop_front();
        }
        inner.seen.push_back(seen);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.lock().seen.iter().cloned().collect()
    }

    pub(super) fn open_of(&self, kind: &str) -> u64 {
        self.lock().kinds.get(kind).map_or(0, |(open, _)| *open)
    }

    pub(super) fn open_in_all(&self) -> u64 {
        self.lock().kinds.values().map(|(open, _)| open).sum()
    }

    /// `{"open": {kind: n}, "total": {kind: n}, "open_in_all": n}`
    pub(super) fn document(&self) -> Value {
        let inner = self.lock();
        let open: BTreeMap<_, _> = inner.kinds.iter().map(|(kind, (open, _))| (kind, open)).collect();
        let total: BTreeMap<_, _> = inner.kinds.iter().map(|(kind, (_, total))| (kind, total)).collect();
        let in_all: u64 = inner.kinds.values().map(|(open, _)| open).sum();
        json!({"open": open, "total": total, "open_in_all": in_all})
    }
}

impl Drop for OpenGuard {
    fn drop(&mut self) {
        if let Some((open, _)) = self.counters.lock().kinds.get_mut(self.kind) {
            *open -= 1;
        }
    }
}

/// A body that keeps its request counted while it is being sent.
pub(super) fn guarded(body: ResponseBody, guard: OpenGuard) -> ResponseBody {
    Guarded { body, _guard: guard }.boxed_unsync()
}

struct Guarded {
    body: ResponseBody,
    _guard: OpenGuard,
}

impl Body for Guarded {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
