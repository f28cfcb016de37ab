//! Where another broker's private API is, as brokers tell each other: the field of their entries in Redis, written by
//! this program or by a kas. Whatever is there is checked here before anybody is dialled.

use std::{fmt, path::PathBuf, str::FromStr};

/// A broker's private API.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PeerUrl {
    /// `grpc://host:port`, or `grpcs://host:port` with TLS.
    Tcp {
        /// Name or address; an IPv6 address without its brackets.
        host: String,
        /// Never 0.
        port: u16,
        /// Whether TLS is spoken.
        tls: bool,
    },
    /// `unix:/path`: a socket of this host.
    Unix(PathBuf),
}

/// Longer ones are no addresses: names in DNS have 253 bytes at the most, paths of sockets 108.
const LENGTH_MAX: usize = 300;

/// It is none of the three kinds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a broker's private URL is grpc://host:port, grpcs://host:port or unix:/path")]
pub struct BadPeerUrl;

impl FromStr for PeerUrl {
    type Err = BadPeerUrl;

    fn from_str(text: &str) -> Result<Self, BadPeerUrl> {
        if text.len() > LENGTH_MAX || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(BadPeerUrl);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') { Ok(Self::Unix(path.into())) } else { Err(BadPeerUrl) };
        }
        let (tls, rest) = match (text.strip_prefix("grpc://"), text.strip_prefix("grpcs://")) {
            (Some(rest), _) => (false, rest),
            (_, Some(rest)) => (true, rest),
            _ => return Err(BadPeerUrl),
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or(BadPeerUrl)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let illegal = |host: &str| host.is_empty() || host.contains(['/', '@', '[', ']', '?', '#', ',']);
        let host = match bracketed {
            Some(host) if host.parse::<std::net::Ipv6Addr>().is_ok() => host,
            None if !illegal(host) && !host.contains(':') => host,
            _ => return Err(BadPeerUrl),
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self::Tcp { host: host.to_owned(), port, tls }),
            _ => Err(BadPeerUrl),
        }
    }
}

impl fmt::Display for PeerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port, tls } => {
                let scheme = if *tls { "grpcs" } else { "grpc" };
                if host.contains(':') {
                    write!(f, "{scheme}://[{host}]:{port}")
                } else {
                    write!(f, "{scheme}://{host}:{port}")
                }
            }
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_one_of_three_kinds_and_is_written_as_it_is_read() {
        for text in [
            "grpc://10.0.0.1:8155",
            "grpcs://kas-1.kas.svc:8155",
            "grpc://[fd00::1]:8155",
            "unix:/run/kas.sock",
        ] {
            assert_eq!(text.parse::<PeerUrl>().unwrap().to_string(), text);
        }
        for text in [
            "",
            "grpc://",
            "grpc://host",
            "grpc://host:0",
            "grpc://user@host:1",
            "grpc://a:b:1",
            "grpc://a/b:1",
            "http://host:1",
            "unix:relative",
            "grpc://ho st:1",
            "grpc://[nothing]:1",
        ] {
            assert_eq!(text.parse::<PeerUrl>(), Err(BadPeerUrl), "{text}");
        }
        assert!(format!("grpc://{}:1", "a".repeat(300)).parse::<PeerUrl>().is_err());
    }
}
