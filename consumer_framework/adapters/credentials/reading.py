# SPDX-License-Identifier: GPL-2.0-or-later
"""Credentials as files: how they are called, and what they say."""

from __future__ import annotations

from pathlib import Path

from consumer_framework.core import secrets
from consumer_framework.core.settings.credentials import SCHEME, UnavailableError

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
