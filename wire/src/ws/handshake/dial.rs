//! The dialler's half of the handshake: one request, one answer, and for every other answer a line an operator can
//! act on.
//!
//! Comes after TCP, a proxy's CONNECT and TLS. Follows no redirect and sets no time limit: the caller does both.

use std::{fmt, io, time::Duration};

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{SUBPROTOCOL, accept_key, put_header};
use crate::{
    sniff::{has_token, head_end},
    ws::WsStream,
};

/// The head of an answer, interim answers included.
const MAX_HEAD: usize = 16 * 1024;
const MAX_HEADERS: usize = 100;
const READ_SIZE: usize = 1024;
/// Of a refusal's body this much is read and shown, and waited for no longer.
const MAX_REASON: usize = 200;
const MAX_BODY: usize = 2 * 1024;
const BODY_WAIT: Duration = Duration::from_secs(1);

/// What to ask for.
#[derive(Clone, Copy)]
pub struct Handshake<'a> {
    /// Host, with `:port` unless it is the scheme's own.
    pub host: &'a str,
    /// Begins with `/`; an empty one means `/`.
    pub path_and_query: &'a str,
    pub user_agent: &'a str,
    /// Sent as they are; a `User-Agent` here replaces the one above.
    pub headers: &'a HeaderMap,
}

/// An operator's headers may be secrets: only their names are shown.
impl fmt::Debug for Handshake<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handshake")
            .field("host", &self.host)
            .field("path", &self.path_and_query.split('?').next())
            .field("headers", &self.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>())
            .finish_non_exhaustive()
    }
}

/// Why there is no WebSocket.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The request cannot be written as HTTP.
    #[error("cannot ask for a WebSocket: {what}")]
    BadRequest { what: String },
    /// The server points elsewhere.
    #[error("the server redirects ({}) to {location}", status.as_u16())]
    Redirected { status: StatusCode, location: String },
    /// The server answered, but not with an upgrade.
    #[error("the server answered {status} instead of opening a WebSocket{}", quoted(reason))]
    Refused {
        status: StatusCode,
        /// The first printable characters of the body.
        reason: String,
    },
    /// What came is not an HTTP/1.x answer.
    #[error("the server does not speak HTTP/1.1: {what}")]
    NotHttp { what: String },
    /// The answer's head has no end.
    #[error("the head of the server's answer is longer than {limit} bytes")]
    HeadTooLong { limit: usize },
    /// 101, but to something else.
    #[error("the server switched protocols, but its {header} header does not say to WebSocket")]
    NotUpgraded { header: &'static str },
    /// Answered by something that does not know WebSocket, such as a cache.
    #[error("the server's Sec-WebSocket-Accept does not match the key that was sent; is a cache in between?")]
    BadAccept,
    /// The server speaks something else inside the WebSocket.
    #[error("the server chose subprotocol {got:?} instead of \"ws-tunnel\"")]
    WrongSubprotocol { got: String },
    /// The server uses an extension (compression) nobody asked for.
    #[error("the server turned on the extension {got:?}, which was not offered")]
    UnofferedExtension { got: String },
    /// The server hung up.
    #[error("the server closed the connection after {read} bytes of its answer to the WebSocket request")]
    Closed { read: usize },
    /// The transport failed.
    #[error("exchange the WebSocket handshake")]
    Io(#[source] io::Error),
}

fn quoted(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason:?}") }
}

/// Asks the server behind `io` for a `ws-tunnel`.
///
/// # Errors
/// See [`DialError`].
pub async fn dial<S>(mut io: S, handshake: Handshake<'_>) -> Result<WsStream<S>, DialError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let key = STANDARD.encode(rand::random::<[u8; 16]>());
    let request = request(&handshake, &key)?;
    // A server that refuses may close before it read everything: its answer is worth more than our write error.
    let written = async {
        io.write_all(&request).await?;
        io.flush().await
    }
    .await;

    let mut read = BytesMut::new();
    let answer = match read_answer(&mut io, &mut read).await {
        Err(DialError::Closed { read: 0 } | DialError::Io(_)) if written.is_err() => {
            return written.map_err(DialError::Io).and(Err(DialError::Closed { read: 0 }));
        }
        answer => answer?,
    };
    if answer.status != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(&mut io, answer, read).await);
    }
    check(&answer.headers, &key)?;
    Ok(WsStream::dialler(io, read))
}

fn request(handshake: &Handshake<'_>, key: &str) -> Result<Vec<u8>, DialError> {
    let path = if handshake.path_and_query.is_empty() { "/" } else { handshake.path_and_query };
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(DialError::BadRequest {
            what: "the path must begin with / and hold no blanks or control characters".to_owned(),
        });
    }
    let host = handshake.host;
    if host.is_empty() || !host.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(DialError::BadRequest { what: format!("the host {host:?} is not one of a URL") });
    }
    let user_agent = HeaderValue::from_str(handshake.user_agent)
        .map_err(|_| DialError::BadRequest { what: "the user agent is not a header value".to_owned() })?;

    let mut request = format!("GET {path} HTTP/1.1\r\n").into_bytes();
    put_header(&mut request, "Host", host.as_bytes());
    put_header(&mut request, "Connection", b"Upgrade");
    put_header(&mut request, "Upgrade", b"websocket");
    put_header(&mut request, "Sec-WebSocket-Version", b"13");
    put_header(&mut request, "Sec-WebSocket-Key", key.as_bytes());
    put_header(&mut request, "Sec-WebSocket-Protocol", SUBPROTOCOL.as_bytes());
    if !handshake.headers.contains_key(header::USER_AGENT) {
        put_header(&mut request, "User-Agent", user_agent.as_bytes());
    }
    for (name, value) in handshake.headers {
        if is_ours(name) {
            return Err(DialError::BadRequest {
                what: format!("the header {name} belongs to the handshake and cannot be set"),
            });
        }
        put_header(&mut request, name.as_str(), value.as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    Ok(request)
}

/// Headers that would break the handshake or the framing behind it.
fn is_ours(name: &HeaderName) -> bool {
    [header::HOST, header::CONNECTION, header::UPGRADE, header::CONTENT_LENGTH, header::TRANSFER_ENCODING]
        .contains(name)
        || name.as_str().starts_with("sec-websocket-")
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
}

/// Reads to the end of the first final head (101 is one here); `read` keeps what came behind it.
async fn read_answer<S>(io: &mut S, read: &mut BytesMut) -> Result<Answer, DialError>
where
    S: AsyncRead + Unpin,
{
    let mut allowed = MAX_HEAD;
    let mut searched = 0;
    loop {
        if let Some(end) = head_end(read, searched) {
            let answer = parse(&read[..end])?;
            read.advance(end);
            if !answer.status.is_informational() || answer.status == StatusCode::SWITCHING_PROTOCOLS {
                return Ok(answer);
            }
            allowed -= end;
            searched = 0;
            continue;
        }
        searched = read.len();
        let room = READ_SIZE.min(allowed - read.len());
        if room == 0 {
            return Err(DialError::HeadTooLong { limit: MAX_HEAD });
        }
        read.reserve(room);
        if io.read_buf(&mut (&mut *read).limit(room)).await.map_err(DialError::Io)? == 0 {
            return Err(DialError::Closed { read: read.len() });
        }
        let compared = read.len().min(7);
        if read[..compared] != b"HTTP/1."[..compared] {
            return Err(DialError::NotHttp { what: describe(read) });
        }
    }
}

fn parse(head: &[u8]) -> Result<Answer, DialError> {
    let not_http = |error: &dyn fmt::Display| DialError::NotHttp { what: error.to_string() };
    let mut lines = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut lines);
    if response.parse(head).map_err(|error| not_http(&error))?.is_partial() {
        return Err(not_http(&"the head is incomplete"));
    }
    let code = response.code.ok_or_else(|| not_http(&"the status line is incomplete"))?;
    let mut headers = HeaderMap::with_capacity(response.headers.len());
    for line in response.headers {
        let name = HeaderName::from_bytes(line.name.as_bytes()).map_err(|error| not_http(&error))?;
        let value = HeaderValue::from_bytes(line.value).map_err(|error| not_http(&error))?;
        headers.append(name, value);
    }
    Ok(Answer { status: StatusCode::from_u16(code).map_err(|error| not_http(&error))?, headers })
}

/// Names what answers instead of HTTP/1.1, by its first bytes.
fn describe(bytes: &[u8]) -> String {
    match bytes {
        [0x15 | 0x16, 0x03, ..] => "it speaks TLS; use wss://".to_owned(),
        [0, 0, _, 4, 0, ..] => "it speaks HTTP/2 only; use grpc:// or grpcs://".to_owned(),
        _ => format!("its answer begins with \"{}\"", bytes[..bytes.len().min(16)].escape_ascii()),
    }
}

fn check(headers: &HeaderMap, key: &str) -> Result<(), DialError> {
    if !has_token(headers, header::CONNECTION, "upgrade") {
        return Err(DialError::NotUpgraded { header: "Connection" });
    }
    if !has_token(headers, header::UPGRADE, "websocket") {
        return Err(DialError::NotUpgraded { header: "Upgrade" });
    }
    let accept = headers.get(header::SEC_WEBSOCKET_ACCEPT).map(|value| value.as_bytes().trim_ascii());
    if accept != Some(accept_key(key.as_bytes()).as_bytes()) {
        return Err(DialError::BadAccept);
    }
    // GitLab's agentk takes an answer without a subprotocol too; old proxies drop the header.
    if let Some(protocol) = headers.get(header::SEC_WEBSOCKET_PROTOCOL)
        && !protocol.as_bytes().trim_ascii().eq_ignore_ascii_case(SUBPROTOCOL.as_bytes())
    {
        return Err(DialError::WrongSubprotocol { got: printable(protocol.as_bytes()) });
    }
    if let Some(extension) = headers.get(header::SEC_WEBSOCKET_EXTENSIONS) {
        return Err(DialError::UnofferedExtension { got: printable(extension.as_bytes()) });
    }
    Ok(())
}

/// The error for a whole answer that is not an upgrade.
async fn refusal<S>(io: &mut S, answer: Answer, read: BytesMut) -> DialError
where
    S: AsyncRead + Unpin,
{
    let status = answer.status;
    if matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308)
        && let Some(location) = answer.headers.get(header::LOCATION)
    {
        return DialError::Redirected { status, location: printable(location.as_bytes()) };
    }
    let length =
        answer.headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let body = read_body(io, read, length.unwrap_or(MAX_BODY).min(MAX_BODY)).await;
    let text = if has_token(&answer.headers, header::TRANSFER_ENCODING, "chunked") {
        first_chunk(&body)
    } else {
        &body[..]
    };
    DialError::Refused { status, reason: printable(text) }
}

/// What of the body comes without much waiting: a server that keeps the connection open may never end it.
async fn read_body<S>(io: &mut S, mut body: BytesMut, wanted: usize) -> Bytes
where
    S: AsyncRead + Unpin,
{
    let more = async {
        while body.len() < wanted {
            body.reserve(READ_SIZE);
            match io.read_buf(&mut (&mut body).limit(READ_SIZE)).await {
                Ok(0) | Err(_) => break,
                Ok(_) => {}
            }
        }
    };
    // On elapse the part that came is as good.
    let _ = tokio::time::timeout(BODY_WAIT, more).await;
    body.truncate(wanted);
    body.freeze()
}

fn first_chunk(body: &[u8]) -> &[u8] {
    match httparse::parse_chunk_size(body) {
        Ok(httparse::Status::Complete((start, size))) => {
            let rest = &body[start..];
            &rest[..usize::try_from(size).unwrap_or(usize::MAX).min(rest.len())]
        }
        _ => body,
    }
}

/// One line of at most [`MAX_REASON`] characters: a page of another server must not write lines into our log.
fn printable(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    clean.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_REASON).collect()
}
