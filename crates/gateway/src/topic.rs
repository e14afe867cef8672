use std::borrow::Cow;

use dunlin_broker::{Filter, command_filter, command_of, is_of_commands};
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
    /// `v1/commands/{id}/reply`
    Reply(&'a str),
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
                let between = |before, behind| {
                    let name = topic.strip_prefix(before)?.strip_suffix(behind)?;
                    (!name.contains('/')).then_some(name)
                };
                let child = between("v1/d/", "/telemetry").map(Self::Child);
                child.or_else(|| between("v1/commands/", "/reply").map(Self::Reply)).unwrap_or(Self::Reserved)
            }
            _ if topic.starts_with('$') => Self::Reserved,
            _ => Self::Message,
        }
    }
}

/// What a device asks for, as the broker knows it: its commands are below a topic that no client names. `None` if it is
/// nothing for a client.
pub(crate) fn asked<'f>(filter: &'f str, device: &str) -> Option<Cow<'f, str>> {
    if matches!(filter, "v1/commands/+" | "v1/commands/#") {
        return Some(command_filter(device).into());
    }
    let is_forbidden = Filter::parse(filter).is_ok_and(|filter| is_of_commands(filter.path));
    (!is_forbidden).then_some(filter.into())
}

/// A topic as its subscribers are shown it.
pub(crate) fn shown(topic: &str) -> Cow<'_, str> {
    match command_of(topic) {
        Some((_, id)) => format!("v1/commands/{id}").into(),
        None => topic.into(),
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
        assert_eq!(Route::of("v1/commands/c1/reply"), Route::Reply("c1"));
        for reserved in [
            "v1",
            "v1/",
            "v1/commands/c1",
            "v1/commands/a/b/reply",
            "$commands/pump-7/c1",
            "v1/telemetry/",
            "v1/d/a/b/telemetry",
            "v1/d//telemetry/x",
            "$SYS/broker",
        ] {
            assert_eq!(Route::of(reserved), Route::Reserved, "{reserved:?}");
        }
        for other in ["", "/", "/v1/telemetry", "\u{feff}v1/telemetry", "v10/telemetry", "a/b"] {
            assert_eq!(Route::of(other), Route::Message, "{other:?}");
        }
    }

    #[test]
    fn a_device_asks_for_its_own_commands_and_for_no_others() {
        for own in ["v1/commands/+", "v1/commands/#"] {
            assert_eq!(asked(own, "pump-7").as_deref(), Some("$commands/pump-7/+"));
        }
        for forbidden in ["$commands/#", "$commands/pump-7/+", "$share/g/$commands/+/+", "$commands"] {
            assert_eq!(asked(forbidden, "pump-7"), None, "{forbidden}");
        }
        for other in ["#", "v1/commands/c1", "$SYS/#", "a/+", "$share/g/v1/commands/+"] {
            assert_eq!(asked(other, "pump-7").as_deref(), Some(other));
        }
        assert_eq!((&*shown("$commands/pump-7/c1"), &*shown("a/b")), ("v1/commands/c1", "a/b"));
    }
}
