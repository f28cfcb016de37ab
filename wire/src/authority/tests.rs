//! The filter against random streams, and in front of a real `h2` server.

mod blocks;
mod served;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, ReadBuf};

use super::{AuthorityFilter, Filter};
use crate::sniff::PREFACE;
use blocks::{Rng, continuation, field, headers, literal, stream_of};

const URL: &[u8] = b"wss://kas.example.com/-/kubernetes-agent/";
const MAPPED: &[u8] = b"wss---kas.example.com---kubernetes-agent-";

fn filtered(bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut filter = Filter::default();
    filter.push(bytes, &mut out);
    filter.finish(&mut out);
    out
}

fn filtered_in_pieces(bytes: &[u8], mut piece: impl FnMut() -> usize) -> Vec<u8> {
    let mut out = Vec::new();
    let mut filter = Filter::default();
    let mut rest = bytes;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(piece().clamp(1, rest.len()));
        filter.push(now, &mut out);
        rest = later;
    }
    filter.finish(&mut out);
    out
}

fn opening(frames: &[Vec<u8>]) -> Vec<u8> {
    [&PREFACE[..], b"\0\0\0\x04\0\0\0\0\0", &frames.concat()].concat()
}

/// Runs `property` on many seeds; a failure names the one to put in POSTERN_SEED.
fn for_many_seeds(count: u64, property: impl Fn(&mut Rng)) {
    let fixed = std::env::var("POSTERN_SEED").ok().and_then(|seed| seed.parse().ok());
    let first: u64 = fixed.unwrap_or_else(|| rand::random::<u64>() >> 16);
    for seed in first..first + if fixed.is_some() { 1 } else { count } {
        // Shown only when the test fails.
        println!("POSTERN_SEED={seed}");
        property(&mut Rng::new(seed));
    }
}

#[test]
fn a_whole_url_is_mapped_byte_for_byte_and_the_rest_is_copied() {
    let before =
        opening(&[headers(1, &[&[0x82, 0x86, 0x84][..], &literal(0x41, URL, false), b"\xbe"].concat())]);
    let after =
        opening(&[headers(1, &[&[0x82, 0x86, 0x84][..], &literal(0x41, MAPPED, false), b"\xbe"].concat())]);
    assert_eq!(filtered(&before), after);
    let encoded = b"wss:%2F%2Fkas.example.com%2F-%2Fkubernetes-agent%2F";
    let mapped = b"wss--2F-2Fkas.example.com-2F--2Fkubernetes-agent-2F";
    let before = opening(&[headers(1, &literal(0x01, encoded, true))]);
    let after = opening(&[headers(1, &literal(0x01, mapped, true))]);
    assert_eq!(filtered(&before), after);
}

#[test]
fn authorities_that_h2_takes_and_empty_ones_are_left() {
    for authority in ["kas.example.com", "h:8150", ":h", "u@h", "a_b", "wss:", "[::1]:80", ""] {
        for huffman in [false, true] {
            let bytes = opening(&[headers(1, &literal(0x41, authority.as_bytes(), huffman))]);
            assert_eq!(filtered(&bytes), bytes, "{authority}");
        }
    }
}

#[test]
fn other_headers_are_never_touched() {
    let block = [field(0x40, b":authorit", URL, false), field(0x00, b"host", URL, true)].concat();
    let bytes = opening(&[headers(1, &block)]);
    assert_eq!(filtered(&bytes), bytes);
}

#[test]
fn what_is_no_http2_passes() {
    let bytes = [b"GET / HTTP/1.1\r\n\r\n".to_vec(), headers(1, &literal(0x41, URL, false))].concat();
    assert_eq!(filtered(&bytes), bytes);
    assert_eq!(filtered_in_pieces(&bytes, || 1), bytes);
}

#[test]
fn a_frame_larger_than_the_server_takes_passes_at_once() {
    let start = [&PREFACE[..], &[0, 0x40, 1, 1, 4, 0, 0, 0, 1], b"some"].concat();
    let mut filter = Filter::default();
    let mut out = Vec::new();
    filter.push(&start, &mut out);
    assert_eq!(out, start, "so that the server can refuse it now");
}

#[test]
fn a_foreign_frame_inside_a_block_ends_all_filtering() {
    let block = literal(0x41, URL, false);
    let mut open = headers(1, &block);
    open[4] &= !4;
    let bytes = opening(&[open, vec![0, 0, 0, 6, 0, 0, 0, 0, 0], headers(3, &block)]);
    assert_eq!(filtered(&bytes), bytes);
}

#[test]
fn floods_and_huge_blocks_pass_unread_and_the_next_block_is_repaired() {
    let good = headers(3, &literal(0x41, URL, false));
    let repaired = headers(3, &literal(0x41, MAPPED, false));
    let mut flood = vec![{
        let mut open = headers(1, &literal(0x41, URL, false));
        open[4] &= !4;
        open
    }];
    flood.extend((0..40).map(|_| continuation(1, b"", false)));
    let mut huge = vec![flood[0].clone()];
    huge.extend((0..6).map(|_| continuation(1, &[0x82; 16_000], false)));
    for mut frames in [flood, huge] {
        frames.push(continuation(1, b"", true));
        let mut filter = Filter::default();
        let mut out = Vec::new();
        let bytes = opening(&frames);
        filter.push(&bytes, &mut out);
        assert!(out == bytes, "nothing is held back");
        filter.push(&good, &mut out);
        assert!(out == [bytes, repaired.clone()].concat());
    }
}

#[test]
fn an_unfinished_block_is_given_back_at_the_end() {
    let whole = opening(&[headers(1, &literal(0x41, URL, false))]);
    for cut in PREFACE.len()..whole.len() {
        assert_eq!(filtered(&whole[..cut]), &whole[..cut]);
    }
}

#[test]
fn random_streams_come_out_the_same_however_they_are_cut_never_longer_and_once_is_enough() {
    for_many_seeds(400, |rng| {
        let bytes = stream_of(rng, true);
        let whole = filtered(&bytes);
        assert!(whole.len() <= bytes.len());
        assert!(filtered(&whole) == whole, "idempotent");
        let largest = 1 + rng.below(90);
        assert!(filtered_in_pieces(&bytes, || rng.below(largest)) == whole, "cut");
    });
}

#[test]
fn random_streams_without_a_bad_authority_are_not_changed() {
    for_many_seeds(200, |rng| {
        let bytes = stream_of(rng, false);
        assert!(filtered(&bytes) == bytes);
    });
}

#[test]
fn damaged_streams_make_no_difference_to_cuts_length_or_calm() {
    for_many_seeds(400, |rng| {
        let mut bytes = stream_of(rng, true);
        for _ in 0..1 + rng.below(8) {
            let at = PREFACE.len() + rng.below(bytes.len() - PREFACE.len());
            bytes[at] = rng.byte();
        }
        bytes.truncate(PREFACE.len() + rng.below(bytes.len()));
        let whole = filtered(&bytes);
        assert!(whole.len() <= bytes.len());
        assert!(filtered_in_pieces(&bytes, || rng.below(40)) == whole, "cut");
    });
}

/// Gives its bytes in pieces of random size.
struct Chopped<'a> {
    rest: &'a [u8],
    rng: Rng,
}

impl AsyncRead for Chopped<'_> {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let given = (1 + this.rng.below(60)).min(this.rest.len()).min(buf.remaining());
        let (now, later) = this.rest.split_at(given);
        buf.put_slice(now);
        this.rest = later;
        Poll::Ready(Ok(()))
    }
}

#[tokio::test]
async fn reading_through_the_filter_gives_what_pushing_gives_and_keeps_no_buffer() {
    for seed in 1..60 {
        let bytes = stream_of(&mut Rng::new(seed), true);
        let mut io = AuthorityFilter::new(Chopped { rest: &bytes, rng: Rng::new(seed) });
        let mut read = Vec::new();
        let mut small = [0; 37];
        loop {
            match io.read(&mut small).await.unwrap() {
                0 => break,
                given => read.extend_from_slice(&small[..given]),
            }
        }
        assert!(read == filtered(&bytes), "seed {seed}");
        assert!(io.ready.is_empty());
    }
}
