//! Lists of networks in CIDR notation, and who is in them.
//!
//! From `config`, to [`super::Access`] and whoever is believed. A look-up is a binary search, however long the list.

use serde::{Serialize, Serializer};
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Addresses, as disjoint ranges in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Networks {
    v4: Vec<(u32, u32)>,
    v6: Vec<(u128, u128)>,
}

/// Why a text names no network. Each variant says what to write.
#[derive(Debug, thiserror::Error, PartialEq)]
pub enum NetworkError {
    /// Neither an address nor one with a prefix length.
    #[error("`{0}` is not a network, as 10.0.0.0/8 or 2001:db8::/32, nor an address")]
    NotOne(String),
    /// Bits behind the prefix are set: mostly a mistyped length.
    #[error("`{written}` has bits behind its prefix; write {meant}, or the address alone")]
    HostBits { written: String, meant: String },
}

impl Networks {
    /// Networks and single addresses.
    ///
    /// # Errors
    /// All that cannot be read, by their place in the list.
    pub fn parse(written: &[String]) -> Result<Self, Vec<(usize, NetworkError)>> {
        let (mut networks, mut errors) = (Self::default(), Vec::new());
        for (index, text) in written.iter().enumerate() {
            match range(text) {
                Ok((IpAddr::V4(first), IpAddr::V4(last))) => {
                    networks.v4.push((first.to_bits(), last.to_bits()));
                }
                Ok((IpAddr::V6(first), IpAddr::V6(last))) => {
                    networks.v6.push((first.to_bits(), last.to_bits()));
                }
                Ok(_) => unreachable!("both ends of a network are of one family"),
                Err(error) => errors.push((index, error)),
            }
        }
        merge(&mut networks.v4);
        merge(&mut networks.v6);
        if errors.is_empty() { Ok(networks) } else { Err(errors) }
    }

    /// Whether the address is in any of them. An IPv4 address written as IPv6 is IPv4.
    pub fn contains(&self, ip: IpAddr) -> bool {
        match ip.to_canonical() {
            IpAddr::V4(ip) => find(&self.v4, ip.to_bits()),
            IpAddr::V6(ip) => find(&self.v6, ip.to_bits()),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }
}

/// As they are understood: without those that lie inside another.
impl Serialize for Networks {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let v4 = self.v4.iter().map(|(first, last)| {
            shown(Ipv4Addr::from_bits(*first), (first ^ last).leading_zeros(), u32::BITS)
        });
        let v6 = self.v6.iter().map(|(first, last)| {
            shown(Ipv6Addr::from_bits(*first), (first ^ last).leading_zeros(), u128::BITS)
        });
        serializer.collect_seq(v4.chain(v6))
    }
}

/// Networks either nest or do not touch, so that each range has a prefix.
fn shown(first: impl Display, prefix: u32, bits: u32) -> String {
    if prefix == bits { first.to_string() } else { format!("{first}/{prefix}") }
}

/// First and last address of one network.
fn range(text: &str) -> Result<(IpAddr, IpAddr), NetworkError> {
    let not_one = || NetworkError::NotOne(text.to_owned());
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let written: IpAddr = address.parse().map_err(|_| not_one())?;
    let bits: u8 = if written.is_ipv4() { 32 } else { 128 };
    let length: u8 = match length {
        None => bits,
        // What `parse` takes beyond digits is no prefix length.
        Some(length) if length.bytes().all(|byte| byte.is_ascii_digit()) => {
            length.parse().map_err(|_| not_one())?
        }
        Some(_) => return Err(not_one()),
    };
    if length > bits {
        return Err(not_one());
    }
    let (address, length) = match (written, written.to_canonical()) {
        // ::ffff:10.0.0.0/104 is 10.0.0.0/8.
        (IpAddr::V6(_), IpAddr::V4(v4)) if length >= 96 => (IpAddr::V4(v4), length - 96),
        _ => (written, length),
    };
    let (first, last) = match address {
        IpAddr::V4(ip) => {
            let host = u32::MAX.checked_shr(length.into()).unwrap_or(0);
            let first = ip.to_bits() & !host;
            (Ipv4Addr::from_bits(first).into(), Ipv4Addr::from_bits(first | host).into())
        }
        IpAddr::V6(ip) => {
            let host = u128::MAX.checked_shr(length.into()).unwrap_or(0);
            let first = ip.to_bits() & !host;
            (Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(first | host).into())
        }
    };
    if first != address {
        return Err(NetworkError::HostBits { written: text.to_owned(), meant: format!("{first}/{length}") });
    }
    Ok((first, last))
}

fn merge<T: Ord + Copy>(ranges: &mut Vec<(T, T)>) {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
}

fn find<T: Ord + Copy>(ranges: &[(T, T)], address: T) -> bool {
    let behind = ranges.partition_point(|(first, _)| *first <= address);
    behind > 0 && address <= ranges[behind - 1].1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn networks(written: &[&str]) -> Networks {
        Networks::parse(&written.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn an_address_is_in_its_networks_and_in_no_others() {
        let list = networks(&[
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.7",
            "2001:db8::/32",
            "::1",
            "::ffff:198.51.100.0/120",
            "203.0.113.128/25",
        ]);
        for (ip, inside) in [
            ("10.0.0.0", true),
            ("10.255.255.255", true),
            ("10.1.2.3", true),
            ("11.0.0.0", false),
            ("9.255.255.255", false),
            ("192.0.2.7", true),
            ("192.0.2.6", false),
            ("::ffff:10.2.3.4", true),
            ("198.51.100.9", true),
            ("203.0.113.127", false),
            ("203.0.113.255", true),
            ("2001:db8:ffff::1", true),
            ("2001:db9::", false),
            ("::1", true),
            ("::2", false),
            ("0.0.0.1", false),
        ] {
            assert_eq!(list.contains(ip.parse().unwrap()), inside, "{ip}");
        }
    }

    #[test]
    fn everything_and_nothing() {
        assert!(networks(&["0.0.0.0/0"]).contains([255, 1, 2, 3].into()));
        assert!(!networks(&["0.0.0.0/0"]).contains("::1".parse().unwrap()));
        assert!(networks(&["::/0"]).contains("ffff::".parse().unwrap()));
        assert!(!networks(&[]).contains([1, 1, 1, 1].into()) && networks(&[]).is_empty());
    }

    #[test]
    fn what_is_no_network_is_named_with_its_place() {
        let written = ["10.0.0.0/8", "10.0.0.1/8", "10.0.0.0/33", "host", "1.2.3.4/", "1.2.3.4/+8", "::/129"];
        let errors = Networks::parse(&written.map(str::to_owned)).unwrap_err();
        assert_eq!(errors.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert!(errors[0].1.to_string().contains("write 10.0.0.0/8,"), "{}", errors[0].1);
    }

    #[test]
    fn networks_are_shown_as_they_are_understood() {
        for (written, shown) in [
            (&["10.0.0.0/8", "10.1.0.0/16"][..], r#"["10.0.0.0/8"]"#),
            (&["192.0.2.1", "2001:db8::/32", "::1"], r#"["192.0.2.1","::1","2001:db8::/32"]"#),
            (&["0.0.0.0/0", "::/0"], r#"["0.0.0.0/0","::/0"]"#),
            (&["10.0.0.0/30", "10.0.0.4"], r#"["10.0.0.0/30","10.0.0.4"]"#),
        ] {
            let written: Vec<_> = written.iter().map(|text| (*text).to_owned()).collect();
            assert_eq!(serde_json::to_string(&Networks::parse(&written).unwrap()).unwrap(), shown);
        }
    }
}
