//! The check that Rails makes of a kas' JWT: HS256, the issuer, the audience, the times. No leeway, as in Rails.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64URL;
use hmac::{Hmac, Mac as _};
use serde_json::Value;
use sha2::Sha256;

/// The claims of a JWT that was good; times in seconds, with fractions if the sender had them.
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    pub iss: String,
    pub aud: Vec<String>,
    pub iat: f64,
    pub nbf: f64,
    pub exp: f64,
}

/// Why a JWT is not good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    Form,
    Algorithm,
    Signature,
    Issuer,
    Audience,
    Expired,
    NotYet,
}

/// Checks a JWT at a time in seconds since 1970. `audience`: what `aud` must contain, if that is checked at all.
pub fn verify(token: &str, secret: &[u8], audience: Option<&str>, now: f64) -> Result<Claims, Bad> {
    let (signed, signature) = token.rsplit_once('.').ok_or(Bad::Form)?;
    let (header, payload) = signed.split_once('.').ok_or(Bad::Form)?;
    if json(header)?["alg"] != "HS256" {
        return Err(Bad::Algorithm);
    }
    let signature = BASE64URL.decode(signature).map_err(|_| Bad::Form)?;
    let mut mac = Hmac::<Sha256>::new_from_slice(secret).map_err(|_| Bad::Form)?;
    mac.update(signed.as_bytes());
    mac.verify_slice(&signature).map_err(|_| Bad::Signature)?;
    let payload = json(payload)?;
    let time = |name: &str| payload[name].as_f64().ok_or(Bad::Form);
    let claims = Claims {
        iss: payload["iss"].as_str().unwrap_or_default().to_owned(),
        aud: match &payload["aud"] {
            Value::String(one) => vec![one.clone()],
            Value::Array(all) => all.iter().filter_map(|one| one.as_str().map(str::to_owned)).collect(),
            _ => Vec::new(),
        },
        iat: time("iat")?,
        nbf: time("nbf")?,
        exp: time("exp")?,
    };
    if claims.iss != "gitlab-kas" {
        return Err(Bad::Issuer);
    }
    if audience.is_some_and(|wanted| !claims.aud.iter().any(|found| found == wanted)) {
        return Err(Bad::Audience);
    }
    if claims.exp <= now {
        return Err(Bad::Expired);
    }
    if claims.nbf > now {
        return Err(Bad::NotYet);
    }
    Ok(claims)
}

fn json(part: &str) -> Result<Value, Bad> {
    let bytes = BASE64URL.decode(part).map_err(|_| Bad::Form)?;
    serde_json::from_slice(&bytes).map_err(|_| Bad::Form)
}
