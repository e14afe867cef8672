use dunlin_model::{RejectReason, Rejected};
use dunlin_pipeline::RejectedCounter;

use super::*;

#[tokio::test]
async fn counts_survive_a_restart() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let refuse = async |tenant: &str, reason| {
        let refused = Rejected {
            tenant: tenant.into(),
            device: "d".into(),
            received_at: at(0),
            reason,
            detail: "no".into(),
            source: "mqtt:v1/telemetry".into(),
            payload: vec![1, 2, 3],
        };
        append_bytes(&journal, REJECTED, &refused.encode()).await;
    };
    refuse("a", RejectReason::InvalidValue).await;
    refuse("a", RejectReason::InvalidValue).await;
    refuse("b", RejectReason::TooLarge).await;
    RejectedCounter::start(journal.clone(), dir.path()).unwrap().stop().await;
    refuse("a", RejectReason::TooLarge).await;
    let counter = RejectedCounter::start(journal.clone(), dir.path()).unwrap();
    let view = counter.view();
    counter.stop().await;
    let counts: Vec<_> = view.counts().into_iter().collect();
    assert_eq!(
        counts,
        [
            (("a".to_owned(), RejectReason::InvalidValue), 2),
            (("a".to_owned(), RejectReason::TooLarge), 1),
            (("b".to_owned(), RejectReason::TooLarge), 1),
        ]
    );
    assert_eq!(journal.position("rejected-counter", REJECTED), Some(Offset(4)));
}

#[tokio::test]
async fn a_record_that_is_laid_aside_again_after_a_crash_counts_once() {
    let (dir, journal) = (tempfile::tempdir().unwrap(), journal());
    let lay_aside = async |source: &str| {
        let record = Rejected {
            tenant: String::new(),
            device: String::new(),
            received_at: at(0),
            reason: RejectReason::Unprocessable,
            detail: "no record".into(),
            source: source.into(),
            payload: vec![0xff],
        };
        append_bytes(&journal, REJECTED, &record.encode()).await;
    };
    let counted = async || {
        let counter = RejectedCounter::start(journal.clone(), dir.path()).unwrap();
        let view = counter.view();
        counter.stop().await;
        let (position, counts) = view.counts_up_to();
        assert_eq!(position, journal.extent(REJECTED).next);
        counts.into_values().sum::<u64>()
    };
    for source in ["store:telemetry/0@3", "store:telemetry/0@9", "store:telemetry/1@3"] {
        lay_aside(source).await;
    }
    assert_eq!(counted().await, 3);
    // Read again from before both, and the rules have an opinion of their own.
    for source in ["store:telemetry/0@3", "store:telemetry/0@9", "pipeline:telemetry/0@9"] {
        lay_aside(source).await;
    }
    assert_eq!(counted().await, 4);
    // A device's own words are no place in the journal.
    for source in ["mqtt:store:telemetry/0@3", "mqtt:store:telemetry/0@3", "store:telemetry/0@10"] {
        lay_aside(source).await;
    }
    assert_eq!(counted().await, 7);
}
