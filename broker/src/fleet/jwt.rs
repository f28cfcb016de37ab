//! What brokers prove themselves to each other with: a JWT under the secret of the private API, from and for
//! `gitlab-kas`. `peers` sends it with every call, the `gateway` wants it before it reads anything. It is never logged
//! and never reaches an agent.

use crate::{
    api::jwt::Expected,
    gitlab::{ServiceSecret, Words},
};
use http::HeaderValue;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

const NAME: &str = "gitlab-kas";
/// Hosts that agree on the time within this can talk; a kas allows 5 s either way.
const LEEWAY: Duration = Duration::from_secs(30);
const WORDS: Words = Words { issuer: NAME, audience: NAME, leeway: LEEWAY };

/// Which JWTs another broker may show.
pub const EXPECTED: Expected = Expected {
    issuer: Some(NAME),
    leeway: LEEWAY,
    advice: "do all brokers have the same private_api.listen.authentication_secret_file?",
};

/// Makes the JWTs of this broker, a new one each second that needs one.
#[derive(Debug)]
pub(super) struct Signer {
    secret: Arc<ServiceSecret>,
    last: Mutex<Option<(Duration, HeaderValue)>>,
}

impl Signer {
    pub(super) fn new(secret: Arc<ServiceSecret>) -> Self {
        Self { secret, last: Mutex::default() }
    }

    /// The value of an `authorization` header, good at this time.
    pub(super) fn bearer(&self, now: SystemTime) -> HeaderValue {
        let second = Duration::from_secs(now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs());
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((made, bearer)) if *made == second => bearer.clone(),
            _ => {
                let bearer = self.secret.bearer(&WORDS, now);
                *last = Some((second, bearer.clone()));
                bearer
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::jwt::{JwtError, RAILS, verify},
        gitlab::SecretLength,
    };
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    use std::io::Write;

    fn secret(bytes: &[u8]) -> Arc<ServiceSecret> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(STANDARD.encode(bytes).as_bytes()).unwrap();
        Arc::new(ServiceSecret::load_of(file.path().to_owned(), SecretLength::Any).unwrap())
    }

    fn jwt(bearer: &HeaderValue) -> &str {
        bearer.to_str().unwrap().strip_prefix("Bearer ").unwrap()
    }

    #[test]
    fn a_jwt_is_good_for_another_broker_whose_clock_is_off_by_less_than_a_minute() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let bearer = Signer::new(secret(b"ours")).bearer(now);
        let at = |offset: i64| {
            let there = UNIX_EPOCH + Duration::from_secs(u64::try_from(1_700_000_000 + offset).unwrap());
            verify(&secret(b"ours"), &EXPECTED, jwt(&bearer), there)
        };
        for (offset, wanted) in [
            (0, Ok(())),
            (-59, Ok(())),
            (59, Ok(())),
            (60, Err(JwtError::Expired)),
            (-61, Err(JwtError::TooEarly)),
        ] {
            assert_eq!(at(offset), wanted, "{offset} s");
        }
        let other = verify(&secret(b"theirs"), &EXPECTED, jwt(&bearer), now);
        assert_eq!(other, Err(JwtError::Signature));
    }

    #[test]
    fn what_the_secret_signs_for_somebody_else_is_refused() {
        let now = SystemTime::now();
        let secret = secret(b"ours");
        for (issuer, audience, wanted) in [
            ("gitlab", NAME, Err(JwtError::Issuer(NAME))),
            (NAME, "gitlab", Err(JwtError::Audience)),
            (NAME, NAME, Ok(())),
        ] {
            let bearer = secret.bearer(&Words { issuer, audience, leeway: LEEWAY }, now);
            assert_eq!(verify(&secret, &EXPECTED, jwt(&bearer), now), wanted, "{issuer} {audience}");
        }
        // Rails' own check bears no difference of the clocks beyond what the JWT says itself.
        let ours = secret.bearer(&WORDS, now);
        assert_eq!(verify(&secret, &RAILS, jwt(&ours), now + LEEWAY * 2), Err(JwtError::Expired));
    }

    #[test]
    fn one_jwt_serves_a_second_and_cannot_be_printed() {
        let signer = Signer::new(secret(b"ours"));
        let begin = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let first = signer.bearer(begin);
        assert_eq!(signer.bearer(begin + Duration::from_millis(999)), first);
        assert_ne!(signer.bearer(begin + Duration::from_secs(1)), first);
        let printed = format!("{first:?} {signer:?}");
        assert!(!printed.contains("eyJ"), "{printed}");
    }
}
