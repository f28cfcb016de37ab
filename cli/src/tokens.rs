//! `generate-token` and `hash-token`: new secrets, and the only form in which one may be written down on a server. The
//! token goes to standard output or comes from standard input, never from an argument, which others could see.

use std::io::{IsTerminal as _, Read as _};
use std::process::ExitCode;

use anyhow::Context as _;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_wire::token::{AgentToken, TokenKey};

/// Longer than any token; a file given by mistake is not read whole.
const MAX_INPUT: u64 = 64 << 10;

/// 256 bits of randomness in 43 characters that are safe in headers, URLs and YAML.
pub(crate) fn new_token() -> String {
    URL_SAFE_NO_PAD.encode(rand::random::<[u8; 32]>())
}

/// The hash of a token as the identities file wants it.
pub(crate) fn hex_of(token: &str) -> String {
    TokenKey::of(token.as_bytes()).to_hex()
}

pub(crate) fn generate() -> anyhow::Result<ExitCode> {
    println!("{}", new_token());
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn hash() -> anyhow::Result<ExitCode> {
    let input = std::io::stdin();
    if input.is_terminal() {
        eprintln!("Type or paste the token, then Enter and Ctrl-D:");
    }
    let mut text = String::new();
    input.take(MAX_INPUT).read_to_string(&mut text).context("read the token from standard input")?;
    let token = AgentToken::new(text).context("standard input is not a token")?;
    println!("{}", token.key().to_hex());
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::{hex_of, new_token};

    #[test]
    fn tokens_are_long_and_never_the_same() {
        let (one, other) = (new_token(), new_token());
        assert_ne!(one, other);
        assert_eq!(one.len(), 43);
    }

    #[test]
    fn the_hash_is_sha_256_in_hexadecimal() {
        assert_eq!(hex_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
