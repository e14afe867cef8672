use std::{sync::Arc, time::Duration};

use dunlin_tsdb::{
    MemoryDisk, MemoryTsdb, Tsdb,
    conformance::{Lab, tests},
};
use futures::future::{BoxFuture, FutureExt};

#[derive(Default)]
struct MemoryLab(MemoryDisk);

impl Lab for MemoryLab {
    fn open(&self, retention: Option<Duration>) -> BoxFuture<'_, Arc<dyn Tsdb>> {
        let store = MemoryTsdb::open(self.0.clone(), retention);
        async move { Arc::new(store) as Arc<dyn Tsdb> }.boxed()
    }
}

tests!(MemoryLab::default());
