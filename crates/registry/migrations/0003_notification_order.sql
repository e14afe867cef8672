-- Notifications of one alert go out in the order in which they were queued.
ALTER TABLE notifications ADD COLUMN number BIGINT NOT NULL DEFAULT 0;
-- Tenant and fingerprint of the alert.
ALTER TABLE notifications ADD COLUMN subject TEXT NOT NULL DEFAULT '';
UPDATE notifications SET number = rowid, subject = idempotency_key;
CREATE UNIQUE INDEX notifications_by_number ON notifications (number);
CREATE INDEX notifications_by_subject ON notifications (channel, subject, number) WHERE state = 'due';
