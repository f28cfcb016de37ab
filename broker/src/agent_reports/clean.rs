//! Strangers' text and JSON as it may be kept and shown: on one line, without what moves a terminal's cursor or turns the
//! direction of text, and of bounded length. Before everything else in [`super`] that keeps a text.

use serde_json::{Map, Value};

/// At most `max` bytes of a text: what breaks a line is a space, what cannot be seen is left out.
pub(super) fn line(text: &str, max: usize) -> String {
    let mut line = String::with_capacity(text.len().min(max));
    for letter in text.chars().filter(|letter| !is_hidden(*letter)) {
        let letter = if is_control(letter) { ' ' } else { letter };
        if line.len() + letter.len_utf8() > max {
            break;
        }
        line.push(letter);
    }
    line.truncate(line.trim_end().len());
    line
}

/// Whether [`line()`] would leave a text of this length as it is.
pub(super) fn is_clean(text: &str) -> bool {
    !text.chars().any(|letter| is_hidden(letter) || is_control(letter))
}

/// A JSON object, written anew: without white space, and with clean texts.
///
/// # Errors
/// It is no JSON object.
pub(super) fn object(json: &[u8]) -> Result<String, serde_json::Error> {
    let object: Map<String, Value> = serde_json::from_slice(json)?;
    serde_json::to_string(&members(object))
}

fn members(object: Map<String, Value>) -> Map<String, Value> {
    let clean = |(key, value): (String, Value)| (text(key), self::value(value));
    object.into_iter().map(clean).collect()
}

fn value(value: Value) -> Value {
    match value {
        Value::String(found) => Value::String(text(found)),
        // As deep as the parser lets anything be.
        Value::Array(items) => items.into_iter().map(self::value).collect(),
        Value::Object(object) => Value::Object(members(object)),
        other => other,
    }
}

fn text(text: String) -> String {
    if is_clean(&text) { text } else { line(&text, usize::MAX) }
}

fn is_control(letter: char) -> bool {
    letter.is_control() || matches!(letter, '\u{2028}' | '\u{2029}')
}

/// Marks of direction and of byte order.
fn is_hidden(letter: char) -> bool {
    matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_one_line_of_bounded_length() {
        for (text, max, wanted) in [
            ("as it is", 100, "as it is"),
            ("two\r\nlines\ttab\n", 100, "two  lines tab"),
            ("\u{1b}[31mred\u{7}\0", 100, " [31mred"),
            ("a\u{202e}cod.exe\u{2028}b\u{85}c", 100, "acod.exe b c"),
            ("ääää", 5, "ää"),
            ("", 5, ""),
        ] {
            assert_eq!(line(text, max), wanted, "{text:?}");
            assert!(is_clean(&line(text, max)));
        }
    }

    #[test]
    fn an_object_is_written_anew_and_anything_else_is_refused() {
        for (json, wanted) in [
            (r#"{ "a" : [1, 2.5, true, null, {"b": "x"}] }"#, r#"{"a":[1,2.5,true,null,{"b":"x"}]}"#),
            (r#"{"a\n":"b\u0000\u001b[1m\nc"}"#, r#"{"a":"b  [1m c"}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            ("{\"a\":\n\"\\u00e4\"}\n", r#"{"a":"ä"}"#),
        ] {
            assert_eq!(object(json.as_bytes()).unwrap(), wanted, "{json}");
        }
        let deep = format!(r#"{{"a":{}1{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        for json in
            ["", "{", "[]", "null", "1", "{} {}", r#"{"a":1e999}"#, r#"{"a":"\ud800"}"#, deep.as_str()]
        {
            assert!(object(json.as_bytes()).is_err(), "{}", &json[..json.len().min(40)]);
        }
        assert!(object(b"{\"a\":\"\xff\"}").is_err());
    }
}
