//! `policy check DIR`: what the edge and the broker would say about a directory of policies, without them. All problems
//! at once, one per line with file, line and field; exit code 1 if there is one. It changes nothing.

use std::path::Path;
use std::process::ExitCode;

pub(crate) fn check(directory: &Path) -> anyhow::Result<ExitCode> {
    match postern_policies::load_dir(directory) {
        Ok(_) => {
            println!("{}: the policies are valid", directory.display());
            Ok(ExitCode::SUCCESS)
        }
        Err(problems) => {
            eprintln!("{problems}");
            Ok(ExitCode::FAILURE)
        }
    }
}
