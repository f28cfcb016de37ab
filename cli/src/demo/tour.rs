//! `--once`: a scripted tour through the tunnel that uses what a user would: list, watch, create, delete, and what
//! happens with a wrong token and with too many requests. One line per step; the first step that does not do what it
//! should ends the tour with its name. What it creates it deletes, also when it fails.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::client::{Answer, ClientError, Connection, Events, Server};
use super::place::BURST;
use crate::tokens;

const NAMESPACES: &str = "/k8s-proxy/api/v1/namespaces";
const CONFIG_MAPS: &str = "/k8s-proxy/api/v1/namespaces/default/configmaps";
/// For an event that should be there at once.
const EVENT_PATIENCE: Duration = Duration::from_secs(10);
/// The bucket refills while the tour empties it.
const MOST_REQUESTS: u32 = BURST * 10;
const LIMIT_PATIENCE: Duration = Duration::from_secs(60);

/// Where the tour ended.
#[derive(Debug, thiserror::Error)]
#[error("the tour failed at \"{step}\": {why}")]
pub(super) struct TourError {
    step: &'static str,
    why: Why,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum Why {
    #[error("{}", with_causes(.0))]
    Client(#[from] ClientError),
    #[error("{0}")]
    Unexpected(String),
}

fn with_causes(error: &ClientError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn unexpected(answer: &Answer) -> Why {
    Why::Unexpected(answer.summary())
}

/// The edge and who asks it.
pub(super) struct Visitor {
    pub(super) edge: Server,
    pub(super) token: String,
    pub(super) hasty_token: String,
    /// Nobody's.
    pub(super) wrong_token: String,
}

/// Prints a step when it is done.
struct Line {
    step: &'static str,
    began: Instant,
}

impl Line {
    fn begin(step: &'static str) -> Line {
        Line { step, began: Instant::now() }
    }

    fn end<T>(self, outcome: Result<(T, String), Why>) -> Result<T, TourError> {
        let took = self.began.elapsed();
        match outcome {
            Ok((value, saw)) => {
                println!("  ok    {:<30} {saw} ({:.1?})", self.step, took);
                Ok(value)
            }
            Err(why) => {
                println!("  FAIL  {:<30} {why} ({:.1?})", self.step, took);
                Err(TourError { step: self.step, why })
            }
        }
    }
}

/// The whole tour.
pub(super) async fn run(visitor: &Visitor) -> Result<(), TourError> {
    let name = format!("postern-tour-{}", &tokens::hex_of(&tokens::new_token())[..8]);
    let toured = objects(visitor, &name).await;
    if toured.is_err()
        && let Ok(mut connection) = visitor.edge.connect(Some(&visitor.token)).await
    {
        // Best effort: the error that brought us here is the one to tell.
        let _ = connection.ask(Method::DELETE, &format!("{CONFIG_MAPS}/{name}"), None).await;
    }
    toured?;
    let line = Line::begin("refuse a wrong token");
    line.end(wrong_token(visitor).await)?;
    let line = Line::begin("limit a hasty token");
    line.end(hasty_token(visitor).await)
}

async fn objects(visitor: &Visitor, name: &str) -> Result<(), TourError> {
    let line = Line::begin("list namespaces");
    let mut connection = line.end(list(visitor).await)?;
    let line = Line::begin("watch configmaps");
    let mut events = line.end(watch(visitor, &mut connection).await)?;

    let line = Line::begin("create a configmap");
    line.end(create(&mut connection, name).await)?;
    let line = Line::begin("the watch sees it appear");
    line.end(event(&mut events, "ADDED", name).await)?;
    let line = Line::begin("delete it");
    line.end(delete(&mut connection, name).await)?;
    let line = Line::begin("the watch sees it go");
    line.end(event(&mut events, "DELETED", name).await)
}

async fn list(visitor: &Visitor) -> Result<(Connection, String), Why> {
    let mut connection = visitor.edge.connect(Some(&visitor.token)).await?;
    let answer = connection.ask(Method::GET, NAMESPACES, None).await?;
    if answer.status != StatusCode::OK {
        return Err(unexpected(&answer));
    }
    let document = answer.json()?;
    let items = document["items"].as_array().map_or(&[][..], Vec::as_slice);
    let names: Vec<&str> = items.iter().filter_map(|item| item["metadata"]["name"].as_str()).collect();
    if !names.contains(&"default") {
        return Err(Why::Unexpected(format!("there is no namespace default among {names:?}")));
    }
    Ok((connection, names.join(", ")))
}

async fn watch(visitor: &Visitor, connection: &mut Connection) -> Result<(Events, String), Why> {
    let answer = connection.ask(Method::GET, CONFIG_MAPS, None).await?;
    let document = answer.json()?;
    let Some(version) = document["metadata"]["resourceVersion"].as_str() else {
        return Err(unexpected(&answer));
    };
    // A watch keeps its connection, so it has one of its own.
    let mut own = visitor.edge.connect(Some(&visitor.token)).await?;
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={version}");
    let response = own.send(Method::GET, &path, None).await?;
    if response.status() != StatusCode::OK {
        return Err(Why::Unexpected(format!("the watch was answered with {}", response.status())));
    }
    Ok((Events::of(response), format!("open from version {version}")))
}

async fn create(connection: &mut Connection, name: &str) -> Result<((), String), Why> {
    let object = json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name},
        "data": {"greeting": "hello through the tunnel"},
    });
    let answer = connection.ask(Method::POST, CONFIG_MAPS, Some(&object)).await?;
    match answer.status {
        StatusCode::CREATED => Ok(((), name.to_owned())),
        _ => Err(unexpected(&answer)),
    }
}

async fn delete(connection: &mut Connection, name: &str) -> Result<((), String), Why> {
    let answer = connection.ask(Method::DELETE, &format!("{CONFIG_MAPS}/{name}"), None).await?;
    match answer.status {
        StatusCode::OK => Ok(((), name.to_owned())),
        _ => Err(unexpected(&answer)),
    }
}

/// Others may change configmaps too: only ours counts.
async fn event(events: &mut Events, kind: &str, name: &str) -> Result<((), String), Why> {
    let awaited = async {
        while let Some(event) = events.next().await? {
            if event["type"] == "ERROR" {
                return Err(Why::Unexpected(format!("the watch failed: {}", event["object"]["message"])));
            }
            if event["object"]["metadata"]["name"] != name {
                continue;
            }
            return match event["type"].as_str() {
                Some(got) if got == kind => Ok(((), kind.to_owned())),
                got => Err(Why::Unexpected(format!("the event is {got:?} instead of {kind}"))),
            };
        }
        Err(Why::Unexpected("the watch ended".to_owned()))
    };
    let late = || Why::Unexpected(format!("no event within {} s", EVENT_PATIENCE.as_secs()));
    timeout(EVENT_PATIENCE, awaited).await.unwrap_or_else(|_| Err(late()))
}

async fn wrong_token(visitor: &Visitor) -> Result<((), String), Why> {
    let mut connection = visitor.edge.connect(Some(&visitor.wrong_token)).await?;
    let answer = connection.ask(Method::GET, NAMESPACES, None).await?;
    match is_status(&answer, StatusCode::UNAUTHORIZED) {
        true => Ok(((), answer.summary())),
        false => Err(unexpected(&answer)),
    }
}

async fn hasty_token(visitor: &Visitor) -> Result<((), String), Why> {
    let mut connection = visitor.edge.connect(Some(&visitor.hasty_token)).await?;
    let hurry = async {
        for served in 0..MOST_REQUESTS {
            let answer = connection.ask(Method::GET, "/k8s-proxy/version", None).await?;
            match answer.status {
                StatusCode::OK => {}
                StatusCode::TOO_MANY_REQUESTS if is_status(&answer, StatusCode::TOO_MANY_REQUESTS) => {
                    if answer.retry_after.is_none() {
                        return Err(Why::Unexpected("the refusal has no Retry-After".to_owned()));
                    }
                    if served == 0 {
                        return Err(Why::Unexpected("already the first request was refused".to_owned()));
                    }
                    return Ok(((), format!("{served} requests served, then {}", answer.summary())));
                }
                _ => return Err(unexpected(&answer)),
            }
        }
        Err(Why::Unexpected(format!("{MOST_REQUESTS} requests in a row and no refusal")))
    };
    let late = || Why::Unexpected(format!("no refusal within {} s", LIMIT_PATIENCE.as_secs()));
    timeout(LIMIT_PATIENCE, hurry).await.unwrap_or_else(|_| Err(late()))
}

/// Whether a refusal is one that Kubernetes clients understand.
fn is_status(answer: &Answer, code: StatusCode) -> bool {
    let document: Value = answer.json().unwrap_or_default();
    answer.status == code && document["kind"] == "Status" && document["code"] == code.as_u16()
}
