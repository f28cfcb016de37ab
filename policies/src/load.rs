//! The way in: a directory of YAML files to one [`Policy`]. Finds the documents, has `schema` read and
//! `validate` check each, and merges. It goes on after a problem, so that an author sees all of them; it
//! never half-applies.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::validate::{self, Merged, Problem, Problems};
use crate::{Policy, schema};

/// Far above any policy a person writes; a mistaken path to something huge ends here.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Reads every `*.yaml` and `*.yml` file directly in `directory`, in the order of their names; hidden files
/// and subdirectories are left out (Kubernetes keeps its own there when it mounts a ConfigMap). Blocking.
///
/// # Errors
/// Every problem in every document at once, with file, line where known and path. Where a document's shape is
/// wrong (an unknown field, a word for a number) only the first such mistake in that document is told, as
/// parsing ends there. A directory without policies is a problem too.
pub fn load_dir(directory: &Path) -> Result<Policy, Problems> {
    let files = policy_files(directory).map_err(|error| Problems(vec![unreadable(directory, &error)]))?;
    if files.is_empty() {
        let text = "no policy here: expected at least one *.yaml or *.yml file".to_owned();
        return Err(Problems(vec![Problem::about_file(directory, text)]));
    }
    let mut merged = Merged::default();
    for file in files {
        match read(&file) {
            Ok(text) => load_file(&mut merged, &file, &text),
            Err(error) => merged.problem(unreadable(&file, &error)),
        }
    }
    merged.finish()
}

pub(crate) fn load_text(file: &Path, text: &str) -> Result<Policy, Problems> {
    let mut merged = Merged::default();
    load_file(&mut merged, file, text);
    merged.finish()
}

fn policy_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
        let yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
        // Follows links: a ConfigMap's files are links.
        if yaml && !hidden && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> io::Result<String> {
    if fs::metadata(file)?.len() > MAX_FILE_BYTES {
        return Err(io::Error::other("larger than 1 MiB; is this a policy?"));
    }
    fs::read_to_string(file)
}

fn unreadable(path: &Path, error: &io::Error) -> Problem {
    Problem::about_file(path, format!("cannot be read: {error}"))
}

fn load_file(merged: &mut Merged, file: &Path, text: &str) {
    for (before, text) in documents(text) {
        let source = validate::Source { file, before, text };
        if let Err(problem) = load_document(merged, &source) {
            merged.problem(problem);
        }
    }
}

fn load_document(merged: &mut Merged, source: &validate::Source<'_>) -> Result<(), Problem> {
    let head: schema::Head = source.parse()?;
    if head.api_version != schema::API_VERSION {
        let text = format!("got {:?}, want {:?}", head.api_version, schema::API_VERSION);
        return Err(source.problem(&["apiVersion"], text));
    }
    match head.kind.as_str() {
        "LimitPolicy" => {
            let document: schema::Document<schema::LimitSpec> = source.parse()?;
            merged.limits(source, &document);
            Ok(())
        }
        other => Err(source.problem(&["kind"], format!("got {other:?}, want \"LimitPolicy\""))),
    }
}

/// Parts a file at its `---` lines, with the number of lines before each part. Done here and not by the YAML
/// parser, so that a syntax error in one document does not hide the next.
fn documents(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut first_line, mut first_byte, mut byte) = (0, 0, 0);
    for (line, raw) in text.split_inclusive('\n').enumerate() {
        let marker = raw
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker {
            parts.push((first_line, &text[first_byte..byte]));
            (first_line, first_byte) = (line, byte);
        }
        byte += raw.len();
    }
    parts.push((first_line, &text[first_byte..]));
    let says_something = |line: &str| {
        let line = line.trim();
        !line.is_empty() && !line.starts_with('#') && line != "---"
    };
    parts.retain(|(_, part)| part.lines().any(says_something));
    parts
}

#[cfg(test)]
mod tests;
