//! `policies`: a directory of policy files, which may change while the edge runs.

use serde::Deserialize;
use std::path::{Path, PathBuf};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FilePolicies {
    directory: Option<PathBuf>,
}

impl FilePolicies {
    /// `None`: only what this file says under `limits`.
    pub(super) fn meant(self, base: &Path) -> Option<PathBuf> {
        self.directory.map(|directory| base.join(directory))
    }
}
