//! Which WebSocket upgrades end here, and how.
//!
//! After the sniff. A `ws-tunnel` becomes a byte stream with HTTP/2 in it; an agent that offers something else is told
//! so; the WebSockets of Kubernetes clients (exec, attach, port-forward) go on to a broker untouched.

use http::header::{AUTHORIZATION, COOKIE, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use postern_wire::authority::AuthorityFilter;
use postern_wire::sniff::Head;
use postern_wire::ws::{self, WsStream};
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

/// What a request that was read in full asks for.
#[derive(Debug, PartialEq)]
pub enum Asked {
    /// A `ws-tunnel`, or what can only be meant as one.
    Tunnel,
    /// Anything else that HTTP/1.1 can say.
    Http,
}

/// An agent upgrades without credentials: its token travels inside. A Kubernetes client always shows some.
pub fn asked(head: &Head) -> Asked {
    if ws::offers_tunnel(head) {
        return Asked::Tunnel;
    }
    let credentials = head.headers.contains_key(AUTHORIZATION)
        || head.headers.contains_key(COOKIE)
        // `base64url.bearer.authorization.k8s.io.<token>` of browsers, `v5.channel.k8s.io` of kubectl.
        || head
            .headers
            .get_all(SEC_WEBSOCKET_PROTOCOL)
            .iter()
            .any(|value| value.to_str().is_ok_and(|text| text.contains("k8s.io")));
    if head.has_token(UPGRADE, "websocket") && !credentials { Asked::Tunnel } else { Asked::Http }
}

/// A tunnel as an HTTP/2 server reads it.
pub type Tunnel<S> = AuthorityFilter<WsStream<S>>;

/// Answers the upgrade. `behind` is what was read after the head.
pub async fn accept<S>(
    mut io: S,
    head: &Head,
    behind: bytes::Bytes,
    ping: Option<Duration>,
) -> io::Result<Option<Tunnel<S>>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match ws::accept(head, &http::HeaderMap::new()) {
        Ok(accepted) => {
            io.write_all(&accepted.response).await?;
            io.flush().await?;
            Ok(Some(AuthorityFilter::new(WsStream::listener(io, behind, ping))))
        }
        Err(refused) => {
            tracing::debug!(status = refused.status.as_u16(), reason = refused.reason, "WebSocket refused");
            io.write_all(&refused.response()).await?;
            io.shutdown().await?;
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use postern_wire::sniff::{Limits, Opening, sniff};

    async fn asks(lines: &str) -> Asked {
        let text = format!("GET /x HTTP/1.1\r\nHost: h\r\n{lines}\r\n");
        match sniff(&mut text.as_bytes(), Limits::default()).await.unwrap() {
            Opening::Http1 { head, .. } => asked(&head),
            Opening::Http2 { .. } => panic!("not HTTP/2"),
        }
    }

    const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\n";

    #[tokio::test]
    async fn tunnels_are_told_from_the_websockets_of_kubernetes_clients() {
        for (lines, expected) in [
            ("Sec-WebSocket-Protocol: ws-tunnel\r\n", Asked::Tunnel),
            ("Sec-WebSocket-Protocol: ws-tunnel\r\nAuthorization: Bearer x\r\n", Asked::Tunnel),
            ("", Asked::Tunnel),
            ("Sec-WebSocket-Protocol: chat\r\n", Asked::Tunnel),
            ("Sec-WebSocket-Protocol: v5.channel.k8s.io\r\n", Asked::Http),
            (
                "Sec-WebSocket-Protocol: base64url.bearer.authorization.k8s.io.eA, v4.channel.k8s.io\r\n",
                Asked::Http,
            ),
            ("Sec-WebSocket-Protocol: chat\r\nAuthorization: Bearer ci:1:x\r\n", Asked::Http),
            ("Cookie: session=x\r\n", Asked::Http),
        ] {
            assert_eq!(asks(&format!("{UPGRADE}{lines}")).await, expected, "{lines}");
        }
        assert_eq!(asks("").await, Asked::Http);
        assert_eq!(asks("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n").await, Asked::Http);
    }
}
