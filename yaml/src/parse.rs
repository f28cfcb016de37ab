//! Text -> tree. It collects what a tree cannot hold (keys written twice, keys that are no words, unknown tags) and
//! stops at what is no YAML. Its costs are bounded by the text's length and [`MAX_WEIGHT`], whoever wrote the text.

use super::{Entry, Node, Position, Problems, Value, cut};
use granit_parser::{Event, Parser, ScalarStyle, Tag};
use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

/// Collections within each other, of block and of flow style; no file of ours has more than ten.
const MAX_NESTING: usize = 50;
/// What a document may weigh with all aliases written out: values, and text in units of [`TEXT_UNIT`]. 128 KiB cannot
/// weigh as much without aliases.
const MAX_WEIGHT: usize = 200_000;
/// In bytes.
const TEXT_UNIT: usize = 16;

/// How a document is read and what it may cost.
#[derive(Clone, Copy, Debug)]
pub struct Dialect {
    /// What a plain scalar means.
    pub plain: fn(&str) -> Value,
    /// Whether a plain key is what such a value is, written as `plain` writes it: `on` is the key `true` then.
    pub plain_keys: bool,
    /// Collections within each other, with all aliases written out.
    pub nesting: usize,
    /// Values and text in units of 16 bytes, with all aliases written out.
    pub weight: usize,
}

impl Dialect {
    /// YAML 1.2's core schema, in files of ours.
    pub const CORE: Self = Self { plain: core, plain_keys: false, nesting: MAX_NESTING, weight: MAX_WEIGHT };
}

/// Mappings with so many keys remember them in a map.
const MANY_KEYS: usize = 16;

/// The only document of the text. `None`: it is no YAML, and `problems` says why.
pub fn parse(text: &str, problems: &mut Problems) -> Option<Rc<Node>> {
    parse_part(text, 0, problems)
}

/// The only document of a part of a file, with so many lines before it.
pub fn parse_part(text: &str, lines_before: usize, problems: &mut Problems) -> Option<Rc<Node>> {
    parse_as(Dialect::CORE, text, lines_before, problems)
}

/// [`parse_part`] of a document in this dialect.
pub fn parse_as(
    dialect: Dialect,
    text: &str,
    lines_before: usize,
    problems: &mut Problems,
) -> Option<Rc<Node>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let options = granit_parser::options! {
        flow_nesting_limit: dialect.nesting,
        block_nesting_limit: dialect.nesting,
    };
    let position = |marker: &granit_parser::Marker| Position {
        line: lines_before + marker.line().max(1),
        column: marker.col() + 1,
    };
    let (open, anchors) = (Vec::new(), HashMap::new());
    let mut builder = Builder { dialect, problems, open, anchors, spent: 0, root: None, documents: 0 };
    for event in Parser::new_from_str_with_options(text, options) {
        match event {
            Ok((event, span)) => builder.event(event, position(&span.start))?,
            Err(error) => {
                let at = position(error.marker());
                let found = format!("not YAML: {}", error.kind());
                builder.problems.add(at, "", found, "a mapping of keys to values is wanted");
                return None;
            }
        }
    }
    Some(builder.root.unwrap_or_else(|| {
        Rc::new(Node {
            at: Position { line: lines_before + 1, column: 1 },
            value: Value::Null,
            weight: 1,
            depth: 0,
        })
    }))
}

struct Builder<'a> {
    dialect: Dialect,
    problems: &'a mut Problems,
    open: Vec<Open>,
    anchors: HashMap<usize, Rc<Node>>,
    spent: usize,
    root: Option<Rc<Node>>,
    documents: usize,
}

/// A collection that did not end yet.
struct Open {
    at: Position,
    anchor: usize,
    weight: usize,
    depth: usize,
    kind: Kind,
}

enum Kind {
    List(Vec<Rc<Node>>),
    Mapping { entries: Vec<Entry>, seen: HashMap<Rc<str>, Position>, merged: Vec<Rc<Node>>, key: Key },
}

/// What the next value of a mapping belongs to.
enum Key {
    Wanted,
    Word(Rc<str>, Position),
    Merge,
    /// Reported already; its value goes nowhere.
    Unusable,
}

impl Builder<'_> {
    fn event(&mut self, event: Event<'_>, at: Position) -> Option<()> {
        match event {
            Event::DocumentStart(..) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.problems.add(at, "", "a second document begins here", "one is wanted");
                    return None;
                }
            }
            Event::Scalar(text, style, anchor, tag) => {
                let plain = matches!(style, ScalarStyle::Plain);
                let value = self.scalar(&text, plain, tag.as_deref(), at);
                let merge = plain && tag.is_none() && text == "<<";
                let weight = 1 + text.len() / TEXT_UNIT;
                self.spend(weight, at)?;
                let node = Rc::new(Node { at, value, weight, depth: 0 });
                let word = match &node.value {
                    _ if merge || !(plain && self.dialect.plain_keys) => Some(&*text),
                    Value::Bool(value) => Some(if *value { "true" } else { "false" }),
                    Value::Number(text) | Value::Text(text) => Some(&**text),
                    _ => None,
                };
                self.place(Rc::clone(&node), anchor, word.map(|word| (word, merge)));
            }
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(node) => {
                    self.spend(node.weight, at)?;
                    // Whoever walks through a tree, or drops it, does so by recursion.
                    if self.open.len() + node.depth > self.dialect.nesting {
                        let found = "too deeply nested with all aliases written out";
                        self.problems.add(at, "", found, "fewer aliases within anchors are wanted");
                        return None;
                    }
                    let word = match &node.value {
                        Value::Text(text) | Value::Number(text) => Some(text.clone()),
                        _ => None,
                    };
                    self.place(node, 0, word.as_deref().map(|word| (word, false)));
                }
                None => {
                    self.problems.add(at, "", "an alias of what contains it", "an anchor above is wanted");
                    return None;
                }
            },
            Event::SequenceStart(_, anchor, tag) => {
                self.tagged(tag.as_deref(), "seq", at);
                self.begin(at, anchor, Kind::List(Vec::new()))?;
            }
            Event::MappingStart(_, anchor, tag) => {
                self.tagged(tag.as_deref(), "map", at);
                let kind = Kind::Mapping {
                    entries: Vec::new(),
                    seen: HashMap::new(),
                    merged: Vec::new(),
                    key: Key::Wanted,
                };
                self.begin(at, anchor, kind)?;
            }
            Event::SequenceEnd | Event::MappingEnd => {
                let Open { at, anchor, weight, depth, kind } = self.open.pop()?;
                let value = match kind {
                    Kind::List(items) => Value::List(items),
                    Kind::Mapping { entries, merged, .. } => Value::Mapping(merge(entries, &merged)),
                };
                self.place(Rc::new(Node { at, value, weight, depth: depth + 1 }), anchor, None);
            }
            _ => {}
        }
        Some(())
    }

    fn spend(&mut self, weight: usize, at: Position) -> Option<()> {
        self.spent = self.spent.saturating_add(weight);
        if self.spent > self.dialect.weight {
            let found = "too much content with all aliases written out";
            self.problems.add(
                at,
                "",
                found,
                "a smaller document or fewer aliases of large anchors are wanted",
            );
            return None;
        }
        Some(())
    }

    fn begin(&mut self, at: Position, anchor: usize, kind: Kind) -> Option<()> {
        self.open.push(Open { at, anchor, weight: 1, depth: 0, kind });
        self.spend(1, at)
    }

    /// Puts a finished value where it belongs; `word` is what it says as a key, and whether that means a merge.
    fn place(&mut self, node: Rc<Node>, anchor: usize, word: Option<(&str, bool)>) {
        if anchor != 0 {
            self.anchors.insert(anchor, Rc::clone(&node));
        }
        let Some(open) = self.open.last_mut() else {
            self.root = Some(node);
            return;
        };
        open.weight = open.weight.saturating_add(node.weight);
        open.depth = open.depth.max(node.depth);
        match &mut open.kind {
            Kind::List(items) => items.push(node),
            Kind::Mapping { entries, seen, merged, key } => match std::mem::replace(key, Key::Wanted) {
                Key::Word(word, at) => entries.push(Entry { key: word, at, value: node }),
                Key::Unusable => {}
                Key::Merge => match &node.value {
                    Value::Mapping(_) => merged.push(node),
                    Value::List(items)
                        if items.iter().all(|item| matches!(item.value, Value::Mapping(_))) =>
                    {
                        merged.extend(items.iter().cloned());
                    }
                    _ => {
                        let wanted = "an alias of a mapping or a list of such aliases is wanted";
                        self.problems.add(node.at, "<<", node.shown(), wanted);
                    }
                },
                Key::Wanted => {
                    *key = match word {
                        None => {
                            let found = format!("{} as a key", node.shown());
                            self.problems.add(node.at, "", found, "a word is wanted");
                            Key::Unusable
                        }
                        Some((_, true)) => Key::Merge,
                        Some((word, false)) => {
                            let word: Rc<str> = word.into();
                            // Few keys are compared sooner than hashed.
                            let first = if entries.len() < MANY_KEYS {
                                entries.iter().find(|entry| entry.key == word).map(|entry| entry.at)
                            } else {
                                if seen.is_empty() {
                                    seen.extend(
                                        entries.iter().map(|entry| (Rc::clone(&entry.key), entry.at)),
                                    );
                                }
                                seen.get(&word).copied()
                            };
                            match first {
                                Some(first) => {
                                    let found = format!("written twice, first in line {}", first.line);
                                    self.problems.add(node.at, cut(&word), found, "every key once is wanted");
                                    Key::Unusable
                                }
                                None => {
                                    if entries.len() >= MANY_KEYS {
                                        seen.insert(Rc::clone(&word), node.at);
                                    }
                                    Key::Word(word, node.at)
                                }
                            }
                        }
                    };
                }
            },
        }
    }

    fn scalar(&mut self, text: &str, plain: bool, tag: Option<&Tag>, at: Position) -> Value {
        match tag.map(|tag| (tag.core_suffix(), tag.suffix())) {
            None if plain => (self.dialect.plain)(text),
            // `!` alone: text, whatever it looks like.
            None | Some((Some("str"), _)) | Some((None, "!" | "")) => Value::Text(text.to_owned()),
            Some((Some("null" | "bool" | "int" | "float"), _)) => (self.dialect.plain)(text),
            Some(_) => {
                self.tagged(tag, "str", at);
                Value::Text(text.to_owned())
            }
        }
    }

    fn tagged(&mut self, tag: Option<&Tag>, allowed: &str, at: Position) {
        let Some(tag) = tag else { return };
        if tag.core_suffix() != Some(allowed) && !tag.suffix().is_empty() {
            self.problems.add(at, "", format!("the tag {}", cut(&tag.to_string())), "no tag is wanted");
        }
    }
}

/// What is written in the mapping itself goes first, then the merged ones in their order.
fn merge(mut entries: Vec<Entry>, merged: &[Rc<Node>]) -> Vec<Entry> {
    if merged.is_empty() {
        return entries;
    }
    let mut seen: HashSet<Rc<str>> = entries.iter().map(|entry| Rc::clone(&entry.key)).collect();
    for node in merged {
        let Value::Mapping(more) = &node.value else { continue };
        entries.extend(more.iter().filter(|entry| seen.insert(Rc::clone(&entry.key))).cloned());
    }
    entries
}

/// A plain scalar by YAML 1.2's core schema.
fn core(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ if is_number(text) => Value::Number(text.to_owned()),
        _ => Value::Text(text.to_owned()),
    }
}

fn is_number(text: &str) -> bool {
    let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|digit| digit.is_digit(radix));
    if let Some(octal) = text.strip_prefix("0o") {
        return digits(octal, 8);
    }
    if let Some(hex) = text.strip_prefix("0x") {
        return digits(hex, 16);
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let (mantissa, exponent) = unsigned.split_once(['e', 'E']).unwrap_or((unsigned, "0"));
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    all(whole)
        && all(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && digits(exponent.strip_prefix(['-', '+']).unwrap_or(exponent), 10)
}
