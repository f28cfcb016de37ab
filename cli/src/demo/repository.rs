//! The local git repository with the agent's configuration. Made with the `git` program, as its user will change it; one
//! that is already there is left as it is. The broker reads it and pushes each new commit to the agent.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::place::CONFIGURATION;

/// Why there is no repository.
#[derive(Debug, thiserror::Error)]
pub(super) enum RepositoryError {
    /// A directory or file of it could not be written.
    #[error("cannot write {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// There is no such program.
    #[error("cannot run git; install it (Debian: apt-get install git)")]
    NoGit(#[source] io::Error),
    /// git said no.
    #[error("`git {command}` failed: {said}")]
    Git { command: String, said: String },
}

const CONTENT: &str = "\
# The configuration of the agent `demo`. Commit a change and the broker pushes it to the agent.
observability:
  logging:
    level: info
";

/// Makes the repository, or finds it.
pub(super) fn prepare(path: &Path) -> Result<(), RepositoryError> {
    if path.join(".git").is_dir() {
        return Ok(());
    }
    let file = path.join(CONFIGURATION);
    let folder = file.parent().unwrap_or(path);
    fs::create_dir_all(folder)
        .map_err(|source| RepositoryError::Write { path: folder.to_owned(), source })?;
    fs::write(&file, CONTENT).map_err(|source| RepositoryError::Write { path: file.clone(), source })?;
    git(path, &["init", "--quiet", "--initial-branch=main"])?;
    git(path, &["add", "--all"])?;
    git(path, &["commit", "--quiet", "--message", "Configure the agent demo"])
}

/// git without the user's habits: their hooks, signatures and templates have no business here.
fn git(path: &Path, arguments: &[&str]) -> Result<(), RepositoryError> {
    let output = Command::new("git")
        .arg("-C")
        .arg(path)
        .args(["-c", "user.name=Postern demo", "-c", "user.email=demo@localhost"])
        .args(["-c", "commit.gpgSign=false", "-c", "core.hooksPath=/dev/null"])
        .args(arguments)
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE")
        .env("GIT_TEMPLATE_DIR", "")
        .output()
        .map_err(RepositoryError::NoGit)?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(RepositoryError::Git { command: arguments.join(" "), said })
}

#[cfg(test)]
mod tests {
    use super::{git, prepare};

    #[test]
    fn a_repository_is_made_once_and_then_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        prepare(directory.path()).unwrap();
        let file = directory.path().join(".gitlab/agents/demo/config.yaml");
        std::fs::write(&file, "observability: {}\n").unwrap();
        git(directory.path(), &["commit", "--quiet", "--all", "--message", "change"]).unwrap();
        prepare(directory.path()).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "observability: {}\n");
    }
}
