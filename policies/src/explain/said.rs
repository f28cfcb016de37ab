//! Values as they would be written in a document.
//!
//! Under `explain` and `diff`: two values that are written the same are the same. Reads nothing.

use crate::{CallRate, CallerRule, Callers, Clients, Effect, RateLimit, RedisLost};
use std::fmt::{Display, Write as _};
use std::net::IpAddr;
use std::time::Duration;

/// What a document would say to mean this.
pub(crate) trait Said {
    fn said(&self) -> String;
}

impl Said for u8 {
    fn said(&self) -> String {
        self.to_string()
    }
}

impl Said for u32 {
    fn said(&self) -> String {
        self.to_string()
    }
}

impl Said for u64 {
    fn said(&self) -> String {
        self.to_string()
    }
}

impl Said for Duration {
    fn said(&self) -> String {
        format!("{}s", self.as_secs_f64())
    }
}

impl Said for Option<RateLimit> {
    fn said(&self) -> String {
        match self {
            None => "unlimited".to_owned(),
            Some(RateLimit { per_minute, burst }) if per_minute == burst => {
                format!("{{perMinute: {per_minute}}}")
            }
            Some(RateLimit { per_minute, burst }) => {
                format!("{{rate: {}, burst: {burst}}}", f64::from(per_minute.get()) / 60.0)
            }
        }
    }
}

impl Said for RedisLost {
    fn said(&self) -> String {
        match self {
            Self::Local => "local",
            Self::Deny => "deny",
            Self::Allow => "allow",
        }
        .to_owned()
    }
}

impl Said for CallRate {
    fn said(&self) -> String {
        format!("{{perSecond: {}, burst: {}}}", self.per_second, self.burst)
    }
}

impl Said for Clients {
    fn said(&self) -> String {
        let networks = |networks: &[(IpAddr, u8)]| {
            let written = networks.iter().map(|(address, length)| format!("{address}/{length}"));
            written.collect::<Vec<_>>()
        };
        let mut said = Mapping::default();
        said.list("allow", &networks(&self.allow));
        said.list("deny", &networks(&self.deny));
        said.end()
    }
}

impl Said for Callers {
    fn said(&self) -> String {
        let mut said = Mapping::default();
        let rules: Vec<_> = self.rules.iter().map(Said::said).collect();
        said.list("rules", &rules);
        said.entry("otherwise", effect(self.otherwise));
        said.end()
    }
}

impl Said for CallerRule {
    fn said(&self) -> String {
        let mut said = Mapping::default();
        said.entry("effect", effect(self.effect));
        said.list("access", &self.access);
        said.list("userIds", &self.user_ids);
        said.list("projectIds", &self.project_ids);
        said.list("verbs", &self.verbs);
        said.list("resources", &self.resources);
        said.list("namespaces", &self.namespaces);
        said.list("paths", &self.paths);
        said.end()
    }
}

fn effect(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::Deny => "deny",
    }
}

/// A mapping in one line.
#[derive(Default)]
struct Mapping(String);

impl Mapping {
    fn entry(&mut self, key: &str, value: impl Display) {
        let between = if self.0.is_empty() { "" } else { ", " };
        write!(self.0, "{between}{key}: {value}").expect("writing to a string cannot fail");
    }

    /// Left out where it is empty.
    fn list<T: Display>(&mut self, key: &str, values: &[T]) {
        if !values.is_empty() {
            let values: Vec<_> = values.iter().map(ToString::to_string).collect();
            self.entry(key, format_args!("[{}]", values.join(", ")));
        }
    }

    fn end(self) -> String {
        format!("{{{}}}", self.0)
    }
}
