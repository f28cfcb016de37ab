//! Whole-system tests: real binaries on port 0, real clients. `tests/README.md` says which kind of test to write.

#![expect(clippy::unwrap_used, reason = "a test may fail right where it stands")]

mod harness;

/// Who is let in and what the others are told.
mod admission;
/// Denied flows, posted to GitLab as alerts.
mod alerts;
/// Configuration from a git repository to an agent.
mod configuration;
/// The crate graph is what ARCHITECTURE.md says.
mod crate_graph;
/// The scripted tour that a newcomer runs first.
mod demo;
/// The four schemes of an agent's dial, TLS and proxies.
mod dialling;
/// Several brokers as one, every host in a network namespace of its own; processes, links and Redis fail.
mod fleet;
/// Clients of other makers: grpcio, grpc-js, websockets.
mod foreign;
/// A gRPC server of others behind an edge that is replaced.
mod fronted;
/// The broker as GitLab's kas: Rails, Gitaly and Redis beside it.
mod gitlab;
/// Manifests from a git repository to the real control plane.
mod gitops;
/// Junk, oversize and malformed input on every port.
mod hostile;
/// Real kubectl against the real control plane.
mod kubectl;
/// A caller's requests through edge, broker, tunnel and agent: streaming, upgrades, cancellation, load.
mod kubernetes_api;
/// The edge behind HAProxy, nginx and Envoy, with the files that operators get.
mod load_balancers;
/// Policies edited under load.
mod policies;
/// Brokers restarted one after the other under load.
mod rolling;
/// What a request costs Redis, here and through another broker, and what is asked of Redis beside it.
mod routing_cost;
/// Processes killed, restarted and drained while requests run.
mod survival;
/// One request as one trace, through all three programs.
mod traces;
/// What the broker shows of the real control plane.
mod views;
