-- SPDX-License-Identifier: GPL-2.0-or-later
-- Version 2: the rows of one lane (one ordering key) keep their order. Rows of version 1 have no lane.

ALTER TABLE messages ADD COLUMN lane TEXT NOT NULL DEFAULT '';  -- '' for none
-- The first original, whose place in the order an edited copy has. NULL: the row has its own place.
ALTER TABLE messages ADD COLUMN origin INTEGER;
-- Grows in the order of arrival. Unique among the open rows: all but the superseded ones.
ALTER TABLE messages ADD COLUMN position INTEGER AS (coalesce(origin, id));
-- 1 while an open row of its lane stands before it, else 0. The triggers below keep it current, so
-- that one step finds the rows that may run, however long the lanes are.
ALTER TABLE messages ADD COLUMN waits INTEGER NOT NULL DEFAULT 0;

WITH RECURSIVE originals (id, first) AS (
    SELECT id, parent FROM messages WHERE parent IS NOT NULL
    UNION ALL SELECT f.id, m.parent FROM originals AS f JOIN messages AS m ON m.id = f.first
        WHERE m.parent IS NOT NULL)
    UPDATE messages SET origin = (SELECT min(first) FROM originals WHERE id = messages.id)
    WHERE parent IS NOT NULL;

DROP INDEX messages_by_due;
CREATE INDEX messages_by_due ON messages (due) WHERE state = 'deferred' AND waits = 0;
CREATE INDEX messages_by_lane ON messages (lane, position)
    WHERE lane <> '' AND state <> 'superseded';
CREATE INDEX messages_deferred_by_lane ON messages (lane, position)
    WHERE lane <> '' AND state = 'deferred';
CREATE INDEX messages_quarantined_by_lane ON messages (lane, position)
    WHERE lane <> '' AND state = 'quarantined';
-- Has one entry for each lane whose first row waits for an operator.
CREATE INDEX messages_blocking ON messages (lane)
    WHERE lane <> '' AND state = 'quarantined' AND waits = 0;

-- Updates the new row, and the row behind it: that was the first one where an edited copy comes
-- before it.
CREATE TRIGGER lane_joined AFTER INSERT ON messages WHEN NEW.lane <> '' BEGIN
    UPDATE messages SET waits = EXISTS (
            SELECT 1 FROM messages AS m WHERE m.lane = NEW.lane AND m.lane <> ''
            AND m.state <> 'superseded' AND m.position < messages.position)
        WHERE id IN (NEW.id, (
            SELECT m.id FROM messages AS m WHERE m.lane = NEW.lane AND m.lane <> ''
            AND m.state <> 'superseded' AND m.position > NEW.position
            ORDER BY m.position LIMIT 1));
END;
CREATE TRIGGER lane_left AFTER DELETE ON messages WHEN OLD.lane <> '' AND OLD.waits = 0 BEGIN
    UPDATE messages SET waits = 0 WHERE waits = 1 AND id = (
        SELECT m.id FROM messages AS m WHERE m.lane = OLD.lane AND m.lane <> ''
        AND m.state <> 'superseded' ORDER BY m.position LIMIT 1);
END;
