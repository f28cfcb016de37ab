//! How far a project's commit is, in one report: counts, a state, and what somebody should look at. It looks at the
//! task and changes nothing.

use crate::{
    gitops::{
        engine::{
            api::Api,
            progress::State,
            remove::Fate,
            results,
            task::{Stage, Task},
        },
        status::Status,
    },
    report::RESULTS,
};
use postern_wire::proto::postern::agent::{GitopsReport, Problem};
use tokio::time::Instant;

impl<A: Api> Task<A> {
    /// How things are, and when that changes by itself.
    pub(super) fn report(&self, now: Instant) -> (GitopsReport, Option<Instant>) {
        let mut report = GitopsReport::default();
        let (mut bad, mut waiting, mut good) = (Vec::new(), Vec::new(), Vec::new());
        let mut changes: Option<Instant> = None;
        let mut awaited = false;
        let mut count = |deed: Option<&str>| match deed {
            Some("applied") => report.applied += 1,
            Some("unchanged") => report.unchanged += 1,
            Some("corrected") => report.corrected += 1,
            _ => {}
        };
        let mut ready = 0;
        for object in self.objects.iter() {
            count(object.deed.map(|deed| deed.as_str()));
            let manifest = Some(&object.wanted.manifest);
            if let Some(trouble) = &object.trouble {
                bad.push(results::line(object.id(), "failed", trouble.text.clone(), manifest));
                continue;
            }
            if let State::Blocked { why, .. } = &object.state {
                waiting.push(results::line(object.id(), "waiting", why.clone(), manifest));
                continue;
            }
            match object.status() {
                _ if self.settings.dry_run.is_dry() => {}
                Status::Current => ready += 1,
                Status::Failed(why) => bad.push(results::line(object.id(), "failed", why, manifest)),
                status => {
                    let limit = object.mark.as_ref().map(|mark| mark.at + self.settings.reconcile_timeout);
                    match limit {
                        Some(limit) if limit <= now => {}
                        limit => {
                            awaited = true;
                            changes = [changes, limit].into_iter().flatten().min();
                        }
                    }
                    waiting.push(results::line(object.id(), "waiting", status.to_string(), manifest));
                }
            }
        }
        let rejected = self.rest.rejected.iter().chain(&self.rest.unknown);
        bad.extend(
            rejected
                .map(|(manifest, why)| results::line(&manifest.id, "failed", why.clone(), Some(manifest))),
        );
        let mut pruned = 0;
        for (id, fate) in &self.fates {
            match fate {
                Fate::Pruned => {
                    pruned += 1;
                    good.push(results::line(id, "pruned", String::new(), None));
                }
                Fate::Absent => {}
                Fate::Kept(keep) => good.push(results::line(id, "kept", keep.to_string(), None)),
                Fate::Failed { text, .. } => bad.push(results::line(id, "failed", text.clone(), None)),
            }
        }
        report.pruned = pruned;
        report.ready = ready;
        report.objects =
            results::number(self.objects.len() + self.rest.rejected.len() + self.rest.unknown.len());
        report.failed = results::number(bad.len());
        let hindered = self.hindrance.is_some();
        let late = !waiting.is_empty() && !awaited;
        let poor = !bad.is_empty() || !self.rest.problems.is_empty() || late;
        // That something is tried again is no news, but what happens meanwhile is.
        let stage = if self.again_quietly { Stage::Steady } else { self.stage };
        report.state = match stage {
            _ if hindered => "failed",
            Stage::Steady if poor => "degraded",
            Stage::Steady if waiting.is_empty() => "synchronized",
            _ => "synchronizing",
        }
        .to_owned();
        report.problems = self.rest.problems.iter().map(results::problem).collect();
        if let Some(why) = &self.hindrance {
            report.problems.insert(0, Problem { text: why.clone(), ..Problem::default() });
        }
        report.results = bad.into_iter().chain(waiting).chain(good).take(RESULTS).collect();
        (report, changes)
    }
}
