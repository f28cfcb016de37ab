//! Finished spans -> a bounded queue -> batches -> the collector. Before it: whoever finished a request, who never
//! waits. After it: `sender`. A collector that is slow or away costs spans, which are counted, and nothing else.

use crate::endpoint::Endpoint;
use crate::otlp;
use crate::sender::{Refused, Sender};
use crate::span::Span;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use postern_certs::CertError;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout_at};
use tokio_util::sync::CancellationToken;

/// Spans that wait; about 500 bytes each.
const QUEUE: usize = 2048;
/// Spans in one message: OpenTelemetry's own number, and far below the 4 MiB that collectors take.
const BATCH: usize = 512;
/// The first span of a batch waits no longer for others.
const WAIT: Duration = Duration::from_secs(2);
/// Between two tries of one batch, doubled each time.
const AGAIN: Duration = Duration::from_secs(1);
const TRIES: u32 = 4;
/// How long what is left may take when the program ends.
const FLUSH: Duration = Duration::from_secs(2);

/// Who reports.
#[derive(Clone, Debug)]
pub struct Service {
    /// `postern-edge`, `gitlab-kas`, `gitlab-agent`.
    pub name: &'static str,
    pub version: &'static str,
    /// Which of several.
    pub instance: String,
    /// More about it.
    pub attributes: Vec<(String, String)>,
}

/// Where spans go.
#[derive(Clone, Debug)]
pub struct Settings {
    pub endpoint: Endpoint,
    /// For the collector: credentials, usually.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// CAs to trust beside the system's.
    pub ca_file: Option<PathBuf>,
    pub service: Service,
}

/// Why nothing can be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The CAs for the collector cannot be read.
    #[error("the CAs that the OTLP collector {endpoint} is trusted by")]
    Trust {
        endpoint: String,
        #[source]
        source: Box<CertError>,
    },
    /// The host is no name that a certificate could have.
    #[error("the host of the OTLP collector {endpoint} is neither a DNS name nor an address")]
    Name { endpoint: String },
}

/// Takes spans. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Exporter {
    queue: mpsc::Sender<Span>,
    counts: Arc<Counts>,
}

/// What became of spans since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The collector has them.
    pub sent: u64,
    /// The queue was full.
    pub dropped: u64,
    /// The collector refused them, or was away for too long.
    pub failed: u64,
}

#[derive(Debug, Default)]
struct Counts {
    sent: AtomicU64,
    dropped: AtomicU64,
    failed: AtomicU64,
}

impl Exporter {
    /// Reads the CAs. Nothing is sent before somebody runs the [`Keeper`].
    ///
    /// # Errors
    /// A file of CAs that cannot be read.
    pub fn new(settings: Settings) -> Result<(Self, Keeper), ExportError> {
        let Settings { endpoint, headers, ca_file, service } = settings;
        let sender = Sender::new(endpoint, headers, ca_file)?;
        let (exporter, spans) = Self::queue();
        let counts = Arc::clone(&exporter.counts);
        Ok((exporter, Keeper { spans, sender, service, counts }))
    }

    fn queue() -> (Self, mpsc::Receiver<Span>) {
        let (queue, spans) = mpsc::channel(QUEUE);
        (Self { queue, counts: Arc::default() }, spans)
    }

    /// Hands a span over. Never waits: where there is no room, the span is counted and gone.
    pub fn export(&self, span: Span) {
        if self.queue.try_send(span).is_err() {
            self.counts.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn tally(&self) -> Tally {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let Counts { sent, dropped, failed } = &*self.counts;
        Tally { sent: read(sent), dropped: read(dropped), failed: read(failed) }
    }
}

/// Sends what the [`Exporter`] takes. One task of the program runs it.
#[derive(Debug)]
pub struct Keeper {
    spans: mpsc::Receiver<Span>,
    sender: Sender,
    service: Service,
    counts: Arc<Counts>,
}

impl Keeper {
    /// Sends until `stop`, then what is left, for two seconds at the most.
    pub async fn run(self, stop: CancellationToken) {
        let Self { spans, sender, service, counts } = self;
        let endpoint = sender.endpoint().to_string();
        let _fresh = sender.keep_fresh(stop.clone());
        Batches { spans, service, counts, endpoint, failing: false }.run(sender, stop).await;
    }
}

/// Takes one message at a time to a collector.
trait Deliver {
    async fn deliver(&mut self, message: Bytes) -> Result<(), Refused>;
}

impl Deliver for Sender {
    async fn deliver(&mut self, message: Bytes) -> Result<(), Refused> {
        self.send(message).await
    }
}

struct Batches {
    spans: mpsc::Receiver<Span>,
    service: Service,
    counts: Arc<Counts>,
    endpoint: String,
    failing: bool,
}

impl Batches {
    async fn run(mut self, mut collector: impl Deliver, stop: CancellationToken) {
        let mut batch = Vec::with_capacity(BATCH);
        while let Some(ended) = self.fill(&mut batch, &stop).await {
            if ended {
                break;
            }
            let sending = self.send(&batch, &mut collector);
            let Some(()) = stop.run_until_cancelled(sending).await else { break };
            batch.clear();
        }
        let deadline = Instant::now() + FLUSH;
        self.spans.close();
        loop {
            while batch.len() < BATCH {
                let Ok(span) = self.spans.try_recv() else { break };
                batch.push(span);
            }
            if batch.is_empty() {
                return;
            }
            if timeout_at(deadline, self.send(&batch, &mut collector)).await.is_err() {
                batch.extend(std::iter::from_fn(|| self.spans.try_recv().ok()));
                self.lost(batch.len(), "no time was left at the end of this program");
                return;
            }
            batch.clear();
        }
    }

    /// Waits for a batch that is full or old enough. `Some(true)`: the program ends; what came so far is in the batch.
    async fn fill(&mut self, batch: &mut Vec<Span>, stop: &CancellationToken) -> Option<bool> {
        let first = tokio::select! {
            biased;
            () = stop.cancelled() => return Some(true),
            first = self.spans.recv() => first?,
        };
        batch.push(first);
        let deadline = Instant::now() + WAIT;
        while batch.len() < BATCH {
            tokio::select! {
                biased;
                () = stop.cancelled() => return Some(true),
                span = self.spans.recv() => match span {
                    Some(span) => batch.push(span),
                    None => return Some(true),
                },
                () = tokio::time::sleep_until(deadline) => break,
            }
        }
        Some(false)
    }

    /// Sends a batch, again if need be; afterwards it is sent or counted as failed.
    async fn send(&mut self, batch: &[Span], collector: &mut impl Deliver) {
        let count = batch.len();
        let message = Bytes::from(otlp::encode(&self.service, batch));
        let mut pause = AGAIN;
        for again in (0..TRIES).rev() {
            match collector.deliver(message.clone()).await {
                Ok(()) => {
                    self.counts.sent.fetch_add(count as u64, Ordering::Relaxed);
                    if std::mem::take(&mut self.failing) {
                        tracing::info!(collector = %self.endpoint, "the OTLP collector takes spans again");
                    }
                    return;
                }
                Err(refused) if refused.for_now && again > 0 => {
                    tracing::debug!(collector = %self.endpoint, error = %refused.why, "spans are sent again");
                    sleep(pause).await;
                    pause *= 2;
                }
                Err(refused) => return self.lost(count, &refused.why),
            }
        }
    }

    /// Says so once, until it has changed.
    fn lost(&mut self, count: usize, why: &str) {
        self.counts.failed.fetch_add(count as u64, Ordering::Relaxed);
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(collector = %self.endpoint, error = why, spans = count, "spans were lost");
        }
    }
}

#[cfg(test)]
mod tests;
