//! One round: every measure over every proxy, in an order that changes from round to round.
//!
//! From `main`; uses `load` on `peers`, fills `figures`. Memory is read from processes that served nothing before.

use crate::{
    client::Road,
    figures::{Figures, Measure},
    load::{self, Call, Idle, Pool, Shape},
    peers::{Field, Kind, Peer},
    process::{self, Place},
};
use bytes::Bytes;
use std::time::Duration;
use tokio::time::sleep;

/// How much of everything.
pub(crate) struct Scale {
    pub(crate) time: Duration,
    pub(crate) tunnels: usize,
    /// Idle HTTP/2 connections, which get `FURTHER` streams each beside their first.
    pub(crate) connections: usize,
    /// What a proxy may take to give memory back.
    pub(crate) patience: Duration,
}

/// Which groups of rows, and whose; all if nobody asks for less.
pub(crate) struct Wanted {
    pub(crate) rows: Option<String>,
    pub(crate) kinds: Vec<Kind>,
}

impl Wanted {
    fn rows(&self, group: &str) -> bool {
        self.rows.is_none() || self.asks_for(group)
    }

    /// For rows that are no comparison of like with like, and so only run when somebody wants to know.
    fn asks_for(&self, group: &str) -> bool {
        self.rows.as_ref().is_some_and(|rows| rows.split(',').any(|row| row == group))
    }

    /// Everybody once, another one first in each round.
    fn turn(&self, round: usize) -> Vec<Kind> {
        let mut kinds = self.kinds.clone();
        let by = round % kinds.len();
        kinds.rotate_left(by);
        kinds
    }
}

const REQUESTS: Shape = Shape { connections: 4, streams: 8 };
const TUNNELS: Shape = Shape { connections: 64, streams: 1 };
const SHARED: Shape = Shape { connections: 4, streams: 16 };
const ONE: Shape = Shape { connections: 1, streams: 1 };
const HANDSHAKES: usize = 8;
const FURTHER: usize = 9;
/// Until allocators have sorted themselves out.
const SETTLE: Duration = Duration::from_millis(1500);

/// Length in front, as gRPC has it.
fn message(size: usize) -> Bytes {
    let mut message = vec![b'm'; size];
    message[..5].copy_from_slice(&[0, 0, 0, 0, u8::try_from(size - 5).unwrap_or(u8::MAX)]);
    message.into()
}

/// Runs one round.
pub(crate) async fn round(
    field: &Field,
    wanted: &Wanted,
    scale: &Scale,
    round: usize,
    figures: &mut Figures,
) {
    let turn = wanted.turn(round);
    let busy = ["requests", "messages", "handshakes", "latency", "idle"];
    if busy.iter().any(|group| wanted.rows(group)) || wanted.asks_for("opaque") {
        let peers = start(field, &turn).await;
        if wanted.rows("idle") {
            sleep(SETTLE).await;
            for peer in &peers {
                figures.add(Measure::Idle, peer.kind, peer.resident() as f64 * 1024.0 / 1e6);
            }
        }
        if wanted.rows("requests") {
            for (measure, call) in [(Measure::Bare, Call::Bare), (Measure::Unary, Call::Unary)] {
                for peer in &peers {
                    figures.add(measure, peer.kind, requests(field, peer, call, scale).await);
                }
            }
        }
        if wanted.rows("messages") {
            for (measure, road, shape) in
                [(Measure::Messages, Road::Wss, TUNNELS), (Measure::MessagesShared, Road::Tls, SHARED)]
            {
                for peer in &peers {
                    figures.add(measure, peer.kind, messages(field, peer, (road, shape), scale).await);
                }
            }
        }
        if wanted.asks_for("opaque") {
            for peer in &peers {
                let used = messages(field, peer, (Road::Wss, SHARED), scale).await;
                figures.add(Measure::MessagesOpaque, peer.kind, used);
            }
        }
        if wanted.rows("handshakes") {
            for peer in &peers {
                figures.add(Measure::Handshakes, peer.kind, handshakes(field, peer, scale).await);
            }
        }
        if wanted.rows("latency") {
            let (median, tail) = latency(field, Road::Direct, field.origin, &[], scale).await;
            eprintln!("    direct   {median:>10.2} us, p99 {tail:.2} us");
            for peer in &peers {
                let (slower, tail_slower) = latency(field, Road::Tls, peer.port, &peer.family, scale).await;
                figures.add(Measure::LatencyMedian, peer.kind, slower - median);
                figures.add(Measure::LatencyTail, peer.kind, tail_slower - tail);
            }
        }
    }
    if wanted.rows("tunnels") {
        tunnels(field, &turn, scale, figures).await;
    }
    if wanted.rows("streams") {
        streams(field, &turn, scale, figures).await;
    }
}

async fn start(field: &Field, turn: &[Kind]) -> Vec<Peer> {
    let mut peers = Vec::new();
    for kind in turn {
        let peer = Peer::start(field, *kind).await;
        process::place(&peer.family, Place::Anywhere);
        peers.push(peer);
    }
    peers
}

/// Microseconds of CPU for each of what `count` counts.
fn each(peer: &Peer, used: Duration, count: u64, scale: &Scale) -> f64 {
    let rate = count as f64 / scale.time.as_secs_f64();
    let share = used.as_secs_f64() / scale.time.as_secs_f64() * 100.0;
    eprintln!("    {:<8} {rate:>10.0} 1/s  with {share:.0} % of a processor", peer.kind.name());
    used.as_secs_f64() * 1e6 / count as f64
}

/// Together, for what is asked is the work: a proxy that waits for another processor's wake-ups is charged for those, and
/// the more the better it keeps up.
async fn requests(field: &Field, peer: &Peer, call: Call, scale: &Scale) -> f64 {
    process::place(&peer.family, Place::Together);
    let pool = Pool::open(&field.dialler, Road::Tls, peer.port, REQUESTS).await;
    let message = message(64);
    pool.requests(call, &message, scale.time / 8).await;
    let before = peer.cpu();
    let count = pool.requests(call, &message, scale.time).await;
    each(peer, peer.cpu() - before, count, scale)
}

async fn messages(field: &Field, peer: &Peer, (road, shape): (Road, Shape), scale: &Scale) -> f64 {
    process::place(&peer.family, Place::Together);
    let pool = Pool::open(&field.dialler, road, peer.port, shape).await;
    let message = message(64);
    let mut echoes = pool.echoes(&message).await;
    load::messages(&mut echoes, &message, scale.time / 8).await;
    let before = peer.cpu();
    let count = load::messages(&mut echoes, &message, scale.time).await;
    each(peer, peer.cpu() - before, count, scale)
}

async fn handshakes(field: &Field, peer: &Peer, scale: &Scale) -> f64 {
    process::place(&peer.family, Place::Apart);
    load::handshakes(&field.dialler, peer.port, HANDSHAKES, scale.time / 8).await;
    let before = peer.cpu();
    let (count, tickets) = load::handshakes(&field.dialler, peer.port, HANDSHAKES, scale.time).await;
    eprintln!("    {:<8} sends {tickets} tickets with a connection", peer.kind.name());
    count as f64 / (peer.cpu() - before).as_secs_f64()
}

/// Median and 99th percentile of one call after another, in microseconds.
async fn latency(field: &Field, road: Road, port: u16, family: &[i32], scale: &Scale) -> (f64, f64) {
    process::place(family, Place::Together);
    let pool = Pool::open(&field.dialler, road, port, ONE).await;
    let message = message(64);
    pool.times(&message, scale.time / 8).await;
    let mut times = pool.times(&message, scale.time).await;
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    (at(0.5), at(0.99))
}

/// Idle WebSockets, and what is left when they are gone.
async fn tunnels(field: &Field, turn: &[Kind], scale: &Scale, figures: &mut Figures) {
    let peers = start(field, turn).await;
    sleep(SETTLE).await;
    let message = message(200);
    let mut open = Vec::new();
    for peer in &peers {
        let base = peer.resident();
        let idle = Idle::open(&field.dialler, Road::Wss, peer.port, scale.tunnels, &message).await;
        sleep(SETTLE).await;
        let full = peer.resident();
        figures.add(Measure::Tunnel, peer.kind, (full as f64 - base as f64) / scale.tunnels as f64);
        open.push((idle, base, full));
    }
    let mut levels = Vec::new();
    for (idle, base, full) in open {
        idle.close().await;
        levels.push((base, full));
    }
    sleep(scale.patience).await;
    for (peer, (base, full)) in peers.iter().zip(levels) {
        let after = peer.resident();
        let returned = (full as f64 - after as f64) / (full as f64 - base as f64) * 100.0;
        figures.add(Measure::Returned, peer.kind, returned.max(0.0));
    }
}

/// Idle HTTP/2 connections with one stream, then with more.
async fn streams(field: &Field, turn: &[Kind], scale: &Scale, figures: &mut Figures) {
    let message = message(200);
    for kind in turn {
        let peer = start(field, &[*kind]).await.remove(0);
        sleep(SETTLE).await;
        let base = peer.resident() as f64;
        let mut idle = Idle::open(&field.dialler, Road::Tls, peer.port, scale.connections, &message).await;
        sleep(SETTLE).await;
        let first = peer.resident() as f64;
        figures.add(Measure::Connection, *kind, (first - base) / scale.connections as f64);
        idle.grow(FURTHER, &message).await;
        sleep(SETTLE).await;
        let further = (scale.connections * FURTHER) as f64;
        figures.add(Measure::Stream, *kind, (peer.resident() as f64 - first) / further);
        idle.close().await;
    }
}
