# SPDX-License-Identifier: GPL-2.0-or-later
"""Who may read the configuration file, and who should not."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from consumer_framework.adapters.accounts import Account
from consumer_framework.core.errors import Problem
from consumer_framework.core.findings import error, info, warning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from consumer_framework.core.findings import Finding

# What the unit hides (ProtectHome= and PrivateTmp= in systemd.exec(5)).
HIDDEN = tuple(map(Path, ("/home", "/root", "/run/user", "/tmp", "/var/tmp")))  # noqa: S108
# Everybody who has no rights of their own.
_OTHERS = Account("everybody", None, frozenset())
# What RabbitMQ has for everybody, and takes from the same machine only.
_NO_SECRETS = {None, "", "guest"}


def file_findings(
    path: Path, account: Account | None, is_handed_over: Callable[[], bool] = lambda: False
) -> Iterator[Finding]:
    """Say whether the service can read its configuration.

    Args:
        path: The file.
        account: What the service runs as; None where it is none.
        is_handed_over: Says whether systemd gives the service a copy.
    """
    # Path.exists raises where this user may not look; os.path.exists does not.
    if account is not None and os.path.exists(path):  # noqa: PTH110
        if account.obstacle(path) is not None and is_handed_over():
            what = f"is closed to the service's user {account.name}: systemd gives it a copy"
            cure = "after a change, run 'fm-consumer reload' as root, or restart the instance"
            yield info("", what, cure)
            return
        yield from closed_findings("", path, account)


def closed_findings(key: str, path: Path, account: Account) -> Iterator[Finding]:
    """Say what keeps the service from a file.

    Args:
        key: The TOML path of the key that names it, or "" for the configuration itself.
        path: The file.
        account: What the service runs as.
    """
    what = f"{path} is" if key else "is"
    obstacle = account.obstacle(path)
    if obstacle is not None:
        closed = f"{what} closed to the service's user {account.name}"
        where = f" by the mode of {obstacle}" if obstacle != path else ""
        yield error(Problem(key, f"{closed}{where}", _opened(key, path, obstacle)))
    above = next((each for each in HIDDEN if path.resolve().is_relative_to(each)), None)
    if above is not None:
        cure = "move it, or set ProtectHome= and PrivateTmp= for the unit with systemctl edit"
        yield warning(key, f"{what} below {above}, which the unit hides from the service", cure)


def _opened(key: str, path: Path, obstacle: Path) -> str:
    if key:
        # A key is nothing that everybody should read.
        name = path.name
        return (
            f'hand it over: write "credential:{name}", and LoadCredential={name}:{path} with '
            "systemctl edit"
        )
    return f"chmod {'o+x' if obstacle.is_dir() else 'o+r'} {obstacle}"


def password_findings(url: str, path: Path) -> Iterator[Finding]:
    """Warn of a password that everybody on the machine can read.

    Args:
        url: ``amqp_url``; it was understood before.
        path: The file that it is in.
    """
    if urlsplit(url).password in _NO_SECRETS or _OTHERS.obstacle(path) is not None:
        return
    cure = f'chmod 600 {path}, or write "credential:NAME" for the password'
    yield warning("amqp_url", "everybody on this machine can read the password in it", cure)
