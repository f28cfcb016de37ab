//! Events about objects, for whoever looks at an object with kubectl and wonders. Notes go into a short queue and are
//! written one at a time, at a bounded rate; the same note again counts its Event up. Nobody ever waits for this, and
//! what is too much is dropped: the log has it all.

use super::{
    ClusterError, Kind,
    client::{Client, Question, Verb},
    error::{cut, one_line},
    path,
};
use crate::observability::Metrics;
use http::Method;
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};
use prometheus_client::metrics::{counter::Counter, family::Family};
use rand::Rng;
use serde_json::{Value, json};
use std::{collections::VecDeque, time::Duration};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

/// Who says so.
const COMPONENT: &str = "agentk";
/// Notes that wait to be written.
const QUEUE: usize = 200;
/// Notes whose repetition is recognised.
const REMEMBERED: usize = 256;
/// A repeated note is written once in this time, with how often it came.
const COUNT_EVERY: Duration = Duration::from_secs(60);
/// Events expire in the cluster after an hour; older ones are begun anew.
const EXPIRE: Duration = Duration::from_secs(45 * 60);
/// At once, and then one in each `REFILL`.
const BURST: u32 = 25;
const REFILL: Duration = Duration::from_secs(1);
/// The API's own limits, in bytes.
const MOST_MESSAGE: usize = 1024;
const MOST_REASON: usize = 128;

/// What is to be said about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub kind: Kind,
    /// Empty for an object of the whole cluster.
    pub namespace: String,
    pub name: String,
    /// May be empty; tools then find the Event by name only.
    pub uid: String,
    /// Whether somebody should look at it.
    pub warning: bool,
    /// One word in CamelCase, from a fixed set.
    pub reason: &'static str,
    /// For people. Cut at 1024 bytes; must not hold a secret.
    pub message: String,
}

/// Where notes are put.
#[derive(Clone)]
pub(super) struct Notes {
    queue: mpsc::Sender<Note>,
    outcomes: Outcomes,
}

impl Notes {
    pub(super) fn put(&self, note: Note) {
        if self.queue.try_send(note).is_err() {
            self.outcomes.count("dropped");
        }
    }
}

#[derive(Clone)]
struct Outcomes(Family<[(&'static str, &'static str); 1], Counter>);

impl Outcomes {
    fn count(&self, outcome: &'static str) {
        self.0.get_or_create(&[("outcome", outcome)]).inc();
    }
}

pub(super) fn channel(client: Client, instance: &str, metrics: &Metrics) -> (Notes, Recorder) {
    let (queue, notes) = mpsc::channel(QUEUE);
    let outcomes = Outcomes(metrics.cluster_events.clone());
    let instance = if instance.is_empty() { COMPONENT } else { instance };
    let recorder = Recorder {
        client,
        notes,
        outcomes: outcomes.clone(),
        // Longer ones are refused.
        instance: cut(instance, MOST_REASON),
        written: VecDeque::new(),
        bucket: Bucket::full(),
        trouble: false,
    };
    (Notes { queue, outcomes }, recorder)
}

/// Writes Events.
pub struct Recorder {
    client: Client,
    notes: mpsc::Receiver<Note>,
    outcomes: Outcomes,
    instance: String,
    /// The oldest first.
    written: VecDeque<Written>,
    bucket: Bucket,
    trouble: bool,
}

/// An Event that is in the cluster.
struct Written {
    note: Note,
    event: String,
    /// As often as the cluster knows.
    count: u64,
    /// Since then.
    more: u64,
    began: Instant,
    told: Instant,
}

impl Recorder {
    /// Writes what is put, for ever; to be run beside everything else.
    pub async fn run(mut self) {
        loop {
            let due =
                self.written.iter().filter(|written| written.more > 0).map(|written| written.told).min();
            let due = due.map(|told| told + COUNT_EVERY);
            tokio::select! {
                note = self.notes.recv() => match note {
                    Some(note) => self.take(note).await,
                    // No cluster is left to be asked anything.
                    None => return std::future::pending().await,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => self.count_up().await,
            }
        }
    }

    async fn take(&mut self, note: Note) {
        self.written.retain(|written| written.began.elapsed() < EXPIRE);
        if let Some(known) = self.written.iter_mut().find(|written| written.note == note) {
            known.more += 1;
            return;
        }
        if !self.bucket.take() {
            self.outcomes.count("dropped");
            return;
        }
        let namespace = namespace_of(&note).to_owned();
        let (event, document) = self.event(&note);
        let path = path::objects(&events(), &namespace);
        if self.send(Method::POST, path, "application/json", &document, "written").await.is_ok() {
            if self.written.len() >= REMEMBERED {
                self.written.pop_front();
            }
            let now = Instant::now();
            self.written.push_back(Written { note, event, count: 1, more: 0, began: now, told: now });
        }
    }

    /// Counts up one Event whose time has come.
    async fn count_up(&mut self) {
        let ready = |written: &Written| written.more > 0 && written.told.elapsed() >= COUNT_EVERY;
        let Some(at) = self.written.iter().position(ready) else { return };
        let Some(mut written) = self.written.remove(at) else { return };
        if !self.bucket.take() {
            self.outcomes.count("dropped");
            (written.more, written.told) = (0, Instant::now());
            self.written.push_back(written);
            return;
        }
        let count = written.count + written.more;
        let change = json!({"count": count, "lastTimestamp": now()});
        let path = path::object(&events(), namespace_of(&written.note), &written.event);
        let sent = self.send(Method::PATCH, path, "application/merge-patch+json", &change, "counted").await;
        // One that is not there any more is begun anew when the note comes again.
        if sent.is_ok() {
            (written.count, written.more, written.told) = (count, 0, Instant::now());
            self.written.push_back(written);
        }
    }

    async fn send(
        &mut self,
        method: Method,
        path: Result<String, ClusterError>,
        content_type: &'static str,
        document: &Value,
        outcome: &'static str,
    ) -> Result<(), ()> {
        let what = "write an Event".to_owned();
        let sent = match path {
            Ok(path) => {
                let question = Question::new(Verb::Event, method, path, what).with(content_type, document);
                self.client.ask(&question).await
            }
            Err(error) => Err(error),
        };
        match sent {
            Ok(_) => {
                self.outcomes.count(outcome);
                if std::mem::take(&mut self.trouble) {
                    info!("Events about objects are written again");
                }
                Ok(())
            }
            Err(error) => {
                self.outcomes.count("failed");
                // That of one namespace is not that of all.
                if error.is_not_found() || std::mem::replace(&mut self.trouble, true) {
                    debug!(%error, "an Event is not written");
                } else {
                    let rule = error.is_forbidden().then_some(RULE);
                    warn!(%error, rule, "Events about objects are not written; everything else goes on");
                }
                Err(())
            }
        }
    }

    fn event(&self, note: &Note) -> (String, Value) {
        let namespace = namespace_of(note);
        // As kubectl expects it: the object's name, and something that no other Event has.
        let name = format!("{}.{:016x}", subdomain(&note.name), rand::rng().random::<u64>());
        let now = now();
        let message = cut(&one_line(&note.message), MOST_MESSAGE);
        let mut object = json!({
            "apiVersion": note.kind.api_version(),
            "kind": note.kind.kind,
            "name": note.name,
        });
        for (field, value) in [("namespace", &note.namespace), ("uid", &note.uid)] {
            if !value.is_empty() {
                object[field] = json!(value);
            }
        }
        let document = json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": object,
            "type": if note.warning { "Warning" } else { "Normal" },
            "reason": cut(note.reason, MOST_REASON),
            "message": message,
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "reportingInstance": self.instance,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        });
        (name, document)
    }
}

/// What is missing where Events are forbidden.
pub(super) const RULE: &str = "{apiGroups: [\"\"], resources: [events], verbs: [create, patch]}";

fn events() -> Kind {
    Kind::new("", "v1", "Event", "events", true)
}

/// Names of roles hold characters that those of Events must not.
fn subdomain(name: &str) -> String {
    let legal = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c.to_ascii_lowercase() } else { '-' };
    let name: String = name.chars().take(200).map(legal).collect();
    name.trim_matches(['.', '-']).to_owned()
}

/// Events about objects of the whole cluster are in `default`.
fn namespace_of(note: &Note) -> &str {
    if note.namespace.is_empty() { "default" } else { &note.namespace }
}

fn now() -> Value {
    // Seconds are all that an Event's times have.
    serde_json::to_value(Time(Timestamp::now())).unwrap_or_default()
}

/// How many Events may be written now.
struct Bucket {
    left: u32,
    filled: Instant,
}

impl Bucket {
    fn full() -> Self {
        Self { left: BURST, filled: Instant::now() }
    }

    fn take(&mut self) -> bool {
        let whole = self.filled.elapsed().as_secs() / REFILL.as_secs();
        let more = u32::try_from(whole).unwrap_or(BURST).min(BURST);
        if more > 0 {
            self.left = (self.left + more).min(BURST);
            self.filled = Instant::now();
        }
        match self.left.checked_sub(1) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_named_after_its_object() {
        assert_eq!(subdomain("web"), "web");
        assert_eq!(subdomain("system:Node"), "system-node");
        assert_eq!(subdomain(&format!("{}.{}", "a".repeat(199), "b")), "a".repeat(199));
    }

    #[tokio::test(start_paused = true)]
    async fn a_burst_is_written_and_then_one_a_second() {
        let mut bucket = Bucket::full();
        assert_eq!((0..100).filter(|_| bucket.take()).count(), 25);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!((0..100).filter(|_| bucket.take()).count(), 3);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..100).filter(|_| bucket.take()).count(), 25);
    }
}
