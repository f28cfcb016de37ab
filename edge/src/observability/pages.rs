//! What each path of the admin listener answers. Plain text for probes and people, JSON for the rest.
//!
//! From `observability` with a request's head; bodies are not read. Says nothing that is secret: the configuration
//! names files, and tokens appear nowhere.

use super::Admin;
use super::flow::ROUTES;
use crate::config::Config;
use crate::drain::Asked;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::{Map, Value, json};
use std::sync::atomic::Ordering;

/// Of `/connections`, unless `?limit=` says otherwise.
const LIMIT: usize = 100;
/// A page that is still quick to write.
const MAX_LIMIT: usize = 10_000;

const INDEX: &str = "postern-edge

GET  /liveness      the process answers
GET  /readiness     200 while it wants new connections
GET  /metrics       OpenMetrics
GET  /stats         the most important numbers
GET  /config        the configuration as it was understood
GET  /policies      the policies in force, and the limits by them
GET  /clusters      brokers, and what is known about them
GET  /connections   open connections; ?limit=100&after=ID
POST /drain         as SIGTERM; ?exit=false: the process stays; from this host only
";

type Page = Response<Full<Bytes>>;

impl Admin {
    /// `local`: the request comes from this host.
    pub(super) fn answer<B>(&self, request: &Request<B>, local: bool) -> Page {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        match (request.uri().path(), reads) {
            ("/drain", false) if request.method() == Method::POST => self.ask_for_drain(request, local),
            ("/drain", _) => only(&Method::POST),
            (_, false) => only(&Method::GET),
            ("/", _) => text(StatusCode::OK, INDEX),
            ("/liveness", _) => text(StatusCode::OK, "alive\n"),
            ("/readiness", _) => match self.not_ready() {
                None => text(StatusCode::OK, "ready\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
            },
            ("/metrics", _) => self.metrics(),
            ("/stats", _) => document(&self.stats()),
            ("/config", _) => document(&self.config),
            ("/policies", _) => document(&self.shared.policies.report(&self.shared.limits)),
            ("/clusters", _) => document(&self.shared.upstreams.report()),
            ("/connections", _) => match page(request.uri().query().unwrap_or_default()) {
                Some((after, limit)) => document(&self.shared.connections.list(after, limit)),
                None => text(StatusCode::BAD_REQUEST, "limit and after are numbers\n"),
            },
            _ => text(StatusCode::NOT_FOUND, format!("there is no such page; these are:\n\n{INDEX}")),
        }
    }

    fn ask_for_drain<B>(&self, request: &Request<B>, local: bool) -> Page {
        if !local {
            return text(
                StatusCode::FORBIDDEN,
                "a drain is asked for from this host; elsewhere, send SIGTERM\n",
            );
        }
        // A web page that somebody on this host looks at is not somebody on this host. Browsers always say this.
        if request.headers().contains_key(header::ORIGIN) {
            return text(StatusCode::FORBIDDEN, "a browser cannot ask for a drain\n");
        }
        let how = match request.uri().query() {
            None | Some("" | "exit=true") => Asked::Exit,
            Some("exit=false") => Asked::Stay,
            Some(_) => return text(StatusCode::BAD_REQUEST, "exit is true or false\n"),
        };
        let begun = self.shared.handle.drain(how);
        tracing::info!(?how, begun, "a drain was asked for on the admin listener");
        text(StatusCode::ACCEPTED, "draining\n")
    }

    fn metrics(&self) -> Page {
        let mut body = String::new();
        match prometheus_client::encoding::text::encode(&mut body, &self.registry) {
            Ok(()) => {
                typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
            }
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("encode metrics: {error}\n")),
        }
    }

    fn stats(&self) -> Value {
        let shared = &self.shared;
        let under_way = shared.streams.under_way();
        let routes: Map<String, Value> = ROUTES
            .iter()
            .map(|route| {
                let (finished, bytes_in, bytes_out) = shared.metrics.totals(*route);
                let numbers = json!({ "finished": finished, "bytes_in": bytes_in, "bytes_out": bytes_out });
                (route.name().to_owned(), numbers)
            })
            .collect();
        let spans = shared
            .tracing
            .as_ref()
            .map(|tracing| tracing.exporter.tally())
            .map(|tally| json!({ "sent": tally.sent, "dropped": tally.dropped, "failed": tally.failed }));
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "uptime_seconds": self.began.elapsed().as_secs(),
            "draining": self.draining.load(Ordering::Relaxed),
            "connections": shared.connections.len(),
            "streams": { "busy": under_way.busy, "parked": under_way.parked },
            "routes": routes,
            "limits": shared.limits.report(),
            "upstreams": {
                "configured": shared.upstreams.all().count(),
                "up": shared.upstreams.all().filter(|(_, broker)| broker.is_up()).count(),
            },
            "spans": spans,
            "memory_kib": memory_kib(),
        })
    }
}

/// The configuration as it was understood, for people: durations as they are written.
pub(super) fn config(config: &Config) -> Value {
    let mut value =
        serde_json::to_value(config).unwrap_or_else(|error| json!({ "error": error.to_string() }));
    spell_durations(&mut value);
    value
}

fn spell_durations(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(spell_durations),
        Value::Object(map) => {
            let number = |key| map.get(key).and_then(Value::as_u64);
            if let (2, Some(seconds), Some(nanos)) = (map.len(), number("secs"), number("nanos")) {
                let millis = nanos / 1_000_000;
                *value = match millis {
                    0 => format!("{seconds}s"),
                    _ => format!("{}ms", seconds.saturating_mul(1000).saturating_add(millis)),
                }
                .into();
            } else {
                map.values_mut().for_each(spell_durations);
            }
        }
        _ => {}
    }
}

/// Resident memory of this process.
fn memory_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `after` and `limit` of a query.
fn page(query: &str) -> Option<(u64, usize)> {
    let (mut after, mut limit) = (0, LIMIT);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=')? {
            ("after", number) => after = number.parse().ok()?,
            ("limit", number) => limit = number.parse().ok()?,
            _ => return None,
        }
    }
    Some((after, limit.min(MAX_LIMIT)))
}

fn only(method: &Method) -> Page {
    let mut response = text(StatusCode::METHOD_NOT_ALLOWED, format!("only {method}\n"));
    let allowed = HeaderValue::from_static(if method == Method::POST { "POST" } else { "GET, HEAD" });
    response.headers_mut().insert(header::ALLOW, allowed);
    response
}

fn document(value: &Value) -> Page {
    typed(StatusCode::OK, "application/json", format!("{value:#}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Page {
    typed(status, "text/plain; charset=utf-8", body)
}

fn typed(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Page {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn durations_are_spelt_as_in_the_file_wherever_they_are() {
        let mut value = json!({
            "a": Duration::from_secs(75), "b": [Duration::from_millis(1500)], "c": null, "secs": 1, "nanos": 0
        });
        spell_durations(&mut value);
        assert_eq!(value, json!({ "a": "75s", "b": ["1500ms"], "c": null, "secs": 1, "nanos": 0 }));
    }

    #[test]
    fn the_configuration_is_shown_whole_with_files_for_secrets() {
        let written = "
listen: [{address: '[::]:8443', tls: {certificates: [{certificate_file: a, key_file: b}], client_ca_file: c},
          access: {allow: [10.0.0.0/8]}, proxy_protocol: {from: ['::1']}, forwarded: {trusted: [192.0.2.1]}}]
upstreams: {agents: {dns: {name: kas, port: 8150}, protocol: h2s}}
connections: {max_age: 90s}
limits: {per_ip: {requests_per_minute: 60, scope: fleet}, redis_lost: deny,
         redis: {sentinel: {master_name: m, addresses: ['r:1'], password_file: s}, password_file: p, tls: {}}}";
        let file = serde_yaml::from_str(written).unwrap();
        let shown = config(&Config::meant(file, Path::new("/etc")).unwrap());
        for (place, wanted) in [
            ("/listen/0/place/ip/address", json!("[::]:8443")),
            ("/listen/0/tls/min_version", json!("1.2")),
            ("/listen/0/tls/clients", json!({ "ca_file": "/etc/c", "auth": "required" })),
            ("/listen/0/access", json!({ "allow": ["10.0.0.0/8"], "deny": [] })),
            ("/listen/0/forwarded", json!({ "trusted": ["192.0.2.1"], "dialect": "x-forwarded-for" })),
            ("/agents/source/dns", json!({ "name": "kas", "port": 8150, "every": "10s" })),
            ("/agents/protocol", json!("tls")),
            ("/connections/max_age", json!("90s")),
            ("/limits/per_ip/scope", json!("fleet")),
            ("/limits/redis/addresses", json!(["r:1"])),
            ("/limits/redis/password_file", json!("/etc/p")),
            ("/limits/redis/sentinel_password_file", json!("/etc/s")),
            ("/limits/redis/answer_timeout", json!("1s")),
            ("/limits/redis_lost", json!("deny")),
        ] {
            assert_eq!(shown.pointer(place), Some(&wanted), "{place} in {shown:#}");
        }
    }

    #[test]
    fn a_page_is_bounded_and_strange_queries_are_refused() {
        for (query, wanted) in [
            ("", Some((0, LIMIT))),
            ("limit=5", Some((0, 5))),
            ("limit=5&after=77", Some((77, 5))),
            ("limit=99999999", Some((0, MAX_LIMIT))),
            ("limit=-1", None),
            ("limit", None),
            ("offset=3", None),
        ] {
            assert_eq!(page(query), wanted, "{query}");
        }
    }

    #[test]
    fn this_process_uses_memory() {
        assert!(memory_kib().is_some_and(|kib| kib > 0));
    }
}
