-- What one alert tells a channel goes out in the order in which it was made: the oldest is 'due', those behind it are
-- 'held' until it is 'sent' or 'dead'.
ALTER TABLE notifications ADD COLUMN fingerprint TEXT NOT NULL DEFAULT '';
ALTER TABLE notifications ADD COLUMN created_seq BIGINT NOT NULL DEFAULT 0;

-- A key is the transition's id, 16 digits, and the channel.
UPDATE notifications SET fingerprint = COALESCE(
    (SELECT t.fingerprint FROM alert_transitions AS t WHERE t.id = substr(notifications.idempotency_key, 1, 16)),
    idempotency_key);
UPDATE notifications SET created_seq = numbered.seq
FROM (SELECT n.idempotency_key AS key, ROW_NUMBER() OVER (ORDER BY n.created_at, t.at, t.phase, n.idempotency_key) AS seq
      FROM notifications AS n LEFT JOIN alert_transitions AS t ON t.id = substr(n.idempotency_key, 1, 16)) AS numbered
WHERE numbered.key = notifications.idempotency_key;

CREATE UNIQUE INDEX notifications_by_creation ON notifications (created_seq);
CREATE INDEX notifications_waiting ON notifications (channel, fingerprint, created_seq) WHERE state IN ('due', 'held');

UPDATE notifications SET state = 'held'
WHERE state = 'due' AND EXISTS (
    SELECT 1 FROM notifications AS older
    WHERE older.channel = notifications.channel AND older.fingerprint = notifications.fingerprint
      AND older.state IN ('due', 'held') AND older.created_seq < notifications.created_seq);
