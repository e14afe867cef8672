-- How many children a gateway device has.
CREATE INDEX devices_by_parent ON devices (tenant, parent) WHERE parent IS NOT NULL;
