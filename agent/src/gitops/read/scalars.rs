//! What plain scalars of a manifest mean: what they mean to kubectl, so that a manifest is the same object here and
//! there. Before it: the parser of `postern-yaml`. After it: `values.rs`. It never looks at quoted text, which is text.
//!
//! kubectl reads YAML 1.1: `y`, `n`, `yes`, `no`, `on` and `off` are booleans (as keys too), `0777`, `0o777`, `0x1FF`,
//! `0b11` and `1_000` are integers, `08` and `12e03` are numbers as well. JSON has one kind of number, so `1.0` and `1e3` are
//! `1` and `1000`. Dates, `1:30`, and numbers beyond all ranges are text.

use postern_yaml::Value;

/// What this plain scalar means; numbers come out in decimal.
pub(super) fn plain(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" | "y" | "Y" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => {
            Value::Bool(true)
        }
        "false" | "False" | "FALSE" | "n" | "N" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            Value::Bool(false)
        }
        // JSON has none of these; whoever reads the value says so.
        ".nan" | ".NaN" | ".NAN" => Value::Number(".nan".to_owned()),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" => Value::Number(".inf".to_owned()),
        "-.inf" | "-.Inf" | "-.INF" => Value::Number("-.inf".to_owned()),
        _ => number(text).map_or_else(|| Value::Text(text.to_owned()), Value::Number),
    }
}

fn number(text: &str) -> Option<String> {
    match text.bytes().next()? {
        b'.' => float(text),
        b'0'..=b'9' | b'+' | b'-' => {
            let digits: String = text.chars().filter(|char| *char != '_').collect();
            integer(&digits).or_else(|| float(&digits))
        }
        _ => None,
    }
}

/// An integer that fits into 64 bits.
fn integer(text: &str) -> Option<String> {
    let (signed, digits) = match text.strip_prefix(['+', '-']) {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (radix, digits) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (16, &digits[2..]),
        [b'0', b'o' | b'O', ..] => (8, &digits[2..]),
        [b'0', b'b' | b'B', ..] => (2, &digits[2..]),
        [b'0', _, ..] => (8, &digits[1..]),
        _ => (10, digits),
    };
    if !digits.chars().all(|digit| digit.is_digit(radix)) {
        return None;
    }
    let value = i128::from(u64::from_str_radix(digits, radix).ok()?);
    let value = if text.starts_with('-') { -value } else { value };
    (!signed || i64::try_from(value).is_ok()).then(|| value.to_string())
}

/// A decimal number within the range of a float.
fn float(text: &str) -> Option<String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let exponent = exponent.strip_prefix(['+', '-']).unwrap_or(exponent);
    if whole.len() + fraction.len() == 0
        || exponent.is_empty()
        || ![whole, fraction, exponent].into_iter().all(digits)
    {
        return None;
    }
    let value: f64 = text.parse().ok().filter(|value: &f64| value.is_finite())?;
    Some(match whole_number(value) {
        Some(whole) => whole.to_string(),
        None if (1e-6..1e21).contains(&value.abs()) => value.to_string(),
        None => format!("{value:e}"),
    })
}

/// The integer that a float is, if it is one that JSON readers take for one.
pub(super) fn whole_number(value: f64) -> Option<i64> {
    const TOO_LARGE: f64 = 9_223_372_036_854_775_808.0;
    (value.fract() == 0.0 && (-TOO_LARGE..TOO_LARGE).contains(&value)).then_some(value as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        match plain(text) {
            Value::Null => "null".to_owned(),
            Value::Bool(value) => value.to_string(),
            Value::Number(number) => number,
            Value::Text(text) => format!("{text:?}"),
            Value::List(_) | Value::Mapping(_) => unreachable!("a scalar"),
        }
    }

    /// What kubectl sends for the same scalar.
    #[test]
    fn plain_scalars_mean_what_they_mean_to_kubectl() {
        for (wanted, texts) in [
            ("null", &["", "~", "null", "Null", "NULL"][..]),
            ("true", &["true", "True", "TRUE", "y", "Y", "yes", "Yes", "YES", "on", "On", "ON"]),
            ("false", &["false", "False", "FALSE", "n", "N", "no", "No", "NO", "off", "Off", "OFF"]),
            ("0", &["0", "00", "-0", "+0", "0.0", "-0.0", "0e0", "0x0"]),
            (
                "12",
                &["12", "+12", "1_2", "12.", "12.0", "1.2e1", "014", "0o14", "0O14", "0xc", "0XC", "0b1100"],
            ),
            ("-12", &["-12", "-014", "-0o14", "-0xC", "-0b1100", "-12.0"]),
            ("511", &["0777", "0o777", "0_777"]),
            // Not octal, so decimal after all: kubectl's own trap.
            ("8", &["08", "08.0"]),
            ("12000", &["12e03", "12E3", "1_2e+3"]),
            ("0.5", &[".5", "0.5", "+.5", "5e-1", "5.0E-1"]),
            ("-1.25", &["-1.25", "-1_2.5e-1"]),
            ("9223372036854775807", &["9223372036854775807", "+9223372036854775807", "0x7fffffffffffffff"]),
            ("-9223372036854775808", &["-9223372036854775808"]),
            ("18446744073709551615", &["18446744073709551615", "0xFFFFFFFFFFFFFFFF"]),
            ("18446744073709552000", &["18446744073709551616", "1.8446744073709552e19"]),
            ("100000000000000000000", &["1e20"]),
            ("1e21", &["1e21", "1000000000000000000000"]),
            ("1e-7", &["1e-7", "0.0000001"]),
            (".nan", &[".nan", ".NaN", ".NAN"]),
            (".inf", &[".inf", "+.Inf", ".INF"]),
            ("-.inf", &["-.inf"]),
        ] {
            for text in texts {
                assert_eq!(shown(text), wanted, "{text:?}");
            }
        }
    }

    #[test]
    fn what_looks_like_a_number_to_people_only_is_text() {
        for text in [
            "yES",
            "oN",
            "nUll",
            "TrUe",
            "nope",
            "-",
            "+",
            ".",
            "..",
            "1.2.3",
            "1s",
            "100m",
            "1Gi",
            "e3",
            "1e",
            "1e+",
            "0x",
            "0xg",
            "0o8",
            "0b2",
            "0o",
            "_1",
            "2001-01-01",
            "2001-01-01T00:00:00Z",
            "1:30",
            "12:30:45",
            "--1",
            "+-1",
            "1e400",
            "0x1FFFFFFFFFFFFFFFF",
            "1 2",
            "¹",
            "1,000",
            "Infinity",
            "NaN",
            "inf",
            "0.1.0",
            ".e1",
            "<<",
            "=",
        ] {
            assert_eq!(shown(text), format!("{text:?}"));
        }
    }
}
