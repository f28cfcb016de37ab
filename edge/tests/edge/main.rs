//! The real edge, as a process, between real clients and stand-ins of a broker's two listeners.
//!
//! Each `mod` line says what belongs there. Anything that needs no process is tested beside the code.

#![expect(clippy::unwrap_used, reason = "a test may fail right where it stands")]

/// HTTP/2 clients: over TCP, TLS, WebSocket; one of them writes its own frames.
mod clients;
/// An HTTP/2 client that writes its own frames, sound or not.
mod frames;
/// Starts the edge on ports of the system's choice, reads its log, stops it.
mod harness;
/// A broker's agent listener (h2c) and Kubernetes API listener (HTTP/1.1).
mod upstreams;

/// Brokers that leave, hang, vanish and come back.
mod brokers;
/// The page that lists the cases of the tables below.
mod conformance_docs;
/// HTTP/2 by the RFCs, case by case.
mod h2_conformance;
/// Life: drain, certificate reload, readiness, metrics, `--check`.
mod life;
/// Refusals: tokens, limits, bad input, brokers that are gone.
mod refusals;
/// Roads: every way in, and what arrives at the broker.
mod roads;
/// WebSockets by RFC 6455, case by case.
mod ws_conformance;
