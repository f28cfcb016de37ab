//! A Gitaly server's address as Rails writes it. After it comes `dial`. It resolves no names.

use http::Uri;
use std::path::PathBuf;
use url::Url;

const WANTED: &str = "wanted: tcp://host:port, tls://host:port, unix:/path or dns:///host:port";

/// Where to dial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    Tcp { host: String, port: u16 },
    Tls { host: String, port: u16 },
    Unix(PathBuf),
}

impl Address {
    /// What is wrong with it, in words, when it is none.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once(':').ok_or_else(|| format!("no scheme; {WANTED}"))?;
        match scheme {
            "tcp" => host_port(text).map(|(host, port)| Self::Tcp { host, port }),
            "tls" => host_port(text).map(|(host, port)| Self::Tls { host, port }),
            "unix" => match format!("/{}", rest.trim_start_matches('/')) {
                path if rest.starts_with('/') && path.len() > 1 => Ok(Self::Unix(path.into())),
                _ => Err(format!("no absolute path after unix:; {WANTED}")),
            },
            "dns" => {
                let name = match rest.strip_prefix("//") {
                    None => rest,
                    Some(rest) => rest
                        .strip_prefix('/')
                        .ok_or("a name server of its own is not supported; wanted: dns:///host:port")?,
                };
                host_port(&format!("tcp://{name}")).map(|(host, port)| Self::Tcp { host, port })
            }
            other => Err(format!("unknown scheme {other:?}; {WANTED}")),
        }
    }

    /// What requests name as their authority.
    pub(super) fn origin(&self) -> Result<Uri, String> {
        let origin = match self {
            Self::Tcp { host, port } => format!("http://{host}:{port}/"),
            Self::Tls { host, port } => format!("https://{host}:{port}/"),
            Self::Unix(_) => "http://localhost/".to_owned(),
        };
        origin.parse().map_err(|_| format!("not a legal host name; {WANTED}"))
    }
}

/// The host keeps the brackets of an IPv6 address.
fn host_port(text: &str) -> Result<(String, u16), String> {
    let url = Url::parse(text).map_err(|error| format!("{error}; {WANTED}"))?;
    let bare = url.username().is_empty() && url.password().is_none();
    let bare = bare && url.path().is_empty() && url.query().is_none() && url.fragment().is_none();
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) if bare && !host.is_empty() => Ok((host.to_owned(), port)),
        (_, None) => Err(format!("no port; {WANTED}")),
        _ => Err(format!("more than host and port, or no host; {WANTED}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_all_schemes_are_read() {
        let tcp = |host: &str| Ok(Address::Tcp { host: host.into(), port: 8075 });
        assert_eq!(Address::parse("tcp://gitaly:8075"), tcp("gitaly"));
        assert_eq!(Address::parse("tcp://[::1]:8075"), tcp("[::1]"));
        assert_eq!(Address::parse("dns:///gitaly.svc:8075"), tcp("gitaly.svc"));
        assert_eq!(Address::parse("dns:gitaly.svc:8075"), tcp("gitaly.svc"));
        assert_eq!(Address::parse("tls://h:1"), Ok(Address::Tls { host: "h".into(), port: 1 }));
        for unix in ["unix:/run/g.sock", "unix:///run/g.sock"] {
            assert_eq!(Address::parse(unix), Ok(Address::Unix("/run/g.sock".into())));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_with_what_is_wanted() {
        for wrong in [
            "",
            "gitaly",
            "gitaly:8075",
            "http://gitaly:80",
            "tcp://gitaly",
            "tcp://gitaly:8075/path",
            "tcp://gitaly:8075/",
            "tcp://:8075",
            "tcp://a@gitaly:8075",
            "tls://gitaly:99999",
            "unix:",
            "unix:relative",
            "dns://8.8.8.8/gitaly:8075",
        ] {
            let reason = Address::parse(wrong).and_then(|address| address.origin()).unwrap_err();
            assert!(reason.contains("wanted"), "{wrong}: {reason}");
        }
    }

    #[test]
    fn the_authority_is_host_and_port() {
        assert_eq!(Address::parse("tls://[::1]:8075").unwrap().origin().unwrap(), "https://[::1]:8075/");
        assert_eq!(Address::parse("unix:/s").unwrap().origin().unwrap(), "http://localhost/");
    }
}
