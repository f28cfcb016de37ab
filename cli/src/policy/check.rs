//! `policy check DIR`: what edge and broker would say about a directory of policies, without them. All problems at once,
//! one per line with file, line and field, or as JSON.

use std::path::PathBuf;
use std::process::ExitCode;

use postern_policies::{Loaded, Problems};
use serde_json::{Value, json};

use super::table::count;

/// What to check.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The directory with the YAML files
    directory: PathBuf,
    /// Print one JSON document: valid, fingerprint, documents, problems and more
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let loaded = postern_policies::load(&options.directory);
    let code = if loaded.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    if options.json {
        super::say(format_args!("{:#}\n", document(&loaded)))?;
        return Ok(code);
    }
    match loaded {
        Ok(Loaded { documents, fingerprint, .. }) => {
            let documents = count(documents, "document is", "documents are");
            let directory = options.directory.display();
            super::say(format_args!("{directory}: {documents} valid; fingerprint {fingerprint}\n"))?;
        }
        Err(problems) => eprintln!("{problems}"),
    }
    Ok(code)
}

fn document(loaded: &Result<Loaded, Problems>) -> Value {
    match loaded {
        Ok(Loaded { documents, fingerprint, .. }) => {
            json!({"valid": true, "fingerprint": fingerprint, "documents": documents, "problems": [], "more": 0})
        }
        Err(Problems { list, more }) => {
            json!({"valid": false, "fingerprint": null, "documents": null, "problems": list, "more": more})
        }
    }
}
