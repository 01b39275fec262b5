# SPDX-License-Identifier: GPL-2.0-or-later
"""Where this machine has the programs that a RabbitMQ node is made of."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Where distributions and the upstream packages keep the scripts themselves. Those in a `sbin` of
# PATH are often wrappers that change to the user "rabbitmq" and use the machine's own node.
_SCRIPT_DIRECTORIES = (
    "usr/lib/rabbitmq/bin",
    "usr/lib64/rabbitmq/bin",
    "usr/lib*/rabbitmq/lib/rabbitmq_server-*/sbin",
    "opt/rabbitmq/sbin",
)

_ADVICE = "install it with `apt install rabbitmq-server` or `dnf install rabbitmq-server`"


class BrokerError(RuntimeError):
    """The private node could not be started, or did not do what it was asked to do."""


def _script_directories() -> Iterator[Path]:
    for pattern in _SCRIPT_DIRECTORIES:
        yield from sorted(Path("/").glob(pattern), reverse=True)
    if found := shutil.which("rabbitmq-server"):
        yield Path(found).resolve().parent


def _find_scripts() -> Path | None:
    # rabbitmq-env lies beside the scripts themselves, never beside a wrapper.
    for directory in _script_directories():
        if all((directory / name).exists() for name in ("rabbitmq-server", "rabbitmq-env")):
            return directory
    return None


def _find_epmd() -> str | None:
    if found := shutil.which("epmd"):
        return found
    return next((str(path) for path in Path("/").glob("usr/lib*/erlang/erts-*/bin/epmd")), None)


def find_programs() -> tuple[Path, str]:
    """Find the directory of RabbitMQ's scripts, and epmd.

    Raises:
        BrokerError: One is not installed; the message has the command that installs it.
    """
    scripts, epmd = _find_scripts(), _find_epmd()
    if scripts is None:
        raise BrokerError(f"the RabbitMQ server is not installed; {_ADVICE}")
    if epmd is None or shutil.which("erl") is None:
        raise BrokerError(f"Erlang, which RabbitMQ needs, is not in PATH; {_ADVICE}")
    return scripts, epmd
