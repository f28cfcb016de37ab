//! The end: section 7. Codes that may be sent come back; those that may not are a broken rule.

use super::{BINARY, CLOSE, CONTINUATION, Case, Chop, FIN, Outcome, PING, close, frame};

const MESSAGE: &[u8] = b"a message";

fn case(number: &str, says: &'static str, sends: Vec<Vec<u8>>, expects: Outcome) -> Case {
    Case { number: number.to_owned(), says, sends, chop: Chop::Whole, expects }
}

pub(super) fn cases() -> Vec<Case> {
    let message = || frame(FIN | BINARY, MESSAGE);
    let quiet = || Outcome::echo(b"");
    let long = vec![b'*'; 256 * 1024];
    let mut all = vec![
        case(
            "7.1.1",
            "a message, then Close",
            vec![message(), close(1000, b"")],
            Outcome::echo(MESSAGE).cut(),
        ),
        case("7.1.2", "two Close: one comes back", vec![close(1000, b""), close(1000, b"")], quiet()),
        case(
            "7.1.3",
            "a ping behind Close is not answered",
            vec![close(1000, b""), frame(FIN | PING, b"late")],
            quiet(),
        ),
        case("7.1.4", "a message behind Close is not read", vec![close(1000, b""), message()], quiet()),
        case(
            "7.1.5",
            "Close between two fragments: what came before it is given",
            vec![frame(BINARY, b"first"), close(1000, b""), frame(FIN | CONTINUATION, b"last")],
            Outcome::echo(b"first").cut(),
        ),
        case(
            "7.1.6",
            "a long message, a short one, then Close, all at once",
            vec![frame(FIN | BINARY, &long), message(), close(1000, b""), frame(FIN | PING, b"")],
            Outcome::echo(&[&long, MESSAGE].concat()).cut(),
        ),
        case(
            "7.3.1",
            "Close without a code",
            vec![frame(FIN | CLOSE, b"")],
            Outcome { close: None, ..quiet() },
        ),
        case("7.3.2", "Close with half a code", vec![frame(FIN | CLOSE, &[3])], quiet().closed(1002)),
        case("7.3.3", "Close with a code", vec![close(1000, b"")], quiet()),
        case("7.3.4", "Close with a code and a reason", vec![close(1000, b"done")], quiet()),
        case("7.3.5", "Close with the longest reason", vec![close(1000, &[b'*'; 123])], quiet()),
        case("7.3.6", "Close with a reason too long", vec![close(1000, &[b'*'; 124])], quiet().closed(1002)),
        case(
            "7.5.1",
            "Close with a reason that is not UTF-8",
            vec![close(1000, b"\xce\xba\xed\xa0\x80")],
            quiet().closed(1002),
        ),
    ];
    let sendable = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    for (at, code) in sendable.into_iter().enumerate() {
        let says = "Close with a code that may be sent";
        all.push(case(&format!("7.7.{}", at + 1), says, vec![close(code, b"")], quiet().closed(code)));
    }
    for (at, code) in [0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999].into_iter().enumerate() {
        let says = "Close with a code that may not be sent";
        all.push(case(&format!("7.9.{}", at + 1), says, vec![close(code, b"")], quiet().closed(1002)));
    }
    for (at, code) in [5000, 65_535].into_iter().enumerate() {
        let says = "Close with a code beyond all ranges";
        all.push(case(&format!("7.13.{}", at + 1), says, vec![close(code, b"")], quiet().closed(1002)));
    }
    all
}
