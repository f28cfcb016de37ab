//! New connections of an address: how many, how often, and how long they wait for what others of it did.
//!
//! Beneath `limits`. `accept` asks before the first byte of a connection is read; `http2` says who offended. What is open
//! is never touched.

use super::permit::{ConnectionPermit, Penance};
use super::records::{Address, Network};
use super::{LATER, Limit, Limits, Reported, name_of};
use crate::reply::Reason;
use postern_policies::Subject;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

impl Limits {
    /// A connection may be opened from here.
    ///
    /// # Errors
    /// There are too many of this address, or were in the last while.
    pub fn connection(&self, client: IpAddr) -> Result<ConnectionPermit, Reason> {
        self.connection_at(client, Instant::now())
    }

    pub(super) fn connection_at(&self, client: IpAddr, now: Instant) -> Result<ConnectionPermit, Reason> {
        let in_force = self.0.in_force.load();
        let rate = in_force.now.base.connection_rate;
        let most = in_force.now.connections_per_ip(&Subject { client: Some(client), ..Subject::default() });
        if most.value == 0 && rate.is_none() && !self.0.obeys {
            return Ok(ConnectionPermit::default());
        }
        let now = self.0.time(now);
        let judge = |address: &mut Address, _| {
            let judged = if most.value > 0 && address.connections >= most.value {
                Err(Reason::TooMany {
                    limit: Limit::IpConnections,
                    retry_after: LATER,
                    rule: most.by.map(name_of),
                })
            } else {
                let taken = rate.map_or(Ok(()), |rate| rate.take(&mut address.opened_full_at, now));
                taken.map_err(|wait| Reason::TooMany {
                    limit: Limit::IpConnectionRate,
                    retry_after: Duration::from_nanos(wait),
                    rule: None,
                })
            };
            // Counted where nothing is limited but the rate, too: the numbers may change while it is open.
            address.connections += u32::from(judged.is_ok());
            (judged.map(|()| address.connections), true)
        };
        match self.0.addresses.with(&Network::of(client), judge) {
            Some((judged, place)) => {
                let open = judged?;
                let over = most.reported.filter(|(most, _)| *most > 0 && open > *most);
                let reported = over.map(|(_, rule)| Reported::new(Limit::IpConnections.name(), rule));
                Ok(ConnectionPermit::new(&self.0, place, reported))
            }
            None => Ok(ConnectionPermit::default()),
        }
    }

    /// A connection from here was ended for a flood, or for what is not the protocol it began with: the next ones wait for
    /// a moment, the longer the more often. Those that are open go on.
    pub fn offended(&self, client: IpAddr) {
        self.offended_at(client, Instant::now());
    }

    pub(super) fn offended_at(&self, client: IpAddr, now: Instant) {
        let wait = self.0.in_force.load().now.base.flood_wait;
        if wait == 0 {
            return;
        }
        let now = self.0.time(now);
        let judge = |address: &mut Address, _| (address.offended(wait, now), true);
        if let Some((until, _)) = self.0.addresses.with(&Network::of(client), judge) {
            self.0.wait_until.fetch_max(until, Ordering::Relaxed);
        }
    }

    /// What a new connection from here has to wait for, if there is anything.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn penance(&self, client: IpAddr) -> Result<Option<Penance>, Reason> {
        self.penance_at(client, Instant::now())
    }

    pub(super) fn penance_at(&self, client: IpAddr, now: Instant) -> Result<Option<Penance>, Reason> {
        let limits = &self.0;
        let now = limits.time(now);
        // Mostly nobody has done anything, and then nobody is looked for.
        if limits.wait_until.load(Ordering::Relaxed) <= now {
            return Ok(None);
        }
        let judge = |address: &mut Address, new: bool| (address.queue(now), !new);
        let Some((queued, place)) = limits.addresses.with(&Network::of(client), judge) else {
            return Ok(None);
        };
        match queued {
            Ok(wait) => Ok(wait.map(|wait| Penance::new(limits, place, Duration::from_nanos(wait)))),
            Err(wait) => Err(Reason::TooMany {
                limit: Limit::IpPenance,
                retry_after: Duration::from_nanos(wait),
                rule: None,
            }),
        }
    }
}
