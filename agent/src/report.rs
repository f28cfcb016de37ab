//! Tells the broker what became of what it sent: of a configuration, and of each project's manifests. Before it: whoever
//! applied them, who never waits here. After it: the broker's `AgentReports`. Of each kind and project only the newest
//! report is kept and sent, at most one a second, so nothing here grows with how much happens.

#[cfg(test)]
mod tests;

use crate::{
    backoff::Backoff,
    broker::{Road, connection::Connection, gate::Refusal},
    error,
};
use postern_wire::proto::postern::agent::{
    ConfigurationReport, GitopsReport, Problem, ReportRequest, agent_reports_client::AgentReportsClient,
    report_request::About,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, sleep_until, timeout},
};
use tonic::{Code, Status, codec::CompressionEncoding};
use tracing::{debug, info, warn};

/// More projects than the agent follows.
const PROJECTS: usize = 100;
/// The most problems of a report.
pub const PROBLEMS: usize = 50;
/// The most objects of a report.
pub const RESULTS: usize = 100;
/// The most bytes of one text in a report.
pub const TEXT: usize = 512;
/// Between two reports of the same kind and project.
const EVERY: Duration = Duration::from_secs(1);
const ANSWER: Duration = Duration::from_secs(10);
const CONNECTION_END: Duration = Duration::from_millis(200);

/// Where reports are left. Clones share it; without a [`Sending`] that runs, reports stay where they are.
#[derive(Clone, Default)]
pub struct Reports(Arc<Shared>);

/// What sends them.
pub struct Sending(Reports);

#[derive(Default)]
struct Shared {
    told: Mutex<Told>,
    news: Notify,
}

#[derive(Default)]
struct Told {
    entries: BTreeMap<Key, Entry>,
    /// How many reports there have been.
    count: u64,
}

/// What there is one newest report of.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Configuration,
    Gitops(String),
}

struct Entry {
    about: About,
    /// The broker is yet to be told.
    waits: bool,
    /// Since when, as a number of [`Told::count`].
    number: u64,
    /// When it may be told again.
    after: Option<Instant>,
}

/// Reports and what sends them.
pub fn reports() -> (Reports, Sending) {
    let reports = Reports::default();
    (reports.clone(), Sending(reports))
}

impl Reports {
    /// What became of a configuration.
    pub fn configuration(&self, mut report: ConfigurationReport) {
        bound(&mut report.problems);
        self.tell(Key::Configuration, About::Configuration(report));
    }

    /// How far a project's manifests have come. Texts and lists that are too long are cut.
    pub fn gitops(&self, mut report: GitopsReport) {
        bound(&mut report.problems);
        report.results.truncate(RESULTS);
        for result in &mut report.results {
            line(&mut result.text);
            line(&mut result.file);
        }
        self.tell(Key::Gitops(report.project.clone()), About::Gitops(report));
    }

    /// The project is another replica's now, or nobody's: nothing more is said of it, be it on another connection.
    pub fn forget(&self, project: &str) {
        self.told().entries.remove(&Key::Gitops(project.to_owned()));
    }

    fn tell(&self, key: Key, about: About) {
        let mut told = self.told();
        told.count += 1;
        let number = told.count;
        match told.entries.get_mut(&key) {
            // It was said, or is about to be.
            Some(known) if known.about == about => return,
            Some(known) => {
                known.about = about;
                if !known.waits {
                    (known.waits, known.number) = (true, number);
                }
            }
            None => {
                if told.entries.len() > PROJECTS {
                    told.let_one_go();
                }
                told.entries.insert(key, Entry { about, waits: true, number, after: None });
            }
        }
        drop(told);
        self.0.news.notify_one();
    }

    /// The next report that is due.
    async fn next(&self) -> (Key, About) {
        loop {
            let next = {
                let mut told = self.told();
                let now = Instant::now();
                // Those that may go now come before those that must wait; among them, who has waited longest.
                let due = |entry: &Entry| (entry.after.filter(|after| *after > now), entry.number);
                let waiting = told.entries.iter_mut().filter(|(_, entry)| entry.waits);
                match waiting.min_by_key(|(_, entry)| due(entry)) {
                    None => None,
                    Some((key, entry)) => match due(entry).0 {
                        Some(later) => Some(later),
                        None => {
                            entry.waits = false;
                            entry.after = Some(now + EVERY);
                            return (key.clone(), entry.about.clone());
                        }
                    },
                }
            };
            let news = self.0.news.notified();
            match next {
                None => news.await,
                Some(later) => tokio::select! {
                    () = news => {}
                    () = sleep_until(later) => {}
                },
            }
        }
    }

    /// What was taken did not arrive.
    fn put_back(&self, key: &Key) {
        if let Some(entry) = self.told().entries.get_mut(key) {
            entry.waits = true;
        }
    }

    /// Another broker may be behind another connection, or one that has forgotten everything.
    fn all_again(&self) {
        for entry in self.told().entries.values_mut() {
            entry.waits = true;
        }
        self.0.news.notify_one();
    }

    fn told(&self) -> MutexGuard<'_, Told> {
        self.0.told.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    /// Makes room: what the broker knows goes first, and the oldest of that.
    fn let_one_go(&mut self) {
        let projects = self.entries.iter().filter(|(key, _)| **key != Key::Configuration);
        let oldest = projects.min_by_key(|(_, entry)| (entry.waits, entry.number));
        if let Some(key) = oldest.map(|(key, _)| key.clone()) {
            self.entries.remove(&key);
        }
    }
}

impl Sending {
    /// Never returns. `pod_name` says which replica tells.
    pub async fn send(self, road: Road, pod_name: String) {
        let Self(reports) = self;
        let mut known: Option<Connection> = None;
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60), 2.0);
        loop {
            let connection = road.connection().await;
            if known.replace(connection.clone()).is_some_and(|known| !known.same_as(&connection)) {
                reports.all_again();
            }
            tokio::select! {
                () = send_over(&reports, &road, &connection, &pod_name, &mut backoff) => {}
                () = road.another_than(&connection) => {}
            }
        }
    }
}

/// Returns when the road is closed to this token.
async fn send_over(
    reports: &Reports,
    road: &Road,
    connection: &Connection,
    pod_name: &str,
    backoff: &mut Backoff,
) {
    let mut client = AgentReportsClient::new(connection.clone()).accept_compressed(CompressionEncoding::Gzip);
    loop {
        let (key, about) = reports.next().await;
        let request = ReportRequest { pod_name: pod_name.to_owned(), about: Some(about) };
        let answer = timeout(ANSWER, client.report(request)).await;
        let status = match answer.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer"))) {
            Ok(_) => {
                road.admitted();
                backoff.reset();
                continue;
            }
            Err(status) => status,
        };
        if connection.ends_within(CONNECTION_END, &status).await {
            return std::future::pending().await;
        }
        match status.code() {
            Code::Unimplemented => {
                info!("the broker takes no reports; what the agent does is in its own log and metrics only");
                return std::future::pending().await;
            }
            Code::Unavailable
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Unauthenticated
            | Code::PermissionDenied => {}
            // It is about this report, and would hold back all others.
            _ => {
                warn!(error = %error::status(&status), "the broker does not take a report; it is dropped");
                continue;
            }
        }
        reports.put_back(&key);
        // Only what is surely about the token: a broker that wants fewer reports must not lose its tunnels over them.
        let about_token = matches!(Refusal::of(&status), Some(Refusal::Unauthenticated | Refusal::Later));
        if about_token && road.refused(connection, &status) {
            return;
        }
        let delay = backoff.step();
        debug!(error = %error::status(&status), retry_in = ?delay, "no report");
        sleep(delay).await;
    }
}

fn bound(problems: &mut Vec<Problem>) {
    if problems.len() > PROBLEMS {
        let more = problems.len() - (PROBLEMS - 1);
        problems.truncate(PROBLEMS - 1);
        problems.push(Problem { text: format!("and {more} more"), ..Problem::default() });
    }
    for problem in problems {
        line(&mut problem.r#where);
        line(&mut problem.text);
    }
}

/// Makes it one line of at most [`TEXT`] bytes.
pub(crate) fn line(text: &mut String) {
    if text.len() > TEXT {
        let room = TEXT - '…'.len_utf8();
        let end = (0..=room).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or_default());
        text.push('…');
    }
    if text.contains(char::is_control) {
        *text = text.replace(char::is_control, " ");
    }
}
