use std::sync::{Arc, Mutex};

use dunlin_journal::{
    Journal, MemoryJournal, Offset, Partition,
    conformance::{self, Lab},
};
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
