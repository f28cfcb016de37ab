//! What the broker counts and whether it is ready. Served by `listeners/observability.rs`; no label ever carries a
//! token, a path or anything a stranger chooses.

use crate::{fleet::directory, tunnel::registry::Registry};
use postern_policies::Status;
use prometheus_client::{
    encoding::{
        EncodeLabelSet, EncodeLabelValue, LabelValueEncoder,
        text::{encode_eof, encode_registry},
    },
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::{ConstGauge, Gauge},
        info::Info,
    },
    registry::{Registry as MetricRegistry, Unit},
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

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DenialLabel {
    denial: Denial,
}

/// How access policies kept a request from its agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Denial {
    /// It was not let in.
    Refused,
    /// It ran, and was ended when the policies changed.
    Ended,
    /// Not at all: a policy of `mode: report` would have refused it.
    Reported,
}

impl EncodeLabelValue for Denial {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::Refused => "refused",
            Self::Ended => "ended",
            Self::Reported => "reported",
        };
        word.encode(encoder)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReportLabel {
    outcome: ReportOutcome,
}

/// What an agent reports of its configuration, or of the manifests of a project.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReportOutcome {
    /// The configuration is in force.
    ConfigurationApplied,
    /// It is not.
    ConfigurationFailed,
    /// Manifests are being applied.
    Synchronizing,
    /// All of them are.
    Synchronized,
    /// Some are.
    Degraded,
    /// None is.
    Failed,
}

impl EncodeLabelValue for ReportOutcome {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        let word = match self {
            Self::ConfigurationApplied => "configuration_applied",
            Self::ConfigurationFailed => "configuration_failed",
            Self::Synchronizing => "gitops_synchronizing",
            Self::Synchronized => "gitops_synchronized",
            Self::Degraded => "gitops_degraded",
            Self::Failed => "gitops_failed",
        };
        word.encode(encoder)
    }
}

/// What is counted of what agents tell of their own accord. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct KnownMetrics {
    reports: Family<ReportLabel, Counter>,
    /// Reports and streams of views that were turned away for what was in them or for how often they came.
    pub refused: Counter,
    /// Streams of views.
    pub streams: Gauge,
    /// Views that are kept.
    pub views: Gauge,
    /// Their size.
    pub bytes: Gauge,
    /// Messages of such streams.
    pub updates: Counter,
    /// Who reads views as they change.
    pub watchers: Gauge,
}

impl KnownMetrics {
    /// Counts one report.
    pub fn reported(&self, outcome: ReportOutcome) {
        self.reports.get_or_create(&ReportLabel { outcome }).inc();
    }

    fn register(&self, registry: &mut MetricRegistry) {
        registry.register("agent_reports", "Reports of agents, by what they say", self.reports.clone());
        registry.register(
            "agent_reports_refused",
            "Reports and streams of views that were not taken: wrong, too large or too often",
            self.refused.clone(),
        );
        registry.register("view_streams", "Agents' streams of views", self.streams.clone());
        registry.register("views", "Views of clusters that are kept", self.views.clone());
        registry.register_with_unit("views_size", "What they take", Unit::Bytes, self.bytes.clone());
        registry.register("view_updates", "Messages about views", self.updates.clone());
        registry.register("view_watchers", "Readers of views as they change", self.watchers.clone());
    }
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
    denials: Family<DenialLabel, Counter>,
    agents: Gauge,
    idle: Gauge,
    busy: Gauge,
    waiting: Gauge,
    events_dropped: Counter,
    known: KnownMetrics,
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
        let denials = Family::default();
        registry.register(
            "access_denials",
            "Requests to the Kubernetes API that access policies denied, or would have",
            denials.clone(),
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
        let known = KnownMetrics::default();
        known.register(&mut registry);
        Self { registry, requests, routes, denials, agents, idle, busy, waiting, events_dropped, known }
    }
}

impl Metrics {
    /// Counts events that nobody got to see.
    pub fn events_dropped(&self) -> Counter {
        self.events_dropped.clone()
    }

    /// Counts what agents tell.
    pub fn known(&self) -> KnownMetrics {
        self.known.clone()
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

    /// Counts one request that access policies denied.
    pub fn denied(&self, denial: Denial) {
        self.denials.get_or_create(&DenialLabel { denial }).inc();
    }

    /// Counts one request that got a tunnel.
    pub fn routed(&self, route: Route) {
        self.routes.get_or_create(&RouteLabel { route }).inc();
    }

    /// All numbers in the OpenMetrics text format; those of the directory where this broker is one of several.
    pub fn text(
        &self,
        registry: &Registry,
        policies: &Status,
        fleet: Option<&directory::Census>,
    ) -> Result<String, fmt::Error> {
        let census = registry.census();
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.agents.set(number(census.agents));
        self.idle.set(number(census.idle));
        self.busy.set(number(census.busy));
        self.waiting.set(number(census.waiting));
        let mut text = String::new();
        encode_registry(&mut text, &self.registry)?;
        encode_registry(&mut text, &policy_metrics(policies))?;
        if let Some(census) = fleet {
            encode_registry(&mut text, &fleet_metrics(census))?;
        }
        encode_eof(&mut text)?;
        Ok(text)
    }
}

fn policy_metrics(status: &Status) -> MetricRegistry {
    let mut registry = MetricRegistry::with_prefix("postern_broker_policy");
    let problems = status.problems.len() + status.more_problems;
    let gauges = [
        ("generation", "Policies put in force since the start, which is 1", status.generation),
        ("problems", "Why the policy files as they are now are not in force", problems as u64),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value));
    }
    let age = ConstGauge::new(status.age.as_secs_f64());
    registry.register_with_unit("age", "How long the present policies are in force", Unit::Seconds, age);
    let documents = Info::new(vec![("fingerprint", status.fingerprint.clone())]);
    registry.register("documents", "The same in every process that has the same files in force", documents);
    registry
}

fn fleet_metrics(census: &directory::Census) -> MetricRegistry {
    let mut registry = MetricRegistry::with_prefix("postern_broker_fleet");
    let gauges = [
        ("entries_announced", "Agents of this broker that Redis holds, or is about to", census.announced),
        ("routes_cached", "Agents of which it is remembered where they are", census.routes as u64),
        ("peers", "Other brokers, as far as they are known to live", census.peers as u64),
        ("redis_up", "Whether Redis answers", census.is_up.into()),
    ];
    for (name, help, value) in gauges {
        registry.register(name, help, ConstGauge::new(value));
    }
    let refresh = ConstGauge::new(census.refresh.as_secs_f64());
    let help = "How long the last refresh of all entries in Redis took";
    registry.register_with_unit("refresh", help, Unit::Seconds, refresh);
    let counters = [
        ("lookups", "Questions to Redis where an agent is", census.lookups),
        ("lookup_failures", "Those of them that Redis did not answer", census.lookup_failures),
        ("cache_hits", "Searches for an agent that were answered from memory", census.hits),
        ("news", "News of other brokers that were heard", census.news),
        ("passes", "Rounds of writing to Redis", census.passes),
        ("pass_failures", "Failures in such rounds", census.pass_failures),
    ];
    for (name, help, value) in counters {
        registry.register(name, help, ConstCounter::new(value));
    }
    registry
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
    use std::time::Duration;

    fn policies() -> Status {
        Status {
            directory: Some("policies".into()),
            generation: 7,
            fingerprint: "0123456789ab".to_owned(),
            age: Duration::from_millis(1_500),
            problems: Vec::new(),
            more_problems: 3,
            bad_for: Some(Duration::from_secs(1)),
        }
    }

    #[test]
    fn policies_are_told_of_by_generation_age_problems_and_fingerprint() {
        let text = Metrics::default().text(&Registry::default(), &policies(), None).unwrap();
        for line in [
            "generation 7",
            "age_seconds 1.5",
            "problems 3",
            "documents_info{fingerprint=\"0123456789ab\"} 1",
        ] {
            assert!(text.contains(&format!("\npostern_broker_policy_{line}\n")), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn what_agents_tell_is_counted_by_what_it_says() {
        let metrics = Metrics::default();
        metrics.known().reported(ReportOutcome::Degraded);
        metrics.known().refused.inc();
        metrics.known().bytes.set(7);
        let text = metrics.text(&Registry::default(), &policies(), None).unwrap();
        for line in [
            "agent_reports_total{outcome=\"gitops_degraded\"} 1",
            "agent_reports_refused_total 1",
            "view_streams 0",
            "views 0",
            "views_size_bytes 7",
            "view_updates_total 0",
            "view_watchers 0",
        ] {
            assert!(text.contains(&format!("\npostern_broker_{line}\n")), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn requests_are_counted_by_class() {
        let metrics = Metrics::default();
        for status in [200, 204, 404, 0] {
            metrics.finished(status);
        }
        let text = metrics.text(&Registry::default(), &policies(), None).unwrap();
        assert!(text.contains("postern_broker_kubernetes_api_requests_total{class=\"Success\"} 2"), "{text}");
        assert!(text.contains("class=\"Cancelled\"} 1"), "{text}");
    }

    #[test]
    fn a_broker_of_several_tells_of_the_directory_and_one_alone_does_not() {
        let (metrics, registry) = (Metrics::default(), Registry::default());
        let alone = metrics.text(&registry, &policies(), None).unwrap();
        assert!(!alone.contains("postern_broker_fleet"), "{alone}");
        let census = directory::Census {
            announced: 1,
            routes: 2,
            peers: 3,
            lookups: 4,
            lookup_failures: 5,
            hits: 6,
            news: 7,
            passes: 8,
            pass_failures: 9,
            refresh: Duration::from_millis(10_500),
            is_up: true,
        };
        let text = metrics.text(&registry, &policies(), Some(&census)).unwrap();
        for line in [
            "entries_announced 1",
            "routes_cached 2",
            "peers 3",
            "lookups_total 4",
            "lookup_failures_total 5",
            "cache_hits_total 6",
            "news_total 7",
            "passes_total 8",
            "pass_failures_total 9",
            "refresh_seconds 10.5",
            "redis_up 1",
        ] {
            assert!(text.contains(&format!("\npostern_broker_fleet_{line}\n")), "{line} is not in\n{text}");
        }
        assert!(text.contains("\npostern_broker_connected_agents 0\n"), "{text}");
        assert_eq!(text.matches("# EOF\n").count(), 1);
        assert!(text.ends_with("# EOF\n"));
    }
}
