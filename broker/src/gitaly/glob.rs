//! The globs of agents' configurations, with the meaning that the Go agent's users know: `*` and `?` stay within one
//! name and match leading dots, `**` is special only as a whole name, braces hold alternatives. Before it comes the
//! agent's request, after it the listing of [`Glob::directory`]. It reads no repository.

/// Longer ones are no globs that a person wrote.
const LENGTH_MAX: usize = 1_024;
/// What braces may multiply to.
const ALTERNATIVES_MAX: usize = 64;
const SPECIAL: [char; 7] = ['\\', '*', '?', '[', ']', '{', '}'];

#[derive(Debug)]
pub(super) struct Glob {
    directory: String,
    recursive: bool,
    alternatives: Vec<Vec<Name>>,
}

/// What stands between two slashes.
#[derive(Debug, PartialEq)]
enum Name {
    AnyDepth,
    Of(Vec<Token>),
}

#[derive(Debug, PartialEq)]
enum Token {
    Star,
    One,
    Char(char),
    Class { negated: bool, ranges: Vec<(char, char)> },
}

type Reason = &'static str;

impl Glob {
    pub(super) fn parse(text: &str) -> Result<Self, Reason> {
        if text.len() > LENGTH_MAX {
            return Err("longer than 1024 bytes");
        }
        let text = text.strip_prefix('/').unwrap_or(text);
        let plain = text.find(SPECIAL).unwrap_or(text.len());
        let (directory, rest) = match text[..plain].rfind('/') {
            Some(slash) if slash > 0 => (&text[..slash], &text[slash + 1..]),
            _ => (".", text),
        };
        let recursive = rest.contains(['[', '/']) || rest.contains("**");
        let alternatives = expand(text)?.iter().map(|text| names(text)).collect::<Result<_, _>>()?;
        Ok(Self { directory: directory.to_owned(), recursive, alternatives })
    }

    /// The deepest directory that holds whatever can match, and whether its directories matter too.
    pub(super) fn directory(&self) -> (&str, bool) {
        (&self.directory, self.recursive)
    }

    /// Whether this path from the repository's root matches.
    pub(super) fn matches(&self, path: &str) -> bool {
        let path: Vec<&str> = path.split('/').collect();
        let same = |name: &Name, part: &&str| match name {
            Name::AnyDepth => true,
            Name::Of(tokens) => name_matches(tokens, part),
        };
        let any = |name: &Name| matches!(name, Name::AnyDepth);
        self.alternatives.iter().any(|names| wildcard(names, &path, any, same))
    }
}

fn name_matches(tokens: &[Token], part: &str) -> bool {
    let part: Vec<char> = part.chars().collect();
    wildcard(
        tokens,
        &part,
        |token| matches!(token, Token::Star),
        |token, &char| match token {
            Token::Star | Token::One => true,
            Token::Char(wanted) => *wanted == char,
            Token::Class { negated, ranges } => {
                ranges.iter().any(|&(low, high)| (low..=high).contains(&char)) != *negated
            }
        },
    )
}

/// Matches all of `items`, where an `any` of the pattern stands for any number of them. Goes back only to the last
/// one, so the time is at most the product of both lengths.
fn wildcard<P, I>(
    pattern: &[P],
    items: &[I],
    any: impl Fn(&P) -> bool,
    same: impl Fn(&P, &I) -> bool,
) -> bool {
    let (mut at, mut item) = (0, 0);
    let mut back: Option<(usize, usize)> = None;
    while item < items.len() {
        match pattern.get(at) {
            Some(wanted) if any(wanted) => {
                back = Some((at + 1, item));
                at += 1;
            }
            Some(wanted) if same(wanted, &items[item]) => {
                at += 1;
                item += 1;
            }
            _ => match &mut back {
                Some((after, taken)) => {
                    *taken += 1;
                    (at, item) = (*after, *taken);
                }
                None => return false,
            },
        }
    }
    pattern[at..].iter().all(any)
}

/// The same glob without braces, once for each alternative.
fn expand(text: &str) -> Result<Vec<String>, Reason> {
    let (mut waiting, mut done) = (vec![text.to_owned()], Vec::new());
    while let Some(text) = waiting.pop() {
        let Some((open, separators)) = braces(&text)? else {
            done.push(text);
            continue;
        };
        let close = *separators.last().expect("braces end with the closing one");
        let mut from = open + 1;
        for &to in &separators {
            waiting.push(format!("{}{}{}", &text[..open], &text[from..to], &text[close + 1..]));
            from = to + 1;
        }
        if waiting.len() + done.len() > ALTERNATIVES_MAX {
            return Err("its braces multiply to more than 64 alternatives");
        }
    }
    Ok(done)
}

/// Where the first brace opens, and where its commas and its closing brace are.
fn braces(text: &str) -> Result<Option<(usize, Vec<usize>)>, Reason> {
    let (mut open, mut separators, mut depth) = (None, Vec::new(), 0_u32);
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '\\' => drop(chars.next()),
            '[' => drop(class(&mut chars.by_ref().map(|(_, char)| char))?),
            '{' => {
                open = open.or(Some(at));
                depth += 1;
            }
            ',' if depth == 1 => separators.push(at),
            '}' if depth == 1 => {
                separators.push(at);
                return Ok(open.map(|open| (open, separators)));
            }
            '}' if depth > 1 => depth -= 1,
            _ => {}
        }
    }
    if depth > 0 { Err("a { without its }") } else { Ok(None) }
}

/// The names of a glob without braces.
fn names(text: &str) -> Result<Vec<Name>, Reason> {
    let mut chars = text.chars();
    let (mut names, mut tokens) = (Vec::new(), Vec::new());
    while let Some(char) = chars.next() {
        tokens.push(match char {
            '/' => {
                names.push(name(std::mem::take(&mut tokens)));
                continue;
            }
            '*' => Token::Star,
            '?' => Token::One,
            '[' => class(&mut chars)?,
            '\\' => Token::Char(chars.next().ok_or("a \\ at its end")?),
            other => Token::Char(other),
        });
    }
    names.push(name(tokens));
    Ok(names)
}

fn name(tokens: Vec<Token>) -> Name {
    match tokens.as_slice() {
        [Token::Star, Token::Star] => Name::AnyDepth,
        _ => Name::Of(tokens),
    }
}

/// The rest of a class after its opening bracket.
fn class(chars: &mut impl Iterator<Item = char>) -> Result<Token, Reason> {
    const OPEN: Reason = "a [ without its ]";
    const RANGE: Reason = "a - in [] that is not between two characters";
    let mut next = chars.next().ok_or(OPEN)?;
    let negated = matches!(next, '^' | '!');
    if negated {
        next = chars.next().ok_or(OPEN)?;
    }
    let mut ranges = Vec::new();
    while next != ']' {
        let low = end(next, chars, RANGE)?;
        next = chars.next().ok_or(OPEN)?;
        let mut high = low;
        if next == '-' {
            high = match chars.next().ok_or(OPEN)? {
                ']' => return Err(RANGE),
                char => end(char, chars, RANGE)?,
            };
            next = chars.next().ok_or(OPEN)?;
        }
        ranges.push((low, high));
    }
    if ranges.is_empty() { Err("an empty []") } else { Ok(Token::Class { negated, ranges }) }
}

/// One end of a range, which a backslash makes literal.
fn end(char: char, chars: &mut impl Iterator<Item = char>, dash: Reason) -> Result<char, Reason> {
    match char {
        '-' => Err(dash),
        '\\' => chars.next().ok_or("a \\ at its end"),
        other => Ok(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match_as_the_go_agent_does() {
        for (glob, path, expected) in [
            ("a.yaml", "a.yaml", true),
            ("/a.yaml", "a.yaml", true),
            ("a.yaml", "b/a.yaml", false),
            ("*.yaml", "a.yaml", true),
            ("*.yaml", ".yaml", true),
            ("*.yaml", ".hidden.yaml", true),
            ("*.yaml", "b/a.yaml", false),
            ("b/*", "b/a.yaml", true),
            ("b/*", "b/c/a.yaml", false),
            ("?.yaml", "a.yaml", true),
            ("?.yaml", "ä.yaml", true),
            ("?.yaml", ".yaml", false),
            ("a?b", "a/b", false),
            ("**/*.yaml", "a.yaml", true),
            ("**/*.yaml", "b/c/d/a.yaml", true),
            ("b/**/a.yaml", "b/a.yaml", true),
            ("b/**/a.yaml", "b/c/d/a.yaml", true),
            ("b/**/a.yaml", "x/b/a.yaml", false),
            ("b/**", "b/c/a.yaml", true),
            ("**/c/**/e", "a/c/b/c/d/e", true),
            ("**/c/**/e", "a/b/d/e", false),
            ("**.yaml", "a.yaml", true),
            ("**.yaml", "b/a.yaml", false),
            ("b**/a.yaml", "bcd/a.yaml", true),
            ("b**/a.yaml", "b/c/a.yaml", false),
            ("[a-c].yaml", "b.yaml", true),
            ("[a-c].yaml", "d.yaml", false),
            ("[^a-c].yaml", "d.yaml", true),
            ("[!a-c].yaml", "b.yaml", false),
            ("[ab\\]].yaml", "].yaml", true),
            ("[\\-a].yaml", "-.yaml", true),
            ("{a,b}.yaml", "b.yaml", true),
            ("{a,b}.yaml", "c.yaml", false),
            ("*.{yaml,y{,a}ml,json}", "x.yml", true),
            ("*.{yaml,y{,a}ml,json}", "x.json", true),
            ("{a[,]b,c}", "a,b", true),
            ("**/*.{yaml,yml,json}", "b/c.json", true),
            ("**/*.{yaml,yml,json}", "b/c.txt", false),
            ("\\*.yaml", "*.yaml", true),
            ("\\*.yaml", "a.yaml", false),
            ("\\{a\\}", "{a}", true),
            ("a}", "a}", true),
            ("", "a", false),
        ] {
            assert_eq!(Glob::parse(glob).unwrap().matches(path), expected, "{glob} on {path}");
        }
    }

    #[test]
    fn malformed_globs_are_refused() {
        let many = "{a,b}".repeat(7);
        let long = "a".repeat(LENGTH_MAX + 1);
        for wrong in [
            "[", "[]", "[a", "[^]", "[a-]", "[-a]", "[a-", "[\\", "{a", "{a,{b}", "a\\", "{[a}", &many, &long,
        ] {
            assert!(Glob::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_listed_directory_is_as_deep_as_it_can_be() {
        for (glob, directory, recursive) in [
            ("a.yaml", ".", false),
            ("/a.yaml", ".", false),
            ("b/a.yaml", "b", false),
            ("/b/c/*.yaml", "b/c", false),
            ("b/*/a.yaml", "b", true),
            ("b/c*/**", "b", true),
            ("**/*.yaml", ".", true),
            ("**.yaml", ".", true),
            ("b/[ac].yaml", "b", true),
            ("b/{a,c}.yaml", "b", false),
            ("b\\/c/*.yaml", ".", true),
            ("//a", ".", true),
        ] {
            assert_eq!(Glob::parse(glob).unwrap().directory(), (directory, recursive), "{glob}");
        }
    }

    #[test]
    fn nothing_a_stranger_writes_takes_long() {
        let deep = "{".repeat(500);
        assert!(Glob::parse(&deep).is_err());
        let nested = format!("{}a{}", "{".repeat(500), "}".repeat(500));
        assert!(Glob::parse(&nested).unwrap().matches("a"));
        let stars = Glob::parse(&"*a".repeat(500)).unwrap();
        assert!(!stars.matches(&"a".repeat(499)));
        let depths = Glob::parse(&format!("{}b", "**/a/".repeat(100))).unwrap();
        assert!(!depths.matches(&"a/".repeat(2_000)));
    }
}
