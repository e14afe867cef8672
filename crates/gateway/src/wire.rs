//! MQTT 3.1.1 and 5 as one set of packets; the codecs are ntex-mqtt's.

use std::{cell::Cell, num::NonZeroU16};

use ntex::{
    codec::{Decoder, Encoder},
    util::{BytePages, ByteString, Bytes, BytesMut},
};
use ntex_mqtt::{QoS, error::DecodeError, v3, v5};

/// The protocol of one connection.
pub(crate) struct Wire {
    codec: Codec,
    /// A publish whose payload is still on its way.
    begun: Cell<Option<Publish>>,
}

enum Codec {
    V3(v3::codec::Codec),
    V5(Box<v5::codec::Codec>),
}

/// What a client sends.
#[derive(Debug)]
pub(crate) enum Inbound {
    Connect(Connect),
    Publish(Publish, Bytes),
    /// PUBREL: the client has seen PUBREC.
    Release(NonZeroU16),
    Subscribe {
        packet_id: NonZeroU16,
        filters: usize,
    },
    Unsubscribe {
        packet_id: NonZeroU16,
        filters: usize,
    },
    Ping,
    Disconnect,
    /// Answers to what was never sent, and AUTH.
    Unexpected,
}

#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) client_id: ByteString,
    pub(crate) user_name: Option<ByteString>,
    pub(crate) clean: bool,
    pub(crate) keepalive_seconds: u16,
    pub(crate) auth_method: bool,
    pub(crate) packet_bytes_max: Option<u32>,
}

#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) topic: ByteString,
    pub(crate) topic_alias: Option<NonZeroU16>,
    pub(crate) qos: QoS,
    pub(crate) duplicate: bool,
    pub(crate) packet_id: Option<NonZeroU16>,
}

/// What CONNACK tells a client that is let in.
#[derive(Debug)]
pub(crate) struct Welcome {
    pub(crate) inflight_max: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) topic_aliases_max: u16,
    pub(crate) assigned_client_id: Option<String>,
    pub(crate) keepalive_seconds: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V3,
    V5,
}

/// Why a client is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unwelcome {
    BadCredentials,
    Unavailable,
    ClientId,
    AuthMethod,
}

/// Why a publish is refused, or a connection ended, as MQTT 5 says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    NotAuthorized,
    TopicName,
    Quota,
    PayloadFormat,
    PacketTooLarge,
    Malformed,
    Protocol,
    TopicAlias,
    ReceiveMaximum,
    ServerBusy,
    ShuttingDown,
    KeepAlive,
    TakenOver,
    Administrative,
    /// This server is at fault.
    Panicked,
}

impl Wire {
    /// `packet_bytes_max` is set anew once the client is known.
    pub(crate) fn new(version: Version, packet_bytes_max: u32) -> Self {
        let codec = match version {
            Version::V3 => {
                let codec = v3::codec::Codec::new();
                codec.set_min_chunk_size(u32::MAX);
                Codec::V3(codec)
            }
            Version::V5 => {
                let codec = v5::codec::Codec::new();
                codec.set_min_chunk_size(u32::MAX);
                Codec::V5(Box::new(codec))
            }
        };
        let wire = Self { codec, begun: Cell::new(None) };
        wire.set_packet_bytes_max(packet_bytes_max);
        wire
    }

    pub(crate) fn version(&self) -> Version {
        match self.codec {
            Codec::V3(_) => Version::V3,
            Codec::V5(_) => Version::V5,
        }
    }

    pub(crate) fn set_packet_bytes_max(&self, bytes: u32) {
        match &self.codec {
            Codec::V3(codec) => codec.set_max_size(bytes),
            Codec::V5(codec) => codec.set_max_inbound_size(bytes),
        }
    }

    /// What the client takes at most (MQTT 5); reasons are left out of packets that would be larger.
    pub(crate) fn set_answer_bytes_max(&self, bytes: u32) {
        if let Codec::V5(codec) = &self.codec {
            codec.set_max_outbound_size(bytes);
        }
    }

    pub(crate) fn welcome(&self, welcome: Welcome, out: &mut BytePages) {
        match &self.codec {
            Codec::V3(_) => out.extend_from_slice(&[0x20, 2, 0, 0]),
            Codec::V5(_) => {
                let ack = v5::codec::ConnectAck {
                    session_expiry_interval_secs: Some(0),
                    receive_max: NonZeroU16::new(welcome.inflight_max).unwrap_or(NonZeroU16::MIN),
                    max_packet_size: Some(welcome.packet_bytes_max),
                    assigned_client_id: welcome.assigned_client_id.map(Into::into),
                    topic_alias_max: welcome.topic_aliases_max,
                    retain_available: false,
                    wildcard_subscription_available: false,
                    subscription_identifiers_available: false,
                    shared_subscription_available: false,
                    server_keepalive_sec: welcome.keepalive_seconds,
                    ..v5::codec::ConnectAck::default()
                };
                self.write_v5(v5::codec::Packet::ConnectAck(Box::new(ack)), out);
            }
        }
    }

    pub(crate) fn unwelcome(&self, why: Unwelcome, out: &mut BytePages) {
        use v5::codec::ConnectAckReason as R;
        match &self.codec {
            Codec::V3(_) => {
                let code = match why {
                    Unwelcome::BadCredentials | Unwelcome::AuthMethod => 5,
                    Unwelcome::Unavailable => 3,
                    Unwelcome::ClientId => 2,
                };
                out.extend_from_slice(&[0x20, 2, 0, code]);
            }
            Codec::V5(_) => {
                let reason_code = match why {
                    Unwelcome::BadCredentials => R::BadUserNameOrPassword,
                    Unwelcome::Unavailable => R::ServerUnavailable,
                    Unwelcome::ClientId => R::ClientIdentifierNotValid,
                    Unwelcome::AuthMethod => R::BadAuthenticationMethod,
                };
                let ack = v5::codec::ConnectAck { reason_code, ..v5::codec::ConnectAck::default() };
                self.write_v5(v5::codec::Packet::ConnectAck(Box::new(ack)), out);
            }
        }
    }

    /// PUBACK or, for QoS 2, PUBREC: success in both versions.
    pub(crate) fn acknowledge(packet_id: NonZeroU16, qos: QoS, out: &mut BytePages) {
        let kind = if qos == QoS::ExactlyOnce { 0x50 } else { 0x40 };
        let [high, low] = packet_id.get().to_be_bytes();
        out.extend_from_slice(&[kind, 2, high, low]);
    }

    /// Says no to a publish. False if this version has no words for it.
    pub(crate) fn refuse(
        &self,
        packet_id: NonZeroU16,
        qos: QoS,
        code: Code,
        why: &str,
        out: &mut BytePages,
    ) -> bool {
        if matches!(self.codec, Codec::V3(_)) {
            return false;
        }
        let ack = v5::codec::PublishAck {
            packet_id,
            reason_code: code.of_publish(),
            properties: Vec::new(),
            reason_string: Some(shortened(why)),
        };
        let packet = match qos {
            QoS::ExactlyOnce => v5::codec::Packet::PublishReceived(ack),
            _ => v5::codec::Packet::PublishAck(ack),
        };
        self.write_v5(packet, out);
        true
    }

    /// PUBCOMP.
    pub(crate) fn complete(&self, packet_id: NonZeroU16, known: bool, out: &mut BytePages) {
        let [high, low] = packet_id.get().to_be_bytes();
        const PACKET_ID_NOT_FOUND: u8 = 0x92;
        match self.codec {
            Codec::V5(_) if !known => out.extend_from_slice(&[0x70, 3, high, low, PACKET_ID_NOT_FOUND]),
            _ => out.extend_from_slice(&[0x70, 2, high, low]),
        }
    }

    /// SUBACK that grants nothing.
    pub(crate) fn refuse_subscriptions(&self, packet_id: NonZeroU16, filters: usize, out: &mut BytePages) {
        match &self.codec {
            Codec::V3(codec) => {
                let status = vec![v3::codec::SubscribeReturnCode::Failure; filters];
                let ack = v3::codec::Packet::SubscribeAck { packet_id, status };
                let _fits = codec.encodev(v3::codec::Encoded::Packet(ack), out);
            }
            Codec::V5(_) => {
                let ack = v5::codec::SubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status: vec![v5::codec::SubscribeAckReason::ImplementationSpecificError; filters],
                };
                self.write_v5(v5::codec::Packet::SubscribeAck(ack), out);
            }
        }
    }

    /// UNSUBACK.
    pub(crate) fn unsubscribed(&self, packet_id: NonZeroU16, filters: usize, out: &mut BytePages) {
        match &self.codec {
            Codec::V3(codec) => {
                let ack = v3::codec::Packet::UnsubscribeAck { packet_id };
                let _fits = codec.encodev(v3::codec::Encoded::Packet(ack), out);
            }
            Codec::V5(_) => {
                let ack = v5::codec::UnsubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status: vec![v5::codec::UnsubscribeAckReason::NoSubscriptionExisted; filters],
                };
                self.write_v5(v5::codec::Packet::UnsubscribeAck(ack), out);
            }
        }
    }

    pub(crate) fn pong(out: &mut BytePages) {
        out.extend_from_slice(&[0xD0, 0]);
    }

    /// DISCONNECT; MQTT 3.1.1 has none from a server.
    pub(crate) fn disconnect(&self, code: Code, why: &str, out: &mut BytePages) {
        if matches!(self.codec, Codec::V5(_)) {
            let mut packet = v5::codec::Disconnect::new(code.of_disconnect());
            packet.reason_string = Some(shortened(why));
            self.write_v5(v5::codec::Packet::Disconnect(packet), out);
        }
    }

    /// A packet that the client said it cannot take is left out, as MQTT 5 asks (3.1.2.11.4).
    fn write_v5(&self, packet: v5::codec::Packet, out: &mut BytePages) {
        if let Codec::V5(codec) = &self.codec {
            let _fits = codec.encodev(v5::codec::Encoded::Packet(packet), out);
        }
    }
}

/// A reason that does not make a packet of its own.
fn shortened(why: &str) -> ByteString {
    const REASON_BYTES_MAX: usize = 256;
    let end = (0..=why.len().min(REASON_BYTES_MAX)).rev().find(|n| why.is_char_boundary(*n)).unwrap_or(0);
    why[..end].into()
}

impl Code {
    /// One word, for metrics and events.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NotAuthorized => "not_authorized",
            Self::TopicName => "topic_name_invalid",
            Self::Quota => "quota_exceeded",
            Self::PayloadFormat => "payload_format_invalid",
            Self::PacketTooLarge => "packet_too_large",
            Self::Malformed => "malformed_packet",
            Self::Protocol => "protocol_error",
            Self::TopicAlias => "topic_alias_invalid",
            Self::ReceiveMaximum => "receive_maximum_exceeded",
            Self::ServerBusy => "server_busy",
            Self::ShuttingDown => "server_shutting_down",
            Self::KeepAlive => "keep_alive_timeout",
            Self::TakenOver => "session_taken_over",
            Self::Administrative => "administrative_action",
            Self::Panicked => "panicked",
        }
    }

    fn of_publish(self) -> v5::codec::PublishAckReason {
        use v5::codec::PublishAckReason as R;
        match self {
            Self::NotAuthorized => R::NotAuthorized,
            Self::TopicName => R::TopicNameInvalid,
            Self::Quota => R::QuotaExceeded,
            Self::PayloadFormat => R::PayloadFormatInvalid,
            _ => R::UnspecifiedError,
        }
    }

    fn of_disconnect(self) -> v5::codec::DisconnectReasonCode {
        use v5::codec::DisconnectReasonCode as R;
        match self {
            Self::NotAuthorized => R::NotAuthorized,
            Self::TopicName => R::TopicNameInvalid,
            Self::Quota => R::QuotaExceeded,
            Self::PayloadFormat => R::PayloadFormatInvalid,
            Self::PacketTooLarge => R::PacketTooLarge,
            Self::Malformed => R::MalformedPacket,
            Self::Protocol => R::ProtocolError,
            Self::TopicAlias => R::TopicAliasInvalid,
            Self::ReceiveMaximum => R::ReceiveMaximumExceeded,
            Self::ServerBusy => R::ServerBusy,
            Self::ShuttingDown => R::ServerShuttingDown,
            Self::KeepAlive => R::KeepAliveTimeout,
            Self::TakenOver => R::SessionTakenOver,
            Self::Administrative => R::AdministrativeAction,
            Self::Panicked => R::ImplementationSpecificError,
        }
    }
}

impl Decoder for Wire {
    type Item = Inbound;
    type Error = DecodeError;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Inbound>, DecodeError> {
        loop {
            let step = match &self.codec {
                Codec::V3(codec) => codec.decode(src)?.map(Step::from),
                Codec::V5(codec) => codec.decode(src)?.map(Step::from),
            };
            match step {
                None => return Ok(None),
                Some(Step::Whole(inbound)) => return Ok(Some(inbound)),
                Some(Step::Begun(publish)) => self.begun.set(Some(publish)),
                Some(Step::Rest(payload, true)) => {
                    let publish = self.begun.take().ok_or(DecodeError::UnexpectedPayload)?;
                    return Ok(Some(Inbound::Publish(publish, payload)));
                }
                Some(Step::Rest(_, false)) => return Err(DecodeError::UnexpectedPayload),
            }
        }
    }
}

enum Step {
    Whole(Inbound),
    Begun(Publish),
    Rest(Bytes, bool),
}

impl From<v3::codec::Decoded> for Step {
    fn from(decoded: v3::codec::Decoded) -> Self {
        use v3::codec::{Decoded, Packet};
        Self::Whole(match decoded {
            Decoded::Publish(p, payload, _) => {
                let whole = p.payload_size as usize == payload.len();
                let publish = Publish {
                    topic: p.topic,
                    topic_alias: None,
                    qos: p.qos,
                    duplicate: p.dup,
                    packet_id: p.packet_id,
                };
                if !whole {
                    return Self::Begun(publish);
                }
                Inbound::Publish(publish, payload)
            }
            Decoded::PayloadChunk(bytes, end) => return Self::Rest(bytes, end),
            Decoded::Packet(packet, _) => match packet {
                Packet::Connect(c) => Inbound::Connect(Connect {
                    client_id: c.client_id,
                    user_name: c.username,
                    clean: c.clean_session,
                    keepalive_seconds: c.keep_alive,
                    auth_method: false,
                    packet_bytes_max: None,
                }),
                Packet::PublishRelease { packet_id } => Inbound::Release(packet_id),
                Packet::Subscribe { packet_id, topic_filters } => {
                    Inbound::Subscribe { packet_id, filters: topic_filters.len() }
                }
                Packet::Unsubscribe { packet_id, topic_filters } => {
                    Inbound::Unsubscribe { packet_id, filters: topic_filters.len() }
                }
                Packet::PingRequest => Inbound::Ping,
                Packet::Disconnect => Inbound::Disconnect,
                _ => Inbound::Unexpected,
            },
        })
    }
}

impl From<v5::codec::Decoded> for Step {
    fn from(decoded: v5::codec::Decoded) -> Self {
        use v5::codec::{Decoded, Packet};
        Self::Whole(match decoded {
            Decoded::Publish(p, payload, _) => {
                let whole = p.payload_size as usize == payload.len();
                let publish = Publish {
                    topic: p.topic,
                    topic_alias: p.properties.topic_alias,
                    qos: p.qos,
                    duplicate: p.dup,
                    packet_id: p.packet_id,
                };
                if !whole {
                    return Self::Begun(publish);
                }
                Inbound::Publish(publish, payload)
            }
            Decoded::PayloadChunk(bytes, end) => return Self::Rest(bytes, end),
            Decoded::Packet(packet, _) => match packet {
                Packet::Connect(c) => Inbound::Connect(Connect {
                    client_id: c.client_id,
                    user_name: c.username,
                    clean: c.clean_start,
                    keepalive_seconds: c.keep_alive,
                    auth_method: c.auth_method.is_some(),
                    packet_bytes_max: c.max_packet_size.map(Into::into),
                }),
                Packet::PublishRelease(ack) => Inbound::Release(ack.packet_id),
                Packet::Subscribe(s) => {
                    Inbound::Subscribe { packet_id: s.packet_id, filters: s.topic_filters.len() }
                }
                Packet::Unsubscribe(u) => {
                    Inbound::Unsubscribe { packet_id: u.packet_id, filters: u.topic_filters.len() }
                }
                Packet::PingRequest => Inbound::Ping,
                Packet::Disconnect(_) => Inbound::Disconnect,
                _ => Inbound::Unexpected,
            },
        })
    }
}

/// Looks at the first bytes of a connection without taking them.
pub(crate) struct Greeting;

impl Decoder for Greeting {
    type Item = Version;
    type Error = DecodeError;

    fn decode(&self, src: &mut BytesMut) -> Result<Option<Version>, DecodeError> {
        const CONNECT: u8 = 0x10;
        const NAME: &[u8] = b"\x00\x04MQTT";
        let bytes = &src[..];
        let Some((&kind, rest)) = bytes.split_first() else { return Ok(None) };
        if kind != CONNECT {
            return Err(DecodeError::UnsupportedPacketType);
        }
        let length_bytes = match rest.iter().take(4).position(|b| b & 0x80 == 0) {
            Some(last) => last + 1,
            None if rest.len() >= 4 => return Err(DecodeError::InvalidLength),
            None => return Ok(None),
        };
        let body = &rest[length_bytes..];
        let known = body.len().min(NAME.len());
        if body[..known] != NAME[..known] {
            return Err(DecodeError::InvalidProtocol);
        }
        match body.get(NAME.len()) {
            None => Ok(None),
            Some(4) => Ok(Some(Version::V3)),
            Some(5) => Ok(Some(Version::V5)),
            Some(_) => Err(DecodeError::UnsupportedProtocolLevel),
        }
    }
}
