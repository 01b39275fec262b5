# SPDX-License-Identifier: GPL-2.0-or-later
"""The journal's priorities for :mod:`logging`'s levels."""

from __future__ import annotations

import logging

# syslog(3).
_PRIORITIES = {logging.CRITICAL: 2, logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6}
_DEBUG = 7


def priority_of(level: int) -> int:
    """Return the priority of one of :mod:`logging`'s levels, or of one between them."""
    return next((number for lowest, number in _PRIORITIES.items() if level >= lowest), _DEBUG)
