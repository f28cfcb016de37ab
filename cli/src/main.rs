//! `postern`: the operator's tool. Flags, dispatch to one module per command, exit code; everything else is in those
//! modules. It never serves traffic: the programs that do are started by `demo` as children, or by the operator.

mod agents;
mod demo;
mod policy;
mod tied;
mod tokens;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The operator's tool of Postern.
#[derive(Parser)]
#[command(name = "postern", version)]
struct Flags {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the agents that are connected to a fleet of brokers, or says when one was there last
    Agents(agents::Options),
    /// Starts edge, broker and agent on this machine and says how to try them
    Demo(demo::Options),
    /// Prints a new random token, for an agent or for a caller
    GenerateToken,
    /// Reads a token from standard input and prints its SHA-256 as the identities file wants it
    HashToken,
    /// Looks at policies
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// Runs a program that ends with this process' parent; `demo` starts its children through it
    #[command(hide = true, trailing_var_arg = true)]
    Tied {
        /// The process that must be alive
        parent: i32,
        /// The program and its arguments
        #[arg(required = true, allow_hyphen_values = true)]
        command: Vec<std::ffi::OsString>,
    },
}

#[derive(Subcommand)]
enum PolicyCommand {
    /// Reads every policy in a directory and reports every problem; exits 1 if there is one
    Check {
        /// The directory with the YAML files
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let ended = match Flags::parse().command {
        Command::Agents(options) => agents::run(&options),
        Command::Demo(options) => demo::run(options),
        Command::GenerateToken => tokens::generate(),
        Command::HashToken => tokens::hash(),
        Command::Policy(PolicyCommand::Check { directory }) => policy::check(&directory),
        Command::Tied { parent, command } => tied::exec(parent, &command),
    };
    match ended {
        Ok(code) => code,
        Err(error) => {
            eprintln!("postern: {error:#}");
            ExitCode::FAILURE
        }
    }
}
