use dunlin_model::{AlertPhase, Clock, Timestamp};
use dunlin_registry::Registry;
use sqlx::{SqlitePool, sqlite::SqliteConnectOptions};

use crate::alerts::transition;

#[tokio::test]
async fn notifications_of_an_older_version_go_out_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("registry.db");
    let old = SqlitePool::connect_with(SqliteConnectOptions::new().filename(&file).create_if_missing(true))
        .await
        .unwrap();
    let mut before = sqlx::migrate!("./migrations/sqlite");
    before.migrations.to_mut().retain(|m| m.version <= 2);
    before.run(&old).await.unwrap();
    let history = [transition(AlertPhase::Firing, 1, 1), transition(AlertPhase::Resolved, 1, 2)];
    for (t, phase, next_at) in [(&history[1], "resolved", 8), (&history[0], "firing", 9)] {
        sqlx::query("INSERT INTO alert_transitions VALUES ($1, 'default', $2, $3, $4, 81.0, 7)")
            .bind(t.id.to_string())
            .bind(t.fingerprint.to_string())
            .bind(phase)
            .bind(t.at.as_micros())
            .execute(&old)
            .await
            .unwrap();
        sqlx::query("INSERT INTO notifications VALUES ($1, 'the-w', $2, 'due', 1, $3, NULL, 7)")
            .bind(format!("{}-the-w", t.id))
            .bind(phase)
            .bind(next_at)
            .execute(&old)
            .await
            .unwrap();
    }
    old.close().await;

    let clock = Clock::new(|| Timestamp::from_micros(1_700_000_000_000_000));
    let registry = Registry::open_file(&file, clock).await.unwrap();
    for expected in ["firing", "resolved"] {
        let due = registry.due_notifications("the-w", 10).await.unwrap();
        assert_eq!(due.iter().map(|n| n.body.as_str()).collect::<Vec<_>>(), [expected]);
        registry.notifications_sent(&[&due[0].idempotency_key]).await.unwrap();
    }
}
