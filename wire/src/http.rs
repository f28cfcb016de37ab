//! HTTP heads as messages and back: what the broker's Kubernetes API listener sends down a tunnel and the agent
//! turns into a request again. Bodies are not its business.
//!
//! Header names inside messages are Go-canonical (`Content-Type`), because Go peers copy the map as it is.

use crate::proto::gitlab::agent::{
    grpctool::{HttpRequest, HttpResponse, http_request, http_response},
    prototool::{self, Values},
};
use ::http::{
    HeaderMap, HeaderName, HeaderValue, StatusCode,
    header::{self, Entry},
};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::collections::HashMap;

/// The largest piece of a body in one message, in bytes; what Go peers send too.
pub const MAX_DATA: usize = 32 * 1024;

/// What cannot stand in a path as it is. `/` stays, since a decoded path no longer knows which were escaped.
const PATH: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b'#')
    .add(b'%')
    .add(b'<')
    .add(b'>')
    .add(b'?')
    .add(b'[')
    .add(b'\\')
    .add(b']')
    .add(b'^')
    .add(b'`')
    .add(b'{')
    .add(b'|')
    .add(b'}');

/// Headers about one hop only, besides those that `Connection` names.
const HOP_BY_HOP: &[&str] = &[
    "connection",
    "proxy-connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// A head that cannot be carried.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadHead {
    /// The percent-decoded path is not UTF-8, which a message's string must be.
    #[error("the path of the request is not UTF-8 after percent-decoding")]
    Path,
    /// The peer sent no path, or one that does not begin with a slash.
    #[error("the peer sent a request path that does not begin with a slash")]
    RelativePath,
    /// The peer sent a header that HTTP does not allow. The value is not shown, as it may be a secret.
    #[error("the peer sent an illegal header {name:?}")]
    Header {
        /// As the peer spelt it.
        name: String,
    },
    /// The peer sent a status outside 100..=999.
    #[error("the peer sent the impossible HTTP status {0}")]
    Status(i32),
    /// The peer sent a method that is not a token.
    #[error("the peer sent an illegal HTTP method")]
    Method,
    /// The message has no request or response in it.
    #[error("the peer sent an empty HTTP head")]
    Empty,
}

/// `content-type` -> `Content-Type`.
pub fn canonical(name: &str) -> String {
    let mut upper = true;
    let spell = |byte: char| {
        let spelt = if upper { byte.to_ascii_uppercase() } else { byte.to_ascii_lowercase() };
        upper = byte == '-';
        spelt
    };
    name.chars().map(spell).collect()
}

/// Headers as a message's map. Values that are not UTF-8 get replacement characters.
pub fn to_values(headers: &HeaderMap) -> HashMap<String, Values> {
    let mut map = HashMap::with_capacity(headers.keys_len());
    for name in headers.keys() {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let value = headers.get_all(name).iter().map(text).collect();
        map.insert(canonical(name.as_str()), Values { value });
    }
    map
}

/// A message's map as headers, whatever spelling the peer used.
pub fn from_values(map: &HashMap<String, Values>) -> Result<HeaderMap, BadHead> {
    let mut headers = HeaderMap::with_capacity(map.len());
    for (spelt, values) in map {
        let bad = || BadHead::Header { name: spelt.chars().take(64).collect() };
        let name = HeaderName::try_from(spelt.as_str()).map_err(|_| bad())?;
        for value in &values.value {
            let value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
            headers.append(&name, value);
        }
    }
    Ok(headers)
}

/// The protocol of an `Upgrade` header that `Connection` announces, if any.
pub fn upgrade_protocol(headers: &HeaderMap) -> Option<&HeaderValue> {
    let announced = tokens(headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    if announced { headers.get(header::UPGRADE) } else { None }
}

/// Removes what belongs to one hop. With `upgrade`, the `Upgrade` header stays and `Connection: upgrade` with it.
pub fn strip_hop_by_hop(headers: &mut HeaderMap, upgrade: bool) {
    let protocol = if upgrade { headers.get(header::UPGRADE).cloned() } else { None };
    let named: Vec<HeaderName> =
        tokens(headers, &header::CONNECTION).filter_map(|token| HeaderName::try_from(token).ok()).collect();
    for name in named {
        headers.remove(name);
    }
    for name in HOP_BY_HOP {
        headers.remove(*name);
    }
    if let Some(protocol) = protocol {
        headers.insert(header::UPGRADE, protocol);
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Appends one hop to `Via`, keeping the hops before it.
pub fn append_via(headers: &mut HeaderMap, hop: &str) {
    let Ok(hop) = HeaderValue::try_from(hop) else { return };
    match headers.entry(header::VIA) {
        Entry::Occupied(mut entry) => {
            entry.append(hop);
        }
        Entry::Vacant(entry) => {
            entry.insert(hop);
        }
    }
}

/// The first message of a request. `content_length`: 0 no body follows, -1 unknown, else its bytes.
pub fn request_header(
    method: &::http::Method,
    path: &str,
    query: Option<&str>,
    headers: &HeaderMap,
    content_length: i64,
    extra: Option<prost_types::Any>,
) -> Result<HttpRequest, BadHead> {
    let url_path = percent_decode_str(path).decode_utf8().map_err(|_| BadHead::Path)?.into_owned();
    let mut pairs: HashMap<String, Values> = HashMap::new();
    for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        pairs.entry(key.into_owned()).or_default().value.push(value.into_owned());
    }
    let request = prototool::HttpRequest {
        method: method.as_str().to_owned(),
        header: to_values(headers),
        url_path,
        query: pairs,
    };
    let header = http_request::Header { request: Some(request), extra, content_length: Some(content_length) };
    Ok(HttpRequest { message: Some(http_request::Message::Header(header)) })
}

/// The path and query to ask for, percent-encoded, keys sorted as Go peers do.
pub fn request_target(request: &prototool::HttpRequest) -> Result<String, BadHead> {
    if !request.url_path.starts_with('/') {
        return Err(BadHead::RelativePath);
    }
    let mut target: String = utf8_percent_encode(&request.url_path, PATH).collect();
    let mut keys: Vec<_> = request.query.iter().filter(|(_, values)| !values.value.is_empty()).collect();
    if keys.is_empty() {
        return Ok(target);
    }
    keys.sort_by_key(|(key, _)| key.as_str());
    let mut query = form_urlencoded::Serializer::new(String::new());
    for (key, values) in keys {
        values.value.iter().for_each(|value| {
            query.append_pair(key, value);
        });
    }
    target.push('?');
    target.push_str(&query.finish());
    Ok(target)
}

/// The first message of an answer.
pub fn response_header(status: StatusCode, headers: &HeaderMap) -> HttpResponse {
    let reason = status.canonical_reason().unwrap_or("Unknown");
    let response = prototool::HttpResponse {
        status_code: i32::from(status.as_u16()),
        status: format!("{} {reason}", status.as_u16()),
        header: to_values(headers),
    };
    let header = http_response::Header { response: Some(response) };
    HttpResponse { message: Some(http_response::Message::Header(header)) }
}

/// Status and headers out of an answer's first message.
pub fn response_head(header: &http_response::Header) -> Result<(StatusCode, HeaderMap), BadHead> {
    let response = header.response.as_ref().ok_or(BadHead::Empty)?;
    let status = u16::try_from(response.status_code).ok().and_then(|code| StatusCode::from_u16(code).ok());
    Ok((status.ok_or(BadHead::Status(response.status_code))?, from_values(&response.header)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::http::Method;

    #[test]
    fn names_become_go_canonical() {
        let table =
            [("content-type", "Content-Type"), ("WWW-authenticate", "Www-Authenticate"), ("x-", "X-")];
        for (given, wanted) in table {
            assert_eq!(canonical(given), wanted);
        }
    }

    #[test]
    fn a_target_survives_the_message() {
        for target in
            ["/api/v1/pods?limit=5", "/a%20b/%E2%82%AC%25?x=1&x=2&y=a+%26b", "/version", "/a:b/c;d=e"]
        {
            let uri: ::http::Uri = target.parse().unwrap();
            let message =
                request_header(&Method::GET, uri.path(), uri.query(), &HeaderMap::new(), 0, None).unwrap();
            let Some(http_request::Message::Header(header)) = message.message else { panic!("a header") };
            assert_eq!(request_target(&header.request.unwrap()).unwrap(), target);
        }
    }

    #[test]
    fn a_path_that_is_not_text_is_refused() {
        let refused = request_header(&Method::GET, "/%ff", None, &HeaderMap::new(), 0, None);
        assert_eq!(refused.unwrap_err(), BadHead::Path);
        let relative = prototool::HttpRequest { url_path: "x".into(), ..Default::default() };
        assert_eq!(request_target(&relative), Err(BadHead::RelativePath));
    }

    #[test]
    fn hop_by_hop_headers_go_and_an_upgrade_may_stay() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "Upgrade, X-Secret-Hop"),
            ("upgrade", "SPDY/3.1"),
            ("x-secret-hop", "1"),
            ("te", "trailers"),
            ("accept", "*/*"),
        ] {
            headers.append(name, HeaderValue::from_static(value));
        }
        assert_eq!(upgrade_protocol(&headers).unwrap(), "SPDY/3.1");
        let mut upgraded = headers.clone();
        strip_hop_by_hop(&mut upgraded, true);
        assert_eq!(upgraded.len(), 3);
        assert_eq!(upgraded["connection"], "upgrade");
        strip_hop_by_hop(&mut headers, false);
        assert_eq!(headers.len(), 1);
        assert!(upgrade_protocol(&headers).is_none());
    }

    #[test]
    fn repeated_headers_keep_their_order() {
        let mut headers = HeaderMap::new();
        headers.append("warning", HeaderValue::from_static("one"));
        headers.append("warning", HeaderValue::from_static("two"));
        let map = to_values(&headers);
        assert_eq!(map["Warning"].value, ["one", "two"]);
        assert_eq!(from_values(&map).unwrap(), headers);
    }

    #[test]
    fn an_illegal_header_is_an_error_that_does_not_show_its_value() {
        let map = HashMap::from([("X".to_owned(), Values { value: vec!["secret\n".to_owned()] })]);
        let error = from_values(&map).unwrap_err().to_string();
        assert!(!error.contains("secret") && error.contains("\"X\""), "{error}");
    }

    #[test]
    fn an_impossible_status_is_an_error() {
        let response = prototool::HttpResponse { status_code: 70_000, ..Default::default() };
        let header = http_response::Header { response: Some(response) };
        assert_eq!(response_head(&header).unwrap_err(), BadHead::Status(70_000));
    }
}
