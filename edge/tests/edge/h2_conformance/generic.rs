//! What any server takes: sound frames of every type, requests of every shape, every form of header field.

use super::{CANCEL, Case, Expect, Script};
use crate::frames::{
    CONTINUATION, DATA, DEPENDS, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PADDED, PING, PREFACE, PRIORITY,
    SETTINGS, WINDOW_UPDATE, integer, literal, settings, string,
};

/// `no-cache`, `custom-key` and `custom-value` in Huffman code (RFC 7541, C.4).
const NO_CACHE: &[u8] = &[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf];
const CUSTOM_KEY: &[u8] = &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xa9, 0x7d, 0x7f];
const CUSTOM_VALUE: &[u8] = &[0x25, 0xa8, 0x49, 0xe9, 0x5b, 0xb8, 0xe8, 0xb4, 0xbf];
/// `cache-control` in the static table.
const CACHE_CONTROL: usize = 24;

/// A request whose block ends, or begins, with these bytes.
fn with_field(script: &mut Script, before: &[u8], after: &[u8]) {
    let block = [before, &script.block(), after].concat();
    script.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
}

/// A field with the name `cache-control` from the table; `bits` of the first byte are the index.
fn indexed_name(first: u8, bits: u8, huffman: bool) -> Vec<u8> {
    let value = if huffman { string(NO_CACHE, true) } else { string(b"no-cache", false) };
    [integer(first, bits, CACHE_CONTROL), value].concat()
}

fn new_name(first: u8, huffman: bool) -> Vec<u8> {
    if huffman {
        [vec![first], string(CUSTOM_KEY, true), string(CUSTOM_VALUE, true)].concat()
    } else {
        literal(first, "custom-key", "custom-value")
    }
}

fn prioritized(script: &mut Script, dependency: u32, weight: u8) {
    script.frame(PRIORITY, 0, 1, &[&dependency.to_be_bytes()[..], &[weight]].concat()).request(1);
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            number: "generic/1/1",
            says: "preface and SETTINGS are answered with SETTINGS, before anything else",
            expects: Expect::Settings,
            sends: |s| {
                s.unannounced().bytes(PREFACE).frame(SETTINGS, 0, 0, &[]);
            },
        },
        Case {
            number: "generic/2/1",
            says: "PRIORITY may come for a stream that is still idle",
            expects: Expect::Answer(1),
            sends: |s| prioritized(s, 0, 255),
        },
        Case {
            number: "generic/2/2",
            says: "WINDOW_UPDATE may come when the request has ended",
            expects: Expect::Answer(1),
            sends: |s| {
                s.request(1).frame(WINDOW_UPDATE, 0, 1, &100u32.to_be_bytes());
            },
        },
        Case {
            number: "generic/2/3",
            says: "PRIORITY may come when the request has ended",
            expects: Expect::Answer(1),
            sends: |s| {
                s.request(1).frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
            },
        },
        Case {
            number: "generic/2/4",
            says: "a request may be cancelled when it has ended",
            expects: Expect::Alive,
            sends: |s| {
                s.request(1).reset(1, CANCEL);
            },
        },
        Case {
            number: "generic/2/5",
            says: "PRIORITY may come for a stream that is closed",
            expects: Expect::Alive,
            sends: |s| {
                s.request(1).until_answered(1).frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 255]);
            },
        },
        Case {
            number: "generic/3.1/1",
            says: "a body in one DATA frame",
            expects: Expect::Answer(1),
            sends: |s| {
                s.open(1, 4).data(1, b"body");
            },
        },
        Case {
            number: "generic/3.1/2",
            says: "a body in several DATA frames",
            expects: Expect::Answer(1),
            sends: |s| {
                s.open(1, 8).frame(DATA, 0, 1, b"body").data(1, b"more");
            },
        },
        Case {
            number: "generic/3.1/3",
            says: "a padded body",
            expects: Expect::Answer(1),
            sends: |s| {
                s.open(1, 4).frame(DATA, END_STREAM | PADDED, 1, b"\x06body\0\0\0\0\0\0");
            },
        },
        Case {
            number: "generic/3.2/1",
            says: "a request in one HEADERS frame",
            expects: Expect::Answer(1),
            sends: |s| {
                s.request(1);
            },
        },
        Case {
            number: "generic/3.2/2",
            says: "padded HEADERS",
            expects: Expect::Answer(1),
            sends: |s| {
                let block = [&[6], &s.block()[..], &[0; 6]].concat();
                s.frame(HEADERS, END_HEADERS | END_STREAM | PADDED, 1, &block);
            },
        },
        Case {
            number: "generic/3.2/3",
            says: "HEADERS with a priority",
            expects: Expect::Answer(1),
            sends: |s| {
                let block = [&[0, 0, 0, 0, 255], &s.block()[..]].concat();
                s.frame(HEADERS, END_HEADERS | END_STREAM | DEPENDS, 1, &block);
            },
        },
        Case {
            number: "generic/3.3/1",
            says: "PRIORITY with the least weight",
            expects: Expect::Answer(1),
            sends: |s| prioritized(s, 0, 0),
        },
        Case {
            number: "generic/3.3/2",
            says: "PRIORITY with the greatest weight",
            expects: Expect::Answer(1),
            sends: |s| prioritized(s, 0, 255),
        },
        Case {
            number: "generic/3.3/3",
            says: "PRIORITY that depends on another stream",
            expects: Expect::Answer(1),
            sends: |s| prioritized(s, 3, 15),
        },
        Case {
            number: "generic/3.3/4",
            says: "PRIORITY that depends on another stream alone",
            expects: Expect::Answer(1),
            sends: |s| prioritized(s, 0x8000_0003, 15),
        },
        Case {
            number: "generic/3.3/5",
            says: "PRIORITY for an idle stream does not use up the lower ones",
            expects: Expect::Answer(3),
            sends: |s| {
                s.frame(PRIORITY, 0, 5, &[0, 0, 0, 0, 15]).request(3);
            },
        },
        Case {
            number: "generic/3.4/1",
            says: "a request is cancelled before it ends",
            expects: Expect::Alive,
            sends: |s| {
                s.open(1, 4).reset(1, CANCEL);
            },
        },
        Case {
            number: "generic/3.5/1",
            says: "SETTINGS with values are acknowledged",
            expects: Expect::SettingsAck,
            sends: |s| {
                s.settings(&[(3, 100), (4, 65_535), (5, 16_384)]);
            },
        },
        Case {
            number: "generic/3.7/1",
            says: "PING comes back",
            expects: Expect::Pong(b"payload."),
            sends: |s| {
                s.frame(PING, 0, 0, b"payload.");
            },
        },
        Case {
            number: "generic/3.8/1",
            says: "GOAWAY without an error is taken",
            expects: Expect::AliveOrClosed,
            sends: |s| {
                s.frame(GOAWAY, 0, 0, &[0; 8]);
            },
        },
        Case {
            number: "generic/3.9/1",
            says: "the connection's window grows",
            expects: Expect::Alive,
            sends: |s| {
                s.frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
            },
        },
        Case {
            number: "generic/3.9/2",
            says: "a stream's window grows",
            expects: Expect::Answer(1),
            sends: |s| {
                s.open(1, 4).frame(WINDOW_UPDATE, 0, 1, &[0, 0, 0, 1]).data(1, b"body");
            },
        },
        Case {
            number: "generic/3.10/1",
            says: "a header block that ends in a CONTINUATION",
            expects: Expect::Answer(1),
            sends: |s| {
                let block = s.block();
                let (head, tail) = block.split_at(block.len() / 2);
                s.frame(HEADERS, END_STREAM, 1, head).frame(CONTINUATION, END_HEADERS, 1, tail);
            },
        },
        Case {
            number: "generic/3.10/2",
            says: "a header block in several CONTINUATION frames",
            expects: Expect::Answer(1),
            sends: |s| {
                let block = s.block();
                s.frame(HEADERS, END_STREAM, 1, &block[..10])
                    .frame(CONTINUATION, 0, 1, &block[10..11])
                    .frame(CONTINUATION, 0, 1, &[])
                    .frame(CONTINUATION, END_HEADERS, 1, &block[11..]);
            },
        },
        Case {
            number: "generic/4/1",
            says: "GET",
            expects: Expect::Answer(1),
            sends: |s| {
                let fields = s.fields().set(":method", "GET");
                s.asks(&fields);
            },
        },
        Case {
            number: "generic/4/2",
            says: "HEAD",
            expects: Expect::Answer(1),
            sends: |s| {
                let fields = s.fields().set(":method", "HEAD");
                s.asks(&fields);
            },
        },
        Case {
            number: "generic/4/3",
            says: "POST with a body",
            expects: Expect::Answer(1),
            sends: |s| {
                s.open(1, 4).data(1, b"body");
            },
        },
        Case {
            number: "generic/4/4",
            says: "POST with a body and trailers",
            expects: Expect::Answer(1),
            sends: |s| {
                let trailers = literal(0, "x-checksum", "4711");
                s.open(1, 4).frame(DATA, 0, 1, b"body").frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    1,
                    &trailers,
                );
            },
        },
        Case {
            number: "generic/5/1",
            says: "a field that stands whole in the static table",
            // `accept-encoding: gzip, deflate`.
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &[0x90]),
        },
        Case {
            number: "generic/5/2",
            says: "a literal to be indexed, its name from the table",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &indexed_name(0x40, 6, false)),
        },
        Case {
            number: "generic/5/3",
            says: "a literal to be indexed, its name from the table, in Huffman code",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &indexed_name(0x40, 6, true)),
        },
        Case {
            number: "generic/5/4",
            says: "a literal to be indexed, with its name",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &new_name(0x40, false)),
        },
        Case {
            number: "generic/5/5",
            says: "a literal to be indexed, with its name, in Huffman code",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &new_name(0x40, true)),
        },
        Case {
            number: "generic/5/6",
            says: "a literal not to be indexed, its name from the table",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &indexed_name(0x00, 4, false)),
        },
        Case {
            number: "generic/5/7",
            says: "a literal not to be indexed, its name from the table, in Huffman code",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &indexed_name(0x00, 4, true)),
        },
        Case {
            number: "generic/5/8",
            says: "a literal not to be indexed, with its name",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &new_name(0x00, false)),
        },
        Case {
            number: "generic/5/9",
            says: "a literal not to be indexed, with its name, in Huffman code",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &new_name(0x00, true)),
        },
        Case {
            number: "generic/5/10",
            says: "a literal never to be indexed, its name from the table",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &indexed_name(0x10, 4, false)),
        },
        Case {
            number: "generic/5/11",
            says: "a literal never to be indexed, its name from the table, in Huffman code",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &indexed_name(0x10, 4, true)),
        },
        Case {
            number: "generic/5/12",
            says: "a literal never to be indexed, with its name",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &new_name(0x10, false)),
        },
        Case {
            number: "generic/5/13",
            says: "a literal never to be indexed, with its name, in Huffman code",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[], &new_name(0x10, true)),
        },
        Case {
            number: "generic/5/14",
            says: "a new size of the dynamic table",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &integer(0x20, 5, 128), &[]),
        },
        Case {
            number: "generic/5/15",
            says: "two new sizes of the dynamic table, one after the other",
            expects: Expect::Answer(1),
            sends: |s| with_field(s, &[integer(0x20, 5, 128), integer(0x20, 5, 4096)].concat(), &[]),
        },
        Case {
            number: "http2/3.5/1",
            says: "the preface alone, SETTINGS following later, is answered with SETTINGS",
            expects: Expect::Settings,
            sends: |s| {
                let hello = settings(&[(2, 0)]);
                s.unannounced().bytes(PREFACE).frame(SETTINGS, 0, 0, &hello);
            },
        },
    ]
}
