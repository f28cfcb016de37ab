//! Text, sections 1.1 and 6: refused with Close 1003 when its first frame's header is read, whatever it says.

use super::{CONTINUATION, Case, Chop, FIN, Outcome, PING, TEXT, frame};

/// Section, cases in it, and bytes of the kind that it is about.
const SECTIONS: [(&str, usize, &[u8]); 23] = [
    ("6.1", 3, b""),
    ("6.2", 4, "H\u{e9}llo-\u{b5}@\u{df}".as_bytes()),
    ("6.3", 2, b"\xce\xba\xed\xa0\x80edited"),
    ("6.4", 4, b"\xce\xba\xe1\xbd\xb9\xf4\x90\x80\x80"),
    ("6.5", 5, "\u{3ba}\u{1f79}\u{3c3}".as_bytes()),
    ("6.6", 11, "\u{3ba}\u{1f79}\u{3c3}\u{3bc}\u{3b5}".as_bytes()),
    ("6.7", 4, "\0\u{80}\u{800}\u{10000}".as_bytes()),
    ("6.8", 2, b"\xf8\x88\x80\x80\x80"),
    ("6.9", 4, "\u{7f}\u{7ff}\u{ffff}\u{10ffff}".as_bytes()),
    ("6.10", 3, b"\xf7\xbf\xbf\xbf"),
    ("6.11", 5, "\u{d7ff}\u{e000}\u{fffd}\u{10ffff}".as_bytes()),
    ("6.12", 8, b"\x80\xbf\x80\xbf"),
    ("6.13", 5, b"\xc0 \xc1 \xdf "),
    ("6.14", 10, b"\xc0"),
    ("6.15", 1, b"\xc0\xe0\x80\xf0\x80\x80"),
    ("6.16", 3, b"\xfe\xff"),
    ("6.17", 5, b"\xc0\xaf\xe0\x80\xaf"),
    ("6.18", 5, b"\xc1\xbf\xe0\x9f\xbf"),
    ("6.19", 5, b"\xc0\x80\xe0\x80\x80"),
    ("6.20", 7, b"\xed\xa0\x80\xed\xbf\xbf"),
    ("6.21", 8, b"\xed\xa0\x80\xed\xb0\x80"),
    ("6.22", 34, "\u{fffe}\u{1ffff}\u{10fffe}".as_bytes()),
    ("6.23", 7, "\u{fff9}\u{fffd}".as_bytes()),
];

pub(super) fn cases() -> Vec<Case> {
    let refused = || Outcome::echo(b"").closed(1003);
    let mut all = Vec::new();
    for (number, length) in [0, 125, 126, 127, 128, 65_535, 65_536, 65_536].into_iter().enumerate() {
        all.push(Case {
            number: format!("1.1.{}", number + 1),
            says: "a text message is refused, short or long",
            sends: vec![frame(FIN | TEXT, &vec![b'*'; length])],
            chop: if number == 7 { Chop::Bytes(997) } else { Chop::Whole },
            expects: refused(),
        });
    }
    for (section, count, bytes) in SECTIONS {
        for number in 1..=count {
            // In turns: whole, in two fragments with a ping behind them, byte by byte.
            let (first, rest) = bytes.split_at(bytes.len() / 2);
            let sends = match number % 3 {
                1 => vec![frame(FIN | TEXT, bytes)],
                _ => {
                    vec![frame(TEXT, first), frame(FIN | CONTINUATION, rest), frame(FIN | PING, b"")]
                }
            };
            all.push(Case {
                number: format!("{section}.{number}"),
                says: "a text message is refused, sound UTF-8 or not",
                sends,
                chop: if number % 3 == 0 { Chop::Bytes(1) } else { Chop::Whole },
                expects: refused(),
            });
        }
    }
    all
}
