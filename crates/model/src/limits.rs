//! Every hard limit that more than one crate must agree on. Changing one is a release note.

/// Bytes of a tenant, device, device type or metric name.
pub const NAME_BYTES_MAX: usize = 128;
/// Readings in one record.
pub const RECORD_READINGS_MAX: usize = 1_000;
/// Bytes of a text value.
pub const TEXT_BYTES_MAX: usize = 16 << 10;
/// Bytes of one message as a device sends it, over MQTT or HTTP.
pub const MESSAGE_BYTES_MAX: usize = 1 << 20;
/// Records in one message (an array payload).
pub const MESSAGE_RECORDS_MAX: usize = 10_000;
/// Bytes of what a command says besides its method, and of a reply to it, as JSON.
pub const COMMAND_BYTES_MAX: usize = 64 << 10;
/// Bytes of one batch handed to the journal: what one message can grow to when it is decoded.
pub const BATCH_BYTES_MAX: usize = 16 << 20;
/// Bytes of a refused message that are kept with the reason.
pub const REJECTED_BYTES_MAX: usize = 64 << 10;
