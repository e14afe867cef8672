//! The statements, in the order in which a connection lives.

mod connect; // CONNECT and CONNACK
mod ending; // PINGREQ and DISCONNECT
mod flow; // receive maximum, topic aliases, order
mod framing; // fixed header, remaining length, text, packet identifiers
mod properties; // where properties may stand, and how often
mod publish; // PUBLISH, its acknowledgements and its properties
mod retained;
mod session; // resuming, redelivery, takeover, expiry
mod shared; // shared subscriptions
mod size;
mod subscribe; // SUBSCRIBE and UNSUBSCRIBE, filters
mod will; // maximum packet size

use crate::check::{Check, Ctx, Outcome};
use crate::wire::Version;

type Run = fn(&mut Ctx<'_>) -> Outcome;

pub(crate) fn all(only: Option<&str>) -> Vec<Check> {
    let mut table = Table(Vec::new());
    framing::list(&mut table);
    connect::list(&mut table);
    publish::list(&mut table);
    flow::list(&mut table);
    subscribe::list(&mut table);
    shared::list(&mut table);
    retained::list(&mut table);
    session::list(&mut table);
    will::list(&mut table);
    ending::list(&mut table);
    properties::list(&mut table);
    size::list(&mut table);
    let mut checks = table.0;
    checks.retain(|check| only.is_none_or(|only| is_chosen(check, only)));
    checks
}

fn is_chosen(check: &Check, only: &str) -> bool {
    match only.split_once(':') {
        Some((version, prefix)) => check.version.name() == version && check.statement.starts_with(prefix),
        None => check.statement.starts_with(only),
    }
}

struct Table(Vec<Check>);

impl Table {
    fn v4(&mut self, statement: &'static str, what: &'static str, run: Run) {
        self.0.push(Check { statement, version: Version::V4, what, run });
    }

    fn v5(&mut self, statement: &'static str, what: &'static str, run: Run) {
        self.0.push(Check { statement, version: Version::V5, what, run });
    }

    /// The same rule under two numbers.
    fn both(&mut self, v4: &'static str, v5: &'static str, what: &'static str, run: Run) {
        self.v4(v4, what, run);
        self.v5(v5, what, run);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn checks_can_be_told_apart() {
        let mut names: Vec<_> =
            super::all(None).iter().map(|check| (check.version, check.statement, check.what)).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }

    #[test]
    fn only_chooses_by_prefix_and_version() {
        assert!(super::all(Some("MQTT-3.8")).iter().all(|check| check.statement.starts_with("MQTT-3.8")));
        assert!(super::all(Some("5.0:MQTT-3.1.2")).iter().all(|check| check.version == super::Version::V5));
        assert!(super::all(Some("nothing")).is_empty());
    }
}
