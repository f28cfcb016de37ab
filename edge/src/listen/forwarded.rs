//! Who the client is when trusted proxies stand in between, and what the broker is told of it: `x-forwarded-for`,
//! `forwarded`, `x-forwarded-proto`.
//!
//! Beside `transport`, which knows the connection; used by `admit`. The chain is read from the right, where the nearest
//! proxy wrote; the first address that is not one of ours is the client, and what stands left of it is the client's own
//! invention and goes no further. Never believes anybody who is not on the list.

use super::networks::Networks;
use super::{Access, Place};
use http::header::{FORWARDED, HeaderMap, HeaderName, HeaderValue};
use serde::Serialize;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Proxies in a row that are looked at; nobody has more, and each costs the broker bytes.
const HOPS: usize = 16;
/// An address with port, brackets and quotes is shorter.
const NODE_BYTES: usize = 64;

/// Which header the trusted proxies write. The other one is whatever the client made of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    #[default]
    XForwardedFor,
    Forwarded,
}

/// The proxies in front of one listener.
#[derive(Debug, Clone, PartialEq)]
pub struct Trust {
    pub networks: Networks,
    pub dialect: Dialect,
    /// The listener's, for clients behind a proxy.
    pub access: Arc<Access>,
    /// A Unix socket's peers have no address; the mode of the file says who they are.
    pub place: Place,
}

/// Where a request comes from, as far as that can be believed.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Port 0 where a proxy did not say it.
    pub client: SocketAddr,
    https: bool,
    chain: HeaderValue,
    forwarded: Option<HeaderValue>,
}

impl Origin {
    /// Without any proxy in between.
    pub fn direct(client: SocketAddr, tls: bool) -> Self {
        let chain = text(&client.ip().to_canonical().to_string());
        Self { client, https: tls, chain, forwarded: None }
    }

    /// What to add to the request for the broker, once all such headers from outside are gone.
    pub fn headers(&self) -> impl Iterator<Item = (&'static str, HeaderValue)> + use<> {
        let proto = HeaderValue::from_static(if self.https { "https" } else { "http" });
        let forwarded = self.forwarded.clone().map(|value| ("forwarded", value));
        [Some(("x-forwarded-for", self.chain.clone())), Some(("x-forwarded-proto", proto)), forwarded]
            .into_iter()
            .flatten()
    }
}

impl Trust {
    /// Whether this peer's word counts. `named`: it is not who connected, but whom the PROXY header of that one names, and
    /// what the mode of a Unix socket's file says is said of who connected only.
    pub fn is_hop(&self, peer: IpAddr, named: bool) -> bool {
        (matches!(self.place, Place::Unix { .. }) && !named) || self.networks.contains(peer)
    }

    /// Reads what the proxy at `peer`, which [`Trust::is_hop`], says about a request.
    pub fn origin(&self, peer: SocketAddr, tls: bool, headers: &HeaderMap) -> Origin {
        let nodes = match self.dialect {
            Dialect::XForwardedFor => nodes(headers, &X_FORWARDED_FOR, plain),
            Dialect::Forwarded => nodes(headers, &FORWARDED, element),
        };
        // From the client to the proxy that is next to us.
        let mut path = vec![peer];
        let mut proto = None;
        for node in nodes {
            proto = node.https.or(proto);
            path.insert(0, node.address);
            if !self.networks.contains(node.address.ip()) {
                break;
            }
        }
        if self.dialect == Dialect::XForwardedFor {
            proto = headers.get(X_FORWARDED_PROTO).and_then(|value| https(value.to_str().ok()?));
        }
        let https = proto.unwrap_or(tls);
        let (mut chain, mut forwarded) = (String::new(), String::new());
        for (index, address) in path.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            let ip = address.ip();
            // Writing to a string cannot fail.
            let _ = write!(chain, "{comma}{ip}");
            let _ = match ip {
                IpAddr::V4(ip) => write!(forwarded, "{comma}for={ip}"),
                IpAddr::V6(ip) => write!(forwarded, "{comma}for=\"[{ip}]\""),
            };
            if index == 0 {
                let _ = write!(forwarded, ";proto={}", if https { "https" } else { "http" });
            }
        }
        let forwarded = (self.dialect == Dialect::Forwarded).then(|| text(&forwarded));
        Origin { client: path[0], https, chain: text(&chain), forwarded }
    }
}

fn text(value: &str) -> HeaderValue {
    HeaderValue::from_str(value).expect("addresses and punctuation are visible ASCII")
}

/// One step of the way, as its proxy wrote it.
#[derive(Debug, PartialEq)]
struct Node {
    address: SocketAddr,
    https: Option<bool>,
}

/// From the right, up to the first that cannot be read.
fn nodes(headers: &HeaderMap, name: &HeaderName, read: fn(&[u8]) -> Option<Node>) -> Vec<Node> {
    let lines: Vec<&[u8]> = headers.get_all(name).iter().map(HeaderValue::as_bytes).collect();
    let mut nodes = Vec::new();
    for line in lines.into_iter().rev() {
        let mut left = line;
        while !left.is_empty() && nodes.len() < HOPS {
            let comma = last_outside_quotes(left, b',');
            let part = left[comma.map_or(0, |at| at + 1)..].trim_ascii();
            left = comma.map_or(&[], |at| &left[..at]);
            // RFC 9110 lets lists have empty elements.
            if part.is_empty() {
                continue;
            }
            let Some(node) = read(part) else { return nodes };
            nodes.push(node);
        }
    }
    nodes
}

/// Searched from the right: what a trusted proxy wrote there is well-formed, whatever the client put before it.
fn last_outside_quotes(bytes: &[u8], wanted: u8) -> Option<usize> {
    let mut quoted = false;
    for (at, &byte) in bytes.iter().enumerate().rev() {
        if byte == b'"' {
            let escapes = bytes[..at].iter().rev().take_while(|byte| **byte == b'\\').count();
            quoted ^= !(quoted && escapes % 2 == 1);
        } else if byte == wanted && !quoted {
            return Some(at);
        }
    }
    None
}

/// An element of `x-forwarded-for`.
fn plain(part: &[u8]) -> Option<Node> {
    Some(Node { address: address(std::str::from_utf8(part).ok()?)?, https: None })
}

/// An element of `forwarded`: pairs behind semicolons, in any order.
fn element(part: &[u8]) -> Option<Node> {
    let (mut found, mut proto) = (None, None);
    let mut left = part;
    while !left.is_empty() {
        let semicolon = last_outside_quotes(left, b';');
        let pair = left[semicolon.map_or(0, |at| at + 1)..].trim_ascii();
        left = semicolon.map_or(&[], |at| &left[..at]);
        if pair.is_empty() {
            continue;
        }
        let (name, value) = std::str::from_utf8(pair).ok()?.split_once('=')?;
        if name.eq_ignore_ascii_case("for") {
            // Said twice it could be either.
            if found.replace(address(&unquoted(value)?)?).is_some() {
                return None;
            }
        } else if name.eq_ignore_ascii_case("proto") {
            proto = https(&unquoted(value)?);
        }
    }
    Some(Node { address: found?, https: proto })
}

fn unquoted(value: &str) -> Option<String> {
    let Some(inner) = value.strip_prefix('"') else { return Some(value.to_owned()) };
    let mut out = String::new();
    let mut chars = inner.strip_suffix('"')?.chars();
    while let Some(char) = chars.next() {
        match char {
            '"' => return None,
            '\\' => out.push(chars.next()?),
            char => out.push(char),
        }
    }
    Some(out)
}

fn https(proto: &str) -> Option<bool> {
    if proto.eq_ignore_ascii_case("https") {
        Some(true)
    } else {
        proto.eq_ignore_ascii_case("http").then_some(false)
    }
}

/// `192.0.2.7`, `192.0.2.7:1`, `2001:db8::7`, `[2001:db8::7]`, `[2001:db8::7]:1`. Not `unknown`, nor `_hidden`.
fn address(node: &str) -> Option<SocketAddr> {
    if node.len() > NODE_BYTES {
        return None;
    }
    let bare = node.strip_prefix('[').and_then(|node| node.strip_suffix(']')).unwrap_or(node);
    let address = match bare.parse::<IpAddr>() {
        Ok(ip) if bare.len() == node.len() || ip.is_ipv6() => SocketAddr::new(ip, 0),
        Ok(_) => return None,
        Err(_) => node.parse::<SocketAddr>().ok()?,
    };
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

#[cfg(test)]
mod tests;
