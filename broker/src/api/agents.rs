//! Who is connected, for operators: `GET /api/v1/agents` on the API listener. Before it: the check of the JWT. After it:
//! [`crate::fleet::roster`], which asks all brokers. One document, never a stream; docs/agents.md describes it.

use super::Beside;
use crate::{
    agent_tracker::{Kind, Wanted},
    fleet::roster::{Entry, LastSeen, PATIENCE, Roster},
};
use bytes::Bytes;
use futures::{future::join_all, stream};
use http::{HeaderValue, Method, Response, StatusCode, header};
use postern_wire::ids::{AgentId, ProjectId};
use prost_types::Timestamp;
use serde::Serialize;
use std::{collections::BTreeSet, convert::Infallible, str::FromStr, sync::Arc, time::SystemTime};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::body::Body;
use url::form_urlencoded;

/// Where it is.
const PATH: &str = "/api/v1/agents";
/// Agents and projects of one query; each agent that is gone may cost a command to Redis.
const NAMED_MAX: usize = 100;
/// Answers in the making, with up to 10 MB each.
const AT_A_TIME: usize = 4;
/// Bytes that are handed to a connection at a time.
const PIECE: usize = 64 * 1024;

/// The listing, to be mounted behind a check of who asks.
pub(super) fn beside(roster: Roster) -> Beside {
    let seats = Arc::new(Semaphore::new(AT_A_TIME));
    let answer = move |request: http::Request<Body>| -> super::Answer {
        let (roster, seats) = (roster.clone(), Arc::clone(&seats));
        Box::pin(async move { answer(&roster, seats, request.method(), request.uri().query()).await })
    };
    Beside { path: PATH, answer: Arc::new(answer) }
}

async fn answer(
    roster: &Roster,
    seats: Arc<Semaphore>,
    method: &Method,
    query: Option<&str>,
) -> Response<Body> {
    if method != Method::GET {
        let mut refusal = refusal(StatusCode::METHOD_NOT_ALLOWED, "agents can be listed with GET only\n");
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET"));
        return refusal;
    }
    let query = match Query::parse(query.unwrap_or_default()) {
        Ok(query) => query,
        Err(problem) => return refusal(StatusCode::BAD_REQUEST, problem),
    };
    let Ok(seat) = seats.try_acquire_owned() else {
        let busy = "too many lists are being made already; try again in a second\n";
        let mut refusal = refusal(StatusCode::SERVICE_UNAVAILABLE, busy);
        refusal.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        return refusal;
    };
    let mut response = Response::new(whole(list(roster, query).await, seat));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// In pieces, so that the seat is taken for as long as much of it is unread.
pub(super) fn whole(document: Vec<u8>, seat: OwnedSemaphorePermit) -> Body {
    let pieces = stream::unfold((Bytes::from(document), seat), async |(mut rest, seat)| {
        let piece = rest.split_to(PIECE.min(rest.len()));
        (!piece.is_empty()).then_some((Ok::<_, Infallible>(piece), (rest, seat)))
    });
    Body::new(axum::body::Body::from_stream(pieces))
}

pub(super) fn refusal(status: StatusCode, words: &str) -> Response<Body> {
    let mut response = Response::new(Body::new(words.to_owned()));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}

/// Whose connections, and whether those who are gone are to be looked up.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    agents: BTreeSet<AgentId>,
    projects: BTreeSet<ProjectId>,
    gone: bool,
}

impl Query {
    fn parse(text: &str) -> Result<Self, &'static str> {
        let mut query = Self::default();
        for (named, (key, value)) in form_urlencoded::parse(text.as_bytes()).enumerate() {
            if named >= NAMED_MAX {
                return Err("at most 100 agents and projects can be named in one query\n");
            }
            let number = || i64::from_str(&value).map_err(|_| "agent_id and project_id are whole numbers\n");
            match &*key {
                "agent_id" => drop(query.agents.insert(AgentId(number()?))),
                "project_id" => drop(query.projects.insert(ProjectId(number()?))),
                "gone" => {
                    query.gone = bool::from_str(&value).map_err(|_| "gone is true or false\n")?;
                }
                _ => {
                    return Err(
                        "the query may hold agent_id and project_id, each as often as needed, and gone\n",
                    );
                }
            }
        }
        if query.gone && query.agents.is_empty() {
            return Err(
                "gone=true needs agent_id: only agents that are named can be looked up once they are gone\n",
            );
        }
        Ok(query)
    }

    fn wanted(&self) -> Wanted {
        if self.agents.is_empty() && self.projects.is_empty() {
            return Wanted::All;
        }
        Wanted::Of { agents: self.agents.clone(), projects: self.projects.clone() }
    }
}

#[derive(Serialize)]
struct Document<'a> {
    items: Vec<Item<'a>>,
    /// What these have is not listed.
    missing_brokers: Vec<String>,
    truncated: bool,
    /// Of the one agent that was asked for and is not connected; null if nobody remembers it.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_seen: Option<Option<Seen>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    gone: Option<Vec<Gone>>,
}

#[derive(Serialize)]
struct Item<'a> {
    agent_id: i64,
    project_id: i64,
    #[serde(skip_serializing_if = "str::is_empty")]
    name: &'a str,
    version: &'a str,
    commit: &'a str,
    pod_namespace: &'a str,
    pod_name: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    kubernetes_version: &'a str,
    kind: &'static str,
    /// Text: it has more digits than some readers of JSON numbers keep.
    connection_id: String,
    connected_at: String,
    address: &'a str,
    broker: Option<String>,
}

#[derive(Serialize)]
struct Gone {
    agent_id: i64,
    last_seen: Option<Seen>,
}

#[derive(Clone, Serialize)]
struct Seen {
    at: String,
    from: String,
    broker: String,
    refusal: Option<String>,
}

async fn list(roster: &Roster, query: Query) -> Vec<u8> {
    let gathered = roster.gather(query.wanted(), PATIENCE).await;
    let here: BTreeSet<i64> = gathered.entries.iter().map(|entry| entry.connected.info.agent_id).collect();
    let alone = query.agents.len() == 1 && query.projects.is_empty();
    let gone: Option<Vec<Gone>> = if query.gone || alone {
        let absent = query.agents.iter().filter(|agent| !here.contains(&agent.0));
        let looked_up = absent.map(async |agent| {
            let last_seen = roster.last_seen(*agent).await.map(Seen::from);
            Gone { agent_id: agent.0, last_seen }
        });
        Some(join_all(looked_up).await)
    } else {
        None
    };
    let only = gone.as_ref().filter(|_| alone).and_then(|gone| gone.first());
    let document = Document {
        items: gathered.entries.iter().map(item).collect(),
        missing_brokers: gathered.missing.iter().map(ToString::to_string).collect(),
        truncated: gathered.truncated,
        last_seen: only.map(|gone| gone.last_seen.clone()),
        gone: gone.filter(|_| query.gone),
    };
    let mut text = serde_json::to_vec(&document).expect("texts and numbers are JSON");
    text.push(b'\n');
    text
}

fn item(entry: &Entry) -> Item<'_> {
    let connected = &entry.connected;
    let (info, meta) = (&connected.info, connected.info.agent_meta.as_ref());
    let kubernetes = meta.and_then(|meta| meta.kubernetes_version.as_ref());
    Item {
        agent_id: info.agent_id,
        project_id: info.project_id,
        name: &connected.name,
        version: meta.map_or("", |meta| &meta.version),
        commit: meta.map_or("", |meta| &meta.commit_id),
        pod_namespace: meta.map_or("", |meta| &meta.pod_namespace),
        pod_name: meta.map_or("", |meta| &meta.pod_name),
        kubernetes_version: kubernetes.map_or("", |version| &version.git_version),
        kind: match connected.kind {
            Kind::Stream => "stream",
            Kind::Registered => "registered",
        },
        connection_id: info.connection_id.to_string(),
        connected_at: info.connected_at.map(since).unwrap_or_default(),
        address: &connected.address,
        broker: entry.broker.as_ref().map(ToString::to_string),
    }
}

impl From<LastSeen> for Seen {
    fn from(seen: LastSeen) -> Self {
        let LastSeen { at, from, broker, refusal } = seen;
        Self { at: rfc3339(at), from, broker, refusal }
    }
}

/// Another broker's time may be any.
fn since(at: Timestamp) -> String {
    SystemTime::try_from(at).map(rfc3339).unwrap_or_default()
}

/// In UTC, with milliseconds at the most.
pub(super) fn rfc3339(at: SystemTime) -> String {
    // Panics outside the years that can be written; what comes from elsewhere is not to be trusted with that.
    let Ok(since) = at.duration_since(SystemTime::UNIX_EPOCH) else { return String::new() };
    let millis = i128::try_from(since.as_millis()).unwrap_or(i128::MAX);
    let at = OffsetDateTime::from_unix_timestamp_nanos(millis.saturating_mul(1_000_000));
    at.ok().and_then(|at| at.format(&Rfc3339).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_query_names_agents_and_projects_or_is_refused() {
        let ids = |agents: &[i64], projects: &[i64], gone| Query {
            agents: agents.iter().copied().map(AgentId).collect(),
            projects: projects.iter().copied().map(ProjectId).collect(),
            gone,
        };
        for (text, wanted) in [
            ("", ids(&[], &[], false)),
            ("agent_id=7&agent_id=8&project_id=3", ids(&[7, 8], &[3], false)),
            ("agent_id=7&gone=true", ids(&[7], &[], true)),
            ("gone=false", ids(&[], &[], false)),
        ] {
            assert_eq!(Query::parse(text), Ok(wanted), "{text}");
        }
        let many = "agent_id=1&".repeat(101);
        for (text, words) in [
            ("agent_id=x", "whole numbers"),
            ("project_id=", "whole numbers"),
            ("agentid=7", "the query may hold"),
            ("gone=yes&agent_id=7", "true or false"),
            ("gone=true", "needs agent_id"),
            (many.as_str(), "at most 100"),
        ] {
            let problem = Query::parse(text).unwrap_err();
            assert!(problem.contains(words) && problem.ends_with('\n'), "{text}: {problem}");
        }
    }

    #[test]
    fn times_are_written_in_utc_and_impossible_ones_are_empty() {
        let at = |millis| SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        assert_eq!(rfc3339(at(1_767_323_045_678)), "2026-01-02T03:04:05.678Z");
        assert_eq!(rfc3339(at(1_767_323_045_000)), "2026-01-02T03:04:05Z");
        assert_eq!(rfc3339(at(400_000_000_000_000)), "");
        assert_eq!(since(Timestamp { seconds: -1, nanos: 0 }), "");
        assert_eq!(since(Timestamp { seconds: i64::MAX, nanos: i32::MAX }), "");
    }
}
