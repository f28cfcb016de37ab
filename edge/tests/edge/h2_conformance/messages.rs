//! Requests whose fields no request may have: RFC 9113, 8. They cost their stream, not the connection.

use super::{Case, Expect, PROTOCOL_ERROR};
use crate::frames::{DATA, END_HEADERS, END_STREAM, HEADERS, literal};

const MALFORMED: Expect = Expect::Stream(1, &[PROTOCOL_ERROR]);
/// Found while the block is decoded, and so while the tables are in an unknown state.
const DECODING: Expect = Expect::StreamOrConnection(1, &[PROTOCOL_ERROR]);

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            number: "http2/8.1/1",
            says: "trailers that do not end the request",
            expects: MALFORMED,
            sends: |s| {
                s.open(1, 4).frame(DATA, 0, 1, b"body").frame(
                    HEADERS,
                    END_HEADERS,
                    1,
                    &literal(0, "x-more", "1"),
                );
            },
        },
        Case {
            number: "http2/8.1.2/1",
            says: "a name with a capital letter",
            expects: DECODING,
            sends: |s| s.asks_for(|fields| fields.with("X-Capital", "1")),
        },
        Case {
            number: "http2/8.1.2.1/1",
            says: "a pseudo-header field that nobody knows",
            expects: DECODING,
            sends: |s| s.asks_for(|fields| fields.first(":unknown", "1")),
        },
        Case {
            number: "http2/8.1.2.1/2",
            says: "the pseudo-header field of responses",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.first(":status", "200")),
        },
        Case {
            number: "http2/8.1.2.1/3",
            says: "a pseudo-header field in the trailers",
            expects: MALFORMED,
            sends: |s| {
                s.open(1, 4).frame(DATA, 0, 1, b"body").frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    1,
                    &literal(0, ":method", "POST"),
                );
            },
        },
        Case {
            number: "http2/8.1.2.1/4",
            says: "a pseudo-header field behind another field",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.without(":path").with(":path", "/late")),
        },
        Case {
            number: "http2/8.1.2.2/1",
            says: "Connection",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.with("connection", "keep-alive")),
        },
        Case {
            number: "http2/8.1.2.2/2",
            says: "TE with something else than trailers",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.without("te").with("te", "trailers, deflate")),
        },
        Case {
            number: "http2/8.1.2.3/1",
            says: "an empty path",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.set(":path", "")),
        },
        Case {
            number: "http2/8.1.2.3/2",
            says: "no method",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.without(":method")),
        },
        Case {
            number: "http2/8.1.2.3/3",
            says: "no scheme",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.without(":scheme")),
        },
        Case {
            number: "http2/8.1.2.3/4",
            says: "no path",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.without(":path")),
        },
        Case {
            number: "http2/8.1.2.3/5",
            says: "two methods",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.first(":method", "GET")),
        },
        Case {
            number: "http2/8.1.2.3/6",
            says: "two schemes",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.first(":scheme", "http")),
        },
        Case {
            number: "http2/8.1.2.3/7",
            says: "two paths",
            expects: MALFORMED,
            sends: |s| s.asks_for(|fields| fields.first(":path", "/other")),
        },
        Case {
            number: "http2/8.1.2.6/1",
            says: "a body shorter than Content-Length says",
            expects: MALFORMED,
            sends: |s| {
                let fields = s.fields().set(":method", "POST").with("content-length", "5");
                s.frame(HEADERS, END_HEADERS, 1, &fields.block()).data(1, b"body");
            },
        },
        Case {
            number: "http2/8.1.2.6/2",
            says: "a body in two frames, together longer than Content-Length says",
            expects: MALFORMED,
            sends: |s| {
                let fields = s.fields().set(":method", "POST").with("content-length", "5");
                s.frame(HEADERS, END_HEADERS, 1, &fields.block()).frame(DATA, 0, 1, b"body").data(1, b"body");
            },
        },
    ]
}
