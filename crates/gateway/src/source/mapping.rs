//! From the topics of a foreign broker to devices.

use std::fmt::Write;

/// Topics with places for names, and the name of a device made of those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mapping {
    topics: Vec<Vec<Level>>,
    child: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Level {
    Fixed(Box<str>),
    /// `+`
    Any,
    /// `#`
    Rest,
    /// Text, a name in braces, text.
    Named {
        before: Box<str>,
        name: Box<str>,
        after: Box<str>,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Name(Box<str>),
}

impl Mapping {
    /// An error says what must be.
    pub(super) fn parse(topics: &[String], child: &str) -> Result<Self, String> {
        if topics.is_empty() {
            return Err("at least one".into());
        }
        let child = pieces(child)?;
        let topics: Vec<Vec<Level>> = topics.iter().map(|topic| levels(topic)).collect::<Result<_, _>>()?;
        for (levels, piece) in topics.iter().flat_map(|levels| child.iter().map(move |piece| (levels, piece)))
        {
            let Piece::Name(wanted) = piece else { continue };
            let named = levels.iter().filter(|l| matches!(l, Level::Named { name, .. } if name == wanted));
            if named.count() != 1 {
                let topic = filter(levels);
                return Err(format!(
                    "topics that each have {{{wanted}}} of source.child once; {topic} has not"
                ));
            }
        }
        Ok(Self { topics, child })
    }

    /// To subscribe to.
    pub(super) fn filters(&self) -> impl Iterator<Item = String> {
        self.topics.iter().map(|levels| filter(levels))
    }

    /// The device that a topic speaks of; `None` if none of the topics is like it.
    pub(super) fn device(&self, topic: &str) -> Option<String> {
        self.topics.iter().find_map(|levels| self.device_by(levels, topic))
    }

    fn device_by(&self, levels: &[Level], topic: &str) -> Option<String> {
        let mut found = Vec::new();
        let mut parts = topic.split('/');
        for level in levels {
            let part = match level {
                Level::Rest => return Some(self.composed(&found)),
                _ => parts.next()?,
            };
            match level {
                Level::Fixed(text) if **text == *part => {}
                Level::Any => {}
                Level::Named { before, name, after } => {
                    let value = part.strip_prefix(&**before)?.strip_suffix(&**after)?;
                    found.push((&**name, value));
                }
                Level::Fixed(_) | Level::Rest => return None,
            }
        }
        parts.next().is_none().then(|| self.composed(&found))
    }

    fn composed(&self, found: &[(&str, &str)]) -> String {
        let mut device = String::new();
        for piece in &self.child {
            let text = match piece {
                Piece::Text(text) => text,
                Piece::Name(wanted) => {
                    found.iter().find(|(name, _)| *name == &**wanted).map_or("", |(_, v)| v)
                }
            };
            device.push_str(text);
        }
        device
    }
}

fn filter(levels: &[Level]) -> String {
    let mut filter = String::new();
    for (n, level) in levels.iter().enumerate() {
        let text = match level {
            Level::Fixed(text) => text,
            Level::Any | Level::Named { .. } => "+",
            Level::Rest => "#",
        };
        // Writing into a String does not fail.
        let _ = write!(filter, "{}{text}", if n == 0 { "" } else { "/" });
    }
    filter
}

fn levels(topic: &str) -> Result<Vec<Level>, String> {
    let parts: Vec<&str> = topic.split('/').collect();
    let last = parts.len() - 1;
    let level = |(n, part): (usize, &&str)| match *part {
        "+" => Ok(Level::Any),
        "#" if n == last => Ok(Level::Rest),
        part if part.contains(['+', '#', '\0']) || topic.is_empty() => {
            Err(format!("topics in which + and # stand alone, # at the end; not {topic:?}"))
        }
        part if !part.contains(['{', '}']) => Ok(Level::Fixed(part.into())),
        part => match &pieces(part)?[..] {
            [Piece::Name(name)] => Ok(named("", name, "")),
            [Piece::Text(before), Piece::Name(name)] => Ok(named(before, name, "")),
            [Piece::Name(name), Piece::Text(after)] => Ok(named("", name, after)),
            [Piece::Text(before), Piece::Name(name), Piece::Text(after)] => Ok(named(before, name, after)),
            _ => Err(format!("topics with one {{name}} a level at most; not {topic:?}")),
        },
    };
    parts.iter().enumerate().map(level).collect()
}

fn named(before: &str, name: &str, after: &str) -> Level {
    Level::Named { before: before.into(), name: name.into(), after: after.into() }
}

/// Text with names in braces.
fn pieces(text: &str) -> Result<Vec<Piece>, String> {
    let wrong = || format!("text with names in braces, like {{device}}; not {text:?}");
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some((before, tail)) = rest.split_once('{') {
        let (name, after) = tail.split_once('}').ok_or_else(wrong)?;
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !is_name || before.contains('}') {
            return Err(wrong());
        }
        if !before.is_empty() {
            pieces.push(Piece::Text(before.into()));
        }
        pieces.push(Piece::Name(name.into()));
        rest = after;
    }
    if rest.contains('}') {
        return Err(wrong());
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.into()));
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(topics: &[&str], child: &str) -> Result<Mapping, String> {
        let topics: Vec<String> = topics.iter().map(ToString::to_string).collect();
        Mapping::parse(&topics, child)
    }

    #[test]
    fn names_in_topics_make_the_name_of_a_device() {
        let mapping =
            mapping(&["plant/{line}/press-{n}/data", "old/{line}/+/x{n}y/#"], "{line}-{n}").unwrap();
        let filters: Vec<String> = mapping.filters().collect();
        assert_eq!(filters, ["plant/+/+/data", "old/+/+/+/#"]);
        let device = |topic| mapping.device(topic);
        assert_eq!(device("plant/a/press-7/data").as_deref(), Some("a-7"));
        assert_eq!(device("old/a/anything/x7y").as_deref(), Some("a-7"));
        assert_eq!(device("old/a/anything/x7y/more/levels").as_deref(), Some("a-7"));
        for other in ["plant/a/saw-7/data", "plant/a/press-7", "plant/a/press-7/data/x", "old/a/b/x7", ""] {
            assert_eq!(device(other), None, "{other:?}");
        }
        // Whether it is a name is for others to say.
        assert_eq!(device("plant//press-/data").as_deref(), Some("-"));
    }

    #[test]
    fn every_topic_has_every_name_that_is_asked_for() {
        mapping(&["{device}"], "{device}").unwrap();
        mapping(&["all/of/one/#"], "press-7").unwrap();
        for (topics, child) in [
            (&["a/{b}", "c/+"][..], "{b}"),
            (&["a/{b}/{b}"], "{b}"),
            (&["a/{b}{c}"], "{b}"),
            (&["a/x+"], "x"),
            (&["a/#/b"], "x"),
            (&["a/{}"], "x"),
            (&["a/{b"], "x"),
            (&["a/b}"], "x"),
            (&[""], "x"),
            (&[], "x"),
        ] {
            mapping(topics, child).unwrap_err();
        }
    }
}
