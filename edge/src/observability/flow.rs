//! Bytes and durations of finished streams, by route. Plain atomics: threads that finish thousands of streams a second
//! share no lock for it.

use crate::decide::Route;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, NoLabelSet};
use prometheus_client::metrics::MetricType;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper ends, in milliseconds: from a cached answer to a watch that lives for an hour.
const ENDS: [u64; 12] = [5, 10, 25, 50, 100, 250, 1_000, 5_000, 30_000, 120_000, 600_000, 3_600_000];

/// All routes.
#[derive(Debug, Default)]
pub(super) struct Flow {
    agents: Sums,
    kubernetes_api: Sums,
}

#[derive(Debug, Default)]
struct Sums {
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    millis: AtomicU64,
    /// One more than there are ends.
    buckets: [AtomicU64; ENDS.len() + 1],
}

#[derive(Debug, EncodeLabelSet)]
struct Labels {
    route: &'static str,
}

#[derive(Debug, EncodeLabelSet)]
struct Directed {
    route: &'static str,
    direction: &'static str,
}

impl Flow {
    pub(super) fn count(&self, route: Route, bytes_in: usize, bytes_out: usize, duration: Duration) {
        let sums = self.of(route);
        let millis = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let bucket =
            ENDS.iter().position(|end| duration <= Duration::from_millis(*end)).unwrap_or(ENDS.len());
        sums.bytes_in.fetch_add(bytes_in as u64, Ordering::Relaxed);
        sums.bytes_out.fetch_add(bytes_out as u64, Ordering::Relaxed);
        sums.millis.fetch_add(millis, Ordering::Relaxed);
        sums.buckets[bucket].fetch_add(1, Ordering::Relaxed);
    }

    /// Finished streams, bytes from clients and bytes to them, of a route.
    pub(super) fn totals(&self, route: Route) -> (u64, u64, u64) {
        let sums = self.of(route);
        let finished = sums.buckets.iter().map(read).sum();
        (finished, read(&sums.bytes_in), read(&sums.bytes_out))
    }

    pub(super) fn encode(&self, encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let help = "Bytes of bodies of finished streams";
        let mut bytes = encoder.encode_descriptor("postern_edge_bytes", help, None, MetricType::Counter)?;
        for route in ROUTES {
            let (_, bytes_in, bytes_out) = self.totals(route);
            for (direction, count) in [("in", bytes_in), ("out", bytes_out)] {
                let labels = Directed { route: route.name(), direction };
                bytes.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        let help = "How long streams took, from their head to their last byte";
        let name = "postern_edge_stream_duration_seconds";
        let mut durations = encoder.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for route in ROUTES {
            let sums = self.of(route);
            let ends = ENDS.iter().map(|end| *end as f64 / 1000.0).chain([f64::INFINITY]);
            let buckets: Vec<_> = ends.zip(sums.buckets.iter().map(read)).collect();
            let count = buckets.iter().map(|(_, count)| count).sum();
            let sum = read(&sums.millis) as f64 / 1000.0;
            let labels = Labels { route: route.name() };
            durations.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)?;
        }
        Ok(())
    }

    fn of(&self, route: Route) -> &Sums {
        match route {
            Route::Agents => &self.agents,
            Route::KubernetesApi => &self.kubernetes_api,
        }
    }
}

pub(super) const ROUTES: [Route; 2] = [Route::Agents, Route::KubernetesApi];

fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prometheus_client::collector::Collector;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    #[derive(Debug)]
    struct Shown(Flow);

    impl Collector for Shown {
        fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
            self.0.encode(&mut encoder)
        }
    }

    #[test]
    fn streams_are_in_the_bucket_of_their_duration_and_bytes_add_up() {
        let flow = Flow::default();
        flow.count(Route::Agents, 3, 4, Duration::from_millis(5));
        flow.count(Route::Agents, 1, 0, Duration::from_millis(6));
        flow.count(Route::Agents, 0, 0, Duration::from_secs(7200));
        assert_eq!(flow.totals(Route::Agents), (3, 4, 4));
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Shown(flow)));
        let mut text = String::new();
        encode(&mut text, &registry).unwrap();
        let duration = "postern_edge_stream_duration_seconds";
        for line in [
            "postern_edge_bytes_total{route=\"agents\",direction=\"in\"} 4".to_owned(),
            "postern_edge_bytes_total{route=\"kubernetes_api\",direction=\"out\"} 0".to_owned(),
            format!("{duration}_count{{route=\"agents\"}} 3"),
            format!("{duration}_sum{{route=\"agents\"}} 7200.011"),
            format!("{duration}_bucket{{le=\"0.005\",route=\"agents\"}} 1"),
            format!("{duration}_bucket{{le=\"0.01\",route=\"agents\"}} 2"),
            format!("{duration}_bucket{{le=\"3600.0\",route=\"agents\"}} 2"),
            format!("{duration}_bucket{{le=\"+Inf\",route=\"agents\"}} 3"),
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}
