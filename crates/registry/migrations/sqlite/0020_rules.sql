-- Every text that a rule ever had; numbers go on after a rule was deleted.
CREATE TABLE rule_versions (
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    name       TEXT NOT NULL,
    version    BIGINT NOT NULL,
    text       TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, name, version)
);

-- Which of them is in force.
CREATE TABLE rules (
    tenant     TEXT NOT NULL,
    name       TEXT NOT NULL,
    version    BIGINT NOT NULL,
    enabled    BOOLEAN NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (tenant, name),
    FOREIGN KEY (tenant, name, version) REFERENCES rule_versions (tenant, name, version)
);

-- What people say of a stretch of event time: whether the rule is right to fire there.
CREATE TABLE rule_marks (
    tenant     TEXT NOT NULL,
    rule       TEXT NOT NULL,
    device     TEXT NOT NULL,
    from_at    BIGINT NOT NULL,
    to_at      BIGINT NOT NULL,
    is_false   BOOLEAN NOT NULL,
    marked_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, rule, device, from_at)
);

-- The last back-test of a rule.
CREATE TABLE rule_measures (
    tenant      TEXT NOT NULL,
    rule        TEXT NOT NULL,
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
