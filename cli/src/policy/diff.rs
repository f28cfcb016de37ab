//! `policy diff BEFORE AFTER`: what another directory would change, and for whom. Exit codes as `diff` has them: 0 for the
//! same, 1 for changes, 2 for a directory that cannot be read.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;

use super::table;

/// What to compare.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The directory with the policies that are in force
    before: PathBuf,
    /// The directory with those that would be
    after: PathBuf,
    /// Print one JSON document: changed, the two fingerprints, and the changes
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    // Both, so that all problems are told at once.
    let (before, after) = (super::read(&options.before), super::read(&options.after));
    let (Ok(before), Ok(after)) = (before, after) else { return Ok(ExitCode::from(2)) };
    let changes = postern_policies::diff(&before.set, &after.set);
    if options.json {
        let changed = !changes.is_empty();
        let document = json!({
            "changed": changed, "before": before.fingerprint, "after": after.fingerprint, "changes": changes,
        });
        super::say(format_args!("{document:#}\n"))?;
    } else {
        for change in &changes {
            super::say(format_args!("{}\n", table::plain(&change.to_string())))?;
        }
    }
    Ok(if changes.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
