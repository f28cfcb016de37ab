//! `policy ...`: what edge and broker would say about policies, and what they say. One module per command; the words are
//! those of `postern-policies`. Nothing here changes a file or a process.

mod ask;
mod check;
mod table;
mod watch;

use std::process::ExitCode;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Reads every policy in a directory and reports every problem; exits 1 if there is one
    Check(check::Options),
    /// Asks edges and brokers which policies they have in force, until all have the same ones
    Watch(watch::Options),
}

pub(crate) fn run(command: &Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Check(options) => Ok(check::run(options)),
        Command::Watch(options) => watch::run(options),
    }
}
