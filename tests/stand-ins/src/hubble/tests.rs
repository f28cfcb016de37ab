//! The stand-in, asked as the agent asks a relay.

use super::*;
use postern_wire::proto::{
    flow::{CiliumEventType, EventTypeFilter},
    observer::observer_client::ObserverClient,
};
use std::time::Duration;
use tonic::{Streaming, transport::Channel};

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("in time")
}

async fn client(hubble: &Hubble) -> ObserverClient<Channel> {
    let channel = Channel::from_shared(format!("http://{}", hubble.address())).unwrap();
    ObserverClient::new(soon(channel.connect()).await.unwrap())
}

fn flow(uuid: &str, verdict: i32, event: i32) -> Flow {
    let event_type = Some(CiliumEventType { r#type: event, sub_type: 0 });
    Flow { uuid: uuid.to_owned(), verdict, event_type, ..Flow::default() }
}

fn since(time: SystemTime) -> GetFlowsRequest {
    let of_type = |r#type| EventTypeFilter { r#type, ..EventTypeFilter::default() };
    let filter = FlowFilter { verdict: vec![2], event_type: vec![of_type(5), of_type(129)] };
    GetFlowsRequest {
        follow: true,
        since: Some(time.into()),
        whitelist: vec![filter],
        ..GetFlowsRequest::default()
    }
}

async fn uuid(stream: &mut Streaming<GetFlowsResponse>) -> String {
    match soon(stream.message()).await.unwrap().unwrap().response_types {
        Some(ResponseTypes::Flow(flow)) => flow.uuid,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn flows_are_told_from_since_on_and_only_those_that_are_wanted() {
    let hubble = Hubble::start().await.unwrap();
    let begin = SystemTime::now();
    let mut old = flow("old", 2, 5);
    old.time = Some((begin - Duration::from_secs(5)).into());
    hubble.send(old);
    for (uuid, verdict, event) in [("a", 2, 5), ("forwarded", 1, 5), ("trace", 2, 4), ("b", 2, 129)] {
        hubble.send(flow(uuid, verdict, event));
    }
    let mut stream = soon(client(&hubble).await.get_flows(since(begin))).await.unwrap().into_inner();
    assert_eq!((uuid(&mut stream).await, uuid(&mut stream).await), ("a".to_owned(), "b".to_owned()));
    hubble.send(flow("forwarded", 1, 129));
    hubble.send(flow("c", 2, 129));
    assert_eq!(uuid(&mut stream).await, "c");
    assert_eq!(*hubble.streams().borrow(), 1);
    hubble.end_streams();
    assert!(soon(stream.message()).await.unwrap().is_none());
    soon(hubble.streams().wait_for(|open| *open == 0)).await.unwrap();
    assert_eq!(hubble.requests().borrow().len(), 1);
}

#[tokio::test]
async fn it_refuses_breaks_off_and_comes_back_where_it_was() {
    let mut hubble = Hubble::start().await.unwrap();
    let begin = SystemTime::now();
    hubble.send(flow("a", 2, 5));
    hubble.refuse(Some(Status::unavailable("not now")));
    let refused = soon(client(&hubble).await.get_flows(since(begin))).await.unwrap_err();
    assert_eq!(refused.message(), "not now");
    hubble.refuse(None);
    let mut stream = soon(client(&hubble).await.get_flows(since(begin))).await.unwrap().into_inner();
    assert_eq!(uuid(&mut stream).await, "a");
    hubble.break_streams(Status::internal("broken"));
    assert_eq!(soon(stream.message()).await.unwrap_err().message(), "broken");

    let mut stream = soon(client(&hubble).await.get_flows(since(begin))).await.unwrap().into_inner();
    assert_eq!(uuid(&mut stream).await, "a");
    hubble.stop().await;
    assert!(soon(stream.message()).await.is_err());
    let channel = Channel::from_shared(format!("http://{}", hubble.address())).unwrap();
    assert!(soon(channel.connect()).await.is_err());
    hubble.start_again().await.unwrap();
    let mut stream = soon(client(&hubble).await.get_flows(since(begin))).await.unwrap().into_inner();
    assert_eq!(uuid(&mut stream).await, "a");
}
