//! `postern-edge`: flags, telemetry, exit code. Everything else is the library's.

use clap::Parser;
use postern_edge::config::Config;
use postern_edge::policy::Policies;
use postern_edge::server::{self, Ended};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing::Level;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, filter_fn};
use tracing_subscriber::prelude::*;

/// Its background thread gives memory back after a storm of connections; glibc keeps it for good.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// The edge of Postern: terminates TLS and WebSockets, limits per token, forwards to brokers.
#[derive(Debug, Parser)]
#[command(name = "postern-edge", version)]
struct Flags {
    /// The configuration file (YAML).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Reads and checks the configuration and the policies, says what is wrong with them, and exits.
    #[arg(long)]
    check: bool,
    /// Takes the listening sockets over from the edge whose `handover.socket` this is; starts without where none runs.
    #[arg(long, value_name = "SOCKET")]
    upgrade_from: Option<PathBuf>,
}

fn main() -> ExitCode {
    let flags = Flags::parse();
    let config = match Config::load(&flags.config) {
        Ok(config) => config,
        Err(error) => return fail(&error.into()),
    };
    if flags.check {
        if let Err(error) = Policies::load(config.policies.as_deref()) {
            return fail(&error.into());
        }
        println!("{} is valid", flags.config.display());
        return ExitCode::SUCCESS;
    }
    telemetry();
    match server::run(config, flags.upgrade_from.as_deref()) {
        Ok(Ended::Drained) => {
            tracing::info!("drained");
            ExitCode::SUCCESS
        }
        Ok(Ended::Cut(streams)) => {
            tracing::error!(
                streams = streams.busy,
                "drain.grace ended before all streams did; they were cut"
            );
            ExitCode::FAILURE
        }
        Ok(Ended::Interrupted(streams)) => {
            tracing::error!(streams = streams.busy, "second signal; streams were cut");
            ExitCode::FAILURE
        }
        Err(error) => fail(&error),
    }
}

/// One line with all causes.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("postern-edge: {error:#}");
    ExitCode::FAILURE
}

/// JSON lines on stderr, as `POSTERN_LOG` asks for (default `info`).
fn telemetry() {
    let asked = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    // Below info, libraries print whole request heads, and with them tokens. No setting may turn that on.
    let ours = filter_fn(|about| {
        *about.level() <= Level::INFO || about.target().starts_with("postern") || about.target() == "access"
    })
    // A filter without a hint keeps every debug and trace call of every library awake.
    .with_max_level_hint(LevelFilter::TRACE);
    let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr);
    tracing_subscriber::registry().with(json.with_filter(asked.and(ours))).init();
}
