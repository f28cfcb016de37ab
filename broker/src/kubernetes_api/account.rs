//! The audit line of a request: who asked what of whom, what was decided and why, what came of it. Written when the request
//! is over, exactly once, whichever way it ends. No secret and no query gets in, since queries can hold tokens.

use super::{
    ExchangeError,
    client::Client,
    rules::{Denied, Verdict},
};
use crate::{
    auth::caller::{CallerPermit, Credential, Who},
    drain::{Running, UnderWay},
    error::ApiFailure,
    fleet::router::Tunnel,
    observability::{Denial, Metrics, Route},
    spans::{Recording, Tracing},
};
use http::{HeaderMap, Request, StatusCode};
use postern_telemetry::{Context, RequestId, TRACEPARENT, Value};
use postern_wire::token::TokenKey;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::time::Instant;

/// Characters of a path, and of a reason that an agent may have a say in.
const MAX_TEXT: usize = 512;

/// What is known about one request.
pub(super) struct Account {
    /// The edge's, or whoever else's asked; otherwise made here.
    pub(super) trace_id: String,
    /// Absent: this request is not traced.
    recording: Option<Recording>,
    /// How the caller proved who it is; empty if it did not try.
    caller_kind: &'static str,
    token: Option<TokenKey>,
    client: Client,
    who: Option<Who>,
    pub(super) agent: Option<i64>,
    access: Option<&'static str>,
    /// The broker that had the tunnel, if it was not this one.
    via: Option<String>,
    method: String,
    path: String,
    decision: &'static str,
    /// The access policy that denied it.
    policy: Option<Denied>,
    /// The one that would have.
    reported: Option<Denied>,
    /// Of a refusal or a failure.
    why: Option<String>,
    pub(super) status: u16,
    pub(super) outcome: &'static str,
    /// Bytes of the answer's body.
    pub(super) sent: u64,
    /// Bytes of the request's body; counted where it is read.
    received: Arc<AtomicU64>,
    start: Instant,
    metrics: Arc<Metrics>,
    /// Counts the request as under way, from its head to its end, so that a drain can wait for it.
    pub(super) under_way: UnderWay,
}

impl Account {
    pub(super) fn open<B>(
        request: &Request<B>,
        metrics: Arc<Metrics>,
        under_way: &Running,
        tracing: Option<&Tracing>,
    ) -> Self {
        let id = RequestId::given(request.headers()).unwrap_or_else(RequestId::random);
        Self {
            trace_id: id.to_string(),
            recording: tracing.and_then(|tracing| tracing.begin(Context::of(request.headers()))),
            caller_kind: "",
            token: None,
            client: Client::default(),
            who: None,
            agent: None,
            access: None,
            via: None,
            method: shortened(request.method().as_str()),
            path: shortened(request.uri().path()),
            decision: "undecided",
            policy: None,
            reported: None,
            why: None,
            status: 0,
            outcome: "cancelled",
            sent: 0,
            received: Arc::default(),
            start: Instant::now(),
            metrics,
            under_way: under_way.enter(),
        }
    }

    /// Somebody claims to be allowed.
    pub(super) fn claimed(&mut self, credential: &Credential) {
        self.caller_kind = credential.kind().as_str();
        self.token = Some(credential.token);
        self.agent = Some(credential.agent.0);
    }

    /// From where, as far as that is known.
    pub(super) fn comes_from(&mut self, client: Client) {
        self.client = client;
    }

    /// As [`Self::comes_from`] was told.
    pub(super) fn client(&self) -> Client {
        self.client
    }

    /// What the policies said first.
    pub(super) fn judged(&mut self, verdict: &Verdict) {
        if let Some(denied) = &verdict.denied {
            self.metrics.denied(Denial::Refused);
            self.decision = "denied";
            self.policy = Some(denied.clone());
        } else if let Some(reported) = &verdict.reported {
            self.metrics.denied(Denial::Reported);
            self.reported = Some(reported.clone());
        }
    }

    /// What was allowed no longer is.
    pub(super) fn ends(&mut self, error: &ExchangeError) {
        match error {
            ExchangeError::Withdrawn => self.decision = "withdrawn",
            ExchangeError::Denied(denied) => {
                self.metrics.denied(Denial::Ended);
                self.decision = "denied";
                self.policy = Some((**denied).clone());
            }
            _ => {}
        }
    }

    /// Somebody who is known may not.
    pub(super) fn known(&mut self, who: Option<Who>) {
        self.who = who;
    }

    pub(super) fn allowed(&mut self, permit: &CallerPermit) {
        self.who = Some(permit.who.clone());
        self.access = Some(permit.access.mode());
        self.decision = "allowed";
    }

    /// What the agent shall take for its caller, if this request is traced: the tunnel. It replaces the caller's own.
    pub(super) fn through_tunnel(&mut self, headers: &mut HeaderMap) -> Option<Context> {
        let context = self.recording.as_mut()?.through_tunnel();
        headers.insert(TRACEPARENT, context.to_header());
        Some(context)
    }

    /// There is a tunnel.
    pub(super) fn routed(&mut self, tunnel: &Tunnel) {
        self.via = tunnel.broker().map(ToString::to_string);
        self.metrics.routed(if self.via.is_some() { Route::Peer } else { Route::Here });
    }

    /// Who is allowed may not do this with this agent.
    pub(super) fn refuse(&mut self) {
        self.decision = "refused";
    }

    /// A browser only asked whether it might.
    pub(super) fn preflight(&mut self, status: StatusCode) {
        (self.decision, self.outcome, self.status) = ("preflight", "complete", status.as_u16());
    }

    /// The request ends with this instead of the cluster's answer.
    pub(super) fn failed(&mut self, failure: &ApiFailure) {
        self.status = failure.code.as_u16();
        self.outcome = if failure.code.is_server_error() { "failed" } else { "refused" };
        self.why = Some(shortened(&failure.message));
        if self.decision == "undecided" {
            self.decision = if failure.code.is_server_error() { "undecided" } else { "refused" };
        }
    }

    /// The answer ends before it is whole.
    pub(super) fn broken(&mut self, why: &str) {
        self.outcome = "broken";
        self.why = Some(shortened(why));
    }

    /// Where bytes of the request's body are counted.
    pub(super) fn received(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.received)
    }
}

impl Account {
    /// The same as spans.
    fn record(&mut self) {
        let Some(recording) = self.recording.take() else { return };
        let mut attributes = vec![
            ("postern.request_id", Value::from(std::mem::take(&mut self.trace_id))),
            ("http.request.method", std::mem::take(&mut self.method).into()),
            ("url.path", std::mem::take(&mut self.path).into()),
            ("http.response.status_code", self.status.into()),
            ("http.request.body.size", self.received.load(Ordering::Relaxed).into()),
            ("http.response.body.size", self.sent.into()),
            ("postern.decision", self.decision.into()),
            ("postern.outcome", self.outcome.into()),
        ];
        attributes.extend(self.who.as_ref().map(|who| ("postern.caller", who.to_string().into())));
        attributes.extend(self.agent.map(|agent| ("postern.agent.id", agent.into())));
        let mut tunnel: Vec<(&'static str, Value)> = Vec::new();
        tunnel.extend(self.agent.map(|agent| ("postern.agent.id", agent.into())));
        tunnel.extend(self.via.take().map(|via| ("postern.via", via.into())));
        let failed = matches!(self.outcome, "failed" | "broken");
        let error = failed.then(|| self.why.take().unwrap_or_else(|| self.outcome.to_owned()));
        recording.finish("kas Kubernetes API", attributes, tunnel, error);
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(MAX_TEXT).collect()
}

impl Drop for Account {
    fn drop(&mut self) {
        self.metrics.finished(self.status);
        let (mut job_id, mut project_id, mut user) = (None, None, None);
        match &self.who {
            Some(Who::Job { job, project, username, .. }) => {
                (job_id, project_id, user) = (Some(*job), Some(*project), Some(username.as_str()));
            }
            Some(Who::User { username, .. }) => user = Some(username.as_str()),
            Some(Who::Named(_)) | None => {}
        }
        let caller = self.who.as_ref().map(Who::to_string).unwrap_or_default();
        let otel_trace_id = self.recording.as_ref().map(|recording| recording.context().trace);
        tracing::info!(
            target: "access", trace_id = %self.trace_id,
            otel_trace_id = otel_trace_id.map(tracing::field::display), caller_kind = self.caller_kind,
            token = self.token.map(tracing::field::display), client = self.client.address().map(tracing::field::display), caller = %caller, job_id,
            project_id, user_id = self.who.as_ref().and_then(Who::user_id), user, agent_id = self.agent,
            access_as = self.access, via = self.via.as_deref(), method = %self.method, path = %self.path, decision = self.decision,
            policy = self.policy.as_ref().map(|denied| denied.policy.as_str()),
            rule = self.policy.as_ref().map(|denied| denied.place.as_str()),
            reported_policy = self.reported.as_ref().map(|denied| denied.policy.as_str()),
            reported_rule = self.reported.as_ref().map(|denied| denied.place.as_str()),
            status = self.status, outcome = self.outcome, why = self.why.as_deref(),
            bytes_received = self.received.load(Ordering::Relaxed), bytes_sent = self.sent,
            duration_ms = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
            "request"
        );
        self.record();
    }
}
