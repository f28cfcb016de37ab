//! The whole agent in this process, against a broker and a Kubernetes API that are fakes on 127.0.0.1.
//! Each module is one group of promises; `harness.rs` starts things, the fakes do what a test tells them.

mod fake_api;
mod fake_broker;
mod harness;

/// `agentk check`: which step fails of what, and what it advises.
mod check;
/// Manifests of configured projects: whole commits or nothing.
mod gitops;
/// Connections, tokens, configuration, draining.
mod lifecycle;
/// What a caller gets through a tunnel.
mod requests;
/// Which addresses, certificates, redirects and proxies lead to a broker.
mod transports;
