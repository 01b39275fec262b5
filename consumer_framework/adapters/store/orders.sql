-- SPDX-License-Identifier: GPL-2.0-or-later
-- Version 7: the operator who replayed or edited a message last.

-- One line for people, with the order, the operator and the time; '' for none.
ALTER TABLE messages ADD COLUMN ordered_by TEXT NOT NULL DEFAULT '';
