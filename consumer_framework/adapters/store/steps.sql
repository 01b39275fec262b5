-- SPDX-License-Identifier: GPL-2.0-or-later
-- Version 4: the steps of messages that are done, so that a later run of a message skips them.

CREATE TABLE steps (
    key    BLOB NOT NULL,          -- of the message: see steps.StepTable
    name   TEXT NOT NULL,          -- the author's
    result TEXT NOT NULL,          -- JSON
    until  REAL NOT NULL,          -- seconds since the epoch; kept so long, and while there is a row
    PRIMARY KEY (key, name)
);

-- The first 32 bytes of a row's key tell its message from all others; the rest, if any, tells rows
-- of equal messages apart (records.key_of, writer.put, writer.supersede).
CREATE TRIGGER steps_left AFTER DELETE ON messages BEGIN
    DELETE FROM steps WHERE key IN (OLD.key, substr(OLD.key, 1, 32)) AND NOT EXISTS (
        -- The row of an equal message has the next key, if there is one.
        SELECT 1 FROM (SELECT key FROM messages WHERE queue = OLD.queue
            AND key >= substr(OLD.key, 1, 32) ORDER BY key LIMIT 1) AS equal
        WHERE substr(equal.key, 1, 32) = substr(OLD.key, 1, 32));
END;
