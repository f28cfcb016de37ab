//! What to do about each way in which the road to the broker fails: the one place of these texts. The log says them
//! after a failed dial or a refused token, `agentk check` as the fix of a step. It decides nothing.

use super::{
    address::Address,
    connection::{HTTP1, OpenError, TLS},
    dial::DialError,
    gate::Refusal,
    proxy::ProxyError,
    tls::TlsError,
};
use crate::error;
use std::borrow::Cow;

/// Why there is no connection to the broker.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// No byte stream.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// A byte stream, and no HTTP/2 on it.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl Failure {
    /// What to do about it, or an empty text.
    pub fn advice(&self) -> Cow<'static, str> {
        match self {
            Self::Dial(error) => dial(error),
            Self::Open(error) => open(error).into(),
        }
    }

    /// What happened, why, and what to do, as one line of a log.
    pub fn line(&self) -> String {
        let (line, advice) = (error::chain(self), self.advice());
        if advice.is_empty() { line } else { format!("{line}; {advice}") }
    }
}

/// For a name that does not become an address in time or at all.
pub const RESOLVE: &str = "check the host in --kas-address, or in HTTPS_PROXY where there is one, and the DNS of this \
                           pod or machine";
/// For a connection that does not come to be.
pub const REACH: &str = "can this pod or machine reach that port at all? check host and port, firewalls and \
                         NetworkPolicies, and whether a proxy is needed (HTTPS_PROXY)";
/// For a proxy that says nothing.
pub const PROXY_SILENT: &str = "is it a proxy at all? check host and port in HTTPS_PROXY";
/// For TLS that is not answered.
pub const TLS_SILENT: &str = "is it a TLS port? wss:// and grpcs:// are TLS, ws:// and grpc:// are not";
/// For a server that takes connections and says nothing.
pub const SILENT: &str = "is that the broker's port, and not one for TLS? does a proxy or load balancer on the way \
                          hold the answer back?";
/// For a server that does not know what every broker knows.
pub const NO_BROKER: &str = "something answers there that is no broker (kas): check host, port and path of \
                             --kas-address";
/// For a broker that is not there behind what answers for it.
pub const BROKER_AWAY: &str =
    "the broker, or what it needs (GitLab, Redis), is not there right now; its log says more";
/// For what only the broker can explain.
pub const BROKER_LOG: &str = "the broker's log says more";
/// For a detour at each dial.
pub const REDIRECTED: &str = "give the final address to --kas-address";

fn dial(error: &DialError) -> Cow<'static, str> {
    match error {
        DialError::Resolve { .. } => RESOLVE,
        DialError::Connect { .. } | DialError::ConnectSlow { .. } => REACH,
        DialError::Proxy(error) => proxy(error),
        DialError::Tls(error) => return tls(error),
        DialError::Silent { what: "CONNECT", .. } => PROXY_SILENT,
        DialError::Silent { .. } => SILENT,
        DialError::Upgrade { status, .. } => upgrade(*status),
        DialError::WebSocket { .. } => "is it the broker? check host, port and path of --kas-address",
        DialError::RedirectedTwice { .. } => REDIRECTED,
        DialError::Downgrade { .. } => "give an address to --kas-address that does not redirect out of TLS",
        DialError::BadRedirect { .. } => "is it the broker, and is the path of --kas-address right?",
    }
    .into()
}

fn proxy(error: &ProxyError) -> &'static str {
    match error {
        ProxyError::Kind { .. } => "name an HTTP proxy in HTTPS_PROXY, or the broker's host in NO_PROXY",
        ProxyError::Refused { status, .. } => match status.get(..3) {
            Some("407") => "the proxy wants a user name and password in HTTPS_PROXY",
            Some("502" | "503" | "504") => {
                "the proxy cannot reach the broker: check host and port with its operator"
            }
            _ => "allow the broker's host in the proxy, or name it in NO_PROXY",
        },
        ProxyError::NotHttp { .. } | ProxyError::Io { .. } => PROXY_SILENT,
    }
}

fn tls(error: &TlsError) -> Cow<'static, str> {
    match error {
        TlsError::Name(_) => "check --kas-tls-server-name".into(),
        TlsError::Explained { fix, .. } => fix.clone().into(),
        TlsError::Handshake { .. } | TlsError::Slow { .. } => TLS_SILENT.into(),
        TlsError::NotHttp2 { .. } => "is it a WebSocket address, wss:// instead of grpcs://?".into(),
    }
}

fn upgrade(status: u16) -> &'static str {
    match status {
        200 => "that is a web page: is the path of --kas-address right, and does a proxy drop the upgrade?",
        400 | 426 => "does a proxy on the way drop the Upgrade header?",
        401 | 403 | 407 => "something before the broker wants credentials: see --kas-header",
        404 => "is the path of --kas-address right, as in wss://gitlab.example.com/-/kubernetes-agent/?",
        429 => "too many connections from here",
        500..=599 => "the broker behind it is not there",
        _ => "is it the broker? check host, port and path of --kas-address",
    }
}

fn open(error: &OpenError) -> &'static str {
    let clear = |address: &Address| !address.scheme().websocket() && !address.scheme().tls();
    match error {
        OpenError::Ended { address, .. } if clear(address) => {
            "is it a TLS port (grpcs://), or one for WebSockets (ws://)?"
        }
        OpenError::OtherProtocol { protocol: HTTP1, .. } => {
            "is it a TLS port (grpcs://), one for WebSockets (ws://), or a web server?"
        }
        OpenError::OtherProtocol { protocol: TLS, .. } => "use grpcs:// or wss://",
        OpenError::OtherProtocol { .. } => "is it the broker? check host and port of --kas-address",
        OpenError::Ended { .. } => "the broker's log may say why; is it draining, or not the broker at all?",
        OpenError::Silent { .. } => SILENT,
    }
}

impl Refusal {
    /// What to do about it.
    pub fn advice(self) -> &'static str {
        match self {
            Self::Unauthenticated => {
                "the broker does not know the token: is it complete, not revoked, of this server?"
            }
            Self::Forbidden => {
                "the broker knows the token but does not admit it: is the agent or its project blocked?"
            }
            Self::NotFound => {
                "the agent this token belongs to does not exist any more: register it and replace the token"
            }
            Self::Limited => "the token's limit is used up: are other agents using the same token?",
            Self::Later => "the broker cannot serve right now and has said when to come again",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    #[test]
    fn a_line_is_what_happened_and_then_what_to_do() {
        let kas = || Address::parse("ws://kas/").unwrap();
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let table: [(Failure, &str, &str); 6] = [
            (
                DialError::Resolve { host: "kas".into(), source: refused() }.into(),
                "cannot resolve kas: ",
                RESOLVE,
            ),
            (
                DialError::Connect { target: "kas:80".into(), source: refused() }.into(),
                "cannot connect to kas:80",
                REACH,
            ),
            (
                DialError::Upgrade { address: kas(), status: 404, reason: " (nope)".into() }.into(),
                "ws://kas/ answered the WebSocket upgrade with HTTP 404 (nope); ",
                "wss://gitlab.example.com/-/kubernetes-agent/",
            ),
            (
                DialError::Tls(TlsError::Explained {
                    host: "kas:443".into(),
                    why: "no".into(),
                    fix: "do".into(),
                })
                .into(),
                "TLS to kas:443 failed: no; do",
                "do",
            ),
            (
                DialError::Tls(TlsError::Explained {
                    host: "kas:443".into(),
                    why: "no".into(),
                    fix: "".into(),
                })
                .into(),
                "TLS to kas:443 failed: no",
                "",
            ),
            (
                OpenError::OtherProtocol { address: kas(), protocol: TLS }.into(),
                "speaks TLS, not HTTP/2",
                "wss://",
            ),
        ];
        for (failure, happened, fix) in table {
            let line = failure.line();
            assert!(line.contains(happened) && line.ends_with(failure.advice().as_ref()), "{line}");
            assert!(failure.advice().contains(fix), "{line}");
            assert!(!line.ends_with("; "), "{line}");
        }
    }
}
