//! What can go wrong when GitLab is asked, and what that means: to the agent on whose behalf it was, and to a cache.
//! Before it: an HTTP answer or none. After it: one gRPC status per fault, chosen here and nowhere else.

use super::cache::{Lasting, Remember};
use http::StatusCode;
use std::{error::Error, fmt, sync::Arc, time::Duration};
use tonic::Status;

/// A call that did not succeed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("asking GitLab at {host} for {call} failed")]
pub struct RailsError {
    /// Which call, by the last part of its path.
    pub call: &'static str,
    /// `host:port` of GitLab.
    pub host: Arc<str>,
    /// What went wrong.
    #[source]
    pub fault: Fault,
}

/// What went wrong.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Fault {
    /// 401: the token is not good, or (the reason says so) GitLab does not believe our JWT.
    #[error("401 Unauthorized{reason}")]
    Unauthorized {
        /// GitLab's words.
        reason: Reason,
    },
    /// 403.
    #[error("403 Forbidden{reason}")]
    Forbidden {
        /// GitLab's words.
        reason: Reason,
    },
    /// 404: there is no such thing, or not for this asker.
    #[error("404 Not Found{reason}")]
    NotFound {
        /// GitLab's words.
        reason: Reason,
    },
    /// Any other status that is no success; redirects are among them and not followed.
    #[error("unexpected answer {status}{reason}")]
    Other {
        /// As answered.
        status: StatusCode,
        /// GitLab's words.
        reason: Reason,
    },
    /// No connection, or one that broke.
    #[error("{what}")]
    Transport {
        /// In one line, with advice where there is some.
        what: String,
        #[source]
        source: Option<Arc<dyn Error + Send + Sync>>,
    },
    /// The request was sent, and no answer began in time.
    #[error("no answer within {0:?}")]
    Silent(Duration),
    /// The caller's own time is up, in the queue or later.
    #[error("the caller's deadline passed")]
    Deadline,
    /// Too many wait for their turn to ask GitLab; see `gitlab.api_rate_limit`.
    #[error(
        "too many requests wait before this one: its turn would come in {0:?}, see gitlab.api_rate_limit"
    )]
    RateLimited(Duration),
    /// A success whose content makes no sense.
    #[error("the answer is not what it should be: {0}")]
    Malformed(String),
    /// More than is ever needed.
    #[error("the answer is larger than {0} bytes")]
    TooLarge(usize),
    /// The request itself cannot be sent.
    #[error("the request cannot be sent: {0}")]
    Illegal(&'static str),
}

/// GitLab's own words on a refusal: `message` of its JSON, shortened, on one line; often there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reason(pub Option<String>);

/// Characters of a reason that are kept.
const REASON: usize = 200;

impl Reason {
    /// Reads the beginning of a refusal's body.
    pub(super) fn read(body: &[u8]) -> Self {
        let document: Option<serde_json::Value> = serde_json::from_slice(body).ok();
        let message = document.as_ref().and_then(|document| document["message"].as_str());
        Self(message.map(|text| {
            text.chars().take(REASON).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
        }))
    }

    fn is_about_our_jwt(&self) -> bool {
        self.0.as_ref().is_some_and(|text| text.contains("JWT"))
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            None => Ok(()),
            Some(text) => {
                write!(f, ": {text}")?;
                if self.is_about_our_jwt() {
                    f.write_str(
                        " (is gitlab.authentication_secret_file GitLab's own, and are both clocks right?)",
                    )?;
                }
                Ok(())
            }
        }
    }
}

impl Fault {
    /// The fault that a status which is no success stands for.
    pub(super) fn of(status: StatusCode, reason: Reason) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthorized { reason },
            StatusCode::FORBIDDEN => Self::Forbidden { reason },
            StatusCode::NOT_FOUND => Self::NotFound { reason },
            _ => Self::Other { status, reason },
        }
    }

    pub(super) fn is_about_our_jwt(&self) -> bool {
        matches!(self, Self::Unauthorized { reason } if reason.is_about_our_jwt())
    }
}

impl RailsError {
    /// The status that GitLab answered, if it answered one that is no success.
    pub fn status(&self) -> Option<StatusCode> {
        match &self.fault {
            Fault::Unauthorized { .. } => Some(StatusCode::UNAUTHORIZED),
            Fault::Forbidden { .. } => Some(StatusCode::FORBIDDEN),
            Fault::NotFound { .. } => Some(StatusCode::NOT_FOUND),
            Fault::Other { status, .. } => Some(*status),
            _ => None,
        }
    }

    /// Whether it says nothing of whoever was asked about: GitLab may know better in a moment.
    pub fn is_trouble(&self) -> bool {
        match &self.fault {
            Fault::Unauthorized { reason } => reason.is_about_our_jwt(),
            Fault::Forbidden { .. } | Fault::NotFound { .. } | Fault::Illegal(_) => false,
            Fault::Other { status, .. } => {
                let later = [StatusCode::REQUEST_TIMEOUT, StatusCode::TOO_MANY_REQUESTS];
                !status.is_client_error() || later.contains(status)
            }
            Fault::Transport { .. }
            | Fault::Silent(_)
            | Fault::Deadline
            | Fault::RateLimited(_)
            | Fault::Malformed(_)
            | Fault::TooLarge(_) => true,
        }
    }

    /// What an agent is told when its own identity could not be had. The words are a kas': agents and people know them.
    pub fn for_agent(&self) -> Status {
        match &self.fault {
            // The agent's own token may be good; it is ours that is not.
            Fault::Unauthorized { reason } if reason.is_about_our_jwt() => Status::unavailable("unavailable"),
            Fault::Unauthorized { .. } => Status::unauthenticated("unauthenticated"),
            Fault::Forbidden { .. } => Status::permission_denied("forbidden"),
            Fault::NotFound { .. } => Status::not_found("agent not found"),
            Fault::Deadline => Status::deadline_exceeded("unavailable"),
            Fault::Other { .. }
            | Fault::Transport { .. }
            | Fault::Silent(_)
            | Fault::RateLimited(_)
            | Fault::Malformed(_)
            | Fault::TooLarge(_)
            | Fault::Illegal(_) => Status::unavailable("unavailable"),
        }
    }
}

impl Remember for RailsError {
    fn lasting(&self) -> Lasting {
        match &self.fault {
            // Our own credential: right again as soon as the secret or the clock is.
            Fault::Unauthorized { reason } if reason.is_about_our_jwt() => Lasting::Transient,
            // These calls name nothing that could be missing: all of GitLab's side is switched off, or not GitLab's.
            Fault::NotFound { .. } if matches!(self.call, "agent_info" | "allowed_agents") => {
                Lasting::Transient
            }
            Fault::Unauthorized { .. } | Fault::Forbidden { .. } | Fault::NotFound { .. } => {
                Lasting::Definitive
            }
            // How GitLab refuses a cookie that is not one of its own, or a user that is no more.
            Fault::Other { status: StatusCode::BAD_REQUEST, .. } if self.call == "authorize_proxy_user" => {
                Lasting::Definitive
            }
            Fault::Deadline | Fault::RateLimited(_) | Fault::Illegal(_) => Lasting::Never,
            Fault::Other { .. }
            | Fault::Transport { .. }
            | Fault::Silent(_)
            | Fault::Malformed(_)
            | Fault::TooLarge(_) => Lasting::Transient,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tonic::Code;

    fn of(status: u16) -> Fault {
        Fault::of(StatusCode::from_u16(status).unwrap(), Reason::default())
    }

    #[test]
    fn each_fault_has_one_status_and_one_time_to_be_remembered() {
        let jwt =
            Fault::of(StatusCode::UNAUTHORIZED, Reason(Some("KAS JWT authentication invalid".to_owned())));
        let transport = Fault::Transport { what: "refused".to_owned(), source: None };
        let table = [
            (of(401), Code::Unauthenticated, "unauthenticated", Lasting::Definitive),
            (jwt, Code::Unavailable, "unavailable", Lasting::Transient),
            (of(403), Code::PermissionDenied, "forbidden", Lasting::Definitive),
            (of(404), Code::NotFound, "agent not found", Lasting::Transient),
            (of(302), Code::Unavailable, "unavailable", Lasting::Transient),
            (of(429), Code::Unavailable, "unavailable", Lasting::Transient),
            (of(500), Code::Unavailable, "unavailable", Lasting::Transient),
            (transport, Code::Unavailable, "unavailable", Lasting::Transient),
            (Fault::Silent(Duration::ZERO), Code::Unavailable, "unavailable", Lasting::Transient),
            (Fault::Deadline, Code::DeadlineExceeded, "unavailable", Lasting::Never),
            (Fault::RateLimited(Duration::ZERO), Code::Unavailable, "unavailable", Lasting::Never),
            (Fault::Malformed(String::new()), Code::Unavailable, "unavailable", Lasting::Transient),
            (Fault::TooLarge(1), Code::Unavailable, "unavailable", Lasting::Transient),
            (Fault::Illegal("x"), Code::Unavailable, "unavailable", Lasting::Never),
        ];
        for (fault, code, message, lasting) in table {
            let error = RailsError { call: "agent_info", host: "h:1".into(), fault };
            let status = error.for_agent();
            assert_eq!((status.code(), status.message()), (code, message), "{error:?}");
            assert_eq!(error.lasting(), lasting, "{error:?}");
        }
        let missing = RailsError { call: "project_info", host: "h:1".into(), fault: of(404) };
        assert_eq!(missing.lasting(), Lasting::Definitive, "a project may be missing");
    }

    #[test]
    fn a_reason_is_short_and_on_one_line() {
        let of = |body: &str| Reason::read(body.as_bytes()).0;
        assert_eq!(of(r#"{"message":"401\nUnauthorized"}"#), Some("401 Unauthorized".to_owned()));
        assert_eq!(of(r#"{"message":{"base":["no"]}}"#), None);
        assert_eq!(of("<html>"), None);
        assert_eq!(of(&format!(r#"{{"message":"{}"}}"#, "x".repeat(999))).unwrap().len(), REASON);
        let error = RailsError {
            call: "agent_info",
            host: "gitlab.example.com:443".into(),
            fault: Fault::of(StatusCode::BAD_GATEWAY, Reason(Some("down".to_owned()))),
        };
        assert_eq!(
            crate::error::chain(&error),
            "asking GitLab at gitlab.example.com:443 for agent_info failed: unexpected answer 502 Bad Gateway: down"
        );
    }
}
