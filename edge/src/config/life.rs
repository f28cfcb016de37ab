//! `timeouts`, `drain` and `websocket`: how long things may take, and how connections end.

use super::Problems;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A slow client on the other side of the world needs three round trips.
const DEFAULT_HANDSHAKE: Duration = Duration::from_secs(10);
/// Total time for a request head, however slowly its bytes arrive.
const DEFAULT_HEAD: Duration = Duration::from_secs(15);
/// How long an HTTP/1.1 connection may wait for its next request. Longer than the 60 s of usual load balancers.
const DEFAULT_KEEPALIVE: Duration = Duration::from_secs(75);
/// An HTTP/2 connection on which no stream is open is closed after this; agents always have one open.
const DEFAULT_IDLE: Duration = Duration::from_secs(600);
/// A broker is near; one lost packet of the handshake is sent again after a second.
const DEFAULT_CONNECT: Duration = Duration::from_secs(2);
/// Half of the 60 s after which load balancers usually drop a silent connection.
const DEFAULT_PING: Duration = Duration::from_secs(30);
const DEFAULT_GRACE: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Timeouts {
    pub handshake: Duration,
    pub head: Duration,
    pub keepalive: Duration,
    pub idle: Duration,
    pub connect: Duration,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drain {
    /// Not ready, but still accepting: the time load balancers need to notice.
    pub pre: Duration,
    /// How long running streams may finish afterwards.
    pub grace: Duration,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileTimeouts {
    handshake: Option<String>,
    head: Option<String>,
    keepalive: Option<String>,
    idle: Option<String>,
    upstream_connect: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileDrain {
    pre: Option<String>,
    grace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileWebSocket {
    ping: Option<String>,
}

impl FileTimeouts {
    pub(super) fn meant(self, found: &mut Problems) -> Timeouts {
        let mut time = |at: &str, text: Option<String>, default| {
            let at = format!("timeouts.{at}");
            let value = found.duration(&at, text, default);
            if value.is_zero() {
                found.add(at, "is zero, so nothing could ever be in time");
            }
            value
        };
        Timeouts {
            handshake: time("handshake", self.handshake, DEFAULT_HANDSHAKE),
            head: time("head", self.head, DEFAULT_HEAD),
            keepalive: time("keepalive", self.keepalive, DEFAULT_KEEPALIVE),
            idle: time("idle", self.idle, DEFAULT_IDLE),
            connect: time("upstream_connect", self.upstream_connect, DEFAULT_CONNECT),
        }
    }
}

impl FileDrain {
    pub(super) fn meant(self, found: &mut Problems) -> Drain {
        Drain {
            pre: found.duration("drain.pre", self.pre, Duration::ZERO),
            grace: found.duration("drain.grace", self.grace, DEFAULT_GRACE),
        }
    }
}

impl FileWebSocket {
    /// How often to ping; `None`: never.
    pub(super) fn meant(self, found: &mut Problems) -> Option<Duration> {
        let ping = found.duration("websocket.ping", self.ping, DEFAULT_PING);
        (!ping.is_zero()).then_some(ping)
    }
}
