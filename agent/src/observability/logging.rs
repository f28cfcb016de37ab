//! Log lines as JSON on stderr, at a level that can change while the process runs. `POSTERN_LOG` says where it starts;
//! the agent's configuration moves it.

use std::sync::Arc;
use tracing::Level;
use tracing_subscriber::{EnvFilter, layer::SubscriberExt, reload, util::SubscriberInitExt};

/// Libraries speak up from here on only: what they say at `debug` is about bytes.
const LIBRARIES: &str = "h2=info,hyper=info,hyper_util=info,rustls=info,tonic=info,tower=info,kube_client=info,notify=info,mio=info";

/// A handle on the level.
#[derive(Clone, Default)]
pub struct LogLevel(Option<Arc<Control>>);

struct Control {
    start: String,
    filter: Box<dyn Fn(EnvFilter) + Send + Sync>,
}

/// Installs the process' log, starting with the directives of `POSTERN_LOG` or at `info`.
///
/// # Errors
/// One line, if the directives make no sense.
pub fn install(directives: Option<String>) -> Result<LogLevel, String> {
    let start = directives.filter(|text| !text.trim().is_empty()).unwrap_or_else(|| "info".to_owned());
    let filter = EnvFilter::try_new(&start).map_err(|error| format!("POSTERN_LOG={start:?}: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let lines = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .with_span_list(false)
        .with_writer(std::io::stderr);
    tracing_subscriber::registry().with(filter).with(lines).init();
    let filter = Box::new(move |filter| {
        // Fails only if the subscriber is gone, and with it every reader.
        let _ = handle.reload(filter);
    });
    Ok(LogLevel(Some(Arc::new(Control { start, filter }))))
}

impl LogLevel {
    /// Follows the agent configuration; without a level there, back to where the process started.
    pub fn follow(&self, level: Option<Level>) {
        let Some(control) = &self.0 else {
            return;
        };
        let directives = match level {
            Some(level) => format!("{},{LIBRARIES}", level.as_str().to_lowercase()),
            None => control.start.clone(),
        };
        if let Ok(filter) = EnvFilter::try_new(directives) {
            (control.filter)(filter);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_keeps_libraries_quiet() {
        let filter = EnvFilter::try_new(format!("debug,{LIBRARIES}")).unwrap().to_string();
        assert!(filter.contains("h2=info") && filter.contains("debug"), "{filter}");
    }
}
