//! How much callers may ask of the cluster at once: in all, and each of them. Before it: `kubernetes_api.rs`, which knows
//! whose request it is. Whoever is over a limit is answered at once with 429; nothing here queues, and a limit that is
//! lowered cuts nobody off. The table holds callers with something open, and forgets each with its last request.

#[cfg(test)]
mod tests;

use crate::{
    configuration,
    observability::Metrics,
    services::{Replies, TunnelEnded},
};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use postern_wire::{
    http::{append_via, response_header},
    metadata::Program,
    proto::{
        gitlab::agent::{
            agentcfg::{AgentConfiguration, KubernetesApiCf},
            grpctool::http_response,
        },
        postern::agent::Problem,
    },
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tracing::warn;

/// Requests are short; whoever waits this long has good chances. Seconds, as the header has it.
const RETRY_AFTER: u32 = 1;
/// Between two lines about refused requests, however many there are.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// Whose request it is, as the broker vouches for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Caller {
    /// Everybody who comes with the agent's own rights. Whoever then impersonates by headers of their own is still one
    /// of them: they could take another name for every request.
    Agent,
    /// Whom the broker has the agent impersonate: a user, a job.
    Named(Box<str>),
}

/// The most requests that are open at once; 0: any number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Most {
    /// Of all callers together.
    pub in_all: u32,
    /// Of each caller.
    pub per_caller: u32,
}

/// The limits, and what is open. Clones share it.
#[derive(Clone, Default)]
pub struct Limits(Arc<Shared>);

#[derive(Default)]
struct Shared {
    open: Mutex<Open>,
    metrics: Metrics,
}

#[derive(Default)]
struct Open {
    most: Most,
    in_all: u32,
    callers: HashMap<Caller, u32>,
    /// When a refusal was last logged, and how many there have been since.
    said: Option<Instant>,
    unsaid: u64,
}

/// One open request. Dropping it is its end.
pub(super) struct Permit {
    limits: Limits,
    caller: Caller,
}

/// Why a request is not served now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Busy {
    #[error(
        "GitLab Agent: {0} requests to this cluster are open, and its agent's configuration allows no more at once \
         (kubernetes_api.max_concurrent_requests); try again in {RETRY_AFTER} s"
    )]
    All(u32),
    #[error(
        "GitLab Agent: you have {0} requests to this cluster open, and its agent's configuration allows no caller more \
         at once (kubernetes_api.max_concurrent_requests_per_caller); end a watch or exec, or try again in {RETRY_AFTER} s"
    )]
    Caller(u32),
}

impl Most {
    /// What a configuration asks for.
    pub fn of(configuration: &AgentConfiguration) -> Self {
        let KubernetesApiCf { max_concurrent_requests, max_concurrent_requests_per_caller } =
            configuration.kubernetes_api.unwrap_or_default();
        Self { in_all: max_concurrent_requests, per_caller: max_concurrent_requests_per_caller }
    }
}

/// What is wrong with the limits that a configuration asks for.
pub fn check(configuration: &AgentConfiguration) -> Vec<Problem> {
    let Most { in_all, per_caller } = Most::of(configuration);
    if in_all != 0 && per_caller > in_all {
        let text = format!("{per_caller} can never be reached: max_concurrent_requests is {in_all}");
        return vec![configuration::problem("kubernetes_api.max_concurrent_requests_per_caller", text)];
    }
    Vec::new()
}

impl Limits {
    /// None yet; `metrics` count what is open and what is refused.
    pub fn new(metrics: Metrics) -> Self {
        Self(Arc::new(Shared { open: Mutex::default(), metrics }))
    }

    /// From now on. What is open stays open, and counts.
    pub fn set(&self, most: Most) {
        self.open().most = most;
    }

    /// Lets a request in, or says at once why not.
    pub(super) fn enter(&self, caller: Caller) -> Result<Permit, Busy> {
        let mut open = self.open();
        let of_caller = open.callers.get(&caller).copied().unwrap_or_default();
        let Most { in_all, per_caller } = open.most;
        let busy = if in_all != 0 && open.in_all >= in_all {
            Busy::All(in_all)
        } else if per_caller != 0 && of_caller >= per_caller {
            Busy::Caller(per_caller)
        } else {
            open.in_all += 1;
            open.callers.insert(caller.clone(), of_caller + 1);
            self.0.metrics.api_open.set(i64::from(open.in_all));
            drop(open);
            return Ok(Permit { limits: self.clone(), caller });
        };
        self.0.metrics.api_refused.get_or_create(&[("limit", busy.limit())]).inc();
        let now = Instant::now();
        if open.said.is_some_and(|said| now - said < SAY_EVERY) {
            open.unsaid += 1;
            return Err(busy);
        }
        open.said = Some(now);
        let (more, running) = (std::mem::take(&mut open.unsaid), open.in_all);
        drop(open);
        let limit = busy.limit();
        warn!(
            limit,
            open = running,
            in_all,
            per_caller,
            more,
            "request to the Kubernetes API refused: too many at once"
        );
        Err(busy)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.limits.open();
        open.in_all -= 1;
        self.limits.0.metrics.api_open.set(i64::from(open.in_all));
        if let Some(of_caller) = open.callers.get_mut(&self.caller) {
            *of_caller -= 1;
            if *of_caller == 0 {
                open.callers.remove(&self.caller);
            }
        }
    }
}

impl Busy {
    fn limit(self) -> &'static str {
        match self {
            Self::All(_) => "all",
            Self::Caller(_) => "caller",
        }
    }

    /// Answers as the API server does when it is asked too much: every client knows what to do about that.
    pub(super) async fn answer(
        self,
        method: &Method,
        program: &Program,
        replies: &Replies,
    ) -> Result<(), TunnelEnded> {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        headers.insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER));
        append_via(&mut headers, &format!("1.1 {program}"));
        replies.send(&response_header(StatusCode::TOO_MANY_REQUESTS, &headers)).await?;
        if *method != Method::HEAD {
            let data = http_response::Data { data: self.body().into() };
            replies.send(&super::response(http_response::Message::Data(data))).await?;
        }
        replies.send(&super::response(http_response::Message::Trailer(http_response::Trailer {}))).await
    }

    /// A `Status` of Kubernetes.
    fn body(self) -> String {
        serde_json::json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.to_string(),
            "reason": "TooManyRequests",
            "details": { "retryAfterSeconds": RETRY_AFTER },
            "code": StatusCode::TOO_MANY_REQUESTS.as_u16(),
        })
        .to_string()
    }
}
