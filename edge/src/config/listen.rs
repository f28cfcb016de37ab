//! `listen`: the ports, who may come to them, and how connections begin.

use super::Problems;
use crate::listen::forwarded::Dialect;
use crate::listen::networks::Networks;
use crate::listen::{Access, Place, ProxyProtocol};
use postern_certs::mutual::ClientAuth;
use postern_certs::server::MinVersion;
use serde::{Deserialize, Serialize, Serializer};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

/// The owner and the group, which is how a load balancer on the same host is let in.
const SOCKET_MODE: u32 = 0o660;
/// What the kernel takes as a path, and room for the name under which the socket is made.
const SOCKET_PATH: usize = 90;

/// One port.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Listen {
    pub place: Place,
    /// `None`: cleartext.
    pub tls: Option<Tls>,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub forwarded: Option<Forwarded>,
    pub access: Access,
}

/// How TLS ends here.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Tls {
    /// At least one; the first is for names that no other has.
    pub certificates: Vec<Certificate>,
    #[serde(serialize_with = "version_shown")]
    pub min_version: MinVersion,
    /// Whose client certificates are believed, and whether one is needed.
    #[serde(serialize_with = "clients_shown")]
    pub clients: Option<(PathBuf, ClientAuth)>,
}

/// A PEM chain and its key.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Certificate {
    pub certificate_file: PathBuf,
    pub key_file: PathBuf,
}

/// Proxies that say for whom they ask.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Forwarded {
    pub trusted: Networks,
    pub dialect: Dialect,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileListen {
    address: String,
    mode: Option<String>,
    ipv6_only: Option<bool>,
    tls: Option<FileTls>,
    proxy_protocol: Option<FileProxyProtocol>,
    forwarded: Option<FileForwarded>,
    #[serde(default)]
    access: FileAccess,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTls {
    certificates: Vec<Certificate>,
    min_version: Option<String>,
    client_ca_file: Option<PathBuf>,
    client_auth: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileProxyProtocol {
    from: Option<Vec<String>>,
    mode: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileForwarded {
    #[serde(default)]
    trusted: Vec<String>,
    header: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileAccess {
    allow: Option<Vec<String>>,
    #[serde(default)]
    deny: Vec<String>,
}

pub(super) fn meant(written: Vec<FileListen>, base: &Path, found: &mut Problems) -> Vec<Listen> {
    if written.is_empty() {
        found.add("listen", "is empty: add at least one {address: host:port}");
    }
    let mut listen: Vec<Listen> = Vec::new();
    for (index, port) in written.into_iter().enumerate() {
        let at = format!("listen[{index}]");
        let place = place(&port, &at, base, found);
        let unix = matches!(place, Some(Place::Unix { .. }));
        let tls = port.tls.map(|tls| tls.meant(&format!("{at}.tls"), base, found));
        let proxy_protocol =
            port.proxy_protocol.map(|proxy| proxy.meant(&format!("{at}.proxy_protocol"), unix, found));
        let forwarded = port.forwarded.map(|hops| hops.meant(&format!("{at}.forwarded"), unix, found));
        let access = Access {
            allow: port.access.allow.map(|list| networks(&format!("{at}.access.allow"), &list, found)),
            deny: networks(&format!("{at}.access.deny"), &port.access.deny, found),
        };
        if access.allow.as_ref().is_some_and(Networks::is_empty)
            && !found.any_at(&format!("{at}.access.allow"))
        {
            found
                .add(format!("{at}.access.allow"), "is empty: nobody could connect; remove it to let all in");
        }
        let Some(place) = place else { continue };
        if let Some(other) = listen.iter().find(|other| collide(&other.place, &place)) {
            let what = if other.place == place {
                format!("{place} is listed twice")
            } else {
                format!(
                    "{place} and {} are one port; write ipv6_only: true at [::], or leave out 0.0.0.0",
                    other.place
                )
            };
            found.add(format!("{at}.address"), what);
        }
        listen.push(Listen { place, tls, proxy_protocol, forwarded, access });
    }
    listen
}

fn place(port: &FileListen, at: &str, base: &Path, found: &mut Problems) -> Option<Place> {
    let Some(path) = port.address.strip_prefix("unix:") else {
        if port.mode.is_some() {
            found.add(format!("{at}.mode"), "is for unix: addresses, which this one is not");
        }
        let address = found.socket(&format!("{at}.address"), &port.address)?;
        if port.ipv6_only.is_some() && !address.is_ipv6() {
            found.add(format!("{at}.ipv6_only"), "is for IPv6 addresses, which this one is not");
        }
        return Some(Place::Ip { address, v6_only: port.ipv6_only.unwrap_or(false) });
    };
    let path = base.join(path);
    if path.file_name().is_none() || path.as_os_str().len() > SOCKET_PATH {
        found.add(
            format!("{at}.address"),
            format!("is not a path to a file, or longer than {SOCKET_PATH} bytes"),
        );
        return None;
    }
    if port.ipv6_only.is_some() {
        found.add(format!("{at}.ipv6_only"), "is for IPv6 addresses, which this one is not");
    }
    let mode = match &port.mode {
        None => SOCKET_MODE,
        Some(text) => match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && text.len() >= 3 => mode,
            _ => {
                found.add(format!("{at}.mode"), format!("`{text}` is not a mode in octal, as \"0660\""));
                SOCKET_MODE
            }
        },
    };
    Some(Place::Unix { path, mode })
}

/// Whether the system would refuse to bind both.
fn collide(one: &Place, other: &Place) -> bool {
    let (Place::Ip { address: a, v6_only: a_only }, Place::Ip { address: b, v6_only: b_only }) = (one, other)
    else {
        return match (one, other) {
            (Place::Unix { path: a, .. }, Place::Unix { path: b, .. }) => a == b,
            _ => false,
        };
    };
    let both = |v6: IpAddr, only: bool, v4: IpAddr| {
        v6 == Ipv6Addr::UNSPECIFIED && !only && v4 == Ipv4Addr::UNSPECIFIED
    };
    a.port() != 0
        && a.port() == b.port()
        && (a.ip() == b.ip() || both(a.ip(), *a_only, b.ip()) || both(b.ip(), *b_only, a.ip()))
}

impl FileTls {
    fn meant(self, at: &str, base: &Path, found: &mut Problems) -> Tls {
        if self.certificates.is_empty() {
            found.add(
                format!("{at}.certificates"),
                "is empty: add {certificate_file, key_file}, or remove tls",
            );
        }
        let certificates = self.certificates.into_iter().map(|pair| Certificate {
            certificate_file: base.join(pair.certificate_file),
            key_file: base.join(pair.key_file),
        });
        let min_version = match self.min_version.as_deref() {
            None | Some("1.2") => MinVersion::Tls12,
            Some("1.3") => MinVersion::Tls13,
            Some(other) => {
                found.add(format!("{at}.min_version"), format!("`{other}` is neither \"1.2\" nor \"1.3\""));
                MinVersion::Tls12
            }
        };
        let auth = match self.client_auth.as_deref() {
            None | Some("required") => ClientAuth::Required,
            Some("optional") => ClientAuth::Optional,
            Some(other) => {
                found.add(format!("{at}.client_auth"), format!("`{other}` is neither optional nor required"));
                ClientAuth::Required
            }
        };
        if self.client_auth.is_some() && self.client_ca_file.is_none() {
            found.add(
                format!("{at}.client_auth"),
                "needs client_ca_file, to know whose certificates are good",
            );
        }
        let clients = self.client_ca_file.map(|file| (base.join(file), auth));
        Tls { certificates: certificates.collect(), min_version, clients }
    }
}

impl FileProxyProtocol {
    fn meant(self, at: &str, unix: bool, found: &mut Problems) -> ProxyProtocol {
        let from = networks(&format!("{at}.from"), self.from.as_deref().unwrap_or_default(), found);
        if unix && self.from.is_some() {
            found.add(format!("{at}.from"), "is not for unix: addresses; their mode says who may connect");
        } else if !unix && from.is_empty() && !found.any_at(&format!("{at}.from")) {
            found.add(format!("{at}.from"), "is empty: name the load balancers' addresses, as 10.0.0.0/8");
        }
        let required = match self.mode.as_deref() {
            None | Some("required") => true,
            Some("optional") => false,
            Some(other) => {
                found.add(format!("{at}.mode"), format!("`{other}` is neither optional nor required"));
                true
            }
        };
        ProxyProtocol { from, required }
    }
}

impl FileForwarded {
    fn meant(self, at: &str, unix: bool, found: &mut Problems) -> Forwarded {
        let trusted = networks(&format!("{at}.trusted"), &self.trusted, found);
        if !unix && trusted.is_empty() && !found.any_at(&format!("{at}.trusted")) {
            found.add(format!("{at}.trusted"), "is empty: name the proxies' addresses, as 10.0.0.0/8");
        }
        let dialect = match self.header.as_deref() {
            None | Some("x-forwarded-for") => Dialect::XForwardedFor,
            Some("forwarded") => Dialect::Forwarded,
            Some(other) => {
                found.add(
                    format!("{at}.header"),
                    format!("`{other}` is neither x-forwarded-for nor forwarded"),
                );
                Dialect::XForwardedFor
            }
        };
        Forwarded { trusted, dialect }
    }
}

fn networks(at: &str, written: &[String], found: &mut Problems) -> Networks {
    Networks::parse(written).unwrap_or_else(|errors| {
        for (index, error) in errors {
            found.add(format!("{at}[{index}]"), error.to_string());
        }
        Networks::default()
    })
}

fn version_shown<S: Serializer>(version: &MinVersion, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match version {
        MinVersion::Tls12 => "1.2",
        MinVersion::Tls13 => "1.3",
    })
}

fn clients_shown<S: Serializer>(
    clients: &Option<(PathBuf, ClientAuth)>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown<'a> {
        ca_file: &'a Path,
        auth: &'static str,
    }
    let shown = clients.as_ref().map(|(file, auth)| Shown {
        ca_file: file,
        auth: match auth {
            ClientAuth::Optional => "optional",
            ClientAuth::Required => "required",
        },
    });
    shown.serialize(serializer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listen(text: &str) -> Result<Vec<Listen>, Vec<String>> {
        let mut found = Problems(Vec::new());
        let listen = meant(serde_yaml::from_str(text).unwrap(), Path::new("/etc/postern"), &mut found);
        if found.0.is_empty() {
            Ok(listen)
        } else {
            Err(found.0.into_iter().map(|problem| problem.at).collect())
        }
    }

    #[test]
    fn a_listener_with_everything_is_understood() {
        let text = "
- address: unix:edge.sock
  mode: 0600
  proxy_protocol: {mode: optional}
  forwarded: {header: forwarded}
- address: '[::]:8443'
  ipv6_only: true
  tls: {certificates: [{certificate_file: a, key_file: b}], min_version: 1.3, client_ca_file: c, client_auth: optional}
  proxy_protocol: {from: [10.0.0.0/8]}
  access: {allow: [192.0.2.0/24], deny: [192.0.2.1]}
- address: 0.0.0.0:8443
  forwarded: {trusted: ['::1']}";
        let listen = listen(text).unwrap();
        assert_eq!(listen[0].place, Place::Unix { path: "/etc/postern/edge.sock".into(), mode: 0o600 });
        assert!(!listen[0].proxy_protocol.as_ref().unwrap().required);
        assert_eq!(listen[0].forwarded.as_ref().unwrap().dialect, Dialect::Forwarded);
        let tls = listen[1].tls.as_ref().unwrap();
        assert_eq!(tls.min_version, MinVersion::Tls13);
        assert_eq!(tls.clients, Some(("/etc/postern/c".into(), ClientAuth::Optional)));
        assert!(listen[1].proxy_protocol.as_ref().unwrap().required);
        assert!(!listen[1].access.admits([192, 0, 2, 1].into()));
        assert!(listen[1].access.admits([192, 0, 2, 2].into()));
        assert!(listen[2].access.admits([192, 0, 2, 1].into()));
        assert_eq!(listen[2].forwarded.as_ref().unwrap().dialect, Dialect::XForwardedFor);
    }

    #[test]
    fn each_mistake_has_its_place() {
        for (text, at) in [
            ("[{address: '1.2.3.4:5', mode: '0600'}]", "listen[0].mode"),
            ("[{address: 'unix:/a', mode: '0999'}]", "listen[0].mode"),
            ("[{address: 'unix:/a', mode: '1777'}]", "listen[0].mode"),
            ("[{address: 'unix:/'}]", "listen[0].address"),
            ("[{address: 'unix:/a', ipv6_only: true}]", "listen[0].ipv6_only"),
            ("[{address: '1.2.3.4:5', ipv6_only: true}]", "listen[0].ipv6_only"),
            ("[{address: 'unix:/a'}, {address: 'unix:/a'}]", "listen[1].address"),
            ("[{address: '0.0.0.0:5'}, {address: '[::]:5'}]", "listen[1].address"),
            ("[{address: 'unix:/a', proxy_protocol: {from: [10.0.0.0/8]}}]", "listen[0].proxy_protocol.from"),
            ("[{address: '1.2.3.4:5', proxy_protocol: {}}]", "listen[0].proxy_protocol.from"),
            ("[{address: '1.2.3.4:5', proxy_protocol: {from: [a]}}]", "listen[0].proxy_protocol.from[0]"),
            (
                "[{address: '1.2.3.4:5', proxy_protocol: {from: ['::1'], mode: on}}]",
                "listen[0].proxy_protocol.mode",
            ),
            ("[{address: '1.2.3.4:5', forwarded: {}}]", "listen[0].forwarded.trusted"),
            (
                "[{address: '1.2.3.4:5', forwarded: {trusted: ['::1'], header: via}}]",
                "listen[0].forwarded.header",
            ),
            ("[{address: '1.2.3.4:5', access: {allow: []}}]", "listen[0].access.allow"),
            ("[{address: '1.2.3.4:5', access: {deny: ['::1', 10.0.0.1/8]}}]", "listen[0].access.deny[1]"),
            (
                "[{address: '1.2.3.4:5', tls: {certificates: [{certificate_file: a, key_file: b}], client_auth: optional}}]",
                "listen[0].tls.client_auth",
            ),
            (
                "[{address: '1.2.3.4:5', tls: {certificates: [{certificate_file: a, key_file: b}], min_version: 1.1}}]",
                "listen[0].tls.min_version",
            ),
        ] {
            assert_eq!(listen(text).unwrap_err(), [at], "{text}");
        }
    }
}
