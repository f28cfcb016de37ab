//! Numbers within bounds, ids, shares and lists that say something. Under `written`.

use postern_yaml::{Cursor, Node, Read, Value};

/// A whole number of this range.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Whole<const LEAST: u64, const MOST: u64>(pub(crate) u64);

/// Of agents, projects and users.
pub(crate) type Id = Whole<1, { i64::MAX as u64 }>;

impl<const LEAST: u64, const MOST: u64> Whole<LEAST, MOST> {
    /// For ranges that end below.
    pub(crate) fn narrow(self) -> u32 {
        u32::try_from(self.0).unwrap_or(u32::MAX)
    }
}

impl<const LEAST: u64, const MOST: u64> Read for Whole<LEAST, MOST> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let number = match &node.value {
            Value::Number(text) => whole(text),
            _ => None,
        };
        match number.filter(|number| (LEAST..=MOST).contains(number)) {
            Some(number) => Some(Self(number)),
            None if MOST == i64::MAX as u64 => cursor.mismatch(node, &format!("a whole number from {LEAST}")),
            None => cursor.mismatch(node, &format!("a whole number from {LEAST} to {MOST}")),
        }
    }
}

fn whole(text: &str) -> Option<u64> {
    if let Some(octal) = text.strip_prefix("0o") {
        return u64::from_str_radix(octal, 8).ok();
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return u64::from_str_radix(hex, 16).ok();
    }
    text.parse().ok()
}

/// A rate of calls; slower than one in a quarter of an hour is no rate, and faster than a million no limit.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PerSecond(pub(crate) f64);

impl Read for PerSecond {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        let number = match &node.value {
            Value::Number(text) => text.parse::<f64>().ok(),
            _ => None,
        };
        match number.filter(|number| (0.001..=1_000_000.0).contains(number)) {
            Some(number) => Some(Self(number)),
            None => cursor.mismatch(node, "a number from 0.001 to 1000000"),
        }
    }
}

/// `5%`, as ten-thousandths.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Canary(pub(crate) u16);

impl Read for Canary {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        const WANTED: &str = "a share from 0.01% to 100% with two decimals at most is wanted";
        let share = match &node.value {
            Value::Text(text) => share(text),
            Value::Number(text) => {
                // Whether 0.05 means 5 % or 0.05 % only its author knows.
                let wanted = match share(&format!("{text}%")) {
                    Some(_) if !text.starts_with('0') => format!("{WANTED}; did you mean `{text}%`?"),
                    _ => WANTED.to_owned(),
                };
                cursor.problem(node.at, node.shown(), wanted);
                return None;
            }
            _ => None,
        };
        if share.is_none() {
            cursor.problem(node.at, node.shown(), WANTED);
        }
        share.map(Self)
    }
}

fn share(text: &str) -> Option<u16> {
    let number = text.strip_suffix('%')?;
    let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
    let digits =
        |text: &str, most| (1..=most).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole, 3) || !digits(decimals, 2) {
        return None;
    }
    let share =
        whole.parse::<u16>().ok()?.checked_mul(100)? + format!("{decimals:0<2}").parse::<u16>().ok()?;
    (1..=10_000).contains(&share).then_some(share)
}

/// A list with at least one entry: an empty one could mean everybody as well as nobody.
#[derive(Debug)]
pub(crate) struct Several<T>(pub(crate) Vec<T>);

impl<T: Read> Read for Several<T> {
    fn read(node: &Node, cursor: &mut Cursor<'_>) -> Option<Self> {
        match &node.value {
            Value::List(items) if items.is_empty() => {
                cursor.problem(node.at, "an empty list", "at least one entry is wanted, or no such key");
                None
            }
            Value::List(_) => Vec::read(node, cursor).map(Self),
            Value::Mapping(_) => cursor.mismatch(node, "a list"),
            _ => {
                cursor.problem(
                    node.at,
                    node.shown(),
                    format!("a list is wanted, such as [{}]", node.shown()),
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn shares_are_read_to_a_hundredth_of_a_percent() {
        for (text, wanted) in [
            ("5%", Some(500)),
            ("0.01%", Some(1)),
            ("12.5%", Some(1250)),
            ("12.34%", Some(1234)),
            ("100%", Some(10_000)),
            ("100.00%", Some(10_000)),
            ("100.01%", None),
            ("0%", None),
            ("0.001%", None),
            ("-5%", None),
            ("5", None),
            ("5 %", None),
            (".5%", None),
            ("5.%", None),
            ("999%", None),
            ("%", None),
        ] {
            assert_eq!(share(text), wanted, "{text}");
        }
    }
}
