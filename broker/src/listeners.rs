//! Where the broker accepts: agents, callers of the Kubernetes API, probes. One file a listener; [`socket`] is what
//! they share: bind, TLS, and a bound on open connections.

pub mod agents;
pub mod kubernetes;
pub mod observability;
pub mod socket;
