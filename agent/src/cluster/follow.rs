//! All objects of a kind, now and from now on: a list in pages, then a watch, begun anew whenever it ends, for ever.
//! What it finds goes through a short queue to whoever follows; nothing else is kept. Trouble is logged when it begins
//! and when it is over, not at each try.

mod lines;

use super::{
    ClusterError, Kind,
    client::{Answer, Client, Question, Verb},
    path,
};
use crate::backoff::Backoff;
use http::{Method, StatusCode};
use lines::{Ending, Lines};
use rand::Rng;
use serde_json::{Value, json};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};
use url::form_urlencoded;

/// Objects on their way to a follower that is slow; then the API server waits, and after a while ends the watch.
const QUEUE: usize = 16;
/// Objects in a page, unless they are large.
const PAGE: usize = 500;
/// A watch ends after this long, so that no break in the network stays unnoticed. Go's clients take twice as long.
const WATCH_SECONDS: std::ops::RangeInclusive<u64> = 270..=310;
/// Until we end it where the server does not.
const SLACK: Duration = Duration::from_secs(15);
/// A watch that has stood this long works.
const STANDS: Duration = Duration::from_secs(5);
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
const WAITS_GROW: f64 = 1.7;
/// Between two lists where the agent may list and not watch.
const UNWATCHED: Duration = Duration::from_secs(60);

/// What a follower learns. Objects have `apiVersion` and `kind` also where the API server leaves them out.
#[derive(Clone, Debug)]
pub enum Change {
    /// A list begins, at first and whenever the past was lost. What was known and does not come again before
    /// [`Change::Listed`] is gone. A list that breaks off begins anew. Told a while before the list where nothing may be
    /// watched: what is known may be outdated from then on.
    Begun,
    /// An object of the list.
    Found(Arc<Value>),
    /// The list is complete.
    Listed,
    /// An object came or changed.
    Applied(Arc<Value>),
    /// An object is gone; this is how it was last.
    Deleted(Arc<Value>),
}

/// All objects of a kind. They are no longer followed once this is dropped.
pub struct Following {
    changes: mpsc::Receiver<Change>,
    _task: AbortOnDropHandle<()>,
}

impl Following {
    pub(super) fn start(client: Client, kind: Kind, namespace: Option<String>) -> Self {
        let (sender, changes) = mpsc::channel(QUEUE);
        let follower = Follower {
            client,
            kind,
            namespace: namespace.unwrap_or_default(),
            changes: sender,
            page: PAGE,
            backoff: Backoff::new(FIRST_WAIT, LONGEST_WAIT, WAITS_GROW),
            trouble: false,
        };
        Self { changes, _task: AbortOnDropHandle::new(tokio::spawn(follower.run())) }
    }

    /// The next change, however long it takes. Cancel safe.
    pub async fn next(&mut self) -> Change {
        match self.changes.recv().await {
            Some(change) => change,
            // The runtime is ending, and so is whoever asks.
            None => std::future::pending().await,
        }
    }
}

struct Follower {
    client: Client,
    kind: Kind,
    /// Empty: all.
    namespace: String,
    changes: mpsc::Sender<Change>,
    /// Objects in a page, less after one that was too large.
    page: usize,
    backoff: Backoff,
    trouble: bool,
}

/// Why something ended before its time.
enum Broken {
    /// Nobody follows any more.
    Left,
    /// The past is lost, as it is now and then; list again.
    Expired,
    /// What is known may be wrong; list again.
    Doubtful(ClusterError),
    /// It goes on where it was.
    Interrupted(ClusterError),
    /// The agent may not watch; list again after a while.
    Unwatched(ClusterError),
}

impl Follower {
    async fn run(mut self) {
        // Up to where everything is known.
        let mut version = None;
        loop {
            let done = match version.take() {
                None => self.list().await.map(|listed| version = Some(listed)),
                Some(mut known) => {
                    let watched = self.watch(&mut known).await;
                    if !matches!(watched, Err(Broken::Expired | Broken::Doubtful(_) | Broken::Unwatched(_))) {
                        version = Some(known);
                    }
                    watched
                }
            };
            let error = match done {
                Ok(()) => continue,
                Err(Broken::Left) => return,
                Err(Broken::Expired) => {
                    debug!(
                        kind = self.kind.kind,
                        namespace = self.namespace,
                        "the past is lost, listing anew"
                    );
                    sleep(self.backoff.step()).await;
                    continue;
                }
                Err(Broken::Unwatched(error)) => {
                    self.fails(&error, UNWATCHED);
                    if self.tell(Change::Begun).await.is_err() {
                        return;
                    }
                    sleep(UNWATCHED).await;
                    continue;
                }
                Err(Broken::Doubtful(error) | Broken::Interrupted(error)) => error,
            };
            let wait = self.backoff.step();
            self.fails(&error, wait);
            sleep(wait).await;
        }
    }

    /// Tells all objects, and answers up to where everything is known then.
    async fn list(&mut self) -> Result<String, Broken> {
        self.tell(Change::Begun).await?;
        let mut more = String::new();
        loop {
            let question = self.question(Verb::List, &self.page_query(&more)).map_err(Broken::Doubtful)?;
            let answer = self.client.exchange(&question).await.map_err(|error| match error.is_expired() {
                true => Broken::Expired,
                false => Broken::Doubtful(error),
            })?;
            let mut page: Value = match answer {
                Answer::TooLarge if self.page > 1 => {
                    self.page = (self.page / 8).max(1);
                    continue;
                }
                Answer::TooLarge => {
                    return Err(Broken::Doubtful(question.odd("a single object is too large")));
                }
                Answer::Whole(bytes) => serde_json::from_slice(&bytes)
                    .map_err(|_| Broken::Doubtful(question.odd("the answer is not JSON")))?,
            };
            let items = match page.get_mut("items").map(Value::take) {
                Some(Value::Array(items)) => items,
                // Go writes a list without objects like this.
                Some(Value::Null) => Vec::new(),
                _ => return Err(Broken::Doubtful(question.odd("the answer is not a list"))),
            };
            for object in items {
                let object = Arc::new(self.named(object));
                self.tell(Change::Found(object)).await?;
            }
            match page["metadata"]["continue"].as_str() {
                None | Some("") => return self.listed(&page, &question).await,
                Some(next) => next.clone_into(&mut more),
            }
        }
    }

    async fn listed(&mut self, page: &Value, question: &Question) -> Result<String, Broken> {
        let version = page["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty());
        let Some(version) = version else {
            return Err(Broken::Doubtful(question.odd("the list has no resourceVersion")));
        };
        self.tell(Change::Listed).await?;
        Ok(version.to_owned())
    }

    /// Tells changes after `known`, which moves on with them, until the watch ends.
    async fn watch(&mut self, known: &mut String) -> Result<(), Broken> {
        let seconds = rand::rng().random_range(WATCH_SECONDS);
        let query = form_urlencoded::Serializer::new(String::new())
            .append_pair("watch", "true")
            .append_pair("allowWatchBookmarks", "true")
            .append_pair("resourceVersion", known)
            .append_pair("timeoutSeconds", &seconds.to_string())
            .finish();
        let question = self.question(Verb::Watch, &query).map_err(Broken::Doubtful)?;
        let mut lines = match self.client.open(&question).await {
            Ok(body) => Lines::new(body),
            Err(error) if error.is_expired() => return Err(Broken::Expired),
            // Without `watch` among the verbs of a rule lists are all there is.
            Err(error @ ClusterError::Refused { status: 403, .. }) => return Err(Broken::Unwatched(error)),
            // Who may do nothing, or not now, would not learn more from another list.
            Err(error) if error.is_forbidden() || (error.passes() && !is_ahead(&error)) => {
                return Err(Broken::Interrupted(error));
            }
            Err(error) => return Err(Broken::Doubtful(error)),
        };
        let began = Instant::now();
        let end = began + Duration::from_secs(seconds) + SLACK;
        let mut settled = false;
        loop {
            let line = tokio::select! {
                line = lines.next() => line,
                () = sleep_until(began + STANDS), if !settled => {
                    settled = true;
                    self.works();
                    continue;
                }
                () = sleep_until(end) => return Ok(()),
            };
            match line {
                Ok(line) => self.event(&question, &line, known).await?,
                Err(Ending::TooLarge) => {
                    return Err(Broken::Doubtful(question.odd("an object is too large")));
                }
                // A server that ends each watch at once must not be asked all the time.
                Err(Ending::Over) if began.elapsed() < FIRST_WAIT => {
                    return Err(Broken::Interrupted(question.unreachable("the watch ended at once")));
                }
                // Restarts of the server, load balancers' timeouts: what follows tells whether it is trouble.
                Err(Ending::Over) => return Ok(()),
            }
        }
    }

    async fn event(&mut self, question: &Question, line: &[u8], known: &mut String) -> Result<(), Broken> {
        let Ok(mut event) = serde_json::from_slice::<Value>(line) else {
            return Err(Broken::Doubtful(question.odd("an event of the watch is not JSON")));
        };
        let object = event.get_mut("object").map(Value::take).unwrap_or_default();
        let kind = event["type"].as_str().unwrap_or_default();
        if kind == "ERROR" {
            let code =
                object["code"].as_u64().and_then(|code| StatusCode::from_u16(u16::try_from(code).ok()?).ok());
            let status = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let error = question.refused(status, object.to_string().as_bytes());
            return Err(if error.is_expired() { Broken::Expired } else { Broken::Doubtful(error) });
        }
        self.works();
        if let Some(version) = object["metadata"]["resourceVersion"].as_str() {
            version.clone_into(known);
        }
        match kind {
            "ADDED" | "MODIFIED" => self.tell(Change::Applied(Arc::new(self.named(object)))).await,
            "DELETED" => self.tell(Change::Deleted(Arc::new(self.named(object)))).await,
            // Bookmarks, and whatever else may come to be.
            _ => Ok(()),
        }
    }

    async fn tell(&self, change: Change) -> Result<(), Broken> {
        self.changes.send(change).await.map_err(|_| Broken::Left)
    }

    /// Lists leave out of their items what they say themselves.
    fn named(&self, mut object: Value) -> Value {
        if object.is_object() && !object["kind"].is_string() {
            object["kind"] = json!(self.kind.kind);
            object["apiVersion"] = json!(self.kind.api_version());
        }
        object
    }

    fn page_query(&self, more: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &self.page.to_string());
        if !more.is_empty() {
            query.append_pair("continue", more);
        }
        query.finish()
    }

    fn question(&self, verb: Verb, query: &str) -> Result<Question, ClusterError> {
        let target = format!("{}?{query}", path::objects(&self.kind, &self.namespace)?);
        let (word, plural) = (verb.as_str(), &self.kind.plural);
        let what = match self.namespace.as_str() {
            "" => format!("{word} {plural} of {} in the whole cluster", self.kind.api_version()),
            namespace => format!("{word} {plural} of {} in namespace {namespace}", self.kind.api_version()),
        };
        Ok(Question::new(verb, Method::GET, target, what).on(&self.kind))
    }

    fn works(&mut self) {
        self.backoff.reset();
        if std::mem::take(&mut self.trouble) {
            info!(kind = self.kind.kind, namespace = self.namespace, "objects are followed again");
        }
    }

    fn fails(&mut self, error: &ClusterError, wait: Duration) {
        let (kind, namespace) = (&self.kind.kind, &self.namespace);
        if std::mem::replace(&mut self.trouble, true) {
            debug!(kind, namespace, %error, retry_in = ?wait, "objects still cannot be followed");
        } else {
            warn!(kind, namespace, %error, "objects cannot be followed; tried again until they can");
        }
    }
}

/// The server is not there yet: it was replaced by one that knows less, from a backup say.
fn is_ahead(error: &ClusterError) -> bool {
    matches!(error, ClusterError::Refused { status: 504, .. })
}
