//! A file of readings, published as one device with the file's own times.

mod file; // lines to readings

use std::{
    fmt::Write as _,
    path::PathBuf,
    time::{Duration, Instant},
};

use crate::publisher::{self, PublishError, Publisher};

pub use self::file::{FileError, Reading, Readings};

/// Readings in one message, at the most.
pub const MESSAGE_READINGS_MAX: usize = 100;
/// Messages in flight.
const WINDOW: u16 = 64;

/// How fast the file's time passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Speed {
    /// As fast as it is acknowledged, many readings in a message.
    Max,
    /// So many times as fast as it was recorded, a message for each reading.
    Times(f64),
}

/// What is wrong with a speed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a speed is max, or a number above 0 followed by x, such as 60x, not {0:?}")]
pub struct InvalidSpeed(String);

impl std::str::FromStr for Speed {
    type Err = InvalidSpeed;

    fn from_str(text: &str) -> Result<Self, InvalidSpeed> {
        if text == "max" {
            return Ok(Self::Max);
        }
        match text.strip_suffix('x').unwrap_or(text).parse() {
            Ok(times) if f64::is_finite(times) && times > 0.0 => Ok(Self::Times(times)),
            _ => Err(InvalidSpeed(text.to_owned())),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Config {
    /// CSV with the header `timestamp,value`.
    pub file: PathBuf,
    pub metric: String,
    /// `HOST:PORT` of the server's MQTT door.
    pub target: String,
    pub client_id: String,
    /// The device's access token.
    pub token: String,
    pub topic: String,
    pub speed: Speed,
    /// For how long a lost connection is tried again.
    pub reconnect_for: Duration,
}

/// How far a replay is; what it returns at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Replayed {
    /// Readings sent.
    pub readings: u64,
    /// Messages sent.
    pub messages: u64,
    /// Messages acknowledged: all of them, at the end.
    pub acked: u64,
    pub reconnects: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error(transparent)]
    Publish(#[from] PublishError),
}

/// Publishes the whole file, in its order, and returns when everything is acknowledged. `progress` is called after
/// every message. The file is checked as it is read: what stands before a bad line has been published.
pub async fn replay(config: &Config, mut progress: impl FnMut(Replayed)) -> Result<Replayed, ReplayError> {
    let mut readings = Readings::open(&config.file)?;
    let mut publisher = Publisher::new(publisher::Config {
        target: config.target.clone(),
        client_id: config.client_id.clone(),
        token: config.token.clone(),
        topic: config.topic.clone(),
        window: WINDOW,
        reconnect_for: config.reconnect_for,
    });
    let batch_readings = match config.speed {
        Speed::Max => MESSAGE_READINGS_MAX,
        Speed::Times(_) => 1,
    };
    let started = Instant::now();
    let mut first_time = None;
    let mut done = Replayed::default();
    loop {
        let batch = readings.by_ref().take(batch_readings).collect::<Result<Vec<_>, _>>()?;
        let Some(first) = batch.first() else { break };
        if let Speed::Times(times) = config.speed {
            let offset = first.unix_milliseconds - *first_time.get_or_insert(first.unix_milliseconds);
            let due = Duration::from_secs_f64((offset.max(0) as f64 / 1e3 / times).min(1e9));
            publisher.pause(due.saturating_sub(started.elapsed())).await?;
        }
        publisher.publish(message(&config.metric, &batch).as_bytes()).await?;
        done.readings += batch.len() as u64;
        done.messages += 1;
        done.acked = publisher.acked();
        done.reconnects = publisher.reconnects();
        progress(done);
    }
    publisher.drain().await?;
    done.acked = publisher.acked();
    done.reconnects = publisher.reconnects();
    publisher.close().await;
    progress(done);
    Ok(done)
}

fn message(metric: &str, batch: &[Reading]) -> String {
    let metric = serde_json::Value::from(metric).to_string();
    let one = |text: &mut String, reading: &Reading| {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "{{\"ts\":{},\"values\":{{{metric}:{}}}}}",
            reading.unix_milliseconds, reading.value
        );
    };
    let mut text = String::new();
    if let [reading] = batch {
        one(&mut text, reading);
        return text;
    }
    for (i, reading) in batch.iter().enumerate() {
        text.push(if i == 0 { '[' } else { ',' });
        one(&mut text, reading);
    }
    text.push(']');
    text
}

#[cfg(test)]
mod tests;
