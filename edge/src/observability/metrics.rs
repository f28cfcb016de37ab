//! What the edge counts, in one place. Labels have few values, all ours: never a token, a path or an agent.

use crate::access_log::{Fault, Line};
use crate::decide::Route;
use crate::limits::Reported;
use crate::observability::flow::Flow;
use postern_policies::Kind as PolicyKind;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a connection is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Kind {
    kind: &'static str,
    tls: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    route: &'static str,
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Stage {
    stage: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct To {
    route: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Blame {
    route: &'static str,
    fault: &'static str,
}

/// What would be refused if a policy of `mode: report` were in force.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Supposed {
    kind: &'static str,
    limit: &'static str,
}

/// All counters of the process.
#[derive(Debug, Default)]
pub struct Metrics {
    connections: Family<Kind, Gauge>,
    accepted: Family<Kind, Counter>,
    requests: Family<Outcome, Counter>,
    faults: Family<Blame, Counter>,
    refusals: Family<Why, Counter>,
    departures: Family<Why, Counter>,
    reports: Family<Supposed, Counter>,
    handshake_failures: Family<Stage, Counter>,
    retries: Family<To, Counter>,
    /// Bytes and durations.
    pub(super) flow: Flow,
}

/// Counts a connection as open while it is held.
#[derive(Debug)]
pub struct ConnectionGuard(Gauge);

impl Metrics {
    /// Makes the counters visible to `/metrics`.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("postern_edge_connections", "Connections open now", self.connections.clone());
        registry.register(
            "postern_edge_accepted",
            "Connections by what they opened with",
            self.accepted.clone(),
        );
        registry.register(
            "postern_edge_requests",
            "Finished streams by route and status class",
            self.requests.clone(),
        );
        registry.register(
            "postern_edge_refusals",
            "What the edge answered or closed itself",
            self.refusals.clone(),
        );
        registry.register(
            "postern_edge_faults",
            "Streams that did not end well, by whose doing it was",
            self.faults.clone(),
        );
        registry.register(
            "postern_edge_handshake_failures",
            "Connections that ended before they could carry a stream",
            self.handshake_failures.clone(),
        );
        registry.register(
            "postern_edge_retries",
            "Requests that were taken to another broker, or sent again",
            self.retries.clone(),
        );
        registry.register(
            "postern_edge_departures",
            "Connections that the edge told to leave",
            self.departures.clone(),
        );
        registry.register(
            "postern_edge_policy_reports",
            "What policies of mode: report would have refused",
            self.reports.clone(),
        );
    }

    /// A connection turned out to be `http2`, `websocket` or `http1`.
    pub fn connection(&self, kind: &'static str, tls: bool) -> ConnectionGuard {
        let kind = Kind { kind, tls: if tls { "true" } else { "false" } };
        self.accepted.get_or_create(&kind).inc();
        let gauge = self.connections.get_or_create(&kind).clone();
        gauge.inc();
        ConnectionGuard(gauge)
    }

    /// A stream finished. gRPC hides its result in the trailers, so that decides where there is one.
    pub fn finished(&self, line: &Line<'_>) {
        let class = match (line.grpc_status, line.status) {
            (Some(0), _) => "grpc_ok",
            (Some(_), _) => "grpc_error",
            (None, 0) => "none",
            (None, 100..=199) => "1xx",
            (None, 200..=299) => "2xx",
            (None, 300..=399) => "3xx",
            (None, 400..=499) => "4xx",
            (None, _) => "5xx",
        };
        let route = line.route.name();
        self.requests.get_or_create(&Outcome { route, class }).inc();
        if line.fault != Fault::None {
            self.faults.get_or_create(&Blame { route, fault: line.fault.name() }).inc();
        }
        if let Some(refused) = line.refused {
            self.refusal(refused);
        }
        self.flow.count(line.route, line.bytes_in, line.bytes_out, line.duration);
    }

    /// Finished streams, bytes from clients and bytes to them, of a route.
    pub(super) fn totals(&self, route: Route) -> (u64, u64, u64) {
        self.flow.totals(route)
    }

    /// A connection got no further than `tls`, `opening`, `websocket` or `http2`.
    pub fn handshake_failure(&self, stage: &'static str) {
        self.handshake_failures.get_or_create(&Stage { stage }).inc();
    }

    /// A broker did not take a request, and another one, or the same again, is asked.
    pub fn retry(&self, route: Route) {
        self.retries.get_or_create(&To { route: route.name() }).inc();
    }

    /// A connection was told to leave.
    pub fn departure(&self, reason: &'static str) {
        self.departures.get_or_create(&Why { reason }).inc();
    }

    /// A policy of `mode: report` would have said no.
    pub fn report(&self, reported: &Reported) {
        let kind = if reported.kind == PolicyKind::AccessPolicy { "AccessPolicy" } else { "LimitPolicy" };
        self.reports.get_or_create(&Supposed { kind, limit: reported.limit }).inc();
    }

    /// The edge itself said no.
    pub fn refusal(&self, reason: &'static str) {
        self.refusals.get_or_create(&Why { reason }).inc();
    }
}

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}
