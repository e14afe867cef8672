use rand::{Rng, SeedableRng, rngs::SmallRng};

/// How often some device of the fleet begins to overheat, and for how long it does.
const OVERHEATING_EVERY_SECONDS: f64 = 60.0;
const OVERHEATING_SECONDS: std::ops::Range<f64> = 240.0..480.0;
/// How fast a temperature follows its surroundings.
const WARMING_SECONDS: f64 = 20.0;
const BATTERY_PERCENT_PER_SECOND: f64 = 100.0 / (400.0 * 86_400.0);

/// A device's temperature in °C, humidity and battery charge in percent.
#[derive(Debug)]
pub(super) struct Sensors {
    chance: SmallRng,
    fleet_devices: f64,
    home_temperature: f64,
    temperature: f64,
    humidity: f64,
    battery: f64,
    hot: Option<Hot>,
}

#[derive(Debug)]
struct Hot {
    seconds_left: f64,
    temperature: f64,
}

impl Sensors {
    pub(super) fn new(seed: u64, device: u64, fleet_devices: u64) -> Self {
        // Neighbouring seeds must not give neighbouring devices.
        let mut chance = SmallRng::seed_from_u64(seed ^ (device + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let home_temperature = chance.random_range(18.0..28.0);
        Self {
            fleet_devices: fleet_devices.max(1) as f64,
            home_temperature,
            temperature: home_temperature,
            humidity: chance.random_range(30.0..60.0),
            battery: chance.random_range(40.0..100.0),
            hot: None,
            chance,
        }
    }

    /// Where in its interval the device sends, from 0 up to 1.
    pub(super) fn phase(&mut self) -> f64 {
        self.chance.random()
    }

    pub(super) fn is_overheated(&self) -> bool {
        self.hot.is_some()
    }

    /// The message after so many seconds have passed.
    pub(super) fn measure(&mut self, seconds: f64, unix_milliseconds: i64) -> String {
        self.overheat_or_cool(seconds);
        let surroundings = self.hot.as_ref().map_or(self.home_temperature, |hot| hot.temperature);
        self.temperature += (surroundings - self.temperature) * (1.0 - (-seconds / WARMING_SECONDS).exp())
            + self.chance.random_range(-0.1..0.1);
        self.humidity = (self.humidity + self.chance.random_range(-0.2..0.2)).clamp(5.0, 95.0);
        self.battery = (self.battery - seconds * BATTERY_PERCENT_PER_SECOND).max(0.0);
        format!(
            "{{\"ts\":{unix_milliseconds},\"values\":{{\"temperature\":{:.1},\"humidity\":{:.1},\"battery\":{:.1}}}}}",
            self.temperature, self.humidity, self.battery
        )
    }

    fn overheat_or_cool(&mut self, seconds: f64) {
        if let Some(hot) = &mut self.hot {
            hot.seconds_left -= seconds;
            if hot.seconds_left <= 0.0 {
                self.hot = None;
            }
        } else {
            let chance = seconds / (OVERHEATING_EVERY_SECONDS * self.fleet_devices);
            if self.chance.random_bool(chance.clamp(0.0, 1.0)) {
                self.hot = Some(Hot {
                    seconds_left: self.chance.random_range(OVERHEATING_SECONDS),
                    temperature: self.chance.random_range(85.0..98.0),
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_same_messages() {
        let day = |seed| {
            let mut sensors = Sensors::new(seed, 3, 1);
            (0..8_640).map(|i| sensors.measure(10.0, i * 10_000)).collect::<Vec<_>>()
        };
        assert_eq!(day(1), day(1));
        assert_ne!(day(1), day(2));
    }

    #[test]
    fn a_device_overheats_now_and_then_and_cools_down_again() {
        let mut sensors = Sensors::new(7, 0, 20);
        let mut hot = 0;
        for i in 0..8_640 {
            let message: serde_json::Value = serde_json::from_str(&sensors.measure(10.0, i)).unwrap();
            let temperature = message["values"]["temperature"].as_f64().unwrap();
            assert!((0.0..120.0).contains(&temperature), "{temperature}");
            hot += u32::from(temperature > 80.0);
        }
        assert!((100..8_000).contains(&hot), "hot in {hot} of 8640 messages");
    }
}
