//! What a visitor reads who has come to the wrong place: a person with a browser, a monitoring probe, a curl.
//!
//! From `proxy`, before `admit`. Only for those without credentials; whoever shows some gets a broker's answer. Static:
//! nothing of the request is repeated.

use crate::token::Caller;
use http::header::{ACCEPT, AUTHORIZATION, UPGRADE};
use http::{HeaderMap, Method, StatusCode};

/// A page of ours.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Page {
    pub status: StatusCode,
    pub content_type: &'static str,
    pub body: &'static str,
}

const HTML: &str = "<!doctype html>
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>Postern</title></head><body>
<h1>This is Postern</h1>
<p>GitLab agents for Kubernetes connect here. There is nothing to see for a browser.</p>
<ul>
<li>Agents: <code>wss://this-host/</code> (any path) or <code>grpcs://this-host</code>, with an agent token.</li>
<li>Kubernetes clients: <code>https://this-host/</code> and the path that your GitLab shows, with a token of a CI job or
of yours.</li>
</ul>
</body></html>
";

const JSON: &str = concat!(
    r#"{"service":"postern","message":"GitLab agents for Kubernetes connect here","expected":["#,
    r#""gRPC over HTTP/2 with an agent token","a WebSocket with the subprotocol ws-tunnel","#,
    r#""a request to the Kubernetes API with `authorization: Bearer <token>`"]}"#,
    "\n"
);

/// The page for a request, if it is not a broker's to answer.
pub fn of(method: &Method, path: &str, headers: &HeaderMap) -> Option<Page> {
    let asks_to_see = matches!(*method, Method::GET | Method::HEAD) && !headers.contains_key(UPGRADE);
    let shows_something = headers.contains_key(AUTHORIZATION) || Caller::of(headers, None).key.is_some();
    if !asks_to_see || shows_something {
        return None;
    }
    // Where agents are told to connect, and what people type to see whether it is there.
    let front_door = matches!(path, "/" | "/-/kubernetes-agent" | "/-/kubernetes-agent/");
    let browser = prefers_html(headers);
    let status = match (front_door, browser) {
        (true, _) => StatusCode::OK,
        (false, true) => StatusCode::NOT_FOUND,
        // A Kubernetes client without credentials: its API has an answer of its own.
        (false, false) => return None,
    };
    Some(if browser {
        Page { status, content_type: "text/html; charset=utf-8", body: HTML }
    } else {
        Page { status, content_type: "application/json", body: JSON }
    })
}

/// Browsers name it, programs do not.
fn prefers_html(headers: &HeaderMap) -> bool {
    headers.get_all(ACCEPT).iter().any(|value| value.to_str().is_ok_and(|text| text.contains("text/html")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(
        method: Method,
        path: &str,
        headers: &[(&'static str, &'static str)],
    ) -> Option<(u16, &'static str)> {
        let headers = headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        });
        let page = of(&method, path, &headers.collect())?;
        Some((page.status.as_u16(), page.content_type.split(';').next().unwrap()))
    }

    #[test]
    fn visitors_get_a_page_and_kubernetes_clients_do_not() {
        const BROWSER: (&str, &str) = ("accept", "text/html,application/xhtml+xml,*/*;q=0.8");
        const TOKEN: (&str, &str) = ("authorization", "Bearer ci:1:x");
        for (path, headers, expected) in [
            ("/", &[][..], Some((200, "application/json"))),
            ("/", &[BROWSER], Some((200, "text/html"))),
            ("/-/kubernetes-agent/", &[BROWSER], Some((200, "text/html"))),
            ("/favicon.ico", &[BROWSER], Some((404, "text/html"))),
            ("/favicon.ico", &[("accept", "image/avif,*/*")], None),
            ("/api/v1/pods", &[("accept", "application/json, */*")], None),
            ("/api/v1/pods", &[BROWSER, TOKEN], None),
            ("/api/v1/pods", &[BROWSER, ("cookie", "_gitlab_kas=x")], None),
            ("/", &[TOKEN], None),
            ("/", &[("authorization", "Basic eA==")], None),
            ("/", &[("upgrade", "websocket")], None),
        ] {
            assert_eq!(page(Method::GET, path, headers), expected, "{path} {headers:?}");
        }
        assert_eq!(page(Method::POST, "/", &[]), None);
        assert_eq!(page(Method::HEAD, "/", &[]), Some((200, "application/json")));
    }

    #[test]
    fn the_json_is_json() {
        let value: serde_json::Value = serde_json::from_str(JSON).unwrap();
        assert_eq!(value["service"], "postern");
    }
}
