use std::sync::{Arc, Mutex};

use dunlin_journal::{
    Journal, Offset, Partition,
    conformance::{self, Lab},
};
use dunlin_journal_kafka::KafkaJournal;
use futures::future::{BoxFuture, FutureExt};

use crate::support::{Bench, fill};

struct KafkaLab {
    bench: Bench,
    open: Mutex<Option<Arc<KafkaJournal>>>,
}

impl KafkaLab {
    /// The least retention, so that whatever is passed goes at once, and little room, so that appends wait for it.
    fn new(tail_cache_bytes: usize) -> Self {
        let bench = Bench::with(|config| {
            config.retention_seconds = 0;
            config.inflight_bytes_max = 64 << 10;
            config.tail_cache_bytes = tail_cache_bytes;
        });
        Self { bench, open: Mutex::default() }
    }
}

impl Lab for KafkaLab {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Journal>> {
        async move {
            drop(self.open.lock().unwrap().take());
            let journal = self.bench.open().await;
            *self.open.lock().unwrap() = Some(journal.clone());
            journal as Arc<dyn Journal>
        }
        .boxed()
    }

    fn make_gone<'a>(&'a self, _: &'a Arc<dyn Journal>, at: Partition) -> BoxFuture<'a, ()> {
        async move {
            let journal = self.open.lock().unwrap().clone().unwrap();
            fill(&journal, at).await;
            // What was appended last was seen, by whose time the age of the others is told.
            let last = Offset(journal.extent(at).next.0 - 1);
            journal.read(at, last, 1).await.unwrap();
            let trimming = journal.clone();
            tokio::task::spawn_blocking(move || trimming.trim_once()).await.unwrap().unwrap();
            assert!(journal.extent(at).oldest > Offset::ZERO);
        }
        .boxed()
    }
}

mod from_memory {
    use super::*;
    conformance::tests!(KafkaLab::new(64 << 20));
}

mod from_brokers {
    use super::*;
    conformance::tests!(KafkaLab::new(0));
}
