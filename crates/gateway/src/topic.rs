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
    /// To whoever has subscribed.
    Message,
    /// Belongs to the platform, and is nothing to publish to.
    Reserved,
}

impl<'a> Route<'a> {
    pub(crate) fn of(topic: &'a str) -> Self {
        match topic {
            "v1/telemetry" => Self::Telemetry,
            "v1/events" => Self::Events,
            "v1" => Self::Reserved,
            _ if topic.starts_with("v1/") => {
                let name = topic.strip_prefix("v1/d/").and_then(|rest| rest.strip_suffix("/telemetry"));
                name.filter(|name| !name.contains('/')).map_or(Self::Reserved, Self::Child)
            }
            _ if topic.starts_with('$') => Self::Reserved,
            _ => Self::Message,
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
    fn topics_of_the_platform_are_told_from_the_rest() {
        assert_eq!(Route::of("v1/telemetry"), Route::Telemetry);
        assert_eq!(Route::of("v1/events"), Route::Events);
        assert_eq!(Route::of("v1/d/pump-7/telemetry"), Route::Child("pump-7"));
        for reserved in
            ["v1", "v1/", "v1/telemetry/", "v1/d/a/b/telemetry", "v1/d//telemetry/x", "$SYS/broker"]
        {
            assert_eq!(Route::of(reserved), Route::Reserved, "{reserved:?}");
        }
        for other in ["", "/", "/v1/telemetry", "\u{feff}v1/telemetry", "v10/telemetry", "a/b"] {
            assert_eq!(Route::of(other), Route::Message, "{other:?}");
        }
    }
}
