//! The PROXY protocol, versions 1 and 2: one header, before TLS, in which a load balancer says whose connection it
//! passes on.
//!
//! After accept, for peers that the configuration trusts; before TLS. Bounded in length, and by its caller in time.
//! What it carries beyond addresses (TLVs) is skipped.

use bytes::{Buf, BytesMut};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};

const V1: &[u8] = b"PROXY ";
const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";
/// The specification's own bound for version 1, with its CR LF.
const V1_MAX: usize = 107;
/// Addresses and TLVs of version 2. Cloud load balancers stay below 200; a TLV with a client certificate may not.
const V2_MAX: usize = 4096;
/// Signature, version and command, family, length.
const V2_HEAD: usize = 16;

/// Why a connection that must or may begin with a header cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Closed before the first byte, as health checks of load balancers do.
    #[error("closed before it sent anything")]
    Silent,
    /// Closed within the header.
    #[error("closed within its PROXY header")]
    Truncated,
    /// The listener requires a header and something else came.
    #[error(
        "no PROXY header, which this listener requires; turn it on at the load balancer, or write mode: optional"
    )]
    Missing,
    /// It began as one and is none.
    #[error("malformed PROXY header: {0}")]
    Malformed(&'static str),
    /// The deadline for the whole header passed.
    #[error("no complete PROXY header within {0:?}")]
    TooSlow(Duration),
    /// The transport failed.
    #[error("read the PROXY header")]
    Io(#[source] io::Error),
}

/// What the first bytes of a connection are.
#[derive(Debug, PartialEq)]
enum Header {
    /// No header, whatever follows.
    None,
    /// More bytes are needed to tell.
    Incomplete,
    /// The header is `size` bytes. Without a client the load balancer speaks for itself, or does not know.
    Whole { size: usize, client: Option<SocketAddr> },
}

/// Takes the header from `io`, and leaves in `read` what came behind it.
///
/// # Errors
/// See [`ProxyError`]; the connection is of no further use then.
pub async fn take<S>(
    io: &mut S,
    read: &mut BytesMut,
    required: bool,
    limit: Duration,
) -> Result<Option<SocketAddr>, ProxyError>
where
    S: AsyncRead + Unpin,
{
    let taken = tokio::time::timeout(limit, async {
        loop {
            match parse(read)? {
                Header::Whole { size, client } => {
                    read.advance(size);
                    return Ok(client);
                }
                Header::None if required => return Err(ProxyError::Missing),
                Header::None => return Ok(None),
                Header::Incomplete => {}
            }
            read.reserve(512);
            if io.read_buf(read).await.map_err(ProxyError::Io)? == 0 {
                return Err(if read.is_empty() { ProxyError::Silent } else { ProxyError::Truncated });
            }
        }
    });
    taken.await.unwrap_or(Err(ProxyError::TooSlow(limit)))
}

fn parse(bytes: &[u8]) -> Result<Header, ProxyError> {
    let begins = |with: &[u8]| {
        let compared = bytes.len().min(with.len());
        bytes[..compared] == with[..compared]
    };
    match (begins(V1), begins(V2)) {
        (true, _) if bytes.len() >= V1.len() => v1(bytes),
        (_, true) if bytes.len() >= V2.len() => v2(bytes),
        (false, false) => Ok(Header::None),
        _ => Ok(Header::Incomplete),
    }
}

fn v1(bytes: &[u8]) -> Result<Header, ProxyError> {
    let searched = &bytes[..bytes.len().min(V1_MAX)];
    let Some(end) = searched.windows(2).position(|pair| pair == b"\r\n") else {
        return if searched.len() == V1_MAX {
            Err(ProxyError::Malformed("no end of line within 107 bytes"))
        } else {
            Ok(Header::Incomplete)
        };
    };
    let size = end + 2;
    let line = std::str::from_utf8(&bytes[V1.len()..end]).map_err(|_| ProxyError::Malformed("not ASCII"))?;
    if line == "UNKNOWN" || line.starts_with("UNKNOWN ") {
        return Ok(Header::Whole { size, client: None });
    }
    let mut words = line.split(' ');
    let mut word = || words.next().ok_or(ProxyError::Malformed("it ends too early"));
    let family = word()?;
    let (source, destination) = (word()?, word()?);
    let (source, _) = match family {
        "TCP4" => (address::<Ipv4Addr>(source)?, address::<Ipv4Addr>(destination)?),
        "TCP6" => (address::<Ipv6Addr>(source)?, address::<Ipv6Addr>(destination)?),
        _ => return Err(ProxyError::Malformed("neither TCP4 nor TCP6 nor UNKNOWN")),
    };
    let (source_port, _) = (port(word()?)?, port(word()?)?);
    if words.next().is_some() {
        return Err(ProxyError::Malformed("more words than it may have"));
    }
    Ok(Header::Whole { size, client: Some(SocketAddr::new(source.to_canonical(), source_port)) })
}

fn address<A: std::str::FromStr + Into<IpAddr>>(text: &str) -> Result<IpAddr, ProxyError> {
    text.parse::<A>().map(Into::into).map_err(|_| ProxyError::Malformed("not an address of its family"))
}

fn port(text: &str) -> Result<u16, ProxyError> {
    let bad = ProxyError::Malformed("not a port");
    if text.bytes().any(|byte| !byte.is_ascii_digit()) || text.len() > 1 && text.starts_with('0') {
        return Err(bad);
    }
    text.parse().map_err(|_| bad)
}

fn v2(bytes: &[u8]) -> Result<Header, ProxyError> {
    if bytes.len() < V2_HEAD {
        return Ok(Header::Incomplete);
    }
    let command = bytes[12];
    if command >> 4 != 2 {
        return Err(ProxyError::Malformed("a version other than 2 behind the signature of version 2"));
    }
    let length = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if length > V2_MAX {
        return Err(ProxyError::Malformed("longer than 4096 bytes"));
    }
    let size = V2_HEAD + length;
    let Some(body) = bytes.get(V2_HEAD..size) else { return Ok(Header::Incomplete) };
    let client = match (command & 0x0f, bytes[13]) {
        // LOCAL: the load balancer's own health check. What stands behind it means nothing.
        (0, _) => None,
        // TCP over IPv4 and IPv6.
        (1, 0x11) => Some(source::<4>(body, 8, |octets| Ipv4Addr::from(octets).into())?),
        (1, 0x21) => Some(source::<16>(body, 32, |octets| Ipv6Addr::from(octets).into())?),
        // UNSPEC, and clients of a Unix socket: they have no address.
        (1, 0x00 | 0x31) => None,
        (1, _) => return Err(ProxyError::Malformed("a transport that is not a stream")),
        _ => return Err(ProxyError::Malformed("neither LOCAL nor PROXY")),
    };
    Ok(Header::Whole { size, client })
}

/// Two addresses, the source first, then two ports the same way.
fn source<const N: usize>(
    body: &[u8],
    ports: usize,
    ip: impl Fn([u8; N]) -> IpAddr,
) -> Result<SocketAddr, ProxyError> {
    if body.len() < ports + 4 {
        return Err(ProxyError::Malformed("shorter than its addresses"));
    }
    let octets = body[..N].try_into().expect("the addresses are there, as was just checked");
    let port = u16::from_be_bytes([body[ports], body[ports + 1]]);
    Ok(SocketAddr::new(ip(octets).to_canonical(), port))
}

#[cfg(test)]
mod tests;
