//! Rates with a burst: of requests that are refused beyond it, and of calls that wait. Under `written`.

use super::{PerSecond, Whole};
use crate::{CallRate, RateLimit};
use postern_yaml::{Cursor, Given, Node, Read, Value, section};
use std::num::NonZeroU32;

/// `{perMinute: N}`, `{rate: N, burst: N}` with the rate per second, or `unlimited`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rate(pub(crate) Option<RateLimit>);

type Positive = Whole<1, { u32::MAX as u64 }>;

section!(Written {
    per_minute = "perMinute": Positive,
    // As much as a minute of it can be counted.
    rate: Whole<1, { u32::MAX as u64 / 60 }>,
    burst: Positive,
});

const UNLIMITED: &str = "unlimited";
const FORMS: &str = "either perMinute alone, or rate and burst";

impl Read for Rate {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let entries = match &node.value {
            Value::Text(text) if text == UNLIMITED => return Some(Self(None)),
            Value::Mapping(entries) => entries,
            Value::Number(_) => {
                let number = node.shown();
                let wanted = format!("a rate is wanted; did you mean `{{perMinute: {number}}}`?");
                cursor.problem(node.at, number, wanted);
                return None;
            }
            Value::Text(text) if cursor.nearest(text, &[UNLIMITED]).is_some() => {
                let wanted = "a rate or the word unlimited is wanted; did you mean `unlimited`?";
                cursor.problem(node.at, node.shown(), wanted);
                return None;
            }
            _ => return cursor.mismatch(node, "{perMinute: N}, {rate: N, burst: N} or the word unlimited"),
        };
        let before = cursor.reported();
        let written = Written::read(node, cursor)?;
        let given = |key: &str| entries.iter().any(|entry| &*entry.key == key);
        match (given("perMinute"), given("rate"), given("burst")) {
            (true, false, false) | (false, true, true) => {}
            (true, ..) => {
                cursor.problem(node.at, "perMinute beside rate or burst", format!("{FORMS}, is wanted"));
            }
            (false, true, false) => {
                cursor.problem(node.at, "rate without burst", format!("{FORMS}, is wanted"))
            }
            (false, false, true) => {
                cursor.problem(node.at, "burst without rate", format!("{FORMS}, is wanted"))
            }
            // Otherwise the key is misspelt, which was reported.
            (false, false, false) if entries.is_empty() => {
                cursor.problem(node.at, "an empty mapping", format!("{FORMS}, is wanted"));
            }
            (false, false, false) => {}
        }
        if cursor.reported() > before {
            return None;
        }
        let per_minute = number(&written.per_minute);
        let rate = number(&written.rate).map(|rate| rate.saturating_mul(SIXTY));
        let limit = |per_minute, burst| Some(Self(Some(RateLimit { per_minute, burst })));
        match (per_minute, rate, number(&written.burst)) {
            (Some(count), _, _) => limit(count, count),
            (None, Some(per_minute), Some(burst)) => limit(per_minute, burst),
            // `perMinute:` with nothing behind it.
            _ => cursor.mismatch(node, FORMS),
        }
    }
}

const SIXTY: NonZeroU32 = NonZeroU32::new(60).expect("60 is not 0");

fn number<const MOST: u64>(given: &Option<Given<Whole<1, MOST>>>) -> Option<NonZeroU32> {
    given.as_ref().and_then(|given| NonZeroU32::new(given.value.narrow()))
}

/// `{perSecond: 10, burst: 50}`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CallRateSpec(pub(crate) CallRate);

section!(WrittenCallRate { per_second = "perSecond": PerSecond, burst: Positive });

impl Read for CallRateSpec {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let entries = cursor.entries(node)?;
        let written = WrittenCallRate::read(node, cursor)?;
        cursor.needs(entries, node.at, "perSecond");
        cursor.needs(entries, node.at, "burst");
        let burst = number(&written.burst)?;
        Some(Self(CallRate { per_second: written.per_second?.value.0, burst }))
    }
}
