//! `agentk`: flags and environment in, the agent of `postern_agent` out, or its check. Prints what went wrong and how it
//! ends.

use clap::Parser;
use postern_agent::{app, check, config, drain, observability::logging};
use std::{io::Write, process::ExitCode};

fn main() -> ExitCode {
    let config::CommandLine { flags, command } = match config::CommandLine::try_parse() {
        Ok(line) => line,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return ExitCode::SUCCESS;
        }
        Err(error) => {
            let text = error.render().to_string();
            return aborted(text.lines().next().unwrap_or_default().trim_start_matches("error: "));
        }
    };
    if flags.version {
        println!("{}", config::version());
        return ExitCode::SUCCESS;
    }
    if let Some(config::Command::Check(flags)) = command {
        return check(flags);
    }
    let log_level = match logging::install(env("POSTERN_LOG")) {
        Ok(log_level) => log_level,
        Err(problem) => return aborted(&problem),
    };
    let config = match config::Config::from_flags(flags, env) {
        Ok(config) => config,
        Err(problems) => return aborted(&problems.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return aborted(&format!("no runtime: {error}")),
    };
    let result = runtime.block_on(async {
        let signal = drain::Signals::listen()?.first();
        app::run(config, log_level, signal).await
    });
    // Requests that outlived the deadline are not waited for.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => aborted(&postern_agent::error::chain(&*error)),
    }
}

fn env(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The report goes to stdout, and the log, which is silent unless `POSTERN_LOG` says otherwise, to stderr.
fn check(config::CheckFlags { json, flags }: config::CheckFlags) -> ExitCode {
    if let Err(problem) = logging::install(env("POSTERN_LOG").or_else(|| Some("off".to_owned()))) {
        return aborted(&problem);
    }
    let config = match config::Config::from_flags(flags, env) {
        Ok(config) => config,
        Err(problems) => return aborted(&problems.to_string()),
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return aborted(&format!("no runtime: {error}")),
    };
    let result = runtime.block_on(check::run(config, check::STEP));
    // A resolver's thread may still hang.
    runtime.shutdown_background();
    match result {
        Ok(report) => {
            let text = if json { format!("{}\n", report.json()) } else { report.to_string() };
            // Nobody reads any more: the exit code says it all.
            let _ = std::io::stdout().write_all(text.as_bytes());
            ExitCode::from(report.exit_code())
        }
        Err(error) => aborted(&postern_agent::error::chain(&*error)),
    }
}

fn aborted(problem: &str) -> ExitCode {
    eprintln!("Program aborted: {problem}");
    ExitCode::FAILURE
}
