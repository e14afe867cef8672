use dunlin_model::{Reading, Readings};

use super::*;

fn record(id: MessageId, received: i64, value: f64) -> Record<'static> {
    Record {
        tenant: "default",
        device: "d",
        device_type: "default",
        message_id: id,
        received_at: Timestamp::from_micros(received * 1_000_000),
        device_time: None,
        time: Timestamp::from_micros(received * 1_000_000),
        time_source: TimeSource::Server,
        readings: Readings::from_iter([Reading { metric: "t", value: ValueRef::F64(value) }]),
    }
}

fn answers(records: &[Record<'_>]) -> Vec<bool> {
    let mut ids = RecentIds::new(RECORDS_MAX);
    records.iter().zip(0..).map(|(r, n)| ids.observe(r, device_hash(r.tenant, r.device), Offset(n))).collect()
}

#[test]
fn a_retry_is_a_copy_of_its_first_delivery() {
    use MessageId::*;
    let r = |id| record(id, 0, 1.0);
    assert_eq!(
        answers(&[r(First(7)), r(Retry(7)), r(Retry(7)), r(Retry(8)), r(Retry(8))]),
        [false, true, true, false, true]
    );
    assert_eq!(
        answers(&[r(First(7)), r(First(7)), r(None), r(None)]),
        [false; 4],
        "packet ids are used again"
    );
    assert_eq!(answers(&[r(Given(7)), r(Retry(7)), r(Given(7))]), [false, false, true], "ids of two kinds");
}

#[test]
fn the_same_reading_of_the_same_instant_is_a_copy() {
    let at = |value| Record { time_source: TimeSource::Device, ..record(MessageId::First(1), 0, value) };
    assert_eq!(answers(&[at(1.0), at(2.0), at(1.0)]), [false, false, true]);
    assert_eq!(answers(&[record(MessageId::None, 0, 1.0), record(MessageId::None, 0, 1.0)]), [false, false]);
}

#[test]
fn memory_is_bounded_by_records_and_by_time() {
    let mut ids = RecentIds::new(4);
    for n in 0..100 {
        ids.observe(&record(MessageId::Given(n), 0, 0.0), 1, Offset(n));
    }
    assert!(ids.len() <= 5 && ids.order.len() <= 5);
    assert!(ids.observe(&record(MessageId::Given(98), 0, 0.0), 1, Offset(100)));
    assert!(!ids.observe(&record(MessageId::Given(3), 0, 0.0), 1, Offset(101)));
    use MessageId::Given;
    assert_eq!(answers(&[record(Given(1), 0, 0.0), record(Given(1), 601, 0.0)]), [false, false]);
}

#[test]
fn a_primed_start_answers_as_the_first_run_did() {
    let records: Vec<_> = (0..200u64)
        .map(|n| match n % 3 {
            0 => record(MessageId::First(n % 17), n as i64, 0.0),
            1 => record(MessageId::Retry(n % 13), n as i64, 0.0),
            _ => record(MessageId::Given(n % 19), n as i64, 0.0),
        })
        .collect();
    let run = |from: u64, to: u64, ids: &mut RecentIds| -> Vec<bool> {
        (from..to).map(|n| ids.observe(&records[n as usize], 1, Offset(n))).collect()
    };
    let whole = run(0, 200, &mut RecentIds::new(32));
    for cut in [1, 31, 32, 33, 100, 199] {
        let mut ids = RecentIds::new(32);
        let from = ids.primed_from(Offset(cut), Offset::ZERO);
        run(from.0, cut, &mut ids);
        assert_eq!(run(cut, 200, &mut ids), whole[cut as usize..], "cut at {cut}");
    }
}
