//! The secrets of the road to and from GitLab: the bytes shared with Rails, the JWT signed with them anew for each
//! request, the check of what Rails signed, and a CI job's token on its way through. Before it: a file, a caller's
//! header. After it: header values marked sensitive. Nothing here can be printed.

use base64::{
    Engine as _,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use hmac::{Hmac, Mac};
use http::HeaderValue;
use postern_certs::watch::FileWatch;
use postern_wire::token::{AgentToken, InvalidToken, TokenKey};
use serde::Serialize;
use sha2::Sha256;
use std::{
    fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What Rails insists on.
const LENGTH: usize = 32;
/// What Rails is told.
const TO_RAILS: Words = Words { issuer: "gitlab-kas", audience: "gitlab", leeway: Duration::from_secs(5) };

/// What a JWT says, beside the time.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    /// Who made it.
    pub issuer: &'static str,
    /// Whom it is for.
    pub audience: &'static str,
    /// How far the two clocks may differ: the JWT begins this much earlier and ends this much later than now.
    pub leeway: Duration,
}

/// Why there is no secret.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file is not there or not for us.
    #[error("the authentication secret file {} cannot be read", path.display())]
    Read {
        /// `gitlab.authentication_secret_file`.
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It is no base64; where it ceases to be is not said, as that would show a piece of it.
    #[error(
        "the authentication secret file {} is not base64 (standard alphabet, padded); it must be the file \
         that GitLab itself uses, .gitlab_kas_secret",
        path.display()
    )]
    NotBase64 {
        /// `gitlab.authentication_secret_file`.
        path: PathBuf,
    },
    /// It is base64 of something else.
    #[error(
        "the authentication secret file {} holds {found} bytes after base64 decoding, {wanted} wanted",
        path.display()
    )]
    Length {
        /// `gitlab.authentication_secret_file`.
        path: PathBuf,
        /// Bytes.
        found: usize,
        /// Bytes.
        wanted: Length,
    },
}

/// How long a secret has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// So many bytes.
    Exactly(usize),
    /// Any number of bytes but none.
    Any,
}

impl Length {
    fn allows(self, found: usize) -> bool {
        match self {
            Self::Exactly(wanted) => found == wanted,
            Self::Any => found > 0,
        }
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exactly(wanted) => write!(f, "{wanted} are"),
            Self::Any => f.write_str("at least 1 is"),
        }
    }
}

/// The secret shared with Rails, as the file holds it now.
pub struct ServiceSecret {
    path: PathBuf,
    length: Length,
    key: watch::Sender<Vec<u8>>,
}

impl ServiceSecret {
    /// Reads the file that `gitlab` names: 32 bytes, or Rails would refuse us.
    pub fn load(path: PathBuf) -> Result<Self, SecretError> {
        Self::load_of(path, Length::Exactly(LENGTH))
    }

    /// Reads a file whose secret has such a length.
    pub fn load_of(path: PathBuf, length: Length) -> Result<Self, SecretError> {
        let key = read(&path, length)?;
        Ok(Self { path, length, key: watch::Sender::new(key) })
    }

    /// Reads the file again whenever it changes, until `stop`; a bad change is logged and the last good secret stays.
    /// Changes count from this call on.
    pub fn keep_fresh(self: Arc<Self>, stop: CancellationToken) -> impl Future<Output = ()> + Send + 'static {
        let watch = FileWatch::new(vec![self.path.clone()]);
        async move {
            let mut watch = match watch {
                Ok(watch) => watch,
                Err(error) => {
                    tracing::error!(path = %self.path.display(), %error, "authentication secret file cannot be watched");
                    return;
                }
            };
            while stop.run_until_cancelled(watch.changed()).await.is_some() {
                self.read_again().await;
            }
        }
    }

    async fn read_again(&self) {
        let (path, length) = (self.path.clone(), self.length);
        match tokio::task::spawn_blocking(move || read(&path, length)).await {
            Ok(Ok(key)) => {
                let replaced = self.key.send_if_modified(|now| {
                    let differs = *now != key;
                    *now = key;
                    differs
                });
                if replaced {
                    tracing::info!(path = %self.path.display(), "authentication secret replaced");
                }
            }
            Ok(Err(error)) => {
                tracing::error!(error = %crate::error::chain(&error), "authentication secret not replaced, the last good one stays in force");
            }
            Err(_) => tracing::error!("reading the authentication secret file panicked"),
        }
    }

    /// A JWT that says at this time that we are the kas of this GitLab, as a header value.
    pub fn jwt(&self, now: SystemTime) -> HeaderValue {
        sensitive(&sign(&self.key.borrow(), &TO_RAILS, now))
    }

    /// A JWT with these words at this time, as the value of an `authorization` header.
    pub fn bearer(&self, words: &Words, now: SystemTime) -> HeaderValue {
        sensitive(&format!("Bearer {}", sign(&self.key.borrow(), words, now)))
    }

    /// Whether `tag` is what `M` makes of the message with this secret; how long it takes says nothing of where not.
    pub fn authenticates<M: Mac + hmac::digest::KeyInit>(&self, message: &[u8], tag: &[u8]) -> bool {
        let mut mac = <M as Mac>::new_from_slice(&self.key.borrow()).expect("HMAC takes keys of any length");
        mac.update(message);
        mac.verify_slice(tag).is_ok()
    }
}

impl fmt::Debug for ServiceSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceSecret").field("path", &self.path).finish_non_exhaustive()
    }
}

fn read(path: &Path, wanted: Length) -> Result<Vec<u8>, SecretError> {
    let mut text =
        std::fs::read(path).map_err(|source| SecretError::Read { path: path.to_owned(), source })?;
    text.retain(|byte| !matches!(byte, b'\r' | b'\n'));
    let bytes = STANDARD.decode(&text).map_err(|_| SecretError::NotBase64 { path: path.to_owned() })?;
    let found = bytes.len();
    if !wanted.allows(found) {
        return Err(SecretError::Length { path: path.to_owned(), found, wanted });
    }
    Ok(bytes)
}

/// In this order, and times as seconds with a fraction, as a kas of 14.1 writes them.
#[derive(Serialize)]
struct Claims {
    aud: [&'static str; 1],
    exp: f64,
    iat: f64,
    iss: &'static str,
    nbf: f64,
}

fn sign(key: &[u8], words: &Words, now: SystemTime) -> String {
    // A clock before 1970 cannot be right, and what is signed at 0 is refused.
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e6;
    let claims = Claims {
        aud: [words.audience],
        exp: seconds(now + words.leeway),
        iat: seconds(now),
        iss: words.issuer,
        nbf: seconds(now.saturating_sub(words.leeway)),
    };
    let claims = serde_json::to_vec(&claims).expect("numbers and strings are JSON");
    let mut jwt = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256","typ":"JWT"}"#);
    jwt.push('.');
    URL_SAFE_NO_PAD.encode_string(claims, &mut jwt);
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of any length");
    mac.update(jwt.as_bytes());
    jwt.push('.');
    URL_SAFE_NO_PAD.encode_string(mac.finalize().into_bytes(), &mut jwt);
    jwt
}

fn sensitive(text: &str) -> HeaderValue {
    let mut value = HeaderValue::from_str(text).expect("only visible ASCII comes here");
    value.set_sensitive(true);
    value
}

/// The agent's token alone, without `Bearer`: newest Rails want it so.
pub(super) fn raw(token: &AgentToken) -> HeaderValue {
    let bearer = token.bearer();
    let token = bearer.as_bytes().strip_prefix(b"Bearer ").unwrap_or_default();
    let mut value = HeaderValue::from_bytes(token).expect("a piece of a header value is one");
    value.set_sensitive(true);
    value
}

/// What a CI job proves itself with. Its `Debug` shows a hash prefix only.
#[derive(Clone, Debug)]
pub struct JobToken(AgentToken);

impl JobToken {
    /// Takes the text behind `ci:<agent id>:`.
    pub fn new(text: &str) -> Result<Self, InvalidToken> {
        AgentToken::new(text).map(Self)
    }

    /// The only form in which it may be stored, compared, counted or logged.
    pub fn key(&self) -> TokenKey {
        self.0.key()
    }

    pub(super) fn header(&self) -> HeaderValue {
        raw(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn key() -> [u8; LENGTH] {
        std::array::from_fn(|index| u8::try_from(index).unwrap())
    }

    #[test]
    fn a_jwt_is_what_a_kas_of_14_1_makes() {
        let now = UNIX_EPOCH + Duration::from_millis(1_700_000_000_500);
        let expected = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOlsiZ2l0bGFiIl0sImV4cCI6MTcwMDAwMDAwNS41LCJ\
                        pYXQiOjE3MDAwMDAwMDAuNSwiaXNzIjoiZ2l0bGFiLWthcyIsIm5iZiI6MTY5OTk5OTk5NS41fQ.oKGBlE_S22sn\
                        2glPg-3yzhRlUPIggzAzdFu8fuzskzM";
        assert_eq!(sign(&key(), &TO_RAILS, now), expected);
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn the_secret_file_may_have_newlines_anywhere_and_as_many_bytes_as_wanted() {
        let good = "AAECAwQFBgcICQoLDA0ODxAR\r\nEhMUFRYXGBkaGxwdHh8=\n";
        let of = |text: &str, length| read(file(text).path(), length);
        let read = |path: &Path| read(path, Length::Exactly(LENGTH));
        assert_eq!(read(file(good).path()).unwrap(), key());
        let short = read(file("AAEC\n").path()).unwrap_err();
        assert!(short.to_string().ends_with("holds 3 bytes after base64 decoding, 32 are wanted"), "{short}");
        assert_eq!(of("AAEC\n", Length::Any).unwrap(), [0, 1, 2]);
        let empty = of("\n", Length::Any).unwrap_err();
        assert!(
            empty.to_string().ends_with("0 bytes after base64 decoding, at least 1 is wanted"),
            "{empty}"
        );
        for bad in ["not base64!", "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8", " AAEC"] {
            let error = read(file(bad).path()).unwrap_err();
            assert!(matches!(error, SecretError::NotBase64 { .. }), "{error:?}");
        }
        assert!(matches!(read(Path::new("/nonexistent/secret")), Err(SecretError::Read { .. })));
    }

    #[tokio::test]
    async fn a_changed_secret_file_is_in_force_without_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        std::fs::write(&path, STANDARD.encode([1; LENGTH])).unwrap();
        let secret = Arc::new(ServiceSecret::load(path.clone()).unwrap());
        let stop = CancellationToken::new();
        let fresh = tokio::spawn(Arc::clone(&secret).keep_fresh(stop.clone()));
        let mut key = secret.key.subscribe();
        std::fs::write(&path, STANDARD.encode([2; LENGTH])).unwrap();
        let replaced = key.wait_for(|key| *key == [2; LENGTH]);
        tokio::time::timeout(Duration::from_secs(60), replaced).await.unwrap().unwrap();
        let now = UNIX_EPOCH + Duration::from_secs(1);
        assert_eq!(secret.jwt(now).to_str().unwrap(), sign(&[2; LENGTH], &TO_RAILS, now));
        stop.cancel();
        fresh.await.unwrap();
    }

    #[test]
    fn no_secret_can_be_printed() {
        let secret =
            ServiceSecret { path: "f".into(), length: Length::Any, key: watch::Sender::new(vec![7; LENGTH]) };
        let job = JobToken::new("glcbt-SECRET").unwrap();
        let token = AgentToken::new("SECRET").unwrap();
        let printed =
            format!("{secret:?} {:?} {job:?} {:?} {:?}", secret.jwt(UNIX_EPOCH), job.header(), raw(&token));
        assert!(
            !printed.contains("SECRET") && !printed.contains("eyJ") && !printed.contains("7, 7"),
            "{printed}"
        );
        assert_eq!(raw(&token).to_str().unwrap(), "SECRET");
        assert_eq!(job.header().to_str().unwrap(), "glcbt-SECRET");
    }
}
