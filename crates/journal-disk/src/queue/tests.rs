use dunlin_journal::Topic;
use futures::FutureExt;

use super::*;

const AT: Partition = Partition { topic: Topic::Telemetry, index: 0 };

fn queue(bytes_max: usize) -> Arc<Queue> {
    Arc::new(Queue::new(bytes_max))
}

fn push(queue: &Arc<Queue>, name: u8, bytes: usize) -> Waiting {
    queue.push(Unqueued { at: AT, place: 0, records: 1, payload: vec![name; bytes].into(), payload_crc: 0 })
}

fn take(queue: &Queue) -> Vec<Pending> {
    match queue.take(Duration::ZERO, Duration::ZERO) {
        Next::Write(group) => group,
        Next::Idle | Next::End => Vec::new(),
    }
}

fn names(group: &[Pending]) -> String {
    group.iter().map(|p| char::from(p.payload[0])).collect()
}

#[test]
fn what_is_beyond_the_bound_waits_in_line_until_there_is_room() {
    let queue = queue(100);
    let _appends = [push(&queue, b'a', 60), push(&queue, b'b', 60), push(&queue, b'c', 10)];
    let group = take(&queue);
    assert_eq!(names(&group), "a", "c does not overtake b");
    assert!(take(&queue).is_empty());
    queue.settled(60, 1);
    assert_eq!(names(&take(&queue)), "bc");
}

#[test]
fn who_leaves_the_line_is_not_written_and_who_is_admitted_is() {
    let queue = queue(100);
    let admitted = push(&queue, b'a', 100);
    let waits = push(&queue, b'b', 1);
    let stays = push(&queue, b'c', 1);
    drop((admitted, waits));
    assert_eq!(names(&take(&queue)), "a");
    queue.settled(100, 1);
    assert_eq!(names(&take(&queue)), "c");
    drop(stays);
}

#[test]
fn a_batch_larger_than_the_bound_goes_alone() {
    let queue = queue(100);
    let _appends = [push(&queue, b'a', 500), push(&queue, b'b', 1)];
    assert_eq!(names(&take(&queue)), "a");
    queue.settled(500, 1);
    assert_eq!(names(&take(&queue)), "b");
}

#[test]
fn a_refusal_answers_all_who_wait_and_all_who_come() {
    let queue = queue(100);
    let full = AppendError::Full { reason: "test".into() };
    let waiting = [push(&queue, b'a', 100), push(&queue, b'b', 100)];
    queue.refuse(full, Health::Closed);
    for append in waiting.into_iter().chain([push(&queue, b'c', 1)]) {
        assert!(matches!(append.now_or_never(), Some(Err(AppendError::Full { .. }))));
    }
    assert_eq!(queue.bytes(), 0);
    queue.accept();
    let _append = push(&queue, b'd', 1);
    assert_eq!(names(&take(&queue)), "d");
}

#[test]
fn a_closed_queue_gives_out_what_it_has_and_takes_no_more() {
    let queue = queue(100);
    let _append = push(&queue, b'a', 1);
    queue.close();
    assert!(matches!(push(&queue, b'b', 1).now_or_never(), Some(Err(AppendError::Closed))));
    assert_eq!(names(&take(&queue)), "a");
    assert!(matches!(queue.take(Duration::from_secs(60), Duration::ZERO), Next::End));
}
