//! Which request this is: the id that all programs' lines about it carry, and whether it is traced.
//!
//! From `relay` and `proxy`, before a broker is chosen; `access_log` makes the span when the request is over. Costs a
//! stream that is not traced two dozen bytes. A caller's ids are taken, his wish to be recorded is not.

use crate::access_log::{Fault, Line};
use crate::config::telemetry::Otlp;
use crate::decide::{Purpose, Route};
use http::{HeaderMap, HeaderName, HeaderValue};
use postern_telemetry::request_id::{CORRELATION_ID, REQUEST_ID};
use postern_telemetry::sampling::Decided;
use postern_telemetry::{
    Context, ExportError, Exporter, Keeper, Kind, RequestId, Sampler, Service, Settings, Span, TRACEPARENT,
    TRACESTATE, TraceId, Value, endpoint,
};
use std::path::PathBuf;
use std::time::SystemTime;

/// Why nothing can be traced.
#[derive(Debug, thiserror::Error)]
pub enum TracingError {
    /// The file is missing or may not be read.
    #[error("read telemetry.otlp.headers_file {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// A line of it is no header. The line itself may be a secret.
    #[error("telemetry.otlp.headers_file {}: {problem}", path.display())]
    Headers { path: PathBuf, problem: String },
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// Chooses what is traced, and takes the spans.
#[derive(Debug)]
pub struct Tracing {
    pub exporter: Exporter,
    sampler: Sampler,
}

/// The ids of one request.
#[derive(Debug)]
pub struct Ids {
    request: RequestId,
    traced: Option<Box<Traced>>,
}

#[derive(Debug)]
struct Traced {
    decided: Decided,
    start: SystemTime,
}

/// What becomes of a header on its way to the broker; `None`: it is removed.
pub type Change = (HeaderName, Option<HeaderValue>);

impl Tracing {
    /// Reads the headers for the collector and its CAs. What the keeper does must be run by the caller.
    pub fn new(otlp: &Otlp) -> Result<(Self, Keeper), TracingError> {
        let headers = match &otlp.headers_file {
            None => Vec::new(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| TracingError::Read { path: path.clone(), source })?;
                endpoint::headers(&text)
                    .map_err(|problem| TracingError::Headers { path: path.clone(), problem })?
            }
        };
        let settings = Settings {
            endpoint: otlp.endpoint.clone(),
            headers,
            ca_file: otlp.ca_file.clone(),
            service: Service {
                name: "postern-edge",
                version: env!("CARGO_PKG_VERSION"),
                instance: RequestId::random().to_string(),
                attributes: Vec::new(),
            },
        };
        let (exporter, keeper) = Exporter::new(settings)?;
        Ok((Self { exporter, sampler: Sampler { rate: otlp.sample } }, keeper))
    }
}

impl Ids {
    /// Reads or makes the ids, and decides. What only waits is never traced: an idle tunnel is no work.
    pub fn of(tracing: Option<&Tracing>, purpose: Purpose, headers: &HeaderMap) -> Self {
        let request = RequestId::given(headers).unwrap_or_else(RequestId::random);
        let traced = tracing.filter(|_| purpose == Purpose::Call).and_then(|tracing| {
            let decided = tracing.sampler.stranger(Context::of(headers))?;
            Some(Box::new(Traced { decided, start: SystemTime::now() }))
        });
        Self { request, traced }
    }

    pub fn request(&self) -> &RequestId {
        &self.request
    }

    /// The trace, if this request is traced.
    pub fn trace(&self) -> Option<TraceId> {
        self.traced.as_ref().map(|traced| traced.decided.context.trace)
    }

    /// What the broker shall see instead of what came.
    pub fn changes(&self, route: Route, came: &HeaderMap) -> Vec<Change> {
        let mut changes = Vec::new();
        let (own, other) = match route {
            Route::Agents => (CORRELATION_ID, REQUEST_ID),
            Route::KubernetesApi => (REQUEST_ID, CORRELATION_ID),
        };
        let usable = |name: &HeaderName| {
            came.get(name).and_then(|value| RequestId::checked(value.as_bytes())).is_some()
        };
        if !usable(&own) || came.get_all(&own).iter().count() > 1 {
            changes.push((own, Some(self.request.to_header())));
        }
        if came.contains_key(&other) && !usable(&other) {
            changes.push((other, None));
        }
        match (&self.traced, Context::of(came)) {
            (Some(traced), _) => changes.push((TRACEPARENT, Some(traced.decided.context.to_header()))),
            // Whoever comes next would believe it.
            (None, Some(context)) if context.sampled => {
                let quiet = Context { sampled: false, ..context };
                changes.push((TRACEPARENT, Some(quiet.to_header())));
            }
            (None, Some(_)) => {}
            (None, None) if came.contains_key(TRACEPARENT) => changes.push((TRACEPARENT, None)),
            (None, None) => {}
        }
        if Context::of(came).is_none() && came.contains_key(TRACESTATE) {
            changes.push((TRACESTATE, None));
        }
        changes
    }

    /// Makes them.
    pub fn apply(&self, route: Route, headers: &mut HeaderMap) {
        for (name, value) in self.changes(route, headers) {
            match value {
                Some(mut value) => {
                    // Each is another one: HTTP/2 need not remember any, and drop what is of use for it.
                    value.set_sensitive(true);
                    headers.insert(name, value);
                }
                None => drop(headers.remove(name)),
            }
        }
    }
}

impl Tracing {
    /// Reports a request that is over, if it is traced.
    pub fn finished(&self, line: &Line<'_>) {
        let Some((ids, traced)) = line.ids.and_then(|ids| Some((ids, ids.traced.as_ref()?))) else { return };
        let mut attributes: Vec<(&'static str, Value)> = vec![
            ("postern.request_id", ids.request.to_string().into()),
            ("postern.route", line.route.name().into()),
            ("postern.fault", line.fault.name().into()),
            ("http.request.body.size", (line.bytes_in as u64).into()),
            ("http.response.body.size", (line.bytes_out as u64).into()),
            ("http.response.status_code", line.status.into()),
        ];
        let method = match line.route {
            Route::Agents => "rpc.method",
            Route::KubernetesApi => "http.request.method",
        };
        attributes.push((method, line.method.to_owned().into()));
        let mut more = |key, value: Option<Value>| attributes.extend(value.map(|value| (key, value)));
        more("postern.connection", line.connection.map(|connection| connection.id.into()));
        more("client.address", line.client.map(|client| client.ip().to_canonical().to_string().into()));
        more("postern.upstream", line.upstream.map(|upstream| upstream.to_string().into()));
        more("postern.token", line.token.map(|token| token.to_string().into()));
        more("rpc.grpc.status_code", line.grpc_status.map(Value::from));
        more("postern.client_certificate", line.certificate.map(|shown| shown.subject.clone().into()));
        more("postern.refused", line.refused.map(Value::from));
        let Decided { context, parent } = traced.decided;
        // A client that leaves or is refused is no error of this server.
        let failed = matches!(line.fault, Fault::Upstream | Fault::Internal);
        let error = failed.then(|| line.error.or(line.refused).unwrap_or("failed"));
        self.exporter.export(Span {
            // A stranger chooses both; only what everybody knows becomes a name.
            name: name(line).into(),
            kind: Kind::Server,
            context,
            parent,
            start: traced.start,
            end: traced.start + line.duration,
            attributes,
            error: error.map(Into::into),
        });
    }
}

fn name(line: &Line<'_>) -> &'static str {
    if line.route == Route::Agents {
        return "edge agents";
    }
    match line.method {
        "GET" => "edge GET",
        "POST" => "edge POST",
        "PUT" => "edge PUT",
        "PATCH" => "edge PATCH",
        "DELETE" => "edge DELETE",
        _ => "edge HTTP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_telemetry::{Endpoint, Protocol, Rate};

    const SAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    const QUIET: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";

    fn tracing(sample: Rate) -> Tracing {
        let endpoint = Endpoint::parse("http://127.0.0.1:1", Protocol::Grpc).unwrap();
        Tracing::new(&Otlp { endpoint, sample, headers_file: None, ca_file: None }).unwrap().0
    }

    fn headers(lines: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in lines {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    /// What arrives at the broker, without what is made anew.
    fn passed(tracing: Option<&Tracing>, route: Route, lines: &[(&'static str, &str)]) -> (Ids, HeaderMap) {
        let mut headers = headers(lines);
        let ids = Ids::of(tracing, Purpose::Call, &headers);
        ids.apply(route, &mut headers);
        (ids, headers)
    }

    #[test]
    fn an_id_that_came_goes_on_and_another_is_made() {
        let (ids, passed_on) = passed(None, Route::Agents, &[("x-gitlab-correlation-id", "abc")]);
        assert_eq!((ids.request.to_string().as_str(), passed_on.len()), ("abc", 1));
        for (route, name) in [(Route::Agents, CORRELATION_ID), (Route::KubernetesApi, REQUEST_ID)] {
            let (ids, passed_on) =
                passed(None, route, &[("x-request-id", "what is this"), ("x-gitlab-correlation-id", "\"")]);
            assert_eq!(passed_on[name], ids.request.to_string());
            assert_eq!(passed_on.len(), 1, "{passed_on:?}");
        }
        let (_, passed_on) = passed(None, Route::KubernetesApi, &[("x-gitlab-correlation-id", "abc")]);
        assert_eq!(passed_on[REQUEST_ID], "abc");
    }

    #[test]
    fn nobody_behind_the_edge_is_told_to_record_what_the_edge_does_not() {
        let never = tracing(Rate::NONE);
        for tracing in [None, Some(&never)] {
            let (ids, passed_on) = passed(
                tracing,
                Route::KubernetesApi,
                &[("x-request-id", "a"), ("traceparent", SAMPLED), ("tracestate", "v=1")],
            );
            assert!(ids.trace().is_none());
            assert_eq!(passed_on[TRACEPARENT], QUIET);
            assert_eq!(passed_on[TRACESTATE], "v=1");
        }
    }

    #[test]
    fn what_is_traced_is_a_child_of_what_came_and_idle_streams_are_not() {
        let always = tracing(Rate::ALL);
        let (ids, passed_on) = passed(Some(&always), Route::Agents, &[("traceparent", SAMPLED)]);
        let told = Context::of(&passed_on).unwrap();
        assert_eq!(Some(told.trace), ids.trace());
        assert!(told.sampled && told.trace.to_string().starts_with("4bf9"));
        assert_ne!(told.to_string(), SAMPLED);
        let (_, begun) = passed(Some(&always), Route::Agents, &[]);
        assert!(Context::of(&begun).unwrap().sampled);
        for purpose in [Purpose::Tunnel, Purpose::Subscription] {
            assert!(Ids::of(Some(&always), purpose, &HeaderMap::new()).trace().is_none());
        }
    }

    #[test]
    fn a_context_that_is_none_does_not_travel() {
        for lines in [
            &[("x-request-id", "a"), ("traceparent", "00-zz"), ("tracestate", "v=1")][..],
            &[("x-request-id", "a"), ("traceparent", SAMPLED), ("traceparent", SAMPLED)][..],
            &[("x-request-id", "a"), ("tracestate", "v=1")][..],
        ] {
            let (_, passed_on) = passed(None, Route::KubernetesApi, lines);
            assert_eq!(passed_on.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-request-id"]);
        }
    }

    #[test]
    fn what_a_stream_keeps_is_small() {
        assert!(size_of::<Ids>() <= 32);
    }
}
