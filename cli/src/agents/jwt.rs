//! The JWT that the API listener wants, as GitLab Rails makes it: HS256 with the secret that Rails and the brokers share,
//! good for a minute. The secret leaves this file only as a signature.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hmac::{Hmac, Mac as _};
use http::HeaderValue;
use sha2::Sha256;

/// Longer than any secret; a file given by mistake is not read whole.
const MAX_FILE: u64 = 64 << 10;
/// How far the two clocks may differ, and how long the way may take.
const BEFORE: Duration = Duration::from_secs(5);
const AFTER: Duration = Duration::from_secs(60);

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum SecretError {
    #[error(
        "cannot read the secret file {}; it is the one that api.listen.authentication_secret_file of the broker names",
        path.display()
    )]
    Read { path: PathBuf, source: io::Error },
    /// Where it ceases to be base64 is not said, as that would show a piece of it.
    #[error(
        "the secret file {} does not hold base64 (standard alphabet, padded); it must be the one that \
         api.listen.authentication_secret_file of the broker names",
        path.display()
    )]
    NotBase64 { path: PathBuf },
}

/// Shared by GitLab Rails and the brokers.
pub(super) struct Secret(Vec<u8>);

impl Secret {
    pub(super) fn read(path: &Path) -> Result<Secret, SecretError> {
        let mut text = Vec::new();
        let read = File::open(path).and_then(|file| file.take(MAX_FILE).read_to_end(&mut text));
        read.map_err(|source| SecretError::Read { path: path.to_owned(), source })?;
        text.retain(|byte| !matches!(byte, b'\r' | b'\n'));
        match STANDARD.decode(&text) {
            Ok(secret) if !secret.is_empty() => Ok(Secret(secret)),
            _ => Err(SecretError::NotBase64 { path: path.to_owned() }),
        }
    }

    /// As the value of `Authorization`.
    pub(super) fn jwt(&self, now: SystemTime) -> HeaderValue {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        let seconds = |time: Duration| time.as_secs();
        let claims = serde_json::json!({
            "aud": "gitlab-kas", "iss": "postern", "iat": seconds(now),
            "nbf": seconds(now.saturating_sub(BEFORE)), "exp": seconds(now + AFTER),
        });
        let mut jwt = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
        jwt.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut jwt);
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        mac.update(jwt.as_bytes());
        jwt.push('.');
        URL_SAFE_NO_PAD.encode_string(mac.finalize().into_bytes(), &mut jwt);
        let mut value = HeaderValue::try_from(format!("Bearer {jwt}")).expect("base64url is visible ASCII");
        value.set_sensitive(true);
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_is_signed_with_the_secret_and_good_for_a_minute() {
        let value =
            Secret(b"shared with Rails".to_vec()).jwt(UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        // As OpenSSL's HMAC has it.
        assert_eq!(value.to_str().unwrap(), EXPECTED);
        assert!(value.is_sensitive());
    }

    const EXPECTED: &str = "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOiJnaXRsYWIta2FzIiwiZXhwIjoxNzAwMDAwMDYwLCJpYXQiOjE3MDAwMDAwMDAsImlzcyI6InBvc3Rlcm4iLCJuYmYiOjE2OTk5OTk5OTV9.nUsYRA8SSV86ZJid3zwX8SO7KkcVkimL6qCTH5ccJWI";

    #[test]
    fn a_secret_file_is_base64_with_newlines_anywhere_and_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            Secret::read(&path)
        };
        assert_eq!(read("aHVz\r\naA==\n").unwrap_or_else(|e| panic!("{e}")).0, b"hush");
        for bad in ["", "\n", "hush!", "aHVzaA"] {
            let error = read(bad).err().expect("it is no secret").to_string();
            assert!(error.contains("api.listen.authentication_secret_file"), "{error}");
            assert!(!error.contains("hush") && !error.contains("aHV"), "{error}");
        }
        let absent = Secret::read(Path::new("/does/not/exist")).err().expect("it is not there");
        assert!(absent.to_string().contains("/does/not/exist"), "{absent}");
    }
}
