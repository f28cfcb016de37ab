//! Amounts as Kubernetes writes them (`100m`, `1.5Gi`, `2e3`), and what is added up from them. Used for what nodes have
//! and Pods ask for; what cannot be read counts as nothing.

use serde_json::Value;

/// CPU in thousandths of a core, memory in bytes, and Pods.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    pub(crate) cpu: u64,
    pub(crate) memory: u64,
    pub(crate) pods: u64,
}

impl Amount {
    /// From an object such as `allocatable` or `requests`.
    pub(crate) fn of(resources: &Value) -> Self {
        Self {
            cpu: parse(&resources["cpu"], 1000.0),
            memory: parse(&resources["memory"], 1.0),
            pods: parse(&resources["pods"], 1.0),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        self.each(other, u64::saturating_add)
    }

    /// Never below nothing.
    pub(crate) fn minus(self, other: Self) -> Self {
        self.each(other, u64::saturating_sub)
    }

    pub(crate) fn or_more(self, other: Self) -> Self {
        self.each(other, u64::max)
    }

    fn each(self, other: Self, with: impl Fn(u64, u64) -> u64) -> Self {
        Self {
            cpu: with(self.cpu, other.cpu),
            memory: with(self.memory, other.memory),
            pods: with(self.pods, other.pods),
        }
    }
}

/// So many `1/scale`ths, rounded up.
fn parse(value: &Value, scale: f64) -> u64 {
    let number = match value {
        Value::String(text) => number(text).unwrap_or(0.0),
        Value::Number(number) => number.as_f64().unwrap_or(0.0),
        _ => 0.0,
    };
    let scaled = number * scale;
    // 0.1 cores are 100.00000000000001 thousandths, which are not 101.
    let near = scaled.round();
    let whole = if (scaled - near).abs() <= near * 1e-12 { near } else { scaled.ceil() };
    // The cast saturates.
    whole.max(0.0) as u64
}

fn number(text: &str) -> Option<f64> {
    let text = text.trim();
    let digits = text.find(|c: char| !matches!(c, '0'..='9' | '.' | '+' | '-')).unwrap_or(text.len());
    let (mantissa, suffix) = text.split_at(digits);
    let factor = match suffix {
        "" => 1.0,
        "n" => 1e-9,
        "u" => 1e-6,
        "m" => 1e-3,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        "T" => 1e12,
        "P" => 1e15,
        "E" => 1e18,
        "Ki" => 1024.0,
        "Mi" => 1024.0 * 1024.0,
        "Gi" => 1024.0 * 1024.0 * 1024.0,
        "Ti" => 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "Pi" => 1024.0 * 1024.0 * 1024.0 * 1024.0 * 1024.0,
        "Ei" => 1024.0 * 1024.0 * 1024.0 * 1024.0 * 1024.0 * 1024.0,
        exponent => 10_f64.powi(exponent.strip_prefix(['e', 'E'])?.parse().ok()?),
    };
    Some(mantissa.parse::<f64>().ok()? * factor).filter(|number| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn amounts_are_read_as_kubernetes_writes_them() {
        let table = [
            (json!("100m"), 100, 1),
            (json!("0.1"), 100, 1),
            (json!("1"), 1000, 1),
            (json!(2), 2000, 2),
            (json!("1500u"), 2, 1),
            (json!("1n"), 1, 1),
            (json!("2Gi"), 2 << 30, 2 << 30),
            (json!("16106127360"), 16_106_127_360, 16_106_127_360),
            (json!("129e6"), 129_000_000, 129_000_000),
            (json!("129M"), 129_000_000, 129_000_000),
            (json!("1E"), 1_000_000_000_000_000_000, 1_000_000_000_000_000_000),
            (json!("2E3"), 2000, 2000),
            (json!("-1"), 0, 0),
            (json!("1e999"), 0, 0),
            (json!("much"), 0, 0),
            (json!("1 Gi"), 0, 0),
            (json!("1e99999999999"), 0, 0),
            (json!(null), 0, 0),
            (json!(["1"]), 0, 0),
        ];
        for (value, cpu_of_small, plain) in table {
            if plain < 1000 {
                assert_eq!(parse(&value, 1000.0), cpu_of_small, "{value}");
            }
            assert_eq!(parse(&value, 1.0), plain, "{value}");
        }
        let all =
            Amount::of(&json!({"cpu": "3920m", "memory": "15Gi", "pods": "110", "nvidia.com/gpu": "1"}));
        assert_eq!(all, Amount { cpu: 3920, memory: 15 << 30, pods: 110 });
        assert_eq!(all.minus(Amount { cpu: 4000, ..all }), Amount::default());
    }
}
