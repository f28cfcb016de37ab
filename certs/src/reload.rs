//! Between `watch` and the two users of certificates: when a file changes, load it, and say what came of it.
//! A bad change keeps what is in use. It never ends a process and never logs the content of a file.

use std::path::PathBuf;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::CertError;
use crate::watch::FileWatch;

/// After a failure the files are tried again without waiting for another change: "too many open files" and a
/// network file system that is away both pass without one.
const RETRY: Duration = Duration::from_secs(30);

/// What one reload did.
pub(crate) struct Outcome {
    /// Whether something else is in use now.
    pub(crate) replaced: bool,
    pub(crate) failures: Vec<CertError>,
}

/// Calls `reload` once, then after every change to `files`, until `stop`.
pub(crate) async fn keep_fresh(
    what: &'static str,
    files: Vec<PathBuf>,
    stop: CancellationToken,
    reload: impl Fn() -> Outcome,
) {
    let mut watch = match FileWatch::new(files) {
        Ok(watch) => watch,
        Err(error) => {
            tracing::error!(what, error = %error, "cannot watch files; changes need a restart");
            return;
        }
    };
    let mut complaint = String::new();
    loop {
        // The first round closes the gap between loading and watching.
        let outcome = reload();
        if outcome.replaced {
            tracing::info!(what, "reloaded from changed files");
        }
        let failures: Vec<_> = outcome.failures.iter().map(|error| crate::one_line(error)).collect();
        let failed = !failures.is_empty();
        let failures = failures.join("; ");
        if failed && failures != complaint {
            tracing::error!(what, error = %failures, "cannot use the changed files; the last good ones stay in use");
        }
        complaint = failures;

        tokio::select! {
            () = stop.cancelled() => return,
            () = watch.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}
