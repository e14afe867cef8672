use dunlin_journal::Topic;
use rdkafka::message::{Header, OwnedHeaders};

/// What is told of a record beside it, for those who read Kafka without our code. The journal itself knows nothing of
/// what it carries and goes by none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Labels<'a> {
    /// Whose it is. Together they are the message's key, `tenant/device`; without a tenant there is none.
    pub tenant: &'a str,
    pub device: &'a str,
    /// Headers `content-type` and `schema`.
    pub content_type: &'a str,
    pub schema: &'a str,
}

/// Says what a record is; `None` if it cannot be told.
pub type Describe = fn(Topic, &[u8]) -> Option<Labels<'_>>;

impl Labels<'_> {
    pub(crate) fn key_into(&self, key: &mut Vec<u8>) {
        if !self.tenant.is_empty() {
            key.extend_from_slice(self.tenant.as_bytes());
            key.push(b'/');
            key.extend_from_slice(self.device.as_bytes());
        }
    }

    pub(crate) fn headers(&self) -> OwnedHeaders {
        let text = |key, value| Header { key, value: Some(value) };
        OwnedHeaders::new_with_capacity(2)
            .insert(text("content-type", self.content_type))
            .insert(text("schema", self.schema))
    }
}
