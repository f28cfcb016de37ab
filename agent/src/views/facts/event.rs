//! What views keep of an Event of type Warning: what happened to whom, how often and when last.

use super::{MESSAGE, NAME, WORD, count, text};
use serde_json::{Value, json};

/// A warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Event {
    namespace: Box<str>,
    kind: Box<str>,
    name: Box<str>,
    reason: Box<str>,
    message: Box<str>,
    count: u64,
    first: Box<str>,
    last: Box<str>,
    source: Box<str>,
}

impl Event {
    /// `None` if it is no warning.
    pub(crate) fn of(object: &Value) -> Option<Self> {
        if object["type"] != "Warning" {
            return None;
        }
        let series = &object["series"];
        let about = &object["involvedObject"];
        let times = |places: &[&Value]| {
            let time = places.iter().find(|time| time.is_string());
            time.map(|time| text(time, WORD)).unwrap_or_default()
        };
        let created = &object["metadata"]["creationTimestamp"];
        let (first, last, event) =
            (&object["firstTimestamp"], &object["lastTimestamp"], &object["eventTime"]);
        let source = [&object["source"]["component"], &object["reportingComponent"]];
        let source =
            source.into_iter().find(|source| source.as_str().is_some_and(|source| !source.is_empty()));
        Some(Self {
            namespace: text(&object["metadata"]["namespace"], NAME),
            kind: text(&about["kind"], WORD),
            name: text(&about["name"], NAME),
            reason: text(&object["reason"], WORD),
            message: text(&object["message"], MESSAGE),
            count: count(&object["count"]).max(count(&series["count"])).max(1),
            first: times(&[first, event, created]),
            last: times(&[&series["lastObservedTime"], last, event, created]),
            source: source.map(|source| text(source, WORD)).unwrap_or_default(),
        })
    }

    /// Sorts Events by when they happened last: an API server writes all times in UTC, some with fractions.
    pub(crate) fn moment(&self) -> &str {
        self.last.strip_suffix('Z').unwrap_or(&self.last)
    }

    pub(crate) fn entry(&self) -> Value {
        json!({
            "namespace": self.namespace,
            "kind": self.kind,
            "name": self.name,
            "reason": self.reason,
            "message": self.message,
            "count": self.count,
            "first": self.first,
            "last": self.last,
            "source": self.source,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_read_in_both_forms_that_events_have() {
        let old = json!({
            "metadata": {"name": "web.1", "namespace": "shop", "creationTimestamp": "2026-11-22T01:00:00Z"},
            "type": "Warning", "reason": "BackOff", "message": "ä".repeat(400), "count": 12,
            "involvedObject": {"kind": "Pod", "name": "web"},
            "firstTimestamp": "2026-11-22T01:00:00Z", "lastTimestamp": "2026-11-22T01:10:00Z", "eventTime": null,
            "source": {"component": "kubelet"}, "reportingComponent": "",
        });
        let event = Event::of(&old).unwrap();
        assert_eq!((event.moment(), event.count, &*event.source), ("2026-11-22T01:10:00", 12, "kubelet"));
        assert_eq!(event.message.len(), MESSAGE);
        let new = json!({
            "metadata": {"name": "web.2", "namespace": "shop"},
            "type": "Warning", "firstTimestamp": null, "lastTimestamp": null,
            "eventTime": "2026-11-22T01:00:00.000001Z", "reportingComponent": "scheduler",
            "series": {"count": 4, "lastObservedTime": "2026-11-22T01:20:00.5Z"},
        });
        let event = Event::of(&new).unwrap();
        assert_eq!((event.moment(), event.count, &*event.source), ("2026-11-22T01:20:00.5", 4, "scheduler"));
        assert_eq!(&*event.first, "2026-11-22T01:00:00.000001Z");
        for other in [json!({"type": "Normal"}), json!({}), json!(null)] {
            assert_eq!(Event::of(&other), None);
        }
    }
}
