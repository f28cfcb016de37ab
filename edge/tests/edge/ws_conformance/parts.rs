//! Reserved bits, unknown opcodes, fragments: sections 3, 4 and 5.

use super::{BINARY, CLOSE, CONTINUATION, Case, Chop, FIN, Outcome, PING, PONG, TEXT, frame};

const MESSAGE: &[u8] = b"a message";

fn case(number: &str, says: &'static str, sends: Vec<Vec<u8>>, chop: Chop, expects: Outcome) -> Case {
    Case { number: number.to_owned(), says, sends, chop, expects }
}

fn message() -> Vec<u8> {
    frame(FIN | BINARY, MESSAGE)
}

/// A message in two fragments.
fn two() -> [Vec<u8>; 2] {
    [frame(BINARY, b"a mes"), frame(FIN | CONTINUATION, b"sage")]
}

pub(super) fn cases() -> Vec<Case> {
    let mut all = reserved();
    all.extend(opcodes());
    all.extend(fragments());
    all
}

fn reserved() -> Vec<Case> {
    let broken = |before: &[u8]| Outcome::echo(before).closed(1002);
    let rsv = |bits: u8, opcode: u8| frame(FIN | bits << 4 | opcode, MESSAGE);
    let ping = || frame(FIN | PING, b"");
    vec![
        case("3.1", "reserved bits 1 at a message", vec![rsv(1, BINARY)], Chop::Whole, broken(b"")),
        case(
            "3.2",
            "reserved bits 2 at a message behind a sound one",
            vec![message(), rsv(2, BINARY), ping()],
            Chop::Whole,
            broken(MESSAGE),
        ),
        case(
            "3.3",
            "reserved bits 3, frame by frame",
            vec![message(), rsv(3, BINARY), ping()],
            Chop::Frames,
            broken(MESSAGE),
        ),
        case(
            "3.4",
            "reserved bits 4, byte by byte",
            vec![message(), rsv(4, BINARY), ping()],
            Chop::Bytes(1),
            broken(MESSAGE),
        ),
        case("3.5", "reserved bits 5 at a message", vec![rsv(5, BINARY)], Chop::Whole, broken(b"")),
        case("3.6", "reserved bits 6 at a ping", vec![rsv(6, PING)], Chop::Whole, broken(b"")),
        case("3.7", "reserved bits 7 at a Close", vec![rsv(7, CLOSE)], Chop::Whole, broken(b"")),
    ]
}

fn opcodes() -> Vec<Case> {
    let mut all = Vec::new();
    for (section, first) in [("4.1", 3u8), ("4.2", 11)] {
        for number in 0..5u8 {
            let opcode = FIN | (first + number);
            let payload = if number % 2 == 1 { MESSAGE } else { b"" };
            let (sends, before) = match number {
                0 | 1 => (vec![frame(opcode, payload)], &b""[..]),
                _ => (vec![message(), frame(opcode, payload), frame(FIN | PING, b"")], MESSAGE),
            };
            all.push(case(
                &format!("{section}.{}", number + 1),
                "an opcode that nobody has given a meaning",
                sends,
                if number > 2 { Chop::Bytes(1) } else { Chop::Whole },
                Outcome::echo(before).closed(1002),
            ));
        }
    }
    all
}

fn fragments() -> Vec<Case> {
    let [first, last] = two();
    let ping = || frame(FIN | PING, b"between");
    let ways = [Chop::Whole, Chop::Frames, Chop::Bytes(1)];
    let broken = |before: &[u8]| Outcome::echo(before).closed(1002);
    let mut all = vec![
        case(
            "5.1",
            "a ping in two fragments",
            vec![frame(PING, b"a"), frame(FIN | CONTINUATION, b"b")],
            Chop::Whole,
            broken(b""),
        ),
        case(
            "5.2",
            "a pong in two fragments",
            vec![frame(PONG, b"a"), frame(FIN | CONTINUATION, b"b")],
            Chop::Whole,
            broken(b""),
        ),
    ];
    for (at, chop) in ways.into_iter().enumerate() {
        let sends = vec![first.clone(), last.clone()];
        let says = "a message in two fragments";
        all.push(case(&format!("5.{}", 3 + at), says, sends, chop, Outcome::echo(MESSAGE)));
        let sends = vec![first.clone(), ping(), last.clone()];
        let says = "a ping between two fragments is answered";
        let expects = Outcome::echo(MESSAGE).pongs(&[b"between"]);
        all.push(case(&format!("5.{}", 6 + at), says, sends, chop, expects));
        let sends = vec![frame(FIN | CONTINUATION, MESSAGE), message()];
        let says = "a last fragment without a first";
        all.push(case(&format!("5.{}", 9 + at), says, sends, chop, broken(b"")));
        let sends = vec![frame(CONTINUATION, MESSAGE), message()];
        let says = "a middle fragment without a first";
        all.push(case(&format!("5.{}", 12 + at), says, sends, chop, broken(b"")));
    }
    let again = [frame(CONTINUATION, b"x"), first.clone(), last.clone()];
    let again_last = [frame(FIN | CONTINUATION, b"x"), first.clone(), last.clone()];
    all.push(case(
        "5.15",
        "a middle fragment behind a whole message",
        vec![first.clone(), last.clone(), frame(CONTINUATION, b"x"), message()],
        Chop::Whole,
        broken(MESSAGE),
    ));
    all.push(case(
        "5.16",
        "twice a middle fragment, then a message in two",
        [again.clone(), again].concat(),
        Chop::Whole,
        broken(b""),
    ));
    all.push(case(
        "5.17",
        "twice a last fragment, then a message in two",
        [again_last.clone(), again_last].concat(),
        Chop::Whole,
        broken(b""),
    ));
    all.push(case(
        "5.18",
        "a second first fragment",
        vec![first.clone(), frame(FIN | TEXT, b"sage")],
        Chop::Whole,
        broken(b"a mes"),
    ));
    for (number, chop) in [("5.19", Chop::Frames), ("5.20", Chop::Bytes(1))] {
        let sends = vec![
            frame(BINARY, b"a "),
            frame(CONTINUATION, b"me"),
            frame(FIN | PING, b"one"),
            frame(CONTINUATION, b"ss"),
            frame(CONTINUATION, b"ag"),
            frame(FIN | PING, b"two"),
            frame(FIN | CONTINUATION, b"e"),
        ];
        let says = "a message in five fragments, with pings behind the second and the fourth";
        all.push(case(number, says, sends, chop, Outcome::echo(MESSAGE).pongs(&[b"one", b"two"])));
    }
    all
}
