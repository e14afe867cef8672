//! MQTT 3.1.1 and 5 as one set of packets; the codecs are ntex-mqtt's.

use std::{cell::Cell, num::NonZeroU16};

use dunlin_broker::{Delivery, Properties, Qos, RetainHandling, Subscription, Will};
use dunlin_model::Timestamp;
use ntex::{
    codec::{Decoder, Encoder},
    util::{BytePages, ByteString, Bytes, BytesMut},
};
use ntex_mqtt::{QoS, error::DecodeError, v3, v5};

use crate::{
    strict::{self, Checked},
    topic::shown,
};

/// The protocol of one connection.
pub(crate) struct Wire {
    codec: Codec,
    /// A publish whose payload is still on its way.
    begun: Cell<Option<Publish>>,
    /// The codec is in the midst of a packet.
    inside: Cell<bool>,
    packet_bytes_max: Cell<u32>,
    client_packet_bytes_max: Cell<u32>,
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
    /// PUBACK, PUBREC, PUBCOMP.
    Answer {
        packet_id: NonZeroU16,
        to: AnswerTo,
        refused: bool,
    },
    Subscribe {
        packet_id: NonZeroU16,
        filters: Vec<(ByteString, Subscription)>,
    },
    Unsubscribe {
        packet_id: NonZeroU16,
        filters: Vec<ByteString>,
    },
    Ping,
    Disconnect {
        with_will: bool,
        expiry_seconds: Option<u32>,
    },
    /// AUTH, and what only a server sends.
    Unexpected,
}

impl Inbound {
    /// Whether it adds to what this server has under way.
    pub(crate) fn brings_something(&self) -> bool {
        matches!(self, Self::Publish(..) | Self::Release(_) | Self::Answer { .. })
    }
}

/// What a client's answer is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnswerTo {
    /// PUBACK
    AtLeastOnce,
    /// PUBREC
    Received,
    /// PUBCOMP
    Completed,
}

#[derive(Debug)]
pub(crate) struct Connect {
    pub(crate) client_id: ByteString,
    pub(crate) user_name: Option<ByteString>,
    pub(crate) clean: bool,
    pub(crate) keepalive_seconds: u16,
    pub(crate) auth_method: bool,
    pub(crate) packet_bytes_max: Option<u32>,
    /// `None`: for as long as the server likes (MQTT 3.1.1 without a clean session).
    pub(crate) expiry_seconds: Option<u32>,
    /// Messages of QoS 1 and 2 that the client takes at once.
    pub(crate) receive_max: u16,
    pub(crate) will: Option<Box<Will>>,
}

#[derive(Debug)]
pub(crate) struct Publish {
    pub(crate) topic: ByteString,
    pub(crate) topic_alias: Option<NonZeroU16>,
    pub(crate) qos: QoS,
    pub(crate) duplicate: bool,
    pub(crate) retain: bool,
    pub(crate) packet_id: Option<NonZeroU16>,
    pub(crate) expiry_seconds: Option<u32>,
    pub(crate) properties: Option<Box<Properties>>,
    /// It holds what only a server says.
    pub(crate) subscription_ids: bool,
}

/// What CONNACK tells a client that is let in.
#[derive(Debug)]
pub(crate) struct Welcome {
    pub(crate) inflight_max: u16,
    pub(crate) packet_bytes_max: u32,
    pub(crate) topic_aliases_max: u16,
    pub(crate) assigned_client_id: Option<String>,
    pub(crate) keepalive_seconds: Option<u16>,
    pub(crate) session_present: bool,
    /// How long the session outlives the connection.
    pub(crate) expiry_seconds: u32,
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
    /// The will cannot be published.
    WillTopic,
    /// The tenant has as many sessions as it may.
    Quota,
    /// Come back later.
    Busy,
    /// This address connects too often.
    Rate,
    /// This client connects too often.
    Banned,
}

/// What became of one filter of a SUBSCRIBE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Granted {
    Qos(Qos),
    Invalid,
    Forbidden,
    Quota,
}

const PACKET_ID_NOT_FOUND: u8 = 0x92;

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
        let wire = Self {
            codec,
            begun: Cell::new(None),
            inside: Cell::new(false),
            packet_bytes_max: Cell::new(packet_bytes_max),
            client_packet_bytes_max: Cell::new(u32::MAX),
        };
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
        self.packet_bytes_max.set(bytes);
        match &self.codec {
            Codec::V3(codec) => codec.set_max_size(bytes),
            Codec::V5(codec) => codec.set_max_inbound_size(bytes),
        }
    }

    /// What the client takes at most (MQTT 5); reasons are left out of packets that would be larger.
    pub(crate) fn set_answer_bytes_max(&self, bytes: u32) {
        self.client_packet_bytes_max.set(bytes);
        if let Codec::V5(codec) = &self.codec {
            codec.set_max_outbound_size(bytes);
        }
    }

    pub(crate) fn welcome(&self, welcome: Welcome, out: &mut BytePages) {
        match &self.codec {
            Codec::V3(_) => out.extend_from_slice(&[0x20, 2, u8::from(welcome.session_present), 0]),
            Codec::V5(_) => {
                let ack = v5::codec::ConnectAck {
                    session_present: welcome.session_present,
                    session_expiry_interval_secs: Some(welcome.expiry_seconds),
                    receive_max: NonZeroU16::new(welcome.inflight_max).unwrap_or(NonZeroU16::MIN),
                    max_packet_size: Some(welcome.packet_bytes_max),
                    assigned_client_id: welcome.assigned_client_id.map(Into::into),
                    topic_alias_max: welcome.topic_aliases_max,
                    retain_available: true,
                    wildcard_subscription_available: true,
                    subscription_identifiers_available: true,
                    shared_subscription_available: true,
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
                    Unwelcome::Unavailable
                    | Unwelcome::Quota
                    | Unwelcome::Busy
                    | Unwelcome::Rate
                    | Unwelcome::Banned => 3,
                    Unwelcome::WillTopic => 2,
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
                    Unwelcome::WillTopic => R::TopicNameInvalid,
                    Unwelcome::Quota => R::QuotaExceeded,
                    Unwelcome::Busy => R::ServerBusy,
                    Unwelcome::Rate => R::ConnectionRateExceeded,
                    Unwelcome::Banned => R::Banned,
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
        match self.codec {
            Codec::V5(_) if !known => out.extend_from_slice(&[0x70, 3, high, low, PACKET_ID_NOT_FOUND]),
            _ => out.extend_from_slice(&[0x70, 2, high, low]),
        }
    }

    /// PUBREL.
    pub(crate) fn release(&self, packet_id: NonZeroU16, known: bool, out: &mut BytePages) {
        let [high, low] = packet_id.get().to_be_bytes();
        match self.codec {
            Codec::V5(_) if !known => out.extend_from_slice(&[0x62, 3, high, low, PACKET_ID_NOT_FOUND]),
            _ => out.extend_from_slice(&[0x62, 2, high, low]),
        }
    }

    /// SUBACK: what was granted, filter by filter.
    pub(crate) fn subscribed(&self, packet_id: NonZeroU16, granted: &[Granted], out: &mut BytePages) {
        use v3::codec::SubscribeReturnCode as R3;
        use v5::codec::SubscribeAckReason as R5;
        match &self.codec {
            Codec::V3(codec) => {
                let status = granted.iter().map(|granted| match granted {
                    Granted::Qos(qos) => R3::Success(codec_qos(*qos)),
                    _ => R3::Failure,
                });
                let ack = v3::codec::Packet::SubscribeAck { packet_id, status: status.collect() };
                let _fits = codec.encodev(v3::codec::Encoded::Packet(ack), out);
            }
            Codec::V5(_) => {
                let status = granted.iter().map(|granted| match granted {
                    Granted::Qos(Qos::AtMostOnce) => R5::GrantedQos0,
                    Granted::Qos(Qos::AtLeastOnce) => R5::GrantedQos1,
                    Granted::Qos(Qos::ExactlyOnce) => R5::GrantedQos2,
                    Granted::Invalid => R5::TopicFilterInvalid,
                    Granted::Forbidden => R5::NotAuthorized,
                    Granted::Quota => R5::QuotaExceeded,
                });
                let ack = v5::codec::SubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status: status.collect(),
                };
                self.write_v5(v5::codec::Packet::SubscribeAck(ack), out);
            }
        }
    }

    /// UNSUBACK.
    pub(crate) fn unsubscribed(&self, packet_id: NonZeroU16, known: &[Option<bool>], out: &mut BytePages) {
        use v5::codec::UnsubscribeAckReason as R;
        match &self.codec {
            Codec::V3(codec) => {
                let ack = v3::codec::Packet::UnsubscribeAck { packet_id };
                let _fits = codec.encodev(v3::codec::Encoded::Packet(ack), out);
            }
            Codec::V5(_) => {
                let status = known.iter().map(|known| match known {
                    Some(true) => R::Success,
                    Some(false) => R::NoSubscriptionExisted,
                    None => R::TopicFilterInvalid,
                });
                let ack = v5::codec::UnsubscribeAck {
                    packet_id,
                    properties: Vec::new(),
                    reason_string: None,
                    status: status.collect(),
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

/// Writing PUBLISH: ours, and not the codec's, because one message goes to thousands and most of them get the same bytes.
impl Wire {
    /// False if the client takes no packet as large as this.
    pub(crate) fn publish(&self, delivery: &Delivery, now: Timestamp, out: &mut BytePages) -> bool {
        let message = &delivery.message;
        let is_plain = delivery.qos == Qos::AtMostOnce
            && !delivery.retain
            && delivery.subscription_ids.is_empty()
            && message.expires_at.is_none();
        if is_plain {
            let packet = message.packets[self.version() as usize].get_or_init(|| {
                let mut packet = self.publish_head(delivery, now);
                packet.extend_from_slice(&message.payload);
                packet.into()
            });
            return self.fits(packet.len()) && {
                out.extend_from_slice(packet);
                true
            };
        }
        let head = self.publish_head(delivery, now);
        self.fits(head.len() + message.payload.len()) && {
            out.extend_from_slice(&head);
            out.extend_from_slice(&message.payload);
            true
        }
    }

    fn fits(&self, packet_bytes: usize) -> bool {
        packet_bytes <= self.client_packet_bytes_max.get() as usize
    }

    /// All of a PUBLISH but the payload (MQTT 5, 3.3).
    fn publish_head(&self, delivery: &Delivery, now: Timestamp) -> Vec<u8> {
        let message = &delivery.message;
        let mut rest = Vec::with_capacity(64 + message.topic.len());
        put_bytes(shown(&message.topic).as_bytes(), &mut rest);
        if let Some(packet_id) = delivery.packet_id {
            rest.extend_from_slice(&packet_id.get().to_be_bytes());
        }
        if self.version() == Version::V5 {
            let properties = publish_properties(delivery, now);
            put_length(properties.len(), &mut rest);
            rest.extend_from_slice(&properties);
        }
        let flags = u8::from(delivery.duplicate) << 3 | (delivery.qos as u8) << 1 | u8::from(delivery.retain);
        let mut head = Vec::with_capacity(rest.len() + message.payload.len() + 5);
        head.push(0x30 | flags);
        put_length(rest.len() + message.payload.len(), &mut head);
        head.extend_from_slice(&rest);
        head
    }
}

fn publish_properties(delivery: &Delivery, now: Timestamp) -> Vec<u8> {
    let mut out = Vec::new();
    if let Some(expires_at) = delivery.message.expires_at {
        let left = expires_at.since(now).as_secs().min(u64::from(u32::MAX)) as u32;
        out.push(0x02);
        out.extend_from_slice(&left.max(1).to_be_bytes());
    }
    for id in &delivery.subscription_ids {
        out.push(0x0B);
        put_length(*id as usize, &mut out);
    }
    let Some(properties) = &delivery.message.properties else { return out };
    if properties.utf8_payload {
        out.extend_from_slice(&[0x01, 1]);
    }
    let content_type = properties.content_type.as_ref().map(|t| (0x03, t.as_bytes()));
    let response_topic = properties.response_topic.as_ref().map(|t| (0x08, t.as_bytes()));
    let correlation_data = properties.correlation_data.as_ref().map(|d| (0x09, &d[..]));
    for (kind, value) in [content_type, response_topic, correlation_data].into_iter().flatten() {
        out.push(kind);
        put_bytes(value, &mut out);
    }
    for (name, value) in &properties.user {
        out.push(0x26);
        put_bytes(name.as_bytes(), &mut out);
        put_bytes(value.as_bytes(), &mut out);
    }
    out
}

/// A length of two bytes, and the bytes. None is longer: it came in a packet.
fn put_bytes(bytes: &[u8], out: &mut Vec<u8>) {
    let length = bytes.len().min(usize::from(u16::MAX));
    out.extend_from_slice(&(length as u16).to_be_bytes());
    out.extend_from_slice(&bytes[..length]);
}

/// A variable byte integer (MQTT 5, 1.5.5).
fn put_length(mut length: usize, out: &mut Vec<u8>) {
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            return out.push(byte);
        }
        out.push(byte | 0x80);
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
            if !self.inside.get()
                && strict::check(src, self.version(), self.packet_bytes_max.get())? == Checked::NeedsMore
            {
                return Ok(None);
            }
            self.inside.set(true);
            let step = match &self.codec {
                Codec::V3(codec) => codec.decode(src)?.map(Step::from),
                Codec::V5(codec) => codec.decode(src)?.map(Step::from),
            };
            if matches!(step, Some(Step::Whole(_) | Step::Rest(_, true))) {
                self.inside.set(false);
            }
            match step {
                None => return Ok(None),
                Some(Step::Whole(inbound)) => return sound(inbound).map(Some),
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

/// What a will says is not looked at again before it is passed on (MQTT 5, 1.5.4 and 3.3.2.3.5).
fn sound(inbound: Inbound) -> Result<Inbound, DecodeError> {
    let Inbound::Connect(Connect { will: Some(will), .. }) = &inbound else { return Ok(inbound) };
    let is_wild = will.properties.response_topic.as_deref().is_some_and(|topic| topic.contains(['+', '#']));
    match is_wild || will.properties.texts().any(|text| text.contains('\0')) {
        true => Err(DecodeError::MalformedPacket),
        false => Ok(inbound),
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
                    retain: p.retain,
                    packet_id: p.packet_id,
                    expiry_seconds: None,
                    properties: None,
                    subscription_ids: false,
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
                    expiry_seconds: c.clean_session.then_some(0),
                    receive_max: u16::MAX,
                    will: c.last_will.map(|w| {
                        Box::new(Will {
                            topic: w.topic.as_str().into(),
                            payload: w.message.to_vec(),
                            qos: broker_qos(w.qos),
                            retain: w.retain,
                            delay_seconds: 0,
                            expiry_seconds: None,
                            properties: Properties::default(),
                        })
                    }),
                }),
                Packet::PublishAck { packet_id } => answer(packet_id, AnswerTo::AtLeastOnce, false),
                Packet::PublishReceived { packet_id } => answer(packet_id, AnswerTo::Received, false),
                Packet::PublishComplete { packet_id } => answer(packet_id, AnswerTo::Completed, false),
                Packet::PublishRelease { packet_id } => Inbound::Release(packet_id),
                Packet::Subscribe { packet_id, topic_filters } => {
                    let plain = |(filter, qos)| (filter, subscription(broker_qos(qos)));
                    Inbound::Subscribe { packet_id, filters: topic_filters.into_iter().map(plain).collect() }
                }
                Packet::Unsubscribe { packet_id, topic_filters } => {
                    Inbound::Unsubscribe { packet_id, filters: topic_filters }
                }
                Packet::PingRequest => Inbound::Ping,
                Packet::Disconnect => Inbound::Disconnect { with_will: false, expiry_seconds: None },
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
                    retain: p.retain,
                    packet_id: p.packet_id,
                    expiry_seconds: p.properties.message_expiry_interval.map(Into::into),
                    subscription_ids: !p.properties.subscription_ids.is_empty(),
                    properties: properties(p.properties),
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
                    auth_method: c.auth_method.is_some() || c.auth_data.is_some(),
                    packet_bytes_max: c.max_packet_size.map(Into::into),
                    expiry_seconds: Some(c.session_expiry_interval_secs),
                    receive_max: c.receive_max.map_or(u16::MAX, Into::into),
                    will: c.last_will.map(|w| Box::new(will(w))),
                }),
                Packet::PublishAck(ack) => {
                    answer(ack.packet_id, AnswerTo::AtLeastOnce, u8::from(ack.reason_code) >= REFUSALS)
                }
                Packet::PublishReceived(ack) => {
                    answer(ack.packet_id, AnswerTo::Received, u8::from(ack.reason_code) >= REFUSALS)
                }
                Packet::PublishComplete(ack) => answer(ack.packet_id, AnswerTo::Completed, false),
                Packet::PublishRelease(ack) => Inbound::Release(ack.packet_id),
                Packet::Subscribe(s) => {
                    let id = s.id.map(Into::into);
                    let asked = |(filter, o): (ByteString, v5::codec::SubscriptionOptions)| {
                        let asked = Subscription {
                            qos: broker_qos(o.qos),
                            no_local: o.no_local,
                            retain_as_published: o.retain_as_published,
                            retain_handling: match o.retain_handling {
                                v5::codec::RetainHandling::AtSubscribe => RetainHandling::Always,
                                v5::codec::RetainHandling::AtSubscribeNew => RetainHandling::IfNew,
                                v5::codec::RetainHandling::NoAtSubscribe => RetainHandling::Never,
                            },
                            id,
                        };
                        (filter, asked)
                    };
                    let filters = s.topic_filters.into_iter().map(asked).collect();
                    Inbound::Subscribe { packet_id: s.packet_id, filters }
                }
                Packet::Unsubscribe(u) => {
                    Inbound::Unsubscribe { packet_id: u.packet_id, filters: u.topic_filters }
                }
                Packet::PingRequest => Inbound::Ping,
                // The codec knows a reason more than the specification has for a DISCONNECT (3.14.2.1).
                Packet::Disconnect(d)
                    if d.reason_code == v5::codec::DisconnectReasonCode::BadAuthenticationMethod =>
                {
                    Inbound::Unexpected
                }
                Packet::Disconnect(d) => Inbound::Disconnect {
                    with_will: d.reason_code != v5::codec::DisconnectReasonCode::NormalDisconnection,
                    expiry_seconds: d.session_expiry_interval_secs,
                },
                _ => Inbound::Unexpected,
            },
        })
    }
}

/// Reason codes from here on are failures.
const REFUSALS: u8 = 0x80;

fn answer(packet_id: NonZeroU16, to: AnswerTo, refused: bool) -> Inbound {
    Inbound::Answer { packet_id, to, refused }
}

/// What an MQTT 3.1.1 client asks for.
fn subscription(qos: Qos) -> Subscription {
    Subscription {
        qos,
        no_local: false,
        retain_as_published: false,
        retain_handling: RetainHandling::Always,
        id: None,
    }
}

pub(crate) fn broker_qos(qos: QoS) -> Qos {
    match qos {
        QoS::AtMostOnce => Qos::AtMostOnce,
        QoS::AtLeastOnce => Qos::AtLeastOnce,
        QoS::ExactlyOnce => Qos::ExactlyOnce,
    }
}

fn codec_qos(qos: Qos) -> QoS {
    match qos {
        Qos::AtMostOnce => QoS::AtMostOnce,
        Qos::AtLeastOnce => QoS::AtLeastOnce,
        Qos::ExactlyOnce => QoS::ExactlyOnce,
    }
}

fn properties(p: v5::codec::PublishProperties) -> Option<Box<Properties>> {
    Properties {
        utf8_payload: p.is_utf8_payload,
        content_type: p.content_type.map(text),
        response_topic: p.response_topic.map(text),
        correlation_data: p.correlation_data.map(|data| data.to_vec()),
        user: p.user_properties.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
    }
    .boxed()
}

fn will(w: v5::codec::LastWill) -> Will {
    Will {
        topic: w.topic.as_str().into(),
        payload: w.message.to_vec(),
        qos: broker_qos(w.qos),
        retain: w.retain,
        delay_seconds: w.will_delay_interval_sec.unwrap_or(0),
        expiry_seconds: w.message_expiry_interval.map(Into::into),
        properties: Properties {
            utf8_payload: w.is_utf8_payload.unwrap_or(false),
            content_type: w.content_type.map(text),
            response_topic: w.response_topic.map(text),
            correlation_data: w.correlation_data.map(|data| data.to_vec()),
            user: w.user_properties.into_iter().map(|(name, value)| (text(name), text(value))).collect(),
        },
    }
}

fn text(text: ByteString) -> String {
    text.as_str().to_owned()
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
