//! Cuts a file into its documents, so that a broken one hides none of the others. Before it: a file's bytes as they
//! came. After it: `read.rs`, which parses one document at a time. It looks at lines only, never at what they mean.

use std::borrow::Cow;

/// A document of a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part<'a> {
    /// With the line `---` that begins it, without a byte order mark.
    pub(super) text: &'a [u8],
    /// Lines of the file before it.
    pub(super) lines_before: usize,
}

/// What editors of another age put in front of a text.
const MARK: &[u8] = "\u{feff}".as_bytes();

/// The documents of a file, those left out in which there is nothing but comments.
///
/// A line that begins with `---` always begins a document in YAML, even in the middle of quoted text, so this needs no
/// parser. Directives (`%YAML 1.2`) belong to the document after them.
pub(super) fn documents(data: &[u8]) -> impl Iterator<Item = Part<'_>> {
    let mut lines = Lines { data, at: 0, count: 0 };
    let mut start = Some((0, 0));
    std::iter::from_fn(move || {
        loop {
            let (from, lines_before) = start?;
            let Some((at, count, line)) = lines.next() else {
                start = None;
                break Some(Part { text: unmarked(&data[from..]), lines_before });
            };
            let end = if marker(unmarked(line), b"---").is_some() {
                let begin = at + line.len() - unmarked(line).len();
                let before = &data[from..at];
                if has_only(before, Some(b'%')) && !has_only(before, None) {
                    continue;
                }
                start = Some((begin, count));
                at
            } else if marker(line, b"...").is_some_and(|rest| has_only(rest, None)) {
                start = Some((lines.at, lines.count));
                at
            } else {
                continue;
            };
            break Some(Part { text: unmarked(&data[from..end]), lines_before });
        }
    })
    .filter(|part| !has_only(marker(part.text, b"---").unwrap_or(part.text), None))
}

/// Text as the parser takes it. Files that were put together from several have byte order marks in their middle.
pub(super) fn text(text: &str) -> Cow<'_, str> {
    let mark = "\n\u{feff}";
    if text.contains(mark) { Cow::Owned(text.replace(mark, "\n")) } else { Cow::Borrowed(text) }
}

fn unmarked(text: &[u8]) -> &[u8] {
    text.strip_prefix(MARK).unwrap_or(text)
}

/// What follows a marker of documents.
fn marker<'a>(line: &'a [u8], marker: &[u8]) -> Option<&'a [u8]> {
    let rest = line.strip_prefix(marker)?;
    matches!(rest.first(), None | Some(b' ' | b'\t' | b'\r' | b'\n')).then_some(rest)
}

/// Whether there is nothing but blank lines, comments, and lines that begin with this.
fn has_only(text: &[u8], directive: Option<u8>) -> bool {
    let mut lines = Lines { data: text, at: 0, count: 0 };
    lines.all(|(_, _, line)| {
        let line = unmarked(line);
        let content = line.trim_ascii_start().first();
        matches!(content, None | Some(b'#')) || directive.is_some() && line.first().copied() == directive
    })
}

/// The lines of a text with what ends them, each with its place and how many are before it.
struct Lines<'a> {
    data: &'a [u8],
    at: usize,
    count: usize,
}

impl<'a> Iterator for Lines<'a> {
    type Item = (usize, usize, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (at, count) = (self.at, self.count);
        let rest = self.data.get(at..).filter(|rest| !rest.is_empty())?;
        let length = match rest.iter().position(|byte| matches!(byte, b'\n' | b'\r')) {
            Some(end) if rest[end..].starts_with(b"\r\n") => end + 2,
            Some(end) => end + 1,
            None => rest.len(),
        };
        self.at += length;
        self.count += 1;
        Some((at, count, &rest[..length]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(text: &str) -> Vec<(&str, usize)> {
        documents(text.as_bytes())
            .map(|part| (std::str::from_utf8(part.text).unwrap(), part.lines_before))
            .collect()
    }

    #[test]
    fn documents_are_cut_where_yaml_begins_and_ends_them() {
        for (text, wanted) in [
            ("", vec![]),
            ("\u{feff}", vec![]),
            ("# only\n\n  # comments\n---\n# here\n", vec![]),
            ("---\n---\n--- # nothing\n...\n", vec![]),
            ("a: 1", vec![("a: 1", 0)]),
            ("a: 1\n---\nb: 2\n", vec![("a: 1\n", 0), ("---\nb: 2\n", 1)]),
            ("---\r\na: 1\r\n---\r\nb: 2\r\n", vec![("---\r\na: 1\r\n", 0), ("---\r\nb: 2\r\n", 2)]),
            ("a: 1\r---\rb: 2", vec![("a: 1\r", 0), ("---\rb: 2", 1)]),
            ("a: 1\n--- {b: 2}\n---\tc\n---", vec![("a: 1\n", 0), ("--- {b: 2}\n", 1), ("---\tc\n", 2)]),
            ("a: 1\n...\nb: 2\n... # end\n", vec![("a: 1\n", 0), ("b: 2\n", 2)]),
            ("a: 1\n... b\n", vec![("a: 1\n... b\n", 0)]),
            ("%YAML 1.1\n# c\n---\na: 1\n", vec![("%YAML 1.1\n# c\n---\na: 1\n", 0)]),
            ("%YAML 1.1\n", vec![("%YAML 1.1\n", 0)]),
            ("a: |\n  ---\n  b\n----\n ---\n---c\n", vec![("a: |\n  ---\n  b\n----\n ---\n---c\n", 0)]),
            ("\u{feff}a: 1\n\u{feff}---\nb: 2", vec![("a: 1\n", 0), ("---\nb: 2", 1)]),
        ] {
            assert_eq!(parts(text), wanted, "{text:?}");
        }
    }

    #[test]
    fn marks_in_the_middle_are_taken_out() {
        assert_eq!(text("---\n\u{feff}a: 1"), "---\na: 1");
        assert_eq!(text("a: \u{feff}"), "a: \u{feff}");
    }
}
