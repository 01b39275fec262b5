-- SPDX-License-Identifier: GPL-2.0-or-later
-- Version 1 of the store. Applied in one transaction; PRAGMA user_version is set after it.

-- One row for each message that the broker was told to forget.
CREATE TABLE messages (
    -- AUTOINCREMENT: the number of a row that is gone is never given to another message.
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    queue       TEXT NOT NULL,
    key         BLOB NOT NULL,     -- tells the messages of one queue apart: see records.key_of
    state       TEXT NOT NULL CHECK (state IN ('deferred', 'quarantined', 'replaying', 'superseded')),
    message_id  TEXT NOT NULL,     -- '' where the publisher gave none
    exchange    TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    redelivered INTEGER NOT NULL,
    received_at REAL NOT NULL,     -- seconds since the epoch
    properties  TEXT NOT NULL,     -- see properties.pack
    body        BLOB NOT NULL,     -- as received, byte for byte
    due         REAL,              -- seconds since the epoch; NULL unless deferred
    reason      TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    crashes     INTEGER NOT NULL,
    created     REAL NOT NULL,     -- seconds since the epoch
    updated     REAL NOT NULL,
    parent      INTEGER,           -- the row that this one supersedes
    UNIQUE (queue, key)
);
CREATE INDEX messages_by_due ON messages (due) WHERE state = 'deferred';
CREATE INDEX messages_by_age ON messages (state, updated);
CREATE INDEX messages_by_cause ON messages (state, fingerprint);
CREATE INDEX messages_by_parent ON messages (parent) WHERE parent IS NOT NULL;

-- The failures of a message, oldest first.
CREATE TABLE attempts (
    id          INTEGER PRIMARY KEY,
    row_id      INTEGER NOT NULL REFERENCES messages (id) ON DELETE CASCADE,
    at          REAL NOT NULL,
    error       TEXT NOT NULL,
    message     TEXT NOT NULL,
    traceback   TEXT NOT NULL,
    fingerprint TEXT NOT NULL
);
CREATE INDEX attempts_by_row ON attempts (row_id, id);

-- The number and the size of the rows of each state: neither the size limit nor the metrics count rows.
CREATE TABLE totals (
    state TEXT PRIMARY KEY,
    rows  INTEGER NOT NULL,
    bytes INTEGER NOT NULL         -- of bodies
);
INSERT INTO totals VALUES
    ('deferred', 0, 0), ('quarantined', 0, 0), ('replaying', 0, 0), ('superseded', 0, 0);

CREATE TRIGGER count_added AFTER INSERT ON messages BEGIN
    UPDATE totals SET rows = rows + 1, bytes = bytes + length(NEW.body) WHERE state = NEW.state;
END;
CREATE TRIGGER count_removed AFTER DELETE ON messages BEGIN
    UPDATE totals SET rows = rows - 1, bytes = bytes - length(OLD.body) WHERE state = OLD.state;
END;
CREATE TRIGGER count_moved AFTER UPDATE OF state ON messages BEGIN
    UPDATE totals SET rows = rows - 1, bytes = bytes - length(OLD.body) WHERE state = OLD.state;
    UPDATE totals SET rows = rows + 1, bytes = bytes + length(NEW.body) WHERE state = NEW.state;
END;
