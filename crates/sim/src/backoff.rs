use std::time::Duration;

use rand::Rng;

/// How long a client waits before it tries again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    pub first: Duration,
    pub max: Duration,
}

impl Backoff {
    /// After so many failures in a row: doubled with each, up to the bound, and by chance between half of that and all
    /// of it, so that those who lost their connections together do not come back together.
    pub fn wait(&self, failures: u32, chance: &mut impl Rng) -> Duration {
        let whole = self.first.saturating_mul(1 << failures.min(16)).min(self.max);
        whole.mul_f64(chance.random_range(0.5..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::SmallRng};

    use super::*;

    #[test]
    fn waits_double_up_to_the_bound_and_differ() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(20) };
        let mut chance = SmallRng::seed_from_u64(1);
        for (failures, whole) in [(0, 1), (1, 2), (4, 16), (5, 20), (60, 20)] {
            let waits: Vec<_> = (0..100).map(|_| backoff.wait(failures, &mut chance)).collect();
            let whole = Duration::from_secs(whole);
            assert!(waits.iter().all(|wait| (whole / 2..=whole).contains(wait)), "{failures}: {waits:?}");
            let (first, last) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
            assert!(*last - *first > whole / 4, "{failures}: {waits:?}");
        }
    }
}
