//! Everything that views are computed from. `keep.rs` brings what happens in the cluster; `published.rs` asks which
//! entries that touched, and what they are now. It is bounded, whatever the cluster holds, and says where that shows.

mod changes;
mod entries;

use super::{
    facts::{Event, Node, Trouble, Use, Workload},
    kept::{Kept, Origin},
    plan::{Plan, View, Watched},
    quantity::Amount,
    source::Change,
};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

const NODES: usize = 5_000;
const WORKLOADS: usize = 5_000;
const TROUBLES: usize = 5_000;
const USES: usize = 50_000;
/// Of these the newest are shown; the others take the place of shown ones that go.
const EVENTS: usize = 1_000;
const SHOWN_EVENTS: usize = 200;
/// With more keys than this that were touched it is simpler to look at all.
const TOUCHED: usize = 5_000;

/// What is known of the cluster.
pub(crate) struct State {
    plan: Plan,
    slots: Vec<Slot>,
    lists: u64,
    nodes: Kept<Node>,
    /// How many nodes there are by `part/version`.
    parts: BTreeMap<Box<str>, u64>,
    /// By `namespace/kind/name`.
    workloads: Kept<Workload>,
    /// By the Pod's `namespace/name`.
    troubles: Kept<Trouble>,
    /// Workload and Pod.
    troubled: BTreeSet<(Box<str>, Box<str>)>,
    /// By the Pod's `namespace/name`.
    uses: Kept<Use>,
    /// The sum of `uses` by node.
    used: HashMap<Box<str>, Amount>,
    events: Kept<Event>,
    /// When, and which.
    newest: BTreeSet<(Box<str>, Box<str>)>,
    /// `None` until the API server has been asked.
    version: Option<Option<Box<str>>>,
    touched: BTreeMap<View, Touched>,
}

/// One watch.
struct Slot {
    watched: Watched,
    list: u64,
    listing: bool,
    listed: bool,
    /// Views that lack something for want of room, and those of the list that is under way.
    lacking: BTreeSet<View>,
    lacking_now: BTreeSet<View>,
}

/// What may have changed in a view.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Touched {
    pub(crate) all: bool,
    pub(crate) keys: HashSet<Box<str>>,
}

impl State {
    /// Of nothing yet; watch by watch it will be told of what `follows` has, in that order.
    pub(crate) fn new(plan: &Plan) -> Self {
        let slot = |(watched, _)| Slot {
            watched,
            list: 0,
            listing: false,
            listed: false,
            lacking: BTreeSet::new(),
            lacking_now: BTreeSet::new(),
        };
        Self {
            plan: plan.clone(),
            slots: plan.follows().into_iter().map(slot).collect(),
            lists: 0,
            nodes: Kept::new(NODES),
            parts: BTreeMap::new(),
            workloads: Kept::new(WORKLOADS),
            troubles: Kept::new(TROUBLES),
            troubled: BTreeSet::new(),
            uses: Kept::new(USES),
            used: HashMap::new(),
            events: Kept::new(EVENTS),
            newest: BTreeSet::new(),
            version: None,
            touched: BTreeMap::new(),
        }
    }

    /// Something happened that the watch of this number saw.
    pub(crate) fn take(&mut self, slot: usize, change: &Change) {
        match change {
            Change::Begun => {
                self.lists += 1;
                let slot = &mut self.slots[slot];
                slot.list = self.lists;
                slot.listing = true;
                slot.lacking_now.clear();
            }
            Change::Found(object) | Change::Applied(object) => self.put(slot, object),
            Change::Deleted(object) => self.remove(slot, object),
            Change::Listed => {
                self.sweep(slot);
                let Self { plan, slots, touched, .. } = self;
                let slot = &mut slots[slot];
                slot.listing = false;
                slot.listed = true;
                slot.lacking = std::mem::take(&mut slot.lacking_now);
                // Nothing may be in it, and still it is known now.
                for view in plan.views().filter(|view| view.needs().contains(&slot.watched)) {
                    touched.entry(view).or_default();
                }
            }
        }
    }

    /// The API server's version; `None` if it did not tell, which changes nothing that is known.
    pub(crate) fn take_version(&mut self, version: Option<Box<str>>) {
        let known = self.version.get_or_insert_default();
        if version.is_some() {
            *known = version;
        }
        self.touch(View::Versions, "kubernetes");
    }

    /// What has to be listed before the view can be shown; empty if nothing.
    pub(crate) fn awaits(&self, view: View) -> BTreeSet<&'static str> {
        let slots = self.slots.iter().filter(|slot| !slot.listed && view.needs().contains(&slot.watched));
        let mut awaits: BTreeSet<_> = slots.map(|slot| slot.watched.kind().3).collect();
        if view == View::Versions && self.version.is_none() {
            awaits.insert("/version");
        }
        awaits
    }

    /// Whether there is more in the cluster than the view knows of.
    pub(crate) fn lacks(&self, view: View) -> bool {
        self.slots.iter().any(|slot| slot.lacking.contains(&view))
            || view == View::Events && self.newest.len() > SHOWN_EVENTS
    }

    /// A watch to begin anew, because there is room again for what it could not bring.
    pub(crate) fn again(&self) -> Option<usize> {
        let room = |slot: &Slot, view: &View| match (slot.watched, view) {
            (Watched::Nodes, _) => self.nodes.has_room(),
            (Watched::Pods, View::Capacity) => self.uses.has_room(),
            (Watched::Pods, _) => self.troubles.has_room(),
            (Watched::Events, _) => self.newest.len() < SHOWN_EVENTS,
            _ => self.workloads.has_room(),
        };
        self.slots.iter().position(|slot| !slot.listing && slot.lacking.iter().any(|view| room(slot, view)))
    }

    /// The watch of this number begins anew; it is not to begin once more before it has listed.
    pub(crate) fn begins_again(&mut self, slot: usize) {
        self.slots[slot].listing = true;
    }

    pub(crate) fn is_touched(&self) -> bool {
        !self.touched.is_empty()
    }

    /// What may have changed in the view since it was asked for; `None` if nothing.
    pub(crate) fn untouch(&mut self, view: View) -> Option<Touched> {
        self.touched.remove(&view)
    }

    /// Nobody is told for now, and then everything: no use in remembering what.
    pub(crate) fn touch_all(&mut self) {
        let all = |view| (view, Touched { all: true, keys: HashSet::new() });
        self.touched = self.plan.views().map(all).collect();
    }

    fn touch(&mut self, view: View, key: &str) {
        if !self.plan.has(view) {
            return;
        }
        let touched = self.touched.entry(view).or_default();
        if touched.all || touched.keys.contains(key) {
            return;
        }
        if touched.keys.len() >= TOUCHED || view == View::Events {
            // Which Events are the newest depends on all of them.
            *touched = Touched { all: true, keys: HashSet::new() };
        } else {
            touched.keys.insert(key.into());
        }
    }

    /// There was no room for something that the view should know.
    fn lack(&mut self, slot: usize, view: View) {
        let slot = &mut self.slots[slot];
        slot.lacking_now.insert(view);
        if !slot.listing && slot.lacking.insert(view) {
            self.touched.entry(view).or_default();
        }
    }

    fn origin(&self, slot: usize) -> Origin {
        Origin { slot, list: self.slots[slot].list }
    }
}
