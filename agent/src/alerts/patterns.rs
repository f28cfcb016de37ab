//! The regular expressions of policies. Before it: `policy.rs`, which reads and compiles them once, when it reads a policy.
//! After it: `matching.rs`, which compiles nothing. A pattern that is none, or too large, fits nothing.

use regex::bytes::{Regex, RegexBuilder};

/// Bytes of a pattern.
const LONGEST: usize = 4 * 1024;
/// Bytes that a compiled pattern may take, and as many while it is used.
const LARGEST: usize = 64 * 1024;
/// Bytes of a text, longer than those of real hosts, paths and methods. Time is bounded by both.
const LONGEST_TEXT: usize = 8 * 1024;

/// A pattern of a policy. Until it is compiled it fits nothing, unless it is empty: it says nothing then.
#[derive(Debug, Default)]
pub(crate) struct Pattern {
    text: String,
    compiled: Option<Regex>,
}

impl Pattern {
    /// Not compiled yet.
    pub(crate) fn new(text: &str) -> Self {
        Self { text: text.to_owned(), compiled: None }
    }

    /// Whether it says nothing.
    pub(crate) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// The beginning of its text, for people.
    pub(crate) fn begin(&self) -> String {
        self.text.chars().take(100).collect()
    }

    /// Whether it can be used from now on; one that is illegal or too large cannot.
    pub(crate) fn compile(&mut self) -> bool {
        if self.is_empty() {
            return true;
        }
        // As in Go, whose patterns these are, `\w` and `\d` are those of ASCII.
        let mut builder = RegexBuilder::new(&self.text);
        builder.unicode(false).size_limit(LARGEST).dfa_size_limit(LARGEST);
        self.compiled = if self.text.len() <= LONGEST { builder.build().ok() } else { None };
        self.compiled.is_some()
    }

    /// Whether it is empty or fits some part of the text.
    pub(crate) fn fits(&self, text: &str) -> bool {
        let fits = |regex: &Regex| text.len() <= LONGEST_TEXT && regex.is_match(text.as_bytes());
        self.is_empty() || self.compiled.as_ref().is_some_and(fits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compiled(text: &str) -> Pattern {
        let mut pattern = Pattern::new(text);
        pattern.compile();
        pattern
    }

    #[test]
    fn patterns_fit_parts_of_texts() {
        let table = [
            ("", "/a", true),
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
            assert_eq!(compiled(pattern).fits(text), fits, "{pattern}");
        }
        assert!(!compiled(&"a".repeat(LONGEST + 1)).fits(&"a".repeat(LONGEST + 1)));
        assert!(!compiled("a").fits(&"a".repeat(LONGEST_TEXT + 1)));
        assert!(!Pattern::new("a").fits("a"), "not compiled");
    }
}
