//! The agent: dials out of a cluster to its broker and serves the Kubernetes API through the tunnels it opened.
//!
//! A request comes in by [`tunnel`], is routed by [`services`] to [`kubernetes_api`] and answered along the same way;
//! [`broker`] keeps the road open, [`configuration`], [`gitops`], [`alerts`] and [`registrar`] use it too, [`cluster`] is
//! what the agent does in its cluster of its own accord, [`check`] says why all this does not work, and [`app`] wires
//! everything up.
//! Deliberately absent: listeners other than [`observability`]'s, policy, Redis, anything that reads a request's body.

pub mod alerts;
pub mod app;
pub mod backoff;
pub mod broker;
pub mod check;
pub mod cluster;
pub mod config;
pub mod configuration;
pub mod drain;
pub mod error;
pub mod gitops;
pub mod kubernetes_api;
pub mod observability;
pub mod pushback;
pub mod registrar;
pub mod report;
pub mod services;
pub mod spans;
pub mod tunnel;
pub mod views;

use postern_wire::metadata::Program;

/// This program's own version.
pub const VERSION: &str = concat!("v", env!("CARGO_PKG_VERSION"));
/// The commit it was built from, if the build said so.
pub const COMMIT: &str = match option_env!("POSTERN_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};
/// When it was built, if the build said so.
pub const BUILT: &str = match option_env!("POSTERN_BUILT") {
    Some(time) => time,
    None => "unknown",
};

/// How the agent introduces itself. Brokers tell what an agent can do by this version, so it names the generation whose
/// wire this is (upgrades, registration, a pool that grows); our own version follows the plus sign.
pub const PROGRAM: Program = Program {
    name: "gitlab-agent",
    version: concat!("v16.5.0+postern.", env!("CARGO_PKG_VERSION")),
    commit: COMMIT,
};
