//! From a session's outbox to its connection.

use std::{
    fmt,
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
};

use dunlin_broker::{Acknowledged, Change, Home, Outgoing, command_of, is_of_commands};
use dunlin_journal::{Batch, Partition, Topic};
use dunlin_model::{Slot, chain};
use futures::task::AtomicWaker;
use ntex::util::BytePages;

use crate::{
    append::Waits,
    connection::Connection,
    record::{self, Origin},
    worker::Worker,
};

/// Bytes that wait for one socket; above it the rest stays in the outbox.
pub(crate) const WRITE_BUFFER_BYTES: usize = 64 << 10;

/// Connections of one worker that have something to be sent. Everybody may write here.
#[derive(Default)]
pub(crate) struct Inbox {
    connections: Mutex<Vec<u64>>,
    pub(crate) reader: AtomicWaker,
}

impl fmt::Debug for Inbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inbox").finish_non_exhaustive()
    }
}

impl Home for Inbox {
    fn wake(&self, connection: u64) {
        let was_empty = {
            let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
            connections.push(connection);
            connections.len() == 1
        };
        if was_empty {
            self.reader.wake();
        }
    }
}

impl Inbox {
    pub(crate) fn take(&self, into: &mut Vec<u64>) {
        std::mem::swap(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner), into);
    }
}

impl Worker {
    /// Sends what waits, to one connection after the other.
    pub(crate) async fn deliver_always(self: Rc<Self>, inbox: Arc<Inbox>) {
        let mut ready = Vec::new();
        loop {
            std::future::poll_fn(|cx| {
                inbox.reader.register(cx.waker());
                inbox.take(&mut ready);
                if ready.is_empty() { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
            })
            .await;
            for id in ready.drain(..) {
                let connection = self.connections.borrow().get(&id).cloned();
                if let Some(connection) = connection {
                    self.deliver(&connection);
                }
            }
        }
    }

    /// Sends what the client may have, as long as its socket takes it.
    pub(crate) fn deliver(&self, connection: &Rc<Connection>) {
        let Some(session) = connection.session() else { return };
        let now = self.shared.clock.now();
        let mut done = Vec::new();
        connection.write(|out: &mut BytePages| {
            session.look(|outbox| {
                while out.len() < WRITE_BUFFER_BYTES {
                    match outbox.next(connection.window, now) {
                        None => break,
                        Some(Outgoing::Release(packet_id)) => connection.wire.release(packet_id, true, out),
                        Some(Outgoing::Expired(number)) => done.push(number),
                        Some(Outgoing::Publish(delivery)) => {
                            let is_sent = connection.wire.publish(&delivery, now, out);
                            if let Some(packet_id) = delivery.packet_id {
                                // What the client cannot take is as good as delivered (MQTT 5, 3.1.2.11.4).
                                if !is_sent
                                    && let Acknowledged::Message(number) = outbox.acknowledge(packet_id)
                                {
                                    done.push(number);
                                }
                            } else if is_sent && is_of_commands(&delivery.message.topic) {
                                self.command_taken(connection, &delivery.message.topic, None); // Nothing else says so.
                            }
                        }
                    }
                }
            });
        });
        for number in done.into_iter().filter(|number| *number > 0) {
            self.log_change(connection, &Change::Acknowledged { session: session.id, number });
        }
    }

    /// The client has a command, which had this number if it was sent with one. The books are told before the log forgets it: a
    /// device that is sent it again knows it by its id.
    pub(crate) fn command_taken(&self, connection: &Connection, topic: &str, number: Option<u64>) {
        let Some((_, id)) = command_of(topic) else { return };
        let (shared, tenant) = (self.shared.clone(), connection.who.tenant.clone());
        let (device, id) = (connection.who.device.clone(), id.to_owned());
        let session = connection.session_id();
        let number = number.filter(|_| session.is_logged());
        let reply = record::command_reply(Origin::from(&connection.who), &id, shared.clock.now(), None);
        ntex::rt::spawn(async move {
            let slot = Slot::of(&tenant, &device);
            let at = slot.partition(shared.journal.partitions(Topic::CommandReplies));
            let mut batch = Batch::default();
            batch.push(&reply);
            let told = shared.journal.append(Partition::new(Topic::CommandReplies, at), batch).await;
            let taken = Change::Taken { tenant: (*tenant).into(), device: (*device).into(), id: id.into() };
            let acknowledged = number.map(|number| Change::Acknowledged { session, number });
            let changes: Vec<_> = acknowledged.into_iter().chain([taken]).collect();
            let logged = match told {
                Ok(_) => shared.pubsub.log(&tenant, &changes).await,
                Err(error) => Err(error),
            };
            if let Err(error) = logged {
                tracing::warn!(error = chain(&error), "a device may be sent a command again that it has");
            }
        });
    }

    /// Logs what need not be waited for, if the session is in the log.
    pub(crate) fn log_change(&self, connection: &Connection, change: &Change<'_>) {
        if connection.session_id().is_logged() {
            self.append_change(connection, change, None);
        }
    }

    pub(crate) fn append_change(&self, connection: &Connection, change: &Change<'_>, waits: Waits<'_>) {
        let mut record = Vec::new();
        change.encode(&mut record);
        self.appender.record(connection.changes, &record, None, waits);
    }
}
