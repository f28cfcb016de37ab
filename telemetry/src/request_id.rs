//! The id by which the log lines of one request are found in all programs. Before it: `x-request-id` or
//! `x-gitlab-correlation-id`, which anybody may send. After it: log lines and the next program. What is not short and
//! plain is not taken over: a stranger shall write no words of his into our logs.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;
use std::fmt;

/// As browsers, load balancers and kubectl plugins send it.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// As GitLab's programs send it.
pub const CORRELATION_ID: HeaderName = HeaderName::from_static("x-gitlab-correlation-id");

/// Longer than any UUID and what GitLab makes.
const MAX: usize = 64;

/// The id of one request.
#[derive(Clone, PartialEq, Eq)]
pub enum RequestId {
    /// Made here.
    Made(u64),
    /// The caller's, checked.
    Given(Box<str>),
}

impl RequestId {
    /// A new one.
    pub fn random() -> Self {
        Self::Made(rand::rng().random())
    }

    /// The caller's, if one of the two headers has a usable one.
    pub fn given(headers: &HeaderMap) -> Option<Self> {
        [REQUEST_ID, CORRELATION_ID].iter().find_map(|name| Self::checked(headers.get(name)?.as_bytes()))
    }

    /// One that came some other way: letters, digits, `-`, `_`, `.`, at most 64 of them.
    pub fn checked(text: &[u8]) -> Option<Self> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if text.is_empty() || text.len() > MAX || !text.iter().all(plain) {
            return None;
        }
        Some(Self::Given(std::str::from_utf8(text).ok()?.into()))
    }

    /// As a header says it.
    pub fn to_header(&self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("only plain characters were let in")
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Made(number) => write!(f, "{number:016x}"),
            Self::Given(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_plain_or_it_is_none() {
        let long = "a".repeat(65);
        for (text, fine) in [
            ("01HZX3J6", true),
            ("3f2504e0-4f89-11d3-9a0c-0305e82c3301", true),
            ("a.b_c-D9", true),
            (&long[..64], true),
            (&long, false),
            ("", false),
            ("a b", false),
            ("a\"b", false),
            ("a\nb", false),
            ("a=b;c", false),
            ("\u{fc}", false),
        ] {
            assert_eq!(RequestId::checked(text.as_bytes()).is_some(), fine, "{text:?}");
        }
    }

    #[test]
    fn the_first_usable_header_counts() {
        let mut headers = HeaderMap::new();
        assert_eq!(RequestId::given(&headers), None);
        headers.insert(CORRELATION_ID, HeaderValue::from_static("gitlab-1"));
        assert_eq!(RequestId::given(&headers).map(|id| id.to_string()), Some("gitlab-1".into()));
        headers.insert(REQUEST_ID, HeaderValue::from_static("not one"));
        assert_eq!(RequestId::given(&headers).map(|id| id.to_string()), Some("gitlab-1".into()));
        headers.insert(REQUEST_ID, HeaderValue::from_static("lb-2"));
        assert_eq!(RequestId::given(&headers).map(|id| id.to_string()), Some("lb-2".into()));
    }

    #[test]
    fn one_of_ours_is_usable_by_others_and_small() {
        let made = RequestId::random();
        assert_eq!(made.to_string().len(), 16);
        assert!(RequestId::checked(made.to_header().as_bytes()).is_some());
        assert!(size_of::<RequestId>() <= 24);
    }
}
