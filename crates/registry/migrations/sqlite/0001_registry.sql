CREATE TABLE tenants (
    name       TEXT NOT NULL PRIMARY KEY,
    created_at BIGINT NOT NULL
);

CREATE TABLE devices (
    tenant      TEXT NOT NULL REFERENCES tenants (name),
    name        TEXT NOT NULL,
    device_type TEXT NOT NULL,
    -- The gateway device that speaks for this one, if any.
    parent      TEXT,
    -- May speak for children.
    is_gateway  BOOLEAN NOT NULL,
    enabled     BOOLEAN NOT NULL,
    created_at  BIGINT NOT NULL,
    PRIMARY KEY (tenant, name)
);

-- A token is known by its SHA-256 only.
CREATE TABLE device_tokens (
    hash       TEXT NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL,
    device     TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, name) ON DELETE CASCADE
);
CREATE INDEX device_tokens_by_device ON device_tokens (tenant, device);

CREATE TABLE user_tokens (
    hash       TEXT NOT NULL PRIMARY KEY,
    tenant     TEXT NOT NULL REFERENCES tenants (name),
    -- 'platform': administers tenants; 'tenant': everything within its own.
    scope      TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
