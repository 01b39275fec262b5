# SPDX-License-Identifier: GPL-2.0-or-later
"""Credentials as seen from outside of the service, by an administrator.

The credentials of this service: ``$CREDENTIALS_DIRECTORY``.

Credentials as files: how they are called, and what they say.

Which credentials a unit hands to its service, as its text says (systemd.exec(5)).

systemd's credentials: in the service they are files, elsewhere they are where systemd looks.

See systemd.exec(5), "Credentials". systemd decrypts; nothing here does.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from consumer_framework.core import secrets
from consumer_framework.settings.credentials import SCHEME, UnavailableError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

# The first one of systemd.exec(5), "ImportCredential=", that is meant for administrators.
STORE = Path("/etc/credstore")


def names_of(name: str, instance: str) -> tuple[str, ...]:
    """What systemd may call the credential that a configuration calls *name*.

    ``ImportCredential=fm-consumer.%i.*`` of the unit takes those that carry the instance's name.
    """
    return f"fm-consumer.{instance}.{name}", name


def text_of(file: Path, name: str) -> str:
    """Return what *file* says, which is a secret from now on.

    Raises:
        UnavailableError: It cannot be read, or is not UTF-8.
    """
    try:
        text = file.read_bytes().decode()
    except OSError as error:
        raise unreadable(file, error) from error
    except UnicodeDecodeError as error:
        what = f"is not UTF-8: byte {error.start} of {file}"
        raise UnavailableError(what, "save it as UTF-8; binary files fit [tls] alone") from None
    text = text.removesuffix("\n")
    secrets.keep(text, f"{SCHEME}{name}")
    return text


def must_be_readable(file: Path) -> None:
    """See whether *file* can be read.

    Raises:
        UnavailableError: It cannot.
    """
    try:
        with file.open("rb") as stream:
            stream.read(1)
    except OSError as error:
        raise unreadable(file, error) from error


def unreadable(file: Path, error: OSError) -> UnavailableError:
    """Say why *file* cannot be read."""
    what = f"cannot be read: {file}: {error.strerror}"
    return UnavailableError(what, "credentials are files that the service's own user can read")


def how_to_give(name: str, instance: str) -> str:
    """How an administrator gives a credential to an instance."""
    full, _ = names_of(name, instance)
    return (
        f"write it to {STORE}/{full} (systemd 254 or newer), or add LoadCredential={name}:FILE "
        f"with systemctl edit fm-consumer@{instance}; systemd-creds encrypt makes encrypted ones"
    )


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


# Seconds in which systemctl answers, or is not waited for.
_PATIENCE = 5
# systemd(1): the first version that knows ImportCredential=.
IMPORTS_SINCE = 254


@dataclass(frozen=True, slots=True)
class Handed:
    """The credentials of a service.

    Attributes:
        files: Where they are loaded from, by name; "" for the credential stores.
        encrypted: The names of those that are encrypted.
        literal: The names of those that are in the unit itself.
        imports: Patterns of what is imported from the credential stores.
        version: systemd's; 0 where it is unknown.
    """

    files: dict[str, str] = field(default_factory=dict)
    encrypted: frozenset[str] = frozenset()
    literal: frozenset[str] = frozenset()
    imports: tuple[str, ...] = ()
    version: int = 0

    def imports_name(self, name: str) -> bool:
        """Whether the credential is imported, where systemd knows how to."""
        return any(fnmatchcase(name, pattern) for pattern in self.imports)

    @property
    def can_import(self) -> bool:
        """Whether systemd knows ``ImportCredential=``, as far as is known."""
        return self.version == 0 or self.version >= IMPORTS_SINCE


def handed_over(text: str, instance: str, version: int = 0) -> Handed:
    """Read the text of a unit, drop-ins after it.

    Args:
        text: As ``systemctl cat`` prints it.
        instance: What stands for ``%i``.
        version: systemd's.
    """
    files: dict[str, str] = {}
    encrypted: set[str] = set()
    literal: set[str] = set()
    imports: list[str] = []
    for key, value in _settings(text):
        name, _, rest = _expanded(value, instance).partition(":")
        match key:
            case "LoadCredential" | "LoadCredentialEncrypted" if not value:
                files.clear()
                encrypted.clear()
            case "LoadCredential":
                files[name] = rest
                encrypted.discard(name)
            case "LoadCredentialEncrypted":
                files[name] = rest
                encrypted.add(name)
            case "SetCredential" | "SetCredentialEncrypted" if not value:
                literal.clear()
            case "SetCredential" | "SetCredentialEncrypted":
                literal.add(name)
            case "ImportCredential" if not value:
                imports.clear()
            case "ImportCredential":
                imports.append(name)
    return Handed(files, frozenset(encrypted), frozenset(literal), tuple(imports), version)


def _settings(text: str) -> list[tuple[str, str]]:
    """The settings of all ``[Service]`` sections, in their order (systemd.syntax(7))."""
    found = []
    section = ""
    for line in re.sub(r"\\\n", " ", text).splitlines():
        stripped = line.strip()
        if stripped.startswith("["):
            section = stripped
        elif section == "[Service]" and not stripped.startswith(("#", ";")):
            key, _, value = stripped.partition("=")
            found.append((key.strip(), value.strip()))
    return found


def _expanded(value: str, instance: str) -> str:
    return value.replace("%%", "\0").replace("%i", instance).replace("\0", "%")


def unit_text(unit: str) -> tuple[str, int]:
    """Ask systemd for the text of a unit, and for its own version.

    Returns:
        "" and 0 where there is no systemd, or no such unit.
    """
    version = re.match(r"systemd (\d+)", _said("--version"))
    return _said("cat", "--", unit), int(version[1]) if version else 0


def _said(*arguments: str) -> str:
    command = ["systemctl", "--no-pager", *arguments]
    try:
        return subprocess.run(  # noqa: S603 -- no shell, and a name that was checked
            command, capture_output=True, text=True, timeout=_PATIENCE, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""


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
