//! From an error to what its receiver sees: gRPC statuses for agents, Kubernetes `Status` documents for callers.
//! The one place where the broker chooses codes and words.

mod form;

pub use form::Form;
pub use postern_redis::chain;

use crate::{fleet::router::RouteError, tunnel::stream::TunnelError};
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use std::error::Error;

/// Says with a 401 that the broker does not know the credential; a cluster's own 401 must not have it.
pub const UNAUTHORIZED: HeaderName = HeaderName::from_static("gitlab-unauthorized");

/// What is wrong with a YAML file and where: the parser itself leaves out the position at the very beginning.
pub fn yaml(error: &serde_yaml::Error) -> String {
    let text = error.to_string();
    match error.location() {
        Some(at) if !text.contains(" at line ") => {
            format!("{text} at line {} column {}", at.line(), at.column())
        }
        _ => text,
    }
}

/// A refusal or failure for a caller of the Kubernetes API, before any byte of an answer was sent.
#[derive(Debug, PartialEq, Eq)]
pub struct ApiFailure {
    /// The HTTP status.
    pub code: StatusCode,
    /// What happened, where, and what to do.
    pub message: String,
    /// What is behind it, for the log only.
    pub cause: Option<String>,
}

impl ApiFailure {
    /// A failure with this status and message.
    pub fn new(code: StatusCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }

    /// With its cause, which the caller is not shown.
    pub fn because(self, cause: &(dyn Error + 'static)) -> Self {
        Self { cause: Some(chain(cause)), ..self }
    }

    /// As a Kubernetes `Status` document, which kubectl and client libraries show to their users.
    pub fn document(&self, trace_id: &str) -> serde_json::Value {
        let reason = match self.code {
            StatusCode::BAD_REQUEST => "BadRequest",
            StatusCode::UNAUTHORIZED => "Unauthorized",
            StatusCode::FORBIDDEN => "Forbidden",
            StatusCode::NOT_FOUND => "NotFound",
            StatusCode::TOO_MANY_REQUESTS => "TooManyRequests",
            StatusCode::SERVICE_UNAVAILABLE => "ServiceUnavailable",
            StatusCode::GATEWAY_TIMEOUT => "Timeout",
            // Kubernetes has no words for these two; kubectl prints whatever stands here.
            StatusCode::NOT_IMPLEMENTED => "NotImplemented",
            StatusCode::BAD_GATEWAY => "BadGateway",
            _ => "InternalError",
        };
        let message = format!("GitLab Agent Server: {}. Trace ID: {trace_id}", self.message);
        serde_json::json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": self.code.as_u16(),
        })
    }

    /// The document as an answer.
    pub fn into_response(self, trace_id: &str, form: Form) -> Response<Full<Bytes>> {
        let document = self.document(trace_id);
        let mut response = Response::new(Full::new(form.write(&document)));
        *response.status_mut() = self.code;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, form.media_type());
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.code == StatusCode::UNAUTHORIZED {
            headers.insert(UNAUTHORIZED, HeaderValue::from_static("true"));
        }
        response
    }
}

impl From<RouteError> for ApiFailure {
    fn from(error: RouteError) -> Self {
        let failure = Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string());
        Self { cause: error.brokers(), ..failure }
    }
}

impl From<TunnelError> for ApiFailure {
    fn from(error: TunnelError) -> Self {
        let code = match &error {
            TunnelError::Status(status) if status.code() == tonic::Code::DeadlineExceeded => {
                StatusCode::GATEWAY_TIMEOUT
            }
            _ => StatusCode::BAD_GATEWAY,
        };
        match error.broker() {
            // Where brokers are is not for callers.
            Some(broker) => Self {
                cause: Some(format!("{broker}: {}", chain(&error))),
                ..Self::new(code, error.to_string())
            },
            None => Self::new(code, chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;

    #[tokio::test]
    async fn a_failure_is_a_kubernetes_status() {
        let table =
            [(401, "Unauthorized"), (403, "Forbidden"), (503, "ServiceUnavailable"), (502, "BadGateway")];
        for (code, reason) in table {
            let failure = ApiFailure::new(StatusCode::from_u16(code).unwrap(), "no");
            let body =
                failure.into_response("t1", Form::Json).into_body().collect().await.unwrap().to_bytes();
            let document: serde_json::Value = serde_json::from_slice(&body).unwrap();
            assert_eq!(document["kind"], "Status");
            assert_eq!(document["code"], code);
            assert_eq!(document["reason"], reason);
            assert_eq!(document["message"], "GitLab Agent Server: no. Trace ID: t1");
        }
    }

    #[test]
    fn a_chain_names_each_cause_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] std::io::Error);
        assert_eq!(chain(&Outer(std::io::Error::other("inner"))), "outer: inner");
    }
}
