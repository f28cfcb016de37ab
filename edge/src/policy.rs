//! The policies in force at this edge: what they say on top of `edge.yaml`.
//!
//! From `config` at start and from the file system later (`postern_policies::Live`); to `limits`, and to whoever asks
//! which addresses may come. What no policy says is as `edge.yaml` has it. Never refills a bucket, nor touches a stream
//! but of a client that is denied.

mod expel;

pub use expel::keep_out;

use crate::life::Seat;
use crate::limits::{Limits, Reported, name_of};
use crate::reply::{DENIED_BY_POLICY, Reason};
use postern_policies::{Choice, Live, PolicySet, Problems, Status, Subject};
use postern_wire::token::TokenKey;
use serde_json::Value;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The directory does not hold policies that could be put in force.
#[derive(Debug, thiserror::Error)]
#[error("policies.directory {}", directory.display())]
pub struct PolicyError {
    directory: PathBuf,
    /// One problem per line.
    #[source]
    source: Problems,
}

/// What is in force.
#[derive(Debug)]
pub struct Policies {
    live: Live,
    /// There is a directory.
    configured: bool,
}

impl Policies {
    /// Reads the directory. Blocking; at start, when a problem is an error.
    pub fn load(directory: Option<&Path>) -> Result<Self, PolicyError> {
        let live = Live::open(directory).map_err(|source| PolicyError {
            directory: directory.unwrap_or(Path::new("")).to_owned(),
            source,
        })?;
        Ok(Self { live, configured: directory.is_some() })
    }

    /// What the documents say.
    pub fn live(&self) -> &Live {
        &self.live
    }

    /// Whether there is a directory to read them from.
    pub fn are_configured(&self) -> bool {
        self.configured
    }

    /// All of it. `None`: none ever will say anything.
    pub fn set(&self) -> Option<Arc<PolicySet>> {
        self.configured.then(|| Arc::clone(&self.live.set()))
    }

    /// Whether this address may come, with this token if that is known already. A token's document never lets in whom the
    /// one for everybody denies: anybody can invent a token that it selects.
    ///
    /// # Errors
    /// Which policy denies it. `Ok` may say which would, were it not of `mode: report`.
    pub fn admits(&self, client: IpAddr, token: Option<&TokenKey>) -> Result<Option<Reported>, Reason> {
        if !self.configured {
            return Ok(None);
        }
        let set = self.live.set();
        let admits = |token| {
            let Choice { in_force, reported } = set.access.clients.choose(&whoever(token));
            if let Some(ruled) = in_force.filter(|ruled| !ruled.value.admits(client)) {
                return Err(Reason::DeniedByPolicy { rule: name_of(ruled.rule) });
            }
            let reported = reported.filter(|ruled| !ruled.value.admits(client));
            Ok(reported.map(|ruled| Reported::new(DENIED_BY_POLICY, ruled.rule)))
        };
        let reported = admits(None)?;
        match token {
            Some(_) => Ok(admits(token)?.or(reported)),
            None => Ok(reported),
        }
    }

    /// Whether a connection that is open may stay.
    pub fn still_admit(&self, seat: &Seat) -> bool {
        let Some(client) = seat.client().filter(|_| self.configured) else { return true };
        let set = self.live.set();
        let admits =
            |token| set.access.clients.find(&whoever(token)).is_none_or(|ruled| ruled.value.admits(client));
        admits(None) && (seat.token().is_none() || admits(seat.token()))
    }

    /// What is in force, since when, and what is wrong.
    pub fn status(&self) -> Status {
        self.live.status()
    }

    /// For people, with the limits as they are for everybody.
    pub fn report(&self, limits: &Limits) -> Value {
        let mut page = self.live.status().page();
        page["limits"] = limits.effective();
        page
    }

    /// Reads the files again whenever they change, until `stop`, and tells `limits` of each set that is in force then.
    pub async fn keep_fresh(&self, limits: &Limits, stop: CancellationToken) {
        let mut changes = self.live.changes();
        let applied = async {
            while changes.changed().await.is_ok() {
                limits.obey(Arc::clone(&self.live.set()));
            }
        };
        tokio::select! {
            () = self.live.keep_fresh(stop) => {}
            () = applied => {}
        }
    }
}

/// Documents about addresses select by tokens at most.
fn whoever(token: Option<&TokenKey>) -> Subject<'_> {
    Subject { token_hash: token.map(TokenKey::as_bytes), ..Subject::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Access policies for everybody, and for a token.
    pub(in crate::policy) fn access(
        everybody: &str,
        token: &TokenKey,
        theirs: &str,
    ) -> (tempfile::TempDir, Policies) {
        let directory = tempfile::TempDir::new().unwrap();
        let document = |name: &str, rest: &str| {
            format!("---\napiVersion: postern/v1\nkind: AccessPolicy\nmetadata: {{name: {name}}}\n{rest}\n")
        };
        let text = document("everybody", &format!("spec: {{clients: {everybody}}}"))
            + &document(
                "theirs",
                &format!("match: {{tokenHashes: ['{}']}}\nspec: {{clients: {theirs}}}", token.to_hex()),
            );
        std::fs::write(directory.path().join("access.yaml"), text).unwrap();
        let policies =
            Policies::load(Some(directory.path())).unwrap_or_else(|error| panic!("{}", error.source));
        (directory, policies)
    }

    #[test]
    fn a_tokens_document_narrows_and_never_widens_what_holds_for_the_address() {
        let (theirs, other) = (TokenKey::of(b"theirs"), TokenKey::of(b"other"));
        let (_directory, policies) =
            access("{deny: [198.51.100.0/24]}", &theirs, "{allow: [198.51.100.0/24, 192.0.2.1/32]}");
        let rule = |address: &str, token: Option<&TokenKey>| match policies
            .admits(address.parse().unwrap(), token)
        {
            Ok(_) => None,
            Err(Reason::DeniedByPolicy { rule }) => Some(rule.to_string()),
            Err(reason) => panic!("{reason:?}"),
        };
        let denied = |rule: &str| Some(format!("AccessPolicy/{rule}"));
        for (address, token, wanted) in [
            ("198.51.100.1", None, denied("everybody")),
            ("198.51.100.1", Some(&other), denied("everybody")),
            ("198.51.100.1", Some(&theirs), denied("everybody")),
            ("192.0.2.1", Some(&theirs), None),
            ("192.0.2.2", Some(&theirs), denied("theirs")),
            ("192.0.2.2", Some(&other), None),
            ("192.0.2.2", None, None),
        ] {
            assert_eq!(rule(address, token), wanted, "{address} {token:?}");
        }
    }
}
