//! Stand-ins: other programs' protocols served in this process, for tests and the demo. A stand-in speaks the
//! real wire format over a real socket, but keeps everything in memory and is bounded in all it keeps. Nothing
//! that ships depends on this crate except the demo.

pub mod git;
pub mod gitaly;
pub mod hubble;
pub mod kube_api;
pub mod otlp;
pub mod rails;
pub mod redis;
