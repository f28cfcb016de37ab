//! Paths and queries in pieces, percent-decoded byte by byte, without copies.
//!
//! Beneath `request`. Says what cannot be read in one way only; what the pieces mean is not its business.

/// The most segments that an API server reads: `/apis/GROUP/VERSION/watch/namespaces/NAME/RESOURCE/NAME/SUBRESOURCE`, and
/// one more, which shows that there are more.
const READ: usize = 10;

/// A path that nobody can climb with.
pub(super) struct Path<'a> {
    parts: [&'a str; READ],
    /// How many of them there are.
    count: usize,
    /// The first segment that is empty or has an encoded slash.
    odd: usize,
}

impl<'a> Path<'a> {
    /// `None`: it does not begin with one slash, or some part of it could mean another place to somebody.
    pub(super) fn read(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix('/')?;
        // One slash at the end is none.
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let mut read = Self { parts: [""; READ], count: 0, odd: usize::MAX };
        if rest.is_empty() {
            return (path == "/").then_some(read);
        }
        for (index, part) in rest.split('/').enumerate() {
            let slashes = judge(part)?;
            if (slashes || part.is_empty()) && read.odd == usize::MAX {
                read.odd = index;
            }
            if index < READ {
                read.parts[index] = part;
                read.count = index + 1;
            }
        }
        Some(read)
    }

    /// The first segments, as they are written.
    pub(super) fn parts(&self) -> &[&'a str] {
        &self.parts[..self.count]
    }

    /// Whether every segment is one for everybody.
    pub(super) fn is_clean_to_the_end(&self) -> bool {
        self.odd == usize::MAX
    }

    /// Whether all segments before `rest`, which is the end of [`Path::parts`], are, and the first `more` of these.
    pub(super) fn is_clean_before(&self, rest: &[&str], more: usize) -> bool {
        self.odd >= self.count - rest.len() + more.min(rest.len())
    }
}

/// Whether there are encoded slashes in a segment. `None`: no path should have such a segment.
fn judge(part: &str) -> Option<bool> {
    let mut slashes = false;
    // How many dots the present piece between encoded slashes is, if it is nothing else.
    let mut dots = Some(0);
    for byte in decoded(part) {
        match byte? {
            b'/' => {
                if matches!(dots, Some(1 | 2)) {
                    return None;
                }
                slashes = true;
                dots = Some(0);
            }
            b'.' => dots = dots.map(|dots| dots + 1),
            b'\\' => return None,
            byte if byte.is_ascii_control() => return None,
            _ => dots = None,
        }
    }
    (!matches!(dots, Some(1 | 2))).then_some(slashes)
}

/// The bytes that a percent-encoded text stands for; `None` for each `%` without two digits.
pub(super) fn decoded(text: &str) -> impl Iterator<Item = Option<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (first, after) = rest.split_first()?;
        rest = after;
        if *first != b'%' {
            return Some(Some(*first));
        }
        let [high, low, after @ ..] = rest else { return Some(None) };
        let (Some(high), Some(low)) = (digit(*high), digit(*low)) else { return Some(None) };
        rest = after;
        Some(Some(high << 4 | low))
    })
}

/// Whether each `%` in a text has its two digits.
pub(crate) fn is_readable(text: &str) -> bool {
    decoded(text).all(|byte| byte.is_some())
}

/// Whether a text is a word once it is decoded.
pub(super) fn is(text: &str, word: &str) -> bool {
    decoded(text).eq(word.bytes().map(Some))
}

/// Whether a query asks to watch, as API servers read it: the first `watch`, whatever its value but `false` and `0`.
pub(super) fn asks_to_watch(query: Option<&str>) -> bool {
    let is_no = |value: &str| {
        let lower = || decoded(value).flatten().map(|byte| byte.to_ascii_lowercase());
        lower().eq(*b"false") || lower().eq(*b"0")
    };
    query
        .unwrap_or_default()
        .split('&')
        // Servers leave out what they cannot read.
        .filter(|pair| !pair.contains(';') && is_readable(pair))
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .find(|(key, _)| is(key, "watch"))
        .is_some_and(|(_, value)| !is_no(value))
}
