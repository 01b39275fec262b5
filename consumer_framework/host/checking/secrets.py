# SPDX-License-Identifier: GPL-2.0-or-later
"""What is known of the credentials that a configuration names, without the service's own eyes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from consumer_framework.adapters import config
from consumer_framework.core.errors import ConfigurationError
from consumer_framework.core.findings import Finding, Level

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from consumer_framework.adapters.config import Access
    from consumer_framework.core.errors import Problem


@dataclass(frozen=True, slots=True)
class Named:
    """The credentials that a file names.

    Attributes:
        paths: The TOML paths where it does.
        absent: Those of them that are not to be had here.
        unseen: What only the service itself can have.
    """

    paths: frozenset[str] = frozenset()
    absent: frozenset[str] = frozenset()
    unseen: tuple[Problem, ...] = ()

    @property
    def hides_the_broker(self) -> bool:
        """Whether the broker cannot be asked without them."""
        return any(path == "amqp_url" or path.startswith("tls.") for path in self.absent)

    def findings(self) -> Iterator[Finding]:
        """Say what could not be checked."""
        for problem in self.unseen:
            yield Finding(Level.INFO, problem)


def named_in(path: Path | None, access: Access) -> Named:
    """Look for the credentials that the file *path* names; none where it cannot be read."""
    if path is None:
        return Named()
    try:
        paths = frozenset(reference.path for reference in config.references(path, access))
        found = config.substituted(path, access)
    except ConfigurationError:
        return Named()
    return Named(paths, found.absent, found.unseen)
