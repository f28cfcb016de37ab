//! Both ends over an in-memory pipe, and each end against a peer that writes frames by hand.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split},
    time::{Instant, timeout},
};

use super::{HIGH_WATER, MAX_PAYLOAD, WsStream, frame};

const FIN: u8 = 0x80;
const MASKED: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

fn pair(capacity: usize) -> (WsStream<DuplexStream>, WsStream<DuplexStream>) {
    let (dialled, accepted) = duplex(capacity);
    (WsStream::dialler(dialled, &b""[..]), WsStream::listener(accepted, &b""[..], None))
}

/// A listener, and the raw transport of its dialler.
fn listener() -> (DuplexStream, WsStream<DuplexStream>) {
    let (raw, accepted) = duplex(1 << 20);
    (raw, WsStream::listener(accepted, &b""[..], None))
}

/// Bytes without a pattern that a shift or a wrong mask would keep.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

/// One frame as a dialler writes it; `first` is FIN, reserved bits and opcode.
fn dialled(first: u8, payload: &[u8]) -> Vec<u8> {
    let (mut header, size) = frame::header(frame::Opcode::Binary, payload.len(), Some(MASKED));
    header[0] = first;
    let mut bytes = header[..size].to_vec();
    let mut masked = payload.to_vec();
    frame::mask(&mut masked, &mut { MASKED });
    bytes.extend_from_slice(&masked);
    bytes
}

/// One short frame as a listener writes it.
fn listened(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![first, payload.len() as u8];
    bytes.extend_from_slice(payload);
    bytes
}

fn close(code: u16, reason: &str) -> Vec<u8> {
    [&code.to_be_bytes(), reason.as_bytes()].concat()
}

async fn read_frame(raw: &mut DuplexStream) -> (u8, Vec<u8>) {
    let mut start = [0; 2];
    raw.read_exact(&mut start).await.unwrap();
    assert!(start[1] < 126, "a short frame without a mask");
    let mut payload = vec![0; usize::from(start[1])];
    raw.read_exact(&mut payload).await.unwrap();
    (start[0], payload)
}

#[test]
fn streams_may_move_between_threads() {
    fn movable<T: Send + Sync + Unpin>() {}
    movable::<WsStream<tokio::net::TcpStream>>();
}

#[tokio::test]
async fn bytes_come_out_as_they_went_in_both_ways_at_once() {
    for (capacity, length) in [(1, 3_000), (7, 20_000), (4096, 300_000), (1 << 20, 3_000_000)] {
        let (dialler, listener) = pair(capacity);
        let ends = [dialler, listener].map(|end| {
            let sent = noise(length);
            let (mut reading, mut writing) = split(end);
            let expected = sent.clone();
            async move {
                let write = async {
                    for (turn, piece) in sent.chunks(5_000).enumerate() {
                        writing.write_all(piece).await.unwrap();
                        if turn % 3 == 0 {
                            writing.flush().await.unwrap();
                        }
                    }
                    writing.flush().await.unwrap();
                };
                let read = async {
                    let mut read = vec![0; length];
                    reading.read_exact(&mut read).await.unwrap();
                    assert!(read == expected, "through a pipe of {capacity}");
                };
                tokio::join!(write, read);
                let end = reading.unsplit(writing);
                assert_eq!(end.out.capacity(), 0, "nothing is kept");
            }
        });
        let [dialler, listener] = ends;
        timeout(Duration::from_secs(60), async { tokio::join!(dialler, listener) }).await.unwrap();
    }
}

#[tokio::test]
async fn fragments_pings_and_an_empty_last_continuation_are_read_in_pieces_of_any_size() {
    let payload = noise(700);
    let mut wire = dialled(0x02, &payload[..1]);
    wire.extend(dialled(FIN | 0x9, b"in between"));
    wire.extend(dialled(0x00, &payload[1..300]));
    wire.extend(dialled(FIN | 0xa, b""));
    wire.extend(dialled(0x00, b""));
    wire.extend(dialled(0x00, &payload[300..]));
    wire.extend(dialled(FIN, b""));
    wire.extend(dialled(FIN | 0x2, b""));
    wire.extend(dialled(FIN | 0x8, &close(1000, "")));
    for piece in [1, 2, 3, 5, 13, 100, wire.len()] {
        let (mut raw, mut listener) = listener();
        let write = async {
            for piece in wire.chunks(piece) {
                raw.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        };
        let mut read = Vec::new();
        let (result, ()) = tokio::join!(listener.read_to_end(&mut read), write);
        result.unwrap();
        assert!(read == payload, "pieces of {piece}");
        assert_eq!(read_frame(&mut raw).await, (FIN | 0xa, b"in between".to_vec()));
        assert_eq!(read_frame(&mut raw).await, (FIN | 0x8, close(1000, "")));
    }
}

#[tokio::test]
async fn what_was_read_behind_the_handshake_comes_first() {
    let (mut raw, accepted) = duplex(64);
    let mut listener = WsStream::listener(accepted, dialled(FIN | 2, b"early "), None);
    raw.write_all(&dialled(FIN | 2, b"late")).await.unwrap();
    let mut read = [0; 10];
    listener.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"early late");
}

#[tokio::test]
async fn the_dialler_masks_with_a_fresh_key_and_the_listener_never() {
    let (io, mut raw) = duplex(1024);
    let mut dialler = WsStream::dialler(io, &b""[..]);
    let mut keys = Vec::new();
    for _ in 0..3 {
        dialler.write_all(b"same").await.unwrap();
        dialler.flush().await.unwrap();
        let mut frame = [0; 10];
        raw.read_exact(&mut frame).await.unwrap();
        assert_eq!(frame[..2], [FIN | 2, 0x80 | 4]);
        let mut key = [frame[2], frame[3], frame[4], frame[5]];
        keys.push(key);
        frame::mask(&mut frame[6..], &mut key);
        assert_eq!(&frame[6..], b"same");
    }
    assert!(keys[0] != keys[1] || keys[1] != keys[2], "{keys:?}");

    let (mut raw, mut listener) = listener();
    listener.write_all(b"open").await.unwrap();
    listener.flush().await.unwrap();
    assert_eq!(read_frame(&mut raw).await, (FIN | 2, b"open".to_vec()));
}

#[tokio::test]
async fn slices_are_gathered_in_one_frame_and_long_writes_are_cut() {
    let (mut raw, mut listener) = listener();
    let slices = [&b"a"[..], b"", b"bc", b"def"].map(io::IoSlice::new);
    assert_eq!(listener.write_vectored(&slices).await.unwrap(), 6);
    assert_eq!(read_frame(&mut raw).await, (FIN | 2, b"abcdef".to_vec()));
    assert_eq!(listener.write(&noise(100_000)).await.unwrap(), MAX_PAYLOAD);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_read_is_owed_little() {
    let (_raw, accepted) = duplex(100);
    let mut listener = WsStream::listener(accepted, &b""[..], None);
    let (_unread, dialled) = duplex(100);
    let mut dialler = WsStream::dialler(dialled, &b""[..]);
    for end in [&mut listener, &mut dialler] {
        let bytes = noise(MAX_PAYLOAD);
        let stalled = timeout(Duration::from_millis(50), async {
            loop {
                end.write_all(&bytes).await.unwrap();
            }
        });
        stalled.await.expect_err("nobody reads");
        assert!(end.out.len() < HIGH_WATER + MAX_PAYLOAD + 32, "{}", end.out.len());
    }
}

#[tokio::test]
async fn of_many_pings_the_newest_is_answered() {
    let (mut raw, accepted) = duplex(64);
    let mut listener = WsStream::listener(accepted, &b""[..], None);
    let ping = async {
        for turn in 0..900_u32 {
            raw.write_all(&dialled(FIN | 0x9, &turn.to_be_bytes())).await.unwrap();
        }
        raw.write_all(&dialled(FIN | 0x2, b"!")).await.unwrap();
        let mut answered = Vec::new();
        while answered.last() != Some(&899_u32.to_be_bytes().to_vec()) {
            let (first, payload) = read_frame(&mut raw).await;
            assert_eq!(first, FIN | 0xa);
            answered.push(payload);
        }
        answered
    };
    let read = async {
        let mut byte = [0];
        listener.read_exact(&mut byte).await.unwrap();
        assert!(listener.out.len() < 128);
        listener.flush().await.unwrap();
    };
    let (answered, ()) = timeout(Duration::from_secs(10), async { tokio::join!(ping, read) }).await.unwrap();
    assert!(answered.len() < 100, "{}", answered.len());
}

#[tokio::test]
async fn broken_rules_are_answered_with_the_right_close_code() {
    let too_long_in_all = [dialled(0x02, b"x"), vec![FIN, 0x80 | 127, 0, 0, 0, 0, 0, 0xa0, 0, 0, 1, 2, 3, 4]];
    for (code, what, wire) in [
        (1003, "text", dialled(FIN | 0x1, b"hello")),
        (1002, "not masked", listened(FIN | 0x2, b"hello")),
        (1002, "reserved bit", dialled(FIN | 0x42, b"hello")),
        (1002, "opcode 3", dialled(FIN | 0x3, b"hello")),
        (1002, "opcode 11", dialled(FIN | 0xb, b"")),
        (1002, "long ping", dialled(FIN | 0x9, &[0; 126])),
        (1002, "fragmented ping", dialled(0x9, b"")),
        (1002, "nothing to continue", dialled(FIN, b"hello")),
        (1002, "message in a message", [dialled(0x2, b""), dialled(FIN | 0x2, b"")].concat()),
        (1002, "half a close code", dialled(FIN | 0x8, &[3])),
        (1002, "close code for inside use", dialled(FIN | 0x8, &close(1006, ""))),
        (1002, "close reason not text", dialled(FIN | 0x8, &[3, 0xe8, 0xff])),
        (1002, "negative length", vec![FIN | 0x2, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4]),
        (1009, "long message", vec![FIN | 0x2, 0xff, 0, 0, 0, 0, 0, 0xa0, 0, 1, 1, 2, 3, 4]),
        (1009, "long in all", too_long_in_all.concat()),
    ] {
        let (mut raw, mut listener) = listener();
        let good = dialled(FIN | 0x2, b"good");
        raw.write_all(&[good, wire].concat()).await.unwrap();
        let mut read = Vec::new();
        let error = listener.read_to_end(&mut read).await.expect_err(what);
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{what}: {error}");
        assert_eq!(&read[..4], b"good", "{what}: what came before is given");
        let (first, payload) = read_frame(&mut raw).await;
        assert_eq!((first, &payload[..2]), (FIN | 0x8, &u16::to_be_bytes(code)[..]), "{what}");
        let again = listener.read_u8().await.expect_err("again");
        assert_eq!(again.to_string(), error.to_string());
        let write = listener.write(b"x").await.expect_err("closed");
        assert_eq!(write.kind(), io::ErrorKind::BrokenPipe);
    }
    let (io, mut raw) = duplex(64);
    raw.write_all(&dialled(FIN | 0x2, b"x")).await.unwrap();
    let error = WsStream::dialler(io, &b""[..]).read_u8().await.expect_err("masked by a listener");
    assert!(error.to_string().contains("is masked"), "{error}");
}

#[tokio::test]
async fn close_1000_and_1001_end_the_stream_and_other_codes_are_errors_that_name_them() {
    for code in [1000, 1001] {
        let (mut raw, mut listener) = listener();
        raw.write_all(&dialled(FIN | 0x8, &close(code, "bye"))).await.unwrap();
        assert_eq!(listener.read(&mut [0; 8]).await.unwrap(), 0);
        assert_eq!(read_frame(&mut raw).await, (FIN | 0x8, close(code, "")));
        listener.shutdown().await.unwrap();
        assert_eq!(raw.read(&mut [0; 8]).await.unwrap(), 0, "one Close only");
    }
    let (mut raw, mut listener) = listener();
    raw.write_all(&dialled(FIN | 0x8, &close(1008, "go\naway"))).await.unwrap();
    let error = listener.read_u8().await.expect_err("1008");
    assert_eq!(error.to_string(), r#"peer closed the WebSocket with code 1008: "go\naway""#);
}

#[tokio::test]
async fn shutdown_says_why_and_what_is_still_on_the_way_is_read() {
    let (mut raw, mut ending) = listener();
    ending.shutdown().await.unwrap();
    assert_eq!(read_frame(&mut raw).await, (FIN | 0x8, close(1000, "")));
    assert_eq!(ending.write(b"x").await.expect_err("closed").kind(), io::ErrorKind::BrokenPipe);
    raw.write_all(&dialled(FIN | 0x2, b"last words")).await.unwrap();
    drop(raw);
    let mut read = String::new();
    ending.read_to_string(&mut read).await.unwrap();
    assert_eq!(read, "last words");

    let (mut raw, mut ending) = listener();
    ending.set_going_away();
    ending.shutdown().await.unwrap();
    assert_eq!(read_frame(&mut raw).await, (FIN | 0x8, close(1001, "Shutting down")));

    let (mut raw, mut ending) = listener();
    ending.set_refused("not you");
    ending.shutdown().await.unwrap();
    assert_eq!(read_frame(&mut raw).await, (FIN | 0x8, close(1008, "not you")));
}

#[tokio::test]
async fn a_transport_that_ends_without_close_is_an_error() {
    let (raw, mut listener) = listener();
    drop(raw);
    assert_eq!(listener.read_u8().await.expect_err("cut").kind(), io::ErrorKind::UnexpectedEof);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_pinged_and_given_up_and_one_that_answers_is_not() {
    let interval = Duration::from_secs(20);
    let (dialled, accepted) = duplex(1024);
    let mut silent = WsStream::listener(accepted, &b""[..], Some(interval));
    let began = Instant::now();
    let error = silent.read_u8().await.expect_err("silent");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(began.elapsed(), interval * 2);
    drop(dialled);

    let (dialled, accepted) = duplex(1024);
    let mut dialler = WsStream::dialler(dialled, &b""[..]);
    let mut listener = WsStream::listener(accepted, &b""[..], Some(interval));
    let both = async {
        tokio::select! {
            byte = dialler.read_u8() => panic!("{byte:?}"),
            byte = listener.read_u8() => panic!("{byte:?}"),
        }
    };
    timeout(interval * 100, both).await.expect_err("alive");
}

#[tokio::test(start_paused = true)]
async fn how_often_to_ping_can_change_and_a_peer_has_its_time_to_answer_however_often_it_is_pinged() {
    let interval = Duration::from_secs(20);
    let (mut dialled, accepted) = duplex(1024);
    let mut silent = WsStream::listener(accepted, &b""[..], Some(interval));
    assert!(timeout(interval / 2, silent.read_u8()).await.is_err());
    silent.set_ping(None);
    assert!(timeout(interval * 100, silent.read_u8()).await.is_err(), "given up though it is never pinged");
    let often = Duration::from_secs(2);
    silent.set_ping(Some(often));
    let began = Instant::now();
    assert_eq!(silent.read_u8().await.expect_err("silent").kind(), io::ErrorKind::TimedOut);
    let (least, took) = (Duration::from_secs(15), began.elapsed());
    assert!(took >= least && took <= least + 2 * often, "{took:?}");
    drop(silent);
    let mut pings = Vec::new();
    dialled.read_to_end(&mut pings).await.unwrap();
    assert_eq!(pings.chunks(2).filter(|frame| *frame == [FIN | 0x9, 0]).count(), 8);
}
