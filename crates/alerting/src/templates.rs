//! What messages look like: the channel's templates, or those of the house.

use minijinja::{AutoEscape, Environment, Error};

use crate::{config::ChannelConfig, message::Message};

/// Compiled templates of a channel.
#[derive(Debug)]
pub(crate) struct Templates {
    environment: Environment<'static>,
}

/// A message in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    pub subject: String,
    pub text: String,
}

const SUBJECT: &str = "{{ title }}";
const TEXT: &str = include_str!("templates/message.txt");
const SLACK: &str = include_str!("templates/slack.txt");
/// Steps of one rendering: far beyond what a message takes, and soon at an end.
const FUEL: u64 = 1_000_000;
const SUBJECT_CHARS_MAX: usize = 200;
pub const TEMPLATE_BYTES_MAX: usize = 64 << 10;

impl Templates {
    pub(crate) fn of(channel: &ChannelConfig) -> Result<Self, Error> {
        match channel {
            ChannelConfig::Email(c) => {
                Self::new(c.subject.as_deref().unwrap_or(SUBJECT), c.template.as_deref().unwrap_or(TEXT))
            }
            ChannelConfig::Slack(c) => Self::new(SUBJECT, c.template.as_deref().unwrap_or(SLACK)),
            ChannelConfig::Webhook(c) => Self::new(SUBJECT, c.template.as_deref().unwrap_or(TEXT)),
            ChannelConfig::Log(_)
            | ChannelConfig::PagerDuty(_)
            | ChannelConfig::Mqtt(_)
            | ChannelConfig::Alertmanager(_) => Self::new(SUBJECT, TEXT),
        }
    }

    pub(crate) fn new(subject: &str, text: &str) -> Result<Self, Error> {
        if subject.len().max(text.len()) > TEMPLATE_BYTES_MAX {
            let kind = minijinja::ErrorKind::InvalidOperation;
            return Err(Error::new(kind, format!("a template has at most {TEMPLATE_BYTES_MAX} bytes")));
        }
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        // Plain text, also where a name ends in .html.
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.add_filter("slack", slack);
        environment.add_template_owned("subject", subject.to_owned())?;
        environment.add_template_owned("text", text.to_owned())?;
        Ok(Self { environment })
    }

    pub(crate) fn render(&self, message: &Message) -> Result<Rendered, Error> {
        let subject = self.environment.get_template("subject")?.render(message)?;
        let text = self.environment.get_template("text")?.render(message)?;
        // One line: what follows a line break would be another header.
        let one_line = subject.split(|c: char| c.is_control()).collect::<Vec<_>>().join(" ");
        let subject: String = one_line.trim().chars().take(SUBJECT_CHARS_MAX).collect();
        Ok(Rendered { subject, text })
    }
}

/// What Slack would take for its own marks.
fn slack(text: String) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
