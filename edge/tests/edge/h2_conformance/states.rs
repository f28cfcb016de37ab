//! What a stream's state allows, and which numbers streams may have: RFC 9113, 5.1 to 5.3.

use super::{CANCEL, Case, Expect, PROTOCOL_ERROR, REFUSED_STREAM, STREAM_CLOSED, Script};
use crate::frames::{
    CONTINUATION, DEPENDS, END_HEADERS, END_STREAM, HEADERS, PRIORITY, Road, WINDOW_UPDATE, literal,
};

fn continuation(script: &mut Script) {
    let block = literal(0, "x-late", "1");
    script.frame(CONTINUATION, END_HEADERS, 1, &block);
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            number: "http2/5.1/1",
            says: "idle: DATA",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.data(1, b"body");
            },
        },
        Case {
            number: "http2/5.1/2",
            says: "idle: RST_STREAM",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.reset(1, CANCEL);
            },
        },
        Case {
            number: "http2/5.1/3",
            says: "idle: WINDOW_UPDATE",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 100]);
            },
        },
        Case {
            number: "http2/5.1/4",
            says: "idle: CONTINUATION",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(CONTINUATION, END_HEADERS, 1, &block);
            },
        },
        Case {
            number: "http2/5.1/5",
            says: "the request has ended: DATA",
            expects: Expect::StreamOrConnection(1, &[STREAM_CLOSED]),
            sends: |s| {
                s.request(1).data(1, b"body");
            },
        },
        Case {
            number: "http2/5.1/6",
            says: "the request has ended: HEADERS",
            expects: Expect::StreamOrConnection(1, &[STREAM_CLOSED]),
            sends: |s| {
                s.request(1).request(1);
            },
        },
        Case {
            number: "http2/5.1/7",
            says: "the request has ended: CONTINUATION",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.request(1);
                continuation(s);
            },
        },
        Case {
            number: "http2/5.1/8",
            says: "cancelled by the client: DATA",
            expects: Expect::StreamOrConnection(1, &[STREAM_CLOSED]),
            sends: |s| {
                s.open(1, 4).reset(1, CANCEL).data(1, b"body");
            },
        },
        Case {
            number: "http2/5.1/9",
            says: "cancelled by the client: HEADERS",
            expects: Expect::StreamOrConnection(1, &[STREAM_CLOSED]),
            sends: |s| {
                s.open(1, 4).reset(1, CANCEL).request(1);
            },
        },
        Case {
            number: "http2/5.1/10",
            says: "cancelled by the client: CONTINUATION",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.open(1, 4).reset(1, CANCEL);
                continuation(s);
            },
        },
        Case {
            number: "http2/5.1/11",
            says: "closed: DATA",
            expects: Expect::StreamOrConnection(1, &[STREAM_CLOSED]),
            sends: |s| {
                s.request(1).until_answered(1).data(1, b"body");
            },
        },
        Case {
            number: "http2/5.1/12",
            says: "closed: HEADERS",
            expects: Expect::Connection(&[STREAM_CLOSED]),
            sends: |s| {
                s.request(1).until_answered(1).request(1);
            },
        },
        Case {
            number: "http2/5.1/13",
            says: "closed: CONTINUATION",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.request(1).until_answered(1);
                continuation(s);
            },
        },
        Case {
            number: "http2/5.1.1/1",
            says: "a client's stream with an even number",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.request(2);
            },
        },
        Case {
            number: "http2/5.1.1/2",
            says: "a stream with a lower number than one before",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.request(5).request(3);
            },
        },
        Case {
            number: "http2/5.1.2/1",
            says: "one stream more than is allowed at once",
            // 1000 are offered; the stream behind the last of them has number 2001.
            expects: Expect::Stream(2001, &[REFUSED_STREAM, PROTOCOL_ERROR]),
            sends: |s| {
                // Over the other road each would cost the stand-in a connection.
                s.over(Road::Relay).fill().open(2001, 4);
            },
        },
        Case {
            number: "http2/5.3.1/1",
            says: "HEADERS that depend on their own stream",
            expects: Expect::StreamOrConnection(1, &[PROTOCOL_ERROR]),
            sends: |s| {
                let block = [&[0, 0, 0, 1, 255], &s.block()[..]].concat();
                s.frame(HEADERS, END_HEADERS | END_STREAM | DEPENDS, 1, &block);
            },
        },
        Case {
            number: "http2/5.3.1/2",
            says: "PRIORITY that depends on its own stream",
            expects: Expect::StreamOrConnection(1, &[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(PRIORITY, 0, 1, &[0, 0, 0, 1, 255]);
            },
        },
    ]
}
