//! The edge: the only process that strangers reach. It terminates TLS and WebSockets, finds the caller's token,
//! limits it, and forwards to a broker.
//!
//! A connection passes the modules in the order below; [`server`] wires them. Deliberately absent: any knowledge of
//! agents, Rails or Kubernetes beyond the shape of an error reply and the EndpointSlices that name brokers.

pub mod config;
pub mod handover;
pub mod policy;
pub mod server;

pub mod accept;
pub mod lane;
pub mod life;
pub mod listen;
pub mod tls;
pub mod transport;
pub mod websocket;

pub mod admit;
pub mod decide;
pub mod limits;
pub mod token;

pub mod bridge;
pub mod coalesce;
pub mod http2;
pub mod proxy;
pub mod relay;
pub mod reply;
pub mod silence;
pub mod upstream;

pub mod access_log;
pub mod drain;
pub mod observability;
pub mod trace;
