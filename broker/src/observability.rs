//! What the broker counts and whether it is ready. Served by `listeners/observability.rs`; no label ever carries a
//! token, a path or anything a stranger chooses.

use crate::tunnel::registry::Registry;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry as MetricRegistry,
};
use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StatusLabel {
    class: StatusClass,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: Route,
}

/// Whose tunnel a request got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Route {
    /// This process'.
    Here,
    /// Another broker's.
    Peer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
enum StatusClass {
    Informational,
    Success,
    Redirection,
    ClientError,
    ServerError,
    Cancelled,
}

/// All numbers of this process.
#[derive(Debug)]
pub struct Metrics {
    registry: MetricRegistry,
    requests: Family<StatusLabel, Counter>,
    routes: Family<RouteLabel, Counter>,
    agents: Gauge,
    idle: Gauge,
    busy: Gauge,
    waiting: Gauge,
    events_dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = MetricRegistry::with_prefix("postern_broker");
        let requests = Family::default();
        let routes = Family::default();
        registry.register(
            "routed_requests",
            "Requests that got a tunnel, by whether it was of this broker or of another one",
            routes.clone(),
        );
        let (agents, idle, busy, waiting) =
            (Gauge::default(), Gauge::default(), Gauge::default(), Gauge::default());
        registry.register(
            "kubernetes_api_requests",
            "Requests to the Kubernetes API listener, by class of status",
            requests.clone(),
        );
        registry.register(
            "connected_agents",
            "Agents with a tunnel or a configuration stream here",
            agents.clone(),
        );
        registry.register("tunnels_idle", "Tunnels that wait for a request", idle.clone());
        registry.register("tunnels_busy", "Tunnels that carry a request", busy.clone());
        registry.register("requests_waiting", "Requests that wait for a tunnel", waiting.clone());
        let events_dropped = Counter::default();
        registry.register(
            "events_dropped",
            "Events that Rails' cable did not get because its Redis was away or slow",
            events_dropped.clone(),
        );
        Self { registry, requests, routes, agents, idle, busy, waiting, events_dropped }
    }
}

impl Metrics {
    /// Counts events that nobody got to see.
    pub fn events_dropped(&self) -> Counter {
        self.events_dropped.clone()
    }

    /// Counts one request by its status; 0 stands for a caller that left before there was one.
    pub fn finished(&self, status: u16) {
        let class = match status / 100 {
            1 => StatusClass::Informational,
            2 => StatusClass::Success,
            3 => StatusClass::Redirection,
            4 => StatusClass::ClientError,
            0 => StatusClass::Cancelled,
            _ => StatusClass::ServerError,
        };
        self.requests.get_or_create(&StatusLabel { class }).inc();
    }

    /// Counts one request that got a tunnel.
    pub fn routed(&self, route: Route) {
        self.routes.get_or_create(&RouteLabel { route }).inc();
    }

    /// All numbers in the OpenMetrics text format.
    pub fn text(&self, registry: &Registry) -> Result<String, fmt::Error> {
        let census = registry.census();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.agents.set(number(census.agents));
        self.idle.set(number(census.idle));
        self.busy.set(number(census.busy));
        self.waiting.set(number(census.waiting));
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Whether this process should receive new work.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Every listener is bound and the identities are loaded.
    pub fn ready(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// The first step of a drain.
    pub fn draining(&self) {
        self.0.store(false, Ordering::Release);
    }

    /// What the probe answers.
    pub fn is_ready(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_counted_by_class() {
        let metrics = Metrics::default();
        for status in [200, 204, 404, 0] {
            metrics.finished(status);
        }
        let text = metrics.text(&Registry::default()).unwrap();
        assert!(text.contains("postern_broker_kubernetes_api_requests_total{class=\"Success\"} 2"), "{text}");
        assert!(text.contains("class=\"Cancelled\"} 1"), "{text}");
    }
}
