-- What devices were asked to do. Ids begin with the time: by id is by time.
CREATE TABLE commands (
    tenant       TEXT COLLATE "C" NOT NULL,
    id           TEXT COLLATE "C" NOT NULL,
    device       TEXT COLLATE "C" NOT NULL,
    method       TEXT COLLATE "C" NOT NULL,
    -- JSON, as it was sent.
    params       TEXT COLLATE "C" NOT NULL,
    sent_at      BIGINT NOT NULL,
    expires_at   BIGINT NOT NULL,
    delivered_at BIGINT,
    replied_at   BIGINT,
    -- JSON, as the device sent it.
    reply        TEXT COLLATE "C",
    PRIMARY KEY (tenant, id),
    FOREIGN KEY (tenant, device) REFERENCES devices (tenant, name) ON DELETE CASCADE
);
CREATE INDEX commands_by_device ON commands (tenant, device, id DESC);
CREATE INDEX commands_open ON commands (tenant, device, expires_at) WHERE replied_at IS NULL;
CREATE INDEX commands_by_age ON commands (expires_at);
