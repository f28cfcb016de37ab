//! Which commit of a repository is meant: the newest of its default branch, or of a branch or tag, or one by its id.
//! Before it: an agent's configuration. After it: a look at the repository. A name is nothing but a name: git's language
//! of revisions (`main~3`, `@{1}`, `:/text`) is refused, for it can make a server search.

/// A commit, by what leads to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reference {
    /// The newest of the default branch.
    #[default]
    Default,
    /// The newest of this branch.
    Branch(String),
    /// The one that this tag names, annotated or not.
    Tag(String),
    /// This one, by its whole id.
    Commit(String),
}

/// It cannot be the name of what it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {wanted}")]
pub struct BadReference {
    /// Shortened.
    pub text: String,
    /// In words.
    pub wanted: &'static str,
}

/// Of a name, in bytes.
const NAME_MAX: usize = 512;

impl Reference {
    /// A branch by its short name.
    pub fn branch(name: &str) -> Result<Self, BadReference> {
        if is_name(name) { Ok(Self::Branch(name.to_owned())) } else { Err(bad(name, "the name of a branch")) }
    }

    /// A tag by its short name.
    pub fn tag(name: &str) -> Result<Self, BadReference> {
        if is_name(name) { Ok(Self::Tag(name.to_owned())) } else { Err(bad(name, "the name of a tag")) }
    }

    /// A commit by its whole id.
    pub fn commit(id: &str) -> Result<Self, BadReference> {
        let hex = id.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
        if hex && matches!(id.len(), 40 | 64) {
            Ok(Self::Commit(id.to_owned()))
        } else {
            Err(bad(id, "the whole id of a commit, 40 or 64 hexadecimal digits in lower case"))
        }
    }

    /// Whether it is the same commit for ever.
    pub fn is_fixed(&self) -> bool {
        matches!(self, Self::Commit(_))
    }

    /// As git spells it; the default branch has no name of its own.
    pub fn full_name(&self) -> Option<String> {
        match self {
            Self::Default => None,
            Self::Branch(name) => Some(format!("refs/heads/{name}")),
            Self::Tag(name) => Some(format!("refs/tags/{name}")),
            Self::Commit(id) => Some(id.clone()),
        }
    }
}

fn bad(text: &str, wanted: &'static str) -> BadReference {
    BadReference { text: text.chars().take(100).collect(), wanted }
}

/// git's own rules (`git check-ref-format`).
fn is_name(name: &str) -> bool {
    let part = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    name.len() <= NAME_MAX
        && name != "@"
        && !name.starts_with('-')
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name.contains([' ', '~', '^', ':', '?', '*', '[', '\\'])
        && !name.contains(char::is_control)
        && name.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_names_and_ids_are_whole() {
        for good in ["main", "feature/x-1", "v1.0", "a@b", "ümlaut"] {
            assert_eq!(Reference::branch(good).unwrap().full_name(), Some(format!("refs/heads/{good}")));
            assert_eq!(Reference::tag(good).unwrap().full_name(), Some(format!("refs/tags/{good}")));
        }
        let long = "x".repeat(NAME_MAX + 1);
        for bad in [
            "",
            "@",
            "main~3",
            "main^",
            "main^{/x}",
            "main@{1}",
            ":/text",
            "a b",
            "a..b",
            "/a",
            "a/",
            "a//b",
            ".a",
            "a/.b",
            "a.lock",
            "a.lock/b",
            "a.",
            "-a",
            "a*",
            "a\\b",
            "a\n",
            &long,
        ] {
            assert!(Reference::branch(bad).is_err(), "{bad}");
            assert!(Reference::tag(bad).is_err(), "{bad}");
        }
        let id = "0123456789abcdef0123456789abcdef01234567";
        assert!(Reference::commit(id).unwrap().is_fixed());
        for bad in ["", "HEAD", &id[..39], &id.to_uppercase(), "refs/heads/main"] {
            assert!(Reference::commit(bad).is_err(), "{bad}");
        }
    }
}
