use std::{collections::VecDeque, time::Instant};

use serde_json::Value;

/// What the server said at one moment.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) at: Instant,
    pub(super) status: Value,
    pub(super) ledger: Value,
    pub(super) alerts: Value,
    /// Acknowledgement latency: (upper bound in seconds, count up to it).
    pub(super) ack_buckets: Vec<(f64, f64)>,
}

const RATES_KEPT: usize = 120;

/// What two looks say about the time between them.
#[derive(Debug)]
pub(super) struct Figures {
    pub(super) last: Look,
    pub(super) accepted_per_second: f64,
    pub(super) stored_per_second: f64,
    pub(super) ack_p50_seconds: Option<f64>,
    pub(super) ack_p99_seconds: Option<f64>,
    pub(super) rates: VecDeque<u64>,
    /// Why the last look failed.
    pub(super) lost: Option<String>,
}

impl Figures {
    pub(super) fn new(first: Look) -> Self {
        Self {
            last: first,
            accepted_per_second: 0.0,
            stored_per_second: 0.0,
            ack_p50_seconds: None,
            ack_p99_seconds: None,
            rates: VecDeque::new(),
            lost: None,
        }
    }

    pub(super) fn add(&mut self, look: Look) {
        let seconds = look.at.duration_since(self.last.at).as_secs_f64().max(0.001);
        let rate =
            |field: &str| (total(&look.ledger, field) - total(&self.last.ledger, field)).max(0.0) / seconds;
        self.accepted_per_second = rate("accepted");
        self.stored_per_second = rate("stored");
        let between: Vec<(f64, f64)> = look
            .ack_buckets
            .iter()
            .map(|(bound, count)| {
                let before = self.last.ack_buckets.iter().find(|(b, _)| b == bound);
                (*bound, count - before.map_or(0.0, |(_, count)| *count))
            })
            .collect();
        self.ack_p50_seconds = quantile(&between, 0.5);
        self.ack_p99_seconds = quantile(&between, 0.99);
        self.rates.push_back(self.accepted_per_second as u64);
        if self.rates.len() > RATES_KEPT {
            self.rates.pop_front();
        }
        self.last = look;
        self.lost = None;
    }

    pub(super) fn lost(&mut self, why: String) {
        self.lost = Some(why);
    }
}

/// A count of the ledger over all tenants one may see.
pub(super) fn total(ledger: &Value, field: &str) -> f64 {
    ledger["tenants"].as_object().into_iter().flatten().filter_map(|(_, t)| t[field].as_f64()).sum()
}

/// The buckets of `dunlin_gateway_append_seconds` in Prometheus' text format.
pub(super) fn ack_buckets(metrics: &str) -> Vec<(f64, f64)> {
    let bucket = |line: &str| {
        let rest = line.strip_prefix("dunlin_gateway_append_seconds_bucket{le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        Some((bound, count.split_whitespace().next()?.parse().ok()?))
    };
    metrics.lines().filter_map(bucket).collect()
}

/// Linear within the bucket, as Prometheus' `histogram_quantile` does it.
fn quantile(buckets: &[(f64, f64)], q: f64) -> Option<f64> {
    let all = buckets.last().map(|(_, count)| *count).filter(|count| *count > 0.0)?;
    let rank = q * all;
    let mut below = (0.0, 0.0);
    for (bound, count) in buckets {
        if *count >= rank {
            if bound.is_infinite() {
                return Some(below.0);
            }
            let share = (rank - below.1) / (count - below.1).max(f64::MIN_POSITIVE);
            return Some(below.0 + (bound - below.0) * share);
        }
        below = (*bound, *count);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_come_from_the_buckets_of_the_text_format() {
        let text = "dunlin_gateway_append_seconds_bucket{le=\"0.001\"} 50\n\
                    dunlin_gateway_append_seconds_bucket{le=\"0.01\"} 100\n\
                    dunlin_gateway_append_seconds_bucket{le=\"+Inf\"} 100\n";
        let buckets = ack_buckets(text);
        assert_eq!(quantile(&buckets, 0.5), Some(0.001));
        assert!((quantile(&buckets, 0.75).unwrap() - 0.0055).abs() < 1e-9);
        assert_eq!(quantile(&[], 0.5), None);
    }
}
