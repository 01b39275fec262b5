# SPDX-License-Identifier: GPL-2.0-or-later
"""Credentials as seen from outside of the service, by an administrator."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.core.settings.credentials import UnavailableError

from .reading import STORE, how_to_give, must_be_readable, names_of, text_of
from .unit import IMPORTS_SINCE

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from .unit import Handed

# systemd.exec(5), "LoadCredential=": the credential stores, in systemd's order; those with
# encrypted credentials have names of their own.
STORES = tuple(
    map(
        Path, ("/etc/credstore", "/run/credstore", "/usr/local/lib/credstore", "/usr/lib/credstore")
    )
)
_AS_ROOT = "run this as root"
_NOWHERE = "cannot be checked here: there is no $CREDENTIALS_DIRECTORY"


class Nowhere:
    """For a file that belongs to no service: every credential is somewhere else."""

    def text(self, _name: str) -> str:
        """Say that there is none."""
        raise _not_here(_NOWHERE)

    def file(self, _name: str) -> str:
        """Say that there is none."""
        raise _not_here(_NOWHERE)


class Elsewhere:
    """Looks where systemd would take a service's credentials from.

    Args:
        look: Says what the unit hands over; called when that is asked for.
        instance: The instance's name.
        stores: The credential stores.
    """

    def __init__(
        self, look: Callable[[], Handed], instance: str, stores: Sequence[Path] = STORES
    ) -> None:
        self._look = look
        self._instance = instance
        self._stores = stores

    @cached_property
    def _handed(self) -> Handed:
        return self._look()

    def text(self, name: str) -> str:
        """Return what the service would find in the credential *name*."""
        return text_of(self.find(name), name)

    def file(self, name: str) -> str:
        """Return the file that systemd would make the credential *name* of."""
        file = self.find(name)
        must_be_readable(file)
        return str(file)

    def find(self, name: str) -> Path:
        """Return the file that systemd would make the credential *name* of.

        Raises:
            UnavailableError: There is none, or it can be seen by systemd alone.
        """
        for each in names_of(name, self._instance):
            found = self._source(each)
            if found is not None:
                return found
        what = f"is given to this service by nothing in its unit{self._why_not(name)}"
        raise UnavailableError(what, how_to_give(name, self._instance))

    def _source(self, full: str) -> Path | None:
        handed = self._handed
        if full in handed.encrypted:
            raise _not_here("cannot be checked here: it is encrypted, for systemd alone")
        if full in handed.literal:
            raise _not_here("cannot be checked here: it is in the unit itself")
        if full in handed.files:
            return self._loaded(full, handed.files[full])
        if handed.can_import and handed.imports_name(full):
            return self._stored(full)
        return self._in_directory(full)

    def _loaded(self, full: str, source: str) -> Path:
        # A relative name, and none, are of the credential stores.
        if source.startswith("/"):
            if _exists(Path(source)):
                return Path(source)
            what = f"is to be loaded from {source}, which is not there"
            raise UnavailableError(what, "create that file, or mend LoadCredential= of the unit")
        found = self._stored(source or full)
        if found is None:
            what = f"is to be loaded from {STORE}/{source or full}, which is not there"
            raise UnavailableError(what, "create that file")
        return found

    def _in_directory(self, full: str) -> Path | None:
        """A directory is loaded as one credential for each of its files: ``NAME_FILE``."""
        for name, source in self._handed.files.items():
            file = Path(source) / full.removeprefix(f"{name}_")
            if full.startswith(f"{name}_") and source.startswith("/") and _exists(file):
                return file
        return None

    def _stored(self, full: str) -> Path | None:
        for store in self._stores:
            if _exists(store / full):
                return store / full
            if _exists(store.with_name(f"{store.name}.encrypted") / full):
                raise _not_here("cannot be checked here: it is encrypted, for systemd alone")
        return None

    def _why_not(self, name: str) -> str:
        """What an old systemd leaves lying in the stores."""
        full, _ = names_of(name, self._instance)
        if self._handed.can_import or self._stored(full) is None:
            return ""
        return (
            f": {self._stored(full)} is there, but systemd {self._handed.version} is older than "
            f"{IMPORTS_SINCE}, and imports nothing by itself"
        )


def _exists(path: Path) -> bool:
    """Whether there is such a file.

    Raises:
        UnavailableError: This user cannot look, or it is no file, but a socket to ask.
    """
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _not_here(f"cannot be checked here: {path}: {error.strerror}", _AS_ROOT) from error
    if path.is_socket():
        raise _not_here(f"cannot be checked here: the socket {path} is asked for it")
    if not os.access(path, os.R_OK):
        raise _not_here(f"cannot be checked here: {path}: Permission denied", _AS_ROOT)
    return True


def _not_here(what: str, cure: str = "") -> UnavailableError:
    return UnavailableError(what, cure, elsewhere=True)
