//! Brokers that are not ours: a kas of either generation, and what only claims to be one. HTTP/2 by hand.

use super::*;
use crate::fleet::remote::RemoteTunnel;
use futures::future::BoxFuture;
use h2::server::SendResponse;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Sends these messages and then nothing.
async fn answered(mut respond: SendResponse<Bytes>, messages: Vec<Bytes>) {
    let mut body = respond.send_response(head(), false).unwrap();
    for message in messages {
        body.send_data(message, false).unwrap();
    }
    std::future::pending::<()>().await;
}

/// What happens to a request at a hand-made broker, which answers like this whatever it is sent.
async fn against(
    answer: impl Fn(SendResponse<Bytes>) -> BoxFuture<'static, ()> + Send + 'static,
) -> Result<(PeerUrl, RemoteTunnel), PeerError> {
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, Limits::default());
    tokio::spawn(async move {
        let mut server = accept(&listener, 100).await;
        while let Some(Ok((request, respond))) = server.accept().await {
            let answered = answer(respond);
            tokio::spawn(async move {
                let _request = request;
                answered.await;
            });
        }
    });
    let mut knock = knock(&peers, &url).await.unwrap();
    loop {
        if within(knock.answer()).await? == Answer::Ready {
            return Ok((url, knock.accept()));
        }
    }
}

#[tokio::test]
async fn a_kas_of_14_1_says_ready_and_nothing_of_the_agent() {
    use gateway::Msg::{Header, Message, Trailer, TunnelReady};
    let (listener, url) = listener().await;
    let peers = peers_of(b"ours", None, Limits::default());
    let (opened, mut streams) = mpsc::channel(100);
    tokio::spawn(async move {
        let mut server = accept(&listener, 100).await;
        while let Some(Ok(stream)) = server.accept().await {
            let _ = opened.send(stream).await;
        }
    });
    let mut asked = knock(&peers, &url).await.unwrap();
    let (request, mut respond) = within(streams.recv()).await.unwrap();
    assert_eq!(request.uri().path(), METHOD);
    assert_eq!(request.headers()["kas-hop-routing-agent-id"], "1");
    let mut to_router = respond.send_response(head(), false).unwrap();
    to_router.send_data(framed(TunnelReady(Default::default())), false).unwrap();
    assert_eq!(within(asked.answer()).await.unwrap(), Answer::Ready);
    let tunnel = asked.accept();
    assert!(!tunnel.carries_upgrades() && !tunnel.carries_impersonation());
    let (to_agent, mut response) = within(tunnel.open()).await.unwrap();
    to_agent.send(Bytes::from_static(b"question")).await.unwrap();
    to_agent.close().await.unwrap();
    // StartStreaming has no bytes.
    let (mut from_router, mut received) = (request.into_body(), Vec::new());
    while let Some(data) = within(from_router.data()).await {
        received.extend_from_slice(&data.unwrap());
    }
    assert_eq!(received, [&[0; 5][..], &framed_bytes(b"question")].concat());
    let data = gateway::Message { data: Bytes::from_static(b"answer") };
    for message in [Header(Default::default()), Message(data), Trailer(Default::default())] {
        to_router.send_data(framed(message), false).unwrap();
    }
    to_router.send_trailers(ended("0")).unwrap();
    assert_eq!(within(response.next()).await.unwrap().unwrap(), "answer");
    assert!(within(response.next()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_kas_that_ends_without_a_tunnel_is_passed_over() {
    for (trailers_only, wanted) in [
        ("0", "no longer looks for a tunnel"),
        ("14", "refused:  (Unavailable)"),
        (
            "16",
            "refused:  (Unauthenticated); do both have the same private_api.listen.authentication_secret_file",
        ),
        ("12", "refused:  (Unimplemented); is that the private API of a kas?"),
    ] {
        let refused = against(move |mut respond| {
            Box::pin(async move {
                let mut head = head();
                head.headers_mut().extend(ended(trailers_only));
                respond.send_response(head, true).unwrap();
            })
        });
        let error = refused.await.unwrap_err().to_string();
        assert!(error.contains(wanted), "{error}");
    }
}

#[tokio::test]
async fn a_broker_that_breaks_the_rules_is_not_believed() {
    use gateway::Msg::{Message, NoTunnel, TunnelReady};
    let raw = |bytes: &'static [u8]| {
        move |respond: SendResponse<Bytes>| -> BoxFuture<'static, ()> {
            Box::pin(answered(respond, vec![Bytes::from_static(bytes)]))
        }
    };
    let said = |messages: &'static [fn() -> gateway::Msg]| {
        move |respond: SendResponse<Bytes>| -> BoxFuture<'static, ()> {
            Box::pin(answered(respond, messages.iter().map(|message| framed(message())).collect()))
        }
    };
    let no_grpc = |mut respond: SendResponse<Bytes>| -> BoxFuture<'static, ()> {
        Box::pin(async move {
            respond.send_response(Response::builder().status(404).body(()).unwrap(), true).unwrap();
        })
    };
    for (refused, wanted) in [
        (against(raw(&[0, 0x7f, 0xff, 0xff, 0xff])).await, "a message is larger than 4 MiB"),
        (against(raw(&[1, 0, 0, 0, 0])).await, "a message is compressed"),
        (against(raw(&[0, 0, 0, 0, 2, 0xff, 0xff])).await, "decode"),
        (against(raw(&[0, 0, 0, 0, 0])).await, "a message without a known kind"),
        (against(said(&[|| Message(Default::default())])).await, "transition from -2 to 3"),
        (
            against(said(&[|| NoTunnel(Default::default()), || NoTunnel(Default::default())])).await,
            "transition from 6 to 6",
        ),
        (against(no_grpc).await, "it does not speak gRPC"),
    ] {
        let error = refused.unwrap_err();
        assert!(matches!(error, PeerError::Rules { .. }), "{error:?}");
        assert!(error.to_string().contains(wanted), "{error}");
    }
    // The same goes for a request under way.
    let (_, tunnel) =
        against(said(&[|| TunnelReady(Default::default()), || Message(Default::default())])).await.unwrap();
    let (_request, mut response) = within(tunnel.open()).await.unwrap();
    let error = within(response.next()).await.unwrap_err().to_string();
    let wanted = "the broker that holds the agent's tunnel ended the request: transition from 1 to 3";
    assert!(error.starts_with(wanted), "{error}");
}

#[tokio::test]
async fn a_kas_is_pinged_rarely() {
    // Nothing in its answers says that it is a broker of ours.
    let (listener, url) = listener().await;
    let limits =
        Limits { ping_busy: Duration::from_millis(10), ping_idle: Duration::from_secs(60), ..short() };
    let peers = peers_of(b"ours", None, limits);
    let served = tokio::spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        // The client's preface, settings, window and first ping; the answers to it are made by hand.
        let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
        socket.write_all(&settings).await.unwrap();
        let mut preface = [0; 24];
        socket.read_exact(&mut preface).await.unwrap();
        let mut pings = 0;
        let mut quiet = tokio::time::interval(Duration::from_millis(300));
        quiet.reset();
        loop {
            let mut head = [0; 9];
            tokio::select! {
                read = socket.read_exact(&mut head) => { read.unwrap(); }
                _ = quiet.tick(), if pings > 0 => return pings,
            }
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            let mut payload = vec![0; length];
            socket.read_exact(&mut payload).await.unwrap();
            if head[3] == 6 && head[4] == 0 {
                pings += 1;
                quiet.reset();
                let answer = [&[0, 0, 8, 6, 1, 0, 0, 0, 0][..], &payload].concat();
                socket.write_all(&answer).await.unwrap();
            }
        }
    });
    let _knock = knock(&peers, &url).await.unwrap();
    assert_eq!(within(served).await.unwrap(), 1, "only the first one");
}
