//! Preface, the form of frames, errors, what nobody knows, DATA and RST_STREAM: RFC 9113, 3.4, 4, 5.4 to 6.1, 6.4, 7.

use super::{CANCEL, COMPRESSION_ERROR, Case, Expect, FRAME_SIZE_ERROR, PROTOCOL_ERROR};
use crate::frames::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, SETTINGS, UNKNOWN, frame, literal,
};

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            number: "http2/3.5/2",
            says: "what is not the preface is not served",
            expects: Expect::Closed,
            sends: |s| {
                s.unannounced().bytes(b"NOT THE PREFACE OF ANYTHING\r\n\r\n").frame(SETTINGS, 0, 0, &[]);
            },
        },
        Case {
            number: "http2/4.1/1",
            says: "a frame of an unknown type is passed over",
            expects: Expect::Alive,
            sends: |s| {
                s.frame(UNKNOWN, 0, 0, &[0; 8]);
            },
        },
        Case {
            number: "http2/4.1/2",
            says: "flags without a meaning are passed over",
            expects: Expect::Pong(b"flagged!"),
            sends: |s| {
                s.frame(PING, 0x16, 0, b"flagged!");
            },
        },
        Case {
            number: "http2/4.1/3",
            says: "the reserved bit of the stream identifier is passed over",
            expects: Expect::Pong(b"reserved"),
            sends: |s| {
                s.frame(PING, 0, 0x8000_0000, b"reserved");
            },
        },
        Case {
            number: "http2/4.2/1",
            says: "a DATA frame of 16384 bytes, which everybody has to take",
            expects: Expect::Answer(1),
            sends: |s| {
                s.open(1, 16_384).data(1, &[b'x'; 16_384]);
            },
        },
        Case {
            number: "http2/4.2/2",
            says: "a DATA frame longer than was offered",
            expects: Expect::ConnectionOrCut(&[FRAME_SIZE_ERROR]),
            sends: |s| {
                s.open(1, 16_385).data(1, &[b'x'; 16_385]);
            },
        },
        Case {
            number: "http2/4.2/3",
            says: "a HEADERS frame longer than was offered",
            expects: Expect::ConnectionOrCut(&[FRAME_SIZE_ERROR]),
            sends: |s| {
                let long = literal(0, "x-long", &"x".repeat(16_384));
                let block = [s.block(), long].concat();
                s.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
            },
        },
        Case {
            number: "http2/4.3/1",
            says: "a header block that breaks off inside a field",
            expects: Expect::Connection(&[COMPRESSION_ERROR]),
            sends: |s| {
                let block = [s.block(), vec![0x40, 0x85, 0xff]].concat();
                s.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
            },
        },
        Case {
            number: "http2/4.3/2",
            says: "PRIORITY between the frames of a header block",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block[..10])
                    .frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255])
                    .frame(CONTINUATION, END_HEADERS, 1, &block[10..]);
            },
        },
        Case {
            number: "http2/4.3/3",
            says: "HEADERS of another stream between the frames of a header block",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block[..10]).request(3).frame(
                    CONTINUATION,
                    END_HEADERS,
                    1,
                    &block[10..],
                );
            },
        },
        Case {
            number: "http2/5.4.1/1",
            says: "after a connection error the connection closes",
            expects: Expect::Closed,
            sends: |s| {
                s.frame(PING, 0, 3, &[0; 8]);
            },
        },
        Case {
            number: "http2/5.4.1/2",
            says: "a connection error is said in GOAWAY first",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(PING, 0, 3, &[0; 8]);
            },
        },
        Case {
            number: "http2/5.5/1",
            says: "a frame of an extension nobody agreed on is passed over",
            expects: Expect::Answer(1),
            sends: |s| {
                s.frame(UNKNOWN, 0xff, 0, &[0; 8]).frame(UNKNOWN, 0, 1, &[]).request(1);
            },
        },
        Case {
            number: "http2/5.5/2",
            says: "a frame of an extension inside a header block",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block[..10]).frame(UNKNOWN, 0, 1, &[0; 8]).frame(
                    CONTINUATION,
                    END_HEADERS,
                    1,
                    &block[10..],
                );
            },
        },
        Case {
            number: "http2/7/1",
            says: "GOAWAY with a code nobody knows",
            expects: Expect::AliveOrClosed,
            sends: |s| {
                s.bytes(&frame(7, 0, 0, &[0, 0, 0, 0, 0, 0, 0, 0xff]));
            },
        },
        Case {
            number: "http2/7/2",
            says: "RST_STREAM with a code nobody knows",
            expects: Expect::Alive,
            sends: |s| {
                s.open(1, 4).reset(1, 0xff);
            },
        },
        Case {
            number: "http2/8.2/1",
            says: "PUSH_PROMISE from a client",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let promise = [&2u32.to_be_bytes()[..], &s.block()].concat();
                s.open(1, 4).frame(crate::frames::PUSH_PROMISE, END_HEADERS, 1, &promise);
            },
        },
        Case {
            number: "http2/6.1/1",
            says: "DATA for the connection instead of a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(DATA, END_STREAM, 0, b"body");
            },
        },
        Case {
            number: "http2/6.1/2",
            says: "DATA when the request has ended",
            expects: Expect::StreamOrConnection(1, &[super::STREAM_CLOSED]),
            sends: |s| {
                s.request(1).data(1, b"body");
            },
        },
        Case {
            number: "http2/6.1/3",
            says: "DATA with more padding than payload",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.open(1, 4).frame(DATA, END_STREAM | crate::frames::PADDED, 1, b"\x06body");
            },
        },
        Case {
            number: "http2/6.4/1",
            says: "RST_STREAM for the connection instead of a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.reset(0, CANCEL);
            },
        },
        Case {
            number: "http2/6.4/2",
            says: "RST_STREAM for an idle stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.reset(1, CANCEL);
            },
        },
        Case {
            number: "http2/6.4/3",
            says: "RST_STREAM of three bytes",
            expects: Expect::Connection(&[FRAME_SIZE_ERROR]),
            sends: |s| {
                s.open(1, 4).frame(crate::frames::RST_STREAM, 0, 1, &[0; 3]);
            },
        },
    ]
}
