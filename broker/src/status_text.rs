//! How long a status may be on its way to an agent. Before it: every service that agents call, and admission. After it:
//! HTTP/2, where the connection is an edge's and so many agents': a status is made of file names and other people's
//! words, its text travels percent-encoded in a header, and a header block that is too long ends the connection.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Frame, SizeHint};
use std::{
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{Status, body::Body};

/// Of a status' text as it travels, in bytes. The whole of it is in the log of whoever made it.
pub const MAX: usize = 2_048;
/// Shows that there was more.
const MORE: &str = "...";
/// The longest character, percent-encoded.
const CHARACTER: usize = 12;

/// The same response; a status that it ends with, in its head or after its body, has a text of at most [`MAX`] bytes.
pub fn cut(mut response: Response<Body>) -> Response<Body> {
    shorten(response.headers_mut());
    response.map(|body| Body::new(Shortened(body)))
}

fn shorten(headers: &mut HeaderMap) {
    let Some(text) = headers.get_mut(Status::GRPC_MESSAGE).filter(|text| text.len() > MAX) else { return };
    let mut short = text.as_bytes()[..end(text.as_bytes(), MAX - MORE.len())].to_vec();
    short.extend_from_slice(MORE.as_bytes());
    *text = HeaderValue::from_bytes(&short).expect("it is a part of a header's value");
}

/// The last place up to `max` at which neither an escape nor a character would be torn.
fn end(encoded: &[u8], max: usize) -> usize {
    (max.saturating_sub(CHARACTER)..=max).rev().find(|&at| is_between(encoded, at)).unwrap_or(max)
}

fn is_between(encoded: &[u8], at: usize) -> bool {
    let escape = (1..=2).any(|back| at >= back && encoded[at - back] == b'%');
    // The second and later bytes of a character in UTF-8 are 0x80 to 0xbf.
    let character = encoded[at] == b'%' && matches!(encoded.get(at + 1), Some(b'8' | b'9' | b'A' | b'B'));
    !escape && !character
}

/// A body whose trailers are shortened.
struct Shortened(Body);

impl http_body::Body for Shortened {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_ok(|mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                shorten(trailers);
            }
            frame
        })
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::{BodyExt, StreamBody};

    /// What an agent reads.
    fn read(headers: &HeaderMap) -> String {
        assert!(headers[Status::GRPC_MESSAGE].len() <= MAX);
        let status = Status::from_header_map(headers).unwrap();
        assert_eq!(status.code(), tonic::Code::FailedPrecondition);
        status.message().to_owned()
    }

    #[tokio::test]
    async fn a_status_is_cut_in_the_head_and_after_the_body() {
        let long = Status::failed_precondition("ä/ ".repeat(1 << 20));
        let head = cut(long.clone().into_http());
        let text = read(head.headers());
        assert!(text.starts_with("ä/ ä/ ") && text.ends_with("..."), "{text}");

        let mut trailers = HeaderMap::new();
        long.add_header(&mut trailers).unwrap();
        let frames = [Ok::<_, Status>(Frame::data(Bytes::from_static(b"x"))), Ok(Frame::trailers(trailers))];
        let body = Body::new(StreamBody::new(futures::stream::iter(frames)));
        let collected = cut(Response::new(body)).into_body().collect().await.unwrap();
        assert_eq!(read(collected.trailers().unwrap()), text);
        assert_eq!(collected.to_bytes(), "x");
    }

    #[test]
    fn neither_escapes_nor_characters_are_torn_and_short_texts_stay() {
        for letter in ["a", "%", "ä", "€", "\u{1f600}"] {
            for before in 0..CHARACTER {
                let whole = "a".repeat(before) + &letter.repeat(MAX + 1);
                let mut headers = HeaderMap::new();
                Status::failed_precondition(&whole).add_header(&mut headers).unwrap();
                shorten(&mut headers);
                let text = read(&headers);
                let text = text.strip_suffix(MORE).unwrap();
                assert!(whole.starts_with(text), "{letter} after {before}: {text}");
                assert!(headers[Status::GRPC_MESSAGE].len() > MAX - CHARACTER - MORE.len());
            }
        }
        let mut headers = HeaderMap::new();
        Status::failed_precondition("x".repeat(MAX)).add_header(&mut headers).unwrap();
        shorten(&mut headers);
        assert_eq!(read(&headers).len(), MAX);
    }
}
