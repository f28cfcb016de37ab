//! From as written to as meant: what goes with what in a document and between documents.
//!
//! From `load`, document by document; to `rules`, which finds what is most specific. It reports everything and goes on: a
//! document with a mistake in one field is still looked at whole, and what it says rightly can still tie with others.

mod fields;
mod nothing;

use crate::rules::{Header, MAX_CELLS, MAX_CELLS_IN_ALL, Mode, Selector};
use crate::written::{
    AccessSpec, ApiVersion, BackendSpec, Canary, ConnectionSpec, HEAD, LimitSpec, Match, Metadata,
    PollingSpec, TunnelSpec,
};
use crate::{Kind, PolicySet, Rule, Rules};
use postern_yaml::{Cursor, Entry, Given, Node, Place, Problems, Read, Value, WordsOf};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Documents on their way to a set.
#[derive(Debug, Default)]
pub(crate) struct Builder {
    set: PolicySet,
    /// Where each name stands first.
    names: HashMap<(Kind, String), (PathBuf, usize)>,
    /// What all selectors cost so far.
    cells: usize,
}

/// A kind's `spec`.
trait Spec: Read {
    /// What documents of this kind can ask for; empty: they are for everybody.
    const ASKS: &'static [&'static str];
    /// Whether they may only report.
    const REPORTS: bool = false;
    /// The keys that set something.
    const SETS: &'static str;

    /// `spec.match`, for documents of the first version.
    fn selector(&self) -> &Option<Given<Match>>;

    /// Puts what it sets in the rules.
    fn put(&self, set: &mut PolicySet, document: &mut Document<'_>);
}

/// One document, as far as its fields need to know.
struct Document<'a> {
    kind: Kind,
    name: &'a str,
    file: &'a Path,
    /// What the selector asks for; for everybody if it is empty.
    asks: Vec<&'static str>,
    canary: bool,
    /// Whether it only reports.
    reports: bool,
    /// `None`: there are mistakes in it, so nobody knows whom the document is for.
    header: Option<Arc<Header>>,
    cells: usize,
    cells_in_all: &'a mut usize,
    problems: &'a mut Problems,
    sets_something: bool,
}

/// What stands beside `spec`.
struct Head {
    mode: Option<Given<WordsOf<Mode>>>,
    canary: Option<Given<Canary>>,
    selector: Option<Given<Match>>,
    /// Whether all of it could be read.
    good: bool,
}

impl Builder {
    /// Takes one document in.
    pub(crate) fn read(&mut self, file: &Path, tree: &Node, problems: &mut Problems) {
        let mut cursor = Cursor::new(problems);
        let Some(entries) = cursor.entries(tree) else { return };
        cursor.only(entries, HEAD);
        for key in ["apiVersion", "kind", "metadata", "spec"] {
            cursor.needs(entries, tree.at, key);
        }
        let _: Option<Given<ApiVersion>> = cursor.field(entries, "apiVersion");
        let kind: Option<Given<WordsOf<Kind>>> = cursor.field(entries, "kind");
        let metadata: Option<Given<Metadata>> = cursor.field(entries, "metadata");
        needs_within(&mut cursor, entries, "metadata", "name");
        let name = metadata.and_then(|metadata| metadata.value.name);
        let before = cursor.reported();
        nothing::report(entries, problems);
        let mut cursor = Cursor::new(problems);
        let mode = cursor.field(entries, "mode");
        let canary = cursor.field(entries, "canary");
        let selector = cursor.field(entries, "match");
        let head = Head { mode, canary, selector, good: cursor.reported() == before };
        // Without a kind nobody can tell what its spec should be.
        let Some(WordsOf(kind)) = kind.map(|kind| kind.value) else { return };
        if let Some(Given { value, place }) = &name {
            self.name(kind, &value.0, file, place, problems);
        }
        let name = name.as_ref().map_or("", |name| &name.value.0);
        match kind {
            Kind::LimitPolicy => self.spec::<LimitSpec>(kind, name, file, entries, head, problems),
            Kind::PollingPolicy => self.spec::<PollingSpec>(kind, name, file, entries, head, problems),
            Kind::ConnectionPolicy => self.spec::<ConnectionSpec>(kind, name, file, entries, head, problems),
            Kind::AccessPolicy => self.spec::<AccessSpec>(kind, name, file, entries, head, problems),
            Kind::BackendPolicy => self.spec::<BackendSpec>(kind, name, file, entries, head, problems),
            Kind::TunnelPolicy => self.spec::<TunnelSpec>(kind, name, file, entries, head, problems),
        }
    }

    fn name(&mut self, kind: Kind, name: &str, file: &Path, place: &Place, problems: &mut Problems) {
        let here = (file.to_owned(), place.at.line);
        match self.names.entry((kind, name.to_owned())) {
            std::collections::hash_map::Entry::Vacant(free) => {
                free.insert(here);
            }
            std::collections::hash_map::Entry::Occupied(taken) => {
                let (file, line) = taken.get();
                let found = format!("{name:?} is the {kind:?} at {}:{line} already", file.display());
                problems.add(place.at, place.path.clone(), found, "another name is wanted");
            }
        }
    }

    fn spec<S: Spec>(
        &mut self,
        kind: Kind,
        name: &str,
        file: &Path,
        entries: &[Entry],
        head: Head,
        problems: &mut Problems,
    ) {
        let before = problems.count();
        let Some(spec) = Cursor::new(problems).field::<S>(entries, "spec") else { return };
        let good = problems.count() == before;
        let (asks, header) = header::<S>(kind, &head, spec.value.selector(), good, problems);
        let cells = header.as_ref().map_or(0, |header| header.selector.cells());
        let mut document = Document {
            kind,
            name,
            file,
            asks,
            canary: head.canary.is_some(),
            reports: head.mode.as_ref().is_some_and(|mode| mode.value.0 == Mode::Report),
            header: header.map(Arc::new),
            cells,
            cells_in_all: &mut self.cells,
            problems,
            sets_something: false,
        };
        spec.value.put(&mut self.set, &mut document);
        if !document.sets_something && good {
            let wanted = format!("at least one of {} is wanted", S::SETS);
            problems.add(spec.place.at, spec.place.path, "it sets nothing", wanted);
        }
    }

    /// The set of all documents; not to be used if there were problems.
    pub(crate) fn finish(self) -> PolicySet {
        fields::sealed(self.set)
    }
}

/// Reports a key that is missing in a mapping, if that is there.
fn needs_within(cursor: &mut Cursor<'_>, entries: &[Entry], section: &str, key: &str) {
    let Some(entry) = entries.iter().find(|entry| &*entry.key == section) else { return };
    if let Value::Mapping(entries) = &entry.value.value {
        cursor.within(section, |cursor| cursor.needs(entries, entry.at, key));
    }
}

/// Whom a document is for, and what that asks for; `None` with mistakes.
fn header<S: Spec>(
    kind: Kind,
    head: &Head,
    inner: &Option<Given<Match>>,
    inner_good: bool,
    problems: &mut Problems,
) -> (Vec<&'static str>, Option<Header>) {
    let before = problems.count();
    if let (Some(_), Some(inner)) = (&head.selector, inner) {
        let found = "there is a match beside spec too";
        problems.add(inner.place.at, inner.place.path.clone(), found, "one of the two is wanted");
    }
    let given = head.selector.as_ref().or(inner.as_ref());
    let mut asks = Vec::new();
    for (key, place) in given.iter().flat_map(|given| given.value.asks()) {
        asks.push(key);
        if !S::ASKS.contains(&key) {
            let wanted = match S::ASKS {
                [] => format!("nothing is wanted in match: a {kind:?} is for everybody"),
                known => format!("{} {kind:?} can ask for {}", article(kind), known.join(", ")),
            };
            let found = format!("{} {kind:?} cannot ask for this", article(kind));
            problems.add(place.at, place.path.clone(), found, wanted);
        }
    }
    if let Some(mode) = head.mode.as_ref().filter(|mode| mode.value.0 == Mode::Report && !S::REPORTS) {
        let found = format!("a {kind:?} cannot only report");
        let wanted = "enforce is wanted; a LimitPolicy and an AccessPolicy can report";
        problems.add(mode.place.at, mode.place.path.clone(), found, wanted);
    }
    if let Some(canary) = head.canary.as_ref().filter(|_| S::ASKS.is_empty()) {
        let found = format!("a {kind:?} is for everybody");
        problems.add(canary.place.at, canary.place.path.clone(), found, "no canary is wanted");
    }
    let selector = given.map(|given| selector(&given.value)).unwrap_or_default();
    if let Some(given) = given.filter(|_| selector.cells() > MAX_CELLS) {
        let found = format!("{} combinations of its entries", selector.cells());
        let wanted = format!("{MAX_CELLS} at most are wanted, or several documents");
        problems.add(given.place.at, given.place.path.clone(), found, wanted);
    }
    // A mistake in `spec.match` cannot be told from one beside it in `spec`.
    let good = head.good && problems.count() == before && (inner_good || inner.is_none());
    let header = good.then(|| Header {
        selector,
        mode: head.mode.as_ref().map_or(Mode::Enforce, |mode| mode.value.0),
        canary: head.canary.as_ref().map(|canary| canary.value.0),
    });
    (asks, header)
}

fn article(kind: Kind) -> &'static str {
    if kind == Kind::AccessPolicy { "an" } else { "a" }
}

fn selector(written: &Match) -> Selector {
    fn of<T, U: Ord>(given: &Option<Given<crate::written::Several<T>>>, meant: impl Fn(&T) -> U) -> Vec<U> {
        let mut list: Vec<U> = given.iter().flat_map(|given| &given.value.0).map(meant).collect();
        list.sort_unstable();
        list.dedup();
        list
    }
    Selector {
        agent_ids: of(&written.agent_ids, |id| id.0),
        token_hashes: of(&written.token_hashes, |hash| hash.0),
        project_ids: of(&written.project_ids, |id| id.0),
        client_cidrs: of(&written.client_cidrs, |network| network.0),
        agent_versions: of(&written.agent_versions, |version| version.0.clone()),
    }
}

impl Document<'_> {
    /// Sets a field, if it is given.
    fn set<T, U>(
        &mut self,
        rules: &mut Rules<U>,
        given: &Option<Given<T>>,
        meant: impl FnOnce(&T) -> Option<U>,
    ) {
        let Some(Given { value, place }) = given else { return };
        self.sets_something = true;
        let (Some(header), Some(value)) = (&self.header, meant(value)) else { return };
        let before = *self.cells_in_all;
        *self.cells_in_all = before.saturating_add(self.cells);
        if *self.cells_in_all > MAX_CELLS_IN_ALL {
            // Once is enough.
            if before <= MAX_CELLS_IN_ALL {
                let found = format!(
                    "with this one, all documents have more than {MAX_CELLS_IN_ALL} combinations of entries in match"
                );
                self.problems.add(place.at, place.path.clone(), found, "fewer are wanted");
            }
            return;
        }
        let (kind, name) = (self.kind, self.name.to_owned());
        let rule = Rule { kind, name, file: self.file.to_owned(), line: place.at.line };
        if let Err(first) = rules.add(header, rule, value) {
            let Rule { kind, name, file, line } = first;
            let found = format!(
                "{:?} {:?} and {kind:?} {name:?} at {}:{line} set it for the same ones, and neither is more specific",
                self.kind,
                self.name,
                file.display()
            );
            self.problems.add(
                place.at,
                place.path.clone(),
                found,
                "one of the two is wanted, or another match",
            );
        }
    }

    /// Reports a field that cannot be set for those whom the document is for.
    fn only(&mut self, place: &Place, known: &[&str], canary: bool, wanted: &str) {
        if let Some(asked) = self.asks.iter().find(|asked| !known.contains(asked)) {
            let found = format!("set for {asked}");
            self.problems.add(place.at, place.path.clone(), found, wanted);
        } else if self.canary && !canary {
            self.problems.add(place.at, place.path.clone(), "set in a canary", wanted);
        }
    }

    /// Reports a field that nobody looks at in a document that only reports.
    fn enforced(&mut self, place: &Place, wanted: &str) {
        if self.reports {
            self.problems.add(place.at, place.path.clone(), "set in a document that only reports", wanted);
        }
    }
}
