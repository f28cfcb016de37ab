//! Tells GitLab what was counted, once a period and once at the end.

use super::Usage;
use crate::{
    error::chain,
    gitlab::{Call, Fault, Rails, RailsError, UsageForm},
};
use http::StatusCode;
use rand::Rng;
use std::{sync::Arc, time::Duration};
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long the last report may take after `stop`.
pub const FLUSH: Duration = Duration::from_secs(2);

/// Tells GitLab every `period`, up to a tenth earlier or later so that brokers do not march in step; after `stop` once
/// more, within [`FLUSH`]. Zero: never. Spawn it once, and wait for it at the end.
pub async fn report(usage: Arc<Usage>, rails: Arc<Rails>, period: Duration, stop: CancellationToken) {
    if period.is_zero() {
        return;
    }
    let mut failing = Failing::default();
    let mut until = None;
    while until.is_none() {
        let pause = period.mul_f64(rand::rng().random_range(0.9..=1.1));
        if stop.run_until_cancelled(sleep(pause)).await.is_none() {
            break;
        }
        let told = tell(&usage, &rails, &mut failing);
        tokio::pin!(told);
        tokio::select! {
            biased;
            () = &mut told => {}
            () = stop.cancelled() => {
                let end = Instant::now() + FLUSH;
                // Given up half-way and told again, it might be counted twice.
                if timeout_at(end, told).await.is_err() {
                    return unheard();
                }
                until = Some(end);
            }
        }
    }
    let until = until.unwrap_or_else(|| Instant::now() + FLUSH);
    if timeout_at(until, tell(&usage, &rails, &mut failing)).await.is_err() {
        unheard();
    }
}

fn unheard() {
    tracing::warn!(waited = ?FLUSH, "GitLab did not take the last usage report in time");
}

/// Which reports failed last time: said once, not at every attempt.
#[derive(Debug, Default)]
struct Failing {
    usage: bool,
    events: bool,
}

async fn tell(usage: &Usage, rails: &Rails, failing: &mut Failing) {
    let call = Call::default();
    let now = usage.now();
    let mut form = rails.usage_form();
    let mut told = rails.usage_metrics(&now.usage(form), form, &call).await;
    if form == UsageForm::Flat && told.as_ref().is_err_and(is_about_the_form) {
        // Nothing that it said so far shows it to be newer.
        let newer =
            rails.usage_metrics(&now.usage(UsageForm::Structured), UsageForm::Structured, &call).await;
        if newer.is_ok() {
            rails.saw_newer();
            form = UsageForm::Structured;
        }
        told = newer;
    }
    if settled("usage_metrics", told, &mut failing.usage) {
        usage.told(&now, form);
    }
    // Rails that read the flat form know no events.
    if form == UsageForm::Structured {
        let told = rails.agent_events(&now.events(), &call).await;
        if settled("agent_events", told, &mut failing.events) {
            usage.events_told(&now);
        }
    }
}

/// Whether it need not be told again: GitLab took it, or never will.
fn settled(what: &'static str, told: Result<(), RailsError>, failing: &mut bool) -> bool {
    let Err(error) = told else {
        *failing = false;
        return true;
    };
    let text = chain(&error);
    if is_final(&error.fault) {
        tracing::error!(report = what, error = text, "GitLab refuses a usage report; it is dropped");
        return true;
    }
    if *failing {
        tracing::debug!(report = what, error = text, "GitLab still takes no usage report");
    } else {
        tracing::warn!(report = what, error = text, "GitLab did not take a usage report; it is kept");
    }
    *failing = true;
    false
}

fn is_about_the_form(error: &RailsError) -> bool {
    error.status() == Some(StatusCode::BAD_REQUEST)
}

/// The same again would be refused again. 401 and 404 are about our secret, a feature flag or the version, 429 about
/// time.
fn is_final(fault: &Fault) -> bool {
    match fault {
        Fault::Forbidden { .. } => true,
        Fault::Other { status, .. } => status.is_client_error() && *status != StatusCode::TOO_MANY_REQUESTS,
        _ => false,
    }
}
