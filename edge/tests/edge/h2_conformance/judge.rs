//! Runs a case on a connection, and judges what comes back.

use super::{Case, Expect, KNOWN_FAILURES, LESS_SPECIFIC, NO_ERROR, PROTOCOL_ERROR, Script, Step};
use crate::frames::{
    ACK, Client, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, RST_STREAM, Road, SETTINGS,
    frame,
};

/// Runs one case; an error says what came instead.
pub(super) async fn run(case: &Case, mut client: Client, road: Road) -> Result<(), String> {
    let mut script = Script::new(road);
    (case.sends)(&mut script);
    if script.greets {
        client.greet().await?;
    }
    for step in script.steps {
        match step {
            Step::Send(bytes) => client.send(&bytes).await,
            Step::Answered(stream) => answered(&mut client, stream, script.road).await?,
            Step::Data(stream, bytes) => {
                let mut left = bytes;
                while left > 0 {
                    let came = lengths(&client, stream).iter().sum::<usize>();
                    left = bytes.saturating_sub(came);
                    if left > 0 {
                        let seen = client.seen.len();
                        client.find_from(seen, "DATA", |_| true).await?;
                    }
                }
            }
            Step::Acknowledged(count) => {
                let mut from = 0;
                for _ in 0..count {
                    from = 1 + client.find_from(from, "SETTINGS ACK", is_settings_ack).await?;
                }
            }
            Step::Fill => {
                let streams = client.streams;
                let block = script.road.fields().block();
                for stream in 0..streams {
                    client.send(&frame(HEADERS, END_HEADERS, 1 + 2 * stream, &block)).await;
                }
            }
        }
    }
    judge(&mut client, case, script.road).await
}

fn is_settings_ack(frame: &Frame) -> bool {
    frame.kind == SETTINGS && frame.flags & ACK != 0
}

async fn judge(client: &mut Client, case: &Case, road: Road) -> Result<(), String> {
    let also = LESS_SPECIFIC.contains(&case.number).then_some(PROTOCOL_ERROR);
    let fits = |codes: &[u32], code: u32| codes.contains(&code) || also == Some(code);
    let known = KNOWN_FAILURES.iter().find(|(number, ..)| *number == case.number);
    match known.map_or(case.expects, |(_, instead, _)| *instead) {
        Expect::Settings => {
            let first = client.find("a first frame", |_| true).await?;
            if first.kind == SETTINGS && first.flags & ACK == 0 && first.stream == 0 {
                Ok(())
            } else {
                Err(format!("the first frame is of type {}", first.kind))
            }
        }
        Expect::SettingsAck => client.find("SETTINGS ACK", is_settings_ack).await.map(|_| ()),
        Expect::Pong(payload) => {
            let pong = client.find("a pong", |frame| frame.kind == PING && frame.flags & ACK != 0).await?;
            if pong.payload == payload { Ok(()) } else { Err(format!("a pong with {:?}", pong.payload)) }
        }
        Expect::Answer(stream) => answered(client, stream, road).await,
        Expect::Data(stream, expected) => loop {
            let came = lengths(client, stream);
            if !expected.starts_with(&came) && !came.starts_with(expected) {
                return Err(format!("DATA of lengths {came:?}"));
            }
            if came.starts_with(expected) {
                return Ok(());
            }
            let seen = client.seen.len();
            client.find_from(seen, "DATA", |_| true).await?;
        },
        Expect::Alive => client.alive().await,
        Expect::AliveOrClosed => match client.alive().await {
            Err(error) if error.starts_with("nothing") => Err(error),
            _ => Ok(()),
        },
        Expect::Closed => client.end().await,
        Expect::Connection(codes) => connection_error(client, |code| fits(codes, code)).await,
        Expect::ConnectionOrCut(codes) => match connection_error(client, |code| fits(codes, code)).await {
            Err(error) if error.starts_with("closed") => Ok(()),
            judged => judged,
        },
        Expect::Stream(stream, codes) => {
            let error = error(client, stream).await?;
            if error.kind == GOAWAY || !fits(codes, error.code()) {
                return Err(format!("type {}, code {}", error.kind, error.code()));
            }
            client.alive().await
        }
        Expect::StreamOrConnection(stream, codes) => {
            let error = error(client, stream).await?;
            if !fits(codes, error.code()) {
                return Err(format!("type {}, code {}", error.kind, error.code()));
            }
            if error.kind == GOAWAY { client.close().await } else { client.alive().await }
        }
    }
}

/// The end that this stream or the connection comes to.
async fn error(client: &mut Client, stream: u32) -> Result<&Frame, String> {
    let about = |frame: &Frame| frame.kind == RST_STREAM && frame.stream == stream || frame.kind == GOAWAY;
    client.find("RST_STREAM or GOAWAY", about).await
}

async fn connection_error(client: &mut Client, fits: impl Fn(u32) -> bool) -> Result<(), String> {
    let goaway = client.find("GOAWAY", |frame| frame.kind == GOAWAY).await?;
    if !fits(goaway.code()) {
        return Err(format!("GOAWAY with code {}", goaway.code()));
    }
    client.close().await
}

/// The lengths of a stream's DATA frames so far; an empty last one carries nothing.
fn lengths(client: &Client, stream: u32) -> Vec<usize> {
    let data = client.seen.iter().filter(|frame| frame.kind == DATA && frame.stream == stream);
    data.map(|frame| frame.payload.len()).filter(|length| *length > 0).collect()
}

/// Waits for an answer of somebody behind the edge. A refusal of the edge's own would have status and end in one.
async fn answered(client: &mut Client, stream: u32, road: Road) -> Result<(), String> {
    let broken = |frame: &Frame| match frame.kind {
        GOAWAY => true,
        RST_STREAM => frame.stream == stream && frame.code() != NO_ERROR,
        _ => false,
    };
    let head = client
        .find("a response", |frame| frame.kind == HEADERS && frame.stream == stream || broken(frame))
        .await?;
    // `:status: 200` stands in the static table at 8.
    if head.kind != HEADERS || head.payload.first() != Some(&0x88) {
        return Err(format!("no status 200 in {}", client.history()));
    }
    if road == Road::Relay && head.flags & END_STREAM != 0 {
        return Err("refused by the edge".to_owned());
    }
    let end = client.find("the end", |frame| frame.ends(stream) || broken(frame)).await?;
    if end.ends(stream) { Ok(()) } else { Err(format!("broken: {}", client.history())) }
}
