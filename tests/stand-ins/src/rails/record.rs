//! Which requests arrived: what tests of caches, headers and retries look at. Secrets are kept as SHA-256 only, so that
//! printing a record prints none.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::{HeaderMap, Method, Uri};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;

use super::jwt::Claims;

/// How many requests are remembered.
const REMEMBERED: usize = 4_096;

/// Headers whose values are secrets.
const SECRET: &[&str] = &[
    "authorization",
    "gitlab-agent-api-request",
    "gitlab-agentk-api-request",
    "gitlab-kas-api-request",
    "job-token",
    "private-token",
    "cookie",
];

/// What can be asked of this GitLab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Endpoint {
    AgentInfo,
    ProjectInfo,
    VerifyProjectAccess,
    AllowedAgents,
    AuthorizeProxyUser,
    UsageMetrics,
    AgentConfiguration,
    AgentEvents,
    Module,
    /// Anything else.
    Unknown,
}

/// A request as it arrived.
#[derive(Clone, Debug)]
pub struct Seen {
    pub endpoint: Endpoint,
    pub method: Method,
    /// With the relative path.
    pub uri: Uri,
    /// Those with secrets have hexadecimal SHA-256 in place of the value.
    pub headers: BTreeMap<String, String>,
    /// SHA-256 of the agent's or job's token, hexadecimal.
    pub token: Option<String>,
    /// The claims of the JWT, if it was good.
    pub claims: Option<Claims>,
    /// The body, if the endpoint reads one and it was JSON.
    pub body: Option<Value>,
}

pub(super) struct Records {
    inner: Mutex<Inner>,
    arrived: watch::Sender<u64>,
}

#[derive(Default)]
struct Inner {
    seen: VecDeque<Seen>,
    calls: BTreeMap<Endpoint, u64>,
}

impl Default for Records {
    fn default() -> Records {
        Records { inner: Mutex::default(), arrived: watch::Sender::new(0) }
    }
}

/// Hexadecimal SHA-256: the form in which records show secrets.
pub(super) fn hash(secret: &[u8]) -> String {
    hex::encode(Sha256::digest(secret))
}

pub(super) fn without_secrets(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut shown = BTreeMap::new();
    for (name, value) in headers {
        let text = if SECRET.contains(&name.as_str()) {
            hash(value.as_bytes())
        } else {
            String::from_utf8_lossy(value.as_bytes()).into_owned()
        };
        shown.insert(name.as_str().to_owned(), text);
    }
    shown
}

impl Records {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn remember(&self, seen: Seen) {
        {
            let mut inner = self.lock();
            *inner.calls.entry(seen.endpoint).or_default() += 1;
            if inner.seen.len() == REMEMBERED {
                inner.seen.pop_front();
            }
            inner.seen.push_back(seen);
        }
        self.arrived.send_modify(|count| *count += 1);
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.lock().seen.iter().cloned().collect()
    }

    pub(super) fn calls(&self, endpoint: Endpoint) -> u64 {
        self.lock().calls.get(&endpoint).copied().unwrap_or(0)
    }

    pub(super) fn arrivals(&self) -> watch::Receiver<u64> {
        self.arrived.subscribe()
    }
}
