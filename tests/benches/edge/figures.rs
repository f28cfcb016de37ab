//! What was measured: medians over the rounds, as a table of ratios to paste, and as `target/bench/edge.json`.
//!
//! After `measures`. Judges nothing.

use crate::peers::Kind;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// One row.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Measure {
    Bare,
    Unary,
    Messages,
    MessagesShared,
    MessagesOpaque,
    Tunnel,
    Connection,
    Stream,
    Idle,
    Returned,
    Handshakes,
    LatencyMedian,
    LatencyTail,
}

impl Measure {
    const ALL: [Self; 13] = [
        Self::Bare,
        Self::Unary,
        Self::Messages,
        Self::MessagesShared,
        Self::MessagesOpaque,
        Self::Tunnel,
        Self::Connection,
        Self::Stream,
        Self::Idle,
        Self::Returned,
        Self::Handshakes,
        Self::LatencyMedian,
        Self::LatencyTail,
    ];

    /// Its words and its unit.
    fn words(self) -> (&'static str, &'static str) {
        match self {
            Self::Bare => ("CPU per h2/TLS request", "us"),
            Self::Unary => ("CPU per h2/TLS gRPC call with message and trailers", "us"),
            Self::Messages => ("CPU per WSS echo message, 64 tunnels with a stream", "us"),
            Self::MessagesShared => ("CPU per h2/TLS echo message, 4 connections with 16 streams", "us"),
            Self::MessagesOpaque => ("CPU per WSS echo message, 4 tunnels with 16 streams", "us"),
            Self::Tunnel => ("memory per idle WSS tunnel with a stream", "KiB"),
            Self::Connection => ("memory per idle h2/TLS connection with a gRPC stream", "KiB"),
            Self::Stream => ("memory per further idle gRPC stream", "KiB"),
            Self::Idle => ("memory without connections", "MB"),
            Self::Returned => ("memory returned after 2,000 connections closed", "%"),
            Self::Handshakes => ("new TLS connections per CPU second", "1/s"),
            Self::LatencyMedian => ("added latency, p50", "us"),
            Self::LatencyTail => ("added latency, p99", "us"),
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::Returned | Self::Handshakes)
    }
}

/// All values of all rounds.
#[derive(Default)]
pub(crate) struct Figures(Vec<(Measure, Kind, f64)>);

impl Figures {
    pub(crate) fn add(&mut self, measure: Measure, kind: Kind, value: f64) {
        let (words, unit) = measure.words();
        eprintln!("    {:<8} {value:>10.2} {unit:<4} {words}", kind.name());
        self.0.push((measure, kind, value));
    }

    fn median(&self, measure: Measure, kind: Kind) -> Option<f64> {
        let mut values: Vec<f64> =
            self.0.iter().filter(|one| (one.0, one.1) == (measure, kind)).map(|one| one.2).collect();
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() {
            0 => None,
            count if count % 2 == 1 => Some(values[middle]),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }

    fn measured(&self) -> impl Iterator<Item = Measure> {
        Measure::ALL.into_iter().filter(|measure| self.0.iter().any(|one| one.0 == *measure))
    }

    /// Markdown. A ratio above 1 says how many times better ours is.
    pub(crate) fn table(&self) -> String {
        let mut table =
            "| | unit | edge | HAProxy | nginx | Envoy |\n|---|---|---:|---:|---:|---:|\n".to_owned();
        for measure in self.measured() {
            let (words, unit) = measure.words();
            let ours = self.median(measure, Kind::Ours);
            table.push_str(&format!("| {words} | {unit} | {} ", ours.map_or("-".to_owned(), number)));
            for kind in [Kind::Haproxy, Kind::Nginx, Kind::Envoy] {
                let theirs = self.median(measure, kind);
                let cell = match (ours, theirs) {
                    (Some(ours), Some(theirs)) => {
                        let (worse, better) =
                            if measure.more_is_better() { (ours, theirs) } else { (theirs, ours) };
                        // What is nothing, or less, is no part of a ratio.
                        let ratio = if worse > 0.0 && better > 0.0 {
                            format!(" (x {})", number(worse / better))
                        } else {
                            String::new()
                        };
                        format!("{}{ratio}", number(theirs))
                    }
                    (None, Some(theirs)) => number(theirs),
                    (_, None) => "-".to_owned(),
                };
                table.push_str(&format!("| {cell} "));
            }
            table.push_str("|\n");
        }
        table
    }

    /// Beside the sources, wherever cargo builds.
    pub(crate) fn write(&self) -> PathBuf {
        let round = |value: f64| (value * 1e3).round() / 1e3;
        let rows = self.measured().map(|measure| {
            let (words, unit) = measure.words();
            let mut row = json!({ "measure": words, "unit": unit });
            for kind in Kind::ALL {
                row[kind.name()] = self.median(measure, kind).map(round).into();
            }
            row
        });
        let rows = Value::Array(rows.collect());
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ has a parent");
        let folder = root.join("target/bench");
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("edge.json");
        fs::write(&file, format!("{rows:#}\n")).unwrap();
        file
    }
}

/// Three digits are all that a run is good for.
fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
