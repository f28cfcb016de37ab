//! Finds the `:authority` fields of one HPACK header block and replaces the values that the `h2` crate would refuse.
//!
//! Called by [`super::Filter`] with a whole block, padding and frames already taken off. Strings are skipped by their
//! length; only an authority is decoded. Keeps no table: a replaced value decodes to as many bytes as before, so the
//! peer's table and h2's stay in step.

use http::uri::Authority;

use super::huffman;

/// Octets of one integer, the limit of `h2`: what it refuses must not be understood here.
const MAX_INTEGER: usize = 5;
const NAME: &[u8] = b":authority";
const STATIC_INDEX: usize = 1;

/// The block is not HPACK as `h2` would read it.
struct Malformed;

/// A value in the block: where its length prefix starts, its text, and the form it came in.
struct Value<'a> {
    from: usize,
    to: usize,
    text: &'a [u8],
    huffman: bool,
}

/// Would [`repair`] change this block?
pub(super) fn needs_repair(block: &[u8]) -> bool {
    let mut found = false;
    let walked = each_authority(block, |value| found = found || replacement(&value).is_some());
    walked.is_ok() && found
}

/// Appends the repaired block to `out`, never longer than it came; `false`, and `out` as it was, when there is
/// nothing to repair or the block is not understood.
pub(super) fn repair(block: &[u8], out: &mut Vec<u8>) -> bool {
    let before = out.len();
    let mut copied = 0;
    let walked = each_authority(block, |value| {
        if let Some(text) = replacement(&value) {
            out.extend_from_slice(&block[copied..value.from]);
            // In the form it came: a raw string that would be shorter in Huffman code stays raw.
            if value.huffman {
                put_length(huffman::encoded_len(&text), 0x80, out);
                huffman::encode(&text, out);
            } else {
                put_length(text.len(), 0, out);
                out.extend_from_slice(&text);
            }
            copied = value.to;
        }
    });
    if walked.is_err() || copied == 0 {
        out.truncate(before);
        return false;
    }
    out.extend_from_slice(&block[copied..]);
    true
}

/// The text to put in the value's place, when it needs another.
fn replacement(value: &Value<'_>) -> Option<Vec<u8>> {
    let mut text = if value.huffman { huffman::decode(value.text)? } else { value.text.to_vec() };
    // An empty authority cannot be made valid at the same length. The test is h2's own: a stricter one would change
    // values that pass today, a laxer one would leave some broken.
    if text.is_empty() || Authority::try_from(text.as_slice()).is_ok() {
        return None;
    }
    let mut changed = false;
    for byte in &mut text {
        if !(byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-')) {
            *byte = b'-';
            changed = true;
        }
    }
    changed.then_some(text)
}

/// Calls `found` for every literal field of the block whose name is `:authority`.
fn each_authority<'a>(block: &'a [u8], mut found: impl FnMut(Value<'a>)) -> Result<(), Malformed> {
    let mut at = 0;
    while let Some(&first) = block.get(at) {
        let name = match first {
            // Indexed field, then size update: no strings.
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x20..=0x3f => {
                integer(block, &mut at, 5)?;
                continue;
            }
            // Literal with incremental indexing; without; never indexed.
            0x40..=0x7f => integer(block, &mut at, 6)?,
            0x00..=0x1f => integer(block, &mut at, 4)?,
        };
        let is_authority = match name {
            0 => {
                let name = string(block, &mut at)?;
                if name.huffman { is_huffman_name(name.text) } else { name.text == NAME }
            }
            index => index == STATIC_INDEX,
        };
        let value = string(block, &mut at)?;
        if is_authority {
            found(value);
        }
    }
    Ok(())
}

/// The code is unique, so the encoded name is compared; eight bytes is its length.
fn is_huffman_name(text: &[u8]) -> bool {
    text.len() == 8 && huffman::decode(text).is_some_and(|name| name == NAME)
}

fn string<'a>(block: &'a [u8], at: &mut usize) -> Result<Value<'a>, Malformed> {
    let from = *at;
    let huffman = block.get(from).ok_or(Malformed)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let to = at.checked_add(length).ok_or(Malformed)?;
    let text = block.get(*at..to).ok_or(Malformed)?;
    *at = to;
    Ok(Value { from, to, text, huffman })
}

fn integer(block: &[u8], at: &mut usize, prefix_bits: u32) -> Result<usize, Malformed> {
    let mask = (1_usize << prefix_bits) - 1;
    let mut value = usize::from(*block.get(*at).ok_or(Malformed)?) & mask;
    *at += 1;
    if value < mask {
        return Ok(value);
    }
    for octet in 0..MAX_INTEGER - 1 {
        let byte = *block.get(*at).ok_or(Malformed)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << (7 * octet);
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(Malformed)
}

/// A string's length in the fewest octets, with the Huffman bit.
fn put_length(length: usize, huffman: u8, out: &mut Vec<u8>) {
    if length < 0x7f {
        out.push(huffman | length as u8);
        return;
    }
    out.push(huffman | 0x7f);
    let mut rest = length - 0x7f;
    while rest >= 0x80 {
        out.push(rest as u8 | 0x80);
        rest >>= 7;
    }
    out.push(rest as u8);
}
