# SPDX-License-Identifier: GPL-2.0-or-later
"""Tells which instance is a worker of which name: NAME_2.toml is a symbolic link to NAME.toml."""

from __future__ import annotations

import os
import re
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from consumer_framework.core.errors import ConfigurationError, Problem

from .model import CONFIGURATION_DIRECTORY, instance_name_problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    # By instance: the instance whose file, in the same directory, its own file links to. None for a
    # file that is no link, or links to another place.
    Files: TypeAlias = Mapping[str, str | None]

_SUFFIX = ".toml"
# The first worker is NAME itself. No leading zero: NAME_02 is somebody's instance.
_WORKER = re.compile(r"(?P<base>.+)_(?P<number>[2-9]|[1-9][0-9]+)", re.ASCII)


def worker_name(name: str, number: int) -> str:
    """Return the instance that is worker *number* of *name*, from 1 on."""
    return name if number == 1 else f"{name}_{number}"


def number_of(name: str, instance: str) -> int | None:
    """Return the number that *instance* has as a worker of *name*, by its name; None for none."""
    found = _WORKER.fullmatch(instance)
    return int(found["number"]) if found and found["base"] == name else None


def number_on_host(instance: str, directory: Path = CONFIGURATION_DIRECTORY) -> int:
    """Return the number of the worker *instance*, by the link of its file; 1 for no worker.

    The name alone counts where the user of the instance may not look at the file.

    Args:
        instance: The name of the instance.
        directory: Where the files of instances are.
    """
    found = _WORKER.fullmatch(instance)
    if found is None:
        return 1
    file = directory / f"{instance}{_SUFFIX}"
    try:
        file.lstat()
        is_worker = _target(file) == found["base"]
    except FileNotFoundError:
        is_worker = False
    except OSError:
        is_worker = True
    return int(found["number"]) if is_worker else 1


def files_in(directory: Path) -> Files:
    """Return the instances that have a configuration file in *directory*.

    Raises:
        ConfigurationError: The directory cannot be read.
    """
    try:
        paths = sorted(path for path in directory.iterdir() if path.suffix == _SUFFIX)
        return {path.stem: _target(path) for path in paths if not instance_name_problem(path.stem)}
    except FileNotFoundError:
        return {}
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        problem = Problem("", what, "make it readable, or use sudo")
        raise ConfigurationError(problem, source=str(directory)) from error


def _target(path: Path) -> str | None:
    if not path.is_symlink():
        return None
    # By its text alone: NAME.toml may be a link itself.
    target = os.path.normpath(path.parent / path.readlink())
    directory, name = os.path.split(target)
    is_neighbour = directory == os.path.normpath(path.parent) and name.endswith(_SUFFIX)
    return name.removesuffix(_SUFFIX) if is_neighbour else None


def group_of(instance: str, files: Files) -> str:
    """Return the name that *instance* is a worker of; its own name if it is no worker."""
    found = _WORKER.fullmatch(instance)
    if not found:
        return instance
    base = found["base"]
    # A unit whose link was removed has no file at all.
    is_worker = files[instance] == base if instance in files else base in files
    return base if is_worker else instance


def in_groups(instances: Iterable[str], files: Files) -> dict[str, list[str]]:
    """Sort *instances* into groups by their names, each in the order of its workers."""
    groups: dict[str, list[str]] = {}
    for instance in set(instances):
        groups.setdefault(group_of(instance, files), []).append(instance)
    # By number, not by text: _10 comes after _9.
    return {name: sorted(groups[name], key=partial(_order, name)) for name in sorted(groups)}


def _order(name: str, instance: str) -> int:
    return number_of(name, instance) or 1
