use std::sync::{Arc, Mutex};

use dunlin_journal::{
    Journal, Offset, Partition,
    conformance::{self, Lab},
};
use dunlin_journal_disk::DiskJournal;
use futures::future::{self, BoxFuture, FutureExt};

use crate::support::{Bench, fill};

struct DiskLab {
    bench: Bench,
    open: Mutex<Option<Arc<DiskJournal>>>,
}

impl DiskLab {
    /// The least retention, so that whatever is sealed and passed goes at once.
    fn new(tail_cache_bytes: usize) -> Self {
        let bench = Bench::with(|config| {
            config.retention_bytes = 0;
            config.tail_cache_bytes = tail_cache_bytes;
        });
        Self { bench, open: Mutex::new(None) }
    }
}

impl Lab for DiskLab {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Journal>> {
        let mut open = self.open.lock().unwrap();
        *open = None;
        let journal = self.bench.open();
        *open = Some(Arc::clone(&journal));
        future::ready(journal as Arc<dyn Journal>).boxed()
    }

    fn make_gone<'a>(&'a self, _: &'a Arc<dyn Journal>, at: Partition) -> BoxFuture<'a, ()> {
        async move {
            let journal = self.open.lock().unwrap().clone().unwrap();
            let segments = self.bench.files("seg").len();
            while self.bench.files("seg").len() < segments + 3 {
                fill(&journal, at, 1, 10, 10_000).await;
            }
            journal.trim_once().unwrap();
            // A consumer may hold everything back, and then nothing is gone.
            let held_back = journal.position("slow", Partition { index: 0, ..at }).is_some();
            assert!(held_back || journal.extent(at).oldest > Offset::ZERO);
        }
        .boxed()
    }
}

mod from_memory {
    use super::*;
    conformance::tests!(DiskLab::new(64 << 20));
}

mod from_segments {
    use super::*;
    conformance::tests!(DiskLab::new(0));
}
