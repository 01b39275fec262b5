# SPDX-License-Identifier: GPL-2.0-or-later
"""Which credentials a unit hands to its service, as its text says (systemd.exec(5))."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

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
