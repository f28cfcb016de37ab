//! Policies: YAML documents in a directory, whom they are for, what they say, and every problem with them.
//!
//! Before it: a path from a config file, and files that change. After it: edge and broker ask a [`PolicySet`] for each
//! value, with what they know of a [`Subject`]; what no policy says comes from their own configuration. It opens no socket
//! and keeps no counters: who enforces a limit keeps its buckets, so that another policy does not refill them.

mod diff;
mod explain;
mod gcra;
mod limits;
mod live;
mod load;
mod meant;
mod problem;
mod request;
mod rules;
mod schema;
mod simulate;
mod subject;
mod validate;
mod written;

pub use diff::{Change, Stated, diff};
pub use explain::{Effective, Explained, PassedOver};
pub use gcra::Gcra;
pub use limits::RateLimit;
pub use live::{Live, Status};
pub use load::{Loaded, load, load_dir};
pub use meant::{
    Access, Backends, CallRate, CallerRule, Callers, Clients, Connections, Effect, Limits, PolicySet,
    Polling, RedisLost, Request, Resource, Tunnels,
};
pub use problem::{Problem, Problems};
pub use request::Judged;
pub use rules::{Choice, Kind, Rule, Ruled, Rules};
pub use schema::schema;
pub use simulate::{Refused, Report, SimulateError, simulate};
pub use subject::Subject;
