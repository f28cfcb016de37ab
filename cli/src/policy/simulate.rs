//! `policy simulate --trace FILE DIR`: whom a candidate would have refused, by what an edge has written about the past. It
//! exits with 0 whatever the answer is: to refuse may be the point of a policy.

use std::fs::File;
use std::io::{self, BufReader};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use serde_json::{Value, json};

/// What to play through what.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The edge's access lines, in JSON as it logs them; - for standard input
    #[arg(long, value_name = "FILE")]
    trace: PathBuf,
    /// The directory with the candidate's YAML files
    directory: PathBuf,
    /// Print one JSON document
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let set = match super::read(&options.directory) {
        Ok(loaded) => loaded.set,
        Err(code) => return Ok(code),
    };
    let report = if options.trace.as_os_str() == "-" {
        postern_policies::simulate(&set, io::stdin().lock())?
    } else {
        let trace = options.trace.display();
        let file = File::open(&options.trace).with_context(|| {
            format!("cannot open {trace}; --trace wants a file with the access lines of an edge, one JSON document each")
        })?;
        postern_policies::simulate(&set, BufReader::new(file)).with_context(|| trace.to_string())?
    };
    if options.json {
        let mut document = serde_json::to_value(&report).context("put the report in JSON")?;
        if let Value::Object(document) = &mut document {
            document.remove("span");
            document.insert("span_seconds".to_owned(), json!(report.span.as_secs_f64()));
        }
        super::say(format_args!("{document:#}\n"))?;
    } else {
        super::say(format_args!("{report}\n"))?;
    }
    if report.judged == 0 {
        eprintln!(
            "postern: there are no access lines in the trace; an edge logs them at info with the target \"access\""
        );
    }
    Ok(ExitCode::SUCCESS)
}
