//! Who would have been refused, how often, and by which document.
//!
//! Under `simulate`; for people and, as JSON, for CI.

use super::play::Who;
use crate::Rule;
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt;
use std::time::Duration;

/// Names that are kept for all causes together.
const KEPT: usize = 10_000;
/// Names that are shown for each cause.
const SHOWN: usize = 20;

/// What came of a trace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub lines: u64,
    /// Lines that are no JSON, too long, or access lines without what every one has.
    pub unreadable: u64,
    /// Lines of the same program about something else.
    pub other_lines: u64,
    /// Streams that were judged.
    pub judged: u64,
    /// Of these, how many would have been refused...
    pub refused: u64,
    /// ...how many were refused at the time, and how many of those would not have been by these policies. What refused them
    /// may be something that no policy says.
    pub refused_before: u64,
    pub newly_admitted: u64,
    /// From the beginning of the first stream to that of the last.
    pub span: Duration,
    /// Streams that began before others whose line came much earlier; judged as if they had begun later.
    pub late: u64,
    /// Limits that were not judged, because there were too many different names.
    pub untracked: u64,
    /// The most frequent first; those that are enforced before those that are only reported.
    pub refusals: Vec<Refused>,
    /// What the trace does not say and the policies ask for.
    pub notes: Vec<String>,
}

/// What one document would have refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Refused {
    /// As in the documents, under `spec`.
    pub field: &'static str,
    pub rule: Rule,
    /// Whether the document only reports: then nobody would have been refused.
    pub report: bool,
    pub times: u64,
    /// The most frequent first: `token ab12cd34`, `address 10.1.2.3`, `agent 42`, each with its times.
    pub names: Vec<(String, u64)>,
    /// The times of names that are not among them.
    pub others: u64,
}

/// Counts by field, mode and document.
#[derive(Debug, Default)]
pub(super) struct Causes<'a> {
    counts: HashMap<(&'static str, bool, &'a Rule), Count>,
    kept: usize,
}

#[derive(Debug, Default)]
struct Count {
    times: u64,
    names: HashMap<Who, u64>,
}

impl<'a> Causes<'a> {
    pub(super) fn add(&mut self, field: &'static str, report: bool, rule: &'a Rule, who: Who) {
        let count = self.counts.entry((field, report, rule)).or_default();
        count.times += 1;
        if let Some(times) = count.names.get_mut(&who) {
            *times += 1;
        } else if self.kept < KEPT {
            self.kept += 1;
            count.names.insert(who, 1);
        }
    }

    pub(super) fn finish(self) -> Vec<Refused> {
        let mut refused: Vec<_> = self.counts.into_iter().map(|(cause, count)| count.told(cause)).collect();
        refused.sort_by_key(|one| {
            (one.report, Reverse(one.times), one.field, one.rule.file.clone(), one.rule.line)
        });
        refused
    }
}

impl Count {
    fn told(self, (field, report, rule): (&'static str, bool, &Rule)) -> Refused {
        let mut names: Vec<_> = self.names.into_iter().collect();
        names.sort_by_key(|(who, times)| (Reverse(*times), *who));
        names.truncate(SHOWN);
        let shown: u64 = names.iter().map(|(_, times)| times).sum();
        let names = names.into_iter().map(|(who, times)| (who.to_string(), times)).collect();
        Refused { field, rule: rule.clone(), report, times: self.times, names, others: self.times - shown }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { lines, judged, refused, refused_before, newly_admitted, .. } = self;
        writeln!(
            f,
            "{judged} streams over {:?} on {lines} lines; {} about something else, {} unreadable",
            Duration::from_secs(self.span.as_secs()),
            self.other_lines,
            self.unreadable
        )?;
        write!(
            f,
            "{refused} would be refused; {refused_before} were at the time, of which {newly_admitted} would not be by these \
             policies"
        )?;
        for one in &self.refusals {
            let would = if one.report { "reported only" } else { "refused" };
            write!(f, "\n{} ({}): {would} {} times", one.field, one.rule, one.times)?;
            for (name, times) in &one.names {
                write!(f, "\n  {name}: {times}")?;
            }
            if one.others > 0 {
                write!(f, "\n  others: {}", one.others)?;
            }
        }
        if self.late > 0 {
            write!(
                f,
                "\nnote: {} streams began long before their lines came, and were judged late",
                self.late
            )?;
        }
        if self.untracked > 0 {
            write!(
                f,
                "\nnote: {} times a limit was not judged, for there were too many names",
                self.untracked
            )?;
        }
        for note in &self.notes {
            write!(f, "\nnote: {note}")?;
        }
        Ok(())
    }
}
