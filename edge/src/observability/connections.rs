//! Which connections are open: `/connections`, and what an access line says about the one it came on.
//!
//! An entry is made when a connection is accepted and goes with it; `limits.connections` bounds how many there are.
//! The lock is taken twice in a connection's life, and while somebody lists.

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::{Bound, Deref};
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio_rustls::rustls::ProtocolVersion;

const KINDS: [&str; 4] = ["opening", "http2", "websocket", "http1"];

/// All open connections of the process.
#[derive(Debug, Default)]
pub struct Register {
    open: Mutex<BTreeMap<u64, Arc<Entry>>>,
    last: AtomicU64,
}

/// One of them.
#[derive(Debug)]
pub struct Entry {
    /// Unique in this process, in the order of arrival.
    pub id: u64,
    pub client: SocketAddr,
    /// The address that it came to; `None` for a socket that has none.
    pub listener: Option<SocketAddr>,
    since: Instant,
    kind: AtomicU8,
    /// The minor version of TLS 1, plus one; 0: none.
    tls: AtomicU8,
    streams: AtomicU32,
    finished: AtomicU64,
}

/// Keeps an entry in the register.
#[derive(Debug)]
pub struct Guard {
    entry: Arc<Entry>,
    register: Arc<Register>,
}

/// Counts a stream as open on its connection.
#[derive(Debug)]
pub struct StreamGuard(Arc<Entry>);

impl Register {
    pub fn enter(self: &Arc<Self>, client: SocketAddr, listener: Option<SocketAddr>) -> Guard {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let entry = Arc::new(Entry {
            id,
            client,
            listener,
            since: Instant::now(),
            kind: AtomicU8::new(0),
            tls: AtomicU8::new(0),
            streams: AtomicU32::new(0),
            finished: AtomicU64::new(0),
        });
        self.open().insert(id, Arc::clone(&entry));
        Guard { entry, register: Arc::clone(self) }
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.open().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest of those with an id above `after`, at most `limit`.
    pub fn list(&self, after: u64, limit: usize) -> Value {
        let (total, page) = {
            let open = self.open();
            let page: Vec<_> = open
                .range((Bound::Excluded(after), Bound::Unbounded))
                .take(limit)
                .map(|(_, e)| e.clone())
                .collect();
            (open.len(), page)
        };
        let next = (page.len() == limit).then(|| page.last().map(|entry| entry.id)).flatten();
        let connections: Vec<_> = page.iter().map(|entry| entry.shown()).collect();
        json!({ "open": total, "next_after": next, "connections": connections })
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Entry>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// What the connection turned out to be: `http2`, `websocket` or `http1`.
    pub fn note_kind(&self, kind: &'static str) {
        let index = KINDS.iter().position(|name| *name == kind).unwrap_or(0);
        self.kind.store(index as u8, Ordering::Relaxed);
    }

    /// TLS was agreed on.
    pub fn note_tls(&self, version: Option<ProtocolVersion>) {
        let minor = match version {
            Some(ProtocolVersion::TLSv1_2) => 2,
            Some(ProtocolVersion::TLSv1_3) => 3,
            _ => 0,
        };
        self.tls.store(minor, Ordering::Relaxed);
    }

    pub fn kind(&self) -> &'static str {
        KINDS[usize::from(self.kind.load(Ordering::Relaxed)).min(KINDS.len() - 1)]
    }

    /// The version of TLS; `None` in the clear.
    pub fn tls(&self) -> Option<&'static str> {
        match self.tls.load(Ordering::Relaxed) {
            2 => Some("1.2"),
            3 => Some("1.3"),
            _ => None,
        }
    }

    /// A stream was opened; it is open while the guard lives.
    pub fn stream(self: &Arc<Self>) -> StreamGuard {
        self.streams.fetch_add(1, Ordering::Relaxed);
        StreamGuard(self.clone())
    }

    pub(crate) fn note_finished(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    fn shown(&self) -> Value {
        json!({
            "id": self.id,
            "client": self.client.to_string(),
            "listener": self.listener.map(|listener| listener.to_string()),
            "transport": self.kind(),
            "tls": self.tls(),
            "age_seconds": self.since.elapsed().as_secs(),
            "grpc_streams": self.streams.load(Ordering::Relaxed),
            "finished": self.finished.load(Ordering::Relaxed),
        })
    }
}

impl Guard {
    pub fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }
}

impl Deref for Guard {
    type Target = Entry;

    fn deref(&self) -> &Entry {
        &self.entry
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.register.open().remove(&self.entry.id);
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_listed_oldest_first_a_page_at_a_time_and_leave_by_themselves() {
        let register = Arc::new(Register::default());
        let client = "192.0.2.1:5".parse().unwrap();
        let mut guards: Vec<_> = (0..5).map(|_| register.enter(client, None)).collect();
        guards[1].note_kind("websocket");
        let _stream = guards[2].entry().clone();
        let page = register.list(0, 2);
        assert_eq!((page["open"].as_u64(), page["next_after"].as_u64()), (Some(5), Some(2)));
        assert_eq!(page["connections"][0]["transport"], "opening");
        assert_eq!(page["connections"][1]["transport"], "websocket");
        drop(guards.remove(3));
        let page = register.list(2, 10);
        let ids: Vec<_> = page["connections"].as_array().unwrap().iter().map(|c| c["id"].as_u64()).collect();
        assert_eq!(ids, [Some(3), Some(5)]);
        assert!(page["next_after"].is_null());
        drop(guards);
        assert!(register.is_empty());
    }

    #[test]
    fn streams_count_while_they_are_open() {
        let register = Arc::new(Register::default());
        let guard = register.enter("[2001:db8::1]:5".parse().unwrap(), Some("127.0.0.1:1".parse().unwrap()));
        let stream = guard.entry().stream();
        assert_eq!(register.list(0, 1)["connections"][0]["grpc_streams"], 1);
        drop(stream);
        guard.note_finished();
        let shown = &register.list(0, 1)["connections"][0];
        assert_eq!((shown["grpc_streams"].as_u64(), shown["finished"].as_u64()), (Some(0), Some(1)));
        assert_eq!(shown["listener"], "127.0.0.1:1");
    }

    #[test]
    fn an_entry_costs_little() {
        assert!(size_of::<Entry>() <= 128, "{}", size_of::<Entry>());
    }
}
