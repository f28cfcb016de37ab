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

/// Accounts: access lines, ids that travel, traces, and the pages of the admin listener.
mod accounts;
/// Policies about connections that change while connections are open.
mod age_policies;
/// Ages: connections that are told to leave, one after the other.
mod ages;
/// Brokers that leave, hang, vanish and come back.
mod brokers;
/// The page that lists the cases of the tables below.
mod conformance_docs;
/// Floods: who sends one is ended and waits, and nobody else does.
mod floods;
/// HTTP/2 by the RFCs, case by case.
mod h2_conformance;
/// Handover: listening sockets from the edge before and from systemd.
mod handover;
/// Life: drain, certificate reload, readiness, metrics, `--check`.
mod life;
/// Limits: each in both languages with its hints, tokens that nobody knows, several edges with one Redis.
mod limits;
/// Listeners: who may come, on whose behalf, and what their connections begin with.
mod listeners;
/// Policies that change under open connections: limits, levels, who may stay, what is only reported.
mod policies;
/// Refusals: tokens, limits, bad input, brokers that are gone.
mod refusals;
/// The relay of gRPC streams: deadlines, brokers that turn a stream away, clients that flood.
mod relay;
/// Roads: every way in, and what arrives at the broker.
mod roads;
/// Upstreams of every kind: TLS, WebSockets, DNS, EndpointSlices, readiness, limits of streams.
mod upstream_kinds;
/// WebSockets by RFC 6455, case by case.
mod ws_conformance;
