//! Why another broker could not help, in words for whoever runs them. The router decides what becomes of the request.

use crate::fleet::PeerUrl;
use std::{io, sync::Arc, time::Duration};
use tonic::{Code, Status};

impl PeerError {
    /// It has the agent, and too many requests for it.
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if status.code() == Code::ResourceExhausted)
    }
}

/// Why a call to a broker failed. Those before the call was opened are shared by all who waited for the same dial.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PeerError {
    /// Nobody answers there.
    #[error("the broker {broker} cannot be reached")]
    Unreachable {
        /// Which one.
        broker: PeerUrl,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Somebody may be there.
    #[error("the broker {broker} cannot be reached: no answer within {limit:?}")]
    Slow {
        /// Which one.
        broker: PeerUrl,
        /// How long was waited.
        limit: Duration,
    },
    /// Its certificate is not good, or there is none.
    #[error("TLS to the broker {broker} failed: {advice}")]
    Tls {
        /// Which one.
        broker: PeerUrl,
        /// What to do.
        advice: String,
    },
    /// Nobody is dialled.
    #[error("the broker {broker} says that its private API has no TLS, and this one's has: refused")]
    Clear {
        /// Which one.
        broker: PeerUrl,
    },
    /// Something else listens there.
    #[error(
        "{broker} does not speak HTTP/2; is it the address of a broker's private API, and does that have TLS?"
    )]
    NotHttp2 {
        /// Which one.
        broker: PeerUrl,
    },
    /// The connection broke.
    #[error("the connection to the broker {broker} was lost")]
    Lost {
        /// Which one.
        broker: PeerUrl,
        /// What the transport says.
        #[source]
        source: Arc<h2::Error>,
    },
    /// It said no.
    #[error("the broker {broker} refused: {} ({:?}){}", .status.message(), .status.code(), advice(.status))]
    Refused {
        /// Which one.
        broker: PeerUrl,
        /// Its words.
        status: Status,
    },
    /// It ended the call before it had a tunnel; others may have one.
    #[error("the broker {broker} no longer looks for a tunnel")]
    Ended {
        /// Which one.
        broker: PeerUrl,
    },
    /// It is no broker, or one of a kind that nobody knows yet.
    #[error("the broker {broker} broke the rules of the private API: {what}")]
    Rules {
        /// Which one.
        broker: PeerUrl,
        /// In which way.
        what: String,
    },
    /// More brokers than there can be.
    #[error("no connection to the broker {broker}: those to {limit} others are in use")]
    TooManyPeers {
        /// Which one.
        broker: PeerUrl,
        /// How many at the most.
        limit: usize,
    },
    /// More calls to one broker than there can be.
    #[error("no connection to the broker {broker}: {limit} to it are full of calls")]
    Full {
        /// Which one.
        broker: PeerUrl,
        /// How many at the most.
        limit: usize,
    },
}

fn advice(status: &Status) -> &'static str {
    match status.code() {
        Code::Unauthenticated => {
            "; do both have the same private_api.listen.authentication_secret_file, and do their clocks agree?"
        }
        Code::Unimplemented => "; is that the private API of a kas?",
        _ => "",
    }
}
