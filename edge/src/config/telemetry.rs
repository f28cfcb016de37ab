//! `telemetry`: where the edge reports what it did, beyond its log and `/metrics`.

use super::Problems;
use postern_telemetry::{Endpoint, Protocol, Rate};
use serde::{Deserialize, Serialize, Serializer};
use std::path::{Path, PathBuf};

/// A hundredth: enough to see where time goes, little enough to afford.
const DEFAULT_SAMPLE: f64 = 0.01;

/// What is reported, and where to.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Telemetry {
    /// `None`: nothing is traced.
    pub otlp: Option<Otlp>,
}

/// A collector of traces.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Otlp {
    #[serde(serialize_with = "shown")]
    pub endpoint: Endpoint,
    /// The share of requests that is traced, whatever callers ask for.
    #[serde(serialize_with = "share")]
    pub sample: Rate,
    /// Headers for the collector, which are secrets; read at start.
    pub headers_file: Option<PathBuf>,
    /// CAs to trust beside the system's.
    pub ca_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileTelemetry {
    otlp: Option<FileOtlp>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileOtlp {
    endpoint: String,
    protocol: Option<String>,
    sample: Option<f64>,
    headers_file: Option<PathBuf>,
    ca_file: Option<PathBuf>,
}

impl FileTelemetry {
    pub(super) fn meant(self, base: &Path, found: &mut Problems) -> Telemetry {
        Telemetry { otlp: self.otlp.and_then(|otlp| otlp.meant(base, found)) }
    }
}

impl FileOtlp {
    fn meant(self, base: &Path, found: &mut Problems) -> Option<Otlp> {
        let written = self.protocol.as_deref().unwrap_or("grpc");
        let protocol = Protocol::parse(written);
        if protocol.is_none() {
            found.add("telemetry.otlp.protocol", format!("`{written}` is neither grpc nor http"));
        }
        let endpoint = Endpoint::parse(&self.endpoint, protocol.unwrap_or(Protocol::Grpc));
        if let Err(error) = &endpoint {
            found.add("telemetry.otlp.endpoint", error.to_string());
        }
        let sample = Rate::new(self.sample.unwrap_or(DEFAULT_SAMPLE));
        if sample.is_none() {
            found.add("telemetry.otlp.sample", "is not between 0 and 1; 0.01 is one request of a hundred");
        }
        protocol?;
        Some(Otlp {
            endpoint: endpoint.ok()?,
            sample: sample?,
            headers_file: self.headers_file.map(|file| base.join(file)),
            ca_file: self.ca_file.map(|file| base.join(file)),
        })
    }
}

fn shown<S: Serializer>(endpoint: &Endpoint, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(endpoint)
}

fn share<S: Serializer>(rate: &Rate, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(rate.share())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(text: &str) -> Result<Telemetry, Vec<String>> {
        let file: FileTelemetry = serde_yaml::from_str(text).unwrap();
        let mut found = Problems(Vec::new());
        let telemetry = file.meant(Path::new("/etc/postern"), &mut found);
        let problems: Vec<_> = found.0.into_iter().map(|problem| problem.at).collect();
        if problems.is_empty() { Ok(telemetry) } else { Err(problems) }
    }

    #[test]
    fn a_collector_is_an_endpoint_and_the_rest_has_defaults() {
        assert_eq!(meant("{}"), Ok(Telemetry::default()));
        let otlp = meant("otlp: {endpoint: 'http://c:4317', headers_file: key}").unwrap().otlp.unwrap();
        assert_eq!((otlp.endpoint.protocol(), otlp.sample.share()), (Protocol::Grpc, DEFAULT_SAMPLE));
        assert_eq!(otlp.headers_file.unwrap(), Path::new("/etc/postern/key"));
        let http = meant("otlp: {endpoint: 'https://c', protocol: http, sample: 1}").unwrap().otlp.unwrap();
        assert_eq!((http.endpoint.protocol(), http.sample), (Protocol::Http, Rate::ALL));
    }

    #[test]
    fn every_mistake_has_its_place() {
        let wrong = "otlp: {endpoint: 'collector:4317', protocol: udp, sample: 5}";
        let places = ["protocol", "endpoint", "sample"].map(|key| format!("telemetry.otlp.{key}"));
        assert_eq!(meant(wrong), Err(places.to_vec()));
        assert_eq!(
            meant("otlp: {endpoint: 'http://me:pw@c'}"),
            Err(vec!["telemetry.otlp.endpoint".to_owned()])
        );
    }
}
