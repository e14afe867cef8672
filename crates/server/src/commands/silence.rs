use serde_json::json;

use super::{
    client::{Client, escaped, text},
    say,
};
use crate::{
    cli::{Server, SilenceCommand},
    exit::Failure,
};

pub(crate) async fn run(command: SilenceCommand, server: Server) -> Result<(), Failure> {
    let client = Client::new(&server)?;
    match command {
        SilenceCommand::Add { matchers, duration, start, every, until, comment, by } => {
            let mut body = json!({ "matchers": matchers, "duration": duration, "comment": comment });
            let said = [("starts_at", start), ("every", every), ("until", until), ("created_by", by)];
            for (name, value) in said.into_iter().filter_map(|(name, value)| Some((name, value?))) {
                body[name] = value.into();
            }
            say!("{}", text(&client.post("/v1/silences", &body).await?, "id")?)
        }
        SilenceCommand::List { state } => {
            let path = match state {
                Some(state) => format!("/v1/silences?state={}", escaped(&state)),
                None => "/v1/silences".to_owned(),
            };
            let answer = client.get(&path).await?;
            say!("{:<36} {:<8} {:<22} {:<22} {:<40} COMMENT", "ID", "STATE", "FROM", "TO", "MATCHES")?;
            for silence in answer["silences"].as_array().into_iter().flatten() {
                let field = |name: &str| silence[name].as_str().unwrap_or("-").to_owned();
                let again = match silence["every_seconds"].as_u64() {
                    Some(seconds) => format!(" (every {seconds} s until {})", field("until")),
                    None => String::new(),
                };
                say!(
                    "{:<36} {:<8} {:<22} {:<22} {:<40} {}{again}",
                    field("id"),
                    field("state"),
                    field("starts_at"),
                    field("ends_at"),
                    field("matching"),
                    field("comment")
                )?;
            }
            Ok(())
        }
        SilenceCommand::Expire { silences } => {
            for id in silences {
                client.delete(&format!("/v1/silences/{}", escaped(&id))).await?;
            }
            Ok(())
        }
    }
}
