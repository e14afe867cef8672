-- One row an episode: from the first record for which a rule's condition held to its end.
CREATE TABLE alerts (
    tenant      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    since       BIGINT NOT NULL,
    rule        TEXT NOT NULL,
    device      TEXT NOT NULL,
    severity    TEXT NOT NULL,
    phase       TEXT NOT NULL,
    fired_at    BIGINT,
    resolved_at BIGINT,
    value       DOUBLE PRECISION NOT NULL,
    condition   TEXT NOT NULL,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, fingerprint, since)
);
CREATE INDEX alerts_by_since ON alerts (tenant, since);
-- At most one open alert per fingerprint.
CREATE UNIQUE INDEX alerts_open ON alerts (tenant, fingerprint) WHERE phase IN ('pending', 'firing');

-- Transitions that were acted on: a replay of the journal finds them here.
CREATE TABLE alert_transitions (
    id         TEXT NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    phase      TEXT NOT NULL,
    at         BIGINT NOT NULL,
    value      DOUBLE PRECISION NOT NULL,
    applied_at BIGINT NOT NULL
);
CREATE INDEX alert_transitions_by_alert ON alert_transitions (tenant, fingerprint, at);

CREATE TABLE notifications (
    -- Transition and channel: what a receiver can tell a repetition by.
    idempotency_key TEXT NOT NULL PRIMARY KEY,
    channel         TEXT NOT NULL,
    body            TEXT NOT NULL,
    -- 'due', 'sent' or 'dead'
    state           TEXT NOT NULL,
    attempts        BIGINT NOT NULL,
    next_at         BIGINT NOT NULL,
    last_error      TEXT,
    created_at      BIGINT NOT NULL
);
CREATE INDEX notifications_due ON notifications (channel, next_at) WHERE state = 'due';

-- Where consumers of the journal whose results live here have got to; commits with the results.
CREATE TABLE positions (
    consumer  TEXT NOT NULL,
    partition BIGINT NOT NULL,
    position  BIGINT NOT NULL,
    PRIMARY KEY (consumer, partition)
);
