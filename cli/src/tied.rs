//! `postern tied PARENT PROGRAM..`: becomes another program, after asking the system to kill it when the parent dies.
//! `demo` starts its children through this, so that they do not survive it even if it is killed with -9. Linux only;
//! elsewhere the program is started without that promise.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, bail};

/// Returns only when the program cannot be started.
pub(crate) fn exec(parent: i32, command: &[OsString]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().context("no program was given")?;
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        set_parent_process_death_signal(Some(Signal::KILL)).context("tie this process to its parent")?;
        // The parent may have died before the line above.
        if getppid().map(|pid| pid.as_raw_nonzero().get()) != Some(parent) {
            bail!("the parent process {parent} is gone");
        }
    }
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("start {}", program.display()))
}
