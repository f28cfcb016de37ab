//! The edge beside HAProxy, nginx and Envoy: CPU, memory and latency of each in front of the same origin, one worker each, in
//! one go. Prints ratios and writes `target/bench/edge.json`; asserts nothing.
//!
//! `make bench` brings the peers, builds the edge optimised and runs all of it. For less:
//! `BENCH_ROWS=requests BENCH_PEERS=ours,haproxy BENCH_ROUNDS=1 cargo bench -p postern-tests --bench edge`, rows being any of
//! idle, requests, messages, handshakes, latency, tunnels and streams, and opaque, which runs only when it is named;
//! `BENCH_EDGE=PATH` measures another build of the edge; `BENCH_QUICK=1` does little of everything, once.
//! docs/benchmarks.md says how to read it.

#![expect(clippy::unwrap_used, reason = "a benchmark may fail right where it stands")]

#[path = "edge/client.rs"]
mod client;
#[path = "edge/figures.rs"]
mod figures;
#[path = "edge/load.rs"]
mod load;
#[path = "edge/measures.rs"]
mod measures;
#[path = "edge/origin.rs"]
mod origin;
#[path = "edge/peers.rs"]
mod peers;
#[path = "edge/process.rs"]
mod process;

use client::Dialler;
use figures::Figures;
use measures::{Scale, Wanted};
use peers::{Field, Kind, Programs};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{fs, process::ExitCode, time::Duration};
use tokio::signal::unix::{SignalKind, signal};

const ROUNDS: usize = 3;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    // A proxy that is ended by its value's drop needs the stack to unwind: no exit from a signal handler.
    let mut interrupt = signal(SignalKind::interrupt()).unwrap();
    let mut terminate = signal(SignalKind::terminate()).unwrap();
    tokio::select! {
        () = run() => ExitCode::SUCCESS,
        _ = interrupt.recv() => ExitCode::FAILURE,
        _ = terminate.recv() => ExitCode::FAILURE,
    }
}

async fn run() {
    let asked = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let quick = asked("BENCH_QUICK").is_some();
    let rounds = asked("BENCH_ROUNDS").map_or(if quick { 1 } else { ROUNDS }, |text| text.parse().unwrap());
    let kinds = asked("BENCH_PEERS");
    let wanted = Wanted {
        rows: asked("BENCH_ROWS"),
        kinds: Kind::ALL
            .into_iter()
            .filter(|kind| kinds.as_ref().is_none_or(|kinds| kinds.split(',').any(|one| one == kind.name())))
            .collect(),
    };
    assert!(!wanted.kinds.is_empty(), "BENCH_PEERS names nobody: ours, haproxy, nginx, envoy");
    let scale = if quick {
        Scale {
            time: Duration::from_millis(500),
            tunnels: 200,
            connections: 50,
            patience: Duration::from_secs(3),
        }
    } else {
        Scale {
            time: Duration::from_millis(1500),
            tunnels: 2000,
            connections: 400,
            patience: Duration::from_secs(6),
        }
    };
    // Both ends of every tunnel through every proxy are here.
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum }).unwrap();

    let folder = tempfile::tempdir().unwrap();
    let ca = postern_certs::dev::Ca::new();
    let issued = ca.issue(&["localhost", "127.0.0.1"]);
    let files = issued.write(folder.path()).unwrap();
    let pem = folder.path().join("both.pem");
    fs::write(&pem, format!("{}{}", issued.certificate_pem, issued.key_pem)).unwrap();
    let field = Field {
        programs: Programs::find(),
        folder: folder.path().to_owned(),
        certificate: files.certificate,
        key: files.key,
        pem,
        origin: origin::start(),
        dialler: Dialler::new(&ca.pem()),
    };
    println!("{}", process::machine());
    for line in field.programs.versions() {
        println!("{line}");
    }
    let mut figures = Figures::default();
    for round in 0..rounds {
        eprintln!("  round {} of {rounds}", round + 1);
        measures::round(&field, &wanted, &scale, round, &mut figures).await;
    }
    println!(
        "\nmedians of {rounds} rounds; in brackets, how many times better the edge is\n\n{}",
        figures.table()
    );
    println!("written to {}", figures.write().display());
}
