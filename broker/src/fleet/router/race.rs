//! One request's race for a tunnel: this process and every broker that may hold one, until the first has it. Another
//! broker is asked when those before it have said no or nothing for [`HEAD_START`]; all that were asked stay in the
//! race, so whoever's agent comes back first wins, and the others are let go. It dials nobody itself.

use crate::{
    fleet::{
        PeerUrl,
        directory::{Directory, Found, LastSeen, Search},
        peers::PeerError,
        remote::{Answer, Knock},
    },
    tunnel::{registry::FindError, stream::Lease},
};
use futures::{FutureExt, StreamExt, future::BoxFuture, stream::FuturesUnordered};
use postern_wire::ids::AgentId;
use std::{
    collections::{HashMap, HashSet, VecDeque},
    future::Future,
    pin::Pin,
    time::Duration,
};
use tokio::time::{Instant, sleep_until};

/// A broker that is up answers sooner, on a connection that is open.
pub(super) const HEAD_START: Duration = Duration::from_millis(10);
/// A broker that failed is asked again no sooner, whoever names it.
pub(super) const AGAIN: Duration = Duration::from_millis(500);
/// Where Redis names nobody, all brokers get so long to say that they have nobody either.
const ROUND: Duration = Duration::from_secs(1);
/// Brokers in one race; a fleet has fewer.
const RUNNERS_MAX: usize = 64;

/// Where the agent may be. The directory's search; scripts in tests.
pub(super) trait Guide {
    /// The next news, which may never come. Cancel safe.
    fn next(&mut self) -> impl Future<Output = Found> + Send;
}

/// Who is told what the race found out. The directory; lists in tests.
pub(super) trait Fleet {
    /// This broker has nothing of the agent, or cannot be reached.
    fn forget(&self, agent: AgentId, peer: &PeerUrl);
    /// All other brokers, for when the guide knows nothing.
    fn peers(&self) -> Vec<PeerUrl>;
}

/// A broker that was asked for a tunnel. Dropping it withdraws the question.
pub(super) trait Runner: Send + Sized {
    /// What it says next. Cancel safe.
    fn answer(&mut self) -> impl Future<Output = Result<Answer, PeerError>> + Send;
}

impl Guide for Search {
    fn next(&mut self) -> impl Future<Output = Found> + Send {
        Search::next(self)
    }
}

impl Fleet for Directory {
    fn forget(&self, agent: AgentId, peer: &PeerUrl) {
        Directory::forget(self, agent, peer);
    }
    fn peers(&self) -> Vec<PeerUrl> {
        Directory::peers(self)
    }
}

impl Runner for Knock {
    fn answer(&mut self) -> impl Future<Output = Result<Answer, PeerError>> + Send {
        Knock::answer(self)
    }
}

/// The rules of one race.
pub(super) struct Race {
    pub(super) agent: AgentId,
    /// Whether this process has ever seen the agent.
    pub(super) known_here: bool,
    pub(super) deadline: Instant,
    /// Until then, brokers that were asked may answer; not before `deadline`.
    pub(super) answers: Instant,
    /// Until then, an agent nobody knows may just be on its way.
    pub(super) grace: Instant,
}

/// How it ended.
pub(super) enum Won<R> {
    Here(Lease),
    There(R),
    Nothing(Lost),
}

/// What is known of why nobody won.
#[derive(Debug, Default)]
pub(super) struct Lost {
    /// Nobody has seen the agent, or nobody who could be asked.
    pub(super) never_seen: bool,
    /// This process would not even let the request wait, and nobody else had a tunnel.
    pub(super) refused_here: Option<FindError>,
    /// A broker where the agent is, with all tunnels in use.
    pub(super) busy_at: Option<PeerUrl>,
    pub(super) unreachable: Vec<PeerUrl>,
    pub(super) last: Option<LastSeen>,
}

/// What a broker said, and how to hear more from it.
enum Said<R> {
    Answer(R, Answer),
    Failed(PeerError),
}

type Asked<'a, R> = BoxFuture<'a, (PeerUrl, Said<R>)>;

/// Everyone who runs.
struct Field<'a, R, A> {
    ask: A,
    running: FuturesUnordered<Asked<'a, R>>,
    /// To be asked, in this order.
    waiting: VecDeque<PeerUrl>,
    /// Asked and not failed since, with whether anything was heard.
    asked: HashMap<PeerUrl, bool>,
    failed: HashMap<PeerUrl, Instant>,
    /// Named by the directory for this agent, not only because they are brokers.
    named: HashSet<PeerUrl>,
    /// When the next one is asked, whatever those before it do.
    next: Option<Instant>,
}

impl<'a, R, A, F> Field<'a, R, A>
where
    R: Runner + 'a,
    A: Fn(PeerUrl) -> F,
    F: Future<Output = Result<R, PeerError>> + Send + 'a,
{
    fn enter(&mut self, peer: PeerUrl) {
        let known = self.asked.contains_key(&peer) || self.waiting.contains(&peer);
        if !known && self.asked.len() + self.waiting.len() < RUNNERS_MAX {
            self.waiting.push_back(peer);
        }
    }

    /// Asks the next one if it is its turn. One that failed lately waits behind all others.
    fn start(&mut self, now: Instant) {
        let is_due = self.next.is_none_or(|next| next <= now) || self.asked.values().all(|heard| *heard);
        if !is_due {
            return;
        }
        self.next = None;
        let rested = |peer: &PeerUrl| self.failed.get(peer).is_none_or(|at| *at + AGAIN <= now);
        if let Some(at) = self.waiting.iter().position(rested)
            && let Some(peer) = self.waiting.remove(at)
        {
            let knock = (self.ask)(peer.clone());
            self.asked.insert(peer.clone(), false);
            self.next = Some(now + HEAD_START);
            let first = async move {
                match knock.await {
                    Ok(runner) => listen(peer, runner).await,
                    Err(error) => (peer, Said::Failed(error)),
                }
            };
            self.running.push(first.boxed());
        }
    }

    /// Whoever was asked has said something, or cannot be reached.
    fn all_heard(&self) -> bool {
        let failed = |peer: &PeerUrl| self.failed.contains_key(peer);
        self.asked.values().all(|heard| *heard) && self.waiting.iter().all(failed)
    }

    /// When [`Field::start`] has something to do although nothing happened.
    fn alarm(&self) -> Option<Instant> {
        let rested = |peer: &PeerUrl| self.failed.get(peer).map(|at| *at + AGAIN);
        let ready = self.waiting.iter().map(rested).min()?;
        self.next.into_iter().chain(ready).max()
    }
}

/// Hears the next answer of a broker.
async fn listen<R: Runner>(peer: PeerUrl, mut runner: R) -> (PeerUrl, Said<R>) {
    match runner.answer().await {
        Ok(answer) => (peer, Said::Answer(runner, answer)),
        Err(error) => (peer, Said::Failed(error)),
    }
}

impl Race {
    /// Runs it. `here` is this process' own chance; `ask` opens a question to a broker.
    pub(super) async fn run<'a, R, A, F>(
        self,
        mut here: Pin<&mut impl Future<Output = Result<Lease, FindError>>>,
        mut guide: impl Guide,
        fleet: &impl Fleet,
        ask: A,
    ) -> Won<R>
    where
        R: Runner + 'a,
        A: Fn(PeerUrl) -> F,
        F: Future<Output = Result<R, PeerError>> + Send + 'a,
    {
        let mut lost = Lost::default();
        let mut is_over_here = false;
        // What the directory said of an agent that nobody here knows: since when, and whether it really knows.
        let mut nobody: Option<(Instant, bool)> = None;
        let mut is_told = false;
        let mut field = Field {
            ask,
            running: FuturesUnordered::new(),
            waiting: VecDeque::new(),
            asked: HashMap::new(),
            failed: HashMap::new(),
            named: HashSet::new(),
            next: None,
        };
        loop {
            field.start(Instant::now());
            let until = self.until(field.all_heard(), nobody, is_told);
            let alarm = field.alarm().filter(|alarm| *alarm < until);
            tokio::select! {
                biased;
                found = &mut here, if !is_over_here => match found {
                    Ok(tunnel) => return Won::Here(tunnel),
                    Err(FindError::Draining) => is_over_here = true,
                    // Too many wait already, for whichever broker the agent comes to.
                    Err(error) => {
                        lost.refused_here = Some(error);
                        return Won::Nothing(lost);
                    }
                },
                Some((peer, said)) = field.running.next() => match said {
                    Said::Answer(runner, Answer::Ready) => return Won::There(runner),
                    Said::Answer(runner, Answer::NoTunnel { busy }) => {
                        if busy {
                            lost.busy_at = Some(peer.clone());
                        } else {
                            fleet.forget(self.agent, &peer);
                        }
                        field.asked.insert(peer.clone(), true);
                        field.running.push(listen(peer, runner).boxed());
                    }
                    Said::Failed(error) => {
                        tracing::debug!(
                            agent_id = %self.agent, broker = %peer, error = %crate::error::chain(&error),
                            "another broker could not be asked for a tunnel"
                        );
                        field.asked.remove(&peer);
                        let first = field.failed.insert(peer.clone(), Instant::now()).is_none();
                        if error.is_busy() {
                            lost.busy_at = Some(peer.clone());
                        } else {
                            fleet.forget(self.agent, &peer);
                            if first && field.named.contains(&peer) {
                                lost.unreachable.push(peer.clone());
                            }
                        }
                        // The directory does not name it again: nobody knows better than the broker itself.
                        if !field.named.contains(&peer) {
                            field.enter(peer);
                        }
                    }
                },
                found = guide.next() => match found {
                    Found::Peer(peer) => {
                        (is_told, nobody) = (true, None);
                        field.named.insert(peer.clone());
                        field.enter(peer);
                    }
                    // A broker that lost Redis may have the agent all the same.
                    found @ (Found::Nobody { .. } | Found::Unknown) => {
                        is_told = true;
                        fleet.peers().into_iter().for_each(|peer| field.enter(peer));
                        let is_sure = matches!(found, Found::Nobody { .. });
                        if let Found::Nobody { last } = found {
                            lost.last = last;
                        }
                        if lost.last.is_none() && !self.known_here && field.named.is_empty() {
                            nobody = Some((Instant::now(), is_sure));
                        }
                    }
                },
                () = sleep_until(alarm.unwrap_or(until)) => {
                    if Instant::now() >= until {
                        lost.never_seen = nobody.is_some() && until < self.deadline;
                        return Won::Nothing(lost);
                    }
                }
            }
        }
    }

    /// When to give up, as far as is known now.
    fn until(&self, all_heard: bool, nobody: Option<(Instant, bool)>, is_told: bool) -> Instant {
        let is_quiet = is_told && all_heard;
        match nobody {
            // Known to nobody: neither to Redis nor to any broker that answers.
            Some((_, true)) if is_quiet => self.grace.min(self.deadline),
            Some((since, true)) => self.grace.max(since + ROUND).min(self.deadline),
            Some((since, false)) if is_quiet => (since + super::START_GRACE).min(self.deadline),
            _ if is_quiet => self.deadline,
            _ => self.answers,
        }
    }
}
