# SPDX-License-Identifier: GPL-2.0-or-later
"""The credentials of a service, from inside and from outside (systemd.exec(5), "Credentials").

The service itself finds them as files in ``$CREDENTIALS_DIRECTORY``: :class:`ServiceCredentials`.
An administrator's command has no such directory. :class:`UnitCredentials` asks systemd which
credentials the unit gets, and reads the files that systemd would copy. systemd answers no question
about its credential stores, so this module looks into these few directories itself. Only systemd
decrypts: an encrypted credential "cannot be checked here".
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from consumer_framework.core import secrets
from consumer_framework.settings.credentials import SCHEME, UnavailableError

from . import systemctl

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The unit gives the service its configuration file under this name.
CONFIGURATION = "fm-consumer.toml"
# systemd(1): the first version that knows ImportCredential=.
IMPORTS_SINCE = 254
# systemd.exec(5), "LoadCredential=": the credential stores, in systemd's order. The first is the
# one for administrators. Encrypted credentials are in directories named "credstore.encrypted".
STORES = tuple(
    Path(directory, "credstore") for directory in ("/etc", "/run", "/usr/local/lib", "/usr/lib")
)
_AS_ROOT = "run this as root"


def _full_name(name: str, instance: str) -> str:
    """``ImportCredential=fm-consumer.%i.*`` of the unit imports the names of this form."""
    return f"fm-consumer.{instance}.{name}"


def _how_to_give(name: str, instance: str) -> str:
    return (
        f"write it to {STORES[0]}/{_full_name(name, instance)} (systemd 254 or newer), or add "
        f"LoadCredential={name}:FILE with systemctl edit fm-consumer@{instance}; "
        "systemd-creds encrypt makes encrypted ones"
    )


def _unreadable(file: Path, error: OSError) -> UnavailableError:
    what = f"cannot be read: {file}: {error.strerror}"
    return UnavailableError(what, "credentials are files that the service's own user can read")


def _refuse_to_check(why: str, cure: str = "") -> NoReturn:
    raise UnavailableError(f"cannot be checked here: {why}", cure, elsewhere=True)


class _Files:
    """Reads credentials from the files that :meth:`find` returns."""

    def find(self, name: str) -> Path:
        """Return the file of the credential *name*."""
        raise NotImplementedError

    def text(self, name: str) -> str:
        """Return the text of the credential *name*, which is a secret from now on.

        One newline at its end is left out.
        """
        file = self.find(name)
        try:
            text = file.read_bytes().decode()
        except OSError as error:
            raise _unreadable(file, error) from error
        except UnicodeDecodeError as error:
            what = f"is not UTF-8: byte {error.start} of {file}"
            cure = "save it as UTF-8; binary files fit [tls] alone"
            raise UnavailableError(what, cure) from None
        text = text.removesuffix("\n")
        secrets.hide(text, f"{SCHEME}{name}")
        return text

    def file(self, name: str) -> str:
        """Return the name of the file of the credential *name*, which can be read."""
        file = self.find(name)
        try:
            with file.open("rb") as stream:
                stream.read(1)
        except OSError as error:
            raise _unreadable(file, error) from error
        return str(file)


class ServiceCredentials(_Files):
    """The files that systemd made for this service.

    Args:
        directory: The directory with the files; None where there is none.
        instance: The instance's name.
    """

    def __init__(self, directory: Path | None, instance: str) -> None:
        self._directory = directory
        self._instance = instance

    @classmethod
    def of_process(cls, instance: str) -> ServiceCredentials:
        """Return the credentials that the environment of this process names."""
        named = os.environ.get("CREDENTIALS_DIRECTORY")
        return cls(Path(named) if named else None, instance)

    @property
    def exist(self) -> bool:
        """Return True if systemd made a directory of credentials."""
        return self._directory is not None

    @property
    def configuration(self) -> Path | None:
        """Return the copy of the configuration file that systemd made; None if it made none."""
        if self._directory is None:
            return None
        copy = self._directory / CONFIGURATION
        return copy if os.path.lexists(copy) else None

    def find(self, name: str) -> Path:
        """Return the file of the credential *name*.

        Raises:
            UnavailableError: There is none.
        """
        if self._directory is None:
            what = "cannot be read: there is no $CREDENTIALS_DIRECTORY"
            cure = (
                f"systemd sets it: systemctl start fm-consumer@{self._instance}; by hand, let it "
                "name a directory with a file for each credential"
            )
            raise UnavailableError(what, cure)
        try:
            given = sorted(os.listdir(self._directory))  # noqa: PTH208 -- names, not paths
        except OSError as error:
            raise _unreadable(self._directory, error) from error
        for each in (_full_name(name, self._instance), name):
            if each in given:
                return self._directory / each
        known = ", ".join(n for n in given if n != CONFIGURATION) or "none"
        what = f"was not given to this service; it has {known}"
        raise UnavailableError(what, _how_to_give(name, self._instance))


@dataclass(frozen=True, slots=True)
class CredentialSettings:
    """The settings of a unit that give credentials to its service.

    Attributes:
        files: The paths of ``LoadCredential=`` and ``LoadCredentialEncrypted=``, by the names of
            the credentials. A relative path is one in the credential stores.
        encrypted: The names of ``LoadCredentialEncrypted=``.
        literal: The names of ``SetCredential=`` and ``SetCredentialEncrypted=``.
        imports: The patterns of ``ImportCredential=``.
        too_old: The version of a systemd that does not know ``ImportCredential=``, else 0.
    """

    files: dict[str, str] = field(default_factory=dict)
    encrypted: frozenset[str] = frozenset()
    literal: frozenset[str] = frozenset()
    imports: tuple[str, ...] = ()
    too_old: int = 0

    @classmethod
    def of_unit(cls, unit: str) -> CredentialSettings | None:
        """Ask systemd for the settings of *unit*; None without an answer, or without the unit."""
        # Not "systemctl show": it prints lists of pairs as "[unprintable]".
        known = systemctl.bus_properties(unit)
        if known.get("LoadState") != "loaded":
            return None
        loaded = dict(known.get("LoadCredential", ()))
        encrypted = dict(known.get("LoadCredentialEncrypted", ()))
        literal = (*known.get("SetCredential", ()), *known.get("SetCredentialEncrypted", ()))
        return cls(
            {**encrypted, **loaded},
            frozenset(encrypted) - frozenset(loaded),
            frozenset(name for name, _ in literal),
            tuple(known.get("ImportCredential", ())),
            0 if "ImportCredential" in known else systemctl.version(),
        )


class NoCredentials:
    """The credentials of a file that belongs to no service: none can be read."""

    def text(self, _name: str) -> str:
        """Refuse."""
        _refuse_to_check("there is no $CREDENTIALS_DIRECTORY")

    file = text


class UnitCredentials(_Files):
    """The files that systemd would make a service's credentials of.

    Args:
        ask: Returns the settings of the unit; called when they are needed.
        instance: The instance's name.
        stores: The credential stores.
    """

    def __init__(
        self, ask: Callable[[], CredentialSettings], instance: str, stores: Sequence[Path] = STORES
    ) -> None:
        self._ask = ask
        self._instance = instance
        self._stores = stores

    @cached_property
    def _unit(self) -> CredentialSettings:
        return self._ask()

    def find(self, name: str) -> Path:
        """Return the file that systemd would make the credential *name* of.

        Raises:
            UnavailableError: There is none, or only systemd can read it.
        """
        full = _full_name(name, self._instance)
        found = self._source(full) or self._source(name)
        if found is not None:
            return found
        why = ""
        if self._unit.too_old and (stored := self._stored(full)):
            why = (
                f": {stored} is there, but systemd {self._unit.too_old} is older than "
                f"{IMPORTS_SINCE}, and imports nothing by itself"
            )
        what = f"is given to this service by nothing in its unit{why}"
        raise UnavailableError(what, _how_to_give(name, self._instance))

    def _source(self, full: str) -> Path | None:
        unit = self._unit
        if full in unit.encrypted:
            _refuse_to_check("it is encrypted, for systemd alone")
        if full in unit.literal:
            _refuse_to_check("it is in the unit itself")
        if full in unit.files:
            return self._loaded(unit.files[full])
        if any(fnmatchcase(full, pattern) for pattern in unit.imports):
            return self._stored(full)
        # A directory is loaded as one credential for each of its files, NAME_FILE.
        for name, directory in unit.files.items():
            file = Path(directory, full.removeprefix(f"{name}_"))
            if full.startswith(f"{name}_") and file.is_absolute() and _exists(file):
                return file
        return None

    def _loaded(self, source: str) -> Path:
        found = self._stored(source)
        if found is None:
            what = f"is to be loaded from {STORES[0] / source}, which is not there"
            raise UnavailableError(what, "create that file, or mend LoadCredential= of the unit")
        return found

    def _stored(self, source: str) -> Path | None:
        """Find *source* in the stores; an absolute path stands for itself, whatever the store."""
        for store in self._stores:
            if _exists(store / source):
                return store / source
            if _exists(store.with_name(f"{store.name}.encrypted") / source):
                _refuse_to_check("it is encrypted, for systemd alone")
        return None


def _exists(path: Path) -> bool:
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        _refuse_to_check(f"{path}: {error.strerror}", _AS_ROOT)
    if path.is_socket():
        _refuse_to_check(f"the socket {path} is asked for it")
    if not os.access(path, os.R_OK):
        _refuse_to_check(f"{path}: Permission denied", _AS_ROOT)
    return True
