# SPDX-License-Identifier: GPL-2.0-or-later
"""The account that a service runs as, and the files that it may read."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import systemctl

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_PROPERTIES = ("LoadState", "User", "Group", "DynamicUser", "SupplementaryGroups")


@dataclass(frozen=True, slots=True)
class Account:
    """A user and its groups.

    Attributes:
        name: The user's name.
        uid: The user's number; None for a dynamic user, which owns no file.
        gids: The numbers of its groups.
    """

    name: str
    uid: int | None
    gids: frozenset[int]

    def obstacle(self, path: Path) -> Path | None:
        """Return the file or directory whose owner and mode keep this account from reading *path*.

        Returns:
            *path* itself or a directory above it; None if there is none, or if this process
            cannot look at them.
        """
        if self.uid == 0:
            return None
        try:
            real = path.resolve()
            passed = ((p, stat.S_IXOTH) for p in reversed(real.parents))
            for each, needed in (*passed, (real, stat.S_IROTH)):
                if not self._may(each.stat(), needed):
                    return each
        except OSError:
            pass
        return None

    def _may(self, status: os.stat_result, needed: int) -> bool:
        # The bit for others is *needed*; the same bits of group and owner stand before it.
        if status.st_uid == self.uid:
            needed <<= 6
        elif status.st_gid in self.gids:
            needed <<= 3
        return bool(status.st_mode & needed)


def service_account(unit: str, default_user: str) -> Account:
    """Return the account that systemd runs *unit* as.

    Args:
        unit: The unit's name.
        default_user: The dynamic user of the shipped unit, for a systemd that does not answer or
            knows no such unit.
    """
    said = systemctl.properties(unit, *_PROPERTIES)
    if said.get("LoadState") != "loaded":
        return Account(default_user, None, frozenset())
    name = said.get("User") or "root"
    groups = said.get("SupplementaryGroups", "").split()
    if said.get("DynamicUser") == "yes":
        return Account(name, None, _numbers(groups))
    return _fixed(name, [*groups, *said.get("Group", "").split()])


def _fixed(name: str, groups: Iterable[str]) -> Account:
    try:
        entry = pwd.getpwuid(int(name)) if name.isdigit() else pwd.getpwnam(name)
    except KeyError:
        return Account(name, None, _numbers(groups))
    own = os.getgrouplist(entry.pw_name, entry.pw_gid)
    return Account(entry.pw_name, entry.pw_uid, frozenset(own) | _numbers(groups))


def _numbers(groups: Iterable[str]) -> frozenset[int]:
    found = set()
    for name in groups:
        try:
            found.add(int(name) if name.isdigit() else grp.getgrnam(name).gr_gid)
        except KeyError:
            continue
    return frozenset(found)
