# SPDX-License-Identifier: GPL-2.0-or-later
"""Finds out how a configuration file, and the credentials that it names, are got at.

An instance has its credentials from systemd. An administrator's command has none, and looks where
systemd would take them from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer_framework.adapters import config
from consumer_framework.adapters.config import Access
from consumer_framework.adapters.systemd.credentials import (
    CONFIGURATION,
    Directory,
    Elsewhere,
    Handed,
    Nowhere,
    handed_over,
    unit_text,
)
from consumer_framework.adapters.systemd.systemctl import unit_name
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.runtime.state_files import SYSTEM_CONFIGURATION
from consumer_framework.settings import NO_OVERRIDES

if TYPE_CHECKING:
    from pathlib import Path

    from consumer_framework.settings import Overrides, Settings


def from_inside(path: Path | None, instance: str) -> Access:
    """How the instance itself gets at its configuration *path*."""
    directory = Directory.of_service(instance)
    copy = directory.configuration if is_systems(path, instance) else None
    return Access(copy, directory)


def from_outside(
    path: Path | None, instance: str, *, lenient: bool = True, of_service: bool | None = None
) -> Access:
    """How an administrator's command gets at the configuration *path* of an instance.

    Args:
        path: The file.
        instance: The instance's name.
        lenient: What only the instance itself can have is not needed.
        of_service: Whether systemd runs it; None where its file tells.
    """
    if Directory.of_service(instance).exists:
        access = from_inside(path, instance)
        return Access(access.handed_over, access.credentials, lenient)
    if is_systems(path, instance) if of_service is None else of_service:
        return Access(None, Elsewhere(lambda: handed_to(instance), instance), lenient)
    return Access(None, Nowhere(), lenient)


def load_outside(path: Path | None, overrides: Overrides = NO_OVERRIDES) -> Settings:
    """Load a configuration for somebody who only looks at it.

    Args:
        path: The file of the instance that it has the name of; None for the defaults.
        overrides: What the command line says instead.

    Raises:
        ConfigurationError: With every problem there is.
    """
    instance = path.stem if path else ""
    return config.load(path, overrides, from_outside(path, instance))


def require_credentials(path: Path, instance: str) -> None:
    """See whether systemd gives an instance, which is to be, the credentials that *path* names.

    Raises:
        ConfigurationError: It does not.
    """
    access = from_outside(path, instance, of_service=True)
    problems = config.substituted(path, access).problems
    if problems:
        raise ConfigurationError(*problems, source=f"{path}, for {instance}")


def is_systems(path: Path | None, instance: str) -> bool:
    """Whether *path* is what ``fm-consumer@INSTANCE.service`` reads."""
    return path is not None and path.absolute() == SYSTEM_CONFIGURATION / f"{instance}.toml"


def hands_file_over(instance: str) -> bool:
    """Whether systemd hands an instance its configuration file, so that it need not be readable."""
    return CONFIGURATION in handed_to(instance).files


def handed_to(instance: str) -> Handed:
    """What systemd hands to an instance; as the shipped unit says where systemd does not answer."""
    text, version = unit_text(unit_name(instance))
    if not text:
        file = str(SYSTEM_CONFIGURATION / f"{instance}.toml")
        return Handed({CONFIGURATION: file}, imports=(f"fm-consumer.{instance}.*",))
    return handed_over(text, instance, version)
