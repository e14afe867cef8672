use std::time::Duration;

use dunlin_model::{Clock, Timestamp};
use tokio::sync::watch;

const TRIM_EVERY: Duration = Duration::from_secs(3_600);

/// Calls `trim` with the time, once an hour, until it is to stop.
pub async fn trim_hourly<F: Future<Output = ()>>(
    clock: &Clock,
    mut stop: watch::Receiver<bool>,
    mut trim: impl FnMut(Timestamp) -> F,
) {
    let mut now = clock.now();
    loop {
        tokio::select! {
            _ = stop.wait_for(|asked| *asked) => return,
            () = tokio::time::sleep(TRIM_EVERY) => {}
        }
        now = believed(now, clock.now());
        tokio::select! {
            _ = stop.wait_for(|asked| *asked) => return,
            () = trim(now) => {}
        }
    }
}

/// What time it is, by a clock that may have jumped since the last look an hour ago: never much more than that later.
/// What a clock that is ahead makes look old would be gone for good.
fn believed(last: Timestamp, now: Timestamp) -> Timestamp {
    now.min(last + 2 * TRIM_EVERY)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AN_HOUR: Duration = Duration::from_secs(3_600);
    const A_YEAR: Duration = Duration::from_secs(365 * 86_400);

    #[test]
    fn a_clock_that_jumps_ahead_makes_nothing_old_and_one_that_goes_on_is_followed() {
        let start = Timestamp::from_micros(1_700_000_000_000_000);
        let jumped = believed(start, start + A_YEAR);
        assert_eq!(jumped, start + 2 * AN_HOUR);
        let back = believed(jumped, start + 2 * AN_HOUR);
        assert_eq!(back, start + 2 * AN_HOUR);
        assert_eq!(believed(back, back + AN_HOUR), back + AN_HOUR);
        assert_eq!(believed(back, start), start, "a clock that went back is right, for all we know");
    }
}
