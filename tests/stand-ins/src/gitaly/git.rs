//! Runs the `git` program on one repository. Its own configuration and the machine's have no say.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};
use std::process::Stdio;

use postern_wire::proto::gitaly::Repository;
use tokio::process::Command;
use tonic::Status;

use super::State;

/// A line of `git ls-tree`.
pub(super) struct Entry {
    pub(super) mode: i32,
    pub(super) kind: String,
    pub(super) oid: String,
    /// As git says it: from the tree that was listed.
    pub(super) path: Vec<u8>,
}

impl State {
    /// The folder that holds `HEAD`.
    pub(super) fn git_dir(&self, repository: Option<&Repository>) -> Result<PathBuf, Status> {
        let repository = repository.ok_or_else(|| Status::invalid_argument("empty Repository"))?;
        if repository.storage_name != self.options.storage {
            let storage = &repository.storage_name;
            return Err(Status::invalid_argument(format!("no such storage: {storage:?}")));
        }
        let relative = Path::new(&repository.relative_path);
        let inside = relative.components().all(|component| matches!(component, Component::Normal(_)));
        if !inside || repository.relative_path.is_empty() {
            return Err(Status::invalid_argument("relative path escapes the storage"));
        }
        let folder = self.options.repositories.join(relative);
        let nested = folder.join(".git");
        let git_dir = if nested.is_dir() { nested } else { folder };
        if git_dir.join("HEAD").is_file() {
            Ok(git_dir)
        } else {
            Err(Status::not_found("not a git repository"))
        }
    }

    /// What git prints; `None` when it fails, as it does for what is not there.
    pub(super) async fn git<A: AsRef<OsStr>>(
        &self,
        git_dir: &Path,
        arguments: &[A],
    ) -> Result<Option<Vec<u8>>, Status> {
        let _permit =
            self.git.acquire().await.map_err(|_| Status::unavailable("the stand-in is stopping"))?;
        let output = Command::new("git")
            .arg("--git-dir")
            .arg(git_dir)
            .args(arguments)
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_LITERAL_PATHSPECS", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|error| Status::internal(format!("run git: {error}")))?;
        Ok(output.status.success().then_some(output.stdout))
    }

    /// The commit that a revision names.
    pub(super) async fn commit(&self, git_dir: &Path, revision: &[u8]) -> Result<Option<String>, Status> {
        if revision.is_empty() || revision.starts_with(b"-") || revision.contains(&b':') {
            return Err(Status::invalid_argument("malformed revision"));
        }
        let mut peeled = revision.to_vec();
        peeled.extend_from_slice(b"^{commit}");
        let arguments = ["rev-parse", "--verify", "--quiet"].map(OsStr::new);
        let arguments: Vec<&OsStr> = arguments.into_iter().chain([OsStr::from_bytes(&peeled)]).collect();
        let output = self.git(git_dir, &arguments).await?;
        Ok(output.map(|output| String::from_utf8_lossy(&output).trim().to_owned()))
    }

    /// Lines of `git ls-tree -z`; `None` when there is no such tree.
    pub(super) async fn ls_tree(
        &self,
        git_dir: &Path,
        arguments: &[&[u8]],
    ) -> Result<Option<Vec<Entry>>, Status> {
        let mut all = vec![OsStr::new("ls-tree"), OsStr::new("-z")];
        all.extend(arguments.iter().map(|argument| OsStr::from_bytes(argument)));
        let output = self.git(git_dir, &all).await?;
        let lines = output.map(|output| {
            output.split(|&byte| byte == 0).filter(|line| !line.is_empty()).filter_map(entry).collect()
        });
        Ok(lines)
    }
}

fn entry(line: &[u8]) -> Option<Entry> {
    let tab = line.iter().position(|&byte| byte == b'\t')?;
    let mut words = std::str::from_utf8(&line[..tab]).ok()?.split(' ');
    let mode = i32::from_str_radix(words.next()?, 8).ok()?;
    let (kind, oid) = (words.next()?.to_owned(), words.next()?.to_owned());
    Some(Entry { mode, kind, oid, path: line[tab + 1..].to_vec() })
}
