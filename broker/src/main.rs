//! `kas`: flags, telemetry, run, exit code. Everything else is in the library.

use anyhow::Context;
use clap::Parser;
use postern_broker::{
    app::{self, Drained, PROGRAM},
    config::{Config, Provider},
    identities::IdentitySource,
    policies,
};
use std::{path::PathBuf, process::ExitCode};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

#[derive(Parser)]
#[command(
    name = "kas",
    about = "Reaches Kubernetes clusters through the agents that dialled out of them",
    disable_version_flag = true
)]
struct Flags {
    /// Configuration file (YAML)
    #[arg(long, value_name = "FILE", required_unless_present = "version")]
    configuration_file: Option<PathBuf>,
    /// Read the configuration and identities files, report every problem, and exit
    #[arg(long)]
    check: bool,
    /// Print the version and exit
    #[arg(long)]
    version: bool,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Program aborted: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<ExitCode> {
    let flags = Flags::parse();
    if flags.version {
        let built = option_env!("POSTERN_BUILT").unwrap_or("unknown");
        println!("kas version {}, commit: {}, built: {built}", PROGRAM.version, PROGRAM.commit);
        return Ok(ExitCode::SUCCESS);
    }
    let file = flags.configuration_file.context("--configuration-file is required")?;
    let mut config = Config::load(&file)?;
    config.read_environment(|name| std::env::var(name).ok())?;
    if flags.check {
        if let Provider::Embedded { identities_file } = &config.provider {
            IdentitySource::load(identities_file.clone())?;
        }
        policies::open(config.policies.as_deref())?;
        for key in &config.not_in_force {
            println!("{key} is accepted and not in force yet");
        }
        for warning in &config.warnings {
            println!("{warning}");
        }
        println!("{} is valid", file.display());
        return Ok(ExitCode::SUCCESS);
    }
    let default = format!("{},h2=info,hyper=info", config.observability.level);
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(serve(config))
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let bound = app::start(config).await?;
    let first = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    first.await;
    let second = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    tokio::select! {
        drained = bound.drain() => Ok(match drained {
            Drained::Clean => {
                tracing::info!("drained");
                ExitCode::SUCCESS
            }
            Drained::Cut(requests) => {
                tracing::error!(requests, "requests were still running at the deadline and were cut");
                ExitCode::FAILURE
            }
        }),
        () = second => {
            tracing::warn!("second signal: exiting at once");
            Ok(ExitCode::FAILURE)
        }
    }
}
