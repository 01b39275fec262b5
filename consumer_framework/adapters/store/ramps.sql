-- SPDX-License-Identifier: GPL-2.0-or-later
-- Version 6: the replay in stages that is under way or was interrupted, so that it can go on.

-- At most one row.
CREATE TABLE ramp (
    id      INTEGER PRIMARY KEY CHECK (id = 1),
    plan    TEXT NOT NULL,          -- JSON: the fields of ramp.Ramp
    started REAL NOT NULL           -- seconds since the epoch
);
CREATE TABLE ramp_rows (
    position INTEGER PRIMARY KEY,   -- in the order in which they run, from 0
    row_id   INTEGER NOT NULL,      -- the message may be gone
    result   TEXT                   -- see disposition.Words.in_replay; NULL: it has not run
);
