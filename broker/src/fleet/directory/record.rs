//! The record of an agent that is gone, as it stands in Redis: JSON of 1 KiB at the most, with Redis' own time. It is
//! for people; routing does not depend on it.

use super::{LastSeen, clock::Clock};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long it is kept.
pub(super) const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);
/// What others wrote is not read beyond this.
const MAX: usize = 1024;
const FROM_MAX: usize = 128;
const BROKER_MAX: usize = 256;
pub(super) const REFUSAL_MAX: usize = 256;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// Milliseconds since 1970, at Redis.
    at: u64,
    #[serde(default)]
    from: String,
    #[serde(default)]
    broker: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    refusal: Option<String>,
}

impl Record {
    pub(super) fn new(at: Duration, from: &str, broker: &str, refusal: Option<&str>) -> Self {
        Self {
            at: u64::try_from(at.as_millis()).unwrap_or(u64::MAX),
            from: cut(from, FROM_MAX),
            broker: cut(broker, BROKER_MAX),
            refusal: refusal.map(|why| cut(why, REFUSAL_MAX)),
        }
    }

    /// The same agent, turned away since.
    pub(super) fn refused(self, why: &str) -> Self {
        Self { refusal: Some(cut(why, REFUSAL_MAX)), ..self }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let text = |record: &Self| serde_json::to_vec(record).expect("strings and numbers are JSON");
        let whole = text(self);
        // Quotes and backslashes may double the length.
        if whole.len() <= MAX { whole } else { text(&Self { refusal: None, ..self.clone() }) }
    }

    pub(super) fn parse(text: &[u8]) -> Option<Self> {
        if text.len() > MAX { None } else { serde_json::from_slice(text).ok() }
    }

    pub(super) fn read(self, clock: &Clock) -> Option<LastSeen> {
        let Self { at, from, broker, refusal } = self;
        // Others may have written it.
        Some(LastSeen {
            at: clock.here(Duration::from_millis(at))?,
            from: cut(&from, FROM_MAX),
            broker: cut(&broker, BROKER_MAX),
            refusal: refusal.map(|why| cut(&why, REFUSAL_MAX)),
        })
    }
}

/// At most so many bytes, without characters that would break a line or a terminal.
fn cut(text: &str, max: usize) -> String {
    let mut end = max.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_small_whatever_it_is_made_of() {
        let nasty = "\"\u{0}é\\".repeat(1000);
        let record = Record::new(Duration::from_millis(7), &nasty, &nasty, Some(&nasty));
        let text = record.encode();
        assert!(text.len() <= MAX, "{}", text.len());
        assert_eq!(Record::parse(&text).unwrap().at, 7);
        let plain = Record::new(Duration::from_millis(7), "192.0.2.1:5", "grpc://b:1", None);
        assert_eq!(plain.encode(), br#"{"at":7,"from":"192.0.2.1:5","broker":"grpc://b:1"}"#);
        let refused = plain.refused(&"no ".repeat(1000));
        assert_eq!(refused.refusal.as_ref().unwrap().len(), REFUSAL_MAX);
        assert_eq!(Record::parse(&refused.encode()), Some(refused));
    }

    #[test]
    fn what_is_no_record_is_none() {
        assert!(Record::parse(br#"{"at":1}"#).is_some());
        for text in [b"".as_slice(), b"{}", b"[true]", b"\xff", &[b' '; 2000]] {
            assert_eq!(Record::parse(text), None);
        }
    }
}
