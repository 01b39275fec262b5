-- SPDX-License-Identifier: GPL-2.0-or-later
-- Version 3: the size of a row counts all that it keeps, and damage to a row is noticed.

-- Bytes: body, properties, reason and attempts.
ALTER TABLE messages ADD COLUMN kept INTEGER NOT NULL DEFAULT 0;
-- Of the message as it was received: see records.checksum_of. NULL for rows of older versions.
ALTER TABLE messages ADD COLUMN checksum INTEGER;

UPDATE messages SET kept = length(body) + length(properties) + length(reason) + coalesce(
    (SELECT sum(length(message) + length(traceback)) FROM attempts WHERE row_id = messages.id), 0);

DROP TRIGGER count_added;
DROP TRIGGER count_removed;
DROP TRIGGER count_moved;
CREATE TRIGGER count_added AFTER INSERT ON messages BEGIN
    UPDATE totals SET rows = rows + 1, bytes = bytes + NEW.kept WHERE state = NEW.state;
END;
CREATE TRIGGER count_removed AFTER DELETE ON messages BEGIN
    UPDATE totals SET rows = rows - 1, bytes = bytes - OLD.kept WHERE state = OLD.state;
END;
CREATE TRIGGER count_moved AFTER UPDATE OF state, kept ON messages BEGIN
    UPDATE totals SET rows = rows - 1, bytes = bytes - OLD.kept WHERE state = OLD.state;
    UPDATE totals SET rows = rows + 1, bytes = bytes + NEW.kept WHERE state = NEW.state;
END;
UPDATE totals SET bytes =
    coalesce((SELECT sum(kept) FROM messages WHERE messages.state = totals.state), 0);
