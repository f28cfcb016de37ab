//! What a request's failure was, from pingora's error: what to tell the caller, what to log, whether it ever began.
//!
//! Called by the phases in `proxy`; decides nothing and answers nobody.

use super::{Request, TOO_LARGE};
use crate::reply::Reason;
use crate::upstream::Upstreams;
use pingora::{Error, ErrorSource, ErrorType};

/// What to tell the caller; `None` when the caller is gone.
pub(super) fn reason(error: &Error, request: &Request, upstreams: &Upstreams) -> Option<Reason> {
    let broker = || format!("broker {}", upstreams.of(request.route()).addresses());
    match error.esource() {
        ErrorSource::Upstream if is_connect(error.etype()) && upstreams.of(request.route()).is_full() => {
            Some(Reason::Busy { upstream: broker() })
        }
        ErrorSource::Upstream if is_connect(error.etype()) => {
            Some(Reason::Unreachable { upstream: broker(), what: what(error) })
        }
        ErrorSource::Upstream => {
            let address = request.upstream.map_or_else(String::new, |address| address.to_string());
            let upstream = format!("broker {address}");
            match &request.load {
                Some(load) if load.is_silent() => Some(Reason::Silent { upstream }),
                _ => Some(Reason::Broken { upstream, what: what(error) }),
            }
        }
        ErrorSource::Downstream => match error.etype() {
            // A body in chunks that are none, which pingora names only so.
            ErrorType::InvalidHTTPHeader | ErrorType::Custom("InvalidChunk") => Some(Reason::Malformed),
            kind if *kind == TOO_LARGE => Some(Reason::TooLarge { most: request.body.1?.get() }),
            _ => None,
        },
        ErrorSource::Internal | ErrorSource::Unset => Some(Reason::Internal),
    }
}

/// Whether the request's head could not be written whole, in the words of pingora, which has no other way to say it.
pub(super) fn is_about_head(error: &Error) -> bool {
    error.context.as_ref().is_some_and(|context| context.as_str().contains("request header"))
}

fn is_connect(kind: &ErrorType) -> bool {
    matches!(
        kind,
        ErrorType::ConnectTimedout
            | ErrorType::ConnectRefused
            | ErrorType::ConnectNoRoute
            | ErrorType::ConnectError
            | ErrorType::SocketError
            | ErrorType::BindError
            | ErrorType::HandshakeError
            | ErrorType::TLSHandshakeFailure
            | ErrorType::TLSHandshakeTimedout
            | ErrorType::InvalidCert
    )
}

/// The kind of an error in words. pingora's own text may quote the request.
pub(super) fn what(error: &Error) -> &'static str {
    match error.etype() {
        ErrorType::ConnectTimedout => "connect timed out",
        ErrorType::ConnectRefused => "connection refused",
        ErrorType::ConnectNoRoute => "no route to host",
        ErrorType::ConnectError | ErrorType::SocketError | ErrorType::BindError => "connect failed",
        ErrorType::HandshakeError => "HTTP/2 handshake failed",
        ErrorType::TLSHandshakeFailure | ErrorType::TLSHandshakeTimedout | ErrorType::InvalidCert => {
            "TLS handshake failed"
        }
        ErrorType::ReadError => "read failed",
        ErrorType::WriteError => "write failed",
        ErrorType::ConnectionClosed => "connection closed",
        ErrorType::H1Error => "HTTP/1.1 error",
        ErrorType::H2Error | ErrorType::InvalidH2 => "HTTP/2 error",
        ErrorType::H2Downgrade => "HTTP/2 refused",
        ErrorType::InvalidHTTPHeader => "invalid head",
        ErrorType::Custom("InvalidChunk") => "invalid chunk",
        ErrorType::HTTPStatus(413) => "body too large",
        _ => "failed",
    }
}
