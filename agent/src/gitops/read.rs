//! A commit's files -> its objects, and everything that is wrong with the others, each with its place. Before it:
//! `collect.rs`, whose files are bytes of whoever writes to the repository. After it: `order.rs` and the engine. It asks
//! no cluster, never panics, and no message of it tells a value, which may be a Secret's.
//!
//! Files are YAML or JSON, as kubectl takes them: several documents in a file, lists of objects, YAML 1.1's scalars
//! (`scalars.rs`). In two ways it is stricter, since what they hide is always a mistake: a key is written once in a mapping,
//! and an object once in a commit. What is written in a mapping itself goes before what is merged into it (`<<`), as YAML
//! has it.

mod identity;
mod json;
mod scalars;
mod split;
#[cfg(test)]
mod tests;
mod values;

use crate::gitops::{
    File,
    object::{Manifest, ObjectId, Problem, digest},
};
use identity::{Mistake, Place, identify};
use json::Wrong;
use postern_yaml::{Dialect, Node, Position, Problems, parse_as};
use serde_json::{Map, Value};
use split::Part;
use std::{collections::HashMap, ops::ControlFlow, sync::Arc};
use values::Unfit;

/// The most objects of a commit, and the most documents in its files.
pub const OBJECTS: usize = 10_000;
/// The most problems of a commit; what is not read after them may have more.
pub const PROBLEMS: usize = 1_000;
/// The most problems of one document that are told.
const DOCUMENT_PROBLEMS: usize = 20;
/// What kubectl reads, and what a document may cost: the deepest schemas in definitions of resources with as much on
/// top, and half a million values and keys, whose tree takes some
/// 100 MB at most.
const DIALECT: Dialect = Dialect { plain: scalars::plain, plain_keys: true, nesting: 100, weight: 500_000 };
/// What the parser says of a document that would cost more. The same as JSON would cost no less.
const TOO_LARGE: &[&str] = &["too much content ", "too deeply nested ", "not YAML: recursion limit "];

/// What the files of a commit say.
#[derive(Debug, Default)]
pub struct Read {
    /// In the order of the files, no two with the same id.
    pub objects: Vec<Manifest>,
    /// What is not among them, and why. If there are any, the commit has objects that nobody knows of.
    pub problems: Vec<Problem>,
}

/// Reads a commit's files. This takes up to seconds for the largest ones and never waits, so it has no place on a thread
/// that others wait for.
pub fn read(files: &[File]) -> Read {
    let mut reader = Reader::default();
    // Where it was stopped, the last problem says so.
    let _ = files.iter().try_for_each(|file| reader.file(file));
    reader.read
}

#[derive(Default)]
struct Reader {
    read: Read,
    /// Where an object is in `read.objects`.
    known: HashMap<ObjectId, usize>,
    documents: usize,
    spent: usize,
}

/// Breaks once nothing more should be read.
type Flow = ControlFlow<()>;

impl Reader {
    fn file(&mut self, file: &File) -> Flow {
        // Control characters are legal in paths, but not where messages are read.
        let name: Arc<str> = file.source.replace(char::is_control, "\u{fffd}").into();
        if let [0xff, 0xfe, ..] | [0xfe, 0xff, ..] = &file.data[..] {
            return self.problem(
                &name,
                Position::default(),
                "this is UTF-16 text; UTF-8 is wanted".to_owned(),
            );
        }
        split::documents(&file.data).try_for_each(|part| self.part(&name, &part))
    }

    fn part(&mut self, file: &Arc<str>, part: &Part<'_>) -> Flow {
        let begin = Position { line: part.lines_before + 1, column: 1 };
        self.documents += 1;
        if self.documents > OBJECTS {
            return self.stop(
                file,
                begin,
                &format!("there are more than {OBJECTS} documents in the manifests"),
            );
        }
        let text = match std::str::from_utf8(part.text) {
            Ok(text) => split::text(text),
            Err(error) => {
                let valid = String::from_utf8_lossy(&part.text[..error.valid_up_to()]);
                let at = json::Walker::new(&valid, part.lines_before).at(valid.len());
                return self.problem(
                    file,
                    at,
                    "this is not UTF-8 text; a file in UTF-8 is wanted".to_owned(),
                );
            }
        };
        let mut problems = Problems::default();
        let tree = parse_as(DIALECT, &text, part.lines_before, &mut problems);
        if let Some(tree) = &tree
            && problems.is_empty()
        {
            return self.tree(file, tree);
        }
        let total = problems.count();
        let (problems, _) = problems.sorted();
        let too_large = |found: &str| TOO_LARGE.iter().any(|known| found.starts_with(known));
        let may_be_json = tree.is_none() && !problems.iter().any(|problem| too_large(&problem.found));
        let (named, nesting) = (file.ends_with(".json"), DIALECT.nesting);
        if may_be_json
            && let Some(values) = json::read(&text, part.lines_before, named, nesting, &mut self.spent)
        {
            for value in values {
                match value {
                    Ok((at, value)) => self.object(file, Place { node: None, at }, value)?,
                    Err((at, Wrong::Text(text))) => self.problem(file, at, text)?,
                    Err((at, Wrong::TooMuch)) => self.stop_at_weight(file, at)?,
                }
            }
            return Flow::Continue(());
        }
        let hint = if text.contains("{{") { " (templates are not rendered here)" } else { "" };
        for (at, problem) in problems.iter().take(DOCUMENT_PROBLEMS).enumerate() {
            let more = match total - at - 1 {
                more @ 1.. if at + 1 == DOCUMENT_PROBLEMS => {
                    format!(", and {more} more problems in this document")
                }
                _ => String::new(),
            };
            self.problem(file, problem.at, format!("{}{hint}{more}", words(problem)))?;
        }
        Flow::Continue(())
    }

    fn tree(&mut self, file: &Arc<str>, tree: &Node) -> Flow {
        match values::of_tree(tree, &mut self.spent) {
            Ok(Value::Null) => Flow::Continue(()),
            Ok(value) => self.object(file, Place { node: Some(tree), at: tree.at }, value),
            Err(Unfit::TooMuch) => self.stop_at_weight(file, tree.at),
            Err(Unfit::Number(at)) => self.problem(
                file,
                at,
                "this is no number that JSON has; a finite number, or text in quotes, is wanted".to_owned(),
            ),
        }
    }

    /// An object, or a list of them, or lists within a list.
    fn object(&mut self, file: &Arc<str>, place: Place<'_>, value: Value) -> Flow {
        let mut object = match value {
            Value::Object(object) => object,
            other => {
                let found = identity::kind_of(&other);
                let text = format!("{found}; an object with apiVersion, kind and metadata is wanted");
                return self.problem(file, place.at, text);
            }
        };
        if !is_list(&object) {
            return self.add(file, &place, object);
        }
        let items = match object.remove("items") {
            Some(Value::Array(items)) => items,
            None | Some(Value::Null) => Vec::new(),
            Some(other) => {
                let text = format!("items is {}; a list of objects is wanted", identity::kind_of(&other));
                return self.problem(file, place.find(&["items".to_owned()]), text);
            }
        };
        let places = place.items("items");
        for (at, mut item) in items.into_iter().enumerate() {
            if let Value::Object(item) = &mut item {
                inherit(item, &object);
            }
            self.object(file, place.item(places.get(at)), item)?;
        }
        Flow::Continue(())
    }

    fn add(&mut self, file: &Arc<str>, place: &Place<'_>, object: Map<String, Value>) -> Flow {
        let (id, version) = match identify(&object) {
            Ok(identity) => identity,
            Err(mistakes) => {
                return mistakes
                    .into_iter()
                    .try_for_each(|Mistake { path, text }| self.problem(file, place.find(&path), text));
            }
        };
        let line = place.at.line;
        if let Some(&first) = self.known.get(&id) {
            let text = twice(&id, &self.read.objects[first]);
            return self.problem(file, place.at, text);
        }
        if self.read.objects.len() == OBJECTS {
            let why = format!("there are more than {OBJECTS} objects in the manifests");
            return self.stop(file, place.at, &why);
        }
        self.known.insert(id.clone(), self.read.objects.len());
        let value = Value::Object(object);
        let digest = digest(&value);
        self.read.objects.push(Manifest {
            id,
            version,
            value: value.into(),
            file: Arc::clone(file),
            line,
            digest,
        });
        Flow::Continue(())
    }

    fn problem(&mut self, file: &Arc<str>, at: Position, text: String) -> Flow {
        if self.read.problems.len() + 1 >= PROBLEMS {
            let text = format!("{text} (this is problem {PROBLEMS}, and nothing after it was read)");
            self.push(file, at, text);
            return Flow::Break(());
        }
        self.push(file, at, text);
        Flow::Continue(())
    }

    fn stop(&mut self, file: &Arc<str>, at: Position, why: &str) -> Flow {
        self.push(
            file,
            at,
            format!("{why}; nothing after this was read; split the project, or narrow its paths"),
        );
        Flow::Break(())
    }

    fn stop_at_weight(&mut self, file: &Arc<str>, at: Position) -> Flow {
        self.stop(file, at, "there is too much content in the manifests with all aliases written out")
    }

    fn push(&mut self, file: &Arc<str>, at: Position, text: String) {
        let Position { line, column } = at;
        self.read.problems.push(Problem { file: Arc::clone(file), line, column, text });
    }
}

/// What is said about an object that is in a commit already.
pub(super) fn twice(id: &ObjectId, first: &Manifest) -> String {
    format!("{id} is written twice, first in {}:{}; that one is used", first.file, first.line)
}

/// `List` itself, and what a list of the API looks like: `DeploymentList` with items, and without a name.
fn is_list(object: &Map<String, Value>) -> bool {
    let Some(kind) = object.get("kind").and_then(Value::as_str) else { return false };
    let named = object.get("metadata").is_some_and(|metadata| metadata.get("name").is_some());
    !named && (kind == "List" || kind.ends_with("List") && object.contains_key("items"))
}

/// Items of a `DeploymentList` need not say that they are Deployments.
fn inherit(item: &mut Map<String, Value>, list: &Map<String, Value>) {
    let text = |key: &str| list.get(key).and_then(Value::as_str);
    let (Some(version), Some(kind)) =
        (text("apiVersion"), text("kind").and_then(|kind| kind.strip_suffix("List")))
    else {
        return;
    };
    if !kind.is_empty() && !item.contains_key("kind") && !item.contains_key("apiVersion") {
        item.insert("apiVersion".to_owned(), version.into());
        item.insert("kind".to_owned(), kind.into());
    }
}

/// A parser's problem without any word of the document: where a Secret is broken, these are likely parts of its values.
fn words(problem: &postern_yaml::Problem) -> String {
    const QUOTE_NOTHING: &[&str] = &[
        "not YAML: ",
        "written twice, ",
        "too much content ",
        "too deeply nested ",
        "an alias of what contains it",
        "a list as a key",
        "a mapping as a key",
        "nothing as a key",
    ];
    let found = match &problem.found {
        found if QUOTE_NOTHING.iter().any(|known| found.starts_with(known)) => found,
        found if found.starts_with("the tag ") => "a tag",
        _ if problem.path == "<<" => "this cannot be merged",
        _ => "this is no part of an object",
    };
    format!("{found}; {}", problem.wanted)
}
