//! `policy ...`: what edge and broker would say about policies, and what they say. One module per command; the words are
//! those of `postern-policies`. Nothing here changes a file or a process.

mod ask;
mod check;
mod diff;
mod explain;
mod simulate;
mod table;
mod watch;

use std::fmt;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use postern_policies::Loaded;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Reads every policy in a directory and reports every problem; exits 1 if there is one
    Check(check::Options),
    /// Says what another directory would change and for whom; exits 1 if there is a change, 2 if a directory is not valid
    Diff(diff::Options),
    /// Says what holds for an agent, a token or an address, and which document sets it
    Explain(explain::Options),
    /// Prints the JSON schema of policy files, for editors
    Schema,
    /// Says whom a candidate would have refused, by the access lines of an edge
    Simulate(simulate::Options),
    /// Asks edges and brokers which policies they have in force, until all have the same ones
    Watch(watch::Options),
}

pub(crate) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    let ended = match command {
        Command::Check(options) => check::run(options),
        Command::Diff(options) => diff::run(options),
        Command::Explain(options) => explain::run(options),
        Command::Schema => schema(),
        Command::Simulate(options) => simulate::run(options),
        Command::Watch(options) => watch::run(options),
    };
    match ended {
        // Whoever reads the output has seen enough, as `head` does.
        Err(error) if is_broken_pipe(&error) => Ok(ExitCode::SUCCESS),
        ended => ended,
    }
}

fn schema() -> anyhow::Result<ExitCode> {
    say(format_args!("{:#}\n", postern_policies::schema()))?;
    Ok(ExitCode::SUCCESS)
}

/// To standard output, which may be closed.
fn say(text: fmt::Arguments<'_>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_fmt(text)?;
    out.flush()
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// The policies of a directory, or the code to exit with after all problems were told.
fn read(directory: &Path) -> Result<Loaded, ExitCode> {
    postern_policies::load(directory).map_err(|problems| {
        eprintln!("{problems}");
        ExitCode::FAILURE
    })
}
