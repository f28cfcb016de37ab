//! HEADERS, PRIORITY, SETTINGS, PING, GOAWAY, WINDOW_UPDATE and CONTINUATION that break a rule: RFC 9113, 6.

use super::{Case, Expect, FLOW_CONTROL_ERROR, FRAME_SIZE_ERROR, PROTOCOL_ERROR};
use crate::frames::{
    ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PRIORITY, SETTINGS,
    WINDOW_UPDATE,
};

const INITIAL_WINDOW: u16 = 4;
const MAX_FRAME: u16 = 5;
const MOST: u32 = 0x7fff_ffff;

pub(super) fn cases() -> Vec<Case> {
    let mut all = headers();
    all.extend(settings());
    all.extend(windows());
    all.extend(continuations());
    all
}

fn headers() -> Vec<Case> {
    vec![
        Case {
            number: "http2/6.2/1",
            says: "PRIORITY behind HEADERS that have not ended",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block).frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
            },
        },
        Case {
            number: "http2/6.2/2",
            says: "HEADERS of another stream behind HEADERS that have not ended",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block).request(3);
            },
        },
        Case {
            number: "http2/6.2/3",
            says: "HEADERS for the connection instead of a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.request(0);
            },
        },
        Case {
            number: "http2/6.2/4",
            says: "HEADERS with more padding than payload",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                let padded = [&[block.len() as u8 + 1], &block[..]].concat();
                s.frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &padded);
            },
        },
        Case {
            number: "http2/6.3/1",
            says: "PRIORITY for the connection instead of a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(PRIORITY, 0, 0, &[0, 0, 0, 0, 255]);
            },
        },
        Case {
            number: "http2/6.3/2",
            says: "PRIORITY of four bytes",
            expects: Expect::StreamOrConnection(1, &[FRAME_SIZE_ERROR]),
            sends: |s| {
                s.open(1, 4).frame(PRIORITY, 0, 1, &[0, 0, 0, 0]);
            },
        },
        Case {
            number: "http2/6.7/1",
            says: "PING comes back with what it carried",
            expects: Expect::Pong(b"12345678"),
            sends: |s| {
                s.frame(PING, 0, 0, b"12345678");
            },
        },
        Case {
            number: "http2/6.7/2",
            says: "an answer to a ping is not answered",
            expects: Expect::Pong(b"question"),
            sends: |s| {
                s.frame(PING, ACK, 0, b"unasked!").frame(PING, 0, 0, b"question");
            },
        },
        Case {
            number: "http2/6.7/3",
            says: "PING for a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(PING, 0, 1, &[0; 8]);
            },
        },
        Case {
            number: "http2/6.7/4",
            says: "PING of six bytes",
            expects: Expect::Connection(&[FRAME_SIZE_ERROR]),
            sends: |s| {
                s.frame(PING, 0, 0, &[0; 6]);
            },
        },
        Case {
            number: "http2/6.8/1",
            says: "GOAWAY for a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(GOAWAY, 0, 1, &[0; 8]);
            },
        },
    ]
}

fn settings() -> Vec<Case> {
    vec![
        Case {
            number: "http2/6.5/1",
            says: "an acknowledgement of SETTINGS that carries something",
            expects: Expect::Connection(&[FRAME_SIZE_ERROR]),
            sends: |s| {
                s.frame(SETTINGS, ACK, 0, &[0]);
            },
        },
        Case {
            number: "http2/6.5/2",
            says: "SETTINGS for a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(SETTINGS, 0, 1, &crate::frames::settings(&[(3, 100)]));
            },
        },
        Case {
            number: "http2/6.5/3",
            says: "SETTINGS that end inside a value",
            expects: Expect::Connection(&[FRAME_SIZE_ERROR]),
            sends: |s| {
                s.frame(SETTINGS, 0, 0, &[0, 3, 0]);
            },
        },
        Case {
            number: "http2/6.5.2/1",
            says: "ENABLE_PUSH of 2",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.settings(&[(2, 2)]);
            },
        },
        Case {
            number: "http2/6.5.2/2",
            says: "INITIAL_WINDOW_SIZE above 2^31 - 1",
            expects: Expect::Connection(&[FLOW_CONTROL_ERROR]),
            sends: |s| {
                s.settings(&[(INITIAL_WINDOW, MOST + 1)]);
            },
        },
        Case {
            number: "http2/6.5.2/3",
            says: "MAX_FRAME_SIZE below 2^14",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.settings(&[(MAX_FRAME, 16_383)]);
            },
        },
        Case {
            number: "http2/6.5.2/4",
            says: "MAX_FRAME_SIZE above 2^24 - 1",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.settings(&[(MAX_FRAME, 1 << 24)]);
            },
        },
        Case {
            number: "http2/6.5.2/5",
            says: "a value that nobody knows is passed over",
            expects: Expect::Alive,
            sends: |s| {
                s.settings(&[(0xff, 0)]);
            },
        },
        Case {
            number: "http2/6.5.3/1",
            says: "of the same value twice the last counts",
            expects: Expect::Data(1, &[1]),
            sends: |s| {
                s.settings(&[(INITIAL_WINDOW, 100), (INITIAL_WINDOW, 1)])
                    .until_acknowledged(1)
                    .open(1, 4)
                    .data(1, b"body");
            },
        },
        Case {
            number: "http2/6.5.3/2",
            says: "SETTINGS are acknowledged",
            expects: Expect::SettingsAck,
            sends: |s| {
                s.settings(&[(3, 100)]);
            },
        },
    ]
}

fn windows() -> Vec<Case> {
    vec![
        Case {
            number: "http2/6.9/1",
            says: "the connection's window grows by nothing",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                s.frame(WINDOW_UPDATE, 0, 0, &[0; 4]);
            },
        },
        Case {
            number: "http2/6.9/2",
            says: "a stream's window grows by nothing",
            expects: Expect::StreamOrConnection(1, &[PROTOCOL_ERROR]),
            sends: |s| {
                s.open(1, 4).frame(WINDOW_UPDATE, 0, 1, &[0; 4]);
            },
        },
        Case {
            number: "http2/6.9/3",
            says: "WINDOW_UPDATE of three bytes",
            expects: Expect::Connection(&[FRAME_SIZE_ERROR]),
            sends: |s| {
                s.frame(WINDOW_UPDATE, 0, 0, &[0, 0, 1]);
            },
        },
        Case {
            number: "http2/6.9.1/1",
            says: "a window of one byte lets one byte through",
            expects: Expect::Data(1, &[1]),
            sends: |s| {
                s.settings(&[(INITIAL_WINDOW, 1)]).until_acknowledged(1).open(1, 4).data(1, b"body");
            },
        },
        Case {
            number: "http2/6.9.1/2",
            says: "the connection's window grows above 2^31 - 1",
            expects: Expect::Connection(&[FLOW_CONTROL_ERROR]),
            sends: |s| {
                s.frame(WINDOW_UPDATE, 0, 0, &MOST.to_be_bytes()).frame(
                    WINDOW_UPDATE,
                    0,
                    0,
                    &MOST.to_be_bytes(),
                );
            },
        },
        Case {
            number: "http2/6.9.1/3",
            says: "a stream's window grows above 2^31 - 1",
            expects: Expect::StreamOrConnection(1, &[FLOW_CONTROL_ERROR]),
            sends: |s| {
                s.open(1, 4).frame(WINDOW_UPDATE, 0, 1, &MOST.to_be_bytes()).frame(
                    WINDOW_UPDATE,
                    0,
                    1,
                    &MOST.to_be_bytes(),
                );
            },
        },
        Case {
            number: "http2/6.9.2/1",
            says: "a larger initial window counts for a stream that is open",
            expects: Expect::Data(1, &[1]),
            sends: |s| {
                s.settings(&[(INITIAL_WINDOW, 0)])
                    .until_acknowledged(1)
                    .open(1, 4)
                    .data(1, b"body")
                    .settings(&[(INITIAL_WINDOW, 1)]);
            },
        },
        Case {
            number: "http2/6.9.2/2",
            says: "a window that became negative is filled up before anything passes",
            // 3 - 3 sent, 2 - 3 = -1, and 2 more.
            expects: Expect::Data(1, &[3, 1]),
            sends: |s| {
                s.settings(&[(INITIAL_WINDOW, 3)])
                    .until_acknowledged(1)
                    .open(1, 8)
                    .data(1, b"the body")
                    .until_data(1, 3)
                    .settings(&[(INITIAL_WINDOW, 2)])
                    .until_acknowledged(2)
                    .frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 2]);
            },
        },
        Case {
            number: "http2/6.9.2/3",
            says: "an initial window above 2^31 - 1",
            expects: Expect::Connection(&[FLOW_CONTROL_ERROR]),
            sends: |s| {
                s.settings(&[(INITIAL_WINDOW, u32::MAX)]);
            },
        },
    ]
}

fn continuations() -> Vec<Case> {
    vec![
        Case {
            number: "http2/6.10/1",
            says: "a header block in HEADERS and two CONTINUATION frames",
            expects: Expect::Answer(1),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block[..10])
                    .frame(CONTINUATION, 0, 1, &block[10..20])
                    .frame(CONTINUATION, END_HEADERS, 1, &block[20..]);
            },
        },
        Case {
            number: "http2/6.10/2",
            says: "something else behind a CONTINUATION that has not ended",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, 0, 1, &block[..10])
                    .frame(CONTINUATION, 0, 1, &block[10..])
                    .frame(DATA, END_STREAM, 1, b"body");
            },
        },
        Case {
            number: "http2/6.10/3",
            says: "CONTINUATION for the connection instead of a stream",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block[..10]).frame(
                    CONTINUATION,
                    END_HEADERS,
                    0,
                    &block[10..],
                );
            },
        },
        Case {
            number: "http2/6.10/4",
            says: "CONTINUATION behind HEADERS that have ended",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.open(1, 4).frame(CONTINUATION, END_HEADERS, 1, &block);
            },
        },
        Case {
            number: "http2/6.10/5",
            says: "CONTINUATION behind a CONTINUATION that has ended",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, 0, 1, &block[..10]).frame(CONTINUATION, END_HEADERS, 1, &block[10..]).frame(
                    CONTINUATION,
                    END_HEADERS,
                    1,
                    &block,
                );
            },
        },
        Case {
            number: "http2/6.10/6",
            says: "CONTINUATION behind DATA",
            expects: Expect::Connection(&[PROTOCOL_ERROR]),
            sends: |s| {
                let block = s.block();
                s.open(1, 8).frame(DATA, 0, 1, b"body").frame(CONTINUATION, END_HEADERS, 1, &block);
            },
        },
    ]
}
