# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives access to a configuration file, and to the credentials that it names.

An instance gets its credentials from systemd. An administrator's command gets none, and reads the
unit to find the files that systemd would hand over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from consumer_framework.adapters import config
from consumer_framework.adapters.config import Access
from consumer_framework.adapters.systemd.credentials import (
    CONFIGURATION,
    CredentialSettings,
    NoCredentials,
    ServiceCredentials,
    UnitCredentials,
)
from consumer_framework.adapters.systemd.systemctl import unit_name
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.settings import CONFIGURATION_DIRECTORY, NO_OVERRIDES

if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.settings import Overrides, Settings


def from_inside(path: Path | None, instance: str) -> Access:
    """Return the access that the instance itself has to its configuration *path*."""
    directory = ServiceCredentials.of_process(instance)
    copy = directory.configuration if is_systems(path, instance) else None
    return Access(copy, directory)


def from_outside(
    path: Path | None,
    instance: str,
    *,
    lenient: bool = True,
    of_service: bool | None = None,
    of_relay: bool = False,
) -> Access:
    """Return the access of an administrator's command to the configuration *path* of an instance.

    Args:
        path: The file.
        instance: The instance's name.
        lenient: Report no problem for a credential that only the instance itself can read.
        of_service: True if systemd runs it; None to tell by its file.
        of_relay: True for the unit of a relay, fm-outbox@INSTANCE.
    """
    if ServiceCredentials.of_process(instance).exist:
        access = from_inside(path, instance)
        return Access(access.handed_over, access.credentials, lenient)

    def ask() -> CredentialSettings:
        return settings_of(instance, of_relay=of_relay)

    if is_systems(path, instance) if of_service is None else of_service:
        return Access(None, UnitCredentials(ask, instance), lenient)
    return Access(None, NoCredentials(), lenient)


def load_outside(path: Path | None, overrides: Overrides = NO_OVERRIDES) -> Settings:
    """Load a configuration for a command that only reads it.

    Args:
        path: The file, which has the name of its instance; None for the defaults.
        overrides: Values of the command line that replace those of the file.

    Raises:
        ConfigurationError: With every problem there is.
    """
    instance = path.stem if path else ""
    return config.load(path, overrides, from_outside(path, instance))


def require_credentials(path: Path, instance: str) -> None:
    """Check that systemd will give a new instance the credentials that *path* names.

    Raises:
        ConfigurationError: It will not.
    """
    access = from_outside(path, instance, of_service=True)
    problems = config.substituted(path, access).problems
    if problems:
        raise ConfigurationError(*problems, source=f"{path}, for {instance}")


def is_systems(path: Path | None, instance: str) -> bool:
    """Tell whether *path* is the file that ``fm-consumer@INSTANCE.service`` reads."""
    return path is not None and path.absolute() == CONFIGURATION_DIRECTORY / f"{instance}.toml"


def hands_file_over(instance: str) -> bool:
    """Tell whether systemd hands the configuration file over, which then need not be readable."""
    return CONFIGURATION in settings_of(instance).files


def is_relays_file(path: Path | None) -> bool:
    """Tell whether a file is the configuration of a relay, and of no consumer."""
    try:
        document: Any = {} if path is None else config.read(path)
    except ConfigurationError:
        return False
    table = document
    for key in ("consumer_config", "framework", "outbox"):
        table = table.get(key) if isinstance(table, dict) else None
    return "callback" not in document and isinstance(table, dict) and "database" in table


def settings_of(instance: str, *, of_relay: bool = False) -> CredentialSettings:
    """Return the credential settings of the unit of an instance, or of a relay.

    The shipped unit stands for one that systemd does not know, and for a systemd that is not there.
    """
    unit = f"fm-outbox@{instance}.service" if of_relay else unit_name(instance)
    known = CredentialSettings.of_unit(unit)
    if known is not None:
        return known
    file = str(CONFIGURATION_DIRECTORY / f"{instance}.toml")
    return CredentialSettings({CONFIGURATION: file}, imports=(f"fm-consumer.{instance}.*",))
