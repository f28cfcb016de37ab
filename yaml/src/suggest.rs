//! The known key that an unknown one was probably meant to be.

/// Longer words are nobody's slip of the pen, and the comparison takes time with the square of it.
const MAX_WORD: usize = 48;

/// The nearest of `known`, if a third of its letters or less would have to change.
pub(super) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    if word.len() > MAX_WORD {
        return None;
    }
    let plain =
        |word: &str| word.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_lowercase();
    let written = plain(word);
    let near = known.iter().map(|known| (distance(&written, &plain(known)), *known));
    let (steps, best) = near.min_by_key(|(steps, _)| *steps)?;
    (steps <= best.len().max(3) / 3).then_some(best)
}

/// How many letters must be put in, left out, changed, or swapped with their neighbour.
fn distance(from: &str, to: &str) -> usize {
    let (from, to): (Vec<char>, Vec<char>) = (from.chars().collect(), to.chars().collect());
    let mut rows = vec![(0..=to.len()).collect::<Vec<_>>()];
    for (i, a) in from.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, b) in to.iter().enumerate() {
            let change = rows[i][j] + usize::from(a != b);
            let mut least = change.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *a == to[j - 1] && from[i - 1] == *b {
                least = least.min(rows[i - 1][j - 1] + 1);
            }
            row.push(least);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn slips_of_the_pen_are_recognised_and_other_words_are_not() {
        let known = ["address", "network", "websocket", "id", "poll_period"];
        for (word, wanted) in [
            ("adress", Some("address")),
            ("Address", Some("address")),
            ("netwrok", Some("network")),
            ("pollPeriod", Some("poll_period")),
            ("poll-period", Some("poll_period")),
            ("idd", Some("id")),
            ("web_sockets", Some("websocket")),
            ("certificate", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(nearest(word, &known), wanted, "{word}");
        }
        assert_eq!(nearest(&"a".repeat(100_000), &known), None);
        assert_eq!(nearest("x", &[]), None);
    }
}
