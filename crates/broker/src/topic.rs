//! Topic names and filters (MQTT 5, 4.7 and 4.8.2).

/// Levels of a topic or filter; each costs a step on every publish.
pub(crate) const LEVELS_MAX: usize = 64;
/// Bytes of a topic or filter.
pub(crate) const BYTES_MAX: usize = 4 << 10;

const SHARE: &str = "$share/";

/// A topic or filter that cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TopicFault {
    #[error("it is empty")]
    Empty,
    #[error("it has more than {BYTES_MAX} bytes")]
    TooLong,
    #[error("it has more than {LEVELS_MAX} levels")]
    TooDeep,
    #[error("it holds a control character")]
    Control,
    #[error("a topic to publish to holds no + or #")]
    Wildcard,
    #[error("+ and # stand alone in their level, and # in the last one")]
    MisplacedWildcard,
    #[error("a shared subscription is $share/NAME/FILTER, and NAME holds no /, + or #")]
    Share,
}

/// Checks a topic that is published to.
pub fn check_topic(topic: &str) -> Result<(), TopicFault> {
    check(topic)?;
    match topic.bytes().any(|b| matches!(b, b'+' | b'#')) {
        true => Err(TopicFault::Wildcard),
        false => Ok(()),
    }
}

/// A subscription's filter, with the name of the group if it is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filter<'a> {
    pub group: Option<&'a str>,
    pub path: &'a str,
}

impl<'a> Filter<'a> {
    pub fn parse(filter: &'a str) -> Result<Self, TopicFault> {
        check(filter)?;
        let (group, path) = match filter.strip_prefix(SHARE) {
            None => (None, filter),
            Some(shared) => {
                let (group, path) = shared.split_once('/').ok_or(TopicFault::Share)?;
                if group.is_empty() || path.is_empty() || group.contains(['+', '#']) {
                    return Err(TopicFault::Share);
                }
                (Some(group), path)
            }
        };
        let mut levels = path.split('/').peekable();
        while let Some(level) = levels.next() {
            let misplaced = match level {
                "#" => levels.peek().is_some(),
                "+" => false,
                other => other.contains(['+', '#']),
            };
            if misplaced {
                return Err(TopicFault::MisplacedWildcard);
            }
        }
        Ok(Self { group, path })
    }
}

fn check(text: &str) -> Result<(), TopicFault> {
    if text.is_empty() {
        return Err(TopicFault::Empty);
    }
    if text.len() > BYTES_MAX {
        return Err(TopicFault::TooLong);
    }
    if text.bytes().filter(|b| *b == b'/').count() >= LEVELS_MAX {
        return Err(TopicFault::TooDeep);
    }
    if text.chars().any(char::is_control) {
        return Err(TopicFault::Control);
    }
    Ok(())
}

/// Whether wildcards in the first level match this topic: not what belongs to the server.
pub(crate) fn is_server_topic(topic: &str) -> bool {
    topic.starts_with('$')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_name_one_place() {
        for good in ["a", "/", "a/b", "a//b", "$x/y", "ü/☃", " "] {
            assert_eq!(check_topic(good), Ok(()), "{good:?}");
        }
        assert_eq!(check_topic(""), Err(TopicFault::Empty));
        assert_eq!(check_topic("a/+"), Err(TopicFault::Wildcard));
        assert_eq!(check_topic("a\0b"), Err(TopicFault::Control));
        assert_eq!(check_topic(&"/".repeat(LEVELS_MAX)), Err(TopicFault::TooDeep));
        assert_eq!(check_topic(&"a".repeat(BYTES_MAX + 1)), Err(TopicFault::TooLong));
    }

    #[test]
    fn wildcards_stand_alone() {
        for good in ["#", "+", "a/#", "a/+/b", "+/+", "/+", "$share/g/a/#"] {
            assert!(Filter::parse(good).is_ok(), "{good:?}");
        }
        for bad in ["a#", "a/#/b", "+a", "a+/b", "##"] {
            assert_eq!(Filter::parse(bad), Err(TopicFault::MisplacedWildcard), "{bad:?}");
        }
        for bad in ["$share/g", "$share//a", "$share/g/", "$share/g+/a"] {
            assert_eq!(Filter::parse(bad), Err(TopicFault::Share), "{bad:?}");
        }
        assert_eq!(Filter::parse("$share/g/a/b"), Ok(Filter { group: Some("g"), path: "a/b" }));
    }
}
