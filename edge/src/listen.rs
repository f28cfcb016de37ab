//! One listener: where it is bound, who may come, whose word counts, and how its connections begin.
//!
//! From `config`; `server` binds, `accept` asks. Judges addresses only, and before a byte of TLS where it can.

pub mod forwarded;
pub mod networks;
pub mod page;
pub mod proxy_protocol;
pub mod socket;

use crate::config;
use crate::handover::{Inherited, Offer};
use crate::tls::Terminator;
use anyhow::Context;
use forwarded::Trust;
use networks::Networks;
use serde::Serialize;
use socket::{Bound, SocketFile};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// As which the peers of a Unix socket are known: they are on this host, and have no address.
pub const UNIX_PEER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Where a listener is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// `v6_only` is about `[::]`, which otherwise is for IPv4, too.
    Ip { address: SocketAddr, v6_only: bool },
    /// `mode` are the permissions of the socket's file.
    Unix { path: PathBuf, mode: u32 },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip { address, .. } => address.fmt(f),
            Self::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Who may connect.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Access {
    /// `None`: everybody.
    pub allow: Option<Networks>,
    /// Wins over `allow`.
    pub deny: Networks,
}

impl Access {
    pub fn admits(&self, ip: IpAddr) -> bool {
        !self.deny.contains(ip) && self.allow.as_ref().is_none_or(|allow| allow.contains(ip))
    }
}

/// Whose connections begin with a PROXY header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ProxyProtocol {
    /// The load balancers. Not asked on a Unix socket, whose mode says who they are.
    pub from: Networks,
    /// All of theirs do, and nobody else is served. Otherwise theirs may, and others are clients themselves.
    pub required: bool,
}

/// What to do with a connection, by its peer.
#[derive(Debug, PartialEq)]
pub enum Arrival {
    /// The peer is who it is.
    Direct,
    /// It may say for whom it comes.
    Header { required: bool },
    /// It is neither a load balancer nor may it be anything else.
    Refused,
}

/// Everything about a listener but its socket.
#[derive(Debug)]
pub struct Rules {
    pub tls: Option<Terminator>,
    pub access: Arc<Access>,
    proxy_protocol: Option<ProxyProtocol>,
    trust: Option<Arc<Trust>>,
    unix: bool,
    /// The operator was told of a load balancer that is set up otherwise.
    warned: AtomicBool,
}

/// One bound listener.
#[derive(Debug)]
pub struct Port {
    pub bound: Bound,
    /// As it stands in the log, with the port that the system chose.
    pub name: String,
    /// What a successor with the same configuration asks for.
    asked_for: String,
    pub rules: Arc<Rules>,
    /// Of a Unix socket, to be dropped when the process ends.
    pub file: Option<SocketFile>,
}

impl Rules {
    /// Reads the certificates.
    ///
    /// # Errors
    /// A file that cannot be used, by name.
    pub fn load(listen: &config::Listen) -> anyhow::Result<Self> {
        let tls = listen.tls.as_ref().map(Terminator::load).transpose()?;
        let access = Arc::new(listen.access.clone());
        let trust = listen.forwarded.as_ref().map(|forwarded| {
            Arc::new(Trust {
                networks: forwarded.trusted.clone(),
                dialect: forwarded.dialect,
                access: access.clone(),
                place: listen.place.clone(),
            })
        });
        let unix = matches!(listen.place, Place::Unix { .. });
        Ok(Self {
            tls,
            access,
            proxy_protocol: listen.proxy_protocol.clone(),
            trust,
            unix,
            warned: AtomicBool::new(false),
        })
    }

    /// How a connection from this peer begins.
    pub fn arrival(&self, peer: IpAddr) -> Arrival {
        let Some(proxy) = &self.proxy_protocol else { return Arrival::Direct };
        match (self.unix || proxy.from.contains(peer), proxy.required) {
            (true, required) => Arrival::Header { required },
            (false, true) => Arrival::Refused,
            (false, false) => Arrival::Direct,
        }
    }

    /// A peer that must send a PROXY header sends something else. Strangers cannot cause it, and once is enough.
    pub fn warn_of_missing_header(&self, peer: SocketAddr) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                %peer,
                "a load balancer in proxy_protocol.from sends no PROXY header; its connections are closed"
            );
        }
    }

    /// Whose word about clients counts, if this is one of them. `client` is the address behind the PROXY header, if that
    /// `named` anybody.
    pub fn hop(&self, client: IpAddr, named: bool) -> Option<Arc<Trust>> {
        self.trust.as_ref().filter(|trust| trust.is_hop(client, named)).cloned()
    }
}

impl Port {
    /// Reads the certificates and binds, unless the socket was inherited.
    ///
    /// # Errors
    /// About the start: a port that is taken, a file that cannot be read.
    pub fn open(listen: &config::Listen, inherited: &mut Inherited) -> anyhow::Result<Self> {
        let context = || format!("listen {}", listen.place);
        let rules = Arc::new(Rules::load(listen).with_context(context)?);
        let asked_for = listen.place.to_string();
        let (bound, file) = Bound::open(&asked_for, &listen.place, inherited).with_context(context)?;
        let name = match bound.local_addr().with_context(context)? {
            Some(address) => address.to_string(),
            None => asked_for.clone(),
        };
        Ok(Self { bound, name, asked_for, rules, file })
    }

    /// Offers a duplicate of the socket to a successor.
    pub fn offer(&self, offer: &Offer) -> anyhow::Result<()> {
        self.bound.offer(self.asked_for.clone(), offer).context("offer a listener to a successor")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(written: &[&str]) -> Networks {
        Networks::parse(&written.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn who_is_denied_is_not_admitted_even_if_allowed() {
        let access = |allow: Option<&[&str]>, deny: &[&str]| Access {
            allow: allow.map(networks),
            deny: networks(deny),
        };
        for (access, ip, admitted) in [
            (access(None, &[]), [192, 0, 2, 1], true),
            (access(None, &["192.0.2.0/24"]), [192, 0, 2, 1], false),
            (access(None, &["192.0.2.0/24"]), [198, 51, 100, 1], true),
            (access(Some(&["10.0.0.0/8"]), &[]), [192, 0, 2, 1], false),
            (access(Some(&["10.0.0.0/8"]), &["10.1.0.0/16"]), [10, 2, 0, 1], true),
            (access(Some(&["10.0.0.0/8"]), &["10.1.0.0/16"]), [10, 1, 0, 1], false),
            (access(Some(&[]), &[]), [10, 1, 0, 1], false),
        ] {
            assert_eq!(access.admits(ip.into()), admitted, "{access:?} {ip:?}");
        }
    }

    #[test]
    fn only_load_balancers_may_send_a_header() {
        let rules = |proxy_protocol, unix| Rules {
            tls: None,
            access: Arc::default(),
            proxy_protocol,
            trust: None,
            unix,
            warned: AtomicBool::new(false),
        };
        let proxy = |required| Some(ProxyProtocol { from: networks(&["10.0.0.0/8"]), required });
        let (balancer, stranger) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([192, 0, 2, 1]));
        assert_eq!(rules(None, false).arrival(balancer), Arrival::Direct);
        assert_eq!(rules(proxy(true), false).arrival(balancer), Arrival::Header { required: true });
        assert_eq!(rules(proxy(true), false).arrival(stranger), Arrival::Refused);
        assert_eq!(rules(proxy(false), false).arrival(balancer), Arrival::Header { required: false });
        assert_eq!(rules(proxy(false), false).arrival(stranger), Arrival::Direct);
        assert_eq!(rules(proxy(true), true).arrival(stranger), Arrival::Header { required: true });
    }
}
