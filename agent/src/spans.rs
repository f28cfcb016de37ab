//! Spans of requests to the Kubernetes API that belong to a trace already. Before it: the `traceparent` that the
//! broker sends with a request. After it: the collector that the environment names. The agent begins no trace, and
//! without a collector it passes on what came, untouched.

use crate::PROGRAM;
use http::{HeaderMap, Method, StatusCode};
use postern_telemetry::{
    Context, Exporter, Kind, RequestId, Service, Settings, Span, SpanId, TRACEPARENT, Value, env,
};
use std::time::SystemTime;

/// Where spans go, if the environment says so.
///
/// # Errors
/// A variable that cannot be used.
pub fn settings(env: impl Fn(&str) -> Option<String>) -> Result<Option<Settings>, String> {
    let service = Service {
        name: "gitlab-agent",
        version: PROGRAM.version,
        instance: RequestId::random().to_string(),
        attributes: ["POD_NAMESPACE", "POD_NAME"]
            .iter()
            .zip(["k8s.namespace.name", "k8s.pod.name"])
            .filter_map(|(variable, key)| Some((key.to_owned(), env(variable).filter(|v| !v.is_empty())?)))
            .collect(),
    };
    env::settings(env, service)
}

/// A request to the Kubernetes API under way. Its span is made when it is dropped, however the request ended.
#[derive(Debug)]
pub struct Recording {
    exporter: Exporter,
    context: Context,
    parent: SpanId,
    start: SystemTime,
    name: &'static str,
    path: String,
    status: Option<StatusCode>,
    complete: bool,
}

impl Recording {
    /// For a request whose trace is recorded; the API server is told of this span instead of the one that came.
    pub fn begin(
        exporter: Option<&Exporter>,
        headers: &mut HeaderMap,
        method: &Method,
        path: &str,
    ) -> Option<Self> {
        let exporter = exporter?.clone();
        let came = Context::of(headers).filter(|came| came.sampled)?;
        let context = came.child();
        headers.insert(TRACEPARENT, context.to_header());
        Some(Self {
            exporter,
            context,
            parent: came.span,
            start: SystemTime::now(),
            name: name(method),
            // Without the query, which may hold a token.
            path: path.split('?').next().unwrap_or_default().chars().take(512).collect(),
            status: None,
            complete: false,
        })
    }

    /// The head of the answer came.
    pub fn answered(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The answer was passed on whole.
    pub fn complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        let mut attributes = vec![("url.path", Value::from(std::mem::take(&mut self.path)))];
        attributes.extend(self.status.map(|status| ("http.response.status_code", status.as_u16().into())));
        let error = match self.status {
            None => Some("no answer"),
            Some(status) if status.is_server_error() => Some("the Kubernetes API failed"),
            // Callers leave watches all the time.
            Some(_) => None,
        };
        attributes.push(("postern.outcome", if self.complete { "complete" } else { "cancelled" }.into()));
        self.exporter.export(Span {
            name: self.name.into(),
            kind: Kind::Client,
            context: self.context,
            parent: Some(self.parent),
            start: self.start,
            end: SystemTime::now(),
            attributes,
            error: error.map(Into::into),
        });
    }
}

fn name(method: &Method) -> &'static str {
    match method.as_str() {
        "GET" => "agentk GET",
        "POST" => "agentk POST",
        "PUT" => "agentk PUT",
        "PATCH" => "agentk PATCH",
        "DELETE" => "agentk DELETE",
        _ => "agentk HTTP",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exporter() -> Exporter {
        let settings = settings(|name| match name {
            "OTEL_EXPORTER_OTLP_ENDPOINT" => Some("http://127.0.0.1:1".into()),
            "POD_NAME" => Some("agent-0".into()),
            _ => None,
        });
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.service.attributes, [("k8s.pod.name".to_owned(), "agent-0".to_owned())]);
        Exporter::new(settings).unwrap().0
    }

    #[test]
    fn only_what_is_recorded_already_is_and_the_rest_passes_untouched() {
        let exporter = exporter();
        for (came, with, recorded) in [
            (Some(Context::root(true)), true, true),
            (Some(Context::root(true)), false, false),
            (Some(Context::root(false)), true, false),
            (None, true, false),
        ] {
            let mut headers = HeaderMap::new();
            headers.extend(came.map(|came| (TRACEPARENT, came.to_header())));
            let before = headers.clone();
            let recording =
                Recording::begin(with.then_some(&exporter), &mut headers, &Method::GET, "/api?token=s");
            assert_eq!(recording.is_some(), recorded, "{came:?} {with}");
            assert_eq!(headers == before, !recorded);
            if let (Some(recording), Some(came)) = (recording, came) {
                let told = Context::of(&headers).unwrap();
                assert_eq!((told.trace, recording.parent), (came.trace, came.span));
                assert_eq!((told, recording.path.as_str()), (recording.context, "/api"));
            }
        }
    }
}
