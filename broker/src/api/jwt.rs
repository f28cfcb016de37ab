//! Did GitLab Rails send this, or another broker? The check that stands before everything on the API listener and on the
//! private API: a bearer JWT, signed with the secret that both ends share, for `gitlab-kas`, not over and begun, and
//! from whom it has to be. Its signature is looked at before anything in it is believed. What is wrong with one goes to
//! the debug log, never to the caller.

use crate::{gitlab::ServiceSecret, listeners::agents::PeerInfo};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use futures::future::BoxFuture;
use hmac::Hmac;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use postern_wire::token::bearer;
use serde::Deserialize;
use sha2::{Sha256, Sha384, Sha512};
use std::{
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tonic::{Status, body::Body};

/// Whom a JWT for us is for.
const AUDIENCE: &str = "gitlab-kas";
/// Rails' have about 300 bytes.
const LENGTH_MAX: usize = 8 * 1024;

/// Which JWTs are good, beside their signature.
#[derive(Clone, Copy, Debug)]
pub struct Expected {
    /// Who has to have made it; absent: anybody who has the secret.
    pub issuer: Option<&'static str>,
    /// How far the other's clock may be off.
    pub leeway: Duration,
    /// What to look at where the signature is wrong.
    pub advice: &'static str,
}

/// Rails says `gitlab` or nothing at all, and a kas bears no difference between its clock and theirs.
pub const RAILS: Expected = Expected {
    issuer: None,
    leeway: Duration::ZERO,
    advice: "does api.listen.authentication_secret_file hold what GitLab has in .gitlab_kas_secret?",
};

/// What is wrong with a JWT; for our log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JwtError {
    /// Nobody means to send this.
    #[error("it has more than {LENGTH_MAX} bytes")]
    TooLong,
    /// Not three pieces of base64url with JSON in them.
    #[error("it is not a JWT: {0}")]
    Malformed(&'static str),
    /// Not HMAC, `none` included, or an extension that is not known here.
    #[error("its algorithm is not HS256, HS384 or HS512, or it has critical extensions")]
    Algorithm,
    /// Made with another secret, or altered.
    #[error("its signature is not that of our secret")]
    Signature,
    /// From somebody else who has the secret.
    #[error("its issuer is not {0}")]
    Issuer(&'static str),
    /// For somebody else, or for nobody in particular.
    #[error("its audience is not {AUDIENCE}")]
    Audience,
    /// It was good once.
    #[error("it has expired; do the clocks agree?")]
    Expired,
    /// It will be good.
    #[error("it is not valid yet; do the clocks agree?")]
    TooEarly,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    crit: Option<serde::de::IgnoredAny>,
}

/// Times are seconds since 1970 with a fraction or without.
#[derive(Deserialize)]
struct Claims {
    aud: Option<Audience>,
    iss: Option<String>,
    exp: Option<f64>,
    nbf: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Audience {
    fn is_us(&self) -> bool {
        match self {
            Self::One(name) => name == AUDIENCE,
            Self::Several(names) => names.iter().any(|name| name == AUDIENCE),
        }
    }
}

/// Whether the JWT is good at this time.
///
/// # Errors
/// The first thing that is wrong with it.
pub fn verify(
    secret: &ServiceSecret,
    expected: &Expected,
    jwt: &str,
    now: SystemTime,
) -> Result<(), JwtError> {
    if jwt.len() > LENGTH_MAX {
        return Err(JwtError::TooLong);
    }
    let malformed = JwtError::Malformed;
    let (signed, signature) = jwt.rsplit_once('.').ok_or(malformed("no dot"))?;
    let (header, claims) = signed.split_once('.').ok_or(malformed("one dot only"))?;
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).map_err(|_| malformed("a piece is not base64url"));
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| malformed("its header"))?;
    if header.crit.is_some() {
        return Err(JwtError::Algorithm);
    }
    let signature = decode(signature)?;
    let genuine = match header.alg.as_str() {
        "HS256" => secret.authenticates::<Hmac<Sha256>>(signed.as_bytes(), &signature),
        "HS384" => secret.authenticates::<Hmac<Sha384>>(signed.as_bytes(), &signature),
        "HS512" => secret.authenticates::<Hmac<Sha512>>(signed.as_bytes(), &signature),
        _ => return Err(JwtError::Algorithm),
    };
    if !genuine {
        return Err(JwtError::Signature);
    }
    let claims: Claims = serde_json::from_slice(&decode(claims)?).map_err(|_| malformed("its claims"))?;
    if !claims.aud.is_some_and(|audience| audience.is_us()) {
        return Err(JwtError::Audience);
    }
    if let Some(issuer) = expected.issuer
        && claims.iss.as_deref() != Some(issuer)
    {
        return Err(JwtError::Issuer(issuer));
    }
    // A clock before 1970 cannot be right; at 0 everything of Rails' has yet to begin.
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let leeway = expected.leeway.as_secs_f64();
    if claims.exp.is_some_and(|end| now >= end + leeway) {
        return Err(JwtError::Expired);
    }
    if claims.nbf.is_some_and(|begin| now < begin - leeway) {
        return Err(JwtError::TooEarly);
    }
    Ok(())
}

/// A service that answers those only who have the secret.
#[derive(Clone, Debug)]
pub struct Checked<S> {
    inner: S,
    secret: Arc<ServiceSecret>,
    expected: Expected,
}

impl<S> Checked<S> {
    /// Puts the check before a service.
    pub fn new(inner: S, secret: Arc<ServiceSecret>, expected: Expected) -> Self {
        Self { inner, secret, expected }
    }
}

impl<S, B> tower_service::Service<http::Request<B>> for Checked<S>
where
    S: tower_service::Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<S::Response, S::Error>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        match check(&self.secret, &self.expected, request.headers()) {
            Ok(()) => {
                // Nobody behind this needs it.
                request.headers_mut().remove(header::AUTHORIZATION);
                Box::pin(self.inner.call(request))
            }
            Err(refusal) => {
                let peer = request.extensions().get::<PeerInfo>().map(|peer| peer.0);
                let peer = peer.map_or_else(|| "unknown".to_owned(), |peer| peer.to_string());
                let (path, reason) = (request.uri().path(), refusal.reason(&self.expected));
                tracing::debug!(peer, path, reason, "API call refused");
                let answer = refusal.answer(request.headers());
                Box::pin(async move { Ok(answer) })
            }
        }
    }
}

enum Refusal {
    NoBearer,
    Jwt(JwtError),
}

fn check(secret: &ServiceSecret, expected: &Expected, headers: &HeaderMap) -> Result<(), Refusal> {
    let mut values = headers.get_all(header::AUTHORIZATION).iter();
    let jwt = values.next().and_then(bearer).ok_or(Refusal::NoBearer)?;
    if values.next().is_some() {
        return Err(Refusal::Jwt(JwtError::Malformed("there are two")));
    }
    verify(secret, expected, jwt, SystemTime::now()).map_err(Refusal::Jwt)
}

impl Refusal {
    fn reason(&self, expected: &Expected) -> String {
        match self {
            Self::NoBearer => "no bearer token".to_owned(),
            Self::Jwt(JwtError::Signature) => format!("{}; {}", JwtError::Signature, expected.advice),
            Self::Jwt(error) => error.to_string(),
        }
    }

    /// As gRPC to those who speak it, with a status that others understand too.
    fn answer(&self, asked: &HeaderMap) -> http::Response<Body> {
        let words = match self {
            Self::NoBearer => "Request unauthenticated with bearer",
            Self::Jwt(_) => "JWT validation failed",
        };
        let kind = asked.get(header::CONTENT_TYPE);
        if kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc")) {
            return Status::unauthenticated(words).into_http();
        }
        let mut response = http::Response::new(Body::new(format!("{words}\n")));
        *response.status_mut() = StatusCode::UNAUTHORIZED;
        let headers = response.headers_mut();
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        response
    }
}

#[cfg(test)]
pub(super) mod tests;
