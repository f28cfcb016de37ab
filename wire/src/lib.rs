//! The wire of kas and agentk, both generations: what bytes, messages and names the three programs agree on.
//!
//! A request passes these in the order below: a connection is [`sniff`]ed, unwrapped from its WebSocket ([`ws`]),
//! repaired ([`authority`]), then spoken as gRPC ([`proto`]) whose messages follow an [`order`] and carry [`http`].
//! Deliberately absent: listeners, policy, configuration files, Redis.

pub mod authority;
pub mod sniff;
pub mod ws;

pub mod http;
pub mod order;

pub mod caller;
pub mod codec;
pub mod ids;
pub mod metadata;
pub mod token;

/// Generated from `wire/proto` by `make gen`, checked in so that no builder needs a protobuf compiler.
#[rustfmt::skip]
#[allow(clippy::all, unreachable_pub, missing_docs)]
#[path = "gen/mod.rs"]
pub mod proto;
