//! Faults that brokers do not have on demand, on librdkafka's own cluster that pretends.

use std::thread::JoinHandle;

use dunlin_journal::{Batch, Partition, Topic};
use prometheus_client::registry::Registry;
use rdkafka::{
    bindings::rd_kafka_test_fatal_error,
    mocking::MockCluster,
    producer::DefaultProducerContext,
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

use super::*;

const T0: Partition = Partition { topic: Topic::Telemetry, index: 0 };

/// An appender on a cluster of three.
struct Bench {
    cluster: MockCluster<'static, DefaultProducerContext>,
    appender: Arc<Appender>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Bench {
    fn new() -> Self {
        let cluster = MockCluster::new(3).unwrap();
        let config = Config {
            brokers: cluster.bootstrap_servers(),
            telemetry_partitions: 1,
            delivery_seconds_max: 3,
            request_seconds_max: 1,
            inflight_bytes_max: 1 << 10,
            ..Config::default()
        };
        for topic in Topic::ALL {
            cluster.create_topic(&config.topic_name(topic), 1, 3).unwrap();
        }
        let places = Arc::new(Places::new(1, |topic| config.topic_name(topic)));
        let metrics = Arc::new(Metrics::new(&mut Registry::default()));
        let appender = Appender::new(&config, |_, _| None, places, watch::Sender::new(0), metrics);
        let client = config.client().unwrap();
        let make = move || producer(&client, &config, 1 << 20);
        let (first, stop) = (make().unwrap(), Arc::new(AtomicBool::new(false)));
        let thread = {
            let (appender, stop) = (appender.clone(), stop.clone());
            thread::spawn(move || appender.run(make, first, &stop))
        };
        Self { cluster, appender, stop, thread: Some(thread) }
    }

    fn append(&self, records: &[&str]) -> oneshot::Receiver<Result<Appended, AppendError>> {
        let mut batch = Batch::default();
        records.iter().for_each(|record| batch.push(record.as_bytes()));
        let place = self.appender.places.find(T0).unwrap();
        self.appender.append(place, batch.len(), batch.into_bytes())
    }

    fn brokers(&self, change: impl Fn(i32)) {
        (1..=3).for_each(change);
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap();
    }
}

#[tokio::test]
async fn too_few_replicas_delay_an_append_and_it_is_there_once() {
    let bench = Bench::new();
    let too_few = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_ENOUGH_REPLICAS;
    bench.cluster.request_errors(RDKafkaApiKey::Produce, &[too_few; 5]);
    for n in 0..10 {
        let appended = bench.append(&["a", "b"]).await.unwrap().unwrap();
        assert_eq!(appended, Appended { first: Offset(n * 2), records: 2 });
    }
}

#[tokio::test]
async fn a_lost_answer_leaves_no_copy() {
    let bench = Bench::new();
    bench.append(&["a"]).await.unwrap().unwrap();
    let lost = RDKafkaRespErr::RD_KAFKA_RESP_ERR_REQUEST_TIMED_OUT;
    bench.cluster.request_errors(RDKafkaApiKey::Produce, &[lost; 3]);
    assert_eq!(bench.append(&["b"]).await.unwrap().unwrap().first, Offset(1));
    assert_eq!(bench.append(&["c"]).await.unwrap().unwrap().first, Offset(2));
}

#[tokio::test]
async fn an_append_without_an_answer_fails_after_its_time_and_later_ones_do_not() {
    let bench = Bench::new();
    bench.append(&["a"]).await.unwrap().unwrap();
    bench.brokers(|id| bench.cluster.broker_down(id).unwrap());
    let error = bench.append(&["b"]).await.unwrap().unwrap_err();
    assert!(matches!(error, AppendError::Unreachable { .. }) && error.is_transient(), "{error}");
    bench.brokers(|id| bench.cluster.broker_up(id).unwrap());
    bench.append(&["c"]).await.unwrap().unwrap();
    assert!(bench.appender.emptied(Duration::ZERO), "nothing is counted as under way any more");
}

#[tokio::test]
async fn a_producer_that_cannot_go_on_is_replaced_and_what_it_had_is_answered() {
    let bench = Bench::new();
    bench.append(&["a"]).await.unwrap().unwrap();
    // Nothing is answered, so that all of it is under way, and most of it waits for room.
    bench.brokers(|id| bench.cluster.broker_down(id).unwrap());
    let text = "x".repeat(300);
    let under_way: Vec<_> = (0..10).map(|_| bench.append(&[&text])).collect();
    let client = bench.appender.client().unwrap();
    // SAFETY: the client lives as long as this handle, and the words are copied.
    let told = unsafe {
        rd_kafka_test_fatal_error(
            client.0.client().native_ptr(),
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER,
            c"a test".as_ptr(),
        )
    };
    assert_eq!(told, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR);
    drop(client);
    let mut under_way = under_way.into_iter();
    let error = under_way.next().unwrap().await.unwrap().unwrap_err();
    assert!(matches!(error, AppendError::Fenced { operation: "produce", .. }), "{error}");
    bench.brokers(|id| bench.cluster.broker_up(id).unwrap());
    let mut firsts = Vec::new();
    for waited in under_way {
        firsts.extend(waited.await.unwrap().ok().map(|appended| appended.first));
    }
    assert!(
        firsts.len() >= 6 && firsts.is_sorted(),
        "what waited goes through the new one, in order: {firsts:?}"
    );
    bench.append(&["b"]).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_appender_that_ends_answers_what_is_under_way() {
    let bench = Bench::new();
    bench.brokers(|id| bench.cluster.broker_down(id).unwrap());
    let text = "x".repeat(300);
    let under_way: Vec<_> = (0..10).map(|_| bench.append(&[&text])).collect();
    bench.appender.close();
    assert!(matches!(bench.append(&["late"]).await.unwrap(), Err(AppendError::Closed)));
    drop(bench);
    for answer in under_way {
        answer.await.unwrap().unwrap_err();
    }
}

#[test]
fn a_batch_of_many_records_may_be_larger_than_each() {
    let mut batch = Batch::default();
    [3, 10, 0, 7].into_iter().for_each(|len| batch.push(&vec![1; len]));
    let bytes = batch.into_bytes();
    assert_eq!(too_large(&bytes, 1000), None);
    assert_eq!(too_large(&bytes, 10), None);
    assert_eq!(too_large(&bytes, 9), Some(10));
}
