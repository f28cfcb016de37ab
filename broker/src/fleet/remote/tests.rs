//! Requests through another broker: two brokers in one process with real sockets between them.

use super::*;
use crate::{
    fleet::stage::{AGENT, Broker, METHOD, Wire, peers, within},
    tunnel::stream::tests::Agent,
};
use futures::StreamExt;
use postern_wire::proto::gitlab::agent::{
    prototool::Values,
    reverse_tunnel::rpc::{self, connect_request, connect_response},
};
use std::{collections::HashMap, error::Error};

async fn knock(url: &PeerUrl) -> Knock {
    within(peers().knock(url, AGENT, METHOD, &HashMap::new())).await.unwrap()
}

async fn open(url: &PeerUrl) -> (RequestHalf, ResponseHalf) {
    let mut knock = knock(url).await;
    assert_eq!(within(knock.answer()).await.unwrap(), Answer::Ready);
    within(knock.accept().open()).await.unwrap()
}

async fn opened(url: &PeerUrl, agent: &mut Agent) -> (RequestHalf, ResponseHalf) {
    let halves = open(url).await;
    assert_eq!(agent.hears_info().await.method_name, METHOD);
    halves
}

#[tokio::test]
async fn a_request_reaches_an_agent_at_another_broker_and_is_answered() {
    let broker = Broker::start().await;
    let mut agent = broker.agent();
    let value = |text: &str| Values { value: vec![text.to_owned()] };
    let meta = HashMap::from([
        ("x-gitlab-correlation-id".to_owned(), value("c1")),
        ("trace-bin".to_owned(), value("\u{1}binary")),
        ("authorization".to_owned(), value("Bearer of-the-caller")),
        ("kas-hop-routing-agent-id".to_owned(), value("2")),
    ]);
    let mut knock = within(peers().knock(&broker.url, AGENT, METHOD, &meta)).await.unwrap();
    assert_eq!(within(knock.answer()).await.unwrap(), Answer::Ready);
    let tunnel = knock.accept();
    assert!(tunnel.carries_upgrades() && tunnel.carries_impersonation());
    let (request, mut response) = within(tunnel.open()).await.unwrap();
    let info = agent.hears_info().await;
    let mut keys: Vec<_> = info.meta.keys().map(String::as_str).collect();
    keys.sort_unstable();
    assert_eq!(keys, ["content-type", "trace-bin", "x-gitlab-correlation-id"]);
    assert_eq!(info.meta["trace-bin"].value, ["\u{1}binary"]);
    assert_eq!(broker.running.count(), 1);

    request.send(Bytes::from_static(b"question")).await.unwrap();
    assert_eq!(agent.hears_data().await, "question");
    request.close().await.unwrap();
    assert!(matches!(within(agent.hears()).await, connect_response::Msg::CloseSend(_)));
    agent.begins().await;
    agent.answers("answer").await;
    agent.answers("").await;
    agent.ends().await;
    drop(agent.send);
    assert_eq!(within(response.next()).await.unwrap().unwrap(), "answer");
    assert_eq!(within(response.next()).await.unwrap().unwrap(), "");
    assert!(within(response.next()).await.unwrap().is_none());
    assert!(within(agent.receive.next()).await.is_none(), "the tunnel ended well");
    within(broker.running.wait()).await;
}

#[tokio::test]
async fn both_directions_flow_at_once_and_each_ends_on_its_own() {
    let broker = Broker::start().await;
    let mut agent = broker.agent();
    let (request, mut response) = opened(&broker.url, &mut agent).await;
    agent.begins().await;
    for turn in 0..100_u32 {
        request.send(Bytes::from(format!("up {turn}"))).await.unwrap();
        agent.answers(format!("down {turn}")).await;
        assert_eq!(agent.hears_data().await, format!("up {turn}"));
        assert_eq!(within(response.next()).await.unwrap().unwrap(), format!("down {turn}"));
    }
    request.close().await.unwrap();
    assert!(matches!(within(agent.hears()).await, connect_response::Msg::CloseSend(_)));
    agent.answers("after the caller's end").await;
    assert_eq!(within(response.next()).await.unwrap().unwrap(), "after the caller's end");
    // And the other way round: the answer ends while the request could go on.
    let mut agent = broker.agent();
    let (request, mut response) = opened(&broker.url, &mut agent).await;
    agent.begins().await;
    agent.ends().await;
    drop(agent.send);
    assert!(within(response.next()).await.unwrap().is_none());
    drop(request);
}

#[tokio::test]
async fn a_large_message_comes_through_whole() {
    let broker = Broker::start().await;
    let mut agent = broker.agent();
    let (request, mut response) = opened(&broker.url, &mut agent).await;
    let large = Bytes::from(vec![7; 4 * 1024 * 1024]);
    let (_, there) = within(async { tokio::join!(request.send(large.clone()), agent.hears_data()) }).await;
    assert!(there == large);
    agent.begins().await;
    agent.answers(large.clone()).await;
    assert!(within(response.next()).await.unwrap().unwrap() == large);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_sender_and_nobody_else() {
    let broker = Broker::start().await;
    let peers = peers();
    let mut halves = Vec::new();
    let mut agents = Vec::new();
    for _ in 0..2 {
        let mut agent = broker.agent();
        let mut knock = within(peers.knock(&broker.url, AGENT, METHOD, &HashMap::new())).await.unwrap();
        assert_eq!(within(knock.answer()).await.unwrap(), Answer::Ready);
        halves.push(within(knock.accept().open()).await.unwrap());
        agent.hears_info().await;
        agent.begins().await;
        agents.push(agent);
    }
    let (_request, mut flowing) = halves.pop().unwrap();
    let stalled = halves.pop().unwrap();

    // The caller of the first one reads nothing: its agent is held up after a few windows' worth.
    let chunk = Bytes::from(vec![0; 16 * 1024]);
    let mut accepted = 0;
    let more = |data| {
        Ok(postern_wire::proto::gitlab::agent::reverse_tunnel::rpc::ConnectRequest {
            msg: Some(connect_request::Msg::Message(rpc::Message { data })),
        })
    };
    while let Ok(Ok(())) =
        tokio::time::timeout(std::time::Duration::from_millis(500), agents[0].send.send(more(chunk.clone())))
            .await
    {
        accepted += chunk.len();
        assert!(accepted < 8 * 1024 * 1024, "nothing holds the agent up");
    }
    // Nor does the other direction: the agent reads nothing.
    let mut sent = 0;
    while let Ok(Ok(())) =
        tokio::time::timeout(std::time::Duration::from_millis(500), stalled.0.send(chunk.clone())).await
    {
        sent += chunk.len();
        assert!(sent < 8 * 1024 * 1024, "nothing holds the caller up");
    }

    // Beside it, on the same connection, small messages flow.
    let agent = agents.pop().unwrap();
    let sending = async {
        for number in 0..20_000_u32 {
            agent.answers(number.to_be_bytes().to_vec()).await;
        }
    };
    let reading = async {
        for number in 0..20_000_u32 {
            assert_eq!(within(flowing.next()).await.unwrap().unwrap(), number.to_be_bytes()[..]);
        }
    };
    tokio::join!(sending, reading);
    drop(stalled);
}

#[tokio::test]
async fn small_messages_that_nobody_reads_do_not_end_the_connection() {
    let broker = Broker::start().await;
    let peers = peers();
    let mut agent = broker.agent();
    let mut knock = within(peers.knock(&broker.url, AGENT, METHOD, &HashMap::new())).await.unwrap();
    within(knock.answer()).await.unwrap();
    let (_request, mut response) = within(knock.accept().open()).await.unwrap();
    agent.hears_info().await;
    agent.begins().await;
    // Fewer bytes than the windows have, so that all of them wait at the reading end.
    let sending = async {
        for number in 0..10_000_u32 {
            agent.answers(number.to_be_bytes().to_vec()).await;
        }
    };
    within(sending).await;
    for number in 0..10_000_u32 {
        assert_eq!(within(response.next()).await.unwrap().unwrap(), number.to_be_bytes()[..]);
    }
}

#[tokio::test]
async fn a_caller_that_leaves_cancels_the_request_at_the_agent() {
    let broker = Broker::start().await;
    let mut agent = broker.agent();
    let (request, response) = opened(&broker.url, &mut agent).await;
    drop(response);
    let status = within(agent.receive.next()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
    assert!(within(request.send(Bytes::from_static(b"late"))).await.is_err());
    within(broker.running.wait()).await;
}

#[tokio::test]
async fn an_agents_error_is_the_callers_words_and_code() {
    for begun in [false, true] {
        let broker = Broker::start().await;
        let mut agent = broker.agent();
        let (_request, mut response) = opened(&broker.url, &mut agent).await;
        agent.begins().await;
        if begun {
            agent.answers("half").await;
            assert_eq!(within(response.next()).await.unwrap().unwrap(), "half");
        }
        agent.ends().await;
        let status = postern_wire::proto::google::rpc::Status {
            code: 14,
            message: "refused by the cluster: dämon".into(),
            details: vec![],
        };
        agent.says(connect_request::Msg::Error(rpc::Error { status: Some(status) })).await;
        let error = within(response.next()).await.unwrap_err();
        assert!(matches!(&error, TunnelError::Status(_)), "{error:?}");
        let wanted = "the agent could not serve the request: refused by the cluster: dämon (Unavailable)";
        assert_eq!(error.to_string(), wanted);
    }
}

#[tokio::test]
async fn a_broker_that_loses_the_agent_says_so() {
    let broker = Broker::start().await;
    let mut agent = broker.agent();
    let (_request, mut response) = opened(&broker.url, &mut agent).await;
    agent.begins().await;
    drop(agent);
    let error = within(response.next()).await.unwrap_err();
    let wanted = "the broker that holds the agent's tunnel ended the request: the connection to the agent was lost \
                  while the request was under way (Unavailable)";
    assert_eq!((error.to_string().as_str(), error.broker()), (wanted, Some(&broker.url)));
}

#[tokio::test]
async fn a_tunnel_that_is_not_wanted_serves_the_next_request() {
    let broker = Broker::start().await;
    // One tunnel only: whoever gets one gets this one.
    let mut agent = broker.agent();
    let peers = peers();
    for accepted in [false, true, false, true] {
        let mut knock = within(peers.knock(&broker.url, AGENT, METHOD, &HashMap::new())).await.unwrap();
        within(async { while knock.answer().await.unwrap() != Answer::Ready {} }).await;
        if accepted {
            drop(knock.accept());
        } else {
            drop(knock);
        }
    }
    let mut knock = within(peers.knock(&broker.url, AGENT, METHOD, &HashMap::new())).await.unwrap();
    within(async { while knock.answer().await.unwrap() != Answer::Ready {} }).await;
    let (request, _response) = within(knock.accept().open()).await.unwrap();
    agent.hears_info().await;
    request.send(Bytes::from_static(b"x")).await.unwrap();
    assert_eq!(agent.hears_data().await, "x");
}

#[tokio::test]
async fn a_broker_without_a_tunnel_says_so_and_has_one_when_the_agent_comes() {
    let broker = Broker::start().await;
    let mut knock = knock(&broker.url).await;
    assert_eq!(within(knock.answer()).await.unwrap(), Answer::NoTunnel { busy: false });
    let mut agent = broker.agent();
    assert_eq!(within(knock.answer()).await.unwrap(), Answer::Ready);
    let (_request, _response) = within(knock.accept().open()).await.unwrap();
    agent.hears_info().await;
}

#[tokio::test]
async fn a_broker_that_drains_says_so_to_those_who_wait() {
    let broker = Broker::start().await;
    let mut knock = knock(&broker.url).await;
    assert_eq!(within(knock.answer()).await.unwrap(), Answer::NoTunnel { busy: false });
    broker.registry.drain();
    let error = within(knock.answer()).await.unwrap_err();
    let wanted = format!("the broker {} refused: kas is shutting down (Unavailable)", broker.url);
    assert_eq!(error.to_string(), wanted);
}

#[tokio::test]
async fn a_broker_that_dies_is_named() {
    let broker = Broker::start().await;
    let wire = Wire::to(broker.address()).await;
    let mut agent = broker.agent();
    let (_request, mut response) = opened(&wire.url, &mut agent).await;
    wire.cut.cancel();
    let error = within(response.next()).await.unwrap_err();
    let wanted =
        "the connection to the broker that holds the agent's tunnel was lost while the request was under way";
    assert_eq!((error.to_string().as_str(), error.broker()), (wanted, Some(&wire.url)));
    assert!(error.source().is_some());
    // The other end notices as well, and with it the agent.
    let status = within(agent.receive.next()).await.unwrap().unwrap_err();
    assert_eq!(status.code(), Code::Cancelled);
}
