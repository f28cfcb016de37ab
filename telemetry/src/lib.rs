//! What the three programs share to be followed by: ids that log lines agree on, W3C trace context, the choice of
//! what is traced, and spans on their way to an OTLP collector.
//!
//! Before it: a request's headers. After it: the collector. It takes nothing from the hot path but a value that is
//! finished, never waits for the collector, and never sees a token, a body or a header that it was not asked for.

pub mod context;
pub mod endpoint;
pub mod env;
pub mod exporter;
mod otlp;
pub mod request_id;
pub mod sampling;
mod sender;
pub mod span;

pub use context::{Context, SpanId, TRACEPARENT, TRACESTATE, TraceId};
pub use endpoint::{Endpoint, EndpointError, Protocol};
pub use exporter::{ExportError, Exporter, Keeper, Service, Settings, Tally};
pub use request_id::RequestId;
pub use sampling::{Rate, Sampler};
pub use span::{Kind, Span, Value};
