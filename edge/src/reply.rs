//! Answers that the edge gives itself, in the caller's language: gRPC trailers or a Kubernetes `Status`.
//!
//! Beside `relay`, `proxy` and `accept`, which decide when. Never says more about our side than an operator would tell a stranger.

use crate::decide::Route;
use crate::limits::Limit;
use crate::listen::page::Page;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode};
use pingora::http::ResponseHeader;
use pingora::proxy::Session;
use postern_wire::metadata::RETRY_PUSHBACK;
use postern_wire::proto::google::rpc::Status;
use prost::Message;
use prost_types::Any;
use serde_json::json;
use std::time::Duration;

/// On a 401 that is a broker's own word, and not that of the cluster behind it.
pub const UNAUTHORIZED: &str = "gitlab-unauthorized";

/// A policy that denies an address, as it stands in logs and metrics.
pub const DENIED_BY_POLICY: &str = "access_policy";

/// Why the edge answers instead of a broker.
#[derive(Debug, Clone, PartialEq)]
pub enum Reason {
    /// gRPC without a token.
    NoToken,
    /// The client's address is not one that this listener serves.
    Denied,
    /// Nor is it one that this policy lets in.
    DeniedByPolicy { rule: Box<str> },
    /// A limit is reached; the policy that set it, if one did.
    TooMany { limit: Limit, retry_after: Duration, rule: Option<Box<str>> },
    /// A broker said a moment ago that the token is none.
    FailedToken,
    /// A limit of the fleet cannot be counted, and whoever configured it wants nobody admitted then.
    RedisAway { retry_after: Duration },
    /// The request's body is larger than `limits.body_bytes`.
    TooLarge { most: u64 },
    /// gRPC over HTTP/1.1, which has no trailers to carry a status.
    NeedsHttp2,
    /// This edge has no Kubernetes API upstream.
    NotServed,
    /// No broker could be reached.
    Unreachable { upstream: String, what: &'static str },
    /// Every broker has all the streams that it may have.
    Busy { upstream: String },
    /// The broker that has the request answers nothing, nor does its host.
    Silent { upstream: String },
    /// A broker took the request and then failed it.
    Broken { upstream: String, what: &'static str },
    /// The request itself cannot be forwarded.
    Malformed,
    /// A fault of the edge.
    Internal,
}

impl Reason {
    /// As it stands in logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::NoToken => "no_token",
            Self::Denied => "access",
            Self::DeniedByPolicy { .. } => DENIED_BY_POLICY,
            Self::TooMany { limit, .. } => limit.name(),
            Self::FailedToken => "failed_token",
            Self::RedisAway { .. } => "redis_away",
            Self::TooLarge { .. } => "body_bytes",
            Self::NeedsHttp2 => "needs_http2",
            Self::NotServed => "not_served",
            Self::Unreachable { .. } => "upstream_unreachable",
            Self::Busy { .. } => "upstream_busy",
            Self::Silent { .. } => "upstream_silent",
            Self::Broken { .. } => "upstream_broken",
            Self::Malformed => "malformed",
            Self::Internal => "internal",
        }
    }

    /// The status in HTTP.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::NoToken | Self::FailedToken => StatusCode::UNAUTHORIZED,
            Self::Denied | Self::DeniedByPolicy { .. } => StatusCode::FORBIDDEN,
            Self::TooMany { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::TooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::NeedsHttp2 => StatusCode::UPGRADE_REQUIRED,
            Self::NotServed => StatusCode::NOT_FOUND,
            Self::Unreachable { .. } | Self::Busy { .. } | Self::RedisAway { .. } => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Silent { .. } => StatusCode::GATEWAY_TIMEOUT,
            Self::Broken { .. } => StatusCode::BAD_GATEWAY,
            Self::Malformed => StatusCode::BAD_REQUEST,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// The status in gRPC, by its number.
    pub fn code(&self) -> u8 {
        match self {
            Self::NoToken | Self::FailedToken => 16,
            Self::Denied | Self::DeniedByPolicy { .. } => 7,
            Self::TooMany { .. } | Self::TooLarge { .. } => 8,
            Self::NeedsHttp2 | Self::NotServed => 12,
            Self::Unreachable { .. }
            | Self::Busy { .. }
            | Self::Silent { .. }
            | Self::Broken { .. }
            | Self::RedisAway { .. } => 14,
            Self::Malformed | Self::Internal => 13,
        }
    }

    /// For people; the first sentence of a gRPC message or `Status`.
    pub fn message(&self, route: Route) -> String {
        match self {
            Self::NoToken => "no agent token: send it as `authorization: Bearer <token>`".to_owned(),
            Self::Denied | Self::DeniedByPolicy { .. } => "connections from your address are not served here".to_owned(),
            // Agents of every generation know this text from kas.
            Self::TooMany { limit: Limit::TokenRate, .. } if route == Route::Agents => {
                "new connection rate limit exhausted for this agent, try again later".to_owned()
            }
            Self::TooMany { limit, retry_after, .. } => {
                format!("too many {}, try again in {} s", limit.of_what(), seconds(*retry_after))
            }
            Self::FailedToken => {
                "unauthenticated: this token was refused a moment ago; the broker is asked again in some seconds"
                    .to_owned()
            }
            Self::RedisAway { .. } => {
                "the edge cannot count this request: its Redis is away, and limits.redis_lost is deny".to_owned()
            }
            Self::TooLarge { most } => format!("the request's body is larger than {most} bytes"),
            Self::NeedsHttp2 => "gRPC needs HTTP/2; a proxy on the way turned it into HTTP/1.1".to_owned(),
            Self::NotServed => {
                "this edge does not serve the Kubernetes API: upstreams.kubernetes_api is not configured"
                    .to_owned()
            }
            Self::Unreachable { upstream, what } => format!(
                "{what}: the edge cannot reach {upstream}; check that the broker runs and that upstreams.{} of the \
                 edge names its listener",
                route.name()
            ),
            Self::Busy { upstream } => format!(
                "{upstream} may take no more streams (upstreams.{}.max_streams of the edge); try again later, or run \
                 more brokers",
                route.name()
            ),
            Self::Silent { upstream } => {
                format!(
                    "{upstream} took the request and then fell silent; whether it was carried out is not known"
                )
            }
            Self::Broken { upstream, what } => {
                format!("{what}: the connection to {upstream} failed; see the log of that broker")
            }
            Self::Malformed => "the request cannot be forwarded: its head or body is malformed".to_owned(),
            Self::Internal => "internal error of the edge".to_owned(),
        }
    }
}

impl Reason {
    /// The policy that says so, as `LimitPolicy/ours`. Of a body that is too large, `limits` knows it.
    pub fn rule(&self) -> Option<&str> {
        match self {
            Self::TooMany { rule, .. } => rule.as_deref(),
            Self::DeniedByPolicy { rule } => Some(rule),
            _ => None,
        }
    }

    /// When to come again, where that is known.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::TooMany { retry_after, .. } | Self::RedisAway { retry_after } => Some(*retry_after),
            _ => None,
        }
    }
}

impl Limit {
    /// As it stands in logs and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::TokenRate => "rate_limit",
            Self::TokenStreams => "streams_per_token",
            Self::IpRate => "rate_limit_ip",
            Self::IpStreams => "streams_per_ip",
            Self::IpConnections => "connections_per_ip",
            Self::IpConnectionRate => "connection_rate_ip",
            Self::IpPenance => "flood_wait",
            Self::AgentRate => "rate_limit_agent",
            Self::AgentStreams => "streams_per_agent",
            Self::FailedTokens => "failed_tokens",
        }
    }

    fn of_what(self) -> &'static str {
        match self {
            Self::TokenRate => "requests with this token",
            Self::TokenStreams => "requests with this token at the same time",
            Self::IpRate => "requests from your address",
            Self::IpStreams => "requests from your address at the same time",
            Self::IpConnections | Self::IpConnectionRate | Self::IpPenance => "connections from your address",
            Self::AgentRate => "requests to this agent",
            Self::AgentStreams => "requests to this agent at the same time",
            Self::FailedTokens => "tokens from your address that nobody knows",
        }
    }
}

fn seconds(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}

/// Answers an HTTP request whose response has not begun, with a Kubernetes `Status`.
pub async fn refuse(session: &mut Session, reason: &Reason) -> pingora::Result<()> {
    let status = reason.status();
    let body = status_json(status, &reason.message(Route::KubernetesApi));
    let mut header = ResponseHeader::build(status, Some(4))?;
    header.insert_header(http::header::CONTENT_TYPE, "application/json")?;
    header.insert_header(http::header::CONTENT_LENGTH, body.len())?;
    header.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    if let Some(after) = reason.retry_after() {
        header.insert_header(http::header::RETRY_AFTER, seconds(after))?;
    }
    if *reason == Reason::FailedToken {
        // As the broker itself says it.
        header.insert_header(UNAUTHORIZED, "true")?;
    }
    session.write_response_header(Box::new(header), false).await?;
    session.write_response_body(Some(body), true).await
}

/// The whole of an HTTP/1.1 answer, for a connection that ends with it.
pub fn plain(reason: &Reason) -> Vec<u8> {
    let (status, body) = (reason.status(), reason.message(Route::Agents));
    let retry =
        reason.retry_after().map_or(String::new(), |after| format!("retry-after: {}\r\n", seconds(after)));
    format!(
        "HTTP/1.1 {} {}\r\nconnection: close\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: {}\r\n{retry}\r\n{body}\n",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        body.len() + 1,
    )
    .into_bytes()
}

/// Shows a visitor what this is.
pub async fn show(session: &mut Session, page: Page) -> pingora::Result<()> {
    let mut header = ResponseHeader::build(page.status, Some(5))?;
    header.insert_header(http::header::CONTENT_TYPE, page.content_type)?;
    header.insert_header(http::header::CONTENT_LENGTH, page.body.len())?;
    header.insert_header(http::header::CACHE_CONTROL, "no-store")?;
    header.insert_header(http::header::CONTENT_SECURITY_POLICY, "default-src 'none'")?;
    header.insert_header(http::header::X_CONTENT_TYPE_OPTIONS, "nosniff")?;
    let bare = session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(header), bare).await?;
    if bare {
        return Ok(());
    }
    session.write_response_body(Some(Bytes::from_static(page.body.as_bytes())), true).await
}

/// What ends a gRPC response: status, message and, where it is known, when to come again, as gRPC's own clients read it
/// (`grpc-retry-pushback-ms`) and as a `google.rpc.RetryInfo`.
pub fn trailers(reason: &Reason) -> HeaderMap {
    let message = reason.message(Route::Agents);
    let mut headers = grpc_status(reason.code(), &message);
    let Some(after) = reason.retry_after() else { return headers };
    let milliseconds = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    headers.insert(RETRY_PUSHBACK, HeaderValue::from(milliseconds));
    let retry = RetryInfo { retry_delay: Duration::from_millis(milliseconds).try_into().ok() };
    let details = Status {
        code: reason.code().into(),
        message,
        details: vec![Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".to_owned(),
            value: retry.encode_to_vec(),
        }],
    };
    if let Ok(value) = HeaderValue::try_from(BASE64.encode(details.encode_to_vec())) {
        headers.insert("grpc-status-details-bin", value);
    }
    headers
}

/// `google.rpc.RetryInfo`.
#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

/// `grpc-status` and `grpc-message`, for the end of a gRPC response.
pub fn grpc_status(code: u8, message: &str) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(2);
    headers.insert("grpc-status", HeaderValue::from(u16::from(code)));
    if let Ok(value) = HeaderValue::try_from(percent_encoded(message)) {
        headers.insert("grpc-message", value);
    }
    headers
}

/// gRPC's own escape: printable ASCII but `%` stays.
fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        match byte {
            b'%' => out.push_str("%25"),
            b' '..=b'~' => out.push(byte as char),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// What kubectl prints as `Error from server (...)`.
fn status_json(status: StatusCode, message: &str) -> Bytes {
    let reason = match status {
        StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
        StatusCode::PAYLOAD_TOO_LARGE => "RequestEntityTooLarge",
        StatusCode::NOT_FOUND => "NotFound",
        StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
        StatusCode::BAD_REQUEST => "BadRequest",
        StatusCode::UNAUTHORIZED => "Unauthorized",
        StatusCode::FORBIDDEN => "Forbidden",
        StatusCode::INTERNAL_SERVER_ERROR => "InternalError",
        // Kubernetes has no word for the others.
        _ => "",
    };
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": status.as_u16(),
    });
    Bytes::from(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_one_status_in_either_language() {
        let upstream = || "127.0.0.1:1".to_owned();
        for (reason, http, grpc) in [
            (Reason::NoToken, 401, 16),
            (Reason::Denied, 403, 7),
            (Reason::DeniedByPolicy { rule: "AccessPolicy/x".into() }, 403, 7),
            (
                Reason::TooMany { limit: Limit::IpRate, retry_after: Duration::from_secs(1), rule: None },
                429,
                8,
            ),
            (Reason::FailedToken, 401, 16),
            (Reason::RedisAway { retry_after: Duration::from_secs(1) }, 503, 14),
            (Reason::TooLarge { most: 1 }, 413, 8),
            (Reason::NeedsHttp2, 426, 12),
            (Reason::NotServed, 404, 12),
            (Reason::Unreachable { upstream: upstream(), what: "connection refused" }, 503, 14),
            (Reason::Broken { upstream: upstream(), what: "closed" }, 502, 14),
            (Reason::Malformed, 400, 13),
            (Reason::Internal, 500, 13),
        ] {
            assert_eq!((reason.status().as_u16(), reason.code()), (http, grpc), "{reason:?}");
        }
    }

    #[test]
    fn agents_read_the_sentence_they_know_from_kas() {
        let retry_after = Duration::from_millis(1500);
        let reason = Reason::TooMany { limit: Limit::TokenRate, retry_after, rule: None };
        assert_eq!(
            reason.message(Route::Agents),
            "new connection rate limit exhausted for this agent, try again later"
        );
        assert_eq!(
            reason.message(Route::KubernetesApi),
            "too many requests with this token, try again in 2 s"
        );
    }

    #[test]
    fn a_refusal_tells_grpc_clients_when_to_come_again_in_both_ways() {
        let retry_after = Duration::from_micros(1_499_001);
        let trailers = trailers(&Reason::TooMany { limit: Limit::AgentStreams, retry_after, rule: None });
        assert_eq!(
            (&trailers["grpc-status"], &trailers[RETRY_PUSHBACK]),
            (&"8".parse().unwrap(), &"1500".parse().unwrap())
        );
        let details = BASE64.decode(&trailers["grpc-status-details-bin"]).unwrap();
        let status = Status::decode(&details[..]).unwrap();
        assert_eq!(
            (status.code, &*status.message),
            (8, "too many requests to this agent at the same time, try again in 2 s")
        );
        assert_eq!(status.details[0].type_url, "type.googleapis.com/google.rpc.RetryInfo");
        let delay = RetryInfo::decode(&status.details[0].value[..]).unwrap().retry_delay.unwrap();
        assert_eq!((delay.seconds, delay.nanos), (1, 500_000_000));
        assert!(!super::trailers(&Reason::NoToken).contains_key("grpc-status-details-bin"));
    }

    #[test]
    fn an_unreachable_upstream_is_named_with_what_to_check() {
        let reason = Reason::Unreachable { upstream: "10.0.0.1:8154".into(), what: "connection refused" };
        let message = reason.message(Route::KubernetesApi);
        assert!(
            message.contains("10.0.0.1:8154") && message.contains("upstreams.kubernetes_api"),
            "{message}"
        );
    }

    #[test]
    fn grpc_messages_are_escaped() {
        assert_eq!(percent_encoded("50% of\nü"), "50%25 of%0A%C3%BC");
    }

    #[test]
    fn a_status_is_what_kubectl_expects() {
        let status: serde_json::Value =
            serde_json::from_slice(&status_json(StatusCode::SERVICE_UNAVAILABLE, "x")).unwrap();
        assert_eq!(status["kind"], "Status");
        assert_eq!(status["reason"], "ServiceUnavailable");
        assert_eq!(status["code"], 503);
    }
}
