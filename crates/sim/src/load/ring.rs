//! One connection's packets: all have the same length, so that a window of them is one piece of memory.

use std::num::NonZeroU16;

use super::LoadError;
use crate::{
    payload::{Payload, Template},
    wire::{self, PUBLISH_QOS1, Qos, Version},
};

/// `window` packets, and the places in each that change.
#[derive(Debug)]
pub(super) struct Ring {
    pub(super) bytes: Vec<u8>,
    pub(super) packet_bytes: usize,
    window: usize,
    template: Template,
}

impl Ring {
    pub(super) fn new(
        version: Version,
        topic: &str,
        payload: Payload,
        window: u16,
    ) -> Result<Self, LoadError> {
        let template = Template::new(payload);
        let mut bytes = Vec::new();
        let mut packet_bytes = 0;
        for id in 1..=window {
            let id = NonZeroU16::new(id).unwrap_or(NonZeroU16::MIN);
            wire::encode_publish(version, topic, Qos::AtLeastOnce(id), template.text(), &mut bytes)?;
            if id == NonZeroU16::MIN {
                packet_bytes = bytes.len();
                bytes.reserve_exact(packet_bytes * (usize::from(window) - 1));
            }
        }
        let payload_at = packet_bytes - template.text().len();
        Ok(Self {
            bytes,
            packet_bytes,
            window: usize::from(window),
            template: template.stands_at(payload_at),
        })
    }

    /// Makes the packet in `slot` a first delivery of `seq`.
    #[inline]
    pub(super) fn fill(&mut self, slot: usize, seq: u64, unix_milliseconds: u64) {
        let packet = &mut self.bytes[slot * self.packet_bytes..][..self.packet_bytes];
        packet[0] = PUBLISH_QOS1;
        self.template.fill(packet, seq, unix_milliseconds);
    }

    pub(super) fn packet(&self, slot: usize) -> &[u8] {
        &self.bytes[slot * self.packet_bytes..][..self.packet_bytes]
    }

    pub(super) fn window(&self) -> usize {
        self.window
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_of_a_ring_differ_in_their_id_only() {
        let ring = Ring::new(Version::V311, "t", Payload::Fixed { bytes: 4 }, 3).unwrap();
        assert_eq!(ring.packet(0), b"\x32\x09\0\x01t\0\x01xxxx");
        assert_eq!(ring.packet(2), b"\x32\x09\0\x01t\0\x03xxxx");
        assert_eq!(ring.window(), 3);
    }
}
