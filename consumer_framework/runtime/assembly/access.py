# SPDX-License-Identifier: GPL-2.0-or-later
"""Gives access to a configuration file, and to the credentials that it names.

An instance gets its credentials from systemd. An administrator's command gets none, and reads the
unit to find the files that systemd would hand over.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    path: Path | None, instance: str, *, lenient: bool = True, of_service: bool | None = None
) -> Access:
    """Return the access of an administrator's command to the configuration *path* of an instance.

    Args:
        path: The file.
        instance: The instance's name.
        lenient: Report no problem for a credential that only the instance itself can read.
        of_service: True if systemd runs it; None to tell by its file.
    """
    if ServiceCredentials.of_process(instance).exist:
        access = from_inside(path, instance)
        return Access(access.handed_over, access.credentials, lenient)
    if is_systems(path, instance) if of_service is None else of_service:
        return Access(None, UnitCredentials(lambda: settings_of(instance), instance), lenient)
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


def settings_of(instance: str) -> CredentialSettings:
    """Return the credential settings of an instance's unit.

    The shipped unit stands for one that systemd does not know, and for a systemd that is not there.
    """
    known = CredentialSettings.of_unit(unit_name(instance))
    if known is not None:
        return known
    file = str(CONFIGURATION_DIRECTORY / f"{instance}.toml")
    return CredentialSettings({CONFIGURATION: file}, imports=(f"fm-consumer.{instance}.*",))
