//! A directory -> the texts of its policy files, whatever lies there instead of files. Under `load`.
//!
//! Whoever can write to the directory must not be able to stop or exhaust the process: nothing is opened that could block,
//! and no more is read than policies can be.

use crate::Problem;
use rustix::fs::OFlags;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Of one file; a ConfigMap cannot be larger either.
const MAX_BYTES: u64 = 1024 * 1024;
/// Of all files together.
const MAX_BYTES_IN_ALL: u64 = 16 * 1024 * 1024;
const MAX_FILES: usize = 1_000;
/// How often to begin again when the directory is swapped meanwhile.
const TRIES: usize = 10;

/// A file that could be read.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// The files in the order of their names.
pub(super) fn read(directory: &Path) -> Result<Vec<Result<Text, Box<Problem>>>, Box<Problem>> {
    for _ in 0..TRIES {
        let before = version(directory);
        let texts = read_once(directory);
        // Half of the files from before and half from after would be a policy that nobody wrote.
        if before == version(directory) {
            return texts;
        }
    }
    Err(problem(
        directory,
        "swapped faster than it can be read",
        "a directory that stays for a while is wanted",
    ))
}

/// Changes when the directory is swapped as a whole: itself a link, or a ConfigMap, whose files are links through `..data`.
fn version(directory: &Path) -> (Option<PathBuf>, Option<PathBuf>) {
    (fs::canonicalize(directory).ok(), fs::read_link(directory.join("..data")).ok())
}

fn read_once(directory: &Path) -> Result<Vec<Result<Text, Box<Problem>>>, Box<Problem>> {
    let files = list(directory)?;
    let mut texts = Vec::with_capacity(files.len());
    let mut left = MAX_BYTES_IN_ALL;
    for path in files {
        match text(&path) {
            Ok(text) => {
                let Some(rest) = left.checked_sub(text.len() as u64) else {
                    let found = "more than 16 MiB in all files together";
                    texts.push(Err(problem(&path, found, "less is wanted; are these policies?")));
                    break;
                };
                left = rest;
                texts.push(Ok(Text { path, text }));
            }
            Err(Unusable::Gone) => {}
            Err(Unusable::Problem(problem)) => texts.push(Err(problem)),
        }
    }
    if texts.is_empty() {
        let wanted = "at least one *.yaml or *.yml file is wanted; is this the right directory?";
        return Err(problem(directory, "no policy file", wanted));
    }
    Ok(texts)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>, Box<Problem>> {
    let unreadable = |error: &io::Error| {
        problem(directory, format!("cannot be read: {error}"), "a directory with policy files is wanted")
    };
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).map_err(|error| unreadable(&error))? {
        let path = entry.map_err(|error| unreadable(&error))?.path();
        // Follows links: a ConfigMap's files are links.
        if !path.file_name().is_some_and(is_policy_file) || path.is_dir() {
            continue;
        }
        if files.len() == MAX_FILES {
            let found = format!("more than {MAX_FILES} policy files");
            return Err(problem(directory, found, "fewer are wanted; is this the right directory?"));
        }
        files.push(path);
    }
    files.sort();
    Ok(files)
}

/// Whether a name is that of a policy file. What is there under it is another question.
pub(crate) fn is_policy_file(name: &OsStr) -> bool {
    let extension = Path::new(name).extension();
    let yaml = extension.is_some_and(|extension| extension == "yaml" || extension == "yml");
    yaml && !name.as_encoded_bytes().starts_with(b".")
}

enum Unusable {
    /// Removed since the directory was listed.
    Gone,
    Problem(Box<Problem>),
}

fn text(path: &Path) -> Result<String, Unusable> {
    let fail = |found: String, wanted: &str| Err(Unusable::Problem(problem(path, found, wanted)));
    let bytes = match bytes(path) {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(kind)) => return fail(format!("it is a {kind}"), "a file is wanted"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::read_link(path) {
            Ok(target) => {
                let found = format!("a link to {}, which is not there", target.display());
                return fail(found, "a link to a file is wanted");
            }
            Err(_) => return Err(Unusable::Gone),
        },
        Err(error) => return fail(format!("cannot be read: {error}"), "a readable file is wanted"),
    };
    // Writing a file in place empties it first.
    if bytes.is_empty() {
        return fail("the file is empty".to_owned(), "documents or a comment are wanted");
    }
    if bytes.len() as u64 > MAX_BYTES {
        return fail("larger than 1 MiB".to_owned(), "less is wanted; is this a policy?");
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
        let begin = good.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let column = 1 + String::from_utf8_lossy(&good[begin..]).chars().count();
        let found = format!("the byte 0x{:02x} is not UTF-8", error.as_bytes()[good.len()]);
        let mut problem = problem(path, found, "text in UTF-8 is wanted");
        (problem.line, problem.column) = (Some(line), Some(column));
        Unusable::Problem(problem)
    })
}

/// At most one byte more than a file may have; or what it is instead of a file.
fn bytes(path: &Path) -> io::Result<Result<Vec<u8>, &'static str>> {
    // Before it is opened, which alone makes some devices do something.
    if let Some(kind) = other_kind(&fs::metadata(path)?) {
        return Ok(Err(kind));
    }
    // If it became a FIFO just now, opening it must not wait for a writer.
    let nonblock = i32::try_from(OFlags::NONBLOCK.bits()).expect("a flag of open(2) fits into its argument");
    let file: File = OpenOptions::new().read(true).custom_flags(nonblock).open(path)?;
    if let Some(kind) = other_kind(&file.metadata()?) {
        return Ok(Err(kind));
    }
    let mut bytes = Vec::new();
    // Its size may be anything by now.
    file.take(MAX_BYTES + 1).read_to_end(&mut bytes)?;
    Ok(Ok(bytes))
}

fn other_kind(metadata: &fs::Metadata) -> Option<&'static str> {
    let kind = metadata.file_type();
    if kind.is_file() {
        None
    } else if kind.is_fifo() {
        Some("FIFO")
    } else if kind.is_socket() {
        Some("socket")
    } else if kind.is_dir() {
        Some("directory")
    } else {
        Some("device")
    }
}

fn problem(path: &Path, found: impl Into<String>, wanted: impl Into<String>) -> Box<Problem> {
    Box::new(Problem {
        file: path.to_owned(),
        line: None,
        column: None,
        path: String::new(),
        found: found.into(),
        wanted: wanted.into(),
    })
}
