//! The queue and its batches, with time standing still and a collector that is a closure.

use super::*;
use crate::{Context, Kind};
use std::cell::RefCell;
use std::time::SystemTime;

fn span() -> Span {
    let now = SystemTime::now();
    Span {
        name: "GET".into(),
        kind: Kind::Server,
        context: Context::root(true),
        parent: None,
        start: now,
        end: now,
        attributes: Vec::new(),
        error: None,
    }
}

fn start() -> (Exporter, Batches) {
    let (exporter, spans) = Exporter::queue();
    let service = Service { name: "test", version: "0", instance: "1".into(), attributes: Vec::new() };
    let counts = Arc::clone(&exporter.counts);
    (exporter, Batches { spans, service, counts, endpoint: "http://collector".into(), failing: false })
}

/// A collector that is a closure.
struct Collector<F>(F);

impl<F: AsyncFnMut() -> Result<(), Refused>> Deliver for Collector<F> {
    async fn deliver(&mut self, _: Bytes) -> Result<(), Refused> {
        (self.0)().await
    }
}

fn refused(for_now: bool) -> Refused {
    Refused { why: "closed".into(), for_now }
}

#[tokio::test(start_paused = true)]
async fn a_batch_goes_when_it_is_full_or_has_waited() {
    let (exporter, batches) = start();
    let (began, sent) = (Instant::now(), RefCell::new(Vec::new()));
    let stop = CancellationToken::new();
    let run = batches.run(
        Collector(async || {
            sent.borrow_mut().push((began.elapsed(), exporter.tally().sent));
            Ok(())
        }),
        stop.clone(),
    );
    for _ in 0..BATCH + 3 {
        exporter.export(span());
    }
    let watch = async {
        sleep(WAIT * 2).await;
        stop.cancel();
    };
    tokio::join!(run, watch);
    assert_eq!(*sent.borrow(), [(Duration::ZERO, 0), (WAIT, BATCH as u64)]);
    assert_eq!(exporter.tally(), Tally { sent: BATCH as u64 + 3, ..Tally::default() });
}

#[tokio::test(start_paused = true)]
async fn a_collector_that_hangs_costs_spans_and_never_the_one_who_hands_them_over() {
    let (exporter, batches) = start();
    let stop = CancellationToken::new();
    let run = batches.run(Collector(async || std::future::pending().await), stop.clone());
    let hand_over = async {
        // The first batch is stuck, then the queue fills, then there is no room.
        for _ in 0..BATCH {
            exporter.export(span());
        }
        sleep(WAIT).await;
        for _ in 0..QUEUE + 7 {
            exporter.export(span());
        }
        assert_eq!(exporter.tally().dropped, 7);
        stop.cancel();
    };
    let began = Instant::now();
    tokio::join!(run, hand_over);
    assert_eq!(began.elapsed(), WAIT + FLUSH, "the end does not wait either");
    assert_eq!(exporter.tally(), Tally { sent: 0, dropped: 7, failed: (BATCH + QUEUE) as u64 });
}

#[tokio::test(start_paused = true)]
async fn what_failed_for_now_is_tried_again_and_what_is_refused_is_not() {
    for (for_now, tries) in [(true, TRIES), (false, 1)] {
        let (exporter, batches) = start();
        let (stop, count) = (CancellationToken::new(), RefCell::new(0));
        exporter.export(span());
        let run = batches.run(
            Collector(async || {
                *count.borrow_mut() += 1;
                Err(refused(for_now))
            }),
            stop.clone(),
        );
        let watch = async {
            sleep(Duration::from_secs(60)).await;
            stop.cancel();
        };
        tokio::join!(run, watch);
        assert_eq!(*count.borrow(), tries);
        assert_eq!(exporter.tally(), Tally { failed: 1, ..Tally::default() });
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_left_at_the_end_is_sent() {
    let (exporter, batches) = start();
    let stop = CancellationToken::new();
    for _ in 0..BATCH + 1 {
        exporter.export(span());
    }
    stop.cancel();
    let sent = RefCell::new(0);
    batches
        .run(
            Collector(async || {
                *sent.borrow_mut() += 1;
                Ok(())
            }),
            stop,
        )
        .await;
    assert_eq!(*sent.borrow(), 2);
    assert_eq!(exporter.tally().sent, BATCH as u64 + 1);
    exporter.export(span());
    assert_eq!(exporter.tally().dropped, 1, "after the end there is no room");
}
