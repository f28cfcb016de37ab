//! Where the collector is and how it is spoken to, as configurations and OpenTelemetry's own environment variables
//! write it. Before it: text. After it: `sender`. Looks nothing up.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderName, HeaderValue, Uri};
use std::fmt;

const TRACES: &str = "/v1/traces";
const SERVICE: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// OTLP's two encodings that carry protobuf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// gRPC over HTTP/2; usually on port 4317.
    Grpc,
    /// A POST over HTTP/1.1; usually on port 4318.
    Http,
}

impl Protocol {
    /// `grpc`, `http` and `http/protobuf`.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "grpc" => Some(Self::Grpc),
            "http" | "http/protobuf" => Some(Self::Http),
            _ => None,
        }
    }
}

/// A collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub(crate) protocol: Protocol,
    pub(crate) tls: bool,
    pub(crate) authority: Authority,
    pub(crate) path: PathAndQuery,
}

/// Why a text names no collector.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EndpointError {
    /// It is not a URL with a host.
    #[error("`{0}` is not a URL such as http://collector:4317")]
    NotAUrl(String),
    /// Another scheme than `http` and `https`.
    #[error("`{0}` begins neither with http:// nor with https://")]
    Scheme(String),
    /// A name and password in the URL would end up in logs.
    #[error("the URL of a collector holds no credentials; write them to a file of headers")]
    Credentials,
}

impl Endpoint {
    /// From a collector's URL. Over HTTP, `/v1/traces` is added to its path unless that is there; gRPC has no path.
    pub fn parse(url: &str, protocol: Protocol) -> Result<Self, EndpointError> {
        let mut endpoint = Self::exactly(url, protocol)?;
        let path = endpoint.path.path().trim_end_matches('/').to_owned();
        if protocol == Protocol::Http && !path.ends_with(TRACES) {
            let path = format!("{path}{TRACES}");
            endpoint.path = path.parse().map_err(|_| EndpointError::NotAUrl(url.to_owned()))?;
        }
        Ok(endpoint)
    }

    /// From the URL of the traces' own receiver: its path is taken as it is, `/v1/traces` where it has none.
    pub fn exactly(url: &str, protocol: Protocol) -> Result<Self, EndpointError> {
        let uri: Uri = url.parse().map_err(|_| EndpointError::NotAUrl(url.to_owned()))?;
        let parts = uri.into_parts();
        let tls = match parts.scheme {
            Some(scheme) if scheme == Scheme::HTTPS => true,
            Some(scheme) if scheme == Scheme::HTTP => false,
            Some(_) => return Err(EndpointError::Scheme(url.to_owned())),
            None => return Err(EndpointError::NotAUrl(url.to_owned())),
        };
        let authority = parts.authority.ok_or_else(|| EndpointError::NotAUrl(url.to_owned()))?;
        if authority.as_str().contains('@') {
            return Err(EndpointError::Credentials);
        }
        let path = match (protocol, parts.path_and_query) {
            (Protocol::Grpc, _) => PathAndQuery::from_static(SERVICE),
            (Protocol::Http, Some(path)) if path.path() != "/" => path,
            (Protocol::Http, _) => PathAndQuery::from_static(TRACES),
        };
        Ok(Self { protocol, tls, authority, path })
    }

    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// Without the brackets of IPv6.
    pub(crate) fn host(&self) -> &str {
        self.authority.host().trim_start_matches('[').trim_end_matches(']')
    }

    pub(crate) fn port(&self) -> u16 {
        self.authority.port_u16().unwrap_or(if self.tls { 443 } else { 80 })
    }
}

/// For logs.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", if self.tls { "https" } else { "http" }, self.authority)
    }
}

/// Headers for the collector, as a file has them: a line each, `name: value`; `#` begins a comment. The values are
/// secrets, and no error quotes them.
///
/// # Errors
/// Which line cannot be used.
pub fn headers(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            line.split_once(':')
                .and_then(|(name, value)| header(name, value))
                .ok_or_else(|| format!("line {number} is not a header as `name: value`"))
        })
        .collect()
}

/// As `OTEL_EXPORTER_OTLP_HEADERS` has them: `name=value,name=value`, percent-decoding left out.
///
/// # Errors
/// Which of them cannot be used.
pub fn headers_of_variable(text: &str) -> Result<Vec<(HeaderName, HeaderValue)>, String> {
    let pairs = text.split(',').map(str::trim).filter(|pair| !pair.is_empty()).enumerate();
    pairs
        .map(|(index, pair)| {
            pair.split_once('=')
                .and_then(|(name, value)| header(name, value))
                .ok_or_else(|| format!("pair {} is not name=value", index + 1))
        })
        .collect()
}

/// One header whose value nobody will print.
pub fn header(name: &str, value: &str) -> Option<(HeaderName, HeaderValue)> {
    let name = HeaderName::try_from(name.trim()).ok()?;
    let mut value = HeaderValue::try_from(value.trim()).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_and_http_gets_the_path_that_receivers_have() {
        for (url, protocol, tls, host, port, path) in [
            ("http://collector:4317", Protocol::Grpc, false, "collector", 4317, SERVICE),
            ("https://otlp.example.com", Protocol::Grpc, true, "otlp.example.com", 443, SERVICE),
            ("http://[::1]:4318", Protocol::Http, false, "::1", 4318, "/v1/traces"),
            ("http://c/", Protocol::Http, false, "c", 80, "/v1/traces"),
            ("http://c/tenant/", Protocol::Http, false, "c", 80, "/tenant/v1/traces"),
            ("https://c/v1/traces", Protocol::Http, true, "c", 443, "/v1/traces"),
        ] {
            let endpoint = Endpoint::parse(url, protocol).unwrap();
            assert_eq!((endpoint.tls, endpoint.host(), endpoint.port()), (tls, host, port), "{url}");
            assert_eq!(endpoint.path.as_str(), path, "{url}");
        }
        assert_eq!(Endpoint::exactly("http://c/own", Protocol::Http).unwrap().path, "/own");
        assert_eq!(Endpoint::exactly("http://c", Protocol::Http).unwrap().path, "/v1/traces");
    }

    #[test]
    fn what_names_no_collector_is_refused_without_repeating_a_password() {
        for url in ["", "collector:4317", "collector", "ftp://c", "http://", "http://a b"] {
            assert!(Endpoint::parse(url, Protocol::Grpc).is_err(), "{url}");
        }
        let error = Endpoint::parse("http://me:s3cr3t@c", Protocol::Grpc).unwrap_err();
        assert_eq!(error, EndpointError::Credentials);
        assert!(!error.to_string().contains("s3cr3t"));
    }

    #[test]
    fn headers_are_read_from_a_file_and_from_a_variable_and_never_shown() {
        let read = headers("# for the collector\nAuthorization: Bearer s3cr3t\n\nx-scope: a:b\n").unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[1].1, "a:b");
        assert!(!format!("{read:?}").contains("s3cr3t"), "{read:?}");
        let bad = headers("x: 1\ns3cr3t\n").unwrap_err();
        assert_eq!(bad, "line 2 is not a header as `name: value`");
        assert_eq!(headers_of_variable("a=b, c=d=e,").unwrap()[1].1, "d=e");
        assert!(headers_of_variable("a").is_err());
    }
}
