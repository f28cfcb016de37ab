//! The head of a stream as the broker shall see it.
//!
//! Under `relay`. h2 has refused what HTTP/2 forbids (connection headers, a `te` other than trailers, upper case); this
//! takes out what only our own programs may say and puts in who is calling.

use crate::admit;
use crate::http2::Peer;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, Request, Uri, Version, header, request};

pub(super) fn head(head: request::Parts, peer: &Peer) -> Request<()> {
    let origin = peer.connection.origin(&head.headers).into_owned();
    let mut headers = head.headers;
    let host = headers.remove(header::HOST);
    // Nobody sends any, so this is the usual way out.
    while let Some(ours) = headers.keys().find(|name| admit::is_ours(name)).cloned() {
        headers.remove(ours);
    }
    for (name, value) in admit::forwarded(&origin) {
        headers.insert(HeaderName::from_static(name), value);
    }
    let authority = match &peer.authority {
        Some(authority) => Some(authority.clone()),
        None => head.uri.authority().cloned().or_else(|| Authority::try_from(host?.as_bytes()).ok()),
    };
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(Scheme::HTTP);
    uri.authority = Some(authority.unwrap_or_else(|| Authority::from_static("postern")));
    uri.path_and_query =
        Some(head.uri.into_parts().path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")));
    let mut request = Request::new(());
    *request.method_mut() = head.method;
    *request.uri_mut() = Uri::from_parts(uri).expect("scheme, authority and path make a URI");
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers;
    request
}
