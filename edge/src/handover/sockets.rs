//! Descriptors with names: what is offered, what was inherited.

use super::HandoverError;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use socket2::SockRef;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// systemd's first descriptor.
const FIRST: i32 = 3;
/// More than anybody lists, and no more than one message can carry.
pub(super) const MOST: usize = 200;

/// Listening sockets that were bound by somebody else, until `server` finds them a place.
#[derive(Debug, Default)]
pub struct Inherited(Vec<(String, OwnedFd)>);

impl Inherited {
    /// Adds a socket under the name that it is asked for by: the address as configured, or `admin`.
    pub fn add(&mut self, name: String, socket: OwnedFd) -> Result<(), HandoverError> {
        if !SockRef::from(&socket).is_listener().unwrap_or(false) {
            return Err(HandoverError::NotListening { name });
        }
        self.0.push((name, socket));
        Ok(())
    }

    pub fn extend(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The first one of this name.
    pub fn named(&mut self, name: &str) -> Option<OwnedFd> {
        let index = self.0.iter().position(|(theirs, _)| theirs == name)?;
        Some(self.0.remove(index).1)
    }

    /// The first one of this name, else one that is bound to this address. A socket that systemd bound to `[::]` serves
    /// IPv4 as well, so it is also found as `0.0.0.0`.
    pub fn bound_to(&mut self, name: &str, address: SocketAddr) -> Option<OwnedFd> {
        if let Some(socket) = self.named(name) {
            return Some(socket);
        }
        // Port 0 would fit none, or any.
        let fits = |socket: &OwnedFd| {
            let theirs = SockRef::from(socket).local_addr().ok().and_then(|theirs| theirs.as_socket());
            theirs.is_some_and(|theirs| {
                theirs == address
                    || (theirs.port() == address.port()
                        && theirs.ip().is_unspecified()
                        && theirs.is_ipv6()
                        && address.ip().is_unspecified())
            })
        };
        let index = self.0.iter().position(|(_, socket)| fits(socket))?;
        Some(self.0.remove(index).1)
    }

    /// The names of those that nobody asked for; they are closed.
    pub fn rest(self) -> Vec<String> {
        self.0.into_iter().map(|(name, _)| name).collect()
    }
}

/// What a successor gets: the sockets of this process, while it still accepts on them.
#[derive(Debug, Clone, Default)]
pub struct Offer(Arc<Mutex<Vec<(String, OwnedFd)>>>);

impl Offer {
    /// Adds a duplicate of a listening socket.
    pub fn add(&self, name: String, socket: OwnedFd) {
        self.sockets().push((name, socket));
    }

    /// From now on there is nothing to hand over. Otherwise the duplicates would keep queues open that nobody serves.
    pub fn withdraw(&self) {
        self.sockets().clear();
    }

    pub(super) fn sockets(&self) -> MutexGuard<'_, Vec<(String, OwnedFd)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What systemd passed to this process (`LISTEN_FDS`), under its `LISTEN_FDNAMES`. Empty without it.
pub fn systemd() -> Result<Inherited, HandoverError> {
    let variable = |name: &str| std::env::var(name).ok();
    passed(variable("LISTEN_PID"), variable("LISTEN_FDS"), variable("LISTEN_FDNAMES"))
}

pub(super) fn passed(
    pid: Option<String>,
    count: Option<String>,
    names: Option<String>,
) -> Result<Inherited, HandoverError> {
    let mut inherited = Inherited::default();
    let (Some(pid), Some(count)) = (pid, count) else { return Ok(inherited) };
    // Meant for a parent of ours, which forgot to take it out of the environment.
    if pid.parse() != Ok(std::process::id()) {
        return Ok(inherited);
    }
    let bad = || HandoverError::Environment { variable: "LISTEN_FDS", value: count.clone() };
    let number: usize = count.parse().map_err(|_| bad())?;
    if number > MOST {
        return Err(bad());
    }
    let names = names.unwrap_or_default();
    let mut names = names.split(':');
    // The kernel looks the number up: nobody has to believe that it is ours. The first one stays open as well, which is
    // what systemd does with its own.
    let myself = pidfd_open(getpid(), PidfdFlags::empty());
    for number in (FIRST..).take(number) {
        let socket = match &myself {
            Ok(myself) => pidfd_getfd(myself, number, PidfdGetfdFlags::empty()),
            Err(error) => Err(*error),
        };
        let socket = socket.map_err(|error| HandoverError::Descriptor { number, source: error.into() })?;
        let name = names.next().filter(|name| !name.is_empty()).unwrap_or("unknown");
        inherited.add(name.to_owned(), socket)?;
    }
    Ok(inherited)
}
