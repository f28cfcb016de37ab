//! Which web pages may call: those of GitLab itself, since a browser sends GitLab's cookie along with whatever a page asks
//! for. It decides before anything else looks at a request; a request that names no origin is no page's.

use http::{HeaderMap, HeaderName, HeaderValue, Method, Response, StatusCode, header};
use url::Url;

const METHODS: HeaderValue =
    HeaderValue::from_static("GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH");
/// Seconds for which a browser need not ask again.
const MAX_AGE: HeaderValue = HeaderValue::from_static("86400");

/// Whose pages may call.
#[derive(Clone, Debug)]
pub enum Cors {
    /// No cookie is a credential here, so that a page can do no more than anybody: origins are not looked at, and no page
    /// is given an answer to read.
    NoCookies,
    /// Pages of this origin; of none, if it cannot be one.
    Only(Option<HeaderValue>),
}

/// What the answer says to the page that asked, if one did.
#[derive(Debug, Default)]
pub(super) struct Grant(Option<HeaderValue>);

/// A page that may not call.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Foreign;

impl Cors {
    /// Pages below this address.
    pub fn only(address: &Url) -> Self {
        let origin = address.origin();
        // What is no tuple would be spelt `null`, as are pages without an origin of their own.
        let text = origin.is_tuple().then(|| origin.ascii_serialization());
        Self::Only(text.and_then(|text| HeaderValue::try_from(text).ok()))
    }

    pub(super) fn check(&self, headers: &HeaderMap) -> Result<Grant, Foreign> {
        let Self::Only(own) = self else { return Ok(Grant(None)) };
        let mut origins = headers.get_all(header::ORIGIN).iter();
        match (origins.next(), origins.next(), own) {
            (None, ..) => Ok(Grant(None)),
            (Some(origin), None, Some(own)) if origin == own => Ok(Grant(Some(own.clone()))),
            _ => Err(Foreign),
        }
    }
}

impl Grant {
    /// Lets the page read the answer.
    pub(super) fn apply(self, headers: &mut HeaderMap) {
        if let Some(origin) = self.0 {
            headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
            headers.append(header::VARY, HeaderValue::from_static("Origin"));
        }
    }
}

/// What a cluster says about pages is about its own address, not about ours.
pub(super) fn drop_foreign(headers: &mut HeaderMap) {
    let theirs = |name: &&HeaderName| name.as_str().starts_with("access-control-");
    let names: Vec<_> = headers.keys().filter(theirs).cloned().collect();
    for name in names {
        headers.remove(name);
    }
}

/// The answer to a browser's question whether it may ask. Nobody is authenticated for it: browsers send no credentials.
pub(super) fn preflight<B: Default>(method: &Method, headers: &HeaderMap) -> Option<Response<B>> {
    if method != Method::OPTIONS {
        return None;
    }
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::OK;
    let answer = response.headers_mut();
    for asked in headers.get_all(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.append(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, METHODS);
    answer.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE);
    Some(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(values: &[&'static str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::ORIGIN, HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn only_gitlabs_own_pages_may_call() {
        let cors = Cors::only(&"https://GitLab.example.com:443/below/?x".parse().unwrap());
        let own = "https://gitlab.example.com";
        assert!(cors.check(&origins(&[])).unwrap().0.is_none());
        assert_eq!(cors.check(&origins(&[own])).unwrap().0.unwrap(), own);
        for foreign in [
            &["null"][..],
            &[""],
            &["http://gitlab.example.com"],
            &["https://gitlab.example.com:8443"],
            &["https://gitlab.example.com.evil.example"],
            &["https://GITLAB.example.com"],
            &[own, own],
            &[own, "https://evil.example"],
        ] {
            assert_eq!(cors.check(&origins(foreign)).unwrap_err(), Foreign, "{foreign:?}");
        }
        let port = Cors::only(&"http://127.0.0.1:3000".parse().unwrap());
        assert!(port.check(&origins(&["http://127.0.0.1:3000"])).is_ok());
        let nobody = Cors::only(&"data:x".parse().unwrap());
        assert_eq!(nobody.check(&origins(&["null"])).unwrap_err(), Foreign);
        assert!(Cors::NoCookies.check(&origins(&["https://evil.example"])).unwrap().0.is_none());
    }

    #[test]
    fn a_granted_page_reads_our_answer_and_not_the_clusters() {
        let mut headers = HeaderMap::new();
        for (name, value) in
            [("access-control-allow-origin", "*"), ("access-control-expose-headers", "x"), ("vary", "Accept")]
        {
            headers.insert(name, HeaderValue::from_static(value));
        }
        drop_foreign(&mut headers);
        Grant(Some(HeaderValue::from_static("https://g"))).apply(&mut headers);
        assert_eq!(headers["access-control-allow-origin"], "https://g");
        assert_eq!(headers["access-control-allow-credentials"], "true");
        assert!(!headers.contains_key("access-control-expose-headers"));
        assert_eq!(headers.get_all("vary").iter().collect::<Vec<_>>(), ["Accept", "Origin"]);
    }

    #[test]
    fn a_preflight_gets_what_it_asks_for() {
        let mut asked = HeaderMap::new();
        asked.insert("access-control-request-headers", HeaderValue::from_static("gitlab-agent-id,x-y"));
        assert!(preflight::<()>(&Method::GET, &asked).is_none());
        let answer = preflight::<()>(&Method::OPTIONS, &asked).unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["access-control-allow-headers"], "gitlab-agent-id,x-y");
        assert_eq!(answer.headers()["access-control-max-age"], "86400");
        assert_eq!(
            answer.headers()["access-control-allow-methods"],
            "GET, HEAD, POST, PUT, DELETE, CONNECT, OPTIONS, TRACE, PATCH"
        );
    }
}
