//! What does a new connection open with? HTTP/2, an HTTP/1.x request, or nothing we speak.
//!
//! Comes right after accept (and TLS); afterwards the bytes go, given back by [`Rewound`], to the HTTP/2 server, to
//! [`crate::ws::accept`] or to an HTTP/1.x proxy. Never answers and never closes: [`SniffError::answer`] says what
//! the caller may write first.

mod rewound;
#[cfg(test)]
mod tests;

use std::{fmt, io, time::Duration};

use bytes::{BufMut, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version, header};
use tokio::io::{AsyncRead, AsyncReadExt};

pub use rewound::Rewound;

/// What an HTTP/2 client with prior knowledge sends first.
pub const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// More header lines than this are refused; browsers and kubectl stay below 40.
const MAX_HEADERS: usize = 100;
/// The longest method in use anywhere is `VERSION-CONTROL`; what has no space by then is not HTTP.
const MAX_METHOD: usize = 32;
/// Bytes asked for at a time: a handshake of kubectl or agentk fits in one.
const READ_SIZE: usize = 2048;
/// Header values that no log may show.
const SECRETS: [HeaderName; 3] = [header::AUTHORIZATION, header::PROXY_AUTHORIZATION, header::COOKIE];
/// First byte of a TLS handshake record.
const TLS_HANDSHAKE: u8 = 0x16;

/// What one opening may cost.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of an HTTP/1.x head, request line and final empty line included.
    pub head: usize,
    /// From the first call to the last byte, however many reads it takes.
    pub deadline: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { head: 64 * 1024, deadline: Duration::from_secs(10) }
    }
}

/// How a connection begins; `read` holds every byte taken from it, to be given back through [`Rewound`].
pub enum Opening {
    /// The whole client preface of HTTP/2 came, perhaps more.
    Http2 { read: BytesMut },
    /// A whole HTTP/1.x head came; the first [`Head::size`] bytes of `read` are that head.
    Http1 { head: Head, read: BytesMut },
}

/// The head of an HTTP/1.0 or 1.1 request.
pub struct Head {
    pub method: Method,
    /// As it stands in the request line: mostly path and query, not decoded.
    pub target: String,
    pub version: Version,
    pub headers: HeaderMap,
    size: usize,
}

/// Why the opening of a connection is not understood.
#[derive(Debug, thiserror::Error)]
pub enum SniffError {
    /// Closed before the first byte, as health checks of load balancers do.
    #[error("closed before it sent anything")]
    Silent,
    /// Closed in the middle of a head.
    #[error("closed after {read} bytes of an unfinished HTTP head")]
    Truncated { read: usize },
    /// The deadline for the whole head passed.
    #[error("no complete HTTP head within {limit:?} ({read} bytes came)")]
    TooSlow { limit: Duration, read: usize },
    /// The head is longer than allowed.
    #[error("HTTP head is longer than {limit} bytes")]
    TooLong { limit: usize },
    /// The head has more lines than allowed.
    #[error("HTTP head has more than {limit} header lines")]
    TooManyHeaders { limit: usize },
    /// A TLS client dialled a port that does not speak TLS.
    #[error(
        "TLS handshake on a port without TLS; dial it with ws://, grpc:// or http://, or use the TLS port"
    )]
    Tls,
    /// Neither HTTP/1.x nor HTTP/2.
    #[error("neither HTTP/1.x nor HTTP/2: {what}")]
    Junk { what: &'static str },
    /// The transport failed.
    #[error("read the opening of a connection")]
    Io(#[source] io::Error),
}

impl SniffError {
    /// The status an HTTP client should see; `None` where nobody would read an answer.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            Self::Silent | Self::Truncated { .. } | Self::Io(_) => None,
            Self::TooSlow { read: 0, .. } => None,
            Self::TooSlow { .. } => Some(StatusCode::REQUEST_TIMEOUT),
            Self::TooLong { .. } | Self::TooManyHeaders { .. } => {
                Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
            }
            // TLS stacks that meet a clear-text answer name it in their error ("server gave HTTP response").
            Self::Tls | Self::Junk { .. } => Some(StatusCode::BAD_REQUEST),
        }
    }

    /// The whole HTTP/1.1 answer to write before closing, if there is somebody to read it.
    pub fn answer(&self) -> Option<Vec<u8>> {
        let status = self.status()?;
        let body = format!("{self}\n");
        let reason = status.canonical_reason().unwrap_or_default();
        Some(
            format!(
                "HTTP/1.1 {} {reason}\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\n\
                 content-length: {}\r\n\r\n{body}",
                status.as_u16(),
                body.len(),
            )
            .into_bytes(),
        )
    }
}

/// Reads from `io` until it is known what the peer speaks.
///
/// # Errors
/// See [`SniffError`]; the connection is of no further use then, except for writing [`SniffError::answer`].
pub async fn sniff<S>(io: &mut S, limits: Limits) -> Result<Opening, SniffError>
where
    S: AsyncRead + Unpin,
{
    let mut read = BytesMut::new();
    match tokio::time::timeout(limits.deadline, recognise(io, &mut read, limits.head)).await {
        Ok(Ok(Known::Http2)) => Ok(Opening::Http2 { read }),
        Ok(Ok(Known::Http1(head))) => Ok(Opening::Http1 { head, read }),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(SniffError::TooSlow { limit: limits.deadline, read: read.len() }),
    }
}

enum Known {
    Http2,
    Http1(Head),
}

async fn recognise<S>(io: &mut S, read: &mut BytesMut, limit: usize) -> Result<Known, SniffError>
where
    S: AsyncRead + Unpin,
{
    let limit = limit.max(PREFACE.len());
    let mut first_line_checked = false;
    loop {
        let seen = read.len();
        if seen >= limit {
            return Err(SniffError::TooLong { limit });
        }
        let room = READ_SIZE.min(limit - seen);
        read.reserve(room);
        if io.read_buf(&mut (&mut *read).limit(room)).await.map_err(SniffError::Io)? == 0 {
            return Err(if seen == 0 { SniffError::Silent } else { SniffError::Truncated { read: seen } });
        }

        if read[0] == TLS_HANDSHAKE {
            return Err(SniffError::Tls);
        }
        let compared = read.len().min(PREFACE.len());
        if read[..compared] == PREFACE[..compared] {
            if compared == PREFACE.len() {
                return Ok(Known::Http2);
            }
            continue;
        }
        // One scan over the new bytes only, one parse when the end is there: a peer that sends its head byte by
        // byte costs no more than one that sends it at once.
        if let Some(end) = head_end(read, seen) {
            return parse(&read[..end]).map(Known::Http1);
        }
        if !first_line_checked {
            check_method(read)?;
            if read.contains(&b'\n') {
                first_line_checked = true;
                check_first_line(read)?;
            }
        }
    }
}

/// Where the head in `bytes` ends (behind its empty line), when it does; the bytes before `seen` were searched before.
pub(crate) fn head_end(bytes: &[u8], seen: usize) -> Option<usize> {
    let from = seen.saturating_sub(3);
    let mut at = from;
    while let Some(found) = bytes[at..].iter().position(|&byte| byte == b'\n') {
        at += found + 1;
        match bytes[at..] {
            [b'\n', ..] => return Some(at + 1),
            [b'\r', b'\n', ..] => return Some(at + 2),
            _ => {}
        }
    }
    None
}

/// Fails as soon as the bytes cannot become a request line, so that junk is not waited for until the deadline.
fn check_method(bytes: &[u8]) -> Result<(), SniffError> {
    // httparse forgives empty lines before a request, so do we.
    let Some(start) = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')) else { return Ok(()) };
    for (at, &byte) in bytes[start..].iter().enumerate() {
        match byte {
            b' ' if at > 0 => return Ok(()),
            b'!'..=b'~' if at < MAX_METHOD => {}
            _ => return Err(SniffError::Junk { what: "it does not begin with a request line" }),
        }
    }
    Ok(())
}

fn check_first_line(bytes: &[u8]) -> Result<(), SniffError> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    httparse::Request::new(&mut lines).parse(bytes).map(drop).map_err(junk)
}

fn parse(bytes: &[u8]) -> Result<Head, SniffError> {
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut request = httparse::Request::new(&mut lines);
    let httparse::Status::Complete(size) = request.parse(bytes).map_err(junk)? else {
        // Only empty lines so far look like an end to `head_end` and like nothing to httparse.
        return Err(SniffError::Junk { what: "it does not begin with a request line" });
    };
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(SniffError::Junk { what: "the request line is incomplete" });
    };
    Ok(Head {
        method: Method::from_bytes(method.as_bytes())
            .map_err(|_| SniffError::Junk { what: "the method is not a token" })?,
        target: target.to_owned(),
        version: if version == 0 { Version::HTTP_10 } else { Version::HTTP_11 },
        headers: header_map(request.headers)?,
        size,
    })
}

fn header_map(lines: &[httparse::Header<'_>]) -> Result<HeaderMap, SniffError> {
    let mut headers = HeaderMap::with_capacity(lines.len());
    for line in lines {
        let name = HeaderName::from_bytes(line.name.as_bytes())
            .map_err(|_| SniffError::Junk { what: "a header name is not a token" })?;
        let mut value = HeaderValue::from_bytes(line.value)
            .map_err(|_| SniffError::Junk { what: "a header value holds control characters" })?;
        value.set_sensitive(SECRETS.contains(&name));
        headers.append(name, value);
    }
    Ok(headers)
}

fn junk(error: httparse::Error) -> SniffError {
    let what = match error {
        httparse::Error::TooManyHeaders => return SniffError::TooManyHeaders { limit: MAX_HEADERS },
        httparse::Error::HeaderName => "a header name is not a token",
        httparse::Error::HeaderValue => "a header value holds control characters",
        httparse::Error::Version => "the request line does not end in HTTP/1.0 or HTTP/1.1",
        httparse::Error::NewLine => "a line end is broken",
        httparse::Error::Token | httparse::Error::Status => "the request line is malformed",
    };
    SniffError::Junk { what }
}

/// What is read may hold a token: only shapes and names are shown.
impl fmt::Debug for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http2 { read } => f.debug_struct("Http2").field("read", &read.len()).finish(),
            Self::Http1 { head, read } => {
                f.debug_struct("Http1").field("head", head).field("read", &read.len()).finish()
            }
        }
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Head")
            .field("method", &self.method)
            .field("path", &self.path())
            .field("version", &self.version)
            .field("headers", &self.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

impl Head {
    /// Bytes the head takes at the start of `read`; what follows is body or, after an upgrade, the next protocol.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The `Host` header, when there is one that is text.
    pub fn host(&self) -> Option<&str> {
        self.headers.get(header::HOST)?.to_str().ok()
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split(['?', '#']).next().unwrap_or_default()
    }

    /// Does the comma-separated list of any header `name` hold `token`, whatever its case?
    pub fn has_token(&self, name: HeaderName, token: &str) -> bool {
        has_token(&self.headers, name, token)
    }
}

/// Does the comma-separated list of any header `name` hold `token`, whatever its case?
pub(crate) fn has_token(headers: &HeaderMap, name: HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|list| list.split(','))
        .any(|item| item.trim().eq_ignore_ascii_case(token))
}
