-- What is over is forgotten by age.
CREATE INDEX alert_transitions_by_age ON alert_transitions (applied_at);
CREATE INDEX notifications_by_age ON notifications (created_at) WHERE state IN ('sent', 'dead');
CREATE INDEX alerts_by_age ON alerts (updated_at) WHERE phase IN ('resolved', 'cancelled');
