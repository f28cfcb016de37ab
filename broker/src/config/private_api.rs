//! The private API: its section of the file, and where other brokers find it, which deployments say in the environment
//! since each replica has its own address. After it: `app.rs` binds the listener and asks for [`PrivateApiConfig::own_url`].
//! It reads no variable itself: whoever has the environment passes a lookup.

use super::{
    ListenAddress, ListenConfig,
    file::{self, File},
    meaning::{MAX_CONNECTION_AGE, Reader, Socket, positive, socket, span},
};
use crate::fleet::PeerUrl;
use postern_yaml::{Given, Section as _};
use rustls::pki_types::ServerName;
use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

const ADDRESS: &str = "127.0.0.1:8155";

const URL: &str = "OWN_PRIVATE_API_URL";
const CIDR: &str = "OWN_PRIVATE_API_CIDR";
const SCHEME: &str = "OWN_PRIVATE_API_SCHEME";
const PORT: &str = "OWN_PRIVATE_API_PORT";
const HOST: &str = "OWN_PRIVATE_API_HOST";

/// The listener for other brokers, and how those are reached.
#[derive(Debug)]
pub struct PrivateApiConfig {
    /// The socket.
    pub listen: ListenConfig,
    /// What brokers sign their JWTs with, base64; the same for all of them.
    pub authentication_secret_file: PathBuf,
    /// Trusted beside the system's roots where other brokers have TLS.
    pub ca_certificate_file: Option<PathBuf>,
    /// Upper bound for connections.
    pub max_connection_age: Duration,
    /// Where other brokers find this one.
    pub own: OwnUrl,
    /// Which name all brokers' certificates have; absent: that of each one's URL.
    pub server_name: Option<String>,
}

/// Where other brokers find this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum OwnUrl {
    /// Where the listener is bound, if that is one address.
    #[default]
    Bound,
    /// Here.
    Given(PeerUrl),
    /// At the first address of this host's interfaces that is in a network.
    Within {
        /// The network.
        network: Network,
        /// Absent: TLS if the listener has a certificate.
        tls: Option<bool>,
        /// Absent: the listener's.
        port: Option<u16>,
    },
}

/// `10.0.0.0/8`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    fn contains(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(ours), IpAddr::V4(other)) => {
                let mask = u32::MAX.checked_shl(32 - self.prefix).unwrap_or(0);
                ours.to_bits() & mask == other.to_bits() & mask
            }
            (IpAddr::V6(ours), IpAddr::V6(other)) => {
                let mask = u128::MAX.checked_shl(128 - self.prefix).unwrap_or(0);
                ours.to_bits() & mask == other.to_bits() & mask
            }
            _ => false,
        }
    }
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, prefix) = text.split_once('/').ok_or(())?;
        let address: IpAddr = address.parse().map_err(drop)?;
        let prefix = prefix.parse().map_err(drop)?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        if prefix > longest { Err(()) } else { Ok(Self { address, prefix }) }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Variables of the environment that cannot be used, one a line.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct EnvironmentError(pub Vec<String>);

/// Why other brokers cannot be told where this one is.
#[derive(Debug, thiserror::Error)]
pub enum OwnUrlError {
    /// The listener has more than one address.
    #[error(
        "other brokers cannot be told where this one's private API is: private_api.listen.address is {address}, every \
         address of this host; set {URL} to the one they reach, such as grpc://10.0.0.1:{}, or {CIDR} to the network \
         that it is in, such as 10.0.0.0/8",
        address.port()
    )]
    Everywhere {
        /// Where it is bound.
        address: SocketAddr,
    },
    /// The host is elsewhere.
    #[error("no address of this host is in {CIDR} ({network}); it has {}", list(addresses))]
    NoAddress {
        /// Where it should be.
        network: Network,
        /// Where it is.
        addresses: Vec<IpAddr>,
    },
    /// A Unix socket has no port.
    #[error(
        "{CIDR} is of no use with private_api.listen.network unix; unset it, or set {PORT} to what forwards to it"
    )]
    NoPort,
    /// The system does not tell.
    #[error(
        "the addresses of this host's interfaces, which {CIDR} is about, cannot be read; set {URL} instead"
    )]
    Interfaces(#[source] io::Error),
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }
}

/// The addresses of this host's interfaces, in the system's order.
///
/// # Errors
/// The system does not tell.
pub fn interface_addresses() -> io::Result<Vec<IpAddr>> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    Ok(addresses.collect())
}

impl PrivateApiConfig {
    /// Where other brokers find this one, whose listener is bound there. `interfaces` is asked only if it has to be.
    ///
    /// # Errors
    /// It cannot be known; the error says what to set.
    pub fn own_url(
        &self,
        bound: &ListenAddress,
        interfaces: impl FnOnce() -> io::Result<Vec<IpAddr>>,
    ) -> Result<PeerUrl, OwnUrlError> {
        let listens_with_tls = self.listen.tls.is_some();
        match (&self.own, bound) {
            (OwnUrl::Given(url), _) => Ok(url.clone()),
            (OwnUrl::Within { network, tls, port }, _) => {
                let port = match (port, bound) {
                    (Some(port), _) => *port,
                    (None, ListenAddress::Tcp(address)) => address.port(),
                    (None, ListenAddress::Unix(_)) => return Err(OwnUrlError::NoPort),
                };
                let addresses = interfaces().map_err(OwnUrlError::Interfaces)?;
                match addresses.iter().find(|address| network.contains(**address)) {
                    Some(address) => Ok(PeerUrl::Tcp {
                        host: address.to_string(),
                        port,
                        tls: tls.unwrap_or(listens_with_tls),
                    }),
                    None => Err(OwnUrlError::NoAddress { network: *network, addresses }),
                }
            }
            (OwnUrl::Bound, ListenAddress::Tcp(address)) if address.ip().is_unspecified() => {
                Err(OwnUrlError::Everywhere { address: *address })
            }
            (OwnUrl::Bound, ListenAddress::Tcp(address)) => {
                if address.ip().is_loopback() {
                    tracing::warn!(%address, "only brokers of this host reach this one's private API; others need {URL}");
                }
                let (host, port) = (address.ip().to_string(), address.port());
                Ok(PeerUrl::Tcp { host, port, tls: listens_with_tls })
            }
            (OwnUrl::Bound, ListenAddress::Unix(path)) => {
                // Other brokers have working directories of their own.
                Ok(PeerUrl::Unix(std::path::absolute(path).unwrap_or_else(|_| path.clone())))
            }
        }
    }

    pub(super) fn read_environment(
        &mut self,
        lookup: impl Fn(&str) -> Option<String>,
    ) -> Result<(), EnvironmentError> {
        let given = |name: &str| lookup(name).filter(|value| !value.is_empty());
        let mut wrong = Vec::new();
        let scheme = given(SCHEME).and_then(|scheme| match scheme.as_str() {
            "grpc" => Some(false),
            "grpcs" => Some(true),
            _ => {
                wrong.push(format!("{SCHEME}: {scheme:?}; grpc or grpcs is wanted"));
                None
            }
        });
        let port = given(PORT).and_then(|port| match port.parse() {
            Ok(port) if port > 0 => Some(port),
            _ => {
                wrong.push(format!("{PORT}: {port:?}; a port is wanted"));
                None
            }
        });
        let own = match (given(URL), given(CIDR)) {
            (None, None) => OwnUrl::Bound,
            (Some(_), Some(_)) => {
                wrong.push(format!("{URL} and {CIDR}: both are set; one of the two is wanted"));
                OwnUrl::Bound
            }
            (Some(url), None) => match url.parse() {
                Ok(url) => OwnUrl::Given(url),
                Err(error) => {
                    wrong.push(format!("{URL}: {url:?}; {error}"));
                    OwnUrl::Bound
                }
            },
            (None, Some(network)) => match network.parse() {
                Ok(network) => OwnUrl::Within { network, tls: scheme, port },
                Err(()) => {
                    wrong.push(format!("{CIDR}: {network:?}; a network such as 10.0.0.0/8 is wanted"));
                    OwnUrl::Bound
                }
            },
        };
        let (variable, plain) = match &own {
            OwnUrl::Given(PeerUrl::Tcp { tls, .. }) => (URL, !tls),
            OwnUrl::Within { tls, .. } => (SCHEME, *tls == Some(false)),
            _ => (URL, false),
        };
        if plain && self.listen.tls.is_some() {
            wrong.push(format!("{variable}: grpc; private_api.listen has a certificate, so grpcs is wanted"));
        }
        let server_name = given(HOST);
        if let Some(name) = server_name.as_ref().filter(|name| ServerName::try_from(name.as_str()).is_err()) {
            wrong.push(format!("{HOST}: {name:?}; a name that brokers' certificates have is wanted"));
        }
        (self.own, self.server_name) = (own, server_name);
        if wrong.is_empty() { Ok(()) } else { Err(EnvironmentError(wrong)) }
    }
}

impl Reader<'_> {
    pub(super) fn private_api(
        &mut self,
        file: &File,
        listen_grace: &mut Duration,
    ) -> Option<PrivateApiConfig> {
        let section = file.private_api.as_ref()?;
        let (listen, place) = match &section.value.listen {
            Some(Given { value, place }) => (value, place),
            None => (file::ListenPrivateApi::empty(), &section.place.key("listen")),
        };
        *listen_grace = (*listen_grace).max(span(&listen.listen_grace_period, Duration::ZERO));
        let wanted = "a file with the secret that all brokers share is wanted";
        let secret =
            self.required(&listen.authentication_secret_file, place, "authentication_secret_file", wanted);
        let secret = secret.map(|given| self.base.join(&given.value));
        Some(PrivateApiConfig {
            listen: self.listen(socket!(listen), ADDRESS),
            ca_certificate_file: self.file(&listen.ca_certificate_file),
            max_connection_age: positive(&listen.max_connection_age, MAX_CONNECTION_AGE),
            own: OwnUrl::default(),
            server_name: None,
            authentication_secret_file: secret?,
        })
    }
}

#[cfg(test)]
mod tests;
