use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Mutex},
};

use dunlin_journal::{
    Batch, Entries, Journal, MemoryJournal, Offset, Partition,
    conformance::{self, Lab},
};
use dunlin_model::Timestamp;
use futures::future::{self, BoxFuture, FutureExt};

struct MemoryLab(Mutex<Arc<MemoryJournal>>);

impl MemoryLab {
    fn new() -> Self {
        Self(Mutex::new(Arc::new(MemoryJournal::new(4))))
    }
}

impl Lab for MemoryLab {
    fn open(&self) -> BoxFuture<'_, Arc<dyn Journal>> {
        let mut journal = self.0.lock().unwrap();
        *journal = Arc::new(journal.reopened());
        future::ready(Arc::clone(&*journal) as Arc<dyn Journal>).boxed()
    }

    fn make_gone<'a>(&'a self, journal: &'a Arc<dyn Journal>, at: Partition) -> BoxFuture<'a, ()> {
        self.0.lock().unwrap().trim(at, Offset(journal.extent(at).next.0));
        future::ready(()).boxed()
    }
}

conformance::tests!(MemoryLab::new());

#[test]
fn an_encoder_that_panics_leaves_the_batch_as_it_was() {
    let mut batch = Batch::default();
    batch.push(b"before");
    let size_bytes = batch.size_bytes();
    let bug = |out: &mut Vec<u8>| {
        out.extend_from_slice(b"half a rec");
        panic!("a bug")
    };
    assert!(catch_unwind(AssertUnwindSafe(|| batch.push_with(bug))).is_err());
    assert_eq!((batch.len(), batch.size_bytes()), (1, size_bytes));

    batch.push(b"after");
    let at = Timestamp::from_micros(0);
    let entries = Entries::new(Offset(0), batch.len(), at, batch.into_bytes(), Offset(0));
    let records: Vec<_> = entries.iter().map(|entry| entry.bytes).collect();
    assert_eq!(records, [&b"before"[..], b"after"]);
}
