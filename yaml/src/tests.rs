//! What trees look like, and what hostile documents cost: nothing to speak of.

use super::hostile::hostile;
use super::*;
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use std::time::{Duration, Instant};

fn tree(text: &str) -> Result<Rc<Node>, String> {
    let mut problems = Problems::default();
    match parse(text, &mut problems) {
        Some(node) if problems.is_empty() => Ok(node),
        _ => Err(problems.to_string()),
    }
}

/// A tree as a short text.
fn show(node: &Node) -> String {
    match &node.value {
        Value::List(items) => {
            format!("[{}]", items.iter().map(|item| show(item)).collect::<Vec<_>>().join(" "))
        }
        Value::Mapping(entries) => {
            let entries = entries.iter().map(|entry| format!("{}={}", entry.key, show(&entry.value)));
            format!("{{{}}}", entries.collect::<Vec<_>>().join(" "))
        }
        Value::Null => "-".to_owned(),
        _ => node.shown(),
    }
}

#[test]
fn plain_scalars_mean_what_the_core_schema_says() {
    for (text, wanted) in [
        ("", "-"),
        ("~", "-"),
        ("Null", "-"),
        ("true", "true"),
        ("yes", "\"yes\""),
        ("on", "\"on\""),
        ("'true'", "\"true\""),
        ("12", "12"),
        ("-1.5e3", "-1.5e3"),
        ("0x1F", "0x1F"),
        ("0o17", "0o17"),
        (".inf", ".inf"),
        ("1.2.3", "\"1.2.3\""),
        ("1s", "\"1s\""),
        ("e3", "\"e3\""),
        (".", "\".\""),
        ("!!str 12", "\"12\""),
        ("! 12", "\"12\""),
        ("|\n  a\n  b\n", "\"a\\nb\\n\""),
        ("\u{feff}a: 1", "{a=1}"),
    ] {
        assert_eq!(tree(text).map(|node| show(&node)), Ok(wanted.to_owned()), "{text:?}");
    }
}

#[test]
fn aliases_and_merges_are_followed() {
    for (text, wanted) in [
        ("a: &x [1, 2]\nb: *x", "{a=[1 2] b=[1 2]}"),
        ("d: &d {p: 1, q: 2}\ne: {<<: *d, q: 3}", "{d={p=1 q=2} e={q=3 p=1}}"),
        ("d: &d {p: 1}\nf: &f {p: 2, r: 3}\ne: {<<: [*d, *f]}", "{d={p=1} f={p=2 r=3} e={p=1 r=3}}"),
        ("'<<': 1", "{<<=1}"),
        ("&k key: *k", "{key=\"key\"}"),
    ] {
        assert_eq!(tree(text).map(|node| show(&node)), Ok(wanted.to_owned()), "{text:?}");
    }
}

#[test]
fn a_dialect_says_what_plain_scalars_mean_and_plain_keys_too() {
    let plain = |text: &str| match text {
        "on" => Value::Bool(true),
        "~" => Value::Null,
        "0x10" => Value::Number("16".to_owned()),
        _ => Value::Text(text.to_owned()),
    };
    let dialect = Dialect { plain, plain_keys: true, ..Dialect::CORE };
    for (text, wanted) in [
        ("[on, 'on', off, 0x10]", Ok("[true \"on\" \"off\" 16]")),
        ("on: 1\n'on': 2\n0x10: 3\noff: 4", Ok("{true=\"1\" on=\"2\" 16=\"3\" off=\"4\"}")),
        ("a: &a {b: on}\nc: {<<: *a}", Ok("{a={b=true} c={b=true}}")),
        (
            "on: 1\n\"true\": 2",
            Err("line 2 column 1: true: written twice, first in line 1; every key once is wanted"),
        ),
        ("~: 1", Err("line 1 column 1: nothing as a key; a word is wanted")),
    ] {
        let mut problems = Problems::default();
        let node = parse_as(dialect, text, 0, &mut problems).unwrap();
        let shown = if problems.is_empty() { Ok(show(&node)) } else { Err(problems.to_string()) };
        assert_eq!(shown, wanted.map(str::to_owned).map_err(str::to_owned), "{text:?}");
    }
}

#[test]
fn aliases_nest_no_deeper_than_what_is_written_out() {
    let chain = |links: usize| {
        let links = (1..links).map(|at| format!("- &a{at} [*a{}]\n", at - 1));
        format!("- &a0 []\n{}", links.collect::<String>())
    };
    assert!(tree(&chain(49)).is_ok());
    let wanted = "line 50 column 9: too deeply nested with all aliases written out; fewer aliases within anchors are wanted";
    assert_eq!(tree(&chain(50)).map(|_| ()), Err(wanted.to_owned()));
}

#[test]
fn what_a_tree_cannot_hold_is_reported_where_it_stands() {
    for (text, wanted) in [
        ("a: 1\nb: 2\na: 3", "line 3 column 1: a: written twice, first in line 1; every key once is wanted"),
        ("? [x]\n: 1", "line 1 column 3: a list as a key; a word is wanted"),
        ("a: !secret x", "line 1 column 12: the tag !secret; no tag is wanted"),
        ("a: 1\n---\nb: 2", "line 2 column 1: a second document begins here; one is wanted"),
        ("<<: 5", "line 1 column 5: <<: 5; an alias of a mapping or a list of such aliases is wanted"),
        ("a: &a [*a]", "line 1 column 8: an alias of what contains it; an anchor above is wanted"),
    ] {
        assert_eq!(tree(text).map(|node| show(&node)), Err(wanted.to_owned()), "{text:?}");
    }
    for (text, wanted) in [
        ("a: [1, 2\nb: 3\n", "line 2 "),
        ("a: 'x", "line 1 "),
        ("a: *b", "line 1 column 4: "),
        ("\u{1}", "line 1 column 1: "),
    ] {
        let error = tree(text).map(|node| show(&node)).unwrap_err();
        assert!(error.starts_with(wanted) && error.contains("not YAML: "), "{text:?}: {error}");
    }
}

#[test]
fn only_so_many_problems_are_kept_and_shown() {
    let text: String = (0..2000).map(|line| format!("? [{line}]\n: 1\n")).collect();
    let mut problems = Problems::default();
    parse(&text, &mut problems);
    let shown = problems.to_string();
    assert!(shown.len() < MAX_SHOWN_TEXT + 200 && shown.ends_with("\nand 1980 more problems"), "{shown}");
    let (list, more) = problems.sorted();
    assert_eq!((list.len(), more), (MAX_PROBLEMS, 2000 - MAX_PROBLEMS));
}

#[test]
fn hostile_documents_cost_little_and_break_nothing() {
    for (name, text) in hostile() {
        let begin = Instant::now();
        let _ = tree(&text);
        let took = Instant::now() - begin;
        assert!(took < Duration::from_secs(30), "{name} took {took:?}");
    }
    for name in ["an alias bomb", "a merge bomb", "wide merges", "a long text often"] {
        let text = hostile().into_iter().find(|(known, _)| *known == name).unwrap().1;
        let error = tree(&text).map(|_| ()).unwrap_err();
        assert!(error.contains("too much content"), "{name}: {error}");
    }
}

#[test]
fn random_documents_break_nothing() {
    const PIECES: &[&str] = &[
        "a", "b", ": ", ":", "- ", "-", "? ", "[", "]", "{", "}", ",", "\n", "\n  ", "\n    ", " ", "\t",
        "&x ", "*x", "!t ", "!!str ", "<<: ", "|\n", ">-\n", "'", "\"", "\\", "#", " # c", "---\n", "...\n",
        "%", "~", "1", "0x", "1e9", "true", "\u{feff}", "\u{85}", "\u{2028}", "é", "\r\n", "\r", "\0",
    ];
    let seed = rand::random();
    println!("seed {seed}");
    let mut random = StdRng::seed_from_u64(seed);
    let begin = Instant::now();
    for _ in 0..3_000 {
        let length = random.random_range(0..60);
        let text: String = if random.random_bool(0.8) {
            (0..length).filter_map(|_| PIECES.choose(&mut random)).copied().collect()
        } else {
            let bytes: Vec<u8> = (0..length * 4).map(|_| random.random()).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let _ = tree(&text);
        assert!(begin.elapsed() < Duration::from_secs(60), "seed {seed}: {text:?}");
    }
}
