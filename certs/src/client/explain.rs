//! After a failed dial: one line that tells an operator what is wrong with TLS and what to do about it.
//! Before it: any error with a rustls error somewhere among its causes. It decides nothing and logs nothing.

use std::error::Error;
use std::io;

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error as TlsError, InvalidMessage, OtherError};

/// Says in one line why TLS failed, for errors that have a TLS failure among their causes; `None` for all
/// others. `ca_given` tells whether `--ca-cert-file` is in use, which changes the advice for an unknown CA.
pub fn explain(error: &(dyn Error + 'static), ca_given: bool) -> Option<String> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<TlsError>() {
            return Some(tls(error, ca_given));
        }
        next = match error.downcast_ref::<io::Error>() {
            Some(error) if closed_early(error) => return Some(CLOSED_EARLY.to_owned()),
            // An `io::Error` names as its source the source of what it wraps, not what it wraps.
            Some(error) => error.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    None
}

/// A certificate may carry hundreds of names, and this is one line in a log.
const NAMES: usize = 5;

const CLOSED_EARLY: &str = "the server closed the connection during the TLS handshake; is the port one for TLS, and is \
                            a load balancer in between that refuses this client?";

/// tokio-rustls has no type for this, only the words.
fn closed_early(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::UnexpectedEof
        && error.get_ref().is_some_and(|inner| inner.to_string() == "tls handshake eof")
}

fn tls(error: &TlsError, ca_given: bool) -> String {
    match error {
        TlsError::InvalidCertificate(error) => certificate(error, ca_given),
        TlsError::InvalidMessage(
            InvalidMessage::InvalidContentType
            | InvalidMessage::UnknownProtocolVersion
            | InvalidMessage::MessageTooLarge
            | InvalidMessage::InvalidEmptyPayload
            | InvalidMessage::UnexpectedMessage(_),
        ) => "the server does not speak TLS on this port; check host, port and scheme (wss:// and grpcs:// are TLS, \
              ws:// and grpc:// are not)"
            .to_owned(),
        TlsError::AlertReceived(alert) => format!("the server ended the TLS handshake: {}", meaning(*alert)),
        TlsError::NoCertificatesPresented => "the server presented no certificate".to_owned(),
        TlsError::PeerIncompatible(why) => {
            format!("the server's TLS is too old or too narrow for TLS 1.2 and 1.3 with modern ciphers ({why:?})")
        }
        TlsError::NoApplicationProtocol => {
            "the server speaks none of the offered protocols (ALPN); is it the right port?".to_owned()
        }
        other => format!("TLS failed: {other}"),
    }
}

fn certificate(error: &CertificateError, ca_given: bool) -> String {
    match error {
        CertificateError::UnknownIssuer if ca_given => {
            "the server's certificate is signed by an unknown CA: neither one in the file given with --ca-cert-file nor \
             one of the system's; check that the file holds the CA that signed it and that the server sends its \
             intermediate certificates"
                .to_owned()
        }
        CertificateError::UnknownIssuer => {
            "the server's certificate is signed by an unknown CA; where it is a private one, give its certificate with \
             --ca-cert-file"
                .to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the server's certificate has expired {} ago; renew it there, or check this machine's clock",
            about(*not_after, *time)
        ),
        CertificateError::Expired => {
            "the server's certificate has expired; renew it there, or check this machine's clock".to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the server's certificate is not valid yet, only in {}; check this machine's clock",
            about(*time, *not_before)
        ),
        CertificateError::NotValidYet => {
            "the server's certificate is not valid yet; check this machine's clock".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let names = match presented.as_slice() {
                [] => "no name at all".to_owned(),
                names => names.iter().take(NAMES).map(|name| plain(name)).collect::<Vec<_>>().join(", "),
            };
            let more = match presented.len().saturating_sub(NAMES) {
                0 => String::new(),
                count => format!(" and {count} more"),
            };
            let expected = expected.to_str();
            format!("the server's certificate is not for {expected}, only for {names}{more}; check the address")
        }
        CertificateError::NotValidForName => {
            "the server's certificate is not for the name that was dialled; check the address".to_owned()
        }
        CertificateError::BadSignature => {
            "the server's certificate is not signed by the trusted CA of that name; was the CA made anew? Then give the \
             new one with --ca-cert-file"
                .to_owned()
        }
        CertificateError::Revoked => "the server's certificate has been revoked".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate is not for use by a server (extended key usage)".to_owned()
        }
        CertificateError::Other(OtherError(inner)) if inner.to_string().contains("CaUsedAsEndEntity") => {
            "the server presents a CA's certificate as its own; it needs one that is signed by that CA".to_owned()
        }
        other => format!("the server's certificate cannot be verified: {other}"),
    }
}

fn meaning(alert: AlertDescription) -> String {
    use AlertDescription as A;
    let text = match alert {
        A::HandshakeFailure | A::InsufficientSecurity => "no cipher or key exchange in common",
        A::ProtocolVersion => "no TLS version in common (1.2 and 1.3 are offered)",
        A::UnrecognisedName => "it does not know the host name that was dialled",
        A::NoApplicationProtocol => "it speaks none of the offered protocols (ALPN)",
        A::CertificateRequired | A::NoCertificate => "it demands a client certificate, and none is sent",
        A::BadCertificate | A::CertificateUnknown | A::UnsupportedCertificate => "it refuses the certificate",
        A::CertificateExpired => "it says that the certificate has expired",
        A::CertificateRevoked => "it says that the certificate has been revoked",
        A::UnknownCA => "it does not know the CA that signed the certificate",
        A::AccessDenied => "access denied",
        A::InternalError => "it has an internal error; its log says more",
        A::CloseNotify | A::UserCanceled => "it closed the connection",
        other => return format!("alert {other:?}"),
    };
    format!("{text} (alert {alert:?})")
}

/// rustls hands out names as `DnsName("a.example")` and `IpAddress(10.0.0.1)`. They may hold any byte.
fn plain(name: &str) -> String {
    let inner = name.split_once('(').and_then(|(_, rest)| rest.strip_suffix(')')).unwrap_or(name);
    inner.trim_matches('"').escape_debug().collect()
}

/// A span in the largest unit that it fills.
fn about(from: UnixTime, to: UnixTime) -> String {
    let seconds = to.as_secs().saturating_sub(from.as_secs());
    let (count, unit) = match seconds {
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        _ => (seconds / 86_400, "day"),
    };
    format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
}
