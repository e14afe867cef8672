-- Text is ordered and compared by its bytes, as in SQLite, whatever the locale of the database. Indexes then do not
-- depend on the operating system's collations either.

CREATE TABLE tenants (
    name       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
);

CREATE TABLE devices (
    tenant      TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    name        TEXT COLLATE "C" NOT NULL,
    device_type TEXT COLLATE "C" NOT NULL,
    -- The gateway device that speaks for this one, if any.
    parent      TEXT COLLATE "C",
    -- May speak for children.
    is_gateway  BOOLEAN NOT NULL,
    enabled     BOOLEAN NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);
-- How many children a gateway device has.
CREATE INDEX devices_by_parent ON devices (tenant, parent) WHERE parent IS NOT NULL;

-- A token is known by its SHA-256 only.
CREATE TABLE device_tokens (
    hash       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL,
    device     TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, name) ON DELETE CASCADE
);
CREATE INDEX device_tokens_by_device ON device_tokens (tenant, device);

CREATE TABLE user_tokens (
    hash       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    -- 'platform': administers tenants; 'tenant': everything within its own.
    scope      TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL
);

-- One row an episode: from the first record for which a rule's condition held to its end.
CREATE TABLE alerts (
    tenant      TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    since       BIGINT NOT NULL,
    rule        TEXT COLLATE "C" NOT NULL,
    device      TEXT COLLATE "C" NOT NULL,
    severity    TEXT COLLATE "C" NOT NULL,
    phase       TEXT COLLATE "C" NOT NULL,
    fired_at    BIGINT,
    resolved_at BIGINT,
    -- SQLite has no NaN.
    value       DOUBLE PRECISION NOT NULL CHECK (value <> 'NaN'),
    condition   TEXT COLLATE "C" NOT NULL,
    updated_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, fingerprint, since)
);
CREATE INDEX alerts_by_since ON alerts (tenant, since);
-- At most one open alert per fingerprint.
CREATE UNIQUE INDEX alerts_open ON alerts (tenant, fingerprint) WHERE phase IN ('pending', 'firing');
CREATE INDEX alerts_by_age ON alerts (updated_at) WHERE phase IN ('resolved', 'cancelled');

-- Transitions that were acted on: a replay of the journal finds them here.
CREATE TABLE alert_transitions (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant      TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    phase       TEXT COLLATE "C" NOT NULL,
    at          BIGINT NOT NULL,
    value       DOUBLE PRECISION NOT NULL CHECK (value <> 'NaN'),
    applied_at  BIGINT NOT NULL
);
CREATE INDEX alert_transitions_by_alert ON alert_transitions (tenant, fingerprint, at);
CREATE INDEX alert_transitions_by_age ON alert_transitions (applied_at);

CREATE TABLE notifications (
    -- Transition and channel: what a receiver can tell a repetition by.
    idempotency_key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    channel         TEXT COLLATE "C" NOT NULL,
    fingerprint     TEXT COLLATE "C" NOT NULL,
    body            TEXT COLLATE "C" NOT NULL,
    -- What one alert tells a channel goes out in the order in which it was made: the oldest is 'due', those behind it
    -- are 'held' until it is 'sent' or 'dead'.
    state           TEXT COLLATE "C" NOT NULL,
    attempts        BIGINT NOT NULL,
    next_at         BIGINT NOT NULL,
    last_error      TEXT COLLATE "C",
    created_at      BIGINT NOT NULL,
    created_seq     BIGINT NOT NULL
);
CREATE INDEX notifications_due ON notifications (channel, next_at) WHERE state = 'due';
CREATE UNIQUE INDEX notifications_by_creation ON notifications (created_seq);
CREATE INDEX notifications_waiting ON notifications (channel, fingerprint, created_seq)
    WHERE state IN ('due', 'held');
CREATE INDEX notifications_by_age ON notifications (created_at) WHERE state IN ('sent', 'dead');

-- Where consumers of the journal whose results live here have got to; commits with the results.
CREATE TABLE positions (
    consumer  TEXT COLLATE "C" NOT NULL,
    partition BIGINT NOT NULL,
    position  BIGINT NOT NULL,
    PRIMARY KEY (consumer, partition)
);
