-- All that the files up to this number made in SQLite. Text is ordered and compared by its bytes, as there, whatever
-- the locale of the database; indexes then do not depend on the operating system's collations either.

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

-- Every text that a rule ever had; numbers go on after a rule was deleted.
CREATE TABLE rule_versions (
    tenant     TEXT COLLATE "C" NOT NULL REFERENCES tenants (name),
    name       TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    text       TEXT COLLATE "C" NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, name, version)
);

-- Which of them is in force.
CREATE TABLE rules (
    tenant     TEXT COLLATE "C" NOT NULL,
    name       TEXT COLLATE "C" NOT NULL,
    version    BIGINT NOT NULL,
    enabled    BOOLEAN NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, name),
    FOREIGN KEY (tenant, name, version) REFERENCES rule_versions (tenant, name, version)
);

-- What people say of a stretch of event time: whether the rule is right to fire there.
CREATE TABLE rule_marks (
    tenant     TEXT COLLATE "C" NOT NULL,
    rule       TEXT COLLATE "C" NOT NULL,
    device     TEXT COLLATE "C" NOT NULL,
    from_at    BIGINT NOT NULL,
    to_at      BIGINT NOT NULL,
    is_false   BOOLEAN NOT NULL,
    marked_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, rule, device, from_at)
);

-- The last back-test of a rule.
CREATE TABLE rule_measures (
    tenant      TEXT COLLATE "C" NOT NULL,
    rule        TEXT COLLATE "C" NOT NULL,
    -- 0: of a file.
    version     BIGINT NOT NULL,
    from_at     BIGINT NOT NULL,
    to_at       BIGINT NOT NULL,
    fired       BIGINT NOT NULL,
    right_count BIGINT NOT NULL,
    false_count BIGINT NOT NULL,
    measured_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, rule)
);

-- One row an episode: from the first record for which a rule's condition held to its end.
CREATE TABLE alerts (
    tenant          TEXT COLLATE "C" NOT NULL,
    fingerprint     TEXT COLLATE "C" NOT NULL,
    since           BIGINT NOT NULL,
    rule            TEXT COLLATE "C" NOT NULL,
    device          TEXT COLLATE "C" NOT NULL,
    severity        TEXT COLLATE "C" NOT NULL,
    phase           TEXT COLLATE "C" NOT NULL,
    fired_at        BIGINT,
    resolved_at     BIGINT,
    -- SQLite has no NaN.
    value           DOUBLE PRECISION NOT NULL CHECK (value <> 'NaN'),
    condition       TEXT COLLATE "C" NOT NULL,
    updated_at      BIGINT NOT NULL,
    acknowledged_at BIGINT,
    acknowledged_by TEXT COLLATE "C",
    assignee        TEXT COLLATE "C",
    snoozed_until   BIGINT,
    -- Who was told that it fires, one target a line; NULL: before this was written down, and so everybody.
    told            TEXT COLLATE "C",
    PRIMARY KEY (tenant, fingerprint, since)
);
CREATE INDEX alerts_by_since ON alerts (tenant, since);
CREATE INDEX alerts_by_fingerprint ON alerts (fingerprint, since);
-- At most one open alert per fingerprint.
CREATE UNIQUE INDEX alerts_open ON alerts (fingerprint, tenant) WHERE phase IN ('pending', 'firing', 'acknowledged');
CREATE INDEX alerts_open_by_device ON alerts (tenant, device) WHERE phase IN ('pending', 'firing', 'acknowledged');
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
-- When a fingerprint fired.
CREATE INDEX alert_transitions_by_alert ON alert_transitions (fingerprint, at);
CREATE INDEX alert_transitions_by_age ON alert_transitions (applied_at);

-- What people did to an alert and said of it.
CREATE TABLE alert_notes (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant      TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    since       BIGINT NOT NULL,
    at          BIGINT NOT NULL,
    who         TEXT COLLATE "C" NOT NULL,
    -- 'acknowledged', 'unacknowledged', 'commented', 'assigned', 'snoozed'
    what        TEXT COLLATE "C" NOT NULL,
    words       TEXT COLLATE "C" NOT NULL
);
CREATE INDEX alert_notes_by_alert ON alert_notes (tenant, fingerprint, since, at);
CREATE INDEX alert_notes_by_age ON alert_notes (at);

-- A silence is in force from `starts_at` to `ends_at`; a maintenance window again every `every_seconds`, up to `until`.
CREATE TABLE silences (
    id            TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant        TEXT COLLATE "C" NOT NULL,
    matchers      TEXT COLLATE "C" NOT NULL,
    starts_at     BIGINT NOT NULL,
    ends_at       BIGINT NOT NULL,
    every_seconds BIGINT,
    until         BIGINT NOT NULL,
    comment       TEXT COLLATE "C" NOT NULL,
    created_by    TEXT COLLATE "C" NOT NULL,
    created_at    BIGINT NOT NULL
);
CREATE INDEX silences_by_end ON silences (until);

-- A row for everybody who might have been told of something: told, or told in a message of many, or not, and why.
--   'due', 'held', 'sent', 'dead'   a message of its own; what one alert tells a target goes out in the order in which
--                                   it was made: the oldest is 'due', those behind it are 'held' until it is 'sent' or 'dead'
--   'gathering'                     a message of many that still takes them; due at `next_at`
--   'carried'                       told in the message `carrier`
--   'suppressed'                    not told
CREATE TABLE notifications (
    -- What a receiver can tell a repetition by.
    idempotency_key TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tenant          TEXT COLLATE "C" NOT NULL,
    fingerprint     TEXT COLLATE "C" NOT NULL,
    since           BIGINT NOT NULL,
    channel         TEXT COLLATE "C" NOT NULL,
    -- An address within the channel, if it has several.
    recipient       TEXT COLLATE "C" NOT NULL,
    what            TEXT COLLATE "C" NOT NULL,
    body            TEXT COLLATE "C" NOT NULL,
    group_key       TEXT COLLATE "C" NOT NULL,
    state           TEXT COLLATE "C" NOT NULL,
    reason          TEXT COLLATE "C",
    carrier         TEXT COLLATE "C",
    members         BIGINT NOT NULL,
    attempts        BIGINT NOT NULL,
    next_at         BIGINT NOT NULL,
    last_error      TEXT COLLATE "C",
    created_at      BIGINT NOT NULL,
    created_seq     BIGINT NOT NULL,
    sent_at         BIGINT
);
CREATE UNIQUE INDEX notifications_by_creation ON notifications (created_seq);
CREATE INDEX notifications_by_alert ON notifications (fingerprint, created_seq);
CREATE INDEX notifications_by_carrier ON notifications (carrier, created_seq) WHERE carrier IS NOT NULL;
CREATE INDEX notifications_waiting ON notifications (channel, fingerprint, created_seq) WHERE state IN ('due', 'held');
CREATE INDEX notifications_due ON notifications (channel, next_at) WHERE state IN ('due', 'gathering');
CREATE INDEX notifications_dead ON notifications (tenant, created_seq) WHERE state = 'dead';
CREATE INDEX notifications_by_age ON notifications (created_at) WHERE state IN ('sent', 'dead', 'carried', 'suppressed');

-- What is to be looked at again, and when.
CREATE TABLE alert_timers (
    id          TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    at          BIGINT NOT NULL,
    tenant      TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    since       BIGINT NOT NULL,
    -- 'step': the next step of an escalation; 'look': what kept people from being told may be over;
    -- 'acknowledged': a person did so; 'unsnooze': the end of a snooze; 'calm': the end of flapping
    kind        TEXT COLLATE "C" NOT NULL,
    step        BIGINT NOT NULL,
    -- The silence or the alert whose end it waits for.
    waits_for   TEXT COLLATE "C",
    targets     TEXT COLLATE "C" NOT NULL
);
CREATE INDEX alert_timers_by_time ON alert_timers (at);
CREATE INDEX alert_timers_by_alert ON alert_timers (fingerprint);
CREATE INDEX alert_timers_by_cause ON alert_timers (waits_for) WHERE waits_for IS NOT NULL;

-- Token buckets: the time up to which what was sent is paid for.
CREATE TABLE alert_budgets (
    name       TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    paid_until BIGINT NOT NULL
);

-- Links that were used; each works once.
CREATE TABLE used_links (
    id      TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    used_at BIGINT NOT NULL
);

CREATE TABLE secrets (
    name   TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    secret TEXT COLLATE "C" NOT NULL
);

-- Where consumers of the journal whose results live here have got to; commits with the results.
CREATE TABLE positions (
    consumer  TEXT COLLATE "C" NOT NULL,
    partition BIGINT NOT NULL,
    position  BIGINT NOT NULL,
    PRIMARY KEY (consumer, partition)
);

-- That this database is a copy which `dunlin migrate` has made and no server has used yet.
CREATE TABLE copied_from (
    -- When the first tenant of the original was added: no two registries have that in common.
    registry BIGINT NOT NULL,
    -- Nobody used the original while it was copied.
    is_whole BOOLEAN NOT NULL
);
