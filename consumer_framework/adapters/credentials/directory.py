# SPDX-License-Identifier: GPL-2.0-or-later
"""The credentials of this service: ``$CREDENTIALS_DIRECTORY``."""

from __future__ import annotations

import os
from pathlib import Path

from consumer_framework.core.settings.credentials import UnavailableError

from .reading import how_to_give, must_be_readable, names_of, text_of, unreadable

# The unit hands the configuration file over by this name.
CONFIGURATION = "fm-consumer.toml"


class Directory:
    """The files that systemd made for this service.

    Args:
        path: The directory; None where there is none.
        instance: The instance's name.
    """

    def __init__(self, path: Path | None, instance: str) -> None:
        self._path = path
        self._instance = instance

    @classmethod
    def of_service(cls, instance: str) -> Directory:
        """Return the directory that systemd names in the environment."""
        named = os.environ.get("CREDENTIALS_DIRECTORY")
        return cls(Path(named) if named else None, instance)

    @property
    def exists(self) -> bool:
        """Whether there is a directory."""
        return self._path is not None

    @property
    def configuration(self) -> Path | None:
        """The copy of the configuration file that systemd made; None where it made none."""
        if self._path is None:
            return None
        copy = self._path / CONFIGURATION
        return copy if os.path.lexists(copy) else None

    def text(self, name: str) -> str:
        """Return what the credential *name* says, without one newline at its end."""
        return text_of(self.find(name), name)

    def file(self, name: str) -> str:
        """Return the name of the file of the credential *name*."""
        file = self.find(name)
        must_be_readable(file)
        return str(file)

    def find(self, name: str) -> Path:
        """Return the file of the credential *name*.

        Raises:
            UnavailableError: There is none.
        """
        if self._path is None:
            what = "cannot be read: there is no $CREDENTIALS_DIRECTORY"
            cure = (
                f"systemd sets it: systemctl start fm-consumer@{self._instance}; by hand, let it "
                "name a directory with a file for each credential"
            )
            raise UnavailableError(what, cure)
        there = self._names(self._path)
        for each in names_of(name, self._instance):
            if each in there:
                return self._path / each
        known = ", ".join(n for n in there if n != CONFIGURATION) or "none"
        what = f"was not given to this service; it has {known}"
        raise UnavailableError(what, how_to_give(name, self._instance))

    @staticmethod
    def _names(path: Path) -> list[str]:
        try:
            return sorted(os.listdir(path))  # noqa: PTH208 -- names, not paths
        except OSError as error:
            raise unreadable(path, error) from error
