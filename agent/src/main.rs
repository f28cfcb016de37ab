//! `agentk`: flags and environment in, the agent of `postern_agent` out. Prints what went wrong and how it ends.

use clap::Parser;
use postern_agent::{app, config, drain, observability::logging};
use std::process::ExitCode;

fn main() -> ExitCode {
    let flags = match config::Flags::try_parse() {
        Ok(flags) => flags,
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
    let env = |name: &str| std::env::var(name).ok();
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

fn aborted(problem: &str) -> ExitCode {
    eprintln!("Program aborted: {problem}");
    ExitCode::FAILURE
}
