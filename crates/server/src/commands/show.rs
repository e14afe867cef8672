//! What one wants to see at a glance.

use serde_json::Value;

use super::{client::Client, say};
use crate::{
    cli::{AlertState, Server},
    exit::Failure,
};

pub(crate) async fn ledger(server: Server) -> Result<(), Failure> {
    let ledger = Client::new(&server)?.get("/v1/ledger").await?;
    say!(
        "{:<20} {:>12} = {:>12} + {:>10} + {:>8} + {:>9}   {:>8}",
        "TENANT",
        "ACCEPTED",
        "STORED",
        "DUPLICATE",
        "EXPIRED",
        "IN FLIGHT",
        "REJECTED"
    )?;
    for (tenant, account) in ledger["tenants"].as_object().into_iter().flatten() {
        let count = |field: &str| account[field].as_u64().unwrap_or(0);
        say!(
            "{tenant:<20} {:>12} = {:>12} + {:>10} + {:>8} + {:>9}   {:>8}",
            count("accepted"),
            count("stored"),
            count("duplicate"),
            count("expired"),
            count("in_flight"),
            rejected(account)
        )?;
    }
    match ledger["balanced"].as_bool() {
        Some(true) => say!("balanced")?,
        _ => {
            say!("NOT BALANCED")?;
            for problem in ledger["problems"].as_array().into_iter().flatten() {
                say!("  {}", problem.as_str().unwrap_or_default())?;
            }
        }
    }
    Ok(())
}

pub(crate) fn rejected(account: &Value) -> u64 {
    account["rejected"].as_object().into_iter().flatten().filter_map(|(_, count)| count.as_u64()).sum()
}

pub(crate) async fn alerts(state: Option<AlertState>, server: Server) -> Result<(), Failure> {
    let path = match state {
        None => "/v1/alerts",
        Some(AlertState::Pending) => "/v1/alerts?state=pending",
        Some(AlertState::Firing) => "/v1/alerts?state=firing",
        Some(AlertState::Resolved) => "/v1/alerts?state=resolved",
        Some(AlertState::Cancelled) => "/v1/alerts?state=cancelled",
    };
    let answer = Client::new(&server)?.get(path).await?;
    say!(
        "{:<10} {:<9} {:<24} {:<28} {:<22} {:<22} CONDITION",
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
            "{:<10} {:<9} {:<24} {:<28} {:<22} {:<22} {}",
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
