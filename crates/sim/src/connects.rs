//! Clients that connect over MQTT, are let in, and leave again: each time as another client id, on a new connection.
//! With a message each publishes once at QoS 1 in between and leaves when it is acknowledged.

use std::num::NonZeroU16;

use crate::{
    exchanges::{self, ExchangeError, Heard, Report, Talk},
    load::Identity,
    payload::{Payload, SEQ_FIRST, Template},
    wire::{self, Connect, DISCONNECT, Incoming, Qos, Version, WireError},
};

#[derive(Debug, Clone)]
pub struct Config {
    pub exchanges: exchanges::Config,
    pub version: Version,
    /// Clients speak as these in turn; never empty.
    pub identities: Vec<Identity>,
    /// Topic and payload of the message that each sends.
    pub message: Option<(String, Payload)>,
    /// The sequence number of the first message.
    pub seq_first: u64,
}

/// Runs to the end of the measured time. Blocks the thread.
pub fn run(config: &Config) -> Result<Report, ExchangeError> {
    let wrong = |error: WireError| ExchangeError::Config(error.to_string());
    if config.identities.is_empty() {
        return Err(ExchangeError::Config("at least one identity is needed".into()));
    }
    let message = match &config.message {
        None => None,
        Some((topic, payload)) => Some(Message::new(config.version, topic, *payload).map_err(wrong)?),
    };
    let connects = Connects { config, message, sent: config.seq_first.max(SEQ_FIRST) };
    // What is encoded later differs in a client id that is shorter than any limit, and a token.
    connects.encode(0, 0, &mut Vec::new()).map_err(wrong)?;
    exchanges::run(&config.exchanges, connects)
}

struct Connects<'a> {
    config: &'a Config,
    message: Option<Message>,
    sent: u64,
}

/// A PUBLISH and where its payload is.
struct Message {
    packet: Vec<u8>,
    template: Template,
    payload: Payload,
}

impl Message {
    fn new(version: Version, topic: &str, payload: Payload) -> Result<Self, WireError> {
        let template = Template::new(payload);
        let mut packet = Vec::new();
        wire::encode_publish(
            version,
            topic,
            Qos::AtLeastOnce(NonZeroU16::MIN),
            template.text(),
            &mut packet,
        )?;
        let payload_at = packet.len() - template.text().len();
        Ok(Self { packet, template: template.stands_at(payload_at), payload })
    }
}

impl Connects<'_> {
    fn encode(&self, client: usize, n: u64, out: &mut Vec<u8>) -> Result<(), WireError> {
        let identity = &self.config.identities[client % self.config.identities.len()];
        let connect = Connect {
            version: self.config.version,
            client_id: &format!("connect-{n}"),
            user_name: identity.token.as_deref(),
            clean: true,
            keep_alive_seconds: 0,
        };
        wire::encode_connect(&connect, out)
    }
}

impl Talk for Connects<'_> {
    fn begin(&mut self, client: usize, n: u64, out: &mut Vec<u8>) {
        // It was encoded once before the start.
        let _encoded = self.encode(client, n, out);
    }

    fn hear(&mut self, _: usize, bytes: &[u8], out: &mut Vec<u8>) -> Result<Heard, String> {
        let answer =
            |bytes, accepted, code: u8| Heard::Answer { bytes, accepted, code: code.into(), keep: false };
        Ok(match wire::parse(bytes).map_err(|error| error.to_string())? {
            None => Heard::Nothing,
            Some((Incoming::ConnAck { code: 0 }, length)) => match &mut self.message {
                None => answer(length, true, 0),
                Some(message) => {
                    message.template.fill(&mut message.packet, self.sent, message.payload.stamp());
                    self.sent += 1;
                    out.extend_from_slice(&message.packet);
                    Heard::Part(length)
                }
            },
            Some((Incoming::PubAck { code, .. }, length)) => answer(length, code < 0x80, code),
            Some((Incoming::ConnAck { code } | Incoming::Disconnect { code }, length)) => {
                answer(length, false, code)
            }
            Some((other, _)) => return Err(format!("the server sent {other:?} to a newcomer")),
        })
    }

    fn farewell(&self) -> &'static [u8] {
        &DISCONNECT
    }
}
