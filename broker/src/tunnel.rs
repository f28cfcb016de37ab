//! Tunnels: an agent's `ReverseTunnel.Connect` streams, idle until a request takes one.
//!
//! [`connect`] serves the stream, [`registry`] keeps the idle ones of this process within their [`bounds`], [`stream`]
//! carries one request through one tunnel and then it is gone.

pub mod bounds;
pub mod connect;
pub mod registry;
pub mod stream;
