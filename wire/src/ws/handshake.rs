//! The upgrade from HTTP/1.1 to `ws-tunnel`, both ends: which requests and answers are taken, and what is said to others.
//!
//! The listener's half works on a [`Head`] that was sniffed and does no IO. The dialler's half is [`dial`]. Tokens are
//! not seen here (they travel inside the tunnel), the path of the request is not looked at, compression is declined.

mod dial;

use base64::{Engine, engine::general_purpose::STANDARD};
use http::{HeaderMap, Method, StatusCode, Version, header};
use sha1::{Digest, Sha1};

use super::frame::{self, Opcode};
use crate::sniff::Head;
pub use dial::{DialError, Handshake, dial};

/// The subprotocol both ends name.
pub const SUBPROTOCOL: &str = "ws-tunnel";

const WRONG_SUBPROTOCOL: &str = "Expecting \"ws-tunnel\" subprotocol, got \"\"";

/// The request is taken: write `response`, then speak through [`super::WsStream::listener`].
#[derive(Debug)]
pub struct Accepted {
    pub response: Vec<u8>,
}

/// The request is not taken: write [`Refused::response`], then close.
#[derive(Debug, thiserror::Error)]
#[error("WebSocket upgrade refused ({}): {reason}", status.as_u16())]
pub struct Refused {
    /// 101 when the refusal is a WebSocket Close.
    pub status: StatusCode,
    /// Headers the answer must carry beside those of any answer.
    pub headers: Vec<(&'static str, &'static str)>,
    pub reason: &'static str,
    /// What to send instead of an HTTP answer.
    upgraded: Option<Vec<u8>>,
}

impl Refused {
    fn new(status: StatusCode, reason: &'static str) -> Self {
        Self { status, headers: Vec::new(), reason, upgraded: None }
    }

    /// All bytes to write before closing.
    pub fn response(&self) -> Vec<u8> {
        if let Some(upgraded) = &self.upgraded {
            return upgraded.clone();
        }
        let body = format!("{}\n", self.reason);
        let mut answer = status_line(self.status);
        for (name, value) in &self.headers {
            put_header(&mut answer, name, value.as_bytes());
        }
        if self.headers.iter().all(|(name, _)| *name != "Connection") {
            put_header(&mut answer, "Connection", b"close");
        }
        put_header(&mut answer, "Content-Type", b"text/plain; charset=utf-8");
        put_header(&mut answer, "Content-Length", body.len().to_string().as_bytes());
        answer.extend_from_slice(b"\r\n");
        answer.extend_from_slice(body.as_bytes());
        answer
    }
}

/// Does this request ask for a `ws-tunnel`? Kubernetes clients upgrade to WebSockets of other kinds.
pub fn offers_tunnel(head: &Head) -> bool {
    head.has_token(header::UPGRADE, "websocket")
        && head.has_token(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL)
}

/// Checks an upgrade request, in the order and with the answers of GitLab's kas. `extra` headers go into the `101`.
///
/// # Errors
/// [`Refused`], with the whole answer.
pub fn accept(head: &Head, extra: &HeaderMap) -> Result<Accepted, Refused> {
    if head.version != Version::HTTP_11 {
        return Err(not_an_upgrade("WebSocket needs HTTP/1.1"));
    }
    if !head.has_token(header::CONNECTION, "upgrade") {
        return Err(not_an_upgrade("not a WebSocket upgrade: Connection does not name Upgrade"));
    }
    if !head.has_token(header::UPGRADE, "websocket") {
        return Err(not_an_upgrade("not a WebSocket upgrade: Upgrade does not name websocket"));
    }
    if head.method != Method::GET {
        return Err(Refused {
            headers: vec![("Allow", "GET")],
            ..Refused::new(StatusCode::METHOD_NOT_ALLOWED, "a WebSocket upgrade must be a GET")
        });
    }
    if head.headers.get(header::SEC_WEBSOCKET_VERSION).map(|version| version.as_bytes()) != Some(b"13") {
        return Err(Refused {
            headers: vec![("Sec-WebSocket-Version", "13")],
            ..Refused::new(StatusCode::BAD_REQUEST, "Sec-WebSocket-Version must be 13")
        });
    }
    let Some(key) = head.headers.get(header::SEC_WEBSOCKET_KEY).filter(|key| !key.is_empty()) else {
        return Err(Refused::new(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing"));
    };
    if !origin_fits(head) {
        return Err(Refused::new(StatusCode::FORBIDDEN, "Origin is another host than Host"));
    }

    let mut response = status_line(StatusCode::SWITCHING_PROTOCOLS);
    put_header(&mut response, "Upgrade", b"websocket");
    put_header(&mut response, "Connection", b"Upgrade");
    put_header(&mut response, "Sec-WebSocket-Accept", accept_key(key.as_bytes()).as_bytes());
    let offered = head.has_token(header::SEC_WEBSOCKET_PROTOCOL, SUBPROTOCOL);
    if offered {
        put_header(&mut response, "Sec-WebSocket-Protocol", SUBPROTOCOL.as_bytes());
    }
    for (name, value) in extra {
        put_header(&mut response, name.as_str(), value.as_bytes());
    }
    response.extend_from_slice(b"\r\n");
    if offered {
        return Ok(Accepted { response });
    }
    // kas says this inside the WebSocket, where a WebSocket library reports it.
    let length = 2 + WRONG_SUBPROTOCOL.len();
    let (close, size) = frame::header(Opcode::Close, length, None);
    response.extend_from_slice(&close[..size]);
    response.extend_from_slice(&frame::PROTOCOL_ERROR.to_be_bytes());
    response.extend_from_slice(WRONG_SUBPROTOCOL.as_bytes());
    Err(Refused {
        upgraded: Some(response),
        ..Refused::new(StatusCode::SWITCHING_PROTOCOLS, "subprotocol ws-tunnel is not offered")
    })
}

fn not_an_upgrade(reason: &'static str) -> Refused {
    Refused {
        headers: vec![("Connection", "Upgrade, close"), ("Upgrade", "websocket")],
        ..Refused::new(StatusCode::UPGRADE_REQUIRED, reason)
    }
}

/// Browsers send an Origin; a page of another site must not open a tunnel. Agents send none.
fn origin_fits(head: &Head) -> bool {
    let Some(origin) = head.headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else {
        return true;
    };
    let (Ok(origin), Some(host)) = (origin.to_str(), head.host()) else { return false };
    let Some((_, rest)) = origin.split_once("://") else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let origin_host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    origin_host.eq_ignore_ascii_case(host)
}

/// The proof that a listener understood the key (RFC 6455, 4.2.2).
fn accept_key(key: &[u8]) -> String {
    let mut hash = Sha1::new();
    hash.update(key);
    hash.update(b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    STANDARD.encode(hash.finalize())
}

fn status_line(status: StatusCode) -> Vec<u8> {
    format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default()).into_bytes()
}

fn put_header(head: &mut Vec<u8>, name: &str, value: &[u8]) {
    head.extend_from_slice(name.as_bytes());
    head.extend_from_slice(b": ");
    head.extend_from_slice(value);
    head.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests;
