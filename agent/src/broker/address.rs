//! `--kas-address` as typed -> where to dial and what to speak there. Opens nothing.

use http::Uri;
use std::fmt;
use url::{Host, Url};

/// How the broker is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// HTTP/2 in clear.
    Grpc,
    /// HTTP/2 over TLS, ALPN `h2`.
    Grpcs,
    /// HTTP/2 in a WebSocket, in clear.
    Ws,
    /// HTTP/2 in a WebSocket over TLS.
    Wss,
}

impl Scheme {
    /// As it stands in an address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Grpc => "grpc",
            Self::Grpcs => "grpcs",
            Self::Ws => "ws",
            Self::Wss => "wss",
        }
    }

    /// Whether bytes are encrypted on the way.
    pub fn tls(self) -> bool {
        matches!(self, Self::Grpcs | Self::Wss)
    }

    /// Whether HTTP/2 travels inside a WebSocket.
    pub fn websocket(self) -> bool {
        matches!(self, Self::Ws | Self::Wss)
    }

    fn default_port(self) -> u16 {
        if self.tls() { 443 } else { 80 }
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Where the broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    scheme: Scheme,
    host: Host,
    port: u16,
    target: String,
}

/// Why an address cannot be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BadAddress {
    /// It does not parse as a URL at all.
    #[error("{given:?} is not a URL; write for example wss://kas.example.com/")]
    NotAUrl {
        /// As typed.
        given: String,
        /// What the parser stumbled over.
        #[source]
        source: url::ParseError,
    },
    /// The text is what kas' own agent says, for those who search for it.
    #[error(
        "unsupported scheme in GitLab Kubernetes Agent Server address: {0:?}; it must be grpc, grpcs, ws or wss, \
         as in wss://kas.example.com/"
    )]
    Scheme(String),
    /// No host between the slashes.
    #[error("the address names no host; write for example wss://kas.example.com/")]
    NoHost,
    /// `user:password@` would end up in logs and on the command line.
    #[error("the address carries a user name or password; the token belongs in --token-file")]
    Credentials,
    /// A redirect leads to a page that no agent can speak to.
    #[error("a redirect to {0:?} leads nowhere an agent can go")]
    Redirect(String),
}

impl Address {
    /// Reads what was given to `--kas-address`. A missing port is 80, or 443 with TLS; a missing path is `/`.
    pub fn parse(given: &str) -> Result<Self, BadAddress> {
        let url = Url::parse(given.trim())
            .map_err(|source| BadAddress::NotAUrl { given: given.to_owned(), source })?;
        let scheme = match url.scheme() {
            "grpc" => Scheme::Grpc,
            "grpcs" => Scheme::Grpcs,
            "ws" => Scheme::Ws,
            "wss" => Scheme::Wss,
            other => return Err(BadAddress::Scheme(other.to_owned())),
        };
        Self::from_url(scheme, &url)
    }

    /// Where a WebSocket dial was sent on to: `Location` may be relative, and says `https` where we say `wss`.
    pub fn redirected(&self, location: &str) -> Result<Self, BadAddress> {
        let here = self.to_string();
        let base = Url::parse(&here).map_err(|source| BadAddress::NotAUrl { given: here, source })?;
        let url = base.join(location).map_err(|_| BadAddress::Redirect(printable(location)))?;
        let scheme = match url.scheme() {
            "http" | "ws" => Scheme::Ws,
            "https" | "wss" => Scheme::Wss,
            _ => return Err(BadAddress::Redirect(printable(location))),
        };
        Self::from_url(scheme, &url)
    }

    fn from_url(scheme: Scheme, url: &Url) -> Result<Self, BadAddress> {
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadAddress::Credentials);
        }
        // Schemes that the URL standard does not know keep their host as text, so it is parsed here for all alike.
        let host = url.host_str().filter(|host| !host.is_empty()).ok_or(BadAddress::NoHost)?;
        let host =
            Host::parse(host).map_err(|source| BadAddress::NotAUrl { given: host.to_owned(), source })?;
        let path = if url.path().is_empty() { "/" } else { url.path() };
        let target = match url.query() {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        Ok(Self { scheme, host, port: url.port().unwrap_or(default_port(scheme, url)), target })
    }

    /// How to speak.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The host without brackets, as resolvers and certificates know it.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Domain(name) => name.clone(),
            Host::Ipv4(ip) => ip.to_string(),
            Host::Ipv6(ip) => ip.to_string(),
        }
    }

    /// The TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, IPv6 in brackets: what CONNECT, `:authority` and logs say.
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }

    /// The `Host` header of an upgrade: without the port where it is the default one.
    pub fn host_header(&self) -> String {
        if self.port == self.scheme.default_port() { self.host.to_string() } else { self.authority() }
    }

    /// Path and query of the upgrade request; gRPC addresses ignore theirs.
    pub fn target(&self) -> &str {
        &self.target
    }

    /// Scheme and authority as gRPC requests carry them: `https` only where gRPC itself speaks TLS.
    pub fn origin(&self) -> Uri {
        let scheme = if self.scheme == Scheme::Grpcs { "https" } else { "http" };
        Uri::builder()
            .scheme(scheme)
            .authority(self.authority())
            .path_and_query("/")
            .build()
            .expect("a parsed host and a port are an authority")
    }

    /// Whether another address leads to the same host, so that secrets meant for one may go to the other.
    pub fn same_host(&self, other: &Self) -> bool {
        self.host == other.host
    }
}

/// `http` and `https` redirects bring their own default port, which is that of the scheme they stand for.
fn default_port(scheme: Scheme, url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or(scheme.default_port())
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

/// The address as it may be logged: without the query.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.scheme, self.host_header())?;
        match self.scheme.websocket() {
            true => f.write_str(self.target.split('?').next().unwrap_or("/")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_schemes_are_read() {
        let table = [
            ("grpc://kas", "kas:80", "/", "kas"),
            ("grpc://kas:8150/", "kas:8150", "/", "kas:8150"),
            ("grpcs://kas.example.com", "kas.example.com:443", "/", "kas.example.com"),
            ("ws://kas.example.com", "kas.example.com:80", "/", "kas.example.com"),
            ("wss://kas.example.com", "kas.example.com:443", "/", "kas.example.com"),
            ("wss://kas.example.com/", "kas.example.com:443", "/", "kas.example.com"),
            (
                "wss://KAS.example.com:8443/-/kubernetes-agent",
                "kas.example.com:8443",
                "/-/kubernetes-agent",
                "kas.example.com:8443",
            ),
            ("wss://kas/-/kubernetes-agent/?a=b", "kas:443", "/-/kubernetes-agent/?a=b", "kas"),
            ("grpcs://[2001:db8::1]:8443", "[2001:db8::1]:8443", "/", "[2001:db8::1]:8443"),
            ("wss://10.0.0.1", "10.0.0.1:443", "/", "10.0.0.1"),
            (" wss://kas \n", "kas:443", "/", "kas"),
        ];
        for (given, authority, target, host_header) in table {
            let address = Address::parse(given).unwrap_or_else(|error| panic!("{given}: {error}"));
            assert_eq!(address.authority(), authority, "{given}");
            assert_eq!(address.target(), target, "{given}");
            assert_eq!(address.host_header(), host_header, "{given}");
        }
        assert_eq!(Address::parse("grpcs://[::1]").unwrap().host(), "::1");
        assert_eq!(Address::parse("grpcs://kas:8443").unwrap().origin(), "https://kas:8443/");
        assert_eq!(Address::parse("wss://kas:8443/x").unwrap().origin(), "http://kas:8443/");
    }

    #[test]
    fn what_cannot_be_an_address_says_why() {
        let table = [
            ("kas.example.com:443", "unsupported scheme"),
            (
                "https://kas.example.com",
                "unsupported scheme in GitLab Kubernetes Agent Server address: \"https\"",
            ),
            ("kas.example.com", "is not a URL"),
            ("wss://", "is not a URL"),
            ("grpc:///x", "no host"),
            ("wss://me:secret@kas", "--token-file"),
            ("grpc://kas:99999", "is not a URL"),
        ];
        for (given, says) in table {
            let error = Address::parse(given).expect_err(given).to_string();
            assert!(error.contains(says), "{given}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_redirect_may_be_relative_and_may_change_the_host() {
        let here = Address::parse("wss://kas.example.com/-/kubernetes-agent?x=1").unwrap();
        let table = [
            ("/-/kubernetes-agent/", "wss://kas.example.com/-/kubernetes-agent/"),
            ("https://gitlab.example.com/-/kas", "wss://gitlab.example.com/-/kas"),
            ("http://kas.example.com/", "ws://kas.example.com/"),
            ("wss://kas.example.com:8443/", "wss://kas.example.com:8443/"),
        ];
        for (location, leads_to) in table {
            assert_eq!(here.redirected(location).unwrap().to_string(), leads_to, "{location}");
        }
        assert!(here.redirected("ftp://x/").is_err());
        assert!(!here.same_host(&here.redirected("https://gitlab.example.com/").unwrap()));
    }
}
