use futures::StreamExt;

use super::{client::Client, print_bytes};
use crate::{
    cli::{Format, Server},
    exit::Failure,
};

pub(crate) async fn run(sql: String, format: Format, server: Server) -> Result<(), Failure> {
    let format = match format {
        Format::Table => "table",
        Format::Csv => "csv",
        Format::Json => "json",
    };
    let answer = Client::new(&server)?.post_text(&format!("/v1/query?format={format}"), sql).await?;
    let mut chunks = answer.bytes_stream();
    while let Some(chunk) = chunks.next().await {
        print_bytes(&chunk?)?;
    }
    Ok(())
}
