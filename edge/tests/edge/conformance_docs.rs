//! docs/conformance.md lists the cases of both tables: it is made from them, and compared with them.

use crate::h2_conformance;
use crate::ws_conformance::{self, Pongs};
use std::fmt::Write;
use std::path::Path;

/// The page with the text between the marks of this name replaced.
fn with(page: &str, name: &str, table: &str) -> String {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = page.split_once(&begin).unwrap_or_else(|| panic!("no mark {begin:?}"));
    let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no mark {end:?}"));
    format!("{before}{begin}{table}{end}{after}")
}

/// So that 5.10 comes behind 5.9.
fn in_order(number: &str) -> (Option<usize>, Vec<u32>) {
    let (family, rest) = number.split_once('/').unwrap_or(("", number));
    // The general part first, then HTTP/2, then header blocks.
    let family = ["generic", "http2", "hpack"].iter().position(|known| *known == family);
    (family, rest.split(['.', '/']).map(|part| part.parse().unwrap()).collect())
}

fn http2() -> String {
    let mut table = "| number | case | what has to happen | result |\n|---|---|---|---|\n".to_owned();
    let mut cases = h2_conformance::cases();
    cases.sort_by_key(|case| in_order(case.number));
    for case in cases {
        let result = h2_conformance::result(&case);
        writeln!(table, "| {} | {} | {} | {result} |", case.number, case.says, case.expects).unwrap();
    }
    table
}

fn websocket() -> String {
    let mut rows: Vec<(String, String, String)> = Vec::new();
    let mut cases = ws_conformance::cases();
    cases.sort_by_key(|case| in_order(&case.number));
    for case in cases {
        let expects = &case.expects;
        let mut happens = Vec::new();
        if !expects.read.is_empty() {
            happens.push(
                if expects.cut { "what came before is read" } else { "the payload comes back" }.to_owned(),
            );
        }
        match &expects.pongs {
            Pongs::All(all) if all.len() == 1 => happens.push("a pong".to_owned()),
            Pongs::All(all) if all.len() > 1 => happens.push(format!("{} pongs", all.len())),
            Pongs::Newest(_) => happens.push("a pong for the last, maybe for others".to_owned()),
            Pongs::All(_) => {}
        }
        happens.push(match expects.close {
            Some(code) => format!("Close {code}"),
            None => "Close without a code".to_owned(),
        });
        let result = match &expects.pongs {
            _ if case.number.starts_with("1.1.") || case.number.starts_with("6.") => {
                "differs: a tunnel carries no text"
            }
            Pongs::Newest(_) => "differs: older pings need no answer (RFC 6455, 5.5.3)",
            Pongs::All(_) => "passes",
        };
        let what = format!("{} | {} | {result}", case.says, happens.join(", "));
        match rows.last_mut() {
            Some((_, last, said)) if *said == what => *last = case.number,
            _ => rows.push((case.number.clone(), case.number, what)),
        }
    }
    let mut table = "| number | case | what happens | result |\n|---|---|---|---|\n".to_owned();
    for (first, last, what) in rows {
        let numbers = if first == last { first } else { format!("{first} to {last}") };
        writeln!(table, "| {numbers} | {what} |").unwrap();
    }
    table
}

/// `POSTERN_DOCS=write` writes it.
#[test]
fn the_page_lists_what_the_tables_hold() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/conformance.md");
    let page = std::fs::read_to_string(&file).unwrap();
    let fresh = with(&with(&page, "http2", &http2()), "websocket", &websocket());
    if std::env::var_os("POSTERN_DOCS").is_some_and(|wish| wish == "write") {
        std::fs::write(&file, fresh).unwrap();
    } else {
        assert!(
            page == fresh,
            "run POSTERN_DOCS=write cargo test -p postern-edge --test edge the_page_lists"
        );
    }
}
