//! The whole agent in this process, against a broker and a Kubernetes API that are fakes on 127.0.0.1.
//! Each module is one group of promises; `harness.rs` starts things, the fakes do what a test tells them.

mod fake_api;
mod fake_broker;
mod harness;

/// Network policies, flows and what GitLab hears of them.
mod alerts;
/// `agentk check`: which step fails of what, and what it advises.
mod check;
/// Which documents are put in force, and what the broker hears of it.
mod configuration;
/// Manifests of configured projects: whole commits or nothing.
mod gitops;
/// Which replica does what only one may do.
mod leading;
/// Connections, tokens, configuration, draining.
mod lifecycle;
/// How much callers may ask at once, by the agent's configuration.
mod limits;
/// What a caller gets through a tunnel.
mod requests;
/// Which addresses, certificates, redirects and proxies lead to a broker.
mod transports;
