//! What is wrong, and what people do about it.

use serde_json::{Value, json};

use super::{
    client::{Client, escaped, text},
    say,
};
use crate::{
    cli::{AlertCommand, AlertsArgs},
    exit::Failure,
};

pub(crate) async fn run(args: AlertsArgs) -> Result<(), Failure> {
    let client = Client::new(&args.server)?;
    match args.command {
        None => list(&client, &[("state", args.state), ("device", args.device), ("rule", args.rule)]).await,
        Some(AlertCommand::Show { alert }) => show(&client, &alert).await,
        Some(AlertCommand::Ack { alerts, comment, by }) => {
            act(&client, &alerts, "ack", &json!({ "comment": comment, "by": by })).await
        }
        Some(AlertCommand::Unack { alerts, comment, by }) => {
            act(&client, &alerts, "unack", &json!({ "comment": comment, "by": by })).await
        }
        Some(AlertCommand::Comment { alert, comment, by }) => {
            act(&client, &[alert], "comments", &json!({ "comment": comment, "by": by })).await
        }
        Some(AlertCommand::Assign { alert, to, by }) => {
            act(&client, &[alert], "assign", &json!({ "to": to, "by": by })).await
        }
        Some(AlertCommand::Snooze { alert, span, comment, by }) => {
            act(&client, &[alert], "snooze", &json!({ "for": span, "comment": comment, "by": by })).await
        }
        Some(AlertCommand::Preview { channel, alert, template }) => {
            let template = template.map(|file| {
                std::fs::read_to_string(&file)
                    .map_err(|error| Failure::Failed(format!("read {}: {error}", file.display())))
            });
            let body = json!({ "channel": channel, "alert": alert, "template": template.transpose()? });
            let preview = client.post("/v1/alerts/preview", &body).await?;
            say!("{}\n", text(&preview, "subject")?)?;
            say!("{}", text(&preview, "text")?)
        }
    }
}

async fn list(client: &Client, filters: &[(&str, Option<String>)]) -> Result<(), Failure> {
    let filters: Vec<String> = filters
        .iter()
        .filter_map(|(name, value)| Some(format!("{name}={}", escaped(value.as_ref()?))))
        .collect();
    let answer = client.get(&format!("/v1/alerts?{}", filters.join("&"))).await?;
    say!(
        "{:<16} {:<12} {:<9} {:<24} {:<28} {:<22} {:<22} CONDITION",
        "ALERT",
        "STATE",
        "SEVERITY",
        "DEVICE",
        "RULE",
        "FIRED",
        "RESOLVED"
    )?;
    for alert in answer["alerts"].as_array().into_iter().flatten() {
        let field = |name: &str| alert[name].as_str().unwrap_or("-").to_owned();
        say!(
            "{:<16} {:<12} {:<9} {:<24} {:<28} {:<22} {:<22} {}",
            field("fingerprint"),
            field("state"),
            field("severity"),
            field("device"),
            field("rule"),
            field("fired_at"),
            field("resolved_at"),
            field("condition")
        )?;
    }
    Ok(())
}

async fn show(client: &Client, alert: &str) -> Result<(), Failure> {
    let alert = client.get(&format!("/v1/alerts/{}", escaped(alert))).await?;
    for name in [
        "id",
        "rule",
        "device",
        "severity",
        "state",
        "condition",
        "value",
        "since",
        "fired_at",
        "resolved_at",
        "acknowledged_at",
        "acknowledged_by",
        "assignee",
        "snoozed_until",
    ] {
        if !alert[name].is_null() {
            say!("{name:<16} {}", plain(&alert[name]))?;
        }
    }
    let lines = |name: &str| alert[name].as_array().cloned().unwrap_or_default();
    for step in lines("steps") {
        say!("{:<28} {:<14} value {}", plain(&step["at"]), plain(&step["state"]), step["value"])?;
    }
    for note in lines("notes") {
        let said = ["at", "what", "who", "words"].map(|name| plain(&note[name]));
        say!("{:<28} {:<14} {} {}", said[0], said[1], said[2], said[3])?;
    }
    for told in lines("notifications") {
        let of = |name: &str| plain(&told[name]);
        let to = match of("recipient").as_str() {
            "" => of("channel"),
            recipient => format!("{} {recipient}", of("channel")),
        };
        let why = [of("reason"), of("carrier"), of("last_error")];
        let why: Vec<_> = why.into_iter().filter(|why| !why.is_empty()).collect();
        say!("{:<28} {:<14} {to}: {} {}", of("at"), of("what"), of("state"), why.join("; "))?;
    }
    Ok(())
}

/// A text without its quotes; nothing for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

async fn act(client: &Client, alerts: &[String], act: &str, body: &Value) -> Result<(), Failure> {
    // What is null was not said.
    let mut body = body.clone();
    if let Some(fields) = body.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    for alert in alerts {
        let now = client.post(&format!("/v1/alerts/{}/{act}", escaped(alert)), &body).await?;
        let field = |name: &str| plain(&now[name]);
        say!("{} {} on {} is {}", field("id"), field("rule"), field("device"), field("state"))?;
    }
    Ok(())
}
