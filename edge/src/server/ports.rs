//! The listening sockets: bound here, or inherited.

use crate::config::Listen;
use crate::handover::{Inherited, Offer};
use crate::tls::Terminator;
use anyhow::Context;
use socket2::{Domain, Socket, Type};
use std::net::{SocketAddr, TcpListener};

/// A storm of agents that all come back at once must not overflow it.
const BACKLOG: i32 = 4096;
/// The admin listener's name in a handover and among systemd's sockets.
const ADMIN: &str = "admin";

/// One bound port.
pub(super) struct Port {
    pub(super) listener: TcpListener,
    pub(super) address: SocketAddr,
    pub(super) tls: Option<Terminator>,
    /// What a successor with the same configuration asks for.
    name: String,
}

impl Port {
    pub(super) fn open(listen: &Listen, inherited: &mut Inherited) -> anyhow::Result<Self> {
        let tls = if listen.certificates.is_empty() {
            None
        } else {
            Some(
                Terminator::load(&listen.certificates)
                    .with_context(|| format!("listen {}", listen.address))?,
            )
        };
        let name = listen.address.to_string();
        let listener =
            inherit_or_bind(&name, listen.address, inherited).with_context(|| format!("listen {name}"))?;
        // The real one: port 0 asks the system to choose.
        let address = listener.local_addr().with_context(|| format!("listen {name}"))?;
        Ok(Self { listener, address, tls, name })
    }

    pub(super) fn offer(&self, offer: &Offer) -> anyhow::Result<()> {
        let listener = self.listener.try_clone().context("offer a listener to a successor")?;
        offer.add(self.name.clone(), listener.into());
        Ok(())
    }
}

/// The admin listener.
pub(super) fn admin(address: SocketAddr, inherited: &mut Inherited) -> anyhow::Result<TcpListener> {
    inherit_or_bind(ADMIN, address, inherited).with_context(|| format!("admin.listen {address}"))
}

pub(super) fn offer_admin(listener: &TcpListener, offer: &Offer) -> anyhow::Result<()> {
    let listener = listener.try_clone().context("offer the admin listener to a successor")?;
    offer.add(ADMIN.to_owned(), listener.into());
    Ok(())
}

fn inherit_or_bind(
    name: &str,
    address: SocketAddr,
    inherited: &mut Inherited,
) -> std::io::Result<TcpListener> {
    match inherited.bound_to(name, address) {
        Some(socket) => {
            let listener = TcpListener::from(socket);
            listener.set_nonblocking(true)?;
            tracing::info!(name, "listening socket inherited");
            Ok(listener)
        }
        None => bind(address),
    }
}

fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    // A restart must not wait for the connections of the one before.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
