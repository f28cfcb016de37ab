//! The address of one Redis server, as the configuration, a sentinel or a cluster gives it.

use super::RedisError;
use std::{fmt, path::PathBuf};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Server {
    Tcp { host: String, port: u16 },
    Unix(PathBuf),
}

impl Server {
    pub(super) fn parse(address: &str, key: &'static str) -> Result<Self, RedisError> {
        let (host, port) = address.rsplit_once(':').ok_or(RedisError::Address(key))?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let illegal = |host: &str| host.is_empty() || host.contains(['/', '@', '[', ']', ' ']);
        let host = match bracketed {
            Some(host) if !illegal(host) => host,
            None if !illegal(host) && !host.contains(':') => host,
            _ => return Err(RedisError::Address(key)),
        };
        match port.parse() {
            Ok(port) if port > 0 => Ok(Self::Tcp { host: host.to_owned(), port }),
            _ => Err(RedisError::Address(key)),
        }
    }

    /// As a node of a cluster names another: without a host, it is on the node's own.
    pub(super) fn beside(node: &Self, host: &str, port: u16) -> Option<Self> {
        let host = match (host, node) {
            ("" | "?", Self::Tcp { host, .. }) => host.as_str(),
            ("" | "?", Self::Unix(_)) => return None,
            _ => host,
        };
        (port > 0).then(|| Self::Tcp { host: host.to_owned(), port })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => path.display().fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_host_and_port_and_what_else_it_may_hold_is_not_shown() {
        for (address, shown) in [
            ("redis:6379", Some("redis:6379")),
            ("[::1]:6379", Some("[::1]:6379")),
            ("redis", None),
            ("redis:", None),
            ("redis:0", None),
            (":6379", None),
            ("::1:6379", None),
            ("redis://user:hunter2@redis:6379", None),
            ("user:hunter2@redis:6379", None),
        ] {
            match Server::parse(address, "address") {
                Ok(server) => assert_eq!(Some(server.to_string().as_str()), shown),
                Err(error) => {
                    assert_eq!(shown, None, "{address}");
                    assert!(!error.to_string().contains("hunter2"));
                }
            }
        }
    }
}
