//! One program that the demo runs: started with its log in a file, watched by reading that log, asked to drain and then
//! made to end. It lives in a process group of its own, so that Ctrl-C reaches the demo only, and dies with the demo.

use std::ffi::OsStr;
use std::fmt;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde_json::Value;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

/// How often a log is looked at while something in it is awaited.
const LOOK: Duration = Duration::from_millis(20);
/// Until a program is asked again whether it is ready: at first, and at last. Asking costs requests, and the caller who
/// asks has a rate limit too.
const ASK_AGAIN: Duration = Duration::from_millis(50);
const ASK_AGAIN_AT_LAST: Duration = Duration::from_secs(1);
const LOG_LEVEL: &str = "POSTERN_LOG";
/// Lines of a log that an error shows.
const SHOWN_LINES: usize = 8;
/// Only the end of a log is read for an error.
const SHOWN_BYTES: u64 = 16 << 10;

/// Why a program of the demo is not where it should be.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChildError {
    /// The program or its log file could not be opened.
    #[error("cannot start {}", program.display())]
    Start {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    /// It ended by itself.
    #[error("{name} ended ({status}) {when}; {log}")]
    Ended { name: &'static str, status: ExitStatus, when: String, log: LogEnd },
    /// It lives, but is not what was awaited.
    #[error("{name} is still not {awaited} after {} s{detail}; {log}", waited.as_secs())]
    Late { name: &'static str, awaited: &'static str, waited: Duration, detail: String, log: LogEnd },
    /// Its log or state cannot be read.
    #[error("cannot follow {name}")]
    Follow {
        name: &'static str,
        #[source]
        source: io::Error,
    },
}

/// The last lines of a log, for people; short enough to be a text, long enough to show the cause.
#[derive(Debug)]
pub(super) struct LogEnd(String);

impl LogEnd {
    fn of(path: &Path) -> LogEnd {
        LogEnd(format!("the end of {}:\n{}", path.display(), tail(path)))
    }
}

impl fmt::Display for LogEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

pub(super) struct Child {
    name: &'static str,
    process: tokio::process::Child,
    log: PathBuf,
    reader: File,
    partial: String,
}

impl Child {
    /// Starts a program with standard error and output into `log`. Call it from the main thread: the tie to this
    /// process is really one to the thread that starts the child.
    pub(super) fn start(
        name: &'static str,
        program: &Path,
        arguments: &[&OsStr],
        environment: &[(&str, String)],
        log: PathBuf,
    ) -> Result<Child, ChildError> {
        let failed = |source| ChildError::Start { program: program.to_owned(), source };
        let output = File::create(&log).map_err(failed)?;
        let reader = File::open(&log).map_err(failed)?;
        let own = std::env::current_exe().map_err(failed)?;
        let mut command = Command::new(own);
        // What it logs at info is how its addresses are found.
        let level = std::env::var(LOG_LEVEL).unwrap_or_default();
        if !["info", "debug", "trace"].iter().any(|enough| level.contains(enough)) {
            command.env_remove(LOG_LEVEL);
        }
        let process = command
            .arg("tied")
            .arg(std::process::id().to_string())
            .arg(program)
            .args(arguments)
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        Ok(Child { name, process, log, reader, partial: String::new() })
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn log(&self) -> &Path {
        &self.log
    }

    /// Reads the log until the program is `awaited`: `pick` has found what it looks for in its JSON lines.
    pub(super) async fn awaits<T>(
        &mut self,
        awaited: &'static str,
        patience: Duration,
        mut pick: impl FnMut(&Value) -> Option<T>,
    ) -> Result<T, ChildError> {
        let deadline = Instant::now() + patience;
        loop {
            // Looked at before the log: what a program says last counts.
            let ended = self.ended()?;
            for line in self.new_lines()? {
                let Ok(line) = serde_json::from_str(&line) else { continue };
                if let Some(found) = pick(&line) {
                    return Ok(found);
                }
            }
            if let Some(status) = ended {
                return Err(self.error_ended(status, format!("before it was {awaited}")));
            }
            if Instant::now() > deadline {
                return Err(self.error_late(awaited, patience, String::new()));
            }
            sleep(LOOK).await;
        }
    }

    /// Asks `probe` again and again until it is content. What it says otherwise ends up in the error.
    pub(super) async fn answers<F>(
        &mut self,
        awaited: &'static str,
        patience: Duration,
        mut probe: impl FnMut() -> F,
    ) -> Result<(), ChildError>
    where
        F: Future<Output = Result<(), String>>,
    {
        let deadline = Instant::now() + patience;
        let mut pause = ASK_AGAIN;
        loop {
            let last = match timeout(patience, probe()).await {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(why)) => why,
                Err(_) => "no answer".to_owned(),
            };
            if let Some(status) = self.ended()? {
                return Err(self.error_ended(status, format!("before it was {awaited}")));
            }
            if Instant::now() > deadline {
                return Err(self.error_late(awaited, patience, format!(" ({})", last.trim())));
            }
            sleep(pause).await;
            pause = (pause * 3 / 2).min(ASK_AGAIN_AT_LAST);
        }
    }

    /// The exit status, once it has ended.
    fn ended(&mut self) -> Result<Option<ExitStatus>, ChildError> {
        self.process.try_wait().map_err(|source| ChildError::Follow { name: self.name, source })
    }

    /// An error if the program has ended although nobody asked it to.
    pub(super) fn still_runs(&mut self) -> Result<(), ChildError> {
        match self.ended()? {
            None => Ok(()),
            Some(status) => Err(self.error_ended(status, "while the demo was running".to_owned())),
        }
    }

    /// SIGTERM, then SIGKILL to its whole group after `patience`. Returns whether it ended by itself.
    pub(super) async fn drain(&mut self, patience: Duration) -> bool {
        let Some(pid) = self.pid() else { return true };
        // A failure means that it is gone already.
        let _ = kill_process(pid, Signal::TERM);
        let ended = timeout(patience, self.process.wait()).await.is_ok();
        if !ended {
            let _ = kill_process_group(pid, Signal::KILL);
            let _ = self.process.wait().await;
        }
        ended
    }

    fn pid(&self) -> Option<Pid> {
        self.process.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw)
    }

    fn new_lines(&mut self) -> Result<Vec<String>, ChildError> {
        let mut bytes = Vec::new();
        self.reader
            .read_to_end(&mut bytes)
            .map_err(|source| ChildError::Follow { name: self.name, source })?;
        self.partial.push_str(&String::from_utf8_lossy(&bytes));
        let complete = self.partial.rfind('\n').map_or(0, |end| end + 1);
        let lines = self.partial[..complete].lines().map(str::to_owned).collect();
        self.partial.drain(..complete);
        Ok(lines)
    }

    fn error_ended(&self, status: ExitStatus, when: String) -> ChildError {
        ChildError::Ended { name: self.name, status, when, log: LogEnd::of(&self.log) }
    }

    fn error_late(&self, awaited: &'static str, waited: Duration, detail: String) -> ChildError {
        ChildError::Late { name: self.name, awaited, waited, detail, log: LogEnd::of(&self.log) }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // `kill_on_drop` reaches the program itself; this also what it started.
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// The last lines of a log, indented.
fn tail(path: &Path) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(SHOWN_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(SHOWN_BYTES).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    let text = read().unwrap_or_else(|error| format!("(cannot be read: {error})"));
    let lines: Vec<&str> = text.lines().collect();
    if lines.is_empty() {
        return "  (empty)".to_owned();
    }
    let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
    shown.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::tail;

    #[test]
    fn the_tail_of_a_log_is_its_last_lines() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let text: String = (0..20).map(|n| format!("line {n}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let shown = tail(&path);
        assert!(shown.starts_with("  line 12\n") && shown.ends_with("  line 19"), "{shown}");
    }
}
