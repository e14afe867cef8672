use hdrhistogram::Histogram;
use serde::Serialize;

/// Longer ones count as this, in nanoseconds.
const NANOS_MAX: u64 = 600_000_000_000;
const NANOS_MIN: u64 = 1_000;

/// How long each of many things took.
#[derive(Debug)]
pub(crate) struct Latencies(Histogram<u64>);

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Latency {
    pub count: u64,
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Latencies {
    pub(crate) fn new() -> Self {
        // The bounds are constants that fit each other.
        Self(Histogram::new_with_bounds(NANOS_MIN, NANOS_MAX, 3).expect("bounds of a histogram"))
    }

    #[inline]
    pub(crate) fn record(&mut self, nanos: u64) {
        self.0.saturating_record(nanos);
    }

    pub(crate) fn summary(&self) -> Latency {
        let micros = |quantile| self.0.value_at_quantile(quantile) as f64 / 1e3;
        Latency {
            count: self.0.len(),
            mean: self.0.mean() / 1e3,
            p50: micros(0.5),
            p90: micros(0.9),
            p99: micros(0.99),
            p999: micros(0.999),
            max: self.0.max() as f64 / 1e3,
        }
    }
}

/// Processor time of this process.
pub(crate) fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
