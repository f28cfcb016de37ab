//! Durations: `30s`, `0.5s` as kas writes them, and `5m`, `2h`, `1h30m`, `500ms`. Under `written`.

use postern_yaml::{Cursor, Node, Read, Value};
use std::time::Duration;

/// From `LEAST` to `MOST` seconds; a least of zero stands for zero itself or from a second on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Time<const LEAST: u64, const MOST: u64>(pub(crate) Duration);

impl<const LEAST: u64, const MOST: u64> Read for Time<LEAST, MOST> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        const FORM: &str = "a duration such as 30s, 5m or 1h30m is wanted";
        let time = match &node.value {
            Value::Text(text) => duration(text),
            Value::Number(text) => {
                let wanted = match duration(&format!("{text}s")) {
                    Some(_) => format!("{FORM}; did you mean `{text}s`?"),
                    None => FORM.to_owned(),
                };
                cursor.problem(node.at, format!("{} without a unit", node.shown()), wanted);
                return None;
            }
            _ => None,
        };
        let Some(time) = time else {
            cursor.problem(node.at, node.shown(), FORM);
            return None;
        };
        if !(Duration::from_secs(LEAST)..=Duration::from_secs(MOST)).contains(&time) {
            let (least, most) = (shown(LEAST), shown(MOST));
            return cursor.mismatch(node, &format!("a duration from {least} to {most}"));
        }
        Some(Self(time))
    }
}

/// Hours, minutes, seconds and milliseconds in this order, each once at most; decimals in seconds only.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    let mut last = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let (rank, part) = match unit {
            "h" => (1, Duration::from_secs(digits(number)?.checked_mul(3_600)?)),
            "m" => (2, Duration::from_secs(digits(number)?.checked_mul(60)?)),
            "s" => (3, postern_yaml::duration(&format!("{number}s"))?),
            "ms" => (4, Duration::from_millis(digits(number)?)),
            _ => return None,
        };
        if rank <= last {
            return None;
        }
        (last, rest) = (rank, tail);
        sum = sum.checked_add(part)?;
    }
    (last > 0).then_some(sum)
}

fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

fn shown(seconds: u64) -> String {
    match seconds {
        0 => "0s".to_owned(),
        _ if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        _ if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        _ => format!("{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;
    use std::time::Duration;

    #[test]
    fn durations_have_units_in_their_order() {
        for (text, millis) in [
            ("0s", Some(0)),
            ("30s", Some(30_000)),
            ("0.5s", Some(500)),
            ("500ms", Some(500)),
            ("5m", Some(300_000)),
            ("2h", Some(7_200_000)),
            ("1h30m", Some(5_400_000)),
            ("1h0m1.5s", Some(3_601_500)),
            ("", None),
            ("30", None),
            ("s", None),
            ("1.5h", None),
            ("30m1h", None),
            ("1h1h", None),
            ("1 h", None),
            ("-1s", None),
            ("1d", None),
            ("1.s", None),
            ("99999999999999999999h", None),
            ("9999999999999999999h", None),
        ] {
            assert_eq!(duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }
}
