//! The reference advertisement of git's protocol v0, read line by line as it arrives: only the current line is kept,
//! and reading ends where the wanted reference is known. It follows no symbolic reference; a tag's own object gives way to
//! the commit that the server says it leads to.

use crate::repositories::CommitId;
use bytes::{Buf, BytesMut};

/// Hundreds of thousands of references; a repository with more has its `HEAD` at the start all the same.
const ADVERTISEMENT_MAX: usize = 64 << 20;

#[derive(Debug, Default)]
pub(super) struct Advertisement {
    unread: BytesMut,
    read: usize,
    state: State,
    /// Full name; `None`: `HEAD`, else `refs/heads/master`.
    wanted: Option<String>,
    /// The best so far.
    found: Option<CommitId>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Service,
    ServiceEnd,
    First,
    More,
    End,
}

type Reason = &'static str;

impl Advertisement {
    /// Looks for a reference by its full name, or for the default branch.
    pub(super) fn of(wanted: Option<String>) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Takes the next bytes; the commit as soon as nothing better can follow.
    pub(super) fn feed(&mut self, data: &[u8]) -> Result<Option<CommitId>, Reason> {
        self.read += data.len();
        if self.read > ADVERTISEMENT_MAX {
            return Err("more than 64 MiB of references");
        }
        self.unread.extend_from_slice(data);
        while let Some(length) = self.unread.first_chunk::<4>() {
            let length = packet_length(*length)?;
            if length == 0 {
                self.unread.advance(4);
                self.flush()?;
                continue;
            }
            if self.unread.len() < length {
                break;
            }
            let packet = self.unread.split_to(length);
            let line = packet.get(4..).unwrap_or_default();
            let head = self.line(line.strip_suffix(b"\n").unwrap_or(line))?;
            if head.is_some() {
                return Ok(head);
            }
        }
        Ok(None)
    }

    /// The end of the advertisement: the best that was in it, if any.
    pub(super) fn finish(self) -> Result<Option<CommitId>, Reason> {
        if self.state != State::End || !self.unread.is_empty() {
            return Err("the references end early");
        }
        Ok(self.found)
    }

    fn flush(&mut self) -> Result<(), Reason> {
        self.state = match self.state {
            State::ServiceEnd => State::First,
            // At once in an empty repository.
            State::First | State::More => State::End,
            State::Service | State::End => return Err("a flush packet where none belongs"),
        };
        Ok(())
    }

    fn line(&mut self, line: &[u8]) -> Result<Option<CommitId>, Reason> {
        let reference = match self.state {
            State::Service if line == b"# service=git-upload-pack" => {
                self.state = State::ServiceEnd;
                return Ok(None);
            }
            State::Service => return Err("the references start with another line than the service"),
            State::ServiceEnd => return Err("no flush packet after the service"),
            State::End => return Err("packets after the last reference"),
            State::First => {
                self.state = State::More;
                let end = line.iter().position(|&byte| byte == 0).ok_or("no capabilities")?;
                &line[..end]
            }
            State::More => line,
        };
        let space = reference.iter().position(|&byte| byte == b' ').ok_or("a reference without a name")?;
        let (oid, name) = (&reference[..space], &reference[space + 1..]);
        if !is_oid(oid) {
            return Err("a reference without an object id");
        }
        let Some(wanted) = &self.wanted else {
            match name {
                b"HEAD" => return Ok(Some(commit_id(oid))),
                b"refs/heads/master" => self.found = Some(commit_id(oid)),
                _ => {}
            }
            return Ok(None);
        };
        if name == wanted.as_bytes() || oid == wanted.as_bytes() {
            self.found = Some(commit_id(oid));
        } else if self.found.is_some() {
            // What a tag leads to comes straight after it.
            if name.strip_suffix(b"^{}") == Some(wanted.as_bytes()) {
                self.found = Some(commit_id(oid));
            }
            return Ok(self.found.clone());
        }
        Ok(None)
    }
}

/// Of the whole packet; 0 is the flush packet.
fn packet_length(digits: [u8; 4]) -> Result<usize, Reason> {
    let digits =
        std::str::from_utf8(&digits).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_hexdigit()));
    match digits.and_then(|digits| usize::from_str_radix(digits, 16).ok()) {
        Some(length) if length == 0 || length >= 4 => Ok(length),
        Some(_) => Err("a packet of a later version of the protocol"),
        None => Err("a packet without a length"),
    }
}

/// SHA-1 or SHA-256.
pub(super) fn is_oid(oid: &[u8]) -> bool {
    matches!(oid.len(), 40 | 64) && oid.iter().all(u8::is_ascii_hexdigit)
}

fn commit_id(oid: &[u8]) -> CommitId {
    String::from_utf8_lossy(oid).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const B: &str = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
    const ZERO: &str = "0000000000000000000000000000000000000000";

    fn packet(line: &str) -> String {
        format!("{:04x}{line}", line.len() + 4)
    }

    fn advertisement(lines: &[String]) -> String {
        let lines: String = lines.iter().map(|line| packet(line)).collect();
        format!("{}0000{lines}0000", packet("# service=git-upload-pack\n"))
    }

    fn head(bytes: &[u8], chunk: usize) -> Result<Option<CommitId>, Reason> {
        let mut advertisement = Advertisement::default();
        for chunk in bytes.chunks(chunk) {
            if let Some(head) = advertisement.feed(chunk)? {
                return Ok(Some(head));
            }
        }
        advertisement.finish()
    }

    #[test]
    fn the_head_is_found_however_the_bytes_are_cut() {
        let lines =
            [format!("{A} HEAD\0caps symref=HEAD:refs/heads/main\n"), format!("{B} refs/heads/master\n")];
        let bytes = advertisement(&lines).into_bytes();
        for chunk in 1..bytes.len() {
            assert_eq!(head(&bytes, chunk), Ok(Some(A.into())));
        }
    }

    #[test]
    fn without_a_head_master_is_the_default_branch() {
        let first = format!("{A} refs/heads/dev\0caps\n");
        let with = advertisement(&[first.clone(), format!("{B} refs/heads/master\n")]);
        assert_eq!(head(with.as_bytes(), 7), Ok(Some(B.into())));
        assert_eq!(head(advertisement(&[first]).as_bytes(), 7), Ok(None));
    }

    #[test]
    fn a_wanted_reference_is_found_and_a_tag_is_the_commit_it_leads_to() {
        let lines = [
            format!("{A} HEAD\0caps\n"),
            format!("{A} refs/heads/main\n"),
            format!("{B} refs/tags/main\n"),
            format!("{A} refs/tags/main^{{}}\n"),
            format!("{B} refs/tags/v1\n"),
        ];
        let bytes = advertisement(&lines).into_bytes();
        for (wanted, expected) in [
            ("refs/heads/main", Some(A)),
            ("refs/tags/main", Some(A)),
            ("refs/tags/v1", Some(B)),
            ("refs/tags/v", None),
            ("refs/heads/v1", None),
            (B, Some(B)),
            (ZERO, None),
        ] {
            let mut advertisement = Advertisement::of(Some(wanted.to_owned()));
            let found = match advertisement.feed(&bytes).unwrap() {
                Some(found) => Some(found),
                None => advertisement.finish().unwrap(),
            };
            assert_eq!(found.as_deref(), expected, "{wanted}");
        }
    }

    #[test]
    fn an_empty_repository_of_any_git_has_no_head() {
        assert_eq!(head(advertisement(&[]).as_bytes(), 7), Ok(None));
        let newer = advertisement(&[format!("{ZERO} capabilities^{{}}\0caps\n")]);
        assert_eq!(head(newer.as_bytes(), 7), Ok(None));
    }

    #[test]
    fn what_is_no_advertisement_is_refused() {
        let good = advertisement(&[format!("{A} refs/heads/dev\0caps")]);
        let service = packet("# service=git-upload-pack\n");
        for wrong in [
            String::new(),
            "xyz!".to_owned(),
            "+00a12345".to_owned(),
            good[..good.len() - 4].to_owned(),
            format!("{good}0000"),
            format!("{good}{}", packet("x y")),
            packet("# service=git-receive-pack\n"),
            format!("{service}{}", packet("x")),
            format!("{service}0000{}", packet(&format!("{A} HEAD"))),
            format!("{service}0000{}", packet("short HEAD\0")),
            format!("{service}0000{}", packet(&format!("{A}\0"))),
            format!("{service}0001"),
            format!("{service}00000004"),
        ] {
            assert!(head(wrong.as_bytes(), 5).is_err(), "{wrong}");
        }
    }

    #[test]
    fn endless_references_are_given_up() {
        let mut advertisement = Advertisement::default();
        advertisement.feed(format!("{}0000", packet("# service=git-upload-pack")).as_bytes()).unwrap();
        advertisement.feed(packet(&format!("{A} refs/heads/dev\0")).as_bytes()).unwrap();
        let many = packet(&format!("{A} refs/heads/x")).repeat(1 << 14);
        let fed = (0..100).map(|_| advertisement.feed(many.as_bytes())).find(Result::is_err);
        assert!(fed.is_some());
        assert!(advertisement.unread.capacity() <= 4 * many.len());
    }
}
