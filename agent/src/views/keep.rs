//! Keeps views while they are wanted: follows the cluster, and tells whoever listens what changes. Before it:
//! `views.rs`, which says what is wanted; after it: `push.rs`, which has the broker's ear or has not. Without a broker
//! that wants views nothing is followed; one that is away for a while finds them as they are when it is back.

use super::{
    plan::{Plan, View, Watched},
    published::{Published, ended},
    source::{Change, Follow, Source},
    state::State,
};
use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use postern_wire::proto::postern::agent::ViewUpdate;
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep, sleep_until},
};
use tokio_stream::StreamMap;
use tracing::{info, warn};

/// Changes that come this close together are told together.
const TOGETHER: Duration = Duration::from_millis(100);
/// A view that nobody sees yet after this long has something missing.
const LATE: Duration = Duration::from_secs(30);
const VERSION_AGAIN: Duration = Duration::from_secs(600);
const VERSION_FAILED: Duration = Duration::from_secs(10);

/// Whether anybody listens.
#[derive(Clone, Debug)]
pub(crate) enum Line {
    /// Nobody for the moment.
    Closed,
    /// A broker, who knows nothing yet.
    Open(mpsc::Sender<ViewUpdate>),
    /// A broker who does not know what views are.
    Unwanted,
}

/// What happened.
enum News {
    Change(Change),
    Version(Option<Box<str>>),
}

/// The number of what asks for the API server's version, beside those of [`Plan::follows`].
const VERSION: usize = usize::MAX;

/// Keeps the views of a plan that may change.
pub(crate) struct Keeper<S> {
    pub(crate) source: Arc<S>,
    pub(crate) plan: watch::Receiver<Plan>,
    pub(crate) line: watch::Receiver<Line>,
}

impl<S: Source> Keeper<S> {
    /// Returns when nothing is to be kept any more and the broker, if there is one, has been told so.
    pub(crate) async fn keep(mut self) {
        let mut next = self.plan.clone();
        loop {
            let plan = next.borrow_and_update().clone();
            tokio::select! {
                done = self.tell(&plan) => if done {
                    return;
                },
                changed = next.changed() => if changed.is_err() {
                    return;
                },
            }
        }
    }

    /// Until the broker is one that does not want views; or, `true`, until there is nothing to tell ever again.
    async fn tell(&mut self, plan: &Plan) -> bool {
        let Some(sender) = self.listener(plan).await else {
            return true;
        };
        let names = plan.views().map(View::name).collect::<Vec<_>>().join(", ");
        if !plan.is_empty() {
            info!(views = %names, "views of the cluster are kept for the broker");
        }
        let mut told = Some(sender);
        let mut outbox = endings(plan);
        let mut views: Vec<_> = plan.views().map(Published::new).collect();
        let mut followed = Followed::start(self.source.clone(), plan);
        let mut due = None;
        let late = Instant::now() + LATE;
        let mut is_late = plan.is_empty();
        loop {
            if plan.is_empty() && outbox.is_empty() {
                return true;
            }
            let hears = told.is_some();
            tokio::select! {
                Some((number, news)) = followed.watches.next() => {
                    followed.take(number, news);
                    if followed.state.is_touched() {
                        due.get_or_insert_with(|| Instant::now() + TOGETHER);
                    }
                }
                () = sleep_until(due.unwrap_or(late)), if due.is_some() && outbox.is_empty() && hears => {
                    due = None;
                    outbox.extend(views.iter_mut().flat_map(|view| view.flush(&mut followed.state)));
                }
                sent = send(told.as_ref(), &mut outbox), if !outbox.is_empty() && hears => if !sent {
                    told = None;
                    outbox.clear();
                    followed.state.touch_all();
                },
                changed = self.line.changed() => {
                    told = match &*self.line.borrow_and_update() {
                        Line::Open(sender) => Some(sender.clone()),
                        Line::Closed => None,
                        Line::Unwanted => return false,
                    };
                    if changed.is_err() {
                        return true;
                    }
                    followed.state.touch_all();
                    outbox.clear();
                    if told.is_some() {
                        outbox = endings(plan);
                        views.iter_mut().for_each(Published::start_over);
                        due = Some(Instant::now());
                    }
                }
                () = sleep_until(late), if !is_late => {
                    is_late = true;
                    complain(&views, &followed.state);
                }
            }
        }
    }

    /// Waits for a broker that may want views; `None`: there will not be one, or nothing to tell it.
    async fn listener(&mut self, plan: &Plan) -> Option<mpsc::Sender<ViewUpdate>> {
        let awaited = |line: &Line| plan.is_empty() || matches!(line, Line::Open(_));
        match &*self.line.wait_for(awaited).await.ok()? {
            Line::Open(sender) => Some(sender.clone()),
            Line::Closed | Line::Unwanted => None,
        }
    }
}

/// The cluster, as far as a plan is about it.
struct Followed<S> {
    source: Arc<S>,
    follows: Vec<(Watched, Option<Box<str>>)>,
    watches: StreamMap<usize, BoxStream<'static, News>>,
    state: State,
}

impl<S: Source> Followed<S> {
    fn start(source: Arc<S>, plan: &Plan) -> Self {
        let watches = StreamMap::new();
        let mut followed = Self { source, follows: plan.follows(), watches, state: State::new(plan) };
        for number in 0..followed.follows.len() {
            followed.follow(number);
        }
        if plan.has(View::Versions) {
            followed.ask_version();
        }
        followed
    }

    fn take(&mut self, number: usize, news: News) {
        let change = match news {
            News::Version(version) => return self.state.take_version(version),
            News::Change(change) => change,
        };
        // Where everything is listed anew the API server may be another one.
        let anew = matches!(change, Change::Begun) && self.follows[number].0 == Watched::Nodes;
        if anew && self.watches.contains_key(&VERSION) {
            self.ask_version();
        }
        self.state.take(number, &change);
        if let Some(again) = self.state.again() {
            self.state.begins_again(again);
            self.follow(again);
        }
    }

    /// Instead of what followed the same before.
    fn follow(&mut self, number: usize) {
        let (watched, namespace) = &self.follows[number];
        let following = self.source.follow(*watched, namespace.as_deref());
        let changes = stream::unfold(following, async |mut following| {
            let change = following.next().await;
            Some((News::Change(change), following))
        });
        self.watches.insert(number, changes.boxed());
    }

    fn ask_version(&mut self) {
        let answers = stream::unfold((self.source.clone(), Duration::ZERO), async |(source, wait)| {
            sleep(wait).await;
            let version = source.version().await;
            let wait = if version.is_some() { VERSION_AGAIN } else { VERSION_FAILED };
            Some((News::Version(version), (source, wait)))
        });
        self.watches.insert(VERSION, answers.boxed());
    }
}

/// What a broker that knows nothing of this agent, or of another configuration, learns first.
fn endings(plan: &Plan) -> VecDeque<ViewUpdate> {
    View::ALL.into_iter().filter(|view| !plan.has(*view)).map(ended).collect()
}

/// Sends the first one when there is room; `false` if nobody listens any more. Cancel safe.
async fn send(told: Option<&mpsc::Sender<ViewUpdate>>, outbox: &mut VecDeque<ViewUpdate>) -> bool {
    let Some(Ok(room)) = futures::future::OptionFuture::from(told.map(mpsc::Sender::reserve)).await else {
        return false;
    };
    if let Some(message) = outbox.pop_front() {
        room.send(message);
    }
    true
}

fn complain(views: &[Published], state: &State) {
    for view in views.iter().map(Published::view) {
        let awaits = state.awaits(view);
        if !awaits.is_empty() {
            let awaits = awaits.into_iter().collect::<Vec<_>>().join(", ");
            warn!(
                view = view.name(),
                %awaits,
                "a view is not shown yet, because not everything could be listed; may the agent list and watch it?"
            );
        }
    }
}
