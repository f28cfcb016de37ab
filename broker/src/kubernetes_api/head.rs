//! The head of a request as the cluster is to see it: without what was only for us, and with whom it impersonates. Before
//! it: the caller's head and its permit. After it: the first message through the tunnel.

use crate::{
    auth::caller::{AGENT_ID, AGENT_ID_QUERY, Access, CSRF_TOKEN, CSRF_TOKEN_QUERY},
    error::ApiFailure,
};
use http::{HeaderMap, HeaderName, StatusCode, Version, request::Parts};
use http_body::Body;
use postern_wire::{
    http as wire_http,
    metadata::{INTERNAL_PREFIX, Program},
    proto::gitlab::agent::{
        grpctool::{HttpRequest, http_request},
        kubernetes_api::rpc::HeaderExtra,
    },
};
use prost::Message;
use url::form_urlencoded;

const EXTRA_TYPE: &str = "type.googleapis.com/gitlab.agent.kubernetes_api.rpc.HeaderExtra";
const IMPERSONATE: &str = "impersonate-";
/// Credentials, whoever they are for, and what belongs to them.
const OURS: [&str; 7] =
    ["authorization", "cookie", "host", "job-token", "private-token", AGENT_ID, CSRF_TOKEN];

/// What a cluster is asked for, as far as rules look at it: as it is sent, not as it was received.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Sent {
    /// Decoded and encoded anew, as agents do, without the prefix that was for us. Empty: there is none.
    path: String,
    /// Only what makes a list a watch.
    query: String,
}

impl Sent {
    /// Of the first message.
    pub(super) fn of(first: &HttpRequest) -> Self {
        let Some(http_request::Message::Header(header)) = &first.message else { return Self::default() };
        let Some(request) = &header.request else { return Self::default() };
        let target = wire_http::request_target(request).unwrap_or_default();
        let path = target.split('?').next().unwrap_or_default().to_owned();
        let mut query = form_urlencoded::Serializer::new(String::new());
        for value in request.query.get("watch").iter().flat_map(|values| &values.value) {
            query.append_pair("watch", value);
        }
        Self { path, query: query.finish() }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// As rules see it, without its caller.
    pub(super) fn request<'a>(&'a self, method: &'a str) -> postern_policies::Request<'a> {
        postern_policies::Request::of(method, &self.path, Some(&self.query))
    }
}

/// The first message.
pub(super) fn request(
    parts: &Parts,
    path: &str,
    body: &impl Body,
    upgrade: bool,
    access: &Access,
    program: Program,
) -> Result<HttpRequest, ApiFailure> {
    let mut headers = parts.headers.clone();
    let extra = match access {
        Access::Agent => None,
        Access::As { mode, identity } => {
            if let Some(name) = headers.keys().find(|name| name.as_str().starts_with(IMPERSONATE)) {
                return Err(twice(name, mode));
            }
            let extra = HeaderExtra { imp_config: Some((**identity).clone()) };
            Some(prost_types::Any { type_url: EXTRA_TYPE.to_owned(), value: extra.encode_to_vec() })
        }
    };
    let internal = |name: &&HeaderName| name.as_str().starts_with(INTERNAL_PREFIX);
    let internal: Vec<_> = headers.keys().filter(internal).cloned().collect();
    internal.into_iter().for_each(|name| remove(&mut headers, name.as_str()));
    OURS.iter().for_each(|name| remove(&mut headers, name));
    wire_http::strip_hop_by_hop(&mut headers, upgrade);
    wire_http::append_via(&mut headers, &format!("{} {program}", hop_version(parts.version)));
    let length = match body.size_hint().exact() {
        _ if upgrade || body.is_end_stream() => 0,
        Some(length) => i64::try_from(length).unwrap_or(-1),
        None => -1,
    };
    let query = parts.uri.query().map(for_cluster);
    wire_http::request_header(&parts.method, path, query.as_deref(), &headers, length, extra)
        .map_err(|error| ApiFailure::new(StatusCode::BAD_REQUEST, format!("Bad request: {error}")))
}

fn remove(headers: &mut HeaderMap, name: &str) {
    headers.remove(name);
}

fn twice(name: &HeaderName, mode: &str) -> ApiFailure {
    let message = format!(
        "Bad request: nested impersonation is not supported: the agent's configuration says access_as {mode}, so the \
         header {name} has no effect; leave it out"
    );
    ApiFailure::new(StatusCode::BAD_REQUEST, message)
}

/// The query without the two parameters that were for us, the rest as it is.
fn for_cluster(query: &str) -> String {
    let ours = |pair: &str| {
        let name = form_urlencoded::parse(pair.as_bytes()).next();
        name.is_some_and(|(name, _)| name == AGENT_ID_QUERY || name == CSRF_TOKEN_QUERY)
    };
    query.split('&').filter(|pair| !ours(pair)).collect::<Vec<_>>().join("&")
}

fn hop_version(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        _ => "1.1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::{HeaderValue, Request};
    use http_body_util::Empty;
    use postern_wire::proto::gitlab::agent::kubernetes_api::rpc::ImpersonationConfig;
    use std::sync::Arc;

    fn head(access: &Access, lines: &[(&str, &str)], uri: &str) -> Result<http_request::Header, ApiFailure> {
        let mut builder = Request::get(uri);
        for (name, value) in lines {
            builder = builder.header(*name, HeaderValue::from_str(value).unwrap());
        }
        let (parts, ()) = builder.body(()).unwrap().into_parts();
        let body = Empty::<bytes::Bytes>::new();
        let first = request(&parts, "/x", &body, false, access, crate::app::PROGRAM)?;
        let Some(http_request::Message::Header(header)) = first.message else { panic!("a header") };
        Ok(header)
    }

    fn somebody() -> Access {
        let identity = ImpersonationConfig { username: "gitlab:ci_job:1".into(), ..Default::default() };
        Access::As { mode: "ci_job", identity: Arc::new(identity) }
    }

    #[test]
    fn what_was_for_us_stays_here() {
        let lines = [
            ("authorization", "Bearer SECRET"),
            ("cookie", "SECRET"),
            ("host", "broker"),
            ("gitlab-agent-id", "1"),
            ("x-csrf-token", "SECRET"),
            ("job-token", "SECRET"),
            ("private-token", "SECRET"),
            ("x-postern-caller", "root"),
            ("connection", "x-hop, keep-alive"),
            ("x-hop", "1"),
            ("proxy-authorization", "SECRET"),
            ("accept", "*/*"),
            ("origin", "https://gitlab.example.com"),
        ];
        let header = head(&Access::Agent, &lines, "/x").unwrap();
        assert!(header.extra.is_none());
        let request = header.request.unwrap();
        let mut names: Vec<_> = request.header.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["Accept", "Origin", "Via"]);
    }

    #[test]
    fn only_our_two_parameters_leave_the_query() {
        for (query, wanted) in [
            ("gitlab-agent-id=1&gitlab-csrf-token=SECRET", ""),
            ("a=1&gitlab-agent-id=1&b=2&b=3&gitlab-csrf-token=x%26&c", "a=1&b=2&b=3&c"),
            ("gitlab%2Dagent-id=1&x=gitlab-agent-id", "x=gitlab-agent-id"),
            ("gitlab-agent-ids=1&watch=true&fieldSelector=a%3Db%26c", ""),
        ] {
            let wanted =
                if wanted.is_empty() && !query.starts_with("gitlab-agent-id=") { query } else { wanted };
            assert_eq!(for_cluster(query), wanted, "{query}");
        }
    }

    #[test]
    fn what_is_judged_is_what_is_sent() {
        for (path, query, wanted) in [
            ("/x", "", ("/x", "")),
            ("/%61pi/v1%2Fpods", "w%61tch=1&limit=5&watch=0", ("/api/v1/pods", "watch=1&watch=0")),
            ("/a%20b%2570%C3%A4%3F%23", "watch", ("/a%20b%2570%C3%A4%3F%23", "watch=")),
            ("/x", "gitlab-agent-id=1&Watch=1", ("/x", "")),
        ] {
            let (parts, ()) = Request::get(format!("/k8s?{query}")).body(()).unwrap().into_parts();
            let body = Empty::<bytes::Bytes>::new();
            let first = request(&parts, path, &body, false, &Access::Agent, crate::app::PROGRAM).unwrap();
            let sent = Sent::of(&first);
            assert_eq!((sent.path.as_str(), sent.query.as_str()), wanted);
        }
        assert!(Sent::of(&HttpRequest { message: None }).request("GET").obscure);
    }

    #[test]
    fn the_identity_goes_along_and_nobody_else_may_be_named() {
        let header = head(&somebody(), &[("accept", "*/*")], "/x").unwrap();
        let extra = header.extra.unwrap();
        assert_eq!(extra.type_url, EXTRA_TYPE);
        // HeaderExtra.imp_config (1) . username (1)
        assert_eq!(extra.value, [&[0x0a, 17, 0x0a, 15][..], b"gitlab:ci_job:1"].concat());
        for name in ["impersonate-user", "Impersonate-Group", "impersonate-uid", "impersonate-extra-x"] {
            let refused = head(&somebody(), &[(name, "root")], "/x").unwrap_err();
            assert_eq!(refused.code, StatusCode::BAD_REQUEST, "{name}");
            assert!(refused.message.contains("ci_job"), "{}", refused.message);
            let passed = head(&Access::Agent, &[(name, "root")], "/x").unwrap().request.unwrap();
            assert_eq!(passed.header[&wire_http::canonical(name)].value, ["root"]);
        }
        let hidden = [("connection", "impersonate-user"), ("impersonate-user", "root")];
        assert!(head(&somebody(), &hidden, "/x").is_err());
    }
}
