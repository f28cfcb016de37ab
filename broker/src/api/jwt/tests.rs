//! Good and bad JWTs at a known time.

use super::*;
use hmac::Mac;
use serde_json::{Value, json};
use std::{io::Write, time::Duration};

const SECRET: &[u8] = b"not 32 bytes";
const NOW: f64 = 1_700_000_000.5;

/// As Rails makes them, with any algorithm's name.
pub(in crate::api) fn jwt(alg: &str, secret: &[u8], claims: &Value) -> String {
    signed(&json!({"alg": alg, "typ": "JWT"}), secret, claims)
}

fn signed(header: &Value, secret: &[u8], claims: &Value) -> String {
    fn tag<M: Mac + hmac::digest::KeyInit>(secret: &[u8], text: &str) -> Vec<u8> {
        <M as Mac>::new_from_slice(secret).unwrap().chain_update(text).finalize().into_bytes().to_vec()
    }
    let piece = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let text = format!("{}.{}", piece(header), piece(claims));
    let tag = match header["alg"].as_str().unwrap() {
        "HS384" => tag::<Hmac<Sha384>>(secret, &text),
        "HS512" => tag::<Hmac<Sha512>>(secret, &text),
        "none" => Vec::new(),
        _ => tag::<Hmac<Sha256>>(secret, &text),
    };
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(tag))
}

fn secret(bytes: &[u8]) -> ServiceSecret {
    use crate::gitlab::SecretLength;
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    file.write_all(text.as_bytes()).unwrap();
    ServiceSecret::load_of(file.path().to_owned(), SecretLength::Any).unwrap()
}

fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs_f64(NOW)
}

fn checked(jwt: &str) -> Result<(), JwtError> {
    verify(&secret(SECRET), &RAILS, jwt, now())
}

#[test]
fn audience_and_times_decide() {
    use JwtError::{Audience, Expired, TooEarly};
    let us = "gitlab-kas";
    for (claims, wanted) in [
        (json!({"aud": us}), Ok(())),
        (json!({"aud": us, "iss": "gitlab.example.com", "jti": "x", "iat": 9e9, "sub": null}), Ok(())),
        (json!({"aud": [us]}), Ok(())),
        (json!({"aud": ["other", us]}), Ok(())),
        (json!({"aud": "gitlab"}), Err(Audience)),
        (json!({"aud": ["gitlab"]}), Err(Audience)),
        (json!({"aud": []}), Err(Audience)),
        (json!({"aud": "gitlab-kas2"}), Err(Audience)),
        (json!({}), Err(Audience)),
        (json!({"aud": 1}), Err(JwtError::Malformed("its claims"))),
        (json!({"aud": us, "nbf": 1_699_999_995, "exp": 1_700_000_060}), Ok(())),
        (json!({"aud": us, "exp": NOW + 0.1, "nbf": NOW}), Ok(())),
        (json!({"aud": us, "exp": NOW}), Err(Expired)),
        (json!({"aud": us, "exp": 1_700_000_000}), Err(Expired)),
        (json!({"aud": us, "exp": 0}), Err(Expired)),
        (json!({"aud": us, "nbf": NOW + 0.1}), Err(TooEarly)),
        (json!({"aud": us, "nbf": 1_700_000_001}), Err(TooEarly)),
        (json!({"aud": us, "exp": "soon"}), Err(JwtError::Malformed("its claims"))),
        (json!([us]), Err(JwtError::Malformed("its claims"))),
    ] {
        for alg in ["HS256", "HS384", "HS512"] {
            assert_eq!(checked(&jwt(alg, SECRET, &claims)), wanted, "{alg} {claims}");
        }
    }
}

#[test]
fn only_hmac_with_our_secret_is_believed() {
    use JwtError::{Algorithm, Malformed, Signature, TooLong};
    let claims = json!({"aud": "gitlab-kas"});
    let good = jwt("HS256", SECRET, &claims);
    assert_eq!(checked(&good), Ok(()));
    let (signed_part, signature) = good.rsplit_once('.').unwrap();
    let (_, payload) = signed_part.split_once('.').unwrap();
    let other_header = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS512"}"#);
    let none = jwt("none", SECRET, &claims);
    let not_base64 = Malformed("a piece is not base64url");
    for (text, wanted) in [
        (jwt("HS256", b"another", &claims), Signature),
        (jwt("HS256", b"", &claims), Signature),
        (format!("{signed_part}."), Signature),
        (format!("{signed_part}.{}", &signature[..20]), Signature),
        (format!("{other_header}.{payload}.{signature}"), Signature),
        (none.clone(), Algorithm),
        (format!("{none}{signature}"), Algorithm),
        (jwt("RS256", SECRET, &claims), Algorithm),
        (jwt("hs256", SECRET, &claims), Algorithm),
        (signed(&json!({"alg": "HS256", "crit": ["b64"], "b64": false}), SECRET, &claims), Algorithm),
        (format!("{good}="), not_base64),
        (format!("{signed_part}.+/+/"), not_base64),
        (format!("{good}.x"), not_base64),
        (String::new(), Malformed("no dot")),
        ("garbage".to_owned(), Malformed("no dot")),
        ("gar.bage".to_owned(), Malformed("one dot only")),
        ("..".to_owned(), Malformed("its header")),
        (format!("{good}{}", "A".repeat(LENGTH_MAX)), TooLong),
    ] {
        assert_eq!(checked(&text), Err(wanted), "{text}");
    }
}

#[test]
fn a_jwt_that_another_program_made_has_the_signature_we_expect() {
    let key: Vec<u8> = (0..32).collect();
    let jwt = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJhdWQiOlsiZ2l0bGFiIl0sImV4cCI6MTcwMDAwMDAwNS41LCJpYXQiOjE3MDAw\
               MDAwMDAuNSwiaXNzIjoiZ2l0bGFiLWthcyIsIm5iZiI6MTY5OTk5OTk5NS41fQ.oKGBlE_S22sn2glPg-3yzhRlUPIggzAzdFu8\
               fuzskzM";
    // What a kas signs for GitLab must not open a kas.
    assert_eq!(verify(&secret(&key), &RAILS, jwt, now()), Err(JwtError::Audience));
}

#[test]
fn no_error_shows_any_of_the_jwt() {
    let jwt = jwt("HS256", b"another", &json!({"aud": "SECRET"}));
    for piece in jwt.split('.') {
        let printed = format!("{:?} {}", checked(&jwt), checked(&jwt).unwrap_err());
        assert!(!printed.contains(piece));
    }
}
