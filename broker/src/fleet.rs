//! Several brokers as one: a request that came to this one reaches an agent that is connected to another one. Before it:
//! whoever wants a tunnel of an agent (`kubernetes_api`). After it: the tunnels of this process (`tunnel`), or another
//! broker's, over its private API. Brokers share Redis and nothing else; none of them is special.

pub mod directory;
pub mod gateway;
pub mod jwt;
pub mod peers;
pub mod remote;
pub mod roster;
pub mod router;
#[cfg(test)]
mod stage;
mod url;

pub use url::{BadPeerUrl, PeerUrl};
