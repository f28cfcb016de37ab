//! Policies: YAML documents in a directory, what they mean, and every problem with them. Before it: a path
//! from a config file. After it: the edge asks [`Policy`] for the limits it enforces.
//!
//! It opens no socket, keeps no counters and reads files only in [`load_dir`]; the edge calls that again when a
//! file changes. Selectors in `match`, `explain` and `diff` are not here yet.

mod load;
mod policy;
mod schema;
mod validate;

pub use load::load_dir;
pub use policy::{Limit, Policy, RateLimit};
pub use validate::{Problem, Problems};
