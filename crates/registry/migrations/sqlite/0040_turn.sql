-- Whoever changes alerts takes the database's own lock first.
DROP TABLE alert_turn;
