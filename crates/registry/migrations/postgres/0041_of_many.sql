-- What 30 made in SQLite: messages of many that were not sent yet, few among very many rows.
CREATE INDEX notifications_of_many ON notifications (channel, created_seq)
WHERE what IN ('digest', 'group') AND state IN ('gathering', 'due');
