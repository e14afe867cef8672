-- 'acknowledged' is a phase of an open alert, too.
DROP INDEX alerts_open;
CREATE UNIQUE INDEX alerts_open ON alerts (fingerprint, tenant) WHERE phase IN ('pending', 'firing', 'acknowledged');
CREATE INDEX alerts_by_fingerprint ON alerts (fingerprint, since);
CREATE INDEX alerts_open_by_device ON alerts (tenant, device) WHERE phase IN ('pending', 'firing', 'acknowledged');

ALTER TABLE alerts ADD COLUMN acknowledged_at BIGINT;
ALTER TABLE alerts ADD COLUMN acknowledged_by TEXT;
ALTER TABLE alerts ADD COLUMN assignee TEXT;
ALTER TABLE alerts ADD COLUMN snoozed_until BIGINT;
-- Who was told that it fires, one target a line; NULL: before this was written down, and so everybody.
ALTER TABLE alerts ADD COLUMN told TEXT;

-- When a fingerprint fired.
DROP INDEX alert_transitions_by_alert;
CREATE INDEX alert_transitions_by_alert ON alert_transitions (fingerprint, at);

-- What people did to an alert and said of it.
CREATE TABLE alert_notes (
    id          TEXT NOT NULL PRIMARY KEY,
    tenant      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    since       BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    who         TEXT NOT NULL,
    -- 'acknowledged', 'unacknowledged', 'commented', 'assigned', 'snoozed'
    what        TEXT NOT NULL,
    words       TEXT NOT NULL
);
CREATE INDEX alert_notes_by_alert ON alert_notes (tenant, fingerprint, since, at);
CREATE INDEX alert_notes_by_age ON alert_notes (at);

-- A silence is in force from `starts_at` to `ends_at`; a maintenance window again every `every_seconds`, up to `until`.
CREATE TABLE silences (
    id            TEXT NOT NULL PRIMARY KEY,
    tenant        TEXT NOT NULL,
    matchers      TEXT NOT NULL,
    starts_at     BIGINT NOT NULL,
    ends_at       BIGINT NOT NULL,
    every_seconds BIGINT,
    until         BIGINT NOT NULL,
    comment       TEXT NOT NULL,
    created_by    TEXT NOT NULL,
    created_at    BIGINT NOT NULL
);
CREATE INDEX silences_by_end ON silences (until);

-- A row for everybody who might have been told of something: told, or told in a message of many, or not, and why.
--   'due', 'held', 'sent', 'dead'   a message of its own
--   'gathering'                     a message of many that still takes them; due at `next_at`
--   'carried'                       told in the message `carrier`
--   'suppressed'                    not told
ALTER TABLE notifications ADD COLUMN tenant TEXT NOT NULL DEFAULT '';
ALTER TABLE notifications ADD COLUMN since BIGINT NOT NULL DEFAULT 0;
-- An address within the channel, if it has several.
ALTER TABLE notifications ADD COLUMN recipient TEXT NOT NULL DEFAULT '';
ALTER TABLE notifications ADD COLUMN what TEXT NOT NULL DEFAULT '';
ALTER TABLE notifications ADD COLUMN reason TEXT;
ALTER TABLE notifications ADD COLUMN carrier TEXT;
ALTER TABLE notifications ADD COLUMN group_key TEXT NOT NULL DEFAULT '';
ALTER TABLE notifications ADD COLUMN members BIGINT NOT NULL DEFAULT 0;
ALTER TABLE notifications ADD COLUMN sent_at BIGINT;
CREATE INDEX notifications_by_alert ON notifications (fingerprint, created_seq);
CREATE INDEX notifications_by_carrier ON notifications (carrier, created_seq) WHERE carrier IS NOT NULL;
DROP INDEX notifications_due;
CREATE INDEX notifications_due ON notifications (channel, next_at) WHERE state IN ('due', 'gathering');
DROP INDEX notifications_by_age;
CREATE INDEX notifications_by_age ON notifications (created_at) WHERE state IN ('sent', 'dead', 'carried', 'suppressed');
CREATE INDEX notifications_dead ON notifications (tenant, created_seq) WHERE state = 'dead';

-- What is to be looked at again, and when.
CREATE TABLE alert_timers (
    id          TEXT NOT NULL PRIMARY KEY,
    at          BIGINT NOT NULL,
    tenant      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    since       BIGINT NOT NULL,
    -- 'step': the next step of an escalation; 'look': what kept people from being told may be over;
    -- 'acknowledged': a person did so; 'unsnooze': the end of a snooze; 'calm': the end of flapping
    kind        TEXT NOT NULL,
    step        BIGINT NOT NULL,
    -- The silence or the alert whose end it waits for.
    waits_for   TEXT,
    targets     TEXT NOT NULL
);
CREATE INDEX alert_timers_by_time ON alert_timers (at);
CREATE INDEX alert_timers_by_alert ON alert_timers (fingerprint);
CREATE INDEX alert_timers_by_cause ON alert_timers (waits_for) WHERE waits_for IS NOT NULL;

-- Token buckets: the time up to which what was sent is paid for.
CREATE TABLE alert_budgets (
    name       TEXT NOT NULL PRIMARY KEY,
    paid_until BIGINT NOT NULL
);

-- Links that were used; each works once.
CREATE TABLE used_links (
    id      TEXT NOT NULL PRIMARY KEY,
    used_at BIGINT NOT NULL
);
CREATE TABLE secrets (
    name   TEXT NOT NULL PRIMARY KEY,
    secret TEXT NOT NULL
);

-- Whoever changes alerts takes this row first: one at a time, whatever the database.
CREATE TABLE alert_turn (
    id   BIGINT NOT NULL PRIMARY KEY,
    turn BIGINT NOT NULL
);
INSERT INTO alert_turn (id, turn) VALUES (1, 0);
