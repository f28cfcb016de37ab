//! From which address a caller calls: the transport's, or what a proxy that the configuration trusts says. For access rules
//! that are for addresses. Before it: the listener, which knows the transport. It believes nobody else, and resolves nothing.

use http::{HeaderMap, HeaderName};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// Entries that are looked at; who goes through more proxies than that is not known.
const MOST: usize = 16;

/// Who is at the other end of a request's transport; absent for a socket of this machine. The listener adds it to requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport(pub Option<IpAddr>);

/// What is known of where a caller is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Client {
    /// Whoever calls on a socket of this machine has no address.
    #[default]
    Local,
    At(IpAddr),
    /// Behind a trusted proxy, which says something else than an address.
    Hidden,
}

impl Client {
    pub(super) fn address(self) -> Option<IpAddr> {
        if let Self::At(address) = self { Some(address) } else { None }
    }
}

/// Networks of proxies whose `X-Forwarded-For` is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proxies(Vec<(IpAddr, u8)>);

/// A text that names no network.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no network")]
pub struct NoNetwork(pub String);

impl Proxies {
    /// Networks such as `10.0.0.0/8`, and single addresses.
    ///
    /// # Errors
    /// The first text that is neither.
    pub fn parse<T: AsRef<str>>(texts: &[T]) -> Result<Self, NoNetwork> {
        let networks = texts.iter().map(|text| {
            let text = text.as_ref();
            network(text).ok_or_else(|| NoNetwork(text.chars().take(60).collect()))
        });
        networks.collect::<Result<_, _>>().map(Self)
    }

    fn contain(&self, address: IpAddr) -> bool {
        self.0.iter().any(|(network, length)| match (network, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(*length)).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(*length)).unwrap_or(0);
                network.to_bits() & mask == address.to_bits() & mask
            }
            _ => false,
        })
    }

    /// Where the caller is.
    pub(super) fn client(&self, transport: Option<IpAddr>, headers: &HeaderMap) -> Client {
        let Some(transport) = transport else { return Client::Local };
        let transport = transport.to_canonical();
        if !self.contain(transport) {
            return Client::At(transport);
        }
        // Nearest last; what stands left of the first stranger, that one wrote itself.
        let lines: Vec<_> =
            headers.get_all(X_FORWARDED_FOR).iter().map(|value| value.to_str().ok()).collect();
        let mut client = transport;
        let entries = lines.iter().rev().flat_map(|line| line.unwrap_or("?").rsplit(','));
        for (number, entry) in entries.enumerate() {
            let Some(named) = address(entry.trim()).filter(|_| number < MOST) else { return Client::Hidden };
            client = named;
            if !self.contain(client) {
                break;
            }
        }
        Client::At(client)
    }
}

/// `192.0.2.7`, `192.0.2.7:1`, `2001:db8::7`, `[2001:db8::7]`, `[2001:db8::7]:1`. Not `unknown`, nor `_hidden`.
fn address(entry: &str) -> Option<IpAddr> {
    let bracketed = entry.strip_prefix('[').and_then(|entry| entry.strip_suffix(']'));
    let address = match bracketed {
        Some(inner) => inner.parse::<Ipv6Addr>().ok()?.into(),
        None => {
            entry.parse().or_else(|_| entry.parse::<SocketAddr>().map(|with_port| with_port.ip())).ok()?
        }
    };
    Some(address.to_canonical())
}

fn network(text: &str) -> Option<(IpAddr, u8)> {
    let (address, length) =
        text.split_once('/').map_or((text, None), |(address, length)| (address, Some(length)));
    let address: IpAddr = address.parse().ok()?;
    let bits: u8 = if address.is_ipv4() { 32 } else { 128 };
    let length = match length {
        None => bits,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
        Some(_) => return None,
    };
    (length <= bits).then_some((address, length))
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    #[test]
    fn only_trusted_proxies_are_believed_and_the_first_stranger_is_the_client() {
        let proxies = Proxies::parse(&["10.0.0.0/8", "2001:db8::1"]).unwrap();
        for (transport, lines, wanted) in [
            ("192.0.2.1", &[][..], Some("192.0.2.1")),
            ("192.0.2.1", &["203.0.113.9"], Some("192.0.2.1")),
            ("::ffff:192.0.2.1", &[], Some("192.0.2.1")),
            ("10.1.2.3", &[], Some("10.1.2.3")),
            ("10.1.2.3", &["203.0.113.9"], Some("203.0.113.9")),
            ("::ffff:10.1.2.3", &["203.0.113.9"], Some("203.0.113.9")),
            ("2001:db8::1", &["2001:db8::2"], Some("2001:db8::2")),
            ("10.1.2.3", &["10.9.9.9, 203.0.113.9, 10.4.4.4"], Some("203.0.113.9")),
            ("10.1.2.3", &["1.1.1.1", "203.0.113.9", "10.4.4.4"], Some("203.0.113.9")),
            ("10.1.2.3", &["10.4.4.4"], Some("10.4.4.4")),
            ("10.1.2.3", &["203.0.113.9:4711"], Some("203.0.113.9")),
            ("10.1.2.3", &["203.0.113.9, 10.4.4.4:80"], Some("203.0.113.9")),
            ("10.1.2.3", &["[2001:db8::2]"], Some("2001:db8::2")),
            ("10.1.2.3", &["[2001:db8::2]:443 , [2001:db8::1]:1"], Some("2001:db8::2")),
            ("10.1.2.3", &["[::ffff:203.0.113.9]:1"], Some("203.0.113.9")),
            ("10.1.2.3", &["[203.0.113.9]"], None),
            ("10.1.2.3", &["203.0.113.9:65536"], None),
            ("10.1.2.3", &["[2001:db8::2"], None),
            ("10.1.2.3", &["_hidden"], None),
            ("10.1.2.3", &["\u{e4}"], None),
            ("10.1.2.3", &["203.0.113.9, unknown"], None),
            ("10.1.2.3", &["unknown, 203.0.113.9"], Some("203.0.113.9")),
            ("10.1.2.3", &[""], None),
        ] {
            let mut headers = HeaderMap::new();
            lines.iter().for_each(|line| {
                headers.append(X_FORWARDED_FOR, HeaderValue::from_bytes(line.as_bytes()).unwrap());
            });
            let client = proxies.client(Some(transport.parse().unwrap()), &headers);
            let wanted = wanted.map_or(Client::Hidden, |text| Client::At(text.parse().unwrap()));
            assert_eq!(client, wanted, "{transport} {lines:?}");
            assert_eq!(proxies.client(None, &headers), Client::Local);
        }
        let mut long = HeaderMap::new();
        long.insert(X_FORWARDED_FOR, HeaderValue::try_from(["10.0.0.1"; 17].join(",")).unwrap());
        assert_eq!(proxies.client(Some("10.1.2.3".parse().unwrap()), &long), Client::Hidden);
    }

    #[test]
    fn a_list_of_proxies_holds_networks_and_addresses_only() {
        assert!(Proxies::parse(&["0.0.0.0/0"]).unwrap().contain("192.0.2.1".parse().unwrap()));
        assert!(Proxies::parse(&["::/0"]).unwrap().contain("2001:db8::1".parse().unwrap()));
        assert!(!Proxies::parse(&["::/0"]).unwrap().contain("192.0.2.1".parse().unwrap()));
        assert_eq!(Proxies::parse::<&str>(&[]), Ok(Proxies::default()));
        for text in ["", "edge", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0.0/", "10.0.0.1:80", "::1/129"] {
            assert_eq!(Proxies::parse(&["::1", text]), Err(NoNetwork(text.to_owned())), "{text}");
        }
    }
}
