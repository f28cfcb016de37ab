//! The secret that a Gitaly server shares with us, and what each call carries to prove it. The secret itself never
//! travels.

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};
use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};
use tonic::metadata::AsciiMetadataValue;

/// A Gitaly server's token, as Rails hands it out; empty where the server asks for none.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct GitalyToken(Arc<str>);

impl GitalyToken {
    /// Any text will do.
    pub fn new(token: impl Into<Arc<str>>) -> Self {
        Self(token.into())
    }

    /// `authorization` for a call made now. Servers accept it for 30 s, so it is made anew for each call.
    pub(super) fn authorization(&self) -> Option<AsciiMetadataValue> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        self.authorization_at(now)
    }

    fn authorization_at(&self, unix_seconds: u64) -> Option<AsciiMetadataValue> {
        if self.0.is_empty() {
            return None;
        }
        let issued = unix_seconds.to_string();
        let mut mac =
            Hmac::<Sha256>::new_from_slice(self.0.as_bytes()).expect("HMAC takes keys of any length");
        mac.update(issued.as_bytes());
        let value = format!("Bearer v2.{}.{issued}", hex::encode(mac.finalize().into_bytes()));
        let mut value = AsciiMetadataValue::try_from(value).expect("hexadecimal and digits are legal");
        value.set_sensitive(true);
        Some(value)
    }

    /// Tells tokens apart without keeping them.
    pub(super) fn hash(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_bytes()).into()
    }
}

impl fmt::Debug for GitalyToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "GitalyToken(none)" } else { "GitalyToken(..)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOOBAR_AT_1700000000: &str =
        "Bearer v2.20667a83f8bff34e8fe46bc20288ff8432d8e1c9e7e2e4c758cfe766d05a3bc3.1700000000";

    #[test]
    fn the_token_is_proven_by_a_dated_hmac() {
        let value = GitalyToken::new("foobar").authorization_at(1_700_000_000).unwrap();
        assert_eq!(value.to_str().unwrap(), FOOBAR_AT_1700000000);
        assert!(value.is_sensitive());
    }

    #[test]
    fn no_token_is_no_header_and_no_token_is_ever_shown() {
        assert!(GitalyToken::default().authorization().is_none());
        assert!(!format!("{:?}", GitalyToken::new("foobar")).contains("foobar"));
    }
}
