//! The real git, for tests that need repositories: always the same author and branch, and nobody's own settings.

use std::{path::Path, process::Command};

/// Runs it in a folder and returns what it printed, without the space around it. Must be installed.
///
/// # Panics
/// With git's words if it fails: the test that called it cannot go on.
pub fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "init.defaultBranch=main"])
        .args(arguments)
        .current_dir(folder)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .output()
        .expect("git is installed");
    assert!(output.status.success(), "git {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
