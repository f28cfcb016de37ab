//! `postern`: the operator's tool. Flags, dispatch to one module per command, exit code; everything else is in those
//! modules. It never serves traffic: the programs that do are started by `demo` as children, or by the operator.

mod agents;
mod demo;
mod policy;
mod tied;
mod tokens;

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
    Policy(policy::Command),
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

fn main() -> ExitCode {
    let ended = match Flags::parse().command {
        Command::Agents(options) => agents::run(&options),
        Command::Demo(options) => demo::run(options),
        Command::GenerateToken => tokens::generate(),
        Command::HashToken => tokens::hash(),
        Command::Policy(command) => policy::run(&command),
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
