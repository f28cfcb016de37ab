//! The verbs on objects: get, list, watch, create, replace, patch, delete, and a pod's log. Called by `routes` with a path
//! that is known to exist; checks what a client may get wrong about an object before the store sees it.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::State;
use super::counters::ResponseBody;
use super::resources;
use super::routes::{Query, Target, json_answer, stream_answer};
use super::selectors::Selector;
use super::status::Failure;
use super::store::{Mode, Place};
use super::table::Form;
use super::{logs, patch, protobuf, watch};

/// As the real server: a request body is at most 3 MiB.
const MAX_BODY: usize = 3 << 20;
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

/// Does what a request asks of one kind's objects.
pub(super) async fn answer(
    state: &Arc<State>,
    request: Request<Incoming>,
    target: &Target,
    query: &Query,
) -> Result<Response<ResponseBody>, Failure> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = Form::choose(header(header::ACCEPT), query.text("includeObject"));
    let content_type = header(header::CONTENT_TYPE).to_owned();
    let method = request.method().clone();
    let ok = |object: &Value| Ok(json_answer(StatusCode::OK, &form.one(target.resource, object)));
    let (name, subresource) = (target.name.as_deref(), target.subresource.as_deref());
    match (method.as_str(), name, subresource) {
        ("GET", None, _) if query.yes("watch") => start_watch(state, target, query, form),
        ("GET", None, _) => {
            let selector = Selector::parse(query.text("labelSelector"), query.text("fieldSelector"))?;
            let (mut objects, version) = state.store.list(target.resource, target.namespace.as_deref());
            objects.retain(|object| selector.matches(object));
            let more = page(state, query, &mut objects, version)?;
            let mut list = form.list(target.resource, &objects, version);
            if let Some(more) = more {
                list["metadata"]["continue"] = json!(more);
            }
            Ok(json_answer(StatusCode::OK, &list))
        }
        ("GET", Some(name), Some("log")) => {
            let place = target.place(name);
            let pod = state.store.get(&place)?;
            let asked = logs::Query::read(&pod, state.log_tick, |key| query.text(key).to_owned())?;
            let lines = logs::lines(state.store.clone(), place, asked, state.stop.clone());
            Ok(stream_answer("text/plain; charset=utf-8", lines))
        }
        (_, Some(_), Some("exec" | "attach" | "portforward")) => {
            let why = "this stand-in API server has no containers to exec, attach or forward to; use a real cluster";
            Err(Failure::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", why))
        }
        ("GET", Some(name), None | Some("status")) => ok(&*state.store.get(&target.place(name))?),
        ("POST", None, _) => {
            let object = document(request.into_body(), &content_type).await?;
            let created = create(state, target, object, query)?;
            Ok(json_answer(StatusCode::CREATED, &form.one(target.resource, &created)))
        }
        ("PUT", Some(name), _) => {
            let given = document(request.into_body(), &content_type).await?;
            check_kind(target, &given)?;
            let place = target.place(name);
            let change = |before: &Value| Ok(part(target, before, given));
            ok(&*state.store.update(&place, query.mode(), change)?)
        }
        ("PATCH", Some(name), _) => {
            let kind = patch::Kind::of(&content_type)?;
            let given = document(request.into_body(), "").await?;
            if kind == patch::Kind::Apply {
                check_kind(target, &given)?;
            }
            let place = target.place(name);
            let change = |before: &Value| Ok(part(target, before, patch::apply(kind, before, &given)?));
            match state.store.update(&place, query.mode(), change) {
                Err(failure) if failure.code == StatusCode::NOT_FOUND && kind == patch::Kind::Apply => {
                    let mut object = patch::apply(kind, &Value::Null, &given)?;
                    object["metadata"]["name"] = json!(name);
                    let created = create(state, target, object, query)?;
                    Ok(json_answer(StatusCode::CREATED, &form.one(target.resource, &created)))
                }
                Err(failure) => Err(failure),
                Ok(object) => ok(&object),
            }
        }
        ("DELETE", Some(name), None) => {
            let options = document(request.into_body(), &content_type).await?;
            let place = target.place(name);
            let mode = if options["dryRun"].is_null() { query.mode() } else { Mode::DryRun };
            let object = state.store.delete(&place, &options, mode)?;
            if state.store.get(&place).is_ok() {
                return ok(&object);
            }
            let details = json!({
                "name": name,
                "group": target.resource.group,
                "kind": target.resource.plural,
                "uid": object["metadata"]["uid"],
            });
            let done = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
            Ok(json_answer(StatusCode::OK, &done))
        }
        ("DELETE", None, _) if target.namespace.is_some() || !target.resource.namespaced => {
            let selector = Selector::parse(query.text("labelSelector"), query.text("fieldSelector"))?;
            let (mut objects, version) = state.store.list(target.resource, target.namespace.as_deref());
            objects.retain(|object| selector.matches(object));
            for object in &objects {
                let name = object["metadata"]["name"].as_str().unwrap_or_default();
                // Gone already is what was asked for.
                let _ = state.store.delete(&target.place(name), &Value::Null, query.mode());
            }
            Ok(json_answer(StatusCode::OK, &form.list(target.resource, &objects, version)))
        }
        _ => Err(Failure::method_not_allowed()),
    }
}

/// Leaves the objects of one page, and answers how to ask for the next one. Pages are of now and not of when the first
/// one was asked for.
fn page(
    state: &State,
    query: &Query,
    objects: &mut Vec<Arc<Value>>,
    version: u64,
) -> Result<Option<String>, Failure> {
    let mut first = 0;
    if let Some((asked, from)) = query.text("continue").split_once('.') {
        let invalid = || Failure::bad_request("continue key is not valid");
        state.store.check_remembered(asked.parse().map_err(|_| invalid())?)?;
        first = from.parse().map_err(|_| invalid())?;
    }
    objects.drain(..first.min(objects.len()));
    let limit =
        query.number("limit").and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit > 0);
    Ok(match limit.filter(|limit| *limit < objects.len()) {
        Some(limit) => {
            objects.truncate(limit);
            Some(format!("{version}.{}", first + limit))
        }
        None => None,
    })
}

fn start_watch(
    state: &Arc<State>,
    target: &Target,
    query: &Query,
    form: Form,
) -> Result<Response<ResponseBody>, Failure> {
    let version = query.text("resourceVersion");
    let start = match version {
        _ if query.yes("sendInitialEvents") => watch::Start::MarkedState,
        "" | "0" => watch::Start::State,
        version => {
            let invalid = || Failure::bad_request(format!("resourceVersion: Invalid value: {version:?}"));
            watch::Start::After(version.parse().map_err(|_| invalid())?)
        }
    };
    let asked = watch::Query {
        resource: target.resource,
        namespace: target.namespace.clone(),
        selector: Selector::parse(query.text("labelSelector"), query.text("fieldSelector"))?,
        form,
        start,
        bookmarks: query.yes("allowWatchBookmarks"),
        timeout: query.number("timeoutSeconds").filter(|seconds| *seconds > 0).map(Duration::from_secs),
    };
    let events = watch::events(state.store.clone(), asked, state.bookmark_every, state.stop.clone());
    Ok(stream_answer("application/json", events))
}

/// Checks what a client may get wrong about an object to create, and creates it.
fn create(state: &State, target: &Target, mut object: Value, query: &Query) -> Result<Arc<Value>, Failure> {
    check_kind(target, &object)?;
    if !object["metadata"].is_object() {
        return Err(Failure::bad_request("the object provided has no metadata"));
    }
    let given = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let name = match object["metadata"]["generateName"].as_str() {
        Some(prefix) if given.is_empty() => {
            let number = state.generated.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            format!("{prefix}{number:05x}")
        }
        _ => given,
    };
    let bytes = name.as_bytes();
    let legal = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.".contains(byte);
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    if bytes.len() > 253 || !bytes.iter().all(legal) || !edge(bytes.first()) || !edge(bytes.last()) {
        let why = format!(
            "metadata.name: Invalid value: {name:?}: a lowercase RFC 1123 subdomain must consist of lower case \
             alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character"
        );
        return Err(Failure::invalid(target.resource, &name, &why));
    }
    object["metadata"]["name"] = json!(name);
    match &target.namespace {
        Some(namespace) => {
            let asked = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
            if asked != namespace {
                let why =
                    "the namespace of the provided object does not match the namespace sent on the request";
                return Err(Failure::bad_request(why));
            }
            object["metadata"]["namespace"] = json!(namespace);
        }
        None if target.resource.namespaced => return Err(Failure::method_not_allowed()),
        None => {}
    }
    state.store.create(&target.place(&name), object, query.mode())
}

/// Deletes an object without a request.
pub(super) fn delete_directly(
    state: &State,
    api_version: &str,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Arc<Value>, Failure> {
    let resource = resources::of_document(&json!({"apiVersion": api_version, "kind": kind}))
        .ok_or_else(|| Failure::bad_request("its apiVersion and kind are not served here"))?;
    let namespace = if resource.namespaced { namespace.to_owned() } else { String::new() };
    let place = Place { resource, namespace, name: name.to_owned() };
    state.store.delete(&place, &Value::Null, Mode::Keep)
}

/// Creates an object without a request, for a test's or a demo's furniture.
pub(super) fn create_directly(state: &State, object: Value) -> Result<Arc<Value>, Failure> {
    let resource = resources::of_document(&object)
        .ok_or_else(|| Failure::bad_request("its apiVersion and kind are not served here"))?;
    let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default").to_owned();
    let namespace = resource.namespaced.then_some(namespace);
    let target = Target { resource, namespace, name: None, subresource: None };
    create(state, &target, object, &Query::parse(""))
}

/// An object may leave out its kind, but not claim another one.
fn check_kind(target: &Target, object: &Value) -> Result<(), Failure> {
    let resource = target.resource;
    if !object.is_object() {
        return Err(Failure::bad_request("the body is not an object"));
    }
    let differs =
        |field: &str, want: &str| object[field].as_str().is_some_and(|got| !got.is_empty() && got != want);
    if differs("kind", resource.kind) || differs("apiVersion", &resource.api_version()) {
        let why = format!(
            "{} {} in the body, but the path is for {} {}",
            object["apiVersion"],
            object["kind"],
            resource.api_version(),
            resource.kind
        );
        return Err(Failure::bad_request(why));
    }
    Ok(())
}

/// A write to `/status` changes the status only, one to the object everything else.
fn part(target: &Target, before: &Value, mut next: Value) -> Value {
    if target.subresource.as_deref() == Some("status") {
        let mut kept = before.clone();
        kept["status"] = next["status"].take();
        kept["metadata"]["resourceVersion"] = next["metadata"]["resourceVersion"].take();
        return kept;
    }
    if target.resource.subresources.contains(&"status") && next.is_object() {
        next["status"] = before["status"].clone();
    }
    next
}

/// The body as a document; JSON, or YAML where that is allowed. Empty is null.
async fn document(body: Incoming, content_type: &str) -> Result<Value, Failure> {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    if !matches!(kind, "" | "application/json" | "application/yaml" | PROTOBUF) {
        return Err(Failure::unsupported_media_type(kind, "application/json, application/yaml"));
    }
    let collected = Limited::new(body, MAX_BODY).collect().await;
    let bytes = match collected {
        Ok(collected) => collected.to_bytes(),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => {
            return Err(Failure::too_large(MAX_BODY));
        }
        Err(error) => return Err(Failure::bad_request(format!("the body broke off: {error}"))),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    if kind == PROTOBUF {
        return protobuf::document(&bytes)
            .map_err(|why| Failure::bad_request(format!("the protobuf body cannot be read: {why}")));
    }
    serde_json::from_slice(&bytes)
        .or_else(|error| serde_yaml::from_slice(&bytes).map_err(|_| error))
        .map_err(|error| Failure::bad_request(format!("the body is neither JSON nor YAML: {error}")))
}
