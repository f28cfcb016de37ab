//! One request: recorded, then checked in Rails' order (feature flag, JWT, agent token), then answered by its endpoint.
//! Before it: a connection. After it: the faults, if the endpoint has any.

use std::io;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};
use url::form_urlencoded;

use super::faults::{Body, full};
use super::fixtures::{self, Agent};
use super::jwt::{self, Claims};
use super::record::{Endpoint, Seen, hash, without_secrets};
use super::{Options, State};

const INTERNAL: &str = "/api/v4/internal/";
const MODULES: &str = "/api/v4/internal/kubernetes/modules/";
/// What is read of a body; a kas' configurations and counters are far below.
const MAX_BODY: usize = 4 << 20;

/// A refusal: status and message, as Rails' JSON.
type Refusal = (StatusCode, &'static str);

const UNAUTHORIZED: Refusal = (StatusCode::UNAUTHORIZED, "401 Unauthorized");
const BAD_JWT: Refusal = (StatusCode::UNAUTHORIZED, "KAS JWT authentication invalid");
const FORBIDDEN: Refusal = (StatusCode::FORBIDDEN, "403 Forbidden");
const NOT_FOUND: Refusal = (StatusCode::NOT_FOUND, "404 Not Found");
const BAD_REQUEST: Refusal = (StatusCode::BAD_REQUEST, "400 Bad request");

/// What was asked, once it is known who asks.
struct Asked<'a> {
    path: &'a str,
    query: &'a str,
    headers: &'a HeaderMap,
    body: Option<&'a Value>,
    claims: Option<Claims>,
}

pub(super) async fn answer(state: Arc<State>, request: Request<Incoming>) -> io::Result<Response<Body>> {
    let (head, incoming) = request.into_parts();
    let path = head.uri.path().strip_prefix(state.options.relative_path.as_str()).unwrap_or_default();
    let endpoint = endpoint(&head.method, path);
    let echo = path.strip_prefix(MODULES).is_some_and(|rest| rest.starts_with("stand_in_echo/"));
    let (body, incoming) = if echo { (None, Some(incoming)) } else { (read(incoming).await, None) };
    let claims = claims(&head.headers, &state.options);
    state.records.remember(Seen {
        endpoint,
        method: head.method.clone(),
        uri: head.uri.clone(),
        headers: without_secrets(&head.headers),
        token: token(endpoint, &head.headers).map(|token| hash(token.as_bytes())),
        claims: claims.clone(),
        body: body.clone(),
    });
    let faults = state.changing().faults.get(&endpoint).cloned().unwrap_or_default();
    if let Some(delay) = faults.delay {
        tokio::time::sleep(delay).await;
    }
    if faults.drop_connection.is_some() {
        return Err(io::Error::other("closed without an answer, as asked"));
    }
    if let Some(instead) = faults.instead() {
        return Ok(instead);
    }
    let asked = Asked {
        path,
        query: head.uri.query().unwrap_or_default(),
        headers: &head.headers,
        body: body.as_ref(),
        claims,
    };
    let response = match (respond(&state, endpoint, &asked), incoming) {
        (Err((status, message)), _) => document(status, &json!({"message": message})),
        (Ok(_), Some(incoming)) => echo_back(&head.headers, incoming),
        (Ok(response), None) => response,
    };
    Ok(faults.spoil(response).await)
}

fn endpoint(method: &Method, path: &str) -> Endpoint {
    if path.starts_with(MODULES) {
        return Endpoint::Module;
    }
    let kubernetes = path.strip_prefix("/api/v4/internal/kubernetes/");
    match (method.as_str(), kubernetes, path) {
        ("GET", Some("agent_info"), _) => Endpoint::AgentInfo,
        ("GET", _, "/api/v4/internal/agents/agentk/agent_info") => Endpoint::AgentInfo,
        ("GET", Some("project_info"), _) => Endpoint::ProjectInfo,
        ("GET", Some("verify_project_access"), _) => Endpoint::VerifyProjectAccess,
        ("POST", Some("authorize_proxy_user"), _) => Endpoint::AuthorizeProxyUser,
        ("POST", Some("usage_metrics"), _) => Endpoint::UsageMetrics,
        ("POST", Some("agent_configuration"), _) => Endpoint::AgentConfiguration,
        ("POST", Some("agent_events"), _) => Endpoint::AgentEvents,
        ("GET", _, "/api/v4/job/allowed_agents") => Endpoint::AllowedAgents,
        _ => Endpoint::Unknown,
    }
}

async fn read(body: Incoming) -> Option<Value> {
    let bytes = Limited::new(body, MAX_BODY).collect().await.ok()?.to_bytes();
    serde_json::from_slice(&bytes).ok()
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn claims(headers: &HeaderMap, options: &Options) -> Option<Claims> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?.as_secs_f64() + options.clock_ahead;
    let audience = options.check_audience.then_some("gitlab");
    jwt::verify(text(headers, "gitlab-kas-api-request")?, &options.secret, audience, now).ok()
}

/// The newest header first, then that of 17.x, then that of 14.x.
fn token(endpoint: Endpoint, headers: &HeaderMap) -> Option<&str> {
    if endpoint == Endpoint::AllowedAgents {
        return text(headers, "job-token");
    }
    let bearer = || {
        let (scheme, token) = text(headers, "authorization")?.split_once(' ')?;
        scheme.eq_ignore_ascii_case("bearer").then_some(token)
    };
    text(headers, "gitlab-agent-api-request")
        .or_else(|| text(headers, "gitlab-agentk-api-request"))
        .or_else(bearer)
}

fn respond(state: &State, endpoint: Endpoint, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    if endpoint == Endpoint::AllowedAgents {
        return allowed_agents(state, asked);
    }
    if !asked.path.starts_with(INTERNAL) || !state.changing().feature_enabled {
        return Err(NOT_FOUND);
    }
    if asked.claims.is_none() {
        return Err(BAD_JWT);
    }
    let options = &state.options;
    match endpoint {
        Endpoint::AgentInfo => {
            let agent = agent(state, endpoint, asked)?;
            Ok(document(StatusCode::OK, &fixtures::agent_info(agent, options)))
        }
        Endpoint::ProjectInfo | Endpoint::VerifyProjectAccess => {
            let agent = agent(state, endpoint, asked)?;
            let id = form_urlencoded::parse(asked.query.as_bytes()).find(|(name, _)| name == "id");
            let (_, id) = id.ok_or((StatusCode::BAD_REQUEST, "id is missing"))?;
            let info = fixtures::project_info(&id, agent, options).ok_or(NOT_FOUND)?;
            Ok(match endpoint {
                Endpoint::ProjectInfo => document(StatusCode::OK, &info),
                _ => no_content(),
            })
        }
        Endpoint::Module => {
            agent(state, endpoint, asked)?;
            module(asked)
        }
        Endpoint::AuthorizeProxyUser => proxy_user(state, asked),
        Endpoint::UsageMetrics => usage(state, asked.body),
        Endpoint::AgentConfiguration => {
            let id = asked.body.and_then(|body| body["agent_id"].as_i64()).ok_or(BAD_REQUEST)?;
            if !options.agents.iter().any(|agent| agent.id == id) {
                return Err(NOT_FOUND);
            }
            let configuration =
                asked.body.and_then(|body| body.get("agent_config")).cloned().ok_or(BAD_REQUEST)?;
            state.changing().configurations.insert(id, configuration);
            Ok(no_content())
        }
        Endpoint::AgentEvents => {
            let events = asked.body.and_then(|body| body["events"].as_object()).ok_or(BAD_REQUEST)?;
            if events.values().all(Value::is_array) { Ok(no_content()) } else { Err(BAD_REQUEST) }
        }
        Endpoint::AllowedAgents | Endpoint::Unknown => Err(NOT_FOUND),
    }
}

fn agent<'a>(state: &'a State, endpoint: Endpoint, asked: &Asked<'_>) -> Result<&'a Agent, Refusal> {
    let token = token(endpoint, asked.headers).ok_or(UNAUTHORIZED)?;
    if state.changing().revoked.iter().any(|revoked| revoked == token) {
        return Err(UNAUTHORIZED);
    }
    state.options.agents.iter().find(|agent| agent.token == token).ok_or(UNAUTHORIZED)
}

fn allowed_agents(state: &State, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let token = token(Endpoint::AllowedAgents, asked.headers).ok_or(NOT_FOUND)?;
    let revoked = state.changing().revoked.iter().any(|revoked| revoked == token);
    let job = state.options.jobs.iter().find(|job| job.token == token && !revoked).ok_or(UNAUTHORIZED)?;
    let mut response = document(StatusCode::OK, &job.allowed_agents);
    if let Some(flags) = job.feature_flags.as_deref().and_then(|flags| HeaderValue::try_from(flags).ok()) {
        response.headers_mut().insert("gitlab-feature-flag", flags);
    }
    Ok(response)
}

fn proxy_user(state: &State, asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let body = asked.body.ok_or(BAD_REQUEST)?;
    let id = body["agent_id"].as_i64().ok_or(BAD_REQUEST)?;
    let key = body["access_key"].as_str().ok_or(BAD_REQUEST)?;
    let csrf = body["csrf_token"].as_str();
    if state.changing().revoked.iter().any(|revoked| revoked == key) {
        return Err(UNAUTHORIZED);
    }
    let users = &state.options.users;
    let user = match body["access_type"].as_str() {
        Some("session_cookie") => {
            let user = users.iter().find(|user| user.session_cookie == key).ok_or(UNAUTHORIZED)?;
            if csrf != Some(&user.csrf_token) {
                return Err(UNAUTHORIZED);
            }
            user
        }
        Some("personal_access_token") => {
            let user = users.iter().find(|user| user.personal_access_token == key).ok_or(UNAUTHORIZED)?;
            if !user.scope {
                return Err(FORBIDDEN);
            }
            user
        }
        _ => return Err(BAD_REQUEST),
    };
    let agent = state.options.agents.iter().find(|agent| agent.id == id).ok_or(NOT_FOUND)?;
    let (_, access_as) = user.agents.iter().find(|(agent, _)| *agent == id).ok_or(FORBIDDEN)?;
    Ok(document(
        StatusCode::CREATED,
        &json!({
            "agent": {"id": agent.id, "config_project": {"id": agent.project.id}},
            "user": {"id": user.id, "username": user.username},
            "access_as": access_as,
        }),
    ))
}

/// Both forms: flat (14.x), or `counters` and `unique_counters`; not both at once.
fn usage(state: &State, body: Option<&Value>) -> Result<Response<Body>, Refusal> {
    let body = body.and_then(Value::as_object).ok_or(BAD_REQUEST)?;
    let structured = body.contains_key("counters") || body.contains_key("unique_counters");
    if structured && body.keys().any(|key| key != "counters" && key != "unique_counters") {
        return Err(BAD_REQUEST);
    }
    let empty = serde_json::Map::new();
    let counters = if structured {
        body.get("counters").map_or(Some(&empty), Value::as_object).ok_or(BAD_REQUEST)?
    } else {
        body
    };
    let unique = body.get("unique_counters").map_or(Some(&empty), Value::as_object).ok_or(BAD_REQUEST)?;
    let integers = |value: &Value| value.as_array().is_some_and(|all| all.iter().all(Value::is_i64));
    if !unique.values().all(integers) {
        return Err(BAD_REQUEST);
    }
    let count = |value: &Value| value.as_i64().filter(|count| *count >= 0);
    let counted: Option<Vec<_>> =
        counters.iter().map(|(name, value)| Some((name.clone(), count(value)?))).collect();
    let mut changing = state.changing();
    for (name, count) in counted.ok_or(BAD_REQUEST)? {
        *changing.usage.entry(name).or_default() += count;
    }
    Ok(no_content())
}

fn module(asked: &Asked<'_>) -> Result<Response<Body>, Refusal> {
    let rest = asked.path.strip_prefix(MODULES).unwrap_or_default();
    match rest.split_once('/') {
        Some(("stand_in_echo", _)) => Ok(no_content()),
        Some(("cilium_alert", "")) => {
            let alert = asked.body.and_then(|body| body["alert"].as_object());
            alert.map(|_| document(StatusCode::OK, &Value::Null)).ok_or(BAD_REQUEST)
        }
        _ => Err(NOT_FOUND),
    }
}

/// The request's headers, with `Echo-` before each name, and its body piece by piece as it comes.
fn echo_back(headers: &HeaderMap, body: Incoming) -> Response<Body> {
    let mut response = Response::new(body.map_err(io::Error::other).boxed_unsync());
    for (name, value) in without_secrets(headers) {
        let name = header::HeaderName::try_from(format!("echo-{name}"));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
            response.headers_mut().append(name, value);
        }
    }
    response
}

fn document(status: StatusCode, document: &Value) -> Response<Body> {
    let mut response = Response::new(full(document.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn no_content() -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::NO_CONTENT;
    response
}
