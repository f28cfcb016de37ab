//! GitLab Rails, asked over its internal REST API as a kas asks it. Before it: whoever must know who an agent, a job or a
//! user is, mostly [`crate::auth`]. After it: GitLab. It never shows a token, follows no redirect and tries nothing twice
//! but what GitLab turned away for a JWT that had grown old on its way: those who call know whether it is worth it.

mod answers;
pub mod cache;
mod calls;
mod error;
mod module_request;
mod proxy;
mod remembered;
mod secret;
pub mod standing;
#[cfg(test)]
mod tests;
mod transport;
mod usage;

pub use answers::*;
pub use calls::ProxyAccess;
pub use error::{Fault, RailsError, Reason};
pub use module_request::{AnswerBody, ModuleAnswer, ModuleRequest, no_body, streamed};
pub use remembered::{Periods, Remembered};
pub use secret::{JobToken, Length as SecretLength, SecretError, ServiceSecret, Words};
pub use transport::{BoxError, Limits, RequestBody};
pub use usage::{AgentEvents, RegisteredEvent, Usage, UsageForm, UserEvent};

use crate::rate::{Bucket, Lane, Rate};
use answers::Check;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Body, Incoming};
use postern_certs::client::ClientTrust;
use postern_wire::{metadata::Program, token::AgentToken};
use rustls::pki_types::ServerName;
use serde::de::DeserializeOwned;
use serde_json::Value;
use standing::Occasion;
use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use transport::{Server, Transport};
use url::{Host, Url};

const KAS_JWT: HeaderName = HeaderName::from_static("gitlab-kas-api-request");
const AGENT_TOKEN: HeaderName = HeaderName::from_static("gitlab-agent-api-request");
const JOB_TOKEN: HeaderName = HeaderName::from_static("job-token");
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const CLIENT_NAME: HeaderName = HeaderName::from_static("x-gitlab-client-name");
const JSON: HeaderValue = HeaderValue::from_static("application/json");
const KAS: HeaderValue = HeaderValue::from_static("gitlab-kas");
/// Less than a JWT's 5 s, for clocks differ.
const JWT_DATED: Duration = Duration::from_secs(3);
/// Bytes that are read of a refusal, for its reason.
const REFUSAL: usize = 8 << 10;

/// Where GitLab is and how to ask it.
pub struct Config {
    /// `gitlab.address`: `http` or `https`; a path stays in front of the API's own, a query is kept.
    pub address: Url,
    /// `gitlab.authentication_secret_file`.
    pub authentication_secret_file: PathBuf,
    /// System roots and `gitlab.ca_certificate_file`.
    pub trust: Arc<ClientTrust>,
    /// What `User-Agent` says.
    pub program: Program,
    /// `gitlab.api_rate_limit`.
    pub rate: Rate,
    /// Times and sizes.
    pub limits: Limits,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The address is a URL, but not one of a GitLab.
    #[error("gitlab.address: {0}")]
    Address(&'static str),
    /// The environment names a proxy that cannot be used.
    #[error("the way to gitlab.address: {0}; unset it or list GitLab in NO_PROXY")]
    Proxy(&'static str),
    /// There is no usable secret.
    #[error("gitlab.authentication_secret_file")]
    Secret(#[source] SecretError),
}

/// What surrounds one call.
#[derive(Clone, Debug, Default)]
pub struct Call {
    /// Until when the caller waits; `None`: [`Limits::call`].
    pub deadline: Option<Instant>,
    /// Goes into GitLab's logs.
    pub correlation_id: Option<String>,
    /// What is asked was known a while ago: where others wait, this is refused at once, to be asked again later.
    pub renewal: bool,
}

impl Call {
    /// The same for a question whose answer several wait for.
    fn for_all(&self) -> Self {
        Self { deadline: None, correlation_id: self.correlation_id.clone(), renewal: false }
    }

    /// The same for a question that is asked for this occasion.
    fn on(&self, occasion: Occasion) -> Self {
        Self { renewal: occasion == Occasion::Again, ..self.clone() }
    }
}

/// The client of one GitLab.
pub struct Rails {
    /// Scheme, host, port and relative path, ending with a slash.
    base: String,
    /// Of the address; goes before each call's own.
    query: Option<String>,
    host: Arc<str>,
    secret: Arc<ServiceSecret>,
    user_agent: HeaderValue,
    rate: Bucket,
    limits: Limits,
    transport: Transport,
    /// A JWT that was signed so long ago may have been over when GitLab saw it.
    jwt_dated: Duration,
    /// An answer was one that only newer Rails give.
    newer: AtomicBool,
}

impl fmt::Debug for Rails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rails").field("base", &self.base).finish_non_exhaustive()
    }
}

impl Rails {
    /// Reads the secret; connects to nothing yet.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let Config { address, authentication_secret_file, trust, program, rate, limits } = config;
        let tls = match address.scheme() {
            "http" => false,
            "https" => true,
            _ => return Err(ConfigError::Address("the scheme must be http or https")),
        };
        if !address.username().is_empty() || address.password().is_some() {
            return Err(ConfigError::Address("a user name or password has no place in it"));
        }
        let host = match address.host() {
            None => return Err(ConfigError::Address("there is no host in it")),
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(ip)) => ip.to_string(),
            Some(Host::Ipv6(ip)) => ip.to_string(),
        };
        let port = address.port_or_known_default().expect("http and https have default ports");
        let name = ServerName::try_from(host.clone())
            .map_err(|_| ConfigError::Address("the host cannot be the name in a certificate"))?;
        let secret = ServiceSecret::load(authentication_secret_file).map_err(ConfigError::Secret)?;
        let shown = format!("{}:{port}", address.host_str().unwrap_or(&host));
        let path = address.path().trim_end_matches('/');
        let authority = &address[url::Position::BeforeHost..url::Position::AfterPort];
        let base = format!("{}://{authority}{path}/", address.scheme());
        let uri: Uri =
            base.parse().map_err(|_| ConfigError::Address("it cannot be used as an HTTP address"))?;
        let proxy = proxy::Proxy::of_environment(&uri).map_err(ConfigError::Proxy)?;
        let server = Server { host, port, tls: tls.then_some((name, trust)), limits, proxy };
        Ok(Self {
            base,
            query: address.query().filter(|query| !query.is_empty()).map(str::to_owned),
            host: shown.into(),
            secret: Arc::new(secret),
            user_agent: HeaderValue::try_from(program.to_string()).expect("a program's name is ASCII"),
            rate: Bucket::new(rate, limits.call),
            limits,
            transport: Transport::new(server),
            jwt_dated: JWT_DATED,
            newer: AtomicBool::new(false),
        })
    }

    /// In which form this GitLab reads usage counters, by the answers that it gave so far.
    pub fn usage_form(&self) -> UsageForm {
        if self.newer.load(Ordering::Relaxed) { UsageForm::Structured } else { UsageForm::Flat }
    }

    /// An answer came that only newer Rails give. Once newer, it stays so.
    pub(crate) fn saw_newer(&self) {
        self.newer.store(true, Ordering::Relaxed);
    }

    /// Calls are made so often from now on; who waits for its turn is judged anew.
    pub fn set_rate(&self, rate: Rate) {
        self.rate.set(rate);
    }

    /// Keeps the secret as its file has it, until `stop`. Spawn it once.
    pub fn keep_fresh(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        Arc::clone(&self.secret).keep_fresh(stop)
    }

    fn error(&self, call: &'static str, fault: Fault) -> RailsError {
        RailsError { call, host: Arc::clone(&self.host), fault }
    }

    /// A path below GitLab's address, with both queries.
    fn uri(&self, target: &str) -> Result<Uri, Fault> {
        let mut uri = format!("{}{target}", self.base);
        if let Some(query) = &self.query {
            uri.push(if target.contains('?') { '&' } else { '?' });
            uri.push_str(query);
        }
        uri.parse().map_err(|_| Fault::Illegal("its path or query is not one of a URL"))
    }

    /// Waits until GitLab may be asked again.
    async fn turn(&self, lane: Lane, call: &Call) -> Result<(), Fault> {
        let lane = if call.renewal { Lane::Renewals } else { lane };
        self.rate.wait_in(lane, call.deadline).await.map_err(|late| Fault::RateLimited(late.wait))
    }

    /// Both generations of headers: Rails of either reads its own.
    fn as_agent(&self, headers: &mut HeaderMap, token: &AgentToken) {
        headers.insert(header::AUTHORIZATION, token.bearer());
        headers.insert(AGENT_TOKEN, secret::raw(token));
    }

    /// Who we are. Called just before a request is sent, since the JWT lives for seconds.
    fn as_kas(&self, headers: &mut HeaderMap, call: &Call) {
        headers.insert(KAS_JWT, self.secret.jwt(SystemTime::now()));
        self.common(headers, call);
    }

    fn common(&self, headers: &mut HeaderMap, call: &Call) {
        headers.insert(header::USER_AGENT, self.user_agent.clone());
        headers.insert(CLIENT_NAME, KAS);
        let id = call.correlation_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok());
        if let Some(id) = id {
            headers.insert(REQUEST_ID, id);
        }
    }

    /// An answer that is JSON, with its headers.
    async fn json<T: DeserializeOwned + Check>(
        &self,
        question: Question<'_>,
        call: &Call,
    ) -> Result<(HeaderMap, T), RailsError> {
        let name = question.name;
        self.within(call, self.read_json(question, call)).await.map_err(|fault| self.error(name, fault))
    }

    /// An answer that says only that it was heard.
    async fn done(&self, question: Question<'_>, call: &Call) -> Result<(), RailsError> {
        let name = question.name;
        let done = async {
            let answer = self.ask(question, Accept::Nothing, call).await?;
            // So that the connection can be used again; an answer that is no JSON is fine.
            let _ = Limited::new(answer.into_body(), REFUSAL).collect().await;
            Ok(())
        };
        self.within(call, done).await.map_err(|fault| self.error(name, fault))
    }

    async fn within<T>(&self, call: &Call, what: impl Future<Output = Result<T, Fault>>) -> Result<T, Fault> {
        match call.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline, what).await.unwrap_or(Err(Fault::Deadline)),
            None => {
                let limit = self.limits.call;
                tokio::time::timeout(limit, what).await.unwrap_or(Err(Fault::Silent(limit)))
            }
        }
    }

    async fn read_json<T: DeserializeOwned + Check>(
        &self,
        question: Question<'_>,
        call: &Call,
    ) -> Result<(HeaderMap, T), Fault> {
        let answer = self.ask(question, Accept::Json, call).await?;
        let (head, body) = answer.into_parts();
        if head.status == StatusCode::NO_CONTENT {
            return Err(Fault::Malformed("it is empty".to_owned()));
        }
        let content_type = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type = content_type.unwrap_or_default().split(';').next().unwrap_or_default().trim();
        if !media_type.eq_ignore_ascii_case("application/json") {
            let what = "it is not application/json; does gitlab.address lead to GitLab itself?";
            return Err(Fault::Malformed(what.to_owned()));
        }
        let body = self.read(body).await?;
        // serde's own words quote what they found, and that may be a secret.
        let document: T = serde_json::from_slice(&body).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let what = match error.classify() {
                serde_json::error::Category::Data => "a value of another type than expected",
                _ => "no JSON",
            };
            Fault::Malformed(format!("{what} at line {line} column {column}"))
        })?;
        document.check().map_err(|what| Fault::Malformed(what.to_owned()))?;
        Ok((head.headers, document))
    }

    async fn read(&self, body: Incoming) -> Result<Bytes, Fault> {
        let limit = self.limits.answer;
        if body.size_hint().lower() > limit as u64 {
            return Err(Fault::TooLarge(limit));
        }
        match Limited::new(body, limit).collect().await {
            Ok(whole) => Ok(whole.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Fault::TooLarge(limit)),
            Err(error) => Err(Fault::Transport {
                what: "the answer broke off".to_owned(),
                source: Some(Arc::from(error)),
            }),
        }
    }

    /// Sends a question. Whatever is no success becomes a fault.
    async fn ask(
        &self,
        question: Question<'_>,
        accept: Accept,
        call: &Call,
    ) -> Result<Response<Incoming>, Fault> {
        let signed = Instant::now();
        match self.ask_once(&question, accept, call).await {
            // Where the connection took so long that the JWT was over when it arrived; now there is one.
            Err(fault) if fault.is_about_our_jwt() && signed.elapsed() >= self.jwt_dated => {
                tracing::debug!(call = question.name, "asked again with a new JWT");
                self.ask_once(&question, accept, call).await
            }
            answer => answer,
        }
    }

    async fn ask_once(
        &self,
        question: &Question<'_>,
        accept: Accept,
        call: &Call,
    ) -> Result<Response<Incoming>, Fault> {
        let body = question.document.as_ref().map(|document| Bytes::from(document.to_string()));
        let mut headers = HeaderMap::new();
        if accept == Accept::Json {
            headers.insert(header::ACCEPT, JSON);
        }
        if body.is_some() {
            headers.insert(header::CONTENT_TYPE, JSON);
        }
        let uri = self.uri(&question.target)?;
        self.turn(question.lane, call).await?;
        match &question.asker {
            Asker::Kas => self.as_kas(&mut headers, call),
            Asker::Agent(token) => {
                self.as_agent(&mut headers, token);
                self.as_kas(&mut headers, call);
            }
            // The job speaks for itself: GitLab refuses a kas' JWT here.
            Asker::Job(token) => {
                headers.insert(JOB_TOKEN, token.header());
                self.common(&mut headers, call);
            }
        }
        let body = Full::new(body.unwrap_or_default()).map_err(|never| match never {}).boxed_unsync();
        let mut request = Request::new(body);
        *request.method_mut() = question.method.clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        let answer = self.transport.send(request).await?;
        let status = answer.status();
        tracing::debug!(call = question.name, status = status.as_u16(), "answered by GitLab");
        if matches!(status, StatusCode::OK | StatusCode::CREATED | StatusCode::NO_CONTENT) {
            return Ok(answer);
        }
        let refusal = Limited::new(answer.into_body(), REFUSAL).collect().await;
        let reason = refusal.map(|whole| Reason::read(&whole.to_bytes())).unwrap_or_default();
        Err(Fault::of(status, reason))
    }
}

/// What is asked, and as whom.
struct Question<'a> {
    /// For logs and errors.
    name: &'static str,
    method: Method,
    /// Path and query below GitLab's address.
    target: String,
    asker: Asker<'a>,
    /// With whom it waits for its turn.
    lane: Lane,
    document: Option<Value>,
}

/// Whose credentials go with a question.
enum Asker<'a> {
    Kas,
    Agent(&'a AgentToken),
    Job(&'a JobToken),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Accept {
    Json,
    Nothing,
}
