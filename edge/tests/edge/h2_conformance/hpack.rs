//! Header blocks that cannot be decoded: RFC 7541. The connection's tables are lost with them, and so is the connection.

use super::{COMPRESSION_ERROR, Case, Expect, Script};
use crate::frames::{END_HEADERS, END_STREAM, HEADERS, integer, string};

const LOST: Expect = Expect::Connection(&[COMPRESSION_ERROR]);

fn with(script: &mut Script, before: &[u8], after: &[u8]) {
    let block = [before, &script.block(), after].concat();
    script.frame(HEADERS, END_HEADERS | END_STREAM, 1, &block);
}

/// A field whose value claims to be Huffman code.
fn huffman(value: &[u8]) -> Vec<u8> {
    [vec![0], string(b"x-value", false), string(value, true)].concat()
}

pub(super) fn cases() -> Vec<Case> {
    vec![
        Case {
            number: "hpack/2.3.3/1",
            says: "an index behind the end of both tables",
            expects: LOST,
            sends: |s| with(s, &[], &integer(0x80, 7, 70)),
        },
        Case {
            number: "hpack/4.2/1",
            says: "a new table size behind the fields",
            expects: LOST,
            sends: |s| with(s, &[], &integer(0x20, 5, 128)),
        },
        Case {
            number: "hpack/5.2/1",
            says: "Huffman code with a whole byte of padding",
            expects: LOST,
            // `no-cache`, and eight bits more.
            sends: |s| with(s, &[], &huffman(&[0xa8, 0xeb, 0x10, 0x64, 0x9c, 0xbf, 0xff])),
        },
        Case {
            number: "hpack/5.2/2",
            says: "Huffman code padded with zeros",
            expects: LOST,
            // `av`, and four bits more.
            sends: |s| with(s, &[], &huffman(&[0x1f, 0x70])),
        },
        Case {
            number: "hpack/5.2/3",
            says: "Huffman code with the end-of-string symbol inside",
            expects: LOST,
            // Thirty ones, then an `a`.
            sends: |s| with(s, &[], &huffman(&[0xff, 0xff, 0xff, 0xfc, 0x7f])),
        },
        Case { number: "hpack/6.1/1", says: "index 0", expects: LOST, sends: |s| with(s, &[], &[0x80]) },
        Case {
            number: "hpack/6.3/1",
            says: "a table size larger than was offered",
            expects: LOST,
            sends: |s| with(s, &integer(0x20, 5, 4097), &[]),
        },
    ]
}
