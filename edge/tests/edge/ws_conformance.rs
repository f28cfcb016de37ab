//! WebSockets as RFC 6455 wants them, as far as a tunnel of bytes knows them: a table of cases against the listener's end.
//!
//! Cases carry the numbers under which Autobahn|Testsuite has them, sections 1 to 7 and 10. Sentences, bytes and
//! expectations are our own. The peer behind the listener sends back every byte. Where the suite sends text as a mere
//! carrier, these cases send binary messages: a `ws-tunnel` refuses text, which sections 1.1 and 6 show.

mod closing;
mod messages;
mod parts;
mod real;
mod text;

use crate::harness::DEADLINE;
use postern_wire::ws::WsStream;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, DuplexStream, duplex, split};
use tokio::sync::watch;

pub(crate) const FIN: u8 = 0x80;
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// What the client does.
pub(crate) struct Case {
    pub(crate) number: String,
    pub(crate) says: &'static str,
    /// Frames, in order. A Close 1000 follows when everything has come back, unless one of them ended it before.
    pub(crate) sends: Vec<Vec<u8>>,
    pub(crate) chop: Chop,
    pub(crate) expects: Outcome,
}

/// In what pieces the bytes are written.
#[derive(Clone, Copy)]
pub(crate) enum Chop {
    Whole,
    Frames,
    Bytes(usize),
}

/// What comes back.
pub(crate) struct Outcome {
    /// Payload of all binary messages together, as whoever reads behind the listener gets it.
    pub(crate) read: Vec<u8>,
    /// The case breaks off or closes: what was read need not all have come back.
    pub(crate) cut: bool,
    pub(crate) pongs: Pongs,
    /// The code of the Close, and its absence.
    pub(crate) close: Option<u16>,
}

pub(crate) enum Pongs {
    All(Vec<Vec<u8>>),
    /// Of pings that come at once the newest needs an answer, the others may have one.
    Newest(Vec<u8>),
}

impl Outcome {
    /// Everything comes back, then the Close.
    pub(crate) fn echo(bytes: &[u8]) -> Self {
        Self { read: bytes.to_vec(), cut: false, pongs: Pongs::All(Vec::new()), close: Some(1000) }
    }

    pub(crate) fn cut(mut self) -> Self {
        self.cut = true;
        self
    }

    pub(crate) fn pongs(mut self, payloads: &[&[u8]]) -> Self {
        self.pongs = Pongs::All(payloads.iter().map(|payload| payload.to_vec()).collect());
        self
    }

    pub(crate) fn closed(mut self, code: u16) -> Self {
        self.close = Some(code);
        self.cut()
    }
}

/// A frame as a client sends it, masked. `first` is FIN, reserved bits and opcode.
pub(crate) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    const KEY: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];
    let mut bytes = vec![first];
    match payload.len() {
        length @ 0..=125 => bytes.push(0x80 | length as u8),
        length @ 126..=0xffff => {
            bytes.push(0x80 | 126);
            bytes.extend((length as u16).to_be_bytes());
        }
        length => {
            bytes.push(0x80 | 127);
            bytes.extend((length as u64).to_be_bytes());
        }
    }
    bytes.extend(KEY);
    bytes.extend(payload.iter().zip(KEY.iter().cycle()).map(|(byte, key)| byte ^ key));
    bytes
}

pub(crate) fn close(code: u16, reason: &[u8]) -> Vec<u8> {
    frame(FIN | CLOSE, &[&code.to_be_bytes()[..], reason].concat())
}

/// Frames as a client reads them, none masked: first byte and payload.
pub(crate) async fn read_frame(io: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let first = io.read_u8().await.ok()?;
    let length = match io.read_u8().await.ok()? {
        126 => usize::from(io.read_u16().await.ok()?),
        127 => usize::try_from(io.read_u64().await.ok()?).ok()?,
        length => usize::from(length),
    };
    assert!(length < 1 << 20, "the listener masks, or sends a frame of {length} bytes");
    let mut payload = vec![0; length];
    io.read_exact(&mut payload).await.ok()?;
    Some((first, payload))
}

/// Sends back what it reads until reading ends; returns all of it.
async fn echo(mut ws: WsStream<DuplexStream>) -> Vec<u8> {
    let (mut all, mut bytes) = (Vec::new(), vec![0; 16 * 1024]);
    let mut writable = true;
    while let Ok(read @ 1..) = ws.read(&mut bytes).await {
        all.extend_from_slice(&bytes[..read]);
        // Nothing is sent behind a Close, and one is sent as soon as it is due.
        writable = writable && ws.write_all(&bytes[..read]).await.is_ok() && ws.flush().await.is_ok();
    }
    let _ = ws.shutdown().await;
    all
}

async fn run(case: &Case) -> Result<(), String> {
    let (client, listener) = duplex(4096);
    let echoing = tokio::spawn(echo(WsStream::listener(listener, &b""[..], None)));
    let (mut reading, mut writing) = split(client);
    let expects = &case.expects;
    let (heard, mut progress) = watch::channel((0, 0));
    let write = async {
        let all = case.sends.concat();
        let pieces: Vec<&[u8]> = match case.chop {
            Chop::Whole => vec![&all],
            Chop::Frames => case.sends.iter().map(Vec::as_slice).collect(),
            Chop::Bytes(size) => all.chunks(size).collect(),
        };
        for piece in pieces {
            // It may have closed already.
            if writing.write_all(piece).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        let pongs = match &expects.pongs {
            Pongs::All(all) => all.len(),
            Pongs::Newest(_) => 1,
        };
        if progress.wait_for(|heard| *heard >= (expects.read.len(), pongs)).await.is_ok() {
            let _ = writing.write_all(&close(1000, b"")).await;
        }
    };
    let (mut echoed, mut pongs, mut closes) = (Vec::new(), Vec::new(), Vec::new());
    let read = async {
        let heard = heard;
        while let Some((first, payload)) = read_frame(&mut reading).await {
            match first {
                0x82 => echoed.extend(payload),
                0x8a => pongs.push(payload),
                0x88 => closes.push(payload),
                _ => return Err(format!("a frame that begins with {first:#x}")),
            }
            heard.send_replace((echoed.len(), pongs.len()));
        }
        Ok(())
    };
    let both = tokio::time::timeout(DEADLINE, async { tokio::join!(read, write).0 }).await;
    both.map_err(|_| "it does not end".to_owned())??;
    let delivered = echoing.await.unwrap();
    if delivered != expects.read {
        return Err(format!("{} bytes were read, not {}", delivered.len(), expects.read.len()));
    }
    // Where the case ends the conversation itself, it ends the echo too.
    if !delivered.starts_with(&echoed) || echoed.len() < delivered.len() && !expects.cut {
        return Err(format!("{} of {} bytes came back", echoed.len(), delivered.len()));
    }
    let answered = match &expects.pongs {
        Pongs::All(all) => &pongs == all,
        Pongs::Newest(newest) => pongs.last() == Some(newest),
    };
    if !answered {
        return Err(format!("pongs {pongs:?}"));
    }
    let codes: Vec<Option<u16>> = closes
        .iter()
        .map(|payload| Some(u16::from_be_bytes([*payload.first()?, *payload.get(1)?])))
        .collect();
    if codes == [expects.close] { Ok(()) } else { Err(format!("Close {codes:?}")) }
}

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    [text::cases(), messages::cases(), parts::cases(), closing::cases()].into_iter().flatten().collect()
}

#[tokio::test]
async fn every_case_of_the_table_holds() {
    let mut failures = Vec::new();
    for case in cases() {
        if let Err(error) = run(&case).await {
            failures.push(format!("{} ({}): {error}", case.number, case.says));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn the_table_has_every_number_once() {
    let mut numbers: Vec<_> = cases().into_iter().map(|case| case.number).collect();
    // All of the suite but sections 9 (volume), 12 and 13 (compression, which is declined).
    assert_eq!(numbers.len(), 247);
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), 247);
}
