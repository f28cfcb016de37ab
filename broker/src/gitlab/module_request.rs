//! An agent's own request to a module of GitLab: streamed there and back. Before it: an agent's
//! `GitlabAccess.MakeRequest`. After it: Rails, as the agent. An agent cannot leave its module's path, and of its headers
//! only those that modules read pass: no credential, address or internal header that it sends is believed.

use super::{
    Call, RailsError,
    error::Fault,
    transport::{BoxError, RequestBody},
};
use crate::rate::Lane;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, Method, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt, Empty, StreamBody};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use postern_wire::{http::strip_hop_by_hop, token::AgentToken};
use std::sync::Arc;

/// How modules may be asked. A TRACE would be answered with our credentials, a CONNECT has no path to keep to.
const METHODS: &[Method] =
    &[Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// What modules read of a request: its form, which answer is wanted, and what it is called in logs. Everything else is
/// left behind. Rails takes `_` and `-` in a name for the same, so a list of what must not pass would never be whole.
const FORWARDED: &[&str] = &[
    "accept",
    "accept-encoding",
    "accept-language",
    "content-encoding",
    "content-language",
    "content-type",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "range",
    "x-request-id",
];

/// What an agent asks of a module.
pub struct ModuleRequest {
    /// The module's name: letters, digits, `_` and `-`.
    pub module: String,
    /// As the agent sent it.
    pub method: Method,
    /// Path below the module, beginning with a slash, and query; percent-encoded.
    pub target: String,
    /// As the agent sent them; few of them pass.
    pub headers: HeaderMap,
    /// See [`no_body`] and [`streamed`].
    pub body: RequestBody,
}

/// What the module answers, whatever the status.
#[derive(Debug)]
pub struct ModuleAnswer {
    pub status: StatusCode,
    /// Without those about one hop.
    pub headers: HeaderMap,
    pub body: AnswerBody,
}

/// An answer's body; nothing more is read from GitLab than was asked for here. Dropping it ends the request.
#[derive(Debug)]
pub struct AnswerBody {
    pub(super) body: Incoming,
    pub(super) host: Arc<str>,
}

impl AnswerBody {
    /// The next piece, or `None` after the last. Cancel safe.
    pub async fn next(&mut self) -> Option<Result<Bytes, RailsError>> {
        loop {
            match self.body.frame().await? {
                Ok(frame) => match frame.into_data() {
                    Ok(data) if !data.is_empty() => return Some(Ok(data)),
                    // Trailers have no place in the messages.
                    _ => {}
                },
                Err(error) => {
                    let what = "the answer broke off".to_owned();
                    let fault = Fault::Transport { what, source: Some(Arc::new(error)) };
                    return Some(Err(RailsError { call: "modules", host: Arc::clone(&self.host), fault }));
                }
            }
        }
    }
}

/// The body of a request that has none.
pub fn no_body() -> RequestBody {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body in pieces: the next one is taken when GitLab has room for it. An error ends the request.
pub fn streamed<E: Into<BoxError>>(
    pieces: impl Stream<Item = Result<Bytes, E>> + Send + 'static,
) -> RequestBody {
    StreamBody::new(pieces.map(|piece| piece.map(Frame::data).map_err(Into::into))).boxed_unsync()
}

/// The path below GitLab's address, and the query.
fn target(module: &str, below: &str) -> Result<String, Fault> {
    let (path, query) = match below.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (below, None),
    };
    if !path.starts_with('/') {
        return Err(Fault::Illegal("the path does not begin with a slash"));
    }
    // Escaped is not enough: a proxy that decodes and tidies the path would take what is in it for a way out.
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    if module.is_empty() || !module.bytes().all(is_name) {
        return Err(Fault::Illegal("the module's name is not made of letters, digits, _ and -"));
    }
    // Servers differ in how often they decode; a path that climbs after two rounds climbs somewhere.
    let once = percent_decode_str(path).decode_utf8_lossy();
    let twice = percent_decode_str(&once).decode_utf8_lossy();
    if [path, &once, &twice].iter().any(|path| path.split(['/', '\\']).any(is_dots)) {
        return Err(Fault::Illegal("the path leaves the module"));
    }
    let mut target = format!("api/v4/internal/kubernetes/modules/{module}{path}");
    if let Some(query) = query {
        target.push('?');
        target.push_str(query);
    }
    Ok(target)
}

/// Path parameters (`..;x`) are cut off by some servers before they climb.
fn is_dots(segment: &str) -> bool {
    matches!(segment.split(';').next(), Some("." | ".."))
}

fn forwarded(mut headers: HeaderMap) -> HeaderMap {
    strip_hop_by_hop(&mut headers, false);
    let mut passed = HeaderMap::new();
    for name in FORWARDED {
        for value in headers.get_all(*name) {
            passed.append(HeaderName::from_static(name), value.clone());
        }
    }
    passed
}

impl super::Rails {
    /// Sends an agent's request to a module, as that agent. Every status is an answer; an error means there was none.
    /// The deadline ends with the head of the answer.
    pub async fn module_request(
        &self,
        token: &AgentToken,
        request: ModuleRequest,
        call: &Call,
    ) -> Result<ModuleAnswer, RailsError> {
        self.module_answer(token, request, call).await.map_err(|fault| self.error("modules", fault))
    }

    async fn module_answer(
        &self,
        token: &AgentToken,
        request: ModuleRequest,
        call: &Call,
    ) -> Result<ModuleAnswer, Fault> {
        if !METHODS.contains(&request.method) {
            return Err(Fault::Illegal("the method is none of GET, HEAD, POST, PUT, PATCH, DELETE"));
        }
        let uri = self.uri(&target(&request.module, &request.target)?)?;
        let mut outgoing = http::Request::new(request.body);
        *outgoing.method_mut() = request.method;
        *outgoing.uri_mut() = uri;
        *outgoing.headers_mut() = forwarded(request.headers);
        // Whole before the body: a stream may be as long as it likes.
        let head = async {
            self.turn(Lane::Agents, call).await?;
            self.as_agent(outgoing.headers_mut(), token);
            self.as_kas(outgoing.headers_mut(), call);
            self.transport.send(outgoing).await
        };
        let answer = match call.deadline {
            Some(deadline) => {
                tokio::time::timeout_at(deadline, head).await.map_err(|_| Fault::Deadline)??
            }
            None => head.await?,
        };
        let (parts, body) = answer.into_parts();
        let mut headers = parts.headers;
        strip_hop_by_hop(&mut headers, false);
        headers.remove(header::TRAILER);
        let body = AnswerBody { body, host: Arc::clone(&self.host) };
        Ok(ModuleAnswer { status: parts.status, headers, body })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn an_agent_cannot_leave_its_module() {
        let modules = "api/v4/internal/kubernetes/modules";
        assert_eq!(target("cilium_alert", "/").unwrap(), format!("{modules}/cilium_alert/"));
        assert_eq!(target("A-1", "/x?y=../z").unwrap(), format!("{modules}/A-1/x?y=../z"));
        assert_eq!(target("a", "/x..y/%20").unwrap(), format!("{modules}/a/x..y/%20"));
        for bad in [
            "/../agent_info",
            "/x/%2e%2E/y",
            "/x/%252e%252e/y",
            "/x%2f..%2fy",
            "/..\\y",
            "/..;a/y",
            "/.",
            "x",
            "",
            "//../y",
        ] {
            assert!(target("a", bad).is_err(), "{bad}");
        }
        for module in ["", ".", "..", "a/../b", "a%2F..%2Fb", "a\\..", "a.b", "a;b", "a?b", "a b", "ä"] {
            assert!(target(module, "/").is_err(), "{module}");
        }
    }

    #[test]
    fn only_what_modules_read_passes() {
        let mut headers = HeaderMap::new();
        for name in [
            "authorization",
            "private-token",
            "job-token",
            "deploy-token",
            "cookie",
            "gitlab-kas-api-request",
            "gitlab-agent-api-request",
            "x-forwarded-for",
            "x-real-ip",
            "forwarded",
            "x-postern-agent",
            "x-http-method-override",
            "x-sendfile-type",
            "user-agent",
            "host",
            "content-length",
            "expect",
            "connection",
            "te",
            "transfer-encoding",
            // Rack's variable of the first is that of `Private-Token`.
            "private_token",
            "gitlab_kas_api_request",
            "x_forwarded_for",
            "content_type",
            "if_none_match",
        ] {
            headers.insert(HeaderName::from_static(name), HeaderValue::from_static("x"));
        }
        assert!(forwarded(headers.clone()).is_empty());
        for name in FORWARDED {
            assert!(!name.contains('_'));
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("a"));
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("b"));
        }
        let passed = forwarded(headers);
        assert_eq!(passed.keys().len(), FORWARDED.len());
        assert_eq!(passed.get_all("content-type").iter().collect::<Vec<_>>(), ["a", "b"]);
    }
}
