//! Which requests are traced. Before it: a trace context that may be a stranger's. After it: spans, or nothing.
//!
//! Two kinds of trust. [`Sampler::stranger`] for who may be anybody: his ids are taken, his wish to be recorded is not,
//! only the dice of our own decide, and whoever asks not to be recorded is not. [`Sampler::ours`] behind a program of
//! ours that has decided already: its word holds, and where it says nothing the dice decide.

use crate::context::Context;
use rand::Rng;

/// A share of all requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rate(f64);

impl Rate {
    pub const NONE: Self = Self(0.0);
    pub const ALL: Self = Self(1.0);

    /// `None` unless it lies between 0 and 1.
    pub fn new(share: f64) -> Option<Self> {
        (0.0..=1.0).contains(&share).then_some(Self(share))
    }

    pub fn share(self) -> f64 {
        self.0
    }

    /// Dice of our own: whoever chooses a trace's id must not thereby choose that it is recorded.
    fn hits(self) -> bool {
        self.0 >= 1.0 || self.0 > 0.0 && rand::rng().random::<f64>() < self.0
    }
}

/// Decides for one request at a time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    pub rate: Rate,
}

/// A span that is to be, and what it hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decided {
    /// What the next program is told.
    pub context: Context,
    /// The caller's span.
    pub parent: Option<crate::SpanId>,
}

impl Sampler {
    /// For a request of anybody. `None`: it is not traced, and whoever comes next shall not trace it either.
    pub fn stranger(self, came: Option<Context>) -> Option<Decided> {
        let declined = came.is_some_and(|context| !context.sampled);
        (!declined && self.rate.hits()).then(|| Decided::below(came))
    }

    /// For a request that comes from a program of ours.
    pub fn ours(self, came: Option<Context>) -> Option<Decided> {
        let traced = came.map_or_else(|| self.rate.hits(), |context| context.sampled);
        traced.then(|| Decided::below(came))
    }

    /// As OpenTelemetry's programs are told: `OTEL_TRACES_SAMPLER` and `OTEL_TRACES_SAMPLER_ARG`. Whether a request
    /// without a context is traced; one with a context is what the context says, by whatever name.
    ///
    /// # Errors
    /// What is wrong with one of the two.
    pub fn from_env(env: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let name = env("OTEL_TRACES_SAMPLER").unwrap_or_default();
        let rate = match name.strip_prefix("parentbased_").unwrap_or(&name) {
            "" | "always_on" => Rate::ALL,
            "always_off" => Rate::NONE,
            "traceidratio" => {
                let share = env("OTEL_TRACES_SAMPLER_ARG").unwrap_or_else(|| "1".to_owned());
                share.trim().parse().ok().and_then(Rate::new).ok_or_else(|| {
                    format!("OTEL_TRACES_SAMPLER_ARG is {share:?}, which is no number between 0 and 1")
                })?
            }
            _ => {
                return Err(format!(
                    "OTEL_TRACES_SAMPLER is {name:?}; parentbased_always_on, parentbased_always_off and \
                     parentbased_traceidratio are known"
                ));
            }
        };
        Ok(Self { rate })
    }
}

impl Decided {
    fn below(came: Option<Context>) -> Self {
        let context = came.map_or_else(|| Context::root(true), Context::child);
        Self { context: Context { sampled: true, ..context }, parent: came.map(|context| context.span) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampler(share: f64) -> Sampler {
        Sampler { rate: Rate::new(share).unwrap() }
    }

    #[test]
    fn a_strangers_wish_to_be_recorded_counts_for_nothing() {
        let asks = Some(Context::root(true));
        assert_eq!(sampler(0.0).stranger(asks), None);
        let hits = (0..10_000).filter(|_| sampler(0.1).stranger(asks).is_some()).count();
        assert!((800..1200).contains(&hits), "{hits} of the same id");
        let declines = Some(Context::root(false));
        assert_eq!(sampler(1.0).stranger(declines), None);
    }

    #[test]
    fn a_strangers_ids_are_taken() {
        let came = Context::root(true);
        let decided = sampler(1.0).stranger(Some(came)).unwrap();
        assert_eq!((decided.context.trace, decided.parent), (came.trace, Some(came.span)));
        assert!(decided.context.sampled && decided.context.span != came.span);
        assert_eq!(sampler(1.0).stranger(None).unwrap().parent, None);
    }

    #[test]
    fn the_word_of_a_program_of_ours_holds() {
        assert!(sampler(0.0).ours(Some(Context::root(true))).is_some());
        assert!(sampler(1.0).ours(Some(Context::root(false))).is_none());
        assert!(sampler(1.0).ours(None).is_some());
        assert!(sampler(0.0).ours(None).is_none());
    }

    #[test]
    fn the_environment_is_read_as_opentelemetrys_programs_do() {
        let of = |name: Option<&str>, argument: Option<&str>| {
            Sampler::from_env(|variable| match variable {
                "OTEL_TRACES_SAMPLER" => name.map(str::to_owned),
                _ => argument.map(str::to_owned),
            })
            .map(|sampler| sampler.rate.share())
        };
        assert_eq!(of(None, None), Ok(1.0));
        assert_eq!(of(Some("parentbased_always_off"), None), Ok(0.0));
        assert_eq!(of(Some("parentbased_traceidratio"), Some("0.25")), Ok(0.25));
        assert_eq!(of(Some("traceidratio"), None), Ok(1.0));
        for (name, argument) in [("traceidratio", "2"), ("traceidratio", "x"), ("jaeger_remote", "1")] {
            assert!(of(Some(name), Some(argument)).is_err(), "{name} {argument}");
        }
        assert_eq!(Rate::new(f64::NAN), None);
    }
}
