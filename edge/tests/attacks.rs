//! Strangers who mean harm beside honest callers, in a program of its own: it runs alone, for it takes all the processor
//! there is, and measures how long others wait.

#![expect(clippy::unwrap_used, reason = "a test may fail right where it stands")]
#![expect(dead_code, reason = "the other tests use the rest of what is shared")]

#[path = "edge/attacks.rs"]
mod attacks;
#[path = "edge/clients.rs"]
mod clients;
#[path = "edge/harness.rs"]
mod harness;
#[path = "edge/upstreams.rs"]
mod upstreams;
