//! One finished piece of work, as the collector will show it. Made when it is over, from what is known then; there is
//! no span that is open.

use crate::context::{Context, SpanId};
use std::borrow::Cow;
use std::time::SystemTime;

/// Which end of a call it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It answered a call.
    Server,
    /// It made a call.
    Client,
}

/// What is known about one piece of work.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Few different ones, as `GET`; never a path.
    pub name: Cow<'static, str>,
    pub kind: Kind,
    /// Its own ids.
    pub context: Context,
    /// Of the same trace; `None`: it begins the trace.
    pub parent: Option<SpanId>,
    pub start: SystemTime,
    pub end: SystemTime,
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, where that is this program's or its callee's fault. Without secrets.
    pub error: Option<Cow<'static, str>>,
}

/// What an attribute may be.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Text(Cow<'static, str>),
    Number(i64),
}

impl From<&'static str> for Value {
    fn from(text: &'static str) -> Self {
        Self::Text(text.into())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<i64> for Value {
    fn from(number: i64) -> Self {
        Self::Number(number)
    }
}
