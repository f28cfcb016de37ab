//! A pod's log: every container of a pod that runs says one line per tick since the pod was created. Lines follow from
//! the clock, so nothing is stored; a follower gets the next line when its time comes and ends with the pod.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio_util::sync::CancellationToken;

use super::defaults;
use super::status::Failure;
use super::store::{Place, Store};

/// A log without `tailLines` shows at most this many lines, as if older ones had been rotated away.
const KEPT_LINES: u64 = 1_000;

/// What a client asked for, as far as it is known here: container, follow, tailLines, sinceSeconds, timestamps.
#[derive(Debug, Clone)]
pub(super) struct Query {
    name: String,
    container: String,
    follow: bool,
    timestamps: bool,
    /// Lines to skip from the start, and the line that comes next in time.
    first: u64,
    next: u64,
    started: OffsetDateTime,
    tick: Duration,
}

impl Query {
    /// Reads the query's parameters; `parameter` gives the value of one, or an empty text.
    pub(super) fn read(
        pod: &Value,
        tick: Duration,
        parameter: impl Fn(&str) -> String,
    ) -> Result<Query, Failure> {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let containers: Vec<&str> = pod["spec"]["containers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|container| container["name"].as_str())
            .collect();
        let asked = parameter("container");
        let container = match (&containers[..], asked.as_str()) {
            ([only], "") => *only,
            (_, "") => {
                let choices = containers.join(" ");
                let why =
                    format!("a container name must be specified for pod {name}, choose one of: [{choices}]");
                return Err(Failure::bad_request(why));
            }
            (names, asked) if names.contains(&asked) => asked,
            (_, asked) => {
                return Err(Failure::bad_request(format!("container {asked} is not valid for pod {name}")));
            }
        };
        let yes = |key: &str| matches!(parameter(key).as_str(), "true" | "1");
        if yes("previous") {
            let why = format!("previous terminated container {container:?} in pod {name:?} not found");
            return Err(Failure::bad_request(why));
        }
        let created = pod["metadata"]["creationTimestamp"].as_str().unwrap_or_default();
        let started = OffsetDateTime::parse(created, &Rfc3339).unwrap_or_else(|_| OffsetDateTime::now_utc());
        let age = Duration::try_from(OffsetDateTime::now_utc() - started).unwrap_or_default();
        let ticks = |of: Duration| u64::try_from(of.as_nanos() / tick.as_nanos().max(1)).unwrap_or(u64::MAX);
        let next = ticks(age) + 1;
        let tail = parameter("tailLines").parse().unwrap_or(KEPT_LINES).min(KEPT_LINES);
        let mut first = next.saturating_sub(tail);
        if let Ok(seconds) = parameter("sinceSeconds").parse() {
            first = first.max(ticks(age.saturating_sub(Duration::from_secs(seconds))));
        }
        let (follow, timestamps) = (yes("follow"), yes("timestamps"));
        Ok(Query { name, container: container.to_owned(), follow, timestamps, first, next, started, tick })
    }

    fn line(&self, number: u64) -> String {
        let said = format!("tick {number} of {}/{}\n", self.name, self.container);
        match self.timestamps {
            true => format!("{} {said}", defaults::timestamp(self.started + self.offset(number))),
            false => said,
        }
    }

    fn offset(&self, number: u64) -> Duration {
        self.tick.saturating_mul(u32::try_from(number).unwrap_or(u32::MAX))
    }
}

/// The log as text.
pub(super) fn lines(
    store: Arc<Store>,
    place: Place,
    query: Query,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let number = query.first;
    stream::unfold(
        (store, place, query, stop, number),
        |(store, place, query, stop, mut number)| async move {
            let text = if number < query.next {
                let end = query.next.min(number + 100);
                let text: String = (number..end).map(|n| query.line(n)).collect();
                number = end;
                text
            } else if query.follow {
                let due = query.started + query.offset(number);
                let wait = Duration::try_from(due - OffsetDateTime::now_utc()).unwrap_or_default();
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = stop.cancelled() => return None,
                }
                store.get(&place).ok()?;
                number += 1;
                query.line(number - 1)
            } else {
                return None;
            };
            Some((Ok(Bytes::from(text)), (store, place, query, stop, number)))
        },
    )
}
