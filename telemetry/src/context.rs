//! W3C Trace Context: `traceparent` in and out. Before it: a header that anybody may have sent. After it: `sampling`,
//! which decides what its flag is worth. What is not exactly as the standard says is treated as absent.

use http::{HeaderMap, HeaderName, HeaderValue};
use rand::Rng;
use std::fmt;

pub const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What vendors add. It means nothing without [`TRACEPARENT`] and travels with it, unread.
pub const TRACESTATE: HeaderName = HeaderName::from_static("tracestate");

const SAMPLED: u8 = 1;
/// `00-`, 32 digits, `-`, 16 digits, `-`, 2 digits.
const LENGTH: usize = 55;

/// Which trace something belongs to. Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceId([u8; 16]);

/// Which span of a trace. Never all zero.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SpanId([u8; 8]);

/// A span as others are told of it: `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    pub trace: TraceId,
    pub span: SpanId,
    /// Whether it is recorded.
    pub sampled: bool,
}

impl Context {
    /// Begins a trace.
    pub fn root(sampled: bool) -> Self {
        Self { trace: TraceId::random(), span: SpanId::random(), sampled }
    }

    /// The next span below this one.
    pub fn child(self) -> Self {
        Self { span: SpanId::random(), ..self }
    }

    /// Reads the header; `None` where there is none, more than one, or one that is not as the standard says.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut all = headers.get_all(TRACEPARENT).iter();
        let only = all.next()?;
        if all.next().is_some() {
            return None;
        }
        Self::parse(only.as_bytes())
    }

    /// Reads a value. Of versions after `00` the known part is taken, as the standard asks.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let known = text.get(..LENGTH)?;
        let dashes = known[2] == b'-' && known[35] == b'-' && known[52] == b'-';
        let [version] = hex(&known[..2])?;
        let ends = match version {
            0xff => false,
            0 => text.len() == LENGTH,
            _ => matches!(text.get(LENGTH), None | Some(b'-')),
        };
        if !dashes || !ends {
            return None;
        }
        let (trace, span) = (hex::<16>(&known[3..35])?, hex::<8>(&known[36..52])?);
        let [flags] = hex(&known[53..])?;
        let zero = trace == [0; 16] || span == [0; 8];
        (!zero).then_some(Self { trace: TraceId(trace), span: SpanId(span), sampled: flags & SAMPLED != 0 })
    }

    /// As the header says it.
    pub fn to_header(self) -> HeaderValue {
        HeaderValue::try_from(self.to_string()).expect("digits and dashes")
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{}-{}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

/// Lower case only, as the standard asks.
fn hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

macro_rules! id {
    ($name:ident, $size:literal) => {
        impl $name {
            pub(crate) fn random() -> Self {
                loop {
                    let bytes: [u8; $size] = rand::rng().random();
                    if bytes != [0; $size] {
                        return Self(bytes);
                    }
                }
            }

            pub(crate) fn bytes(self) -> [u8; $size] {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}
id!(TraceId, 16);
id!(SpanId, 8);

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
    const SPAN: &str = "00f067aa0ba902b7";

    #[test]
    fn what_the_standard_allows_is_read_and_written_alike() {
        for (text, sampled) in [
            (format!("00-{TRACE}-{SPAN}-01"), true),
            (format!("00-{TRACE}-{SPAN}-00"), false),
            // Bits that have no meaning yet.
            (format!("00-{TRACE}-{SPAN}-ff"), true),
            (format!("00-{TRACE}-{SPAN}-02"), false),
            // A later version, with and without more behind it.
            (format!("01-{TRACE}-{SPAN}-01"), true),
            (format!("cc-{TRACE}-{SPAN}-01-what-will-be"), true),
        ] {
            let read = Context::parse(text.as_bytes()).unwrap_or_else(|| panic!("{text}"));
            assert_eq!((read.trace.to_string(), read.span.to_string()), (TRACE.into(), SPAN.into()));
            assert_eq!(read.sampled, sampled, "{text}");
            assert_eq!(read.to_string(), format!("00-{TRACE}-{SPAN}-0{}", u8::from(sampled)));
        }
    }

    #[test]
    fn anything_else_is_no_context() {
        let zero = "0".repeat(32);
        for text in [
            String::new(),
            "00".to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01 "),
            format!("01-{TRACE}-{SPAN}-01.more"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0g-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{zero}-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &zero[..16]),
            format!("00-{TRACE}_{SPAN}-01"),
            format!("00-{}-{SPAN}-01", &TRACE[..31]),
            format!("00-{TRACE}-{SPAN}-0\u{e9}"),
            "-".repeat(55),
        ] {
            assert_eq!(Context::parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn two_headers_are_none() {
        let mut headers = HeaderMap::new();
        assert_eq!(Context::of(&headers), None);
        let first = Context::root(true);
        headers.append(TRACEPARENT, first.to_header());
        assert_eq!(Context::of(&headers), Some(first));
        headers.append(TRACEPARENT, Context::root(true).to_header());
        assert_eq!(Context::of(&headers), None);
    }

    #[test]
    fn a_child_is_another_span_of_the_same_trace() {
        let root = Context::root(true);
        let child = root.child();
        assert_eq!((root.trace, root.sampled), (child.trace, child.sampled));
        assert_ne!(root.span, child.span);
        assert_eq!(Context::parse(child.to_string().as_bytes()), Some(child));
    }
}
