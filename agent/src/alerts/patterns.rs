//! The regular expressions of policies, compiled when a flow first needs them. Used by `matching.rs`. A pattern that is
//! none, or too large, fits nothing; what is kept is bounded whatever policies say.

use regex::bytes::{Regex, RegexBuilder};
use std::collections::HashMap;
use tracing::warn;

/// Patterns kept at a time.
const MOST: usize = 64;
/// Bytes of a pattern.
const LONGEST: usize = 4 * 1024;
/// Bytes that a compiled pattern may take, and as many while it is used.
const LARGEST: usize = 64 * 1024;
/// Bytes of a text, longer than those of real hosts, paths and methods. Time is bounded by both.
const LONGEST_TEXT: usize = 8 * 1024;

/// Compiled patterns; `None`: not one.
#[derive(Debug, Default)]
pub(crate) struct Patterns(HashMap<String, Option<Regex>>);

impl Patterns {
    /// Whether a pattern fits some part of the text.
    pub(crate) fn fits(&mut self, pattern: &str, text: &str) -> bool {
        if pattern.len() > LONGEST || text.len() > LONGEST_TEXT {
            return false;
        }
        if !self.0.contains_key(pattern) {
            if self.0.len() >= MOST {
                self.0.clear();
            }
            self.0.insert(pattern.to_owned(), compile(pattern));
        }
        self.0[pattern].as_ref().is_some_and(|regex| regex.is_match(text.as_bytes()))
    }
}

fn compile(pattern: &str) -> Option<Regex> {
    // As in Go, whose patterns these are, `\w` and `\d` are those of ASCII.
    let compiled =
        RegexBuilder::new(pattern).unicode(false).size_limit(LARGEST).dfa_size_limit(LARGEST).build();
    if compiled.is_err() {
        let pattern: String = pattern.chars().take(100).collect();
        warn!(%pattern, "pattern of an HTTP rule fits nothing: it is illegal or too large");
    }
    compiled.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_parts_of_texts() {
        let mut patterns = Patterns::default();
        let table = [
            ("/public", "/a/public/b", true),
            ("^/public$", "/a/public/b", false),
            ("GET|PUT", "PUT", true),
            ("(", "(", false),
            ("a{1000}{1000}", "a", false),
            ("[0-9]+$", "/v1/7", true),
            (r"^/\w{1,64}/\d+$", "/users/7", true),
            ("(?i)^get$", "GET", true),
            ("^/caf.+$", "/café", true),
        ];
        for (pattern, text, fits) in table {
            assert_eq!(patterns.fits(pattern, text), fits, "{pattern}");
        }
        assert!(!patterns.fits(&"a".repeat(LONGEST + 1), &"a".repeat(LONGEST + 1)));
        assert!(!patterns.fits("a", &"a".repeat(LONGEST_TEXT + 1)));
        for number in 0..10 * MOST {
            assert!(patterns.fits(&number.to_string(), &number.to_string()));
            assert!(patterns.0.len() <= MOST);
        }
    }
}
