//! Which message may follow which on a stream. Both ends of every stream hold one of these and feed it each
//! message before acting on it; what it refuses ends the stream. It looks at kinds only, never at contents.

use crate::proto::gitlab::agent::{
    gitops::rpc::{ObjectsToSynchronizeResponse, objects_to_synchronize_response},
    grpctool::{HttpRequest, HttpResponse, http_request, http_response},
    kas::{GatewayKasResponse, gateway_kas_response},
    reverse_tunnel::rpc::{ConnectRequest, ConnectResponse, connect_request, connect_response},
};
use std::marker::PhantomData;

/// A message whose kind is a number: its field number in the stream's oneof.
pub trait Kind {
    /// `transitions()[state]` lists the kinds that may follow; state 0 is the start. `EOF` allows the end.
    const TRANSITIONS: &'static [&'static [i8]];
    /// The field number of the oneof member that is set, or `None` for an empty or unknown one.
    fn kind(&self) -> Option<i8>;
}

/// Stands for the end of the stream in [`Kind::TRANSITIONS`].
pub const EOF: i8 = -1;
const START: i8 = -2;

/// A message, or the end of a stream, came when it may not.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfOrder {
    /// No oneof member is set, or one that this program does not know.
    #[error("a message without a known kind")]
    Unset,
    /// A known message at the wrong time. Numbers are field numbers; -2 is the start, -1 the end.
    #[error("transition from {from} to {to} is not allowed. Allowed: {allowed:?}")]
    Transition {
        /// The previous message.
        from: i8,
        /// The message that came, or -1 for the end.
        to: i8,
        /// What may have come instead.
        allowed: &'static [i8],
    },
}

/// Follows one direction of one stream.
#[derive(Debug)]
pub struct Order<M> {
    state: i8,
    message: PhantomData<fn(M)>,
}

impl<M> Default for Order<M> {
    fn default() -> Self {
        Self { state: 0, message: PhantomData }
    }
}

impl<M: Kind> Order<M> {
    /// Before the first message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Checks the next message. After an error the stream is to be ended.
    pub fn accept(&mut self, message: &M) -> Result<(), OutOfOrder> {
        let kind = message.kind().ok_or(OutOfOrder::Unset)?;
        self.step(kind)?;
        self.state = kind;
        Ok(())
    }

    /// Checks that the sender may end here.
    pub fn finish(&self) -> Result<(), OutOfOrder> {
        self.step(EOF)
    }

    fn step(&self, to: i8) -> Result<(), OutOfOrder> {
        let allowed = usize::try_from(self.state).ok().and_then(|state| M::TRANSITIONS.get(state).copied());
        let allowed = allowed.unwrap_or(&[]);
        if allowed.contains(&to) {
            return Ok(());
        }
        let from = if self.state == 0 { START } else { self.state };
        Err(OutOfOrder::Transition { from, to, allowed })
    }
}

/// Requests to a cluster: header, data, trailer, then data of an upgraded connection.
pub type RequestOrder = Order<HttpRequest>;
/// Answers of a cluster.
pub type ResponseOrder = Order<HttpResponse>;
/// Agent to broker on a tunnel.
pub type ConnectRequestOrder = Order<ConnectRequest>;
/// Broker to agent on a tunnel.
pub type ConnectResponseOrder = Order<ConnectResponse>;
/// Gateway broker to routing broker.
pub type GatewayOrder = Order<GatewayKasResponse>;
/// Broker to agent: the manifests of one commit, or none until the stream's time is up.
pub type ObjectsOrder = Order<ObjectsToSynchronizeResponse>;

const HTTP: &[&[i8]] = &[&[1], &[2, 3], &[2, 3], &[4, EOF], &[4, EOF]];

impl Kind for HttpRequest {
    const TRANSITIONS: &'static [&'static [i8]] = HTTP;
    fn kind(&self) -> Option<i8> {
        use http_request::Message::{Data, Header, Trailer, UpgradeData};
        Some(match self.message.as_ref()? {
            Header(_) => 1,
            Data(_) => 2,
            Trailer(_) => 3,
            UpgradeData(_) => 4,
        })
    }
}

impl Kind for HttpResponse {
    const TRANSITIONS: &'static [&'static [i8]] = HTTP;
    fn kind(&self) -> Option<i8> {
        use http_response::Message::{Data, Header, Trailer, UpgradeData};
        Some(match self.message.as_ref()? {
            Header(_) => 1,
            Data(_) => 2,
            Trailer(_) => 3,
            UpgradeData(_) => 4,
        })
    }
}

impl Kind for ConnectRequest {
    // An error comes after the descriptor or after the trailer, never straight after a header or a message.
    const TRANSITIONS: &'static [&'static [i8]] = &[&[1], &[2, 5], &[3, 4], &[3, 4], &[5, EOF], &[EOF]];
    fn kind(&self) -> Option<i8> {
        use connect_request::Msg::{Descriptor, Error, Header, Message, Trailer};
        Some(match self.msg.as_ref()? {
            Descriptor(_) => 1,
            Header(_) => 2,
            Message(_) => 3,
            Trailer(_) => 4,
            Error(_) => 5,
        })
    }
}

impl Kind for ConnectResponse {
    const TRANSITIONS: &'static [&'static [i8]] = &[&[1, EOF], &[2, 3, EOF], &[2, 3, EOF], &[EOF]];
    fn kind(&self) -> Option<i8> {
        use connect_response::Msg::{CloseSend, Message, RequestInfo};
        Some(match self.msg.as_ref()? {
            RequestInfo(_) => 1,
            Message(_) => 2,
            CloseSend(_) => 3,
        })
    }
}

impl Kind for GatewayKasResponse {
    // A kas of 14.1 passes an agent's error on as it comes: also straight after the tunnel.
    const TRANSITIONS: &'static [&'static [i8]] =
        &[&[1, 6, EOF], &[2, 5], &[3, 4], &[3, 4], &[5, EOF], &[EOF], &[1, EOF]];
    fn kind(&self) -> Option<i8> {
        use gateway_kas_response::Msg::{Error, Header, Message, NoTunnel, Trailer, TunnelReady};
        Some(match self.msg.as_ref()? {
            TunnelReady(_) => 1,
            Header(_) => 2,
            Message(_) => 3,
            Trailer(_) => 4,
            Error(_) => 5,
            NoTunnel(_) => 6,
        })
    }
}

impl Kind for ObjectsToSynchronizeResponse {
    // An end before the first message says that there is no news; 13.11 knew no such end.
    const TRANSITIONS: &'static [&'static [i8]] = &[&[1, EOF], &[2, 3], &[2, 3], &[EOF]];
    fn kind(&self) -> Option<i8> {
        use objects_to_synchronize_response::Message::{Header, Object, Trailer};
        Some(match self.message.as_ref()? {
            Header(_) => 1,
            Object(_) => 2,
            Trailer(_) => 3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::gitlab::agent::{grpctool, reverse_tunnel::rpc};

    fn request(message: http_request::Message) -> HttpRequest {
        HttpRequest { message: Some(message) }
    }

    #[test]
    fn a_request_is_header_data_trailer() {
        use http_request::Message::{Data, Header, Trailer, UpgradeData};
        let mut order = RequestOrder::new();
        assert!(order.finish().is_err());
        order.accept(&request(Header(Default::default()))).unwrap();
        order.accept(&request(Data(Default::default()))).unwrap();
        assert!(order.accept(&request(UpgradeData(Default::default()))).is_err());
        order.accept(&request(Trailer(Default::default()))).unwrap();
        order.finish().unwrap();
        order.accept(&request(UpgradeData(Default::default()))).unwrap();
        let refused = order.accept(&request(Data(Default::default()))).unwrap_err();
        assert_eq!(refused.to_string(), "transition from 4 to 2 is not allowed. Allowed: [4, -1]");
    }

    #[test]
    fn an_unset_message_is_refused() {
        assert_eq!(RequestOrder::new().accept(&grpctool::HttpRequest::default()), Err(OutOfOrder::Unset));
    }

    #[test]
    fn an_error_may_not_follow_a_header_on_a_tunnel() {
        use connect_request::Msg::{Descriptor, Error, Header, Trailer};
        let wrap = |msg| rpc::ConnectRequest { msg: Some(msg) };
        let mut order = ConnectRequestOrder::new();
        order.accept(&wrap(Descriptor(Default::default()))).unwrap();
        order.accept(&wrap(Header(Default::default()))).unwrap();
        assert!(order.accept(&wrap(Error(Default::default()))).is_err());
        order.accept(&wrap(Trailer(Default::default()))).unwrap();
        order.accept(&wrap(Error(Default::default()))).unwrap();
        order.finish().unwrap();
    }

    #[test]
    fn a_tunnel_may_end_before_any_request() {
        ConnectResponseOrder::new().finish().unwrap();
        GatewayOrder::new().finish().unwrap();
        assert!(ConnectRequestOrder::new().finish().is_err());
    }

    #[test]
    fn manifests_come_between_one_header_and_one_trailer_or_not_at_all() {
        use objects_to_synchronize_response::Message::{Header, Object, Trailer};
        let message = |kind| ObjectsToSynchronizeResponse {
            message: Some(match kind {
                1 => Header(Default::default()),
                2 => Object(Default::default()),
                _ => Trailer(Default::default()),
            }),
        };
        // What came so far, which kinds may follow, whether the end may.
        let table: &[(&[i8], &[i8], bool)] = &[
            (&[], &[1], true),
            (&[1], &[2, 3], false),
            (&[1, 2], &[2, 3], false),
            (&[1, 2, 2], &[2, 3], false),
            (&[1, 3], &[], true),
            (&[1, 2, 3], &[], true),
        ];
        for (before, allowed, end) in table {
            for next in 1..=3 {
                let mut order = ObjectsOrder::new();
                for kind in *before {
                    order.accept(&message(*kind)).unwrap();
                }
                assert_eq!(order.finish().is_ok(), *end, "the end after {before:?}");
                assert_eq!(
                    order.accept(&message(next)).is_ok(),
                    allowed.contains(&next),
                    "{next} after {before:?}"
                );
            }
        }
        assert_eq!(ObjectsOrder::new().accept(&Default::default()), Err(OutOfOrder::Unset));
    }
}
