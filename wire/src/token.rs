//! Secrets of agents and of callers: they can be sent and compared by hash, never printed.

use http::HeaderValue;
use sha2::{Digest, Sha256};
use std::fmt;

/// The token an agent authenticates with. Its `Debug` shows a hash prefix only.
#[derive(Clone)]
pub struct AgentToken(String);

/// Why a text cannot be an agent token.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    /// Nothing is left after the trailing newline was removed.
    #[error("the agent token is empty")]
    Empty,
    /// It has a character that no header may carry; the position is in bytes, the character is not shown.
    #[error("the agent token has a character at byte {at} that a header cannot carry; is it the right file?")]
    NotAHeaderValue {
        /// Byte offset of the first such character.
        at: usize,
    },
}

impl AgentToken {
    /// Takes the text of a token file. One trailing newline (`\n` or `\r\n`) is removed, as editors add it.
    pub fn new(text: impl Into<String>) -> Result<Self, InvalidToken> {
        let mut text = text.into();
        if text.ends_with('\n') {
            text.pop();
            if text.ends_with('\r') {
                text.pop();
            }
        }
        if text.is_empty() {
            return Err(InvalidToken::Empty);
        }
        match text.bytes().position(|byte| !(0x21..=0x7e).contains(&byte)) {
            Some(at) => Err(InvalidToken::NotAHeaderValue { at }),
            None => Ok(Self(text)),
        }
    }

    /// The `authorization` value that carries it, marked sensitive so that HPACK never indexes it.
    pub fn bearer(&self) -> HeaderValue {
        let mut value =
            HeaderValue::try_from(format!("Bearer {}", self.0)).expect("visible ASCII was checked by new()");
        value.set_sensitive(true);
        value
    }

    /// The only form in which a token may be stored, compared, counted or logged.
    pub fn key(&self) -> TokenKey {
        TokenKey::of(self.0.as_bytes())
    }

    /// SHA-256 of the first half of the token (of an odd length, the shorter half): under this a kas counts RPCs in
    /// Redis. It names a token there and nothing can be authenticated with it.
    pub fn half_key(&self) -> [u8; 32] {
        let bytes = self.0.as_bytes();
        Sha256::digest(&bytes[..bytes.len() / 2]).into()
    }
}

impl fmt::Debug for AgentToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentToken({})", self.key())
    }
}

/// SHA-256 of a secret. `Display` and `Debug` show the first 8 hexadecimal digits.
///
/// Tokens are random and long, so a plain hash cannot be searched; passwords must not be kept this way.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TokenKey([u8; 32]);

impl TokenKey {
    /// Hashes the bytes of a secret.
    pub fn of(secret: &[u8]) -> Self {
        Self(Sha256::digest(secret).into())
    }

    /// Reads 64 hexadecimal digits, as `postern hash-token` prints them.
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text.trim(), &mut bytes).ok()?;
        Some(Self(bytes))
    }

    /// All 64 hexadecimal digits, for configuration files.
    pub fn to_hex(self) -> String {
        hex::encode(self.0)
    }

    /// The raw 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..4]))
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenKey({self})")
    }
}

/// The secret of an `authorization` header, when its scheme is `Bearer` (any case) and something follows.
pub fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
    (scheme.eq_ignore_ascii_case("bearer") && !secret.is_empty()).then_some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_trailing_newline_is_removed_and_the_rest_must_be_visible() {
        let header =
            |text: &str| AgentToken::new(text).map(|token| token.bearer().to_str().unwrap().to_owned());
        assert_eq!(header("abc\n"), Ok("Bearer abc".to_owned()));
        assert_eq!(header("abc\r\n"), Ok("Bearer abc".to_owned()));
        assert_eq!(header("abc\n\n"), Err(InvalidToken::NotAHeaderValue { at: 3 }));
        assert_eq!(header("\n"), Err(InvalidToken::Empty));
        assert_eq!(header("a b"), Err(InvalidToken::NotAHeaderValue { at: 1 }));
    }

    #[test]
    fn neither_a_token_nor_its_header_can_be_printed() {
        let token = AgentToken::new("glagent-secret").unwrap();
        let printed = format!("{token:?} {:?} {:?} {}", token.bearer(), token.key(), token.key());
        assert!(!printed.contains("secret"), "{printed}");
    }

    #[test]
    fn a_key_survives_its_hexadecimal_form() {
        let key = AgentToken::new("x").unwrap().key();
        assert_eq!(TokenKey::from_hex(&key.to_hex()), Some(key));
        assert_eq!(TokenKey::from_hex("00"), None);
    }

    #[test]
    fn bearer_is_recognised_in_any_case() {
        let of = |text: &'static str| bearer(&HeaderValue::from_static(text)).map(str::to_owned);
        assert_eq!(of("bEaReR x:y"), Some("x:y".to_owned()));
        assert_eq!(of("Basic x"), None);
        assert_eq!(of("Bearer "), None);
        assert_eq!(of("Bearer"), None);
    }
}
