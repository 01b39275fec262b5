# SPDX-License-Identifier: GPL-2.0-or-later
"""What a reload cannot read again: what systemd handed over when the service started.

root's ``fm-consumer reload`` brings the file itself along. Credentials it does not:
systemd makes credentials once, at the start. One of version 260 or newer makes them anew for
``systemctl reload``, with ``RefreshOnReload=credentials`` (systemd.service(5)).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import config
from consumer_framework.adapters.credentials import Directory
from consumer_framework.core.errors import ConfigurationError, Problem
from consumer_framework.core.settings.credentials import UnavailableError

from . import configuration

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CURE_OF_FILE = (
    "run 'fm-consumer reload' as root, which hands the file over, or restart the instance"
)
_CURE = "restart the instance (systemd 260 or newer hands them over again for systemctl reload)"


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What systemd had handed over when somebody looked.

    Attributes:
        file: The configuration file, where systemd's copy of it is read; None where the file
            itself is.
        copied: When the copy was made, in nanoseconds since the epoch.
        credentials: The state of each credential that the configuration names.
    """

    file: Path | None = None
    copied: int = 0
    credentials: Mapping[str, tuple[int, int]] | None = None

    def refuse_stale(self) -> None:
        """Refuse to read a copy that is older than what it is a copy of.

        Raises:
            ConfigurationError: The file was changed since.
        """
        if self.file is not None and _changed(self.file) > self.copied:
            what = "was changed, and cannot be read again: only root may read it"
            raise ConfigurationError(
                Problem("", f"{what}, and the instance has the copy of its start", _CURE_OF_FILE)
            )

    def not_reread(self, now: HandedOver) -> tuple[str, ...]:
        """Say in lines for an operator which credentials are still as they were, and what to do.

        Args:
            now: What systemd has handed over by now.
        """
        before, after = self.credentials or {}, now.credentials or {}
        same = sorted(name for name, state in after.items() if before.get(name) == state)
        if not same:
            return ()
        return (f"these credentials are as they were: {', '.join(same)}; if not, {_CURE}",)


def given(request: Mapping[str, Any], path: Path | None) -> bytes | None:
    """Return what the configuration *path* says, where the order to reload brought it along.

    Args:
        request: The order: ``file`` has the ``path`` and the ``text``, as root read it.
        path: The instance's own; None for none.

    Returns:
        None where the order has none, or has another one, or this user may read it.
    """
    file = request.get("file")
    if not isinstance(file, dict) or path is None or os.access(path, os.R_OK):
        return None
    text = file.get("text")
    if file.get("path") != str(path.absolute()) or not isinstance(text, str):
        return None
    # Bytes that are no UTF-8 came as such, for the error to say so.
    return text.encode(errors="surrogateescape")


def handed_over(path: Path | None, instance: str) -> HandedOver:
    """Look at what systemd has handed over to this instance, whose configuration is *path*."""
    access = configuration.inside(path, instance)
    if path is None:
        return HandedOver()
    copy = access.handed_over if not os.access(path, os.R_OK) else None
    states = {}
    try:
        names = {reference.name for reference in config.references(path, access)}
    except ConfigurationError:
        names = set()
    for name in names:
        try:
            status = Directory.of_service(instance).find(name).stat()
        except (UnavailableError, OSError):
            continue
        states[name] = (status.st_mtime_ns, status.st_ino)
    if copy is None:
        return HandedOver(credentials=states)
    return HandedOver(path, copy.stat().st_mtime_ns, states)


def _changed(file: Path) -> int:
    """When *file* was changed; far in the future where that cannot be seen."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 1 << 63
