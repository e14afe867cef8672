//! What one wants to see at a glance.

use serde_json::Value;

use super::{client::Client, say};
use crate::{cli::Server, exit::Failure};

pub(crate) async fn ledger(server: Server) -> Result<(), Failure> {
    let ledger = Client::new(&server)?.get("/v1/ledger").await?;
    say!(
        "{:<20} {:>12} = {:>12} + {:>10} + {:>8} + {:>8} + {:>9}   {:>8}",
        "TENANT",
        "ACCEPTED",
        "STORED",
        "DUPLICATE",
        "EXPIRED",
        "SAMPLED",
        "IN FLIGHT",
        "REJECTED"
    )?;
    for (tenant, account) in ledger["tenants"].as_object().into_iter().flatten() {
        let count = |field: &str| account[field].as_u64().unwrap_or(0);
        say!(
            "{tenant:<20} {:>12} = {:>12} + {:>10} + {:>8} + {:>8} + {:>9}   {:>8}",
            count("accepted"),
            count("stored"),
            count("duplicate"),
            count("expired"),
            count("sampled"),
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
