//! One request through a tunnel whose agent is a pair of channels.

use super::*;
use tokio_stream::wrappers::ReceiverStream;

/// A tunnel to nobody, for the registry's tests.
pub(crate) fn tunnel(agent: AgentId) -> Lease {
    let (tunnel, _) = Tunnel::new(agent, None, futures::stream::pending().boxed(), Default::default(), None);
    Lease::of(tunnel).0
}

/// The other end of a tunnel.
pub(crate) struct Agent {
    pub(crate) send: mpsc::Sender<Result<ConnectRequest, Status>>,
    pub(crate) receive: ToAgent,
}

pub(crate) fn pair() -> (Tunnel, Agent) {
    pair_of(Some((15, 1)))
}

/// An agent of this version.
pub(crate) fn pair_of(version: Option<(u32, u32)>) -> (Tunnel, Agent) {
    let (send, from_agent) = mpsc::channel(8);
    let mut order = ConnectRequestOrder::new();
    order.accept(&says(connect_request::Msg::Descriptor(Default::default())).unwrap()).unwrap();
    let (tunnel, receive) =
        Tunnel::new(AgentId(1), version, ReceiverStream::new(from_agent).boxed(), order, None);
    (tunnel, Agent { send, receive })
}

#[expect(clippy::unnecessary_wraps, reason = "the shape of a stream's item")]
pub(crate) fn says(msg: connect_request::Msg) -> Result<ConnectRequest, Status> {
    Ok(ConnectRequest { msg: Some(msg) })
}

fn data(text: &'static str) -> rpc::Message {
    rpc::Message { data: Bytes::from_static(text.as_bytes()) }
}

impl Agent {
    pub(crate) async fn hears(&mut self) -> connect_response::Msg {
        self.receive.next().await.expect("a message").expect("no status").msg.expect("set")
    }
}

#[tokio::test]
async fn a_request_and_its_answer_end_with_ok() {
    use connect_request::Msg::{Header, Message, Trailer};
    let (tunnel, mut agent) = pair();
    let (request, mut response) = tunnel.open("/s/m", HashMap::new()).await.unwrap();
    assert!(
        matches!(agent.hears().await, connect_response::Msg::RequestInfo(info) if info.method_name == "/s/m")
    );
    request.send(Bytes::from_static(b"q")).await.unwrap();
    assert_eq!(agent.hears().await, connect_response::Msg::Message(data("q")));
    request.close().await.unwrap();
    assert_eq!(agent.hears().await, connect_response::Msg::CloseSend(rpc::CloseSend {}));
    for msg in [Header(Default::default()), Message(data("a")), Trailer(Default::default())] {
        agent.send.send(says(msg)).await.unwrap();
    }
    assert_eq!(response.next().await.unwrap().unwrap(), "a");
    drop(agent.send);
    assert!(response.next().await.unwrap().is_none());
    assert!(agent.receive.next().await.is_none());
}

#[tokio::test]
async fn dropping_the_answer_cancels_the_request_at_the_agent() {
    let (tunnel, mut agent) = pair();
    let (_request, response) = tunnel.open("/s/m", HashMap::new()).await.unwrap();
    drop(response);
    let status = agent.receive.next().await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
    assert!(agent.receive.next().await.is_none());
}

#[tokio::test]
async fn an_agents_error_is_the_callers() {
    use connect_request::Msg::{Error, Header, Trailer};
    let (tunnel, agent) = pair();
    let (_request, mut response) = tunnel.open("/s/m", HashMap::new()).await.unwrap();
    let status =
        postern_wire::proto::google::rpc::Status { code: 14, message: "refused".into(), details: vec![] };
    for msg in
        [Header(Default::default()), Trailer(Default::default()), Error(rpc::Error { status: Some(status) })]
    {
        agent.send.send(says(msg)).await.unwrap();
    }
    let error = response.next().await.unwrap_err();
    assert_eq!(error.to_string(), "the agent could not serve the request: refused (Unavailable)");
}

#[tokio::test]
async fn a_lost_agent_and_a_rule_broken_are_told_apart() {
    let (tunnel, agent) = pair();
    let (_request, mut response) = tunnel.open("/s/m", HashMap::new()).await.unwrap();
    drop(agent.send);
    assert!(matches!(response.next().await, Err(TunnelError::Lost(None))));

    let (tunnel, agent) = pair();
    let (_request, mut response) = tunnel.open("/s/m", HashMap::new()).await.unwrap();
    agent.send.send(says(connect_request::Msg::Message(data("early")))).await.unwrap();
    assert!(matches!(response.next().await, Err(TunnelError::Order(_))));
}

#[tokio::test]
async fn a_sender_waits_for_a_slow_agent() {
    let (tunnel, mut agent) = pair();
    let (request, _response) = tunnel.open("/s/m", HashMap::new()).await.unwrap();
    let mut send = tokio_test_poll(request.send(Bytes::from_static(b"1")));
    assert!(send.as_mut().now_or_never_pending(), "RequestInfo still fills the queue");
    agent.hears().await;
    send.await.unwrap();
}

/// Boxes a future so that it can be polled by hand.
fn tokio_test_poll<F: Future>(future: F) -> Pin<Box<F>> {
    Box::pin(future)
}

trait Once {
    fn now_or_never_pending(self) -> bool;
}

impl<F: Future> Once for Pin<&mut F> {
    fn now_or_never_pending(self) -> bool {
        self.poll(&mut Context::from_waker(futures::task::noop_waker_ref())).is_pending()
    }
}
