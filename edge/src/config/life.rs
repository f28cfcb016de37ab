//! `timeouts`, `connections`, `drain`, `handover` and `websocket`: how long things may take, and how connections end.

use super::Problems;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
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
/// 20,000 agents in 40 s: what a successor with one core takes in without a queue.
const DEFAULT_PER_SECOND: u32 = 500;
/// As the value, not the moment, of a later kas' `max_connection_age`: agents spread anew over edges that were added.
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(2 * 3600);
const DEFAULT_JITTER_PERCENT: u8 = 10;
/// Nothing presses when a connection is old, and an `exec` in it may be long.
const DEFAULT_AGE_GRACE: Duration = Duration::from_secs(3600);

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
    /// How many connections are told to leave in a second; 0: all at once.
    pub connections_per_second: u32,
}

/// How long a connection may last.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Connections {
    /// `None`: for ever.
    pub max_age: Option<Duration>,
    /// Up to this much of the age is left out, at random.
    pub jitter_percent: u8,
    /// How long running streams may finish after a connection was told that it is old.
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
    connections_per_second: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileConnections {
    max_age: Option<String>,
    max_age_jitter_percent: Option<u8>,
    grace: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileHandover {
    socket: Option<PathBuf>,
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
            connections_per_second: self.connections_per_second.unwrap_or(DEFAULT_PER_SECOND),
        }
    }
}

impl FileConnections {
    pub(super) fn meant(self, found: &mut Problems) -> Connections {
        let max_age = found.duration("connections.max_age", self.max_age, DEFAULT_MAX_AGE);
        let jitter_percent = self.max_age_jitter_percent.unwrap_or(DEFAULT_JITTER_PERCENT);
        if jitter_percent > 100 {
            found.add(
                "connections.max_age_jitter_percent",
                format!("{jitter_percent} is not between 0 and 100"),
            );
        }
        Connections {
            max_age: (!max_age.is_zero()).then_some(max_age),
            jitter_percent,
            grace: found.duration("connections.grace", self.grace, DEFAULT_AGE_GRACE),
        }
    }
}

impl FileHandover {
    /// Where a successor asks for the listening sockets; `None`: nowhere.
    pub(super) fn meant(self, base: &Path, found: &mut Problems) -> Option<PathBuf> {
        let socket = self.socket.map(|socket| base.join(socket))?;
        // The kernel's limit, and room for the suffix that the socket has while it is made.
        if socket.as_os_str().len() > 90 {
            found.add(
                "handover.socket",
                "is longer than the 90 bytes that a Unix socket's path may have here",
            );
        }
        Some(socket)
    }
}

impl FileWebSocket {
    /// How often to ping; `None`: never.
    pub(super) fn meant(self, found: &mut Problems) -> Option<Duration> {
        let ping = found.duration("websocket.ping", self.ping, DEFAULT_PING);
        (!ping.is_zero()).then_some(ping)
    }
}
