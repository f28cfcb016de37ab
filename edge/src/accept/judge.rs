//! Who may connect: a listener's own addresses first, then what policies say, then how many of an address there are.
//!
//! Under `accept`, before TLS, behind a PROXY header, and before a tunnel is upgraded. Reads and writes nothing.

use super::{Room, Worker};
use crate::life::Seat;
use crate::limits::Reported;
use crate::listen::{Rules, UNIX_PEER};
use crate::reply::Reason;
use crate::transport::Connection;
use std::net::{IpAddr, SocketAddr};

impl Worker {
    /// Whether this client may stay. A trusted proxy always may: what it carries is judged by its clients' addresses.
    pub(super) fn judge(
        &self,
        rules: &Rules,
        client: SocketAddr,
        named: bool,
        room: &mut Room,
    ) -> Result<(), Reason> {
        let ip = client.ip();
        if rules.hop(ip, named).is_some() {
            return Ok(());
        }
        if !rules.access.admits(ip) {
            return Err(Reason::Denied);
        }
        let reported = self.shared.policies.admits(ip, None)?;
        if client != UNIX_PEER {
            room.penance = self.shared.limits.penance(ip)?;
        }
        let mut permit = self.shared.limits.connection(ip)?;
        self.report(ip, reported.into_iter().chain(permit.reported.take()));
        room.client = Some(permit);
        Ok(())
    }

    /// This connection was ended for what nobody does by accident. The next ones from its address wait; not those of a
    /// proxy that comes for many, nor of a local socket, whose clients have no address.
    pub fn offended(&self, connection: &Connection) {
        if !connection.is_behind_proxy() && connection.client != UNIX_PEER {
            self.shared.limits.offended(connection.client.ip());
        }
    }

    /// Policies of `mode: report` would not have let this connection in.
    fn report(&self, client: IpAddr, reported: impl Iterator<Item = Reported>) {
        for reported in reported {
            self.metrics().report(&reported);
            tracing::debug!(%client, %reported, "a connection that a policy would have refused");
        }
    }

    /// A connection that is on the roll by now, but was judged before: the policies may have changed meanwhile.
    pub fn judge_again(&self, seat: &Seat) {
        if !self.shared.policies.still_admit(seat) {
            self.metrics().departure("denied");
            seat.deny();
        }
    }

    pub(super) fn turn_away(&self, client: SocketAddr, reason: &Reason) {
        self.metrics().refusal(reason.name());
        let (reason, rule) = (reason.name(), reason.rule());
        tracing::debug!(%client, reason, rule, "closed before its first byte");
    }

    /// A tunnel has one client for all its life, so a proxy's word is asked for and judged once.
    pub(super) fn judge_tunnel(
        &self,
        connection: &Connection,
        headers: &http::HeaderMap,
        room: &mut Room,
    ) -> Result<(), Reason> {
        if !connection.admits(headers) {
            return Err(Reason::Denied);
        }
        if room.client.is_none() {
            let client = connection.client.ip();
            let reported = match connection.judged(headers) {
                Some(client) => self.shared.policies.admits(client, None)?,
                None => None,
            };
            let mut permit = self.shared.limits.connection(client)?;
            self.report(client, reported.into_iter().chain(permit.reported.take()));
            room.client = Some(permit);
        }
        Ok(())
    }
}
