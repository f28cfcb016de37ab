//! From a request to its answer: who may ask, and which path it is; `objects` then does what the verb says. Every answer
//! of the stand-in takes its form here, and a `Failure` anywhere becomes its `Status` at the end of `answer`.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::{Stream, StreamExt as _};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::{Value, json};

use super::State;
use super::counters::{OpenGuard, ResponseBody, Seen, guarded};
use super::resources::{self, Resource};
use super::status::Failure;
use super::store::{Mode, Place};
use super::{knobs, objects};

/// The query's parameters.
#[derive(Debug)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: &str) -> Query {
        Query(url::form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter, or an empty text.
    pub(super) fn text(&self, key: &str) -> &str {
        self.0.iter().find(|(name, _)| name == key).map_or("", |(_, value)| value)
    }

    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.text(key).parse().ok()
    }

    pub(super) fn yes(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1")
    }

    pub(super) fn mode(&self) -> Mode {
        if self.text("dryRun").is_empty() { Mode::Keep } else { Mode::DryRun }
    }
}

/// What a path below `/api` or `/apis` names.
pub(super) struct Target {
    pub(super) resource: &'static Resource,
    /// `None`: all namespaces, or cluster scope.
    pub(super) namespace: Option<String>,
    pub(super) name: Option<String>,
    pub(super) subresource: Option<String>,
}

impl Target {
    pub(super) fn place(&self, name: &str) -> Place {
        let namespace = self.namespace.clone().unwrap_or_default();
        Place { resource: self.resource, namespace, name: name.to_owned() }
    }
}

/// Answers one request; never fails.
pub(super) async fn answer(state: Arc<State>, request: Request<Incoming>) -> Response<ResponseBody> {
    let (method, uri, headers) = (request.method().clone(), request.uri().clone(), request.headers().clone());
    state.counters.remember(Seen { method: method.clone(), uri: uri.clone(), headers });
    let query = Query::parse(uri.query().unwrap_or_default());
    // The counters do not count the question for them.
    if uri.path() == "/debug/counters" {
        return json_answer(StatusCode::OK, &state.counters.document());
    }
    let guard = state.counters.open(kind_of(&method, uri.path(), &query));
    if let Some(refusal) = state.moods.refusal() {
        let mut refused = json_answer(refusal.code, &refusal.status());
        refused.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return refused;
    }
    state.moods.answers().await;
    match route(&state, request, uri.path(), &query, guard).await {
        Ok(response) => response,
        Err(failure) => json_answer(failure.code, &failure.status()),
    }
}

/// Under which name a request is counted.
fn kind_of(method: &Method, path: &str, query: &Query) -> &'static str {
    match path {
        "/slow" => "slow",
        "/stream-forever" => "stream-forever",
        "/sink" => "sink",
        "/never-reads" => "never-reads",
        "/echo" => "echo",
        _ if query.yes("watch") => "watch",
        _ if path.ends_with("/log") => "log",
        _ if method == Method::GET => "read",
        _ => "write",
    }
}

async fn route(
    state: &Arc<State>,
    request: Request<Incoming>,
    path: &str,
    query: &Query,
    guard: OpenGuard,
) -> Result<Response<ResponseBody>, Failure> {
    match path {
        "/healthz" | "/livez" | "/readyz" => return Ok(text_answer("ok")),
        "/version" => return Ok(json_answer(StatusCode::OK, &resources::version())),
        _ => authorize(state, &request)?,
    }
    let stop = state.stop.clone();
    match path {
        "/slow" => return Ok(knobs::slow(query, guard)),
        "/stream-forever" => return Ok(knobs::stream_forever(query, guard, stop)),
        "/sink" => {
            let swallowed = knobs::sink(request.into_body()).await?;
            return Ok(json_answer(StatusCode::OK, &swallowed));
        }
        "/never-reads" => return Err(knobs::never_reads(query, request.into_body(), stop).await),
        "/echo" => return knobs::echo(request, full(Bytes::new()), guard, stop),
        _ => {}
    }
    if let Some(document) = discovery(path, &request) {
        return Ok(document);
    }
    let target = target(path).ok_or_else(Failure::no_such_path)?;
    let mut response = objects::answer(state, request, &target, query).await?;
    // The body keeps the request counted until it is sent.
    let body = std::mem::replace(response.body_mut(), full(Bytes::new()));
    *response.body_mut() = guarded(body, guard);
    Ok(response)
}

fn authorize(state: &State, request: &Request<Incoming>) -> Result<(), Failure> {
    let Some(token) = &state.token else { return Ok(()) };
    let given = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    match given.and_then(|value| value.strip_prefix("Bearer ")) {
        Some(given) if given == token => Ok(()),
        _ => Err(Failure::unauthorized()),
    }
}

fn discovery(path: &str, request: &Request<Incoming>) -> Option<Response<ResponseBody>> {
    let accept =
        request.headers().get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let document = match parts[..] {
        [""] => {
            json!({"paths": ["/api", "/api/v1", "/apis", "/apis/apps", "/apis/apps/v1", "/healthz", "/version"]})
        }
        ["api"] => resources::core_versions(),
        ["apis"] => resources::groups(),
        ["api", version] => resources::resource_list("", version)?,
        ["apis", group] => resources::group(group)?,
        ["apis", group, version] => resources::resource_list(group, version)?,
        ["openapi", "v2"] if accept.contains("proto-openapi") => {
            let mut response = Response::new(full(Bytes::from_static(resources::OPENAPI_V2_PROTOBUF)));
            let kind = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
            return Some(response);
        }
        ["openapi", "v2"] => resources::openapi_v2(),
        ["openapi", "v3"] => json!({"paths": {}}),
        _ => return None,
    };
    Some(json_answer(StatusCode::OK, &document))
}

fn target(path: &str) -> Option<Target> {
    let parts: Vec<&str> = path.strip_prefix('/')?.split('/').collect();
    let (group, version, rest) = match &parts[..] {
        ["api", version, rest @ ..] => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !group.is_empty() => (*group, *version, rest),
        _ => return None,
    };
    let (namespace, rest) = match rest {
        // `namespaces/x` and its own subresources are objects of cluster scope.
        ["namespaces", _] | ["namespaces", _, "status" | "finalize"] => (None, rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        rest => (None, rest),
    };
    let (plural, name, subresource) = match rest {
        [plural] => (plural, None, None),
        [plural, name] => (plural, Some((*name).to_owned()), None),
        [plural, name, sub] => (plural, Some((*name).to_owned()), Some((*sub).to_owned())),
        _ => return None,
    };
    let resource = resources::find(group, version, plural)?;
    let scoped = resource.namespaced == namespace.is_some() || (resource.namespaced && name.is_none());
    let known = subresource.as_deref().is_none_or(|sub| resource.subresources.contains(&sub));
    (scoped && known).then_some(Target { resource, namespace, name, subresource })
}

fn full(bytes: Bytes) -> ResponseBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

fn text_answer(text: &'static str) -> Response<ResponseBody> {
    let mut response = Response::new(full(Bytes::from_static(text.as_bytes())));
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

pub(super) fn json_answer(code: StatusCode, document: &Value) -> Response<ResponseBody> {
    let mut text = document.to_string();
    text.push('\n');
    let mut response = Response::new(full(Bytes::from(text)));
    *response.status_mut() = code;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

pub(super) fn stream_answer(
    content_type: &'static str,
    stream: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> Response<ResponseBody> {
    let body = StreamBody::new(stream.map(|item| item.map(Frame::data))).boxed_unsync();
    let mut response = Response::new(body);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
