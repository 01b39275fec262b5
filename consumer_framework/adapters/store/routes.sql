-- SPDX-License-Identifier: GPL-2.0-or-later
-- Version 5: the routes of a message, each of which has its own outcome and its own attempts.

-- JSON: a list of [route, ending, until, reason], see attempt.RouteState; '' where there are none.
ALTER TABLE messages ADD COLUMN routes TEXT NOT NULL DEFAULT '';
-- The route that failed; '' in a consumer without routes.
ALTER TABLE attempts ADD COLUMN route TEXT NOT NULL DEFAULT '';
