//! What a receiver is told.

use std::io::Write;

use dunlin_model::{AlertId, Timestamp};
use dunlin_registry::{Alert, Carried, Notification, Registry, RegistryError};
use flate2::{Compression, write::GzEncoder};
use serde::{Deserialize, Serialize};

use crate::{links::Links, plan::Matter};

/// One alert in a message; also the body of a webhook.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Facts {
    /// Of what happened: the same in every repetition.
    pub id: String,
    pub alert: String,
    pub fingerprint: String,
    pub tenant: String,
    pub device: String,
    pub rule: String,
    pub severity: String,
    pub state: String,
    /// `fired`, `raised`, `resolved`, `acknowledged`, `escalated`, `reminded`, `flapping` or `calmed`.
    pub what: String,
    pub at: String,
    pub since: String,
    pub value: Option<f64>,
    pub condition: String,
    pub acknowledged_by: Option<String>,
    pub assignee: Option<String>,
}

/// A message as a channel sends it and a template sees it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Message {
    /// The same in every repetition.
    pub key: String,
    pub tenant: String,
    #[serde(skip)]
    pub recipient: String,
    /// As in `Facts`, or `digest`, or `group`.
    pub what: String,
    pub title: String,
    /// `None` in a message of many.
    pub alert: Option<Facts>,
    pub many: Option<Many>,
    /// Where a click acknowledges.
    pub ack_url: Option<String>,
}

/// What a message of many tells.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Many {
    pub count: u64,
    pub groups: Vec<Group>,
    pub first: Vec<Line>,
    /// All of them, as CSV.
    pub list_url: Option<String>,
    /// All of them, CSV compressed by gzip.
    #[serde(skip)]
    pub list: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Serialize)]
pub(crate) struct Group {
    pub rule: String,
    pub severity: String,
    pub what: String,
    pub count: u64,
}

/// One of many.
#[derive(Debug, Clone, Serialize)]
pub struct Line {
    pub at: String,
    pub what: String,
    pub severity: String,
    pub rule: String,
    pub device: String,
    pub value: Option<f64>,
    pub condition: String,
    pub alert: String,
    pub reason: String,
}

/// Alerts of a message of many that stand in its text.
const FIRST_MAX: u32 = 20;
const LIST_PAGE: u32 = 5_000;

impl Facts {
    pub(crate) fn of(matter: &Matter, what: &str) -> Self {
        let a = &matter.alert;
        Self {
            id: matter.cause.clone(),
            alert: a.id.to_string(),
            fingerprint: a.id.fingerprint.to_string(),
            tenant: a.tenant.clone(),
            device: a.device.clone(),
            rule: a.rule.clone(),
            severity: a.severity.to_string(),
            state: a.state.to_string(),
            what: what.to_owned(),
            at: matter.at.to_string(),
            since: a.id.since.to_string(),
            value: Some(a.value).filter(|value| value.is_finite()),
            condition: a.condition.clone(),
            acknowledged_by: a.acknowledged_by.clone(),
            assignee: a.assignee.clone(),
        }
    }

    /// As if this had just fired: for previews.
    pub(crate) fn preview(alert: &Alert, now: Timestamp) -> Self {
        let matter = Matter {
            alert: alert.clone(),
            what: crate::plan::What::Fired,
            cause: "preview".into(),
            at: alert.fired_at.unwrap_or(now),
        };
        Self::of(&matter, if alert.resolved_at.is_some() { "resolved" } else { "fired" })
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    pub(crate) fn alert_id(&self) -> Option<AlertId> {
        self.alert.parse().ok()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.what == "resolved"
    }

    fn title(&self) -> String {
        let what = match self.what.as_str() {
            "fired" => "fires",
            "raised" => "has become more severe",
            "resolved" => "is over",
            "acknowledged" => "is acknowledged",
            "escalated" => "fires and nobody has acknowledged it",
            "reminded" => "fires still",
            "flapping" => "is flapping",
            "calmed" => "no longer flaps and fires still",
            other => other,
        };
        format!("[{}] {} on {} {what}", self.severity, self.rule, self.device)
    }
}

impl Message {
    pub(crate) fn of_one(key: &str, recipient: &str, facts: Facts, ack_url: Option<String>) -> Self {
        Self {
            key: key.to_owned(),
            tenant: facts.tenant.clone(),
            recipient: recipient.to_owned(),
            what: facts.what.clone(),
            title: facts.title(),
            alert: Some(facts),
            many: None,
            ack_url,
        }
    }

    /// What a notification says, with what it carries. `None`: it cannot be read, and never will be.
    pub(crate) async fn load(
        notification: &Notification,
        registry: &Registry,
        links: Option<&Links>,
        with_list: bool,
        now: Timestamp,
    ) -> Result<Option<Self>, RegistryError> {
        let Notification { idempotency_key: key, recipient, tenant, what, body, .. } = notification;
        if !notification.is_of_many() {
            let Ok(mut facts) = serde_json::from_str::<Facts>(body) else { return Ok(None) };
            if facts.what.is_empty() {
                // Of a version that said only the state.
                facts.what = if facts.state == "resolved" { "resolved" } else { "fired" }.into();
            }
            let can_act = !facts.is_over() && facts.what != "acknowledged";
            let ack_url = links
                .filter(|_| can_act)
                .zip(facts.alert_id())
                .map(|(links, alert)| links.acknowledge(&facts.tenant, alert, key, recipient, now));
            return Ok(Some(Self::of_one(key, recipient, facts, ack_url)));
        }
        let count = if notification.is_gathering {
            registry.close_gathering(key).await?
        } else {
            notification.members
        };
        let groups: Vec<Group> = registry
            .carried_counts(key)
            .await?
            .into_iter()
            .map(|((rule, severity, what), count)| Group { rule, severity, what, count })
            .collect();
        let first = registry.carried(key, 0, FIRST_MAX).await?.into_iter().map(Line::from).collect();
        let list = if with_list { Some(list(registry, key).await?) } else { None };
        let list_url = links.map(|links| links.list(key));
        Ok(Some(Self {
            key: key.clone(),
            tenant: tenant.clone(),
            recipient: recipient.clone(),
            what: what.clone(),
            title: title_of_many(what, count, &groups),
            alert: None,
            many: Some(Many { count, groups, first, list_url, list }),
            ack_url: None,
        }))
    }
}

fn title_of_many(what: &str, count: u64, groups: &[Group]) -> String {
    let of = |what: &str| groups.iter().filter(|g| g.what == what).map(|g| g.count).sum::<u64>();
    let (fired, resolved) = (of("fired"), of("resolved"));
    let name = if what == "digest" { "Digest" } else { "Alerts" };
    match groups {
        [one] => format!("{name}: {count} x [{}] {} {}", one.severity, one.rule, one.what),
        _ => format!("{name}: {count} alerts, {fired} fired, {resolved} resolved"),
    }
}

impl From<Carried> for Line {
    fn from(c: Carried) -> Self {
        Self {
            at: c.at.to_string(),
            what: c.what,
            severity: c.severity.to_string(),
            rule: c.rule,
            device: c.device,
            value: Some(c.value).filter(|value| value.is_finite()),
            condition: c.condition,
            alert: c.alert.to_string(),
            reason: c.reason,
        }
    }
}

pub const CSV_HEADER: &str = "at,what,severity,rule,device,value,condition,alert,reason\n";

impl Line {
    /// Names and texts may hold anything: quoted, and nothing that a spreadsheet takes for a formula.
    pub fn to_csv(&self) -> String {
        let value = self.value.map(|v| v.to_string()).unwrap_or_default();
        let cells = [
            &self.at,
            &self.what,
            &self.severity,
            &self.rule,
            &self.device,
            &value,
            &self.condition,
            &self.alert,
            &self.reason,
        ];
        let cell = |(n, text): (usize, &&String)| {
            let is_number = n == 5;
            let text = match text.chars().next() {
                Some('=' | '+' | '-' | '@' | '\t' | '\r') if !is_number => format!("'{text}"),
                _ => (*text).clone(),
            };
            match text.contains([',', '"', '\n', '\r']) {
                true => format!("\"{}\"", text.replace('"', "\"\"")),
                false => text,
            }
        };
        cells.iter().enumerate().map(cell).collect::<Vec<_>>().join(",") + "\n"
    }
}

/// Page by page, so that only what is compressed is held.
async fn list(registry: &Registry, carrier: &str) -> Result<Vec<u8>, RegistryError> {
    let mut out = GzEncoder::new(Vec::new(), Compression::default());
    let mut after = 0;
    // Writing into memory does not fail.
    let _ = out.write_all(CSV_HEADER.as_bytes());
    loop {
        let page = registry.carried(carrier, after, LIST_PAGE).await?;
        let Some(last) = page.last() else { break };
        after = last.seq;
        for carried in page {
            let _ = out.write_all(Line::from(carried).to_csv().as_bytes());
        }
    }
    Ok(out.finish().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_of_csv_and_no_formula() {
        let line = Line {
            at: "2026".into(),
            what: "fired".into(),
            severity: "info".into(),
            rule: "=cmd()".into(),
            device: "a,\"b\"".into(),
            value: Some(-1.5),
            condition: "x > 1".into(),
            alert: "0-1".into(),
            reason: String::new(),
        };
        assert_eq!(line.to_csv(), "2026,fired,info,'=cmd(),\"a,\"\"b\"\"\",-1.5,x > 1,0-1,\n");
    }
}
