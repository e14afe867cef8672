//! A live dashboard in the terminal: what happens now, what it cost, and who is behind.

mod draw;
mod figures; // from two looks at the server to rates and quantiles

use std::time::Duration;

use crossterm::event::{Event, KeyCode, KeyModifiers};
use figures::{Figures, Look};
use ratatui::DefaultTerminal;

use super::client::Client;
use crate::{cli::Server, exit::Failure};

const EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(server: Server) -> Result<(), Failure> {
    let client = Client::new(&server)?;
    let first = look(&client).await?; // A wrong token is told before the screen is taken.
    let terminal = ratatui::init();
    let result = watch(terminal, client, first).await;
    ratatui::restore();
    result
}

async fn watch(mut terminal: DefaultTerminal, client: Client, first: Look) -> Result<(), Failure> {
    let mut figures = Figures::new(first);
    let mut keys = keys();
    let mut tick = tokio::time::interval(EVERY);
    loop {
        tokio::select! {
            _ = tick.tick() => match look(&client).await {
                Ok(look) => figures.add(look),
                Err(failure) => figures.lost(failure.to_string()),
            },
            key = keys.recv() => match key {
                Some(Key::Quit) | None => return Ok(()),
                Some(Key::Redraw) => {}
            },
        }
        terminal.draw(|frame| draw::draw(frame, &figures))?;
    }
}

async fn look(client: &Client) -> Result<Look, Failure> {
    let (status, ledger, alerts, metrics) = tokio::try_join!(
        client.get("/v1/status"),
        client.get("/v1/ledger"),
        client.get("/v1/alerts?limit=12"),
        async { Ok(client.get_text("/metrics").await.unwrap_or_default()) }, // For platform administrators only.
    )?;
    Ok(Look {
        at: std::time::Instant::now(),
        status,
        ledger,
        alerts,
        ack_buckets: figures::ack_buckets(&metrics),
    })
}

enum Key {
    Quit,
    Redraw,
}

/// Keys are read by a thread of their own: the terminal's reader blocks.
fn keys() -> tokio::sync::mpsc::Receiver<Key> {
    let (keys, pressed) = tokio::sync::mpsc::channel(16);
    std::thread::spawn(move || {
        while let Ok(event) = crossterm::event::read() {
            let key = match event {
                Event::Key(key) if matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) => Key::Quit,
                Event::Key(key)
                    if key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL) =>
                {
                    Key::Quit
                }
                Event::Resize(..) => Key::Redraw,
                _ => continue,
            };
            if keys.blocking_send(key).is_err() {
                return;
            }
        }
    });
    pressed
}
