//! What a candidate set of policies would have refused of what an edge has served.
//!
//! From the edge's access lines, in the order in which they were written; to people, through `postern policy simulate`.
//! Lines are read one by one and put in order of the beginning of their streams within a window, so a trace of any length
//! costs the same memory. Tells nothing about limits that only the program's own configuration sets.

mod line;
mod notes;
mod play;
mod report;
#[cfg(test)]
mod tests;

use crate::PolicySet;
use line::{Line, Stream};
use play::Play;
pub use report::{Refused, Report};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, BufRead, Read};

/// Streams that are held back until it is certain enough that none began before them. A stream's line comes when it is over.
const WINDOW: usize = 100_000;
/// A longer line is none of an edge's.
const MAX_LINE: u64 = 64 << 10;

/// Why a trace could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The file or pipe behind it failed.
    #[error("cannot read the trace after line {after}")]
    Read {
        after: u64,
        #[source]
        source: io::Error,
    },
}

/// Plays an edge's access lines through a set of policies. Lines that are no access lines, or cannot be read, are counted.
///
/// # Errors
/// The lines could not be got at.
pub fn simulate(set: &PolicySet, lines: impl BufRead) -> Result<Report, SimulateError> {
    windowed(set, lines, WINDOW)
}

fn windowed(set: &PolicySet, mut lines: impl BufRead, window: usize) -> Result<Report, SimulateError> {
    let mut play = Play::new(set);
    let mut waiting: BinaryHeap<Reverse<Stream>> = BinaryHeap::new();
    let mut text = Vec::new();
    while let Some(whole) = next(&mut lines, &mut text)
        .map_err(|source| SimulateError::Read { after: play.report.lines, source })?
    {
        play.report.lines += 1;
        match Line::read(&text, play.report.lines).filter(|_| whole) {
            Some(Line::Stream(stream)) => waiting.push(Reverse(stream)),
            Some(Line::Other) => play.report.other_lines += 1,
            None => play.report.unreadable += 1,
        }
        if waiting.len() > window
            && let Some(Reverse(stream)) = waiting.pop()
        {
            play.stream(&stream);
        }
    }
    while let Some(Reverse(stream)) = waiting.pop() {
        play.stream(&stream);
    }
    Ok(play.finish())
}

/// Reads one line. `false`: it is too long, and `text` is its beginning.
fn next(lines: &mut impl BufRead, text: &mut Vec<u8>) -> io::Result<Option<bool>> {
    text.clear();
    if lines.take(MAX_LINE).read_until(b'\n', text)? == 0 {
        return Ok(None);
    }
    let whole = text.len() < MAX_LINE as usize || text.ends_with(b"\n");
    if !whole {
        lines.skip_until(b'\n')?;
    }
    Ok(Some(whole))
}
