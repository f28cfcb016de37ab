//! Brings one object to what its manifest says: looks at it unless it is known, checks whose it is, applies it. Before
//! it: `project.rs`, which says when. It decides nothing about other objects and never deletes.

use crate::{
    cluster::{ClusterError, Kind},
    error,
    gitops::{
        engine::{
            api::Api,
            likeness::{Seen, holds, likeness},
            progress::{Known, Mark},
        },
        inventory::{self, Policy},
        object::{Manifest, ObjectId},
        settings::DryRun,
    },
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;

/// What an object is to become, and what is known of it.
pub(crate) struct Errand<A> {
    pub(crate) api: A,
    pub(crate) manifest: Manifest,
    pub(crate) kind: Kind,
    pub(crate) known: Known,
    pub(crate) mark: Option<Mark>,
    pub(crate) policy: Policy,
    pub(crate) dry_run: DryRun,
    /// The inventory's id.
    pub(crate) owner: Arc<str>,
    /// Whether the inventory lists it.
    pub(crate) covered: bool,
}

/// What came of it.
pub(crate) struct Brought {
    pub(crate) id: ObjectId,
    pub(crate) kind: Kind,
    /// Of the manifest that was brought; the commit may have changed since.
    pub(crate) digest: u128,
    /// What was known of the object before anything was sent.
    pub(crate) before: Known,
    pub(crate) result: Result<Did, Failure>,
}

pub(crate) enum Did {
    /// Nothing had to be sent.
    Nothing,
    Sent {
        seen: Seen,
        /// Of the answer and the manifest.
        likeness: u128,
        took: Duration,
    },
    /// A dry run that sends nothing stopped here. `same`: as far as can be told, nothing would have changed.
    Would { same: bool },
    /// It may be applied once the inventory lists it.
    Uncovered,
}

/// Why not.
pub(crate) struct Failure {
    pub(crate) text: String,
    /// It may well be fine soon.
    pub(crate) passes: bool,
    /// There is no such kind any more, or no such namespace.
    pub(crate) lost: bool,
    /// Whether something was sent, so that the object may be there.
    pub(crate) sent: bool,
}

impl From<ClusterError> for Failure {
    fn from(error: ClusterError) -> Self {
        Self { passes: error.passes(), lost: error.is_not_found(), sent: true, text: error::chain(&error) }
    }
}

impl<A: Api> Errand<A> {
    pub(crate) async fn run(mut self) -> Brought {
        let result = self.bring().await;
        Brought {
            id: self.manifest.id,
            kind: self.kind,
            digest: self.manifest.digest,
            before: self.known,
            result,
        }
    }

    async fn bring(&mut self) -> Result<Did, Failure> {
        let id = &self.manifest.id;
        let mut same = false;
        if let Known::Unknown = self.known {
            let live = self.api.get(&self.kind, &id.namespace, &id.name).await?;
            same = live.as_ref().is_some_and(|live| holds(live, &self.manifest.value));
            self.known = live.map_or(Known::Absent, |live| Known::Present(Seen::of(&live)));
        }
        let seen = match &self.known {
            Known::Present(seen) => Some(seen),
            _ => None,
        };
        if let (Some(seen), Some(mark)) = (seen, &self.mark)
            && mark.digest == self.manifest.digest
            && mark.print == seen.print
        {
            return Ok(Did::Nothing);
        }
        inventory::may_apply(self.policy, seen.map(|seen| &seen.outline), &self.owner)
            .map_err(|text| Failure { text, passes: false, lost: false, sent: false })?;
        if self.dry_run == DryRun::Client {
            return Ok(Did::Would { same });
        }
        if !self.covered {
            return Ok(Did::Uncovered);
        }
        let object = inventory::own(&self.manifest.value, &self.owner);
        let began = Instant::now();
        let live = self.api.apply(&self.kind, &object, self.dry_run == DryRun::Server).await?;
        let likeness = likeness(&live, &self.manifest.value);
        Ok(Did::Sent { seen: Seen::of(&live), likeness, took: began.elapsed() })
    }
}
