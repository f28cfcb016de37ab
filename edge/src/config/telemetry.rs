//! `telemetry`: where the edge reports what it did, beyond its log and `/metrics`.

use super::Problems;
use serde::Deserialize;
use std::path::Path;

/// What is reported, and where to.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Telemetry {}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FileTelemetry {}

impl FileTelemetry {
    pub(super) fn meant(self, _base: &Path, _found: &mut Problems) -> Telemetry {
        Telemetry {}
    }
}
