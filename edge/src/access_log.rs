//! One line per finished stream: who, what, how it ended and whose fault; the same facts as numbers and as a span.
//!
//! After the response, from `relay` and `proxy`. Never a token, a path of the Kubernetes API or a query.

use crate::decide::Route;
use crate::limits::Reported;
use crate::observability::connections::Entry;
use crate::proxy::Shared;
use crate::trace::Ids;
use postern_certs::mutual::ClientCertificate;
use postern_wire::token::TokenKey;
use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

/// Whose doing it is that a stream did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    Downstream,
    Upstream,
    Internal,
}

impl Fault {
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
            Self::Internal => "internal",
        }
    }
}

/// What there is to say about one stream.
#[derive(Debug)]
pub struct Line<'a> {
    /// What it came on: its id, listener, kind and TLS version.
    pub connection: Option<&'a Entry>,
    /// What the client showed in its TLS handshake.
    pub certificate: Option<&'a ClientCertificate>,
    pub ids: Option<&'a Ids>,
    pub client: Option<SocketAddr>,
    pub route: Route,
    /// The HTTP method, or the gRPC method's path.
    pub method: &'a str,
    pub token: Option<TokenKey>,
    pub upstream: Option<SocketAddr>,
    /// 0: the stream ended before a response.
    pub status: u16,
    pub grpc_status: Option<u16>,
    pub bytes_in: usize,
    pub bytes_out: usize,
    pub duration: Duration,
    pub fault: Fault,
    /// Why the edge answered itself.
    pub refused: Option<&'static str>,
    /// The policy that says so, as `LimitPolicy/ours`.
    pub rule: Option<&'a str>,
    /// Policies of `mode: report` that would have refused it.
    pub reported: &'a [Reported],
    /// What failed, without the caller's data.
    pub error: Option<&'static str>,
}

/// One after the other.
struct All<'a>(&'a [Reported]);

impl fmt::Display for All<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, reported)| {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{reported}")
        })
    }
}

/// Accounts for a stream that is over: its line, its numbers, its span.
pub fn finish(shared: &Shared, line: &Line<'_>, quiet: bool) {
    write(line, quiet);
    shared.metrics.finished(line);
    if let Some(connection) = line.connection {
        connection.note_finished();
    }
    if let Some(tracing) = &shared.tracing {
        tracing.finished(line);
    }
}

/// Writes the line; `quiet` for streams that only waited, of which agents open thousands.
pub fn write(line: &Line<'_>, quiet: bool) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "access",
                request_id = line.ids.map(|ids| tracing::field::display(ids.request())),
                trace_id = line.ids.and_then(Ids::trace).map(tracing::field::display),
                connection = line.connection.map(|connection| connection.id),
                listener = line.connection.and_then(|connection| connection.listener).map(tracing::field::display),
                transport = line.connection.map(|connection| connection.kind()),
                tls = line.connection.and_then(Entry::tls),
                certificate = line.certificate.map(|shown| shown.subject.as_str()),
                certificate_serial = line.certificate.map(|shown| shown.serial.as_str()),
                client = line.client.map(tracing::field::display),
                route = line.route.name(),
                method = line.method,
                token = line.token.map(tracing::field::display),
                upstream = line.upstream.map(tracing::field::display),
                status = line.status,
                grpc_status = line.grpc_status,
                bytes_in = line.bytes_in,
                bytes_out = line.bytes_out,
                duration_ms = line.duration.as_millis() as u64,
                fault = line.fault.name(),
                refused = line.refused,
                rule = line.rule,
                reported = (!line.reported.is_empty()).then(|| tracing::field::display(All(line.reported))),
                error = line.error,
                "stream finished"
            )
        };
    }
    if quiet {
        line!(debug);
    } else {
        line!(info);
    }
}
