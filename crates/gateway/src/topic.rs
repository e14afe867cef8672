use dunlin_model::{DeviceId, InvalidName};

/// Where a device may publish.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Route<'a> {
    /// `v1/telemetry`
    Telemetry,
    /// `v1/events`
    Events,
    /// `v1/d/{device}/telemetry`: for a device that speaks for children.
    Child(&'a str),
}

impl<'a> Route<'a> {
    pub(crate) fn of(topic: &'a str) -> Option<Self> {
        match topic {
            "v1/telemetry" => Some(Self::Telemetry),
            "v1/events" => Some(Self::Events),
            _ => {
                let name = topic.strip_prefix("v1/d/")?.strip_suffix("/telemetry")?;
                (!name.contains('/')).then_some(Self::Child(name))
            }
        }
    }
}

/// The device that a topic or path names.
pub(crate) fn child_name(name: &str) -> Result<DeviceId, InvalidName> {
    name.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_native_topics_are_taken() {
        assert_eq!(Route::of("v1/telemetry"), Some(Route::Telemetry));
        assert_eq!(Route::of("v1/events"), Some(Route::Events));
        assert_eq!(Route::of("v1/d/pump-7/telemetry"), Some(Route::Child("pump-7")));
        for other in [
            "",
            "/",
            "v1",
            "v1/telemetry/",
            "/v1/telemetry",
            "v1/d/a/b/telemetry",
            "v1/d//telemetry/x",
            "\u{feff}v1/telemetry",
        ] {
            assert_eq!(Route::of(other), None, "{other:?}");
        }
    }
}
