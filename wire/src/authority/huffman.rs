//! The Huffman code of HPACK (RFC 7541, appendix B), for the few strings that [`super::hpack`] has to read or write.
//!
//! The code is canonical: symbols sorted by (length, value) have consecutive codes. So the lengths are the whole
//! table, and the rest is computed at build time. Decoding is bit by bit; it runs once per changed authority only.

/// Longest code, in bits.
const LONGEST: usize = 30;
/// The symbol that may stand in no string; its first bits are the padding.
const EOS: u16 = 256;

/// Bits of each symbol's code.
#[rustfmt::skip]
const LENGTHS: [u8; 257] = [
    13, 23, 28, 28, 28, 28, 28, 28, 28, 24, 30, 28, 28, 30, 28, 28,
    28, 28, 28, 28, 28, 28, 30, 28, 28, 28, 28, 28, 28, 28, 28, 28,
    6, 10, 10, 12, 13, 6, 8, 11, 10, 10, 8, 11, 8, 6, 6, 6,
    5, 5, 5, 6, 6, 6, 6, 6, 6, 6, 7, 8, 15, 6, 12, 10,
    13, 6, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7, 7,
    7, 7, 7, 7, 7, 7, 7, 7, 8, 7, 8, 13, 19, 13, 14, 6,
    15, 5, 6, 5, 6, 5, 6, 6, 6, 5, 7, 7, 6, 6, 6, 5,
    6, 7, 6, 5, 5, 6, 7, 7, 7, 7, 7, 15, 11, 14, 13, 28,
    20, 22, 20, 20, 22, 22, 22, 23, 22, 23, 23, 23, 23, 23, 24, 23,
    24, 24, 22, 23, 24, 23, 23, 23, 23, 21, 22, 23, 22, 23, 23, 24,
    22, 21, 20, 22, 22, 23, 23, 21, 23, 22, 22, 24, 21, 22, 23, 23,
    21, 21, 22, 21, 23, 22, 23, 23, 20, 22, 22, 22, 23, 22, 22, 23,
    26, 26, 20, 19, 22, 23, 22, 25, 26, 26, 26, 27, 27, 26, 24, 25,
    19, 21, 26, 27, 27, 26, 27, 24, 21, 21, 26, 26, 28, 27, 27, 27,
    20, 24, 20, 21, 22, 21, 21, 23, 22, 22, 25, 25, 24, 24, 26, 23,
    26, 27, 26, 26, 27, 27, 27, 27, 27, 28, 27, 27, 27, 27, 27, 26,
    30,
];

struct Code {
    /// Each symbol's code, right-aligned.
    codes: [u32; 257],
    /// Symbols in the order of their codes.
    sorted: [u16; 257],
    /// Per length: its first code, and how many codes there are.
    first: [u32; LONGEST + 1],
    count: [u32; LONGEST + 1],
    /// Per length: where its symbols start in `sorted`.
    start: [usize; LONGEST + 1],
}

static CODE: Code = derive();

const fn derive() -> Code {
    let mut code = Code {
        codes: [0; 257],
        sorted: [0; 257],
        first: [0; LONGEST + 1],
        count: [0; LONGEST + 1],
        start: [0; LONGEST + 1],
    };
    let mut next = 0_u32;
    let mut placed = 0;
    let mut length = 1;
    while length <= LONGEST {
        next <<= 1;
        code.first[length] = next;
        code.start[length] = placed;
        let mut symbol = 0;
        while symbol < LENGTHS.len() {
            if LENGTHS[symbol] as usize == length {
                code.codes[symbol] = next;
                code.sorted[placed] = symbol as u16;
                code.count[length] += 1;
                placed += 1;
                next += 1;
            }
            symbol += 1;
        }
        length += 1;
    }
    code
}

/// Decodes a whole string; `None` when it is not one (a code cut off, EOS inside, or padding other than EOS bits).
pub(super) fn decode(bytes: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(bytes.len() * 8 / 5);
    let mut code = 0_u32;
    let mut length = 0;
    for byte in bytes {
        for bit in (0..8).rev() {
            code = code << 1 | u32::from(byte >> bit & 1);
            length += 1;
            if length > LONGEST {
                return None;
            }
            // Codes of this length are consecutive; those of longer ones lie above.
            let at = code.wrapping_sub(CODE.first[length]);
            if at < CODE.count[length] {
                let symbol = CODE.sorted[CODE.start[length] + at as usize];
                if symbol == EOS {
                    return None;
                }
                decoded.push(symbol as u8);
                code = 0;
                length = 0;
            }
        }
    }
    let all_ones = (1_u32 << length) - 1;
    (length < 8 && code == all_ones).then_some(decoded)
}

/// Bytes that [`encode`] will append for `text`.
pub(super) fn encoded_len(text: &[u8]) -> usize {
    text.iter().map(|&byte| usize::from(LENGTHS[usize::from(byte)])).sum::<usize>().div_ceil(8)
}

/// Appends the code of `text`, padded with ones to a whole byte.
pub(super) fn encode(text: &[u8], out: &mut Vec<u8>) {
    let mut bits = 0_u64;
    let mut held = 0_u32;
    for &byte in text {
        let length = u32::from(LENGTHS[usize::from(byte)]);
        bits = bits << length | u64::from(CODE.codes[usize::from(byte)]);
        held += length;
        while held >= 8 {
            held -= 8;
            out.push((bits >> held) as u8);
        }
    }
    if held > 0 {
        let padding = 8 - held;
        out.push((bits << padding) as u8 | ((1_u16 << padding) - 1) as u8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(text: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(text, &mut out);
        assert_eq!(out.len(), encoded_len(text));
        out
    }

    #[test]
    fn the_examples_of_the_rfc_come_out() {
        for (text, hex) in [
            ("www.example.com", "f1e3c2e5f23a6ba0ab90f4ff"),
            ("no-cache", "a8eb10649cbf"),
            ("custom-value", "25a849e95bb8e8b4bf"),
            ("Mon, 21 Oct 2013 20:13:21 GMT", "d07abe941054d444a8200595040b8166e082a62d1bff"),
        ] {
            let code = encoded(text.as_bytes());
            assert_eq!(hex::encode(&code), hex);
            assert_eq!(decode(&code).unwrap(), text.as_bytes());
        }
    }

    #[test]
    fn every_byte_comes_back_and_the_longest_code_ends_the_table() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(decode(&encoded(&all)).unwrap(), all);
        assert_eq!(CODE.codes[usize::from(EOS)], (1 << LONGEST) - 1);
    }

    #[test]
    fn what_is_no_string_is_refused() {
        assert_eq!(decode(&[0xff]), None, "eight bits of padding");
        assert_eq!(decode(&[0xff; 4]), None, "EOS");
        assert_eq!(decode(&[0b0001_1000]), None, "padding with zeros");
        assert_eq!(decode(&[]), Some(Vec::new()));
    }

    #[test]
    fn no_replaced_byte_has_a_shorter_code_than_the_hyphen() {
        let hyphen = LENGTHS[usize::from(b'-')];
        for byte in 0..=255_u8 {
            if !(byte.is_ascii_alphanumeric() || byte == b'.') {
                assert!(LENGTHS[usize::from(byte)] >= hyphen, "{byte:#x}");
            }
        }
    }
}
