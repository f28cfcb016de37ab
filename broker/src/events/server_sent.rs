//! Events for whoever has no Rails: an endless `text/event-stream` over HTTP. Before it: the API listener, which has
//! checked who asks; nothing is authenticated here. After it: a browser's `EventSource`, or curl. A reader that is too
//! slow misses events and is told so; nothing is kept for one that was away.
//!
//! `GET <path>?agent_id=7&agent_id=8&project_id=3` gives the events of these agents and of these projects' agents,
//! without a query those of all. Each is `event: <kind>`, `id: <number>`, `data: <JSON>`, the JSON being that of
//! [`super::Event`]; `event: lagged` with `data: {"missed":<number>}` stands for as many events of any agent.

use super::{Event, Events, Published};
use axum::{
    Router,
    body::{Body, Bytes},
    response::{IntoResponse, Response},
    routing::get,
};
use futures::stream;
use http::{StatusCode, Uri, header};
use std::{collections::BTreeSet, convert::Infallible, str::FromStr, sync::Arc, time::Duration};
use tokio::{
    sync::{
        OwnedSemaphorePermit, Semaphore,
        broadcast::{Receiver, error::RecvError},
    },
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use url::form_urlencoded;

/// A line that says nothing, so that proxies and readers see that the stream lives.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// Agents and projects of one query.
const NAMED_MAX: usize = 100;

/// The service at `path`, for `readers` at the same time. Streams end when `stop` fires, for they would never end by
/// themselves. Mount it behind a check of who asks.
pub fn router(path: &str, events: Arc<Events>, readers: usize, stop: CancellationToken) -> Router {
    let seats = Arc::new(Semaphore::new(readers));
    let serve = move |uri: Uri| {
        let answer = answer(&uri, &events, &seats, &stop);
        async move { answer }
    };
    Router::new().route(path, get(serve))
}

fn answer(uri: &Uri, events: &Events, seats: &Arc<Semaphore>, stop: &CancellationToken) -> Response {
    let filter = match Filter::parse(uri.query().unwrap_or_default()) {
        Ok(filter) => filter,
        Err(problem) => return (StatusCode::BAD_REQUEST, problem).into_response(),
    };
    let Ok(seat) = Arc::clone(seats).try_acquire_owned() else {
        let problem = "too many read events already; try again later\n";
        return (StatusCode::SERVICE_UNAVAILABLE, [(header::RETRY_AFTER, "30")], problem).into_response();
    };
    let reader = Reader { events: events.subscribe(), filter, stop: stop.clone(), begun: false, _seat: seat };
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream"),
        (header::CACHE_CONTROL, "no-store"),
        // nginx would collect it otherwise.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    let body = stream::unfold(reader, async |mut reader| {
        let piece = reader.next().await?;
        Some((Ok::<_, Infallible>(piece), reader))
    });
    (headers, Body::from_stream(body)).into_response()
}

/// Whose events. Nothing named: everybody's.
#[derive(Debug, Default, PartialEq, Eq)]
struct Filter {
    agents: BTreeSet<i64>,
    projects: BTreeSet<i64>,
}

impl Filter {
    fn parse(query: &str) -> Result<Self, &'static str> {
        let mut filter = Self::default();
        for (named, (key, value)) in form_urlencoded::parse(query.as_bytes()).enumerate() {
            if named >= NAMED_MAX {
                return Err("at most 100 agents and projects can be named in one query\n");
            }
            let set = match &*key {
                "agent_id" => &mut filter.agents,
                "project_id" => &mut filter.projects,
                _ => {
                    return Err("the query may hold agent_id and project_id only, each as often as needed\n");
                }
            };
            set.insert(i64::from_str(&value).map_err(|_| "agent_id and project_id are whole numbers\n")?);
        }
        Ok(filter)
    }

    fn wants(&self, event: &Event) -> bool {
        self.agents.is_empty() && self.projects.is_empty()
            || self.agents.contains(&event.agent_id.0)
            || self.projects.contains(&event.project_id.0)
    }
}

struct Reader {
    events: Receiver<Arc<Published>>,
    filter: Filter,
    stop: CancellationToken,
    begun: bool,
    _seat: OwnedSemaphorePermit,
}

impl Reader {
    /// The next piece of the stream; asked for only when the last one was written, and so nothing piles up here.
    async fn next(&mut self) -> Option<Bytes> {
        if !self.begun {
            self.begun = true;
            return Some(Bytes::from_static(b": what happens from now on\n\n"));
        }
        let silent_until = Instant::now() + KEEP_ALIVE;
        loop {
            let event = self.stop.run_until_cancelled(timeout_at(silent_until, self.events.recv())).await?;
            match event {
                Ok(Ok(event)) if self.filter.wants(&event.event) => return Some(frame(&event)),
                Ok(Ok(_)) => {}
                Ok(Err(RecvError::Lagged(missed))) => {
                    return Some(format!("event: lagged\ndata: {{\"missed\":{missed}}}\n\n").into());
                }
                Ok(Err(RecvError::Closed)) => return None,
                Err(_) => return Some(Bytes::from_static(b": still here\n\n")),
            }
        }
    }
}

/// JSON has no line breaks in it, so that one `data` line is enough.
fn frame(published: &Published) -> Bytes {
    let Published { number, event, json } = published;
    format!("event: {}\nid: {number}\ndata: {json}\n\n", event.kind.name()).into()
}

#[cfg(test)]
mod tests;
