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
