//! A file's text -> its documents. Parted here and not by the YAML parser, so that a mistake in one document does not hide
//! the next. Under `load`.

/// The documents that say something, each with the number of lines before it.
pub(super) fn split(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = Some(text.strip_prefix('\u{feff}').unwrap_or(text));
    let mut before = 0;
    let parts = std::iter::from_fn(move || {
        let text = rest?;
        let mut lines = 0;
        let mut bytes = 0;
        for line in text.split_inclusive('\n') {
            if bytes > 0 && is_marker(line) {
                break;
            }
            lines += 1;
            bytes += line.len();
        }
        let (part, tail) = text.split_at(bytes);
        rest = (!tail.is_empty()).then_some(tail);
        let part = (before, part);
        before += lines;
        Some(part)
    });
    parts.filter(|(_, part)| part.lines().any(says_something))
}

fn is_marker(line: &str) -> bool {
    line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
}

/// Not a comment, a directive or a marker alone.
fn says_something(line: &str) -> bool {
    let content = if is_marker(line) { &line[3..] } else { line };
    let content = content.trim();
    !content.is_empty() && !content.starts_with('#') && content != "..." && !line.starts_with('%')
}

#[cfg(test)]
mod tests {
    use super::split;

    #[test]
    fn documents_are_parted_at_their_markers_and_empty_ones_are_left_out() {
        for (text, wanted) in [
            ("", vec![]),
            ("a: 1", vec![(0, "a: 1")]),
            ("---\na: 1\n---\nb: 2\n", vec![(0, "---\na: 1\n"), (2, "---\nb: 2\n")]),
            ("# only\n---\n--- # and\n...\n", vec![]),
            ("a: 1\r\n---\r\nb: 2", vec![(0, "a: 1\r\n"), (1, "---\r\nb: 2")]),
            ("--- {a: 1}\n--- {b: 2}", vec![(0, "--- {a: 1}\n"), (1, "--- {b: 2}")]),
            ("%YAML 1.2\n---\na: 1\n", vec![(1, "---\na: 1\n")]),
            ("a: |\n  ---\nb: ----\n---x: 1\n", vec![(0, "a: |\n  ---\nb: ----\n---x: 1\n")]),
            ("\u{feff}---\na: 1", vec![(0, "---\na: 1")]),
        ] {
            assert_eq!(split(text).collect::<Vec<_>>(), wanted, "{text:?}");
        }
    }
}
