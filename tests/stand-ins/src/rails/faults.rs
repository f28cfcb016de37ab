//! What can be wrong with an endpoint. Before it: a request that was recorded. After it: the real answer, spoilt.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;

pub(super) type Body = UnsyncBoxBody<Bytes, io::Error>;

/// How one endpoint misbehaves; the default does not.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Wait this long before anything else.
    pub delay: Option<Duration>,
    /// Close the connection without an answer.
    pub drop_connection: Option<HangUp>,
    /// Answer this status with `{"message": "stand-in"}` and check nothing.
    pub status: Option<StatusCode>,
    /// Redirect (302) there.
    pub redirect: Option<String>,
    /// Another `Content-Type`, with the body as it is.
    pub content_type: Option<String>,
    /// This body instead of the right one, with the right head.
    pub body: Option<String>,
    /// Half the body under the head of the whole, then the end of the connection.
    pub truncated: Option<Truncated>,
    /// So many bytes of JSON string in place of the body.
    pub huge: Option<usize>,
}

/// Where a connection ends.
#[derive(Clone, Copy, Debug)]
pub enum HangUp {
    /// After the request was read, before any answer.
    BeforeAnswer,
}

/// How an answer is cut.
#[derive(Clone, Copy, Debug)]
pub enum Truncated {
    /// The JSON is half, and the length says so: a broken document, whole as HTTP.
    Document,
    /// The length is that of the whole: broken as HTTP.
    Connection,
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

impl Faults {
    /// An answer that the endpoint itself has no part in.
    pub(super) fn instead(&self) -> Option<Response<Body>> {
        if let Some(status) = self.status {
            let mut response = Response::new(full(r#"{"message":"stand-in"}"#));
            *response.status_mut() = status;
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            return Some(response);
        }
        let location = HeaderValue::try_from(self.redirect.as_deref()?).ok()?;
        let mut response = Response::new(full(""));
        *response.status_mut() = StatusCode::FOUND;
        response.headers_mut().insert(header::LOCATION, location);
        Some(response)
    }

    /// Spoils a good answer.
    pub(super) async fn spoil(&self, mut response: Response<Body>) -> Response<Body> {
        if let Some(value) = self.content_type.as_deref().and_then(|value| HeaderValue::try_from(value).ok())
        {
            response.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        if let Some(body) = &self.body {
            *response.body_mut() = full(body.clone());
        }
        if let Some(size) = self.huge {
            *response.body_mut() = huge(size);
        }
        if let Some(truncated) = self.truncated {
            let (mut head, body) = response.into_parts();
            let whole = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let half = whole.slice(..whole.len() / 2);
            let body = match truncated {
                Truncated::Document => full(half),
                Truncated::Connection => {
                    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(whole.len()));
                    let cut = io::Error::other("cut as asked");
                    let pieces = stream::iter([Ok(Frame::data(half)), Err(cut)]);
                    StreamBody::new(pieces).boxed_unsync()
                }
            };
            response = Response::from_parts(head, body);
        }
        response
    }
}

/// A JSON document with one very long string, made as it is read.
fn huge(size: usize) -> Body {
    const PIECE: usize = 16 << 10;
    let block = Bytes::from(vec![b'x'; PIECE]);
    let pieces = (0..size / PIECE).map(move |_| Ok(Frame::data(block.clone())));
    let begin = Ok(Frame::data(Bytes::from_static(br#"{"agent_name":""#)));
    let end = Ok(Frame::data(Bytes::from_static(br#""}"#)));
    StreamBody::new(stream::iter(std::iter::once(begin).chain(pieces).chain(std::iter::once(end))))
        .boxed_unsync()
}
