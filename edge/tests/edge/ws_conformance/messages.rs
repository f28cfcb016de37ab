//! Binary messages of every length, pings and pongs: sections 1.2, 2 and 10.

use super::{BINARY, CONTINUATION, Case, Chop, FIN, Outcome, PING, PONG, Pongs, frame};

fn case(number: &str, says: &'static str, sends: Vec<Vec<u8>>, chop: Chop, expects: Outcome) -> Case {
    Case { number: number.to_owned(), says, sends, chop, expects }
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (number, length) in [0, 125, 126, 127, 128, 65_535, 65_536, 65_536].into_iter().enumerate() {
        let payload: Vec<u8> = (0..length).map(|at| (at % 251) as u8 ^ 0xfe).collect();
        all.push(case(
            &format!("1.2.{}", number + 1),
            "a binary message comes back, at every form of length",
            vec![frame(FIN | BINARY, &payload)],
            if number == 7 { Chop::Bytes(997) } else { Chop::Whole },
            Outcome::echo(&payload),
        ));
    }
    all.extend(pings());
    let long = vec![b'*'; 65_536];
    let mut pieces = long.chunks(1_300);
    let mut sends = vec![frame(BINARY, pieces.next().unwrap_or_default())];
    let count = pieces.len();
    for (at, piece) in pieces.enumerate() {
        let last = if at + 1 == count { FIN } else { 0 };
        sends.push(frame(last | CONTINUATION, piece));
    }
    all.push(case(
        "10.1.1",
        "a message of 65536 bytes in fragments of 1300",
        sends,
        Chop::Whole,
        Outcome::echo(&long),
    ));
    all
}

fn pings() -> Vec<Case> {
    let binary: &[u8] = &[0, 0xff, 0xfe, 0xfd, 0xfc, 0xfb, 0, 0xff];
    let full = [0xfe; 125];
    let quiet = || Outcome::echo(b"");
    let ten: Vec<Vec<u8>> = (0..10).map(|n| frame(FIN | PING, format!("payload-{n}").as_bytes())).collect();
    let newest = || Outcome { pongs: Pongs::Newest(b"payload-9".to_vec()), ..Outcome::echo(b"") };
    vec![
        case(
            "2.1",
            "a ping without payload",
            vec![frame(FIN | PING, b"")],
            Chop::Whole,
            quiet().pongs(&[b""]),
        ),
        case(
            "2.2",
            "a ping with text in it",
            vec![frame(FIN | PING, b"are you there?")],
            Chop::Whole,
            quiet().pongs(&[b"are you there?"]),
        ),
        case(
            "2.3",
            "a ping with bytes that are no text",
            vec![frame(FIN | PING, binary)],
            Chop::Whole,
            quiet().pongs(&[binary]),
        ),
        case(
            "2.4",
            "a ping as long as it may be",
            vec![frame(FIN | PING, &full)],
            Chop::Whole,
            quiet().pongs(&[&full]),
        ),
        case(
            "2.5",
            "a ping that is too long",
            vec![frame(FIN | PING, &[0xfe; 126])],
            Chop::Whole,
            quiet().closed(1002),
        ),
        case(
            "2.6",
            "a ping as long as it may be, byte by byte",
            vec![frame(FIN | PING, &full)],
            Chop::Bytes(1),
            quiet().pongs(&[&full]),
        ),
        case("2.7", "a pong nobody asked for", vec![frame(FIN | PONG, b"")], Chop::Whole, quiet()),
        case(
            "2.8",
            "a pong nobody asked for, with payload",
            vec![frame(FIN | PONG, b"so")],
            Chop::Whole,
            quiet(),
        ),
        case(
            "2.9",
            "a pong nobody asked for, then a ping",
            vec![frame(FIN | PONG, b"unasked"), frame(FIN | PING, b"asked")],
            Chop::Whole,
            quiet().pongs(&[b"asked"]),
        ),
        case("2.10", "ten pings at once: the newest is answered", ten.clone(), Chop::Whole, newest()),
        case("2.11", "ten pings, byte by byte: the newest is answered", ten, Chop::Bytes(1), newest()),
    ]
}
