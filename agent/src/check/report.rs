//! What a check has found: eight steps in the order of the way, as a table for people, as JSON, and as an exit code.
//! Servers' words end up here and go to a terminal: no control character and no secret of the agent gets through.

use crate::broker::{address::Scheme, advice::Failure, connection::OpenError, dial::DialError};
use serde_json::{Value, json};
use std::{fmt, future::Future, time::Duration};
use tokio::time::{Instant, timeout};

/// Exit codes of failed steps begin here: lower ones have meanings of their own.
const FIRST_CODE: u8 = 10;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    Ok,
    /// The agent does not work before this is mended.
    Failed,
    /// Not needed here, or not reached.
    Skipped,
    /// It works, with a part missing or by a detour.
    Warning,
}

impl State {
    /// As JSON and the table say it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Warning => "warning",
        }
    }
}

/// One step.
#[derive(Clone, Debug)]
pub struct Step {
    /// `dns`, `tcp`, `proxy`, `tls`, `upgrade` (or `alpn`, `h2c`), `token`, `tunnel`, `kubernetes`.
    pub name: &'static str,
    pub state: State,
    /// What was found, on one line.
    pub finding: String,
    /// What to do; may have several lines.
    pub fix: Option<String>,
    pub took: Duration,
}

/// All steps.
#[derive(Clone, Debug)]
pub struct Report {
    /// As it may be logged.
    pub address: String,
    /// Always all eight.
    pub steps: Vec<Step>,
}

/// A step that leads on. With a `fix` it is a warning.
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) finding: String,
    pub(super) fix: Option<String>,
}

/// A step that leads nowhere.
#[derive(Clone)]
pub(super) struct Trouble {
    pub(super) finding: String,
    /// May be empty.
    pub(super) fix: String,
}

/// What is said when a step takes too long.
pub(super) struct Silence {
    pub(super) what: String,
    pub(super) fix: &'static str,
}

impl<T> Found<T> {
    pub(super) fn new(value: T, finding: impl Into<String>) -> Self {
        Self { value, finding: finding.into(), fix: None }
    }

    pub(super) fn but(self, fix: impl Into<String>) -> Self {
        Self { fix: Some(fix.into()), ..self }
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Self { finding: crate::error::chain(&failure), fix: failure.advice().into_owned() }
    }
}

impl From<DialError> for Trouble {
    fn from(error: DialError) -> Self {
        Failure::from(error).into()
    }
}

impl From<OpenError> for Trouble {
    fn from(error: OpenError) -> Self {
        Failure::from(error).into()
    }
}

/// Steps on their way.
pub(super) struct Steps {
    limit: Duration,
    names: [&'static str; 8],
    done: Vec<Step>,
}

impl Steps {
    pub(super) fn new(limit: Duration, scheme: Scheme) -> Self {
        let speak = match scheme {
            Scheme::Ws | Scheme::Wss => "upgrade",
            Scheme::Grpcs => "alpn",
            Scheme::Grpc => "h2c",
        };
        let names = ["dns", "tcp", "proxy", "tls", speak, "token", "tunnel", "kubernetes"];
        Self { limit, names, done: Vec::with_capacity(names.len()) }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// Does the next step; `None` if it failed.
    pub(super) async fn run<T>(
        &mut self,
        silence: Silence,
        step: impl Future<Output = Result<Found<T>, Trouble>>,
    ) -> Option<T> {
        let (began, limit) = (Instant::now(), self.limit);
        let late = || {
            let Silence { what, fix } = silence;
            Err(Trouble { finding: format!("{what} within {limit:?}"), fix: fix.to_owned() })
        };
        let ended = timeout(limit, step).await.unwrap_or_else(|_| late());
        let took = began.elapsed();
        match ended {
            Ok(Found { value, finding, fix }) => {
                let state = if fix.is_some() { State::Warning } else { State::Ok };
                self.push(state, finding, fix, took);
                Some(value)
            }
            Err(Trouble { finding, fix }) => {
                self.push(State::Failed, finding, Some(fix).filter(|fix| !fix.is_empty()), took);
                None
            }
        }
    }

    /// Leaves the next step out.
    pub(super) fn skip(&mut self, finding: impl Into<String>) {
        self.push(State::Skipped, finding.into(), None, Duration::ZERO);
    }

    /// Part of the last step was done before it.
    pub(super) fn took_also(&mut self, took: Duration) {
        if let Some(last) = self.done.last_mut() {
            last.took += took;
        }
    }

    fn push(&mut self, state: State, finding: String, fix: Option<String>, took: Duration) {
        if let Some(&name) = self.names.get(self.done.len()) {
            self.done.push(Step { name, state, finding, fix, took });
        }
    }

    /// The rest was not reached. `secrets` are not shown, whoever quotes them.
    pub(super) fn finish(mut self, address: String, secrets: &[String]) -> Report {
        let failed = self.done.iter().find(|step| step.state == State::Failed).map_or("", |step| step.name);
        for &name in &self.names[self.done.len()..] {
            let finding = format!("not reached: {failed} failed");
            let took = Duration::ZERO;
            self.done.push(Step { name, state: State::Skipped, finding, fix: None, took });
        }
        for step in &mut self.done {
            step.finding = plain(&step.finding, secrets).replace('\n', " ");
            step.fix = step.fix.as_deref().map(|fix| plain(fix, secrets));
        }
        Report { address, steps: self.done }
    }
}

fn plain(text: &str, secrets: &[String]) -> String {
    let mut text = text.to_owned();
    for secret in secrets {
        text = text.replace(secret, "[secret]");
    }
    text.replace(|c: char| c.is_control() && c != '\n', " ")
}

impl Report {
    /// Whether no step failed.
    pub fn ok(&self) -> bool {
        self.exit_code() == 0
    }

    /// 0, or 10 and the index of the first step that failed.
    pub fn exit_code(&self) -> u8 {
        let failed = self.steps.iter().position(|step| step.state == State::Failed);
        failed.and_then(|index| u8::try_from(index).ok()).map_or(0, |index| FIRST_CODE + index)
    }

    /// `{"ok": bool, "steps": [{"name", "state", "finding", "milliseconds", "fix"}]}`.
    pub fn json(&self) -> Value {
        let steps: Vec<Value> = self.steps.iter().map(Step::json).collect();
        json!({"ok": self.ok(), "steps": steps})
    }
}

impl Step {
    fn json(&self) -> Value {
        json!({
            "name": self.name,
            "state": self.state.as_str(),
            "finding": self.finding,
            "milliseconds": self.milliseconds(),
            "fix": self.fix,
        })
    }

    fn milliseconds(&self) -> u64 {
        u64::try_from(self.took.as_millis()).unwrap_or(u64::MAX)
    }
}

/// The table.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}\n", self.address)?;
        for step in &self.steps {
            let took = match step.state {
                State::Skipped => String::new(),
                _ => format!("{} ms", step.milliseconds()),
            };
            writeln!(f, "{:<10}  {:<7}  {took:>8}  {}", step.name, step.state.as_str(), step.finding)?;
            let mut mark = "fix: ";
            for line in step.fix.iter().flat_map(|fix| fix.lines()) {
                writeln!(f, "{:31}{mark}{line}", "")?;
                mark = "     ";
            }
        }
        let failed = self.steps.iter().find(|step| step.state == State::Failed);
        let warnings = self.steps.iter().filter(|step| step.state == State::Warning).count();
        match (failed, warnings) {
            (Some(step), _) => writeln!(f, "\n{} failed; exit code {}", step.name, self.exit_code()),
            (None, 0) => writeln!(f, "\nall well"),
            (None, 1) => writeln!(f, "\nit works, with 1 warning"),
            (None, count) => writeln!(f, "\nit works, with {count} warnings"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence() -> Silence {
        Silence { what: "nothing came".to_owned(), fix: "wake it" }
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_that_takes_too_long_fails_and_the_rest_is_skipped() {
        let mut steps = Steps::new(Duration::from_secs(10), Scheme::Wss);
        assert!(steps.run(silence(), async { Ok(Found::new((), "well")) }).await.is_some());
        let never = std::future::pending::<Result<Found<()>, Trouble>>();
        assert!(steps.run(silence(), never).await.is_none());
        let report = steps.finish("wss://kas/".to_owned(), &[]);
        assert_eq!((report.exit_code(), report.ok(), report.steps.len()), (11, false, 8));
        assert_eq!(report.steps[1].finding, "nothing came within 10s");
        assert_eq!(report.steps[1].fix.as_deref(), Some("wake it"));
        assert!(report.steps[2..].iter().all(|step| step.state == State::Skipped));
        assert_eq!(report.json()["steps"][1]["milliseconds"], 10_000);
        let table = report.to_string();
        assert!(table.contains("tcp         failed   10000 ms  nothing came within 10s\n"), "{table}");
        assert!(table.ends_with("tcp failed; exit code 11\n"), "{table}");
    }

    #[tokio::test]
    async fn secrets_and_control_characters_of_servers_do_not_get_through() {
        let mut steps = Steps::new(Duration::from_secs(10), Scheme::Grpc);
        let said = async { Ok(Found::new((), "it said\u{1b}[31m glagent-x\nand on").but("a:\n  glagent-x")) };
        steps.run(silence(), said).await;
        let report = steps.finish("grpc://kas".to_owned(), &["glagent-x".to_owned()]);
        assert_eq!(report.steps[0].finding, "it said [31m [secret] and on");
        assert_eq!(report.steps[0].fix.as_deref(), Some("a:\n  [secret]"));
        assert_eq!(report.steps[0].state, State::Warning);
    }
}
