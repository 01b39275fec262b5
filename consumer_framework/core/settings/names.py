# SPDX-License-Identifier: GPL-2.0-or-later
"""Which names an instance may have."""

from __future__ import annotations

import re

from consumer_framework.core.errors import Problem

# systemd makes the user name `fm-NAME` of it, and refuses what is no user name (systemd.exec(5),
# "User/Group Name Syntax"): letters, digits, "_" and "-", 31 characters at most.
INSTANCE_NAME = re.compile(r"[A-Za-z0-9_-]{1,28}", re.ASCII)


def instance_name_problem(name: str) -> Problem | None:
    """Say what is wrong with *name* as the NAME in ``fm-consumer@NAME``, if anything is."""
    if INSTANCE_NAME.fullmatch(name):
        return None
    return Problem(
        "",
        f"{name!r} is no instance name",
        'use 1 to 28 of the characters a-z, A-Z, 0-9, "_" and "-" '
        "(the service runs as the user fm-NAME), or --conf FILE for a file anywhere",
    )
