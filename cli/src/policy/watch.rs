//! `policy watch URL..`: is it everywhere yet? Asks each process which policies it has in force, once a second, until all
//! have the same ones, or those of a directory. It changes nothing.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Chain, Context as _};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

use super::ask::{AskError, Page, Process};
use super::table;

const EVERY: Duration = Duration::from_secs(1);
/// Of one process; its own page has all.
const SHOWN_PROBLEMS: usize = 5;

/// Which processes, and what they should have.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The observability listeners of edges and brokers: http://HOST:PORT
    #[arg(required = true, value_name = "URL")]
    processes: Vec<Process>,
    /// Wait until all have the policies of this directory in force, and not just the same ones
    #[arg(long, value_name = "DIR")]
    expect: Option<PathBuf>,
    /// Look once; the exit code is 1 where they do not agree
    #[arg(long)]
    once: bool,
    /// Print each look as a line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(options: &Options) -> anyhow::Result<ExitCode> {
    let expected = match &options.expect {
        Some(directory) => match postern_policies::load(directory) {
            Ok(loaded) => Some(loaded.fingerprint),
            Err(problems) => {
                eprintln!("{problems}");
                return Ok(ExitCode::FAILURE);
            }
        },
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("start the I/O of this process")?;
    let agreed = runtime.block_on(watch(options, expected.as_deref()));
    // A name server that is silent keeps its thread.
    runtime.shutdown_background();
    Ok(if agreed? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn watch(options: &Options, expected: Option<&str>) -> io::Result<bool> {
    let mut looks = interval(EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut shown = None;
    loop {
        looks.tick().await;
        let look = Look::take(&options.processes, expected).await;
        if options.json {
            super::say(format_args!("{}\n", look.json()))?;
        } else {
            let text = (look.table(false), look.verdict());
            if shown.as_ref() != Some(&text) {
                super::say(format_args!("{}{}", look.table(true), text.1))?;
                shown = Some(text);
            }
        }
        if look.agrees() || options.once {
            return Ok(look.agrees());
        }
    }
}

/// What all of them said at about one time.
struct Look<'a> {
    answers: Vec<(&'a Process, Result<Page, AskError>)>,
    expected: Option<&'a str>,
}

impl<'a> Look<'a> {
    async fn take(processes: &'a [Process], expected: Option<&'a str>) -> Look<'a> {
        let mut asked = JoinSet::new();
        for (index, process) in processes.iter().cloned().enumerate() {
            asked.spawn(async move { (index, process.ask().await) });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(index, _)| *index);
        let answers = processes.iter().zip(answers).map(|(process, (_, answer))| (process, answer));
        Look { answers: answers.collect(), expected }
    }

    /// The expected fingerprint, or that of the first process that says one.
    fn wanted(&self) -> Option<&str> {
        let mut pages = self.answers.iter().filter_map(|(_, answer)| answer.as_ref().ok());
        let mut first = || pages.find(|page| page.has_directory);
        self.expected.or_else(|| first().map(|page| page.fingerprint.as_str()))
    }

    /// Why a process does not have in force what it should.
    fn lack(&self, answer: &Result<Page, AskError>) -> Option<String> {
        match answer {
            Err(error) => Some(Chain::new(error).map(ToString::to_string).collect::<Vec<_>>().join(": ")),
            Ok(page) if !page.has_directory => {
                Some("it has no policies.directory in its configuration".to_owned())
            }
            Ok(page) if !page.problems.is_empty() => {
                let since = page.bad_for.map(|seconds| format!(", for {}", age(seconds))).unwrap_or_default();
                let problems = table::count(page.problems.len(), "problem", "problems");
                Some(format!("{problems} with its files{since}: it keeps what was good last"))
            }
            Ok(page) if self.wanted() != Some(&page.fingerprint) => Some("other policies".to_owned()),
            Ok(_) => None,
        }
    }

    fn agrees(&self) -> bool {
        self.answers.iter().all(|(_, answer)| self.lack(answer).is_none())
    }

    /// Without what changes all the time it tells whether there is something new to show.
    fn table(&self, with_ages: bool) -> String {
        let mut rows =
            vec![["PROCESS", "GENERATION", "FINGERPRINT", "AGE", "REMARK"].map(str::to_owned).to_vec()];
        for (process, answer) in &self.answers {
            let lack = self.lack(answer).unwrap_or_default();
            rows.push(match answer {
                Ok(page) => {
                    let age = if with_ages { age(page.age) } else { String::new() };
                    let fingerprint =
                        if page.has_directory { page.fingerprint.clone() } else { "-".to_owned() };
                    let lack =
                        if with_ages || page.problems.is_empty() { lack } else { page.problems.join("\n") };
                    vec![process.to_string(), page.generation.to_string(), fingerprint, age, lack]
                }
                Err(_) => vec![process.to_string(), "-".into(), "-".into(), "-".into(), lack],
            });
        }
        let mut text = table::columns(&rows);
        for (process, answer) in &self.answers {
            let problems = answer.as_ref().map(|page| page.problems.as_slice()).unwrap_or_default();
            for problem in problems.iter().take(SHOWN_PROBLEMS) {
                text += &format!("  {process}: {}\n", table::plain(problem));
            }
            if problems.len() > SHOWN_PROBLEMS {
                text += &format!("  {process}: and {} more\n", problems.len() - SHOWN_PROBLEMS);
            }
        }
        text
    }

    fn verdict(&self) -> String {
        let all = self.answers.len();
        let there = self.answers.iter().filter(|(_, answer)| self.lack(answer).is_none()).count();
        let wanted = table::plain(self.wanted().unwrap_or("-"));
        match self.expected {
            Some(_) => format!("{there} of {all} have {wanted} in force, as expected\n"),
            None if there == all => format!("all {all} have {wanted} in force\n"),
            None => format!("{there} of {all} have {wanted} in force without a problem\n"),
        }
    }

    fn json(&self) -> Value {
        let processes = self.answers.iter().map(|(process, answer)| match answer {
            Ok(page) => json!({
                "url": process.url, "generation": page.generation, "fingerprint": page.fingerprint,
                "age_seconds": page.age, "problems": page.problems, "bad_for_seconds": page.bad_for,
                "remark": self.lack(answer),
            }),
            Err(_) => json!({"url": process.url, "remark": self.lack(answer)}),
        });
        let processes: Vec<_> = processes.collect();
        json!({"agreed": self.agrees(), "fingerprint": self.wanted(), "processes": processes})
    }
}

/// As short as it is of use.
fn age(seconds: f64) -> String {
    match seconds {
        ..100.0 => format!("{seconds:.0}s"),
        ..6_000.0 => format!("{:.0}m", seconds / 60.0),
        ..360_000.0 => format!("{:.0}h", seconds / 3_600.0),
        _ => format!("{:.0}d", seconds / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(fingerprint: &str) -> Result<Page, AskError> {
        Ok(Page {
            generation: 2,
            fingerprint: fingerprint.to_owned(),
            age: 3.2,
            problems: Vec::new(),
            bad_for: None,
            has_directory: true,
        })
    }

    #[test]
    fn processes_agree_only_on_one_fingerprint_without_problems_and_without_silence() {
        let processes: Vec<Process> =
            ["http://edge:1", "http://kas:2"].map(|url| url.parse().unwrap()).into();
        let bad = page("aa").map(|page| Page {
            problems: vec!["x.yaml: \u{1b}no".into()],
            bad_for: Some(7200.0),
            ..page
        });
        let none = page("").map(|page| Page { has_directory: false, ..page });
        for (second, expected, agrees, words) in [
            (page("aa"), None, true, "all 2 have aa in force"),
            (page("aa"), Some("aa"), true, "2 of 2 have aa in force, as expected"),
            (page("aa"), Some("bb"), false, "0 of 2 have bb in force, as expected"),
            (
                page("bb"),
                None,
                false,
                "http://kas:2   2           bb           3s   other policies\n1 of 2 have aa",
            ),
            (
                bad,
                None,
                false,
                "1 problem with its files, for 2h: it keeps what was good last\n  http://kas:2: x.yaml: ?no",
            ),
            (none, None, false, "no policies.directory"),
            (Err(AskError::Late), None, false, "-            -    no answer within 5s"),
        ] {
            let answers = processes.iter().zip([page("aa"), second]).collect();
            let look = Look { answers, expected };
            let text = format!("{}{}", look.table(true), look.verdict());
            assert!(look.agrees() == agrees && text.contains(words), "{text}");
            assert_eq!(look.json()["agreed"], agrees);
        }
    }

    #[test]
    fn ages_are_short() {
        for (seconds, words) in
            [(0.2, "0s"), (99.0, "99s"), (119.0, "2m"), (7_300.0, "2h"), (999_999.0, "12d")]
        {
            assert_eq!(age(seconds), words);
        }
    }
}
