use super::*;
use std::sync::{Arc, Mutex};
use tokio::{sync::oneshot, task::JoinHandle};

/// A pool whose tunnels do what the test says; time stands still unless everybody waits.
struct Field {
    opened: mpsc::Receiver<Tunnel>,
    counts: watch::Receiver<Counts>,
    least: watch::Sender<usize>,
    drain: CancellationToken,
    pool: JoinHandle<()>,
}

struct Tunnel {
    slot: Arc<Slot>,
    end: oneshot::Sender<Ended>,
}

fn field() -> Field {
    let (sender, opened) = mpsc::channel(10 * MOST);
    let (least, least_receiver) = watch::channel(2);
    let (counts_sender, counts) = watch::channel(Counts::default());
    let drain = CancellationToken::new();
    let open = move |slot: Slot| {
        let slot = Arc::new(slot);
        let (end, ended) = oneshot::channel();
        let _ = sender.try_send(Tunnel { slot: slot.clone(), end });
        async move {
            tokio::select! {
                Ok(ended) = ended => ended,
                () = slot.leave.cancelled() => Ended::Left,
            }
        }
    };
    let pool = tokio::spawn(keep(open, least_receiver, counts_sender, drain.clone()));
    Field { opened, counts, least, drain, pool }
}

impl Field {
    async fn open(&mut self) -> Tunnel {
        tokio::time::timeout(Duration::from_secs(300), self.opened.recv()).await.unwrap().unwrap()
    }

    async fn until(&mut self, what: impl Fn(&Counts) -> bool) {
        let counts = self.counts.wait_for(what);
        tokio::time::timeout(Duration::from_secs(300), counts).await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn it_begins_with_the_least_and_grows_by_ten_when_they_run_out() {
    let mut field = field();
    field.until(|counts| counts.idle == 2).await;
    let first = field.open().await;
    first.slot.tell(Change::Standing).await;
    field.until(|counts| counts.standing == 1).await;
    first.slot.tell(Change::Busy).await;
    field.until(|counts| counts.busy == 1 && counts.idle == 11).await;
}

#[tokio::test(start_paused = true)]
async fn it_never_has_more_than_five_hundred() {
    let mut field = field();
    let mut tunnels = Vec::new();
    for _ in 0..MOST {
        let tunnel = field.open().await;
        tunnel.slot.tell(Change::Busy).await;
        tunnels.push(tunnel);
    }
    field.until(|counts| counts.busy == MOST && counts.idle == 0).await;
    assert!(field.opened.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn it_shrinks_after_a_quiet_minute_and_not_before() {
    let mut field = field();
    let busy = field.open().await;
    busy.slot.tell(Change::Busy).await;
    field.until(|counts| counts.idle == 11).await;
    let began = Instant::now();
    busy.end.send(Ended::Served).unwrap();
    field.until(|counts| counts.idle == 12).await;
    field.until(|counts| counts.idle == 2 && counts.busy == 0).await;
    assert!((QUIET..QUIET + Duration::from_secs(2)).contains(&began.elapsed()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_ends_politely_after_a_while_is_reopened_at_once() {
    let mut field = field();
    let tunnel = field.open().await;
    field.open().await.slot.tell(Change::Standing).await;
    tokio::time::advance(Duration::from_secs(600)).await;
    let began = Instant::now();
    tunnel.end.send(Ended::Idle).unwrap();
    field.open().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn tunnels_that_fail_together_are_one_failure_with_growing_delays() {
    let mut field = field();
    let mut delays = Vec::new();
    for _ in 0..20 {
        let (one, two) = (field.open().await, field.open().await);
        let began = Instant::now();
        one.end.send(Ended::Failed(Status::unavailable("no broker"))).unwrap();
        two.end.send(Ended::Idle).unwrap();
        field.until(|counts| counts.idle == 0).await;
        field.until(|counts| counts.idle == 2).await;
        delays.push(began.elapsed());
    }
    assert!(delays[0] < Duration::from_millis(300), "{delays:?}");
    assert!(delays[19] > Duration::from_secs(10) && delays[19] <= LAST_RETRY, "{delays:?}");
}

#[tokio::test(start_paused = true)]
async fn a_leaving_tunnel_is_replaced_before_it_is_gone() {
    let mut field = field();
    let tunnel = field.open().await;
    field.open().await;
    tunnel.slot.tell(Change::Leaving).await;
    let _successor = field.open().await;
    field.until(|counts| counts.idle == 2).await;
    tunnel.end.send(Ended::Left).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_of_a_leaving_broker_comes_again_when_it_was_told_to_and_the_other_stands() {
    let mut field = field();
    let (mut goes, stays) = (field.open().await, field.open().await);
    stays.slot.tell(Change::Standing).await;
    for pause in [Duration::ZERO, Duration::from_millis(750)] {
        tokio::time::advance(Duration::from_secs(600)).await;
        let began = Instant::now();
        goes.end.send(Ended::Dismissed(pause)).unwrap();
        goes = field.open().await;
        let after = began.elapsed();
        assert!(
            (pause..=pause + Duration::from_millis(1)).contains(&after),
            "{after:?} instead of {pause:?}"
        );
        field.until(|counts| counts.standing == 1 && counts.idle == 2).await;
    }
}

#[tokio::test(start_paused = true)]
async fn brokers_that_leave_one_after_the_other_are_no_trouble_but_nobody_is_asked_in_a_spin() {
    let mut field = field();
    let _stays = field.open().await;
    let mut goes = field.open().await;
    let mut delays = Vec::new();
    for _ in 0..40 {
        let began = Instant::now();
        goes.end.send(Ended::Dismissed(Duration::ZERO)).unwrap();
        goes = field.open().await;
        delays.push(began.elapsed());
        assert!(field.opened.try_recv().is_err(), "the other one is not reopened");
    }
    assert!(delays[0] < Duration::from_millis(70) && delays[4] < Duration::from_millis(250), "{delays:?}");
    assert!(delays[39] > Duration::from_secs(10), "{delays:?}");
    // One that lived shows that it is over.
    tokio::time::advance(SHORTEST).await;
    let began = Instant::now();
    goes.end.send(Ended::Dismissed(Duration::ZERO)).unwrap();
    field.open().await;
    assert_eq!(began.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_leaves_is_counted_and_learns_when_another_one_stands() {
    let mut field = field();
    let (one, two) = (field.open().await, field.open().await);
    for tunnel in [&one, &two] {
        tunnel.slot.tell(Change::Standing).await;
        tunnel.slot.tell(Change::Leaving).await;
    }
    field.until(|counts| counts.leaving == 2 && counts.standing == 0 && counts.idle == 2).await;
    let (three, _four) = (field.open().await, field.open().await);
    let replaced = one.slot.replaced();
    tokio::pin!(replaced);
    assert!(tokio::time::timeout(Duration::from_secs(60), &mut replaced).await.is_err());
    three.slot.tell(Change::Standing).await;
    replaced.await;
}

#[tokio::test(start_paused = true)]
async fn an_old_broker_raises_the_least() {
    let mut field = field();
    field.until(|counts| counts.idle == 2).await;
    field.least.send_replace(10);
    field.until(|counts| counts.idle == 10).await;
}

#[tokio::test(start_paused = true)]
async fn draining_sends_idle_tunnels_home_and_waits_for_busy_ones() {
    let mut field = field();
    let (busy, _idle) = (field.open().await, field.open().await);
    busy.slot.tell(Change::Busy).await;
    field.until(|counts| counts.busy == 1).await;
    field.drain.cancel();
    field.until(|counts| counts.idle == 0).await;
    assert!(!field.pool.is_finished());
    busy.end.send(Ended::Served).unwrap();
    field.pool.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_panics_is_a_failure_and_not_the_end() {
    let (opened_sender, mut opened) = mpsc::channel(10 * MOST);
    let panicked = Mutex::new(false);
    let open = move |slot: Slot| {
        let first = !std::mem::replace(&mut *panicked.lock().unwrap(), true);
        let _ = opened_sender.try_send(());
        async move {
            assert!(!first, "the first one goes wrong");
            slot.leave.cancelled().await;
            Ended::Left
        }
    };
    let (_least, least) = watch::channel(1);
    tokio::spawn(keep(open, least, watch::Sender::default(), CancellationToken::new()));
    for _ in 0..2 {
        tokio::time::timeout(Duration::from_secs(10), opened.recv()).await.unwrap().unwrap();
    }
}
