//! Listening sockets from outside: from the edge that runs now (binary upgrade), or from systemd.
//!
//! Before `server` binds anything itself. A queue of connections never closes: predecessor and successor hold the same
//! sockets until the successor serves. Passes descriptors and their names only; no connection, no key, no state.
//!
//! The talk, on a Unix socket that only the same user may open: `take 1`, the sockets, `ready`, `yours`. Whoever breaks
//! it off before `ready` leaves the running edge as it was.

mod sockets;
mod talk;
#[cfg(test)]
mod tests;

pub use sockets::{Inherited, Offer, systemd};
pub use talk::{Giver, Taken, take};

use std::io;
use std::path::PathBuf;

/// Why sockets could not change hands.
#[derive(Debug, thiserror::Error)]
pub enum HandoverError {
    /// The socket cannot be made, opened or used.
    #[error("handover socket {}: {what}", path.display())]
    Socket {
        path: PathBuf,
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// Another edge answers there.
    #[error("handover socket {}: an edge that runs answers there; start with --upgrade-from to take over from it", path.display())]
    Taken { path: PathBuf },
    /// The other side is not this user.
    #[error("handover socket {}: the other side runs as user {theirs}, not as {ours}", path.display())]
    Stranger { path: PathBuf, theirs: u32, ours: u32 },
    /// The other side said something else than was expected.
    #[error("handover socket {}: {what}; are both sides an edge of this generation?", path.display())]
    Talk { path: PathBuf, what: String },
    /// A variable that systemd sets makes no sense.
    #[error("{variable}=`{value}` is not a number of descriptors")]
    Environment { variable: &'static str, value: String },
    /// A descriptor that was passed cannot be had.
    #[error(
        "descriptor {number} from systemd cannot be taken; this needs Linux 5.6, and a seccomp filter that lets pidfd_getfd pass"
    )]
    Descriptor {
        number: i32,
        #[source]
        source: io::Error,
    },
    /// It is something else than a listening stream socket.
    #[error("the inherited descriptor {name} is not a listening socket")]
    NotListening { name: String },
}
