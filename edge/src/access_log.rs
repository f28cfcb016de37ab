//! One line per finished stream: who, what, how it ended and whose fault.
//!
//! After the response, from `proxy`. Never a token, a path of the Kubernetes API or a query.

use crate::decide::Route;
use postern_wire::token::TokenKey;
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
    /// What failed, without the caller's data.
    pub error: Option<&'static str>,
}

/// Writes the line; `quiet` for streams that only waited, of which agents open thousands.
pub fn write(line: &Line<'_>, quiet: bool) {
    macro_rules! line {
        ($level:ident) => {
            tracing::$level!(
                target: "access",
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
